"""From a fresh process to the first token, and the memory it then has."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.child import Fields
from benchmarks.edge.subject import Subject
from benchmarks.edge.texts import STORY
from benchmarks.rows import Row
from benchmarks.run import Run
from benchmarks.timing import median

_FIRST_PROMPT, _PROMPT, _STEPS = 16, 128, 32


def rows(subject: Subject, run: Run) -> Iterator[Row]:
    """Medians over fresh processes; files are in the system's cache."""
    with subject.engine() as child:
        first = child.ask("encode", text=STORY, tokens=_FIRST_PROMPT)["text"]
        longer = child.ask("encode", text=STORY, tokens=_PROMPT)["text"]
    times: list[Fields] = []
    sizes: dict[str, list[Fields]] = {
        "import": [],
        "first token": [],
        "128 + 32 tokens": [],
    }
    for _ in range(2 if run.quick else 11):
        with subject.engine() as child:
            sizes["import"].append(child.ask("imported"))
            times.append(child.ask("first_token", text=first))
            sizes["first token"].append(child.ask("memory"))
            child.ask("decode", text=longer, count=_STEPS)
            sizes["128 + 32 tokens"].append(child.ask("memory"))
    parts = ("verify", "load", "token")
    how = (
        f"fresh process, files cached, prompt of {_FIRST_PROMPT} tokens: verifying the bundle, "
        "loading it, the first token; Python's own start and imports not included"
    )
    for clock, name in (("wall", "wall_s"), ("CPU", "cpu_s")):
        yield run.row(
            f"load to first token, {clock} time",
            median([sum(reply[part][name] for part in parts) for reply in times]),
            "s",
            how,
            reach=0.7 if clock == "wall" else None,
        )
        for part in parts:
            yield run.row(
                f"load to first token: {part} alone, {clock} time",
                median([reply[part][name] for reply in times]),
                "s",
                how,
            )
        yield run.row(
            f"import of edge, {clock} time",
            median([reply[name] for reply in sizes["import"]]),
            "s",
            "in a fresh process",
        )
    if any(reply["resident"] is None for replies in sizes.values() for reply in replies):
        yield run.row(
            "resident memory", None, "MB", "this system has no /proc/self/smaps_rollup", reach=230.0
        )
        return
    for when, replies in sizes.items():
        for kind in ("resident", "anonymous", "peak"):
            yield run.row(
                f"{kind} memory after {when}",
                median([reply[kind] / 1e6 for reply in replies]),
                "MB",
                "whole process, Python and libraries included; /proc/self/smaps_rollup and VmHWM",
                reach=230.0 if kind == "resident" and when == "128 + 32 tokens" else None,
            )
