"""Given a device that may propose its answer, the controller sends it, writes on, or stops."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from cascade.checks import Checks, matches
from cascade.controller import Controller
from cascade.decision_record import DecisionRecord, replay_decision
from cascade.draft import Drafting, DraftPiece, DraftTape
from cascade.draft_book import DraftBook
from cascade.egress import Egress
from cascade.errors import InvalidInput, RemoteError
from cascade.events import Answer, Event, Final, Superseded, Token
from cascade.policy import Decision, PolicyStore, Reason
from cascade.privacy import PiiSpan, Privacy
from cascade.remote import (
    Accepted,
    Chunk,
    DeviceReport,
    Finished,
    RemoteEvent,
    Speed,
    Transfer,
    Verified,
)
from cascade.request import DataClass, Request
from tests.cascade.scripted import FINISHED, WORDS, Writer, shelf
from tests.cascade.test_stopping import RULE, TALK, question

FIRED = RULE.checkpoints[0].tokens
# Whatever is written is worth sending, and a token within ten seconds worth waiting for.
EAGER = Drafting(acceptance=0.999, write_s=10.0, read_s=1e-6)


@dataclass
class Scorer:
    """A cluster that reads a draft to its end, keeps half of it, and answers.

    Arguments:
        waits: whether it waits for a draft; otherwise it answers at once.
        share: of a draft that it keeps.
        begun: set when a piece of a draft has come.
        accepted: set when it has said that it takes the request.
    """

    waits: bool = True
    share: float = 0.5
    finished: Finished = FINISHED
    begun: threading.Event = field(default_factory=threading.Event)
    accepted: threading.Event = field(default_factory=threading.Event)
    problem: RemoteError | None = None
    drafts: list[DraftTape | None] = field(default_factory=list)
    pieces: list[DraftPiece] = field(default_factory=list)

    async def answer(
        self,
        request: Request,
        report: DeviceReport,
        *,
        deadline_s: float,
        transfer: Transfer,
        draft: DraftTape | None = None,
    ) -> AsyncGenerator[RemoteEvent, None]:
        self.drafts.append(draft)
        if draft is not None and self.waits:
            async with aclosing(draft.pieces()) as pieces:
                async for piece in pieces:
                    self.pieces.append(piece)
                    self.begun.set()
        if self.problem is not None:
            raise self.problem
        yield Accepted("tier1", "large")
        self.accepted.set()
        if draft is not None and self.waits:
            yield Verified(int(draft.sent * self.share))
        yield Chunk("better", 1)
        yield self.finished

    @property
    def tokens(self) -> list[int]:
        return [token for piece in self.pieces for token in piece.tokens]

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    async def close(self) -> None:
        pass


@pytest.fixture
def policies(tmp_path: Path) -> PolicyStore:
    return shelf(tmp_path, replace(TALK, drafting=EAGER))


async def events_of(controller: Controller, request: Request, show: str = "final") -> list[Event]:
    return [event async for event in controller.run(request, show=show)]  # type: ignore[arg-type]


async def answered(controller: Controller, request: Request) -> Answer:
    last = (await events_of(controller, request))[-1]
    assert isinstance(last, Final)
    return last.answer


def whole(draft: DraftTape | None) -> bool:
    assert draft is not None
    return draft.ended and draft.complete


async def test_an_answer_that_is_not_kept_is_proposed_as_it_is(tmp_path: Path) -> None:
    """Without a rule to stop it the whole of it is there when it escalates."""
    policies = shelf(tmp_path, replace(TALK, early_stop=None, drafting=EAGER))
    writer, cluster = Writer(pause_s=0.01), Scorer()
    answer = await answered(Controller(writer, cluster, policies), question())
    assert (answer.source, answer.text) == ("tier1", "better")
    assert cluster.tokens == list(range(100, 100 + WORDS))
    assert cluster.text == "".join(f"w{word} " for word in range(WORDS))
    assert len(cluster.pieces) == 1
    assert whole(cluster.drafts[0])
    assert (answer.draft_tokens, answer.draft_kept) == (WORDS, WORDS // 2)
    assert answer.local_tokens == WORDS


async def test_a_hopeless_answer_is_written_on_as_a_draft_while_that_is_worth_it(
    policies: PolicyStore,
) -> None:
    cluster = Scorer()
    writer = Writer(pause_s=0.01, wait_at=FIRED, may_go_on=cluster.begun)
    answer = await answered(Controller(writer, cluster, policies), question())
    assert answer.reasons[0] == Reason.STOPPED_EARLY
    assert (answer.source, answer.text) == ("tier1", "better")
    # The call was open before the draft was complete, and got the rest as it was written.
    assert len(cluster.pieces) > 1
    assert cluster.tokens == list(range(100, 100 + WORDS))
    assert whole(cluster.drafts[0])
    assert (answer.draft_tokens, answer.draft_kept) == (WORDS, WORDS // 2)
    assert answer.local_tokens == WORDS
    assert answer.local_tokens_saved is None
    assert (writer.decodes, writer.ended) == (1, 1)


@pytest.mark.parametrize(
    "drafting",
    [
        replace(EAGER, write_s=0.009),  # the tier writes faster than the device
        replace(EAGER, acceptance=0.2, write_s=0.02),  # it will hardly keep a fourth token
    ],
)
async def test_it_is_stopped_where_a_draft_is_not_worth_the_wait(
    tmp_path: Path, drafting: Drafting
) -> None:
    writer, cluster = Writer(pause_s=0.01), Scorer()
    policies = shelf(tmp_path, replace(TALK, drafting=drafting))
    answer = await answered(Controller(writer, cluster, policies), question())
    assert writer.words == FIRED
    assert answer.local_tokens_saved == 6.5
    assert cluster.tokens == list(range(100, 100 + FIRED))
    assert answer.draft_tokens == FIRED
    assert not whole(cluster.drafts[0])


async def test_a_tier_that_does_not_wait_ends_the_draft(policies: PolicyStore) -> None:
    cluster = Scorer(waits=False)
    writer = Writer(pause_s=0.01, wait_at=FIRED, may_go_on=cluster.accepted)
    answer = await answered(Controller(writer, cluster, policies), question())
    assert answer.source == "tier1"
    assert (answer.draft_tokens, answer.draft_kept) == (0, None)
    assert answer.local_tokens == writer.words == FIRED + 1
    assert (writer.decodes, writer.ended) == (1, 1)


async def test_a_request_says_off_whatever_the_policy_says(policies: PolicyStore) -> None:
    writer, cluster = Writer(pause_s=0.01), Scorer()
    request = replace(question(), drafting=Drafting("off"))
    answer = await answered(Controller(writer, cluster, policies), request)
    assert cluster.drafts == [None]
    assert writer.words == FIRED
    assert (answer.draft_tokens, answer.draft_kept) == (0, None)


async def test_without_a_word_about_it_nothing_is_proposed(tmp_path: Path) -> None:
    cluster = Scorer()
    await answered(Controller(Writer(pause_s=0.01), cluster, shelf(tmp_path, TALK)), question())
    await answered(Controller(Writer(pause_s=0.01), cluster), replace(question(), task_id=""))
    assert cluster.drafts == [None, None]


async def test_a_request_that_may_not_leave_proposes_nothing(policies: PolicyStore) -> None:
    writer, cluster = Writer(pause_s=0.01), Scorer()
    request = question(data_class=DataClass.NEVER_LEAVE)
    answer = await answered(Controller(writer, cluster, policies), request)
    assert (answer.source, cluster.drafts, answer.bytes_up) == ("device", [], 0)


async def test_an_answer_that_failed_a_check_is_not_proposed(tmp_path: Path) -> None:
    policies = shelf(tmp_path, replace(TALK, early_stop=None, drafting=EAGER))
    cluster, checks = Scorer(), Checks({"digits": matches("[0-9]+")})
    request = replace(question(), checks=("digits",))
    answer = await answered(
        Controller(Writer(pause_s=0.01), cluster, policies, checks=checks), request
    )
    assert "veto:digits" in answer.reasons
    assert cluster.drafts == [None]


class Nothing:
    """Finds no personal data."""

    def find(self, text: str) -> list[PiiSpan]:
        return []


async def test_what_is_looked_into_first_is_not_sent_while_it_is_written(
    policies: PolicyStore,
) -> None:
    writer, cluster = Writer(pause_s=0.01), Scorer()
    egress = Egress(privacy=Privacy(Nothing()))
    await answered(Controller(writer, cluster, policies, egress=egress), question())
    assert writer.words == FIRED
    assert len(cluster.pieces) == 1
    assert cluster.text == "w0 w1 w2 "


@pytest.mark.parametrize("show", ["final", "provisional"])
async def test_a_failed_call_leaves_the_whole_answer_of_the_device(
    policies: PolicyStore, show: str
) -> None:
    writer, cluster = Writer(pause_s=0.01), Scorer(problem=RemoteError("UNAVAILABLE", "gone"))
    events = await events_of(Controller(writer, cluster, policies), question(), show)
    last = events[-1]
    assert isinstance(last, Final)
    text = "".join(f"w{word} " for word in range(WORDS))
    assert (last.answer.source, last.answer.text) == ("device", text)
    assert (last.answer.remote_status, last.answer.verified) == ("UNAVAILABLE", False)
    assert last.answer.draft_tokens == WORDS
    assert last.answer.local_tokens == WORDS  # it had been written: nothing is written again
    shown = ""
    for event in events:
        match event:
            case Token(piece):
                shown += piece
            case Superseded():
                shown = ""
    assert shown == text
    assert (writer.decodes, writer.ended) == (1, 1)


async def test_leaving_while_a_draft_is_written_ends_the_decode(policies: PolicyStore) -> None:
    writer, cluster = Writer(pause_s=0.05), Scorer()
    running = asyncio.create_task(answered(Controller(writer, cluster, policies), question()))
    async with asyncio.timeout(10):
        while not cluster.drafts:
            await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (writer.decodes, writer.ended) == (1, 1)
    (draft,) = cluster.drafts
    assert draft is not None
    assert draft.ended
    assert not draft._readers


async def test_a_deadline_in_the_middle_of_a_draft_gives_what_there_is(
    policies: PolicyStore,
) -> None:
    writer, cluster = Writer(pause_s=0.1), Scorer()

    async def answer(*args: object, **kwargs: object) -> AsyncGenerator[RemoteEvent, None]:
        deadline_s = kwargs["deadline_s"]
        assert isinstance(deadline_s, float)
        await asyncio.sleep(deadline_s)
        raise RemoteError("DEADLINE_EXCEEDED", "too late")
        yield FINISHED

    cluster.answer = answer  # type: ignore[method-assign]
    result = await answered(Controller(writer, cluster, policies), question(deadline_s=0.7))
    assert (result.source, result.remote_status) == ("device", "DEADLINE_EXCEEDED")
    assert result.text.startswith("w0 w1 w2 ")
    assert writer.decodes == writer.ended


async def test_a_device_learns_that_a_tier_keeps_nothing_and_stops_sending(tmp_path: Path) -> None:
    """By default it would send all ten words; a tier that reads slowly and keeps none of them is
    asked without, after a few, until what is known of it has faded."""
    usual = Drafting(acceptance=0.8, write_s=0.1, read_s=0.01)
    assert usual.worth_sending(WORDS) == WORDS
    policies = shelf(tmp_path, replace(TALK, early_stop=None, drafting=usual))
    slow = replace(FINISHED, completion_tokens=9, speed=Speed(10, 0.8, 9, 0.9))
    now_s = [1e9]
    book = DraftBook(now=lambda: now_s[0])
    sent: list[int] = []
    for _ in range(12):
        cluster = Scorer(share=0.0, finished=slow)
        controller = Controller(
            Writer(), cluster, policies, egress=Egress(drafts=book, cluster="c")
        )
        sent.append((await answered(controller, question())).draft_tokens)
    assert sent[0] == WORDS
    assert sorted(sent, reverse=True) == sent
    assert sent[-1] == 0
    assert cluster.drafts == [None]
    now_s[0] += 7 * 24 * 3600.0
    again = Scorer(finished=slow)
    controller = Controller(Writer(), again, policies, egress=Egress(drafts=book, cluster="c"))
    assert (await answered(controller, question())).draft_tokens == WORDS


async def test_a_device_learns_that_a_tier_is_worth_waiting_for(tmp_path: Path) -> None:
    """At first the rule stops the decode; once the tier is known to write slowly and to keep all,
    the device writes on as a draft."""
    shy = Drafting(acceptance=0.6, write_s=0.03, read_s=0.01)
    policies = shelf(tmp_path, replace(TALK, drafting=shy))
    fast = replace(FINISHED, completion_tokens=99, speed=Speed(3, 0.003, 90, 9e5))
    book, words = DraftBook(), []
    for _ in range(3):
        writer = Writer(pause_s=0.02)
        controller = Controller(
            writer, Scorer(share=1.0, finished=fast), policies, egress=Egress(drafts=book)
        )
        await answered(controller, question())
        words.append(writer.words)
    assert words[0] == FIRED
    assert words[-1] == WORDS


@pytest.mark.parametrize(
    ("finished", "refused"),
    [
        (replace(FINISHED, completion_tokens=5), True),  # it ended where the draft went on
        (replace(FINISHED, completion_tokens=9, reason="length"), True),
        (replace(FINISHED, completion_tokens=5, reason="length"), False),  # it had no room left
    ],
)
async def test_a_token_that_nobody_asked_for_is_not_held_against_a_draft(
    tmp_path: Path, finished: Finished, refused: bool
) -> None:
    policies = shelf(tmp_path, replace(TALK, early_stop=None, drafting=EAGER))
    book = DraftBook()
    cluster = Scorer(finished=finished)  # keeps five of ten
    controller = Controller(Writer(), cluster, policies, egress=Egress(drafts=book))
    answer = await answered(controller, question())
    assert (answer.draft_tokens, answer.draft_kept) == (10, 5)
    even = Drafting(acceptance=0.5)
    learned = book.learned("", even, None).acceptance
    assert learned == pytest.approx((10 + 5) / (20 + 5 + refused))


@pytest.mark.parametrize("problem", [None, RemoteError("UNAVAILABLE", "gone")])
async def test_a_draft_that_no_tier_judged_teaches_nothing(
    tmp_path: Path, problem: RemoteError | None
) -> None:
    policies = shelf(tmp_path, replace(TALK, early_stop=None, drafting=EAGER))
    book, cluster = DraftBook(), Scorer(waits=False, problem=problem)
    controller = Controller(Writer(), cluster, policies, egress=Egress(drafts=book))
    await answered(controller, question())
    assert book.learned("", EAGER, None) == EAGER


class Told:
    """The decisions that a controller tells of, each with whether a tier had answered by then."""

    def __init__(self, cluster: Scorer) -> None:
        self.cluster = cluster
        self.records: list[DecisionRecord] = []
        self.answered: list[bool] = []

    def __call__(self, record: DecisionRecord) -> None:
        self.records.append(record)
        self.answered.append(self.cluster.accepted.is_set())


@pytest.mark.parametrize(
    ("cluster", "sent", "kept"),
    [
        (Scorer(), WORDS, WORDS // 2),
        (Scorer(waits=False), 0, None),
        (Scorer(problem=RemoteError("UNAVAILABLE", "gone")), WORDS, None),
    ],
    ids=["judged", "ignored", "failed"],
)
async def test_a_decision_that_sends_a_draft_is_told_with_what_was_kept(
    tmp_path: Path, cluster: Scorer, sent: int, kept: int | None
) -> None:
    policies = shelf(tmp_path, replace(TALK, early_stop=None, drafting=EAGER))
    told = Told(cluster)
    answer = await answered(Controller(Writer(), cluster, policies, on_decision=told), question())
    (record,) = told.records
    assert (record.draft_tokens, record.draft_kept) == (sent, kept)
    assert (answer.draft_tokens, answer.draft_kept) == (sent, kept)
    assert DecisionRecord.from_bytes(record.to_bytes()) == record
    assert replay_decision(record) == record.decision


async def test_a_decision_without_a_draft_is_told_before_the_call(tmp_path: Path) -> None:
    cluster = Scorer()
    told = Told(cluster)
    controller = Controller(Writer(), cluster, shelf(tmp_path, TALK), on_decision=told)
    await answered(controller, question())
    assert told.answered == [False]
    assert (told.records[0].draft_tokens, told.records[0].draft_kept) == (0, None)


async def test_a_decision_is_told_of_once_also_where_the_reader_leaves(tmp_path: Path) -> None:
    policies = shelf(tmp_path, replace(TALK, early_stop=None, drafting=EAGER))
    cluster = Scorer()
    told = Told(cluster)
    controller = Controller(Writer(), cluster, policies, on_decision=told)
    async with aclosing(controller.run(question())) as events:
        async for event in events:
            if isinstance(event, Token):
                break
    (record,) = told.records
    assert (record.draft_tokens, record.draft_kept) == (WORDS, None)
    assert record.decision.escalate


def test_a_record_from_before_drafts_were_told_of_still_reads() -> None:
    request = question()
    record = DecisionRecord.of(request, None, None, Decision(False, True, None, ("unsure",)))
    value = json.loads(record.to_bytes())
    assert (value.pop("draft_tokens"), value.pop("draft_kept")) == (0, None)
    assert DecisionRecord.from_bytes(json.dumps(value).encode()) == record
    for name, bad in (("draft_tokens", -1), ("draft_kept", 1.5), ("draft_kept", "x")):
        with pytest.raises(InvalidInput, match=f"decision.{name}"):
            DecisionRecord.from_bytes(json.dumps(value | {name: bad}).encode())
