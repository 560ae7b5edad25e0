"""An adapter with a head in rounds: a row of it is the mean of those who had examples of it, and
under masks of all."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np

from cascade.federation.plan import RoundPlan
from cascade.task import generic
from cloud.federation.config import AggregationConfig, PlanConfig
from edge.federation import Limits, Participant, StartingPoint, Trained
from edge.head import Head, HeadSpec
from tests.cloud.federation.federated import BASE, RANK, WIDE, Federation

B = "layers.0.q_proj.b"
FEATURES = 6
COUNTS = np.array([[10, 0, 0], [30, 5, 0], [0, 40, 0], [7, 7, 0]])


def head() -> Head:
    draw = np.random.default_rng(3)
    spec = HeadSpec(generic(("good", "bad", "mixed")), layer=2)
    return Head(
        spec,
        draw.normal(size=(3, FEATURES)).astype(np.float32),
        draw.normal(size=3).astype(np.float32),
        draw.normal(size=FEATURES).astype(np.float32),
        np.full(FEATURES, 2.0, np.float32),
    )


def change(number: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(number)
    shapes = {B: (RANK, WIDE), "head.weight": (3, FEATURES), "head.bias": (3,)}
    return {name: 0.1 * draw.normal(size=at).astype(np.float32) for name, at in shapes.items()}


async def a_round(federation: Federation) -> Head:
    """The head that comes of four devices; the last one has trained nothing of it."""
    async with federation.gateway() as port, federation.coordinator() as coordinator:
        await coordinator.tick()
        left = {number: participant(federation, port, number) for number in range(4)}
        devices = list(left.values())
        for _ in range(100):
            for number, device in list(left.items()):
                step = await device.step()
                assert step.outcome in ("waiting", "masking", "sent"), step
                if step.outcome == "sent":
                    del left[number]
            await asyncio.sleep(0.15 if left else 0)
        await coordinator.tick()
        for device in devices:
            await device.close()
    database = federation.database()
    try:
        row = database.do_now(lambda tx: tx.one("SELECT candidate_digest FROM rounds"))
    finally:
        database.close()
    assert row is not None
    made = federation.adapters().read(str(row[0]))
    assert made.manifest.head is not None
    return Head.from_tensors(made.manifest.head, made.tensors)


def participant(federation: Federation, port: int, number: int) -> Participant:
    def train(plan: RoundPlan, start: StartingPoint) -> Trained:
        np.testing.assert_array_equal(start.tensors["head.bias"], head().bias)
        given = {} if number == 3 else {"row_counts": COUNTS[number]}
        return Trained(change(number), 10, **given)

    return Participant(
        federation.profile(port),
        BASE,
        train,
        trust=federation.trust,
        limits=Limits(clip_norm=1000.0),
        root=federation.folder / f"device-{number}",
    )


async def test_rows_are_averaged_by_the_examples_of_their_answer(tmp_path: Path) -> None:
    made = Federation.made(
        tmp_path,
        head=head(),
        mode="synchronous",
        goal=4,
        minimum=4,
        plan=PlanConfig(layers=1, bits=32, clip_norm=1000.0),
    )
    new, old = await a_round(made), head()
    assert made.config.plan_for({"head.weight": (3, 4)}).rows
    for row in range(2):
        weights = np.where(np.arange(4) == 3, 0, np.minimum(COUNTS[:, row], 200))
        wanted = np.average([change(n)["head.weight"][row] for n in range(4)], 0, weights)
        np.testing.assert_allclose(new.weight[row] - old.weight[row], wanted, atol=2e-4)
        wanted = np.average([change(n)["head.bias"][row] for n in range(4)], 0, weights)
        np.testing.assert_allclose(new.bias[row] - old.bias[row], wanted, atol=2e-4)
    # Nobody had an example of the third answer; what standardises is nobody's.
    np.testing.assert_array_equal(new.weight[2], old.weight[2])
    np.testing.assert_array_equal(new.mean, old.mean)
    np.testing.assert_array_equal(new.scale, old.scale)


async def test_under_masks_all_rows_count_alike(tmp_path: Path) -> None:
    """Counts would tell the row of the one device that has examples of its answer."""
    made = Federation.made(
        tmp_path,
        head=head(),
        mode="synchronous",
        goal=4,
        minimum=4,
        plan=PlanConfig(layers=1, clip_norm=4.0),
        secure_aggregation={"phase_s": 2.0},
    )
    assert made.config.plan_for({"head.weight": (3, 4)}) == made.config.round_plan
    assert not made.config.round_plan.rows
    new, old = await a_round(made), head()
    changes = [change(number) for number in range(4)]
    wanted = np.mean([each["head.weight"] for each in changes], axis=0)
    np.testing.assert_allclose(new.weight - old.weight, wanted, atol=4.0 / 1023)
    wanted = np.mean([each["head.bias"] for each in changes], axis=0)
    np.testing.assert_allclose(new.bias - old.bias, wanted, atol=4.0 / 1023)
    np.testing.assert_array_equal(new.scale, old.scale)


async def test_noise_stays_away_from_what_is_not_trained(tmp_path: Path) -> None:
    made = Federation.made(
        tmp_path,
        head=head(),
        mode="synchronous",
        goal=4,
        minimum=4,
        plan=PlanConfig(layers=1, bits=32, clip_norm=1.0),
        aggregation=AggregationConfig(noise_multiplier=3.0),
    )
    assert not made.config.plan_for({"head.weight": (3, 4)}).rows
    new, old = await a_round(made), head()
    assert np.abs(new.weight - old.weight).min() > 0
    np.testing.assert_array_equal(new.scale, old.scale)
    np.testing.assert_array_equal(new.mean, old.mean)
