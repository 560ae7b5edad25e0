"""What a decision costs a device: ``decide`` itself, and the constraints before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.rows import Row
from benchmarks.run import Run
from benchmarks.timing import alternate, cpu, measure, median, wall
from cascade.budget import BudgetState
from cascade.certificate import Certificate, Promise
from cascade.conditions import Conditions
from cascade.confidence import ConfidenceModel, Isotonic, Platt
from cascade.constraints import Situation, obstacles
from cascade.local import LocalAnswer
from cascade.policy import Policy, decide
from cascade.request import Constraints
from cascade.signals import OptionScores, Signals
from cascade.task import Task

_CALLS = 2_000
_REACH_US = 50.0
_TASK = Task("mood", ("good", "bad"), "Review: {input}\nMood:", " ", "Good or bad? {input}")


def rows(subject: object, run: Run) -> Iterator[Row]:
    """Microseconds a call, by calibrator; ``subject`` is not looked at."""
    rounds = 7 if run.quick else 101
    answer, limits, situation = _answer(), Constraints(min_battery=0.2), _situation()
    platt = _policy(ConfidenceModel(Platt(1.3, -0.2)))
    knots = np.linspace(0.5, 1.0, 50)
    isotonic = _policy(ConfidenceModel(Isotonic(tuple(knots), tuple(knots**2))))
    sides: dict[str, Callable[[], object]] = {
        "decide(), Platt": lambda: decide(platt, answer),
        "decide(), isotonic with 50 knots": lambda: decide(isotonic, answer),
        "decide() with all constraints, Platt": lambda: decide(
            platt, answer, obstacles(limits, situation)
        ),
    }
    samples = alternate(
        {
            name: lambda call=call: measure(lambda: _repeat(call)).each(_CALLS)  # type: ignore[misc]
            for name, call in sides.items()
        },
        rounds,
    )
    how = (
        f"median of {rounds} rounds of {_CALLS} calls in one process, sides in turn; an unsure "
        "answer of two options, a policy in memory; without reading conditions or the ledger"
    )
    for name, taken in samples.items():
        for clock, seconds in (("CPU time", cpu), ("wall time", wall)):
            estimate = median([1e6 * value for value in seconds(taken)])
            # By the clock it depends on who else runs.
            reach = _REACH_US if clock == "CPU time" else None
            yield run.row(f"{name}, {clock}", estimate, "µs", how, reach=reach)


def _repeat(call: Callable[[], object]) -> None:
    for _ in range(_CALLS):
        call()


def _answer() -> LocalAnswer:
    share = np.array([0.6, 0.4])
    ones = np.zeros(2, np.float32)
    scores = OptionScores(_TASK.options, np.log(share), np.zeros(2), share)
    return LocalAnswer("good", Signals(ones, ones, ones), scores, 5, 1, 0.0, 0.0, "stop")


def _situation() -> Situation:
    return Situation(
        cluster=True,
        remaining_s=5.0,
        p95_s={"tier1": 1.0, "tier2": 4.0},
        conditions=Conditions("unmetered", 0.5, False),
        budget=BudgetState(0.01, 0.5, 0.2),
    )


def _policy(confidence: ConfidenceModel) -> Policy:
    promise = Promise("selective_risk", 0.25, 0.0, 1.0, "clopper_pearson", 500, 0.1, 0.2, 0.01)
    certificate = Certificate(
        promises=(promise,),
        delta=0.1,
        n=1000,
        n_accepted=500,
        threshold=0.8,
        family="fixed_sequence",
        starts=(0,),
        data_digest="0" * 64,
        grid_digest="1" * 64,
        grid_size=10,
    )
    return Policy(_TASK, "ab" * 32, "", confidence, 0.8, certificate)
