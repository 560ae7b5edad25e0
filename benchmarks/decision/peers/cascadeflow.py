"""cascadeflow beside us: the drafts as it takes them, and what it says of them.

The child, which calls it, is ``benchmarks.peers.cascadeflow``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.child import Fields
from benchmarks.decision.peers.parts import Part, Parts
from benchmarks.decision.peers.ranking import Scores
from benchmarks.peers import Child, Environment
from cascade.errors import CascadeError
from cascade.rows import Bools

VERSION = "1.2.0"
PEER = f"cascadeflow {VERSION}"
PREFIX = "cascadeflow "
ESTIMATORS = (
    "estimator",
    "estimator, bare input",
    "estimator, no query",
    "estimator, no logprobs",
    "logprobs component",
    "validator",
    "query difficulty",
)
"""Whatever it has that ranks drafts. "estimator" is what its agent itself takes."""

_ENVIRONMENT = Environment(
    "cascadeflow",
    (f"cascadeflow=={VERSION}", "httpx==0.28.1", "pydantic==2.12.5", "tiktoken==0.12.0"),
)
_BATCH = 200  # drafts a request


@dataclass(frozen=True, slots=True, eq=False)
class Cascadeflow:
    """What it makes of a task.

    Arguments:
        scores: by ``PREFIX`` and estimator.
        accepted: which drafts of the test part its agent keeps, shape ``[rows]``.
        direct: which of these questions it sent to the strong model without asking for a draft.
    """

    scores: dict[str, Scores]
    accepted: Bools
    direct: Bools


def cascadeflow(parts: Parts, say: Callable[[str], None]) -> Cascadeflow:
    """Ask it about the drafts of a task.

    Raises:
        PeerUnavailable: it cannot be installed, or it ended.
        CascadeError: its agent takes another confidence than its estimator gave.
    """
    python = _ENVIRONMENT.python(say)
    with Child("benchmarks.peers.cascadeflow", python=python) as child:
        said = [
            _estimate(child, drafts(part)) for part in (parts.develop, parts.certify, parts.test)
        ]
        # Its thresholds adapt to what it has seen, so it sees the certify part first.
        before = drafts(parts.certify)
        asked = [*before, *drafts(parts.test)]
        decisions = child.ask("run", drafts=asked)["decisions"][len(before) :]
    for decision, each in zip(decisions, said[-1], strict=True):
        if not decision["direct"] and abs(decision["confidence"] - each["estimator"]) > 1e-9:
            raise CascadeError(f"cascadeflow's agent took {decision}, its estimator said {each}")
    return Cascadeflow(
        {
            PREFIX + name: Scores(
                *(np.array([each[name] for each in part], np.float64).clip(0, 1) for part in said)
            )
            for name in ESTIMATORS
        },
        accepted=np.array([each["accepted"] for each in decisions], np.bool_),
        direct=np.array([each["direct"] for each in decisions], np.bool_),
    )


def drafts(part: Part) -> list[Fields]:
    """The device's answers as cascadeflow gets them from a server: text, log probabilities of the
    tokens as the device measured them, and why it ended."""
    records, local = part.rows.records, part.rows.local
    logprobs = records.lists(local, "token_logprobs")
    finish = records.texts(local, "finish")
    return [
        {
            "prompt": prompt,
            "input": text,
            "answer": answer,
            "logprobs": [float(each) for each in logprobs[row]],
            "finish": finish[row] or "stop",
        }
        for row, (prompt, text, answer) in enumerate(
            zip(part.prompts, part.inputs, part.answers, strict=True)
        )
    ]


def _estimate(child: Child, asked: Sequence[Fields]) -> list[Fields]:
    scores: list[Fields] = []
    for start in range(0, len(asked), _BATCH):
        scores += child.ask("estimate", drafts=asked[start : start + _BATCH])["scores"]
    return scores
