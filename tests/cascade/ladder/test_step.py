"""Taking one request up a ladder step by step is what following records does, row by row."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.confidence import ConfidenceModel, Platt
from cascade.ladder import Heard, Ladder, LadderPolicy, LadderRows, confidence_in, next_step
from tests.cascade.drawn_records import drawn, header

THREE = ("device", "tier1", "tier2")
SCORES = (0.1, 0.3, 0.5, 0.7, 0.9, np.nan)
THRESHOLDS = (0.0, 0.3, 0.5, 0.7, 0.9, 2.0)


def policy(ladder: Ladder, *models: str) -> LadderPolicy:
    """A policy whose confidences are the raw scores themselves."""
    same = ConfidenceModel(Platt(1.0, 0.0))
    return LadderPolicy("mood", header(*THREE).tiers, "", ladder, dict.fromkeys(models, same), None)


@st.composite
def ladders(draw: st.DrawFn) -> Ladder:
    way = draw(st.sampled_from(("climb", "vote", "best")))
    most = {"climb": 3, "vote": 3, "best": 2}[way]
    size = draw(st.integers(1 if way == "climb" else 2, most))
    first = draw(st.integers(0, 3 - size))
    count = size - 1 if way == "climb" else 1
    thresholds = draw(st.tuples(*[st.sampled_from(THRESHOLDS)] * count))
    skip = draw(st.sampled_from((0.0, 0.2, 0.4))) if way == "climb" else 0.0
    return Ladder(THREE[first : first + size], way, thresholds, skip)


RECORDS = drawn(40, tiers=THREE)


def some_rows(seed: int) -> LadderRows:
    rng, shape = np.random.default_rng(seed), (3, len(RECORDS))
    return LadderRows(
        tiers=THREE,
        records=RECORDS,
        remote=np.array([False, True, True]),
        score=rng.choice(SCORES, shape),
        correct=np.ones(shape, np.bool_),
        answer=rng.integers(0, 2, shape),
        latency_s=np.ones(shape),
        cost_usd=np.ones(shape),
        left_out=0,
    )


@given(ladders(), st.integers(0, 2**32 - 1), st.sets(st.sampled_from(THREE)))
def test_stepping_is_following(ladder: Ladder, seed: int, models: set[str]) -> None:
    rows = some_rows(seed)
    followed = policy(ladder, *models)
    taken = followed.follow(rows)
    for row in range(len(rows)):
        heard: dict[str, Heard] = {}
        while (step := next_step(followed, heard)).ask:
            place = THREE.index(step.tier)
            score = float(rows.score[place, row])
            answer = str(rows.answer[place, row])
            heard[step.tier] = Heard(answer, None if np.isnan(score) else score)
        assert THREE[taken.place[row]] == step.tier
        assert {THREE[i] for i in np.flatnonzero(taken.asked[:, row])} == set(heard)


SURE, UNSURE, LOST = Heard("a", 0.9), Heard("a", 0.5), Heard("a", 0.1)
OTHER = Heard("b", 0.6)


@pytest.mark.parametrize(
    ("way", "thresholds", "heard", "step", "reasons"),
    [
        ("climb", (0.8, 0.8), [], "?device", ""),
        ("climb", (0.8, 0.8), [SURE], "device", "device:confident"),
        ("climb", (0.8, 0.8), [UNSURE], "?tier1", "device:unsure"),
        ("climb", (0.8, 0.8), [LOST], "?tier2", "device:skip"),
        ("climb", (0.8, 0.8), [Heard("a")], "?tier1", "device:no_score"),
        ("climb", (0.8, 0.8), [Heard()], "?tier1", ""),
        ("climb", (0.8, 0.8), [UNSURE, SURE], "tier1", "device:unsure tier1:confident"),
        ("climb", (0.8, 0.8), [UNSURE, LOST], "?tier2", "device:unsure tier1:unsure"),
        (
            "climb",
            (0.8, 0.8),
            [UNSURE, LOST, LOST],
            "tier2",
            "device:unsure tier1:unsure tier2:last",
        ),
        ("vote", (0.8,), [UNSURE, LOST], "device", "device:unsure tier1:agree"),
        ("vote", (0.8,), [UNSURE, OTHER], "?tier2", "device:unsure tier1:disagree"),
        ("vote", (0.8,), [Heard(), OTHER], "?tier2", "tier1:disagree"),
        ("vote", (0.8,), [UNSURE, OTHER, LOST], "tier2", "device:unsure tier1:disagree tier2:last"),
        ("best", (0.8,), [UNSURE, OTHER], "tier1", "device:unsure tier1:surer"),
        ("best", (0.8,), [UNSURE, LOST], "device", "device:unsure device:surer"),
        ("best", (0.8,), [Heard(), LOST], "tier1", "tier1:surer"),
    ],
)
def test_every_step_says_why(
    way: str, thresholds: tuple[float, ...], heard: list[Heard], step: str, reasons: str
) -> None:
    tiers = THREE[:2] if way == "best" else THREE
    ladder = Ladder(tiers, way, thresholds, 0.2 if way == "climb" else 0.0)  # type: ignore[arg-type]
    followed = policy(ladder, *THREE)
    found = next_step(followed, dict(zip(tiers, heard, strict=False)))
    assert ("?" if found.ask else "") + found.tier == step
    assert " ".join(found.reasons) == reasons


def test_two_that_disagree_without_a_third() -> None:
    followed = policy(Ladder(THREE[:2], "vote", (0.8,)), *THREE)
    found = next_step(followed, {"device": UNSURE, "tier1": OTHER})
    assert (found.tier, found.ask) == ("tier1", False)
    assert found.reasons == ("device:unsure", "tier1:disagree", "tier1:surer")


def test_a_confidence_needs_an_answer_a_score_and_a_model() -> None:
    followed = policy(Ladder(THREE, "climb", (0.8, 2.0)), "device")
    assert confidence_in(followed, "device", Heard("a", 0.75)) == pytest.approx(0.75)
    assert confidence_in(followed, "tier1", Heard("a", 0.75)) is None
    assert confidence_in(followed, "device", Heard("a")) is None
    assert confidence_in(followed, "device", Heard(None, 0.75)) is None


def test_a_device_needs_numpy_alone_to_follow_one() -> None:
    code = (
        "import sys\n"
        "for name in ('scipy', 'sklearn', 'pyarrow', 'matplotlib', 'yaml', 'pydantic', 'ray'):\n"
        "    sys.modules[name] = None\n"
        "import cascade.ladder.step, cascade.ladder.device\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
