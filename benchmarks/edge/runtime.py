"""What the runtime adds to the graph's own time: the loop around it, signals, adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.edge.subject import Subject
from benchmarks.edge.texts import STORY
from benchmarks.peers import Child
from benchmarks.rows import Row
from benchmarks.run import Run
from benchmarks.timing import Sample, alternate, cpu, median, ratio, wall

_PROMPT, _STEPS, _QUICK_STEPS = 64, 32, 8


def overhead(subject: Subject, run: Run) -> Iterator[Row]:
    """CPU time of ``generate`` beyond that of the graph's runs inside of it, and of signals."""
    rounds, steps = (3, _QUICK_STEPS) if run.quick else (21, _STEPS)
    with subject.engine() as child:
        text = child.ask("encode", text=STORY, tokens=_PROMPT)["text"]
        child.ask("overhead", text=text, count=steps)
        replies = [child.ask("overhead", text=text, count=steps) for _ in range(rounds)]
        yield run.row(
            "runtime overhead a token over the bare session runs",
            median([100 * (reply["total_s"] / reply["runs_s"] - 1) for reply in replies]),
            "%",
            f"CPU time of generate for {steps} tokens over that of its {steps} calls of "
            "run_with_iobinding, measured inside of the same calls",
            reach=3.0,
        )
        yield run.row(
            "signals, share of a decode step",
            median([100 * reply["signals_s"] / reply["runs_s"] for reply in replies]),
            "%",
            "CPU time of measuring the rows of logits over that of the graph's runs, both measured "
            "inside of the same calls of generate",
            reach=2.0,
        )
        yield run.row(
            "signals, CPU time a token",
            median([1e3 * reply["signals_s"] / steps for reply in replies]),
            "ms",
            "as above",
        )


def adapters(subject: Subject, run: Run) -> Iterator[Row]:
    """Decoding with an adapter of rank 8 over decoding without one."""
    rounds, steps = (3, _QUICK_STEPS) if run.quick else (21, _STEPS)
    with subject.engine() as child:
        text = child.ask("encode", text=STORY, tokens=_PROMPT)["text"]
        counts = child.ask("adapters")
        sides = {name: _side(child, name, text, steps) for name in ("none", "qv", "all")}
        samples = alternate(sides, rounds)
    for name, title, reach in (("qv", "q and v", 1.03), ("all", "all linears", 1.12)):
        how = (
            f"{steps} tokens after {_PROMPT}, adapter on {counts[name]} linears, over the same "
            "with none active; one process, in turn"
        )
        for clock, seconds in (("CPU time", cpu), ("wall time", wall)):
            yield run.row(
                f"rank-8 adapter on {title}, {clock}",
                ratio(seconds(samples[name]), seconds(samples["none"])),
                "×",
                how,
                reach=reach if clock == "CPU time" else None,
            )


def _side(child: Child, name: str, text: str, steps: int) -> Callable[[], Sample]:
    def take() -> Sample:
        child.ask("use_adapter", name=name)
        return child.time("decode", text=text, count=steps)

    return take
