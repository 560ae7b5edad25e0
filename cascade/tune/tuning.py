"""Records and targets in, a policy with its certificate out.

The way is that of the demo. *Develop* fits the models and places the grid; *certify* chooses the
threshold and nothing else; *test* is looked at once. An early stop has a part of its own.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from cascade.certificate import Certificate, Refusal
from cascade.certify import Target, certify_groups, certify_targets, plan_targets
from cascade.early_stop.token_lists import Ints
from cascade.errors import InfeasibleTarget, InvalidInput
from cascade.pair import Pair
from cascade.policy import Policy, check_task_id
from cascade.records import RecordSet
from cascade.rows import Floats
from cascade.score_reference import ScoreReference
from cascade.task import Task
from cascade.tune.aims import Aim, goes_up, settled
from cascade.tune.modelling import Fitted, Modelling, fit
from cascade.tune.stopping import Stopping, fit_stop
from cascade.verdicts import LEAST, gains, judge, ranked


@dataclass(frozen=True, slots=True)
class Tuned:
    """A policy and how it came about.

    Arguments:
        policy: with a threshold and its certificate, or with neither: then everything escalates.
        refusal: why there is no threshold; ``None`` exactly where there is one.
        group: whose policy it is; ``None`` for that of all rows.
        stopping: what came of the early stop; ``None`` where none was wanted.
    """

    policy: Policy
    refusal: Refusal | None
    group: str | None = None
    stopping: Stopping | None = None


def tune(
    develop: Pair,
    fresh: Pair,
    aims: Sequence[Aim],
    *,
    delta: float,
    task: Task,
    modelling: Modelling = Modelling(),  # noqa: B008 (frozen)
    stop: RecordSet | None = None,
) -> Tuned:
    """One policy for all rows.

    Arguments:
        develop, fresh: rows of the parts *develop* and *certify*, which share nothing.
        aims: what is to hold, all at once.
        delta: tolerated probability that any of it does not, in (0, 1).
        task: the wording by which the rows were made, or ``cascade.task.free``.
        stop: for an early stop: records that share nothing with either; grades are not looked at.

    Raises:
        InvalidInput: the rows cannot be used for this; what is wrong is named. A target that cannot
            be certified is not an error: the policy then keeps nothing, and ``refusal`` says why.
        CascadeError: scipy or scikit-learn is missing.
    """
    fitted = _fitted(develop, fresh, modelling)
    draft = _draft(develop, task, fitted, modelling)
    targets = _planned(develop, aims, draft)
    grid = plan_targets(
        ranked(fitted.confidence), targets, rows=len(fresh), delta=delta, rising=goes_up(aims)
    )
    grid = _reachable(grid, fitted)
    stopping = None
    if stop is not None:
        alphas = [aim.alpha for aim in aims if aim.kind == "selective_risk"]
        if not alphas:
            raise InvalidInput("early-stop", "goes with a target of risk; give --target risk=0.1")
        stopping = fit_stop(develop, stop, fitted, alpha=alphas[0], delta=delta, rows=len(fresh))
        if stopping.rule is not None:
            draft = dataclasses.replace(draft, early_stop=stopping.rule)
            # Below the planned threshold the rule promises nothing.
            planned = stopping.rule.threshold
            grid = grid[grid >= planned] if (grid >= planned).any() else np.array([planned])
    seen = judge(draft, fresh.records, fresh.local)
    certificate, refusal = None, None
    try:
        certificate = certify_targets(
            ranked(seen.confidence),
            [settled(aim.target(fresh), seen.little_gain) for aim in aims],
            delta=delta,
            grid=grid,
        )
    except InfeasibleTarget as problem:
        refusal = Refusal(str(problem), problem.labels_needed)
    policy = _with(draft, certificate, fresh.score[~seen.stopped])
    return Tuned(policy, refusal, stopping=stopping)


def tune_groups(
    develop: Pair,
    fresh: Pair,
    aims: Sequence[Aim],
    group: str,
    *,
    delta: float,
    task: Task,
    modelling: Modelling = Modelling(),  # noqa: B008 (frozen)
) -> tuple[Tuned, ...]:
    """A policy for each value of a group, by name; all their promises hold at once.

    The models are those of all develop rows; each group has a grid of its own, and a share of delta
    (``certify_groups``). A group's policy is for the task ``TASK.VALUE``, see ``group_tasks``.

    Raises:
        NotFound: no record has this group.
        InvalidInput: values of the group cannot name tasks; or as for ``tune``, as CascadeError.
    """
    tasks = group_tasks(task.task_id, sorted({*fresh.records.group(group)}))
    fitted = _fitted(develop, fresh, modelling)
    draft = _draft(develop, task, fitted, modelling)
    confidence = ranked(fitted.confidence)
    planned, names = np.asarray(develop.records.group(group)), fresh.records.group(group)
    counts = dict(
        zip(*(each.tolist() for each in np.unique(names, return_counts=True)), strict=True)
    )
    targets = _planned(develop, aims, draft)
    grids: dict[str, Floats] = {}
    for name, rows in counts.items():
        mine = np.flatnonzero(planned == name)
        # A group that develop has not seen is planned by the rows of all.
        mine = mine if len(mine) else np.arange(len(develop))
        grid = plan_targets(
            confidence[mine],
            [target.take(mine) for target in targets],
            rows=rows,
            delta=delta / len(counts),
            rising=goes_up(aims),
        )
        grids[name] = _reachable(grid, fitted, mine)
    seen, mine = judge(draft, fresh.records, fresh.local), np.asarray(names)
    found = certify_groups(
        ranked(seen.confidence),
        [settled(aim.target(fresh), seen.little_gain) for aim in aims],
        names,
        delta=delta,
        grids=grids,
    )
    return tuple(
        Tuned(
            _with(
                dataclasses.replace(draft, task=dataclasses.replace(task, task_id=tasks[name])),
                found.certificates.get(name),
                fresh.score[mine == name],
            ),
            found.refused.get(name),
            name,
        )
        for name in counts
    )


def group_tasks(task_id: str, values: Iterable[str]) -> dict[str, str]:
    """The task of each value of a group: ``TASK.VALUE``, with ``-`` for all that no task's name may
    hold, e.g. ``sentiment.movie-review``.

    Raises:
        InvalidInput: the name of one is too long, or two have the same.
    """
    tasks: dict[str, str] = {}
    for value in values:
        name = f"{task_id}.{re.sub(r'[^A-Za-z0-9._-]+', '-', value)}"
        try:
            check_task_id(name)
        except InvalidInput:
            raise InvalidInput(
                "group", f"{value!r} makes the task {name}, longer than 64 characters; shorten it"
            ) from None
        if name in tasks.values():
            other = next(known for known in tasks if tasks[known] == name)
            raise InvalidInput(
                "group", f"{other!r} and {value!r} would both be the task {name}; rename one"
            )
        tasks[value] = name
    return tasks


def _fitted(develop: Pair, fresh: Pair, modelling: Modelling) -> Fitted:
    if develop.mode() != fresh.mode():
        raise InvalidInput(
            "records",
            f"develop has {develop.mode()} scores, certify {fresh.mode()}; record both alike",
        )
    return fit(develop, modelling)


def _draft(develop: Pair, task: Task, fitted: Fitted, modelling: Modelling) -> Policy:
    """The policy before there is a threshold."""
    (tier,) = (tier for tier in develop.records.header.tiers if tier.name == develop.local)
    return Policy(
        task=task,
        base_digest=tier.base_digest,
        adapter_digest=tier.adapter_digest,
        confidence=fitted.model,
        threshold=None,
        certificate=None,
        gain=fitted.gain,
        min_gain=modelling.min_gain,
    )


def _planned(develop: Pair, aims: Sequence[Aim], draft: Policy) -> list[Target]:
    """The targets on the develop rows."""
    little = np.zeros(len(develop), np.bool_)
    if draft.gain is not None and draft.min_gain is not None:
        little = gains(draft.gain, develop.records, develop.local) < draft.min_gain
    return [settled(aim.target(develop), little) for aim in aims]


def _reachable(grid: Floats, fitted: Fitted, rows: Ints | slice = slice(None)) -> Floats:
    """A grid that was planned by confidences of cross-fits, for the model that was fitted to all.

    Where a model saturates, that of one fold may go a hair higher than the final one ever does, and
    nothing would reach the first threshold. So each threshold is at most the one that keeps as many
    develop rows by the model's own confidences. Those are too high in the middle, where the
    thresholds of the cross-fits are lower and stay. 0, at which rows without a confidence would
    seem to be accepted, becomes ``LEAST``.

    Arguments:
        rows: of develop, by which the grid was planned.
    """
    if fitted.model.scorer is None:
        return grid
    planned, own = (np.sort(ranked(each[rows])) for each in (fitted.confidence, fitted.own))
    place = np.minimum(np.searchsorted(planned, grid), len(own) - 1)
    kept = np.unique(np.maximum(np.minimum(grid, own[place]), LEAST))
    return kept if grid[0] < grid[-1] else kept[::-1].copy()


def _with(draft: Policy, certificate: Certificate | None, scores: Floats) -> Policy:
    """The policy with its certificate; without one nothing is kept, so nothing is stopped.

    Arguments:
        scores: raw scores of the certify rows that are written to their end, kept or not.
    """
    if certificate is None:
        return dataclasses.replace(draft, early_stop=None)
    return dataclasses.replace(
        draft,
        threshold=certificate.threshold,
        certificate=certificate,
        scores=ScoreReference.of(scores),
    )
