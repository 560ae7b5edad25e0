"""Heads: fitted as scikit-learn fits them, chosen by measurement, and averaged class by class."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from cascade.errors import InvalidInput
from cascade.federation import decode, encode, shapes_of
from cascade.task import generic
from cloud.federation import Contribution, FfaLora, ProductMean
from edge.head import HeadSpec
from edge.training.head import (
    HeadData,
    balanced,
    class_counts,
    head_scores,
    lm_weight,
    mean_loss,
    train_head,
)
from edge.training.learners import Candidate, best
from edge.training.softmax import fit_softmax, log_softmax, rotated

OPTIONS = ("red", "green", "blue")
SPEC = HeadSpec(generic(OPTIONS), 1)


def drawn(count: int, seed: int = 0, *, width: int = 12, told: float = 0.0) -> HeadData:
    """Three overlapping clouds; ``told`` is how much the model's own scores know."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(3, width))
    labels = np.arange(count) % 3
    features = centres[labels] + 1.5 * rng.normal(size=(count, width))
    scores = rng.normal(size=(count, 3)) + told * np.eye(3)[labels]
    names = tuple(f"{seed} {index}" for index in range(count))
    return HeadData((7 * features + 40).astype(np.float32), scores, labels, np.ones(count), names)


@pytest.mark.parametrize(("count", "width"), [(60, 12), (20, 40)])
def test_the_fit_is_that_of_scikit_learn(count: int, width: int) -> None:
    data, l2 = drawn(count, width=width), 0.1
    weights = np.random.default_rng(1).uniform(0.2, 3, count)
    wide = ((data.features - 40) / 7).astype(np.float64)
    features, axes = rotated(wide)
    found = fit_softmax(features, data.labels, weights, offset=np.zeros((count, 3)), l2=l2)
    share = weights / weights.sum()
    theirs = LogisticRegression(C=1 / l2, tol=1e-10, max_iter=5000).fit(
        wide, data.labels, sample_weight=share
    )
    ours = log_softmax(wide @ (found[:, :-1] @ axes).T + found[:, -1])
    assert ours == pytest.approx(theirs.predict_log_proba(wide), abs=1e-4)


def test_a_head_learns_and_is_the_same_twice() -> None:
    training, test = drawn(90), drawn(300, 1)
    trained = train_head(SPEC, training)
    assert mean_loss(head_scores(trained.head, test), test) < 0.75 * np.log(3)
    again = train_head(SPEC, training)
    assert again.head.weight.tobytes() == trained.head.weight.tobytes()
    assert trained.loss is not None
    assert trained.loss < np.log(3)


def test_noise_is_answered_with_a_strong_penalty() -> None:
    rng = np.random.default_rng(5)
    data = dataclasses.replace(drawn(60), labels=rng.integers(0, 3, 60))
    assert train_head(SPEC, data).l2 >= 3


def test_the_model_s_own_scores_count_where_they_know_something() -> None:
    assert train_head(SPEC, drawn(120, told=3.0)).head.spec.lm_weight > 0.3
    data = drawn(300)
    assert lm_weight(data, np.zeros((300, 3))) == 0.0, "pure noise"
    sure = drawn(300, told=3.0)
    fine = lm_weight(sure, np.zeros((300, 3)))
    grid = np.linspace(0, 6, 601)
    losses = [mean_loss(log_softmax(weight * sure.scores), sure) for weight in grid]
    assert fine == pytest.approx(grid[int(np.argmin(losses))], abs=0.02)


def test_answers_of_which_some_folds_have_none_are_learned() -> None:
    options = tuple(f"option {number}" for number in range(12))
    rng = np.random.default_rng(2)
    centres = rng.normal(size=(12, 30))

    def data(count: int) -> HeadData:
        labels = np.arange(count) % 12
        features = centres[labels] + 0.4 * rng.normal(size=(count, 30))
        names = tuple(map(str, range(count)))
        return HeadData(
            features.astype(np.float32), np.zeros((count, 12)), labels, np.ones(count), names
        )

    trained = train_head(HeadSpec(generic(options), 1), data(24))
    test = data(240)
    right = head_scores(trained.head, test).argmax(axis=1) == test.labels
    assert right.mean() > 0.9
    assert trained.l2 <= 1


def test_weights_and_balance() -> None:
    data = drawn(60)
    doubled = dataclasses.replace(data, weights=np.where(data.labels == 0, 2.0, 1.0))
    twice = data.take(np.r_[np.arange(60), np.flatnonzero(data.labels == 0)])
    one = train_head(SPEC, doubled, l2=0.3).head
    other = train_head(SPEC, twice, l2=0.3).head
    assert one.logits(data.features) == pytest.approx(other.logits(data.features), abs=1e-3)
    even = balanced(np.array([0, 0, 0, 2]), np.array([1.0, 1, 2, 4]))
    assert even == pytest.approx([1, 1, 2, 4])
    assert balanced(np.array([0, 0, 0, 2]), np.ones(4)) == pytest.approx([2 / 3] * 3 + [2])
    assert class_counts(doubled).tolist() == [40, 20, 20]


def test_a_child_stays_near_its_parent() -> None:
    parent = train_head(SPEC, drawn(90)).head
    few = drawn(6, 3)
    child = train_head(SPEC, few, parent=parent, l2=1.0).head
    tied = train_head(SPEC, few, parent=parent, l2=1e6).head
    assert np.array_equal(child.mean, parent.mean)
    assert np.abs(tied.weight - parent.weight).max() < 1e-3
    distance = np.linalg.norm(child.weight - parent.weight)
    assert 0.01 < distance < np.linalg.norm(parent.weight)


def test_what_cannot_be_learned_from_is_refused() -> None:
    data = drawn(9)
    with pytest.raises(InvalidInput, match="one answer alone"):
        train_head(SPEC, data.take(np.array([0, 3, 6])))
    for weights in (np.zeros(9), (data.labels == 1).astype(np.float64)):
        with pytest.raises(InvalidInput, match="one answer alone"):
            train_head(SPEC, dataclasses.replace(data, weights=weights))
    with pytest.raises(InvalidInput, match="one example alone"):
        train_head(SPEC, dataclasses.replace(data, groups=("same",) * 9))


def test_a_candidate_whose_loss_is_no_number_is_never_taken() -> None:
    broken, good = Candidate("head", {}, None, np.nan), Candidate("lora", {}, None, 2.0)
    assert best([broken, good]) is good
    with pytest.raises(InvalidInput, match="loss of none is a number"):
        best([broken, Candidate("both", {}, None, np.inf)])


@pytest.mark.parametrize("strategy", [FfaLora(), ProductMean(2)], ids=["ffa", "product"])
def test_devices_with_different_classes_average_their_heads_row_by_row(strategy) -> None:
    """One device of six knows a class; averaged plainly, its row is what five others made of a
    class that they have never seen."""
    served = train_head(SPEC, drawn(6, 11), l2=3.0).head
    learned = {name: served.tensors()[name] for name in ("head.weight", "head.bias")}
    test, plain, by_class = drawn(600, 1), [], []
    for device in range(6):
        data = drawn(90, 20 + device)
        own = data.take(np.flatnonzero((data.labels != 0) | (device == 0)))
        child = train_head(SPEC, own, parent=served, l2=0.03).head.tensors()
        change = {name: child[name] - learned[name] for name in learned}
        sent = encode(change, 8, np.random.default_rng(device))
        change = decode(sent, shapes_of(learned))
        counts = class_counts(own)
        plain.append(Contribution(learned, change, weight=len(own)))
        rows = dict.fromkeys(learned, counts)
        by_class.append(Contribution(learned, change, weight=len(own), row_weights=rows))

    def accuracy(contributions) -> float:
        tensors = strategy.aggregate(learned, contributions).tensors
        head = dataclasses.replace(served, weight=tensors["head.weight"], bias=tensors["head.bias"])
        return float((head_scores(head, test).argmax(axis=1) == test.labels).mean())

    assert accuracy(by_class) > accuracy(plain) + 0.05
    tensors = strategy.aggregate(learned, by_class).tensors
    counts = np.array([c.row_weights["head.weight"] for c in by_class])
    changes = np.array([c.change["head.weight"] for c in by_class])
    wanted = learned["head.weight"] + np.einsum(
        "dr,drf->rf", counts / counts.sum(axis=0), changes.astype(np.float64)
    )
    assert tensors["head.weight"] == pytest.approx(wanted, abs=1e-6)


def test_a_row_that_nobody_learned_stays() -> None:
    served = {"head.weight": np.ones((2, 3), np.float32)}
    change = {"head.weight": np.full((2, 3), 5, np.float32)}
    given = Contribution(served, change, row_weights={"head.weight": np.array([2.0, 0.0])})
    tensors = FfaLora().aggregate(served, [given]).tensors
    assert tensors["head.weight"].tolist() == [[6, 6, 6], [1, 1, 1]]


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"head.weight": np.ones(3)}, "2 numbers"),
        ({"head.weight": np.array([1, -1.0])}, "0 or more"),
        ({"head.weight": np.array([1, np.nan])}, "0 or more"),
        ({"other": np.ones(2)}, "no head"),
    ],
)
def test_row_weights_that_do_not_fit_are_refused(weights, says) -> None:
    served = {"head.weight": np.ones((2, 3), np.float32)}
    given = Contribution(served, served, row_weights=weights)
    with pytest.raises(InvalidInput, match=says):
        FfaLora().aggregate(served, [given])
