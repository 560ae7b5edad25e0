"""The comparison of strategies: its gradients are right, its figures have rows, its seeds hold."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.federated import aggregation, small_task
from benchmarks.federated.small_task import accuracy, draw_task, federate
from benchmarks.run import Run
from cloud.federation import FfaLora, ProductMean


def loss(task, tensors):
    """Cross entropy over all that device 0 has."""
    changes = [tensors[f"{m}.a"] @ tensors[f"{m}.b"] for m in small_task._MODULES]
    logits = small_task._forward(task.frozen, changes, task.inputs[0])[-1]
    top = logits.max(axis=1, keepdims=True)
    odds = logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
    return -float(np.mean(odds[np.arange(len(odds)), task.labels[0]]))


@pytest.mark.parametrize("module", small_task._MODULES)
@pytest.mark.parametrize("kind", ["a", "b"])
def test_training_goes_down_the_gradient(module, kind, monkeypatch):
    task = draw_task(0, devices=1)
    monkeypatch.setattr(small_task, "_STEPS", 1)
    monkeypatch.setattr(small_task, "_BATCH", task.labels.shape[1])
    rng = np.random.default_rng(0)
    served = {
        f"{m}.{x}": (0.2 * rng.standard_normal(shape)).astype(np.float32)
        for m in small_task._MODULES
        for x, shape in (("a", (64, 3)), ("b", (3, 64)))
    }
    (change,) = small_task.train(task, served, "ab", 1.0, rng)
    name = f"{module}.{kind}"
    for at in [(0, 0), (1, 2), (2, 1)]:
        sides = []
        for sign in (1, -1):
            moved = {n: t.astype(np.float64) for n, t in served.items()}
            moved[name][at] += sign * 1e-5
            sides.append(loss(task, moved))
        slope = (sides[0] - sides[1]) / 2e-5
        assert -change[name][at] == pytest.approx(slope, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(
    ("strategy", "trained"), [(FfaLora(), "b"), (ProductMean(8), "ab")], ids=["ffa", "product"]
)
def test_a_federation_learns_and_repeats(strategy, trained):
    task = draw_task(0)
    once, again = (
        federate(task, strategy, rank=8, trained=trained, rate=0.1, bits=8, rounds=5, seed=0)
        for _ in range(2)
    )
    assert once == again
    assert once.accuracy > accuracy(task, {}) + 2
    assert len(once.errors) == 5


def test_devices_differ_in_their_classes():
    task = draw_task(0)
    shares = np.stack([np.bincount(labels, minlength=10) / len(labels) for labels in task.labels])
    assert shares.max(axis=1).min() > 0.2
    assert np.abs(shares - shares.mean(axis=0)).sum(axis=1).mean() > 0.8


def test_a_quick_run_gives_every_figure_once():
    rows = list(aggregation.rows(None, Run(quick=True, hardware="a test")))
    names = [row.figure for row in rows]
    assert len(set(names)) == len(names)
    assert all(row.value is not None and row.how and row.quick for row in rows)
    found = {row.figure: row.value for row in rows}
    ffa = found[f"aggregation: bytes up, {aggregation._FFA.name}"]
    product = found[f"aggregation: bytes up, {aggregation._PRODUCT.name}"]
    assert ffa == pytest.approx(product, rel=0.05)  # "at equal bytes"
    assert found["update: times smaller than float32, at 4 bits"] > 7
    assert found["masks: bytes up of a device"] > 2 * 115_200
