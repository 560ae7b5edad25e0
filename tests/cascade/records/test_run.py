"""A run over rows: as many at one time as asked, and its first error comes out as itself."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest

from cascade.errors import CascadeError
from cascade.records import Outcome, Record, TierInfo
from cascade.records.ask import Question
from cascade.records.dataset import Item
from cascade.records.run import Plan, run

ITEMS = [Item(f"r{i}", f"prompt {i}", f"r{i}", (), None, {}, {}, f"row {i}") for i in range(12)]


class ScriptedTier:
    """A tier that does what the test says, and counts how many questions are under way."""

    info = TierInfo("tier1", "scripted", "cloud")

    def __init__(self, answer: Callable[[], object] | None = None) -> None:
        self.problems: Counter[str] = Counter()
        self.busy = self.most = self.asked = 0
        self.answer = answer

    async def ask(self, question: Question) -> Outcome:
        self.asked += 1
        self.busy += 1
        self.most = max(self.most, self.busy)
        try:
            if self.answer is not None:
                await self.answer()  # type: ignore[misc]
            return Outcome(answer=question.prompt)
        finally:
            self.busy -= 1


async def test_as_many_rows_are_under_way_as_asked() -> None:
    # Nobody passes before four are there: with fewer jobs this would never end.
    meeting = asyncio.Barrier(4)
    tier = ScriptedTier(meeting.wait)
    done: list[Record] = []
    async with asyncio.timeout(60):
        await run(Plan([tier]), ITEMS, done={}, jobs=4, on_record=done.append)
    assert tier.most == 4
    assert sorted(record.id for record in done) == sorted(item.id for item in ITEMS)


async def test_the_first_error_ends_the_run_and_what_is_under_way() -> None:
    async def answer() -> None:
        if tier.asked > 3:
            raise CascadeError("wrong key")
        await asyncio.sleep(3600)

    tier = ScriptedTier(answer)
    async with asyncio.timeout(60):
        with pytest.raises(CascadeError, match="wrong key"):
            await run(Plan([tier]), ITEMS, done={}, jobs=4, on_record=lambda record: None)
    assert tier.asked == 4
    assert tier.busy == 0


async def test_only_what_an_earlier_run_lacks_is_asked() -> None:
    old = Outcome(answer="old")
    done = {
        "r0": Record("r0", "r0", "0" * 64, {"tier1": old}),
        "r1": Record("r1", "r1", "0" * 64, {"tier1": Outcome(status="UNAVAILABLE")}),
        "r2": Record("r2", "r2", "0" * 64, {}),
    }
    for retry, ids in ((False, ["r2"]), (True, ["r1", "r2"])):
        tier = ScriptedTier()
        got: list[Record] = []
        plan = Plan([tier], keep_text=True, retry=retry)
        await run(plan, ITEMS[:3], done=done, jobs=1, on_record=got.append)
        assert [record.id for record in got] == ids
        assert [record.outcomes["tier1"].answer for record in got] == [
            f"prompt {name[1]}" for name in ids
        ]
