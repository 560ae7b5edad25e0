"""Tokens per second beside llama.cpp and onnxruntime-genai: the same weights, the same tokens, one
thread each, in turn within one run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from benchmarks.edge import peers
from benchmarks.edge.peers import Peer
from benchmarks.edge.subject import Subject
from benchmarks.edge.texts import STORY
from benchmarks.peers import Child, PeerUnavailable
from benchmarks.rows import Row
from benchmarks.run import Run
from benchmarks.timing import Sample, alternate, cpu, median, ratio, wall

_PROMPT, _STEPS, _QUICK_STEPS = 128, 32, 8
_OURS = "ours"

# Peer, decode and prefill to reach, whether it must be built.
_Start = Callable[..., Peer]
_PEERS: dict[str, tuple[_Start, float | None, float | None, bool]] = {
    "llama.cpp wheel": (peers.llama_cpp_wheel, 1.4, 2.0, False),
    "llama.cpp native": (peers.llama_cpp_native, None, None, True),
    "onnxruntime-genai int4": (peers.genai_int4, 0.9, None, True),
}


def rows(subject: Subject, run: Run) -> Iterator[Row]:
    """Our own speed, and ratios to every peer: above 1 we are faster."""
    found: dict[str, Peer] = {}
    absent: dict[str, str] = {}
    for name, (find, _, _, built) in _PEERS.items():
        if built and run.quick:
            absent[name] = "left out of quick runs: it has to be built"
            continue
        try:
            found[name] = find(subject.gguf, run.say)
        except PeerUnavailable as problem:
            absent[name] = str(problem)
    rounds, generations = (2, 1) if run.quick else (7, 3)
    steps = _QUICK_STEPS if run.quick else _STEPS
    samples: dict[str, dict[str, list[Sample]]] = {"decode": {}, "prefill": {}}
    for generation in range(generations):
        run.say(f"children {generation + 1} of {generations}: {', '.join((_OURS, *found))}")
        with contextlib.ExitStack() as stack:
            ours = stack.enter_context(subject.engine())
            others: dict[str, Child] = {}
            for name, peer in list(found.items()):
                try:
                    others[name] = stack.enter_context(peer.start())
                except PeerUnavailable as problem:
                    absent[name] = str(problem)
                    del found[name]
            for phase, sides in _sides(ours, others, steps).items():
                for name, taken in alternate(sides, rounds).items():
                    samples[phase].setdefault(name, []).extend(taken)
    how = (
        f"{steps} tokens after, or a prompt of, about {_PROMPT} tokens; one thread each; "
        f"{generations} generations of children, {rounds} rounds each, all engines in turn"
    )
    yield from _own_rows(run, samples, how)
    for name, (_, decode_reach, prefill_reach, _) in _PEERS.items():
        for phase, reach in (("decode", decode_reach), ("prefill", prefill_reach)):
            figure = f"{phase} against {name}"
            if name in absent:
                yield run.row(figure, None, "×", absent[name], reach=reach, sense=">=", peer=name)
                continue
            for clock, seconds in (("CPU time", cpu), ("wall time", wall)):
                yield run.row(
                    f"{figure}, {clock}",
                    ratio(seconds(samples[phase][name]), seconds(samples[phase][_OURS])),
                    "×",
                    f"their time over ours, round by round; {how}",
                    reach=reach if clock == "CPU time" else None,
                    sense=">=",
                    peer=found[name].name,
                )


def _sides(
    ours: Child, others: dict[str, Child], steps: int
) -> dict[str, dict[str, Callable[[], Sample]]]:
    prompt = ours.ask("encode", text=STORY, tokens=_PROMPT)
    text, tokens = prompt["text"], prompt["tokens"]

    def decode(child: Child) -> Callable[[], Sample]:
        return lambda: child.time("decode", tokens=tokens, count=steps).each(steps)

    def prefill(child: Child) -> Callable[[], Sample]:
        return lambda: child.time("prefill", tokens=tokens).each(len(tokens))

    return {
        "decode": {
            _OURS: lambda: ours.time("decode", text=text, count=steps).each(steps),
            **{name: decode(child) for name, child in others.items()},
        },
        "prefill": {
            _OURS: lambda: ours.time("prefill", text=text).each(len(tokens)),
            **{name: prefill(child) for name, child in others.items()},
        },
    }


def _own_rows(run: Run, samples: dict[str, dict[str, list[Sample]]], how: str) -> Iterator[Row]:
    for phase, sides in samples.items():
        for engine, taken in sides.items():
            for clock, values in (("CPU time", cpu(taken)), ("wall time", wall(taken))):
                yield run.row(
                    f"{phase}, {engine}, {clock} a token",
                    median([1e3 * value for value in values]),
                    "ms",
                    how,
                )
