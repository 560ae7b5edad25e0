"""A closed set of 77 answers: what choosing costs beside reading the prompt and a few steps."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from benchmarks.edge.subject import Subject
from benchmarks.edge.texts import CARD_QUESTION, TOPICS
from benchmarks.rows import Row
from benchmarks.run import Run
from benchmarks.timing import alternate, cpu, ratio, wall

_STEPS = 4


def rows(subject: Subject, run: Run) -> Iterator[Row]:
    """Time of ``choose`` over that of reading the same prompt and four decode steps."""
    rounds = 3 if run.quick else 11
    with subject.engine() as child:
        fields = {"text": CARD_QUESTION, "options": list(TOPICS)}
        for mode, reach in (("search", 3.0), ("exact", None)):
            figure = f"choose among {len(TOPICS)} options, {mode} mode"
            reply = child.ask("choose", **fields, mode=mode)
            if "unsupported" in reply:
                yield run.row(f"{figure}, CPU time", None, "×", reply["unsupported"], reach=reach)
                continue
            base = child.ask("read_and_write", text=CARD_QUESTION, count=_STEPS)
            samples = alternate(
                {
                    "choose": partial(child.time, "choose", **fields, mode=mode),
                    "base": partial(child.time, "read_and_write", text=CARD_QUESTION, count=_STEPS),
                },
                rounds,
            )
            how = (
                f"a prompt of {base['prompt_tokens']} tokens that does not list the options, not "
                f"in the cache, over reading it and {_STEPS} decode steps; no prior"
            )
            for clock, seconds in (("CPU time", cpu), ("wall time", wall)):
                yield run.row(
                    f"{figure}, {clock}",
                    ratio(seconds(samples["choose"]), seconds(samples["base"])),
                    "×",
                    how,
                    reach=reach if clock == "CPU time" else None,
                )
