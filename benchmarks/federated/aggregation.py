"""Which strategy is the default in clear mode, what quantised updates cost, and what masks cost.

Strategies are compared at equal bytes on a made-up task (``benchmarks.federated.small_task``). Each
arm's learning rate is chosen on a task of its own seed, which is not reported; seeds 0, 1, 2 are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.federated.small_task import Outcome, Task, Trained, accuracy, draw_task, federate
from benchmarks.rows import Row
from benchmarks.run import Run
from benchmarks.timing import Estimate, measure, median
from cascade.federation import Bits, Shapes, decode, encode, encoded_size
from cascade.federation.masking import Collector, FixedPoint, Member
from cloud.federation import FfaLora, ProductMean, SeparateMean, Strategy

_TUNING, _SEEDS = 100, (0, 1, 2)
_RATES = (0.03, 0.1, 0.3, 1.0)
_ROUNDS = 30
_COHORT = 64
_OTHER_BITS: tuple[Bits, ...] = (4, 32)
_SMOLLM2: Shapes = {
    f"layers.{layer}.{name}": shape
    for layer in range(30)
    for name, shape in (
        ("q_proj.a", (576, 2)),
        ("q_proj.b", (2, 576)),
        ("v_proj.a", (576, 2)),
        ("v_proj.b", (2, 192)),
    )
}
"""LoRA of rank 2 on q and v of all of SmolLM2-135M's layers: 115,200 numbers."""


@dataclass(frozen=True, slots=True)
class _Arm:
    name: str
    strategy: Strategy
    rank: int
    trained: Trained
    bits: Bits = 8


_FFA = _Arm("FFA-LoRA, rank 8, B travels", FfaLora(), 8, "b")
_PRODUCT = _Arm("product mean by SVD, rank 4, A and B travel", ProductMean(4), 4, "ab")
_SEPARATE = _Arm("separate means, rank 4, A and B travel", SeparateMean(), 4, "ab")


def rows(subject: object, run: Run) -> Iterator[Row]:
    """Strategies, then codes, then masks."""
    yield from _strategies(run)
    yield from _codes(run)
    yield from _masks(run)


def _strategies(run: Run) -> Iterator[Row]:
    seeds, rounds = (_SEEDS[:1], 2) if run.quick else (_SEEDS, _ROUNDS)
    tasks = {seed: draw_task(seed) for seed in (*seeds, _TUNING)}
    plain = [accuracy(tasks[seed], {}) for seed in seeds]
    yield run.row(
        "aggregation: accuracy without an adapter", median(plain), "%", _how(rounds), sense=">="
    )
    found: dict[str, list[Outcome]] = {}
    for arm in (_FFA, _PRODUCT, _SEPARATE):
        run.say(f"{arm.name}: choosing the learning rate, then {len(seeds)} seeds")
        rates = _RATES[1:2] if run.quick else _RATES
        tried = [_run(arm, tasks[_TUNING], rate, rounds).accuracy for rate in rates]
        rate = rates[int(np.argmax(tried))]
        found[arm.name] = [_run(arm, tasks[seed], rate, rounds, seed) for seed in seeds]
        yield from _of_arm(run, arm, found[arm.name], f"{_how(rounds)}; learning rate {rate:g}")
        if arm is _PRODUCT:
            for bits in _OTHER_BITS:
                other = replace(arm, name=f"{arm.name}, at {bits} bits", bits=bits)
                outcomes = [_run(other, tasks[seed], rate, rounds, seed) for seed in seeds]
                how = f"{_how(rounds)}; learning rate {rate:g}"
                yield from _of_arm(run, other, outcomes, how)
    both = zip(found[_PRODUCT.name], found[_FFA.name], strict=True)
    gains = [product.accuracy - ffa.accuracy for product, ffa in both]
    yield run.row(
        "aggregation: product mean over FFA-LoRA at equal bytes",
        median(gains),
        "points",
        f"accuracy, by seed: {', '.join(f'{gain:+.1f}' for gain in gains)}; above 0, the product "
        "mean is the default in clear mode",
        sense=">=",
    )


def _of_arm(run: Run, arm: _Arm, outcomes: Sequence[Outcome], how: str) -> Iterator[Row]:
    by_seed = ", ".join(f"{outcome.accuracy:.1f}" for outcome in outcomes)
    yield run.row(
        f"aggregation: accuracy, {arm.name}",
        median([outcome.accuracy for outcome in outcomes]),
        "%",
        f"{how}; by seed: {by_seed}",
        sense=">=",
    )
    for when, index in (("first", 0), ("last", -1)):
        yield run.row(
            f"aggregation: agg_rel_err of the {when} round, {arm.name}",
            median([100 * outcome.errors[index] for outcome in outcomes]),
            "%",
            how,
        )
    yield run.row(
        f"aggregation: bytes up, {arm.name}",
        Estimate(outcomes[0].bytes_up, 1),
        "B",
        "one encoded update",
    )


def _codes(run: Run) -> Iterator[Row]:
    rng = np.random.default_rng(0)
    update = {name: rng.standard_normal(s).astype(np.float32) for name, s in _SMOLLM2.items()}
    full = encoded_size(_SMOLLM2, 32)
    of = "LoRA of rank 2 on q and v of SmolLM2-135M, 115,200 normally distributed numbers"
    sizes: tuple[Bits, ...] = (4, 8, 32)
    for bits in sizes:
        data = encode(update, bits, rng)
        yield run.row(f"update: bytes at {bits} bits", Estimate(len(data), 1), "B", of)
        yield run.row(
            f"update: times smaller than float32, at {bits} bits",
            Estimate(full / len(data), 1),
            "x",
            of,
            sense=">=",
        )
    repeats = 3 if run.quick else 30
    small = encode(update, 4, rng)
    works: dict[str, Callable[[], object]] = {
        "encode": lambda: encode(update, 4, rng),
        "decode": lambda: decode(small, _SMOLLM2),
    }
    for what, work in works.items():
        took = [1000 * measure(work).cpu_s for _ in range(repeats)]
        yield run.row(f"update: CPU to {what} at 4 bits", median(took), "ms", of)


def _masks(run: Run) -> Iterator[Row]:
    cohort = 8 if run.quick else _COHORT
    elements = 115_200
    fixed = FixedPoint.choose(cohort, bound=1.0, levels=255)
    values = np.random.default_rng(0).uniform(-1, 1, elements)
    rng = np.random.default_rng(1)
    members = {number: Member() for number in range(1, cohort + 1)}
    collector = Collector(cohort // 2 + 1, fixed, elements)
    spent, up = dict.fromkeys(members, 0.0), dict.fromkeys(members, 0)

    run.say(f"a masked round of {cohort} devices")
    for n, member in members.items():
        with _charged(spent, n):
            keys = member.keys()
        up[n] += len(keys.to_bytes())
        collector.add_keys(n, keys)
    roster = collector.roster()
    for n, member in members.items():
        with _charged(spent, n):
            dealt = member.deal(roster)
        up[n] += len(dealt.to_bytes())
        collector.add_shares(n, dealt)
    delivered = {n: collector.delivered(n) for n in members}
    stayed = [n for n in members if n % 8]
    for n in stayed:
        with _charged(spent, n):
            vector = members[n].masked(delivered[n], values, fixed, rng)
        up[n] += len(vector)
        collector.add_vector(n, vector)
    survivors = collector.survivors()
    for n in stayed:
        with _charged(spent, n):
            revealed = members[n].reveal(survivors)
        up[n] += len(revealed.to_bytes())
        collector.add_reveal(n, revealed)
    unmasking = measure(collector.total)
    how = (
        f"one round of {cohort} devices, {cohort - len(stayed)} of which drop out after dealing; "
        f"{elements:,} numbers at {fixed.bits} bits; all devices in one process, each on its own "
        "account"
    )
    here = [1000 * spent[n] for n in stayed]
    yield run.row("masks: CPU of a device", median(here), "ms", how)
    yield run.row("masks: CPU of the server to unmask", Estimate(unmasking.cpu_s, 1), "s", how)
    yield run.row("masks: bytes up of a device", median([up[n] for n in stayed]), "B", how)
    overhead = median([up[n] - elements * fixed.bits // 8 for n in stayed])
    yield run.row("masks: bytes up beside the vector", overhead, "B", how)


@contextmanager
def _charged(spent: dict[int, float], number: int) -> Iterator[None]:
    """Put the CPU seconds of a step on a device's account."""
    began = time.process_time()
    yield
    spent[number] += time.process_time() - began


def _run(arm: _Arm, task: Task, rate: float, rounds: int, seed: int = _TUNING) -> Outcome:
    return federate(
        task,
        arm.strategy,
        rank=arm.rank,
        trained=arm.trained,
        rate=rate,
        bits=arm.bits,
        rounds=rounds,
        seed=seed,
    )


def _how(rounds: int) -> str:
    return (
        f"LoRA on two frozen 64 × 64 linears, 16 devices with 200 examples each, classes by "
        f"Dirichlet(0.3), {rounds} rounds of 10 local SGD steps, int8 unless said; medians of seeds"
    )
