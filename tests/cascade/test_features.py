"""Features: the same numbers from an answer on the device as from records of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.errors import InvalidInput, NotFound
from cascade.features import FEATURES, Features, of_answer, of_records
from cascade.local import LocalAnswer
from cascade.records import Outcome, Record, RecordSet, Scores
from cascade.records.outcome import kept
from cascade.signals import EMPTY_SIGNALS, OptionScores, Signals
from tests.cascade.records.drawn import header, signals

units = st.floats(1e-6, 1, exclude_max=True)


@st.composite
def option_scores(draw: st.DrawFn) -> OptionScores:
    weights = np.array(draw(st.lists(units, min_size=3, max_size=3)))
    logs = np.log(weights)
    return OptionScores(("yes", "no", "maybe"), logs, np.zeros(3), weights / weights.sum())


answers = st.builds(
    LocalAnswer,
    text=st.just("yes"),
    signals=signals() | st.just(EMPTY_SIGNALS),
    options=st.none() | option_scores(),
    prompt_tokens=st.integers(0, 4000),
    tokens=st.integers(0, 400),
    prefill_s=st.just(0.0),
    decode_s=st.just(0.0),
    finish=st.just("stop"),
)


def recorded(answers: list[LocalAnswer]) -> RecordSet:
    """The answers as ``cascade record`` keeps them."""
    return RecordSet.of(
        header("device"),
        [
            Record(
                id=str(place),
                document=str(place),
                input_sha256=f"{place:064x}",
                outcomes={
                    "device": Outcome(
                        answer=answer.text,
                        raw_score=min(1.0, max(0.0, answer.raw_score)),
                        signals=kept(answer.signals),
                        scores=Scores.of(answer.options) if answer.options else None,
                        prompt_tokens=answer.prompt_tokens,
                        completion_tokens=answer.tokens,
                    )
                },
            )
            for place, answer in enumerate(answers)
        ],
    )


@given(st.lists(answers, min_size=1, max_size=6))
def test_records_give_the_numbers_of_the_device_to_the_last_bit(drawn: list[LocalAnswer]) -> None:
    columns = of_records(recorded(drawn), "device")
    one_by_one = np.concatenate([of_answer(answer).values for answer in drawn])
    np.testing.assert_array_equal(columns.values, one_by_one)
    assert columns.names == FEATURES


SIGNALS = Signals(
    np.array([-0.5, -2.0, -0.25, -1.0, 0.0], np.float32),
    np.array([1.0, 2.0, 0.5, 0.0, 4.0], np.float32),
    np.array([0.5, 0.25, 0.75, 1.0, 0.125], np.float32),
)
FREE = LocalAnswer("a b c", SIGNALS, None, 7, 5, 0.0, 0.0, "stop")


def value(answer: LocalAnswer, name: str) -> float:
    return float(of_answer(answer, [name]).values[0, 0])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mean_logprob", -0.75),
        ("sum_logprob", -3.75),
        ("min_logprob", -2.0),
        ("q10_logprob", np.quantile(SIGNALS.logprobs, 0.1)),
        ("q25_logprob", -1.0),
        ("median_logprob", -0.5),
        ("first_logprob", -0.5),
        ("last_logprob", 0.0),
        ("mean_entropy", 1.5),
        ("q75_entropy", 2.0),
        ("max_entropy", 4.0),
        ("min_margin", 0.125),
        ("q25_margin", 0.25),
        ("first_margin", 0.5),
        ("raw_score", np.exp(-0.75)),
        ("raw_score_logit", np.log(np.exp(-0.75) / (1 - np.exp(-0.75)))),
        ("log_prompt_tokens", np.log(8)),
        ("log_tokens", np.log(6)),
    ],
)
def test_each_feature_is_what_its_name_says(name: str, expected: float) -> None:
    assert value(FREE, name) == pytest.approx(expected, rel=1e-6)


def test_a_closed_set_has_features_of_its_own() -> None:
    p = np.array([0.2, 0.7, 0.1])
    scores = OptionScores(("a", "b", "c"), np.log(p), np.zeros(3), p)
    answer = LocalAnswer("b", SIGNALS, scores, 7, 1, 0.0, 0.0, "stop")
    assert value(answer, "max_probability") == pytest.approx(0.7)
    assert value(answer, "top2_margin") == pytest.approx(0.5)
    assert value(answer, "option_entropy") == pytest.approx(-float(p @ np.log(p)), rel=1e-6)


@given(st.lists(signals(), min_size=1, max_size=5), st.sampled_from([0.1, 0.25, 0.5]))
def test_quantiles_are_those_of_numpy(each: list[Signals], share: float) -> None:
    name = {0.1: "q10_logprob", 0.25: "q25_logprob", 0.5: "median_logprob"}[share]
    drawn = [LocalAnswer("", one, None, 1, len(one), 0.0, 0.0, "stop") for one in each]
    found = of_records(recorded(drawn), "device", [name]).values[:, 0]
    expected = [np.quantile(kept(one).logprobs.astype(np.float64), share) for one in each]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_what_was_not_measured_is_not_a_number() -> None:
    silent = LocalAnswer("", EMPTY_SIGNALS, None, 7, 0, 0.0, 0.0, "stop")
    features = of_answer(silent)
    measured = dict(zip(features.names, np.isfinite(features.values[0]), strict=True))
    assert not measured["mean_logprob"]
    assert not measured["max_probability"]
    assert measured["raw_score"]
    assert set(features.complete().names) == {name for name, there in measured.items() if there}


def test_columns_and_rows_can_be_picked() -> None:
    features = of_records(recorded([FREE, FREE]), "device")
    some = features.select(["min_logprob", "raw_score"]).take([1])
    assert some.names == ("min_logprob", "raw_score")
    assert some.values.tolist() == [[-2.0, pytest.approx(np.exp(-0.75))]]
    with pytest.raises(NotFound, match="min_entropy"):
        features.select(["min_entropy"])


@pytest.mark.parametrize("names", [["mean_logprobs"], ["raw_score", "raw_score"]])
def test_a_name_that_is_unknown_or_given_twice_is_refused(names: list[str]) -> None:
    with pytest.raises(InvalidInput, match=names[0]):
        of_answer(FREE, names)
    with pytest.raises(InvalidInput, match="features"):
        Features(tuple(names), np.zeros((1, len(names))))
    with pytest.raises(InvalidInput, match="shape"):
        Features(("raw_score",), np.zeros((1, 2)))
