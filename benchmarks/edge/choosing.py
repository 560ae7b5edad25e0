"""A closed set of 77 answers: what choosing costs beside reading the prompt and a few steps, and
how far the two modes agree."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from benchmarks.edge.subject import Subject
from benchmarks.edge.texts import CARD_MESSAGES, CARD_PROMPT, CARD_QUESTION, TOPICS
from benchmarks.peers import Child
from benchmarks.rows import Row
from benchmarks.run import Run
from benchmarks.timing import Estimate, alternate, cpu, ratio, wall

_STEPS = 4
_PRIOR = CARD_PROMPT.format(message="")


def rows(subject: Subject, run: Run) -> Iterator[Row]:
    """Time of ``choose`` over that of reading the same prompt and four decode steps."""
    with subject.engine() as child:
        for mode, prior, reach in (
            ("search", None, 3.0),
            ("search", _PRIOR, 3.0),
            ("exact", None, None),
        ):
            yield from _cost(child, run, mode, prior, reach)
        yield from _agreement(child, run)


def _cost(
    child: Child, run: Run, mode: str, prior: str | None, reach: float | None
) -> Iterator[Row]:
    fields = {"text": CARD_QUESTION, "options": list(TOPICS), "mode": mode, "prior": prior}
    base = child.ask("read_and_write", text=CARD_QUESTION, count=_STEPS)
    samples = alternate(
        {
            "choose": partial(child.time, "choose", **fields),
            "base": partial(child.time, "read_and_write", text=CARD_QUESTION, count=_STEPS),
        },
        3 if run.quick else 11,
    )
    corrected = "no prior" if prior is None else "prior known, as after a task's first question"
    how = (
        f"a prompt of {base['prompt_tokens']} tokens that does not list the options, not in the "
        f"cache, over reading it and {_STEPS} decode steps; {corrected}"
    )
    name = f"{mode} mode" if prior is None else f"{mode} mode with prior"
    for clock, seconds in (("CPU time", cpu), ("wall time", wall)):
        yield run.row(
            f"choose among {len(TOPICS)} options, {name}, {clock}",
            ratio(seconds(samples["choose"]), seconds(samples["base"])),
            "×",
            how,
            reach=reach if clock == "CPU time" else None,
        )


def _agreement(child: Child, run: Run) -> Iterator[Row]:
    """Both modes read the same model, but in other passes, whose int8 rounding differs."""
    messages = CARD_MESSAGES[:3] if run.quick else CARD_MESSAGES
    same, inside, off = 0, 0, 0.0
    for message in messages:
        fields = {
            "text": CARD_PROMPT.format(message=message),
            "options": list(TOPICS),
            "prior": None,
        }
        found = child.ask("choose", **fields, mode="search")
        exact = child.ask("choose", **fields, mode="exact")
        share = exact["probabilities"][found["best"]]
        same += found["best"] == exact["best"]
        inside += found["lower"] <= share <= found["upper"]
        off = max(off, found["lower"] - share, share - found["upper"])
    n = len(messages)
    how = f"{n} messages, {len(TOPICS)} options, int8 activations; exact mode read in other passes"
    yield run.row(
        "search finds exact mode's best option", Estimate(same / n, n), "share", how, sense=">="
    )
    yield run.row(
        "exact mode's share lies within the search's bounds",
        Estimate(inside / n, n),
        "share",
        how,
        sense=">=",
    )
    yield run.row("exact mode's share beyond the search's bounds, most", Estimate(off, n), "", how)
