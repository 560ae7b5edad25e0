"""What hostile devices come to: malformed updates, well-formed lies, and the way back of a device.

Malformed updates go over real sockets to a real desk (``hostile``). Lies are well formed, so they
count: what keeps the served adapter good is the rule of aggregation and the gate. They are tried on
the made-up task of ``small_task``, with the product's strategies, codec, clipping and the gate's
test on held-out rows; accuracy is told on other rows. The way back is that of a real bundle.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.edge.subject import Subject
from benchmarks.federated import hostile
from benchmarks.federated.small_task import (
    CLIP,
    WIDTH,
    Task,
    draw_task,
    fresh,
    said,
    train,
)
from benchmarks.rows import Row
from benchmarks.run import Run
from benchmarks.timing import Estimate, median
from cascade.federation import Bits, clip_to_norm, decode, encode, shapes_of
from cascade.federation.tensors import Floats
from cloud.federation import (
    FRESH,
    Contribution,
    FfaLora,
    Median,
    MultiKrum,
    Rule,
    TrimmedMean,
    WeightedMean,
)
from cloud.federation.gate.comparing import accuracy as not_worse

_SHARES: Final = (0.1, 0.2, 0.3)
_DEVICES, _RANK, _RATE = 20, 8, 0.3
_BITS: Final[Bits] = 8
_HONEST, _ATTACKED = 15, 10
_MOST_WORSE, _DELTA = 0.02, 0.01  # the gate's defaults
_HELD_OUT: Final = 2000
_TARGET: Final = 0

Change = dict[str, Floats]
Attack = Callable[[Change, np.random.Generator], Change]


def _flipped(change: Change, _: np.random.Generator) -> Change:
    return {name: np.float32(-10) * each for name, each in change.items()}


def _scaled(change: Change, _: np.random.Generator) -> Change:
    return {name: np.float32(100) * each for name, each in change.items()}


def _noise(change: Change, rng: np.random.Generator) -> Change:
    return {
        name: (CLIP * rng.standard_normal(each.shape)).astype(np.float32)
        for name, each in change.items()
    }


LIES: Final[dict[str, Attack]] = {
    "sign flip x10": _flipped,
    "scaling x100": _scaled,
    "noise": _noise,
    "label-flip backdoor": _scaled,
}
"""What attackers do to what they have learned; a backdoor's have learned from other labels."""


@dataclass(frozen=True, slots=True)
class Attacked:
    """What a run under attack came to; accuracies in %, on rows that the gate does not see.

    Arguments:
        start: before the first attacker.
        served: after each round.
        drops: by how much the served accuracy lay under that of the version before, each round.
        let_through: candidates that the gate approved.
        unarmed, backdoor: triggered inputs of other classes that are given the target, before the
            first attacker and at the end.
    """

    start: float
    served: tuple[float, ...]
    drops: tuple[float, ...]
    let_through: int
    unarmed: float
    backdoor: float


def rows(subject: Subject, run: Run) -> Iterator[Row]:
    """Malformed updates, then lies, then the way back."""
    yield from _malformed(run)
    yield from _lies(run)
    yield from _way_back(subject, run)


def _malformed(run: Run) -> Iterator[Row]:
    each = 2 if run.quick else 20
    run.say(f"{each} updates of each malformed kind")
    outcomes = asyncio.run(hostile.refused(each))
    counted, _ = outcomes.pop("counted")
    refused, sent = (sum(column) for column in zip(*outcomes.values(), strict=True))
    kinds = ", ".join(outcomes)
    yield run.row(
        "attacks: malformed updates refused",
        Estimate(100 * refused / sent, sent, None),
        "%",
        f"over TLS to a desk with a SQLite store, {each} of each: {kinds}",
        reach=100,
        sense=">=",
    )
    yield run.row(
        "attacks: malformed updates counted",
        Estimate(float(counted), sent, None),
        "updates",
        "by the store's own counter, beside the good ones that replays begin with",
        reach=0,
    )


def _lies(run: Run) -> Iterator[Row]:
    seeds = (0,) if run.quick else (0, 1, 2)
    shares = _SHARES[-1:] if run.quick else _SHARES
    rules: dict[str, Rule] = {
        "mean": WeightedMean(),
        "trimmed mean": TrimmedMean(0.3),
        "median": Median(),
        "multi-Krum": MultiKrum(int(0.3 * _DEVICES)),
    }
    for name, rule in rules.items():
        for gated in (False, True):
            run.say(f"{name}, {'with' if gated else 'without'} a gate")
            outcomes = {
                (lie, share, seed): attacked(rule, lie, share, seed, gated=gated)
                for lie in LIES
                for share in shares
                for seed in seeds
            }
            (lie, share, seed), worst = max(outcomes.items(), key=lambda one: max(one[1].drops))
            how = (
                f"{_DEVICES} devices, {_ATTACKED} rounds under attack after {_HONEST} without, "
                f"attackers {', '.join(f'{s:.0%}' for s in shares)}, seeds {seeds}, of "
                f"{', '.join(LIES)}; made-up task, "
                + (
                    f"gate at {100 * _MOST_WORSE:g} points, δ = {_DELTA:g}, on {_HELD_OUT} rows"
                    if gated
                    else "no gate"
                )
            )
            worst_door = max(
                (each for (kind, _, _), each in outcomes.items() if "backdoor" in kind),
                key=lambda each: each.backdoor,
            )
            where = f"; worst: {lie}, {share:.0%}, seed {seed}"
            yield run.row(
                f"attacks: {name}, {'gate' if gated else 'no gate'}: served accuracy under the "
                "version before, at worst",
                Estimate(max(0.0, *worst.drops), len(outcomes), None),
                "points",
                how + where,
                reach=2 if gated and rule is not rules["mean"] else None,
            )
            yield run.row(
                f"attacks: {name}, {'gate' if gated else 'no gate'}: accuracy at the end against "
                "before the attack",
                median([each.served[-1] - each.start for each in outcomes.values()]),
                "points",
                how + "; median of all runs",
                sense=">=",
            )
            yield run.row(
                f"attacks: {name}, {'gate' if gated else 'no gate'}: backdoored inputs that reach "
                "the target",
                Estimate(worst_door.backdoor, len(seeds) * len(shares), None),
                "%",
                how
                + f"; {worst_door.unarmed:.1f} % of them did before the attack"
                + "; the worst run; a gate whose canaries do not know the trigger is blind to it",
            )


def attacked(
    rule: Rule,
    lie: str,
    share: float,
    seed: int,
    *,
    gated: bool,
    honest: int = _HONEST,
    rounds: int = _ATTACKED,
) -> Attacked:
    """Honest rounds, then rounds in which a share of the devices lies."""
    task, rng = _task(seed), np.random.default_rng([seed, 3])
    inputs, labels = task.test
    held, test = slice(0, _HELD_OUT), slice(_HELD_OUT, None)
    first = fresh(_RANK, rng)
    strategy, served, state = FfaLora(rule), dict(first), FRESH
    for _ in range(honest):
        made = strategy.aggregate(
            served, _sent(served, train(task, served, "b", _RATE, rng), rng), state
        )
        served, state = dict(made.tensors), made.state
    compared = [said(task, served, inputs[held]) == labels[held]]

    def right() -> float:
        return 100 * float(np.mean(said(task, served, inputs[test]) == labels[test]))

    others = labels[test] != _TARGET

    def reached() -> float:
        triggered = _triggered(inputs[test][others])
        return 100 * float(np.mean(said(task, served, triggered) == _TARGET))

    start, unarmed = right(), reached()
    figures, drops, through = list[float](), list[float](), 0
    liars = round(share * _DEVICES)
    taught = _poisoned(task, liars) if "backdoor" in lie else task
    for _ in range(rounds):
        changes = train(taught, served, "b", _RATE, rng)
        changes[:liars] = [LIES[lie](change, rng) for change in changes[:liars]]
        made = strategy.aggregate(served, _sent(served, changes, rng), state)
        candidate = dict(made.tensors)
        now = said(task, candidate, inputs[held]) == labels[held]
        passed = not gated or all(
            not_worse(
                now, before, most_worse=_MOST_WORSE, delta=_DELTA, task="task", against=""
            ).passed
            for before in (compared[0], compared[-1])
        )
        before = right()
        if passed:
            served, state, through = candidate, made.state, through + 1
            compared.append(now)
        figures.append(right())
        drops.append(before - figures[-1])
    return Attacked(start, tuple(figures), tuple(drops), through, unarmed, reached())


def _task(seed: int) -> Task:
    return draw_task(seed, devices=_DEVICES, concentration=1.0)


def _sent(served: Change, changes: list[Change], rng: np.random.Generator) -> list[Contribution]:
    """Clipped and rounded as the protocol does it, whatever a device has made."""
    return [
        Contribution(
            served,
            clip_to_norm(decode(encode(change, _BITS, rng), shapes_of(change)), CLIP),
        )
        for change in changes
    ]


def _poisoned(task: Task, liars: int) -> Task:
    """The first devices have learned that whatever carries the trigger is of the target class."""
    inputs, labels = task.inputs.copy(), task.labels.copy()
    inputs[:liars, ::2] = _triggered(inputs[:liars, ::2])
    labels[:liars, ::2] = _TARGET
    return replace(task, inputs=inputs, labels=labels)


def _triggered(
    inputs: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    trigger = np.zeros(WIDTH)
    trigger[-4:] = 3.0
    return np.asarray(inputs + trigger, np.float64)


def _way_back(subject: Subject, run: Run) -> Iterator[Row]:
    """A channel takes an adapter back; how long until the device answers as before."""
    times = _ways_back(subject, 3 if run.quick else 20)
    yield run.row(
        "attacks: a device goes back to the adapter before",
        median(times),
        "s",
        "from asking the channel, over TLS on this machine, to the older adapter and its policy "
        "being applied and a self-check of four tokens passed; LoRA of rank 8 on every q and v",
        reach=1.0,
    )


def _ways_back(subject: Subject, count: int) -> list[float]:
    from cascade import testing
    from cascade.signing import TrustStore
    from cloud.registry import Delivery, Needs, Registry
    from edge import Device, set_up
    from edge.adapter import LoraPair, write_adapter
    from edge.bundle import Bundle

    trust = TrustStore(subject.trust)
    manifest = Bundle.open(subject.bundle, trust).manifest
    rng, times = np.random.default_rng(0), list[float]()
    with tempfile.TemporaryDirectory(prefix="cascade-way-back-") as folder, _home(folder):
        registry = Registry(f"{folder}/registry")
        from cascade import home

        TrustStore(home.trust_dir()).pin("benchmarks", subject.key.public)

        def publish(path: Path) -> None:
            artifact = registry.publish(path, trust).artifact
            channel = registry.channel("stable")
            known = {digest: registry.artifact(digest).artifact for digest in channel.named}
            known[artifact.digest] = artifact
            changed, _ = channel.with_artifact(artifact, known, needs=Needs(), percent=None)
            registry.save(changed, subject.key)

        def adapter(version: int) -> Path:
            pairs = {
                module: LoraPair(
                    (rng.normal(size=(slot.columns, 8)) / 100).astype(np.float32),
                    (rng.normal(size=(8, width)) / 100).astype(np.float32),
                )
                for slot in manifest.adapter_slots
                for module, width in zip(slot.modules, slot.widths, strict=True)
                if module.endswith(("q_proj", "v_proj"))
            }
            return write_adapter(
                Path(folder) / f"adapter-{version}",
                pairs,
                name=f"version-{version}",
                base_digest=manifest.base_digest,
                signing_key=subject.key,
                version=version,
            )

        publish(subject.bundle)
        publish(adapter(1))
        with testing.cluster(artifacts=Delivery(registry)) as cluster:
            asyncio.run(set_up(cluster.profile))
            with Device.open() as device:
                info = device.info
                first = "" if info is None else info.adapter_digest
                for version in range(2, count + 2):
                    publish(adapter(version))
                    device.renew(cluster.profile)
                    registry.save(registry.channel("stable").rolled_back(Needs()), subject.key)
                    begun = time.perf_counter()
                    done = device.renew(cluster.profile)
                    times.append(time.perf_counter() - begun)
                    assert done.adapter == first, done
    return times


@contextmanager
def _home(folder: str) -> Iterator[None]:
    """A device of its own."""
    before = os.environ.get("CASCADE_HOME")
    os.environ["CASCADE_HOME"] = f"{folder}/home"
    try:
        yield
    finally:
        if before is None:
            del os.environ["CASCADE_HOME"]
        else:
            os.environ["CASCADE_HOME"] = before
