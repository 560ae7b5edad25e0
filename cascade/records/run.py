"""A run over a data set: every tier is asked, every answer graded, every row kept as it is done.

How a tier is asked is ``cascade.records.ask``; where rows are kept is ``cascade.records.journal``.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cascade.errors import InvalidInput
from cascade.graders import JUDGE_OPTIONS, Answered, Grader, judge_prompt, judged
from cascade.records.ask import Question, Tier
from cascade.records.dataset import Item
from cascade.records.outcome import Outcome
from cascade.records.record import Record, input_sha256
from cascade.task import Task, generic

_JUDGE_TASK = Task(
    task_id="judge",
    options=JUDGE_OPTIONS,
    device_prompt="{input}",
    option_prefix="",
    cloud_prompt="{input}",
    prior_correction=False,
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run does with every row.

    Arguments:
        tiers: asked in this order.
        task: wording and options of every row that has none of its own; ``None`` for free text.
        grader: decides whether an answer is right; ``None`` leaves that open.
        judge: the tier that grades, where the grader is a judge.
        max_tokens: upper bound on the tokens of a free answer.
        keep_text: whether prompts, references and free answers are kept.
        retry: whether tiers that failed before are asked again.
    """

    tiers: Sequence[Tier]
    task: Task | None = None
    grader: Grader | None = None
    judge: Tier | None = None
    max_tokens: int = 256
    keep_text: bool = False
    retry: bool = False

    def options(self, item: Item) -> tuple[str, ...]:
        """The closed set of a row; empty for free text."""
        return item.options or (self.task.options if self.task else ())

    def may_keep(self, item: Item, text: str) -> bool:
        """Whether an answer or a reference is kept as text: always, or as one of the options that
        the header names anyhow."""
        return self.keep_text or (not item.options and text in self.options(item))

    def check(self, item: Item) -> None:
        """Raise ``InvalidInput`` where a row could not be graded, before anything is asked."""
        if self.grader is None:
            return
        answered = Answered(item.prompt, "", item.reference, self.options(item))
        try:
            if self.grader.pure:
                self.grader(answered)
            else:
                self.grader.check(answered)
        except InvalidInput as problem:
            raise InvalidInput(f"{item.where}: {problem.field}", problem.problem) from None


async def run(
    plan: Plan,
    items: Iterable[Item],
    *,
    done: Mapping[str, Record],
    jobs: int,
    on_record: Callable[[Record], None],
) -> None:
    """Ask every tier about every row that is not done.

    Arguments:
        done: records of an earlier run, by id; what they lack is asked, what they have is kept.
        jobs: rows under way at one time, ≥ 1.
        on_record: called with each record as it is complete, in no particular order.

    Raises:
        InvalidInput: a grader of the user's failed; the row is named.
        CascadeError: no question will be answered any more.
    """
    left = (item for item in items if item.id not in done or _wanting(plan, done[item.id]))
    workers = [asyncio.create_task(_work(plan, left, done, on_record)) for _ in range(max(1, jobs))]
    try:
        # Not a TaskGroup: the first error is to come out as itself.
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


async def _work(
    plan: Plan,
    left: Iterator[Item],
    done: Mapping[str, Record],
    on_record: Callable[[Record], None],
) -> None:
    for item in left:
        before = done[item.id].outcomes if item.id in done else {}
        outcomes: dict[str, Outcome] = {}
        for tier in plan.tiers:
            name = tier.info.name
            old = before.get(name)
            if old is not None and not (old.failed and plan.retry):
                outcomes[name] = old
            else:
                outcomes[name] = await _outcome(plan, tier, item)
        on_record(_record(plan, item, outcomes))


def _wanting(plan: Plan, record: Record) -> bool:
    outcomes = (record.outcomes.get(tier.info.name) for tier in plan.tiers)
    return any(outcome is None or (outcome.failed and plan.retry) for outcome in outcomes)


async def _outcome(plan: Plan, tier: Tier, item: Item) -> Outcome:
    task = generic(item.options) if item.options else plan.task
    outcome = await tier.ask(Question(item.prompt, task, plan.max_tokens))
    if outcome.failed or outcome.answer is None:
        return outcome
    answered = Answered(item.prompt, outcome.answer, item.reference, plan.options(item))
    graded = dataclasses.replace(outcome, correct=await _grade(plan, answered, item))
    if plan.may_keep(item, outcome.answer):
        return graded
    digest = hashlib.sha256(outcome.answer.encode()).hexdigest()
    return dataclasses.replace(graded, answer=None, answer_sha256=digest)


async def _grade(plan: Plan, answered: Answered, item: Item) -> float | None:
    if plan.grader is None:
        return None
    if plan.judge is not None:
        verdict = await plan.judge.ask(Question(judge_prompt(answered), _JUDGE_TASK))
        return None if verdict.answer is None else judged(verdict.answer)
    try:
        return plan.grader(answered)
    except InvalidInput as problem:
        raise InvalidInput(f"{item.where}: {problem.field}", problem.problem) from problem


def _record(plan: Plan, item: Item, outcomes: Mapping[str, Outcome]) -> Record:
    reference = item.reference
    return Record(
        id=item.id,
        document=item.document,
        input_sha256=input_sha256(item.prompt),
        outcomes=outcomes,
        groups=item.groups,
        features=item.features,
        options=item.options if plan.keep_text else (),
        text=item.prompt if plan.keep_text else None,
        reference=reference if reference and plan.may_keep(item, reference) else None,
    )
