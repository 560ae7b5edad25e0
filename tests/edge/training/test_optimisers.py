"""Steps as torch takes them, from the same gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cascade.errors import InvalidInput
from edge.training import AdamW, Sgd, TrainingPlan
from edge.training.optimisers import clipped, scheduled

SIZE, STEPS = 50, 30


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (AdamW(SIZE), lambda p: torch.optim.AdamW(p, lr=1.0, weight_decay=0.0)),
        (
            AdamW(SIZE, weight_decay=0.1, betas=(0.8, 0.95)),
            lambda p: torch.optim.AdamW(p, lr=1.0, weight_decay=0.1, betas=(0.8, 0.95)),
        ),
        (Sgd(SIZE), lambda p: torch.optim.SGD(p, lr=1.0)),
        (
            Sgd(SIZE, momentum=0.9, weight_decay=0.01),
            lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9, weight_decay=0.01),
        ),
    ],
    ids=["adamw", "adamw-decay", "sgd", "sgd-momentum-decay"],
)
def test_steps_are_torch_s(ours, theirs) -> None:
    rng = np.random.default_rng(0)
    vector = rng.normal(size=SIZE).astype(np.float32)
    tensor = torch.tensor(vector.copy(), requires_grad=True)
    optimiser = theirs([tensor])
    for step in range(STEPS):
        gradient = rng.normal(size=SIZE).astype(np.float32)
        rate = 1e-2 * scheduled("cosine", step, STEPS, 0.2)
        vector = ours.step(vector, gradient, rate)
        optimiser.param_groups[0]["lr"] = rate
        tensor.grad = torch.tensor(gradient)
        optimiser.step()
    assert np.abs(vector - tensor.detach().numpy()).max() < 1e-6


@pytest.mark.parametrize("make", [AdamW, lambda size: Sgd(size, momentum=0.9)])
def test_an_optimiser_goes_on_where_another_stopped(make) -> None:
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(6, SIZE)).astype(np.float32)
    whole = make(SIZE)
    vector = np.zeros(SIZE, np.float32)
    for gradient in gradients:
        vector = whole.step(vector, gradient, 0.1)
    halves, paused = make(SIZE), np.zeros(SIZE, np.float32)
    for number, gradient in enumerate(gradients):
        if number == 3:
            state = halves.state()
            halves = make(SIZE)
            halves.restore(state)
        paused = halves.step(paused, gradient, 0.1)
    assert paused.tobytes() == vector.tobytes()


def test_clipping_keeps_the_direction() -> None:
    gradient = np.array([3.0, 4.0], np.float32)
    assert clipped(gradient, 10.0) is gradient
    assert clipped(gradient, 1.0) == pytest.approx([0.6, 0.8])


def test_schedules_rise_and_fall() -> None:
    for schedule in ("constant", "linear", "cosine"):
        shares = [scheduled(schedule, step, 20, 0.25) for step in range(20)]
        assert shares[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
        assert all(0 < share <= 1 for share in shares)
    assert scheduled("constant", 19, 20, 0.25) == 1
    assert scheduled("linear", 19, 20, 0.25) == pytest.approx(1 / 15)


def test_a_plan_survives_json() -> None:
    plan = TrainingPlan(rank=4, modules=("v_proj",), frozen_a="round 1", optimiser="sgd")
    assert TrainingPlan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rank", 0),
        ("rank", True),
        ("rank", 2.5),
        ("learning_rate", 0.0),
        ("learning_rate", "fast"),
        ("modules", ["q_proj", "head"]),
        ("modules", []),
        ("optimiser", "lion"),
        ("val_share", 1.0),
        ("colour", "red"),
    ],
)
def test_a_plan_that_cannot_be_followed_is_refused(field: str, value: object) -> None:
    with pytest.raises(InvalidInput, match=field):
        TrainingPlan.from_json(TrainingPlan().to_json() | {field: value})
