"""The comparison of learners is a group, and its two sides share neither documents nor texts."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.decision.datasets import sources
from benchmarks.federated import learners
from benchmarks.federated.__main__ import GROUPS
from edge.training.head import HeadData


def test_learners_are_a_group() -> None:
    assert GROUPS["learners"] is learners.rows


@pytest.mark.models
@pytest.mark.parametrize("read", [learners._sentiment, learners._commands])
def test_nothing_is_learned_that_is_tested(read, model_path, monkeypatch) -> None:
    monkeypatch.setattr(learners, "pull", model_path)  # fetched once for all tests
    monkeypatch.setattr(sources, "pull", model_path)
    found = read()
    learned = {example.messages[-1].content for example in found.learn}
    tested = {example.messages[-1].content for example in found.test}
    assert not learned & tested
    assert len(found.learn) >= 400
    assert len(found.test) >= 400
    assert {e.answer for e in found.learn} == set(found.task.options)
    few = [example.answer for example in found.learn[:100]]
    assert set(few) == set(found.task.options), "a beginning has every answer"


def test_accuracy_counts_the_right_ones() -> None:
    scores = np.array([[1.0, 0], [0, 1], [0, 1], [1, 0]])
    data = HeadData(
        np.zeros((4, 2), np.float32), scores, np.array([0, 1, 0, 0]), np.ones(4), tuple("abcd")
    )
    estimate = learners._accuracy(scores, data)
    assert estimate.value == 75
    assert estimate.ci[0] < 75 < estimate.ci[1]
