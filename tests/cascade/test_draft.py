"""When a draft is worth it, how it travels, and which of its tokens lie in what is kept."""

from __future__ import annotations

import asyncio
import itertools
import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.draft import Drafting, DraftPiece, DraftTape, tokens_within
from cascade.errors import InvalidInput
from cascade.policy import Policy
from cascade.task import free
from tests.cascade.scripted import policy

ALL = Drafting(acceptance=0.999, write_s=1.0, read_s=1e-6)

costs = st.builds(
    Drafting,
    acceptance=st.floats(0.05, 0.98),
    write_s=st.floats(0.001, 1.0),
    read_s=st.floats(0.001, 1.0),
)


@given(costs, st.integers(0, 80))
def test_as_much_is_sent_as_saves_most(drafting: Drafting, tokens: int) -> None:
    saved = [drafting.saved_s(length) for length in range(tokens + 1)]
    worth = drafting.worth_sending(tokens)
    assert saved[worth] == pytest.approx(max(saved), abs=1e-9)


def test_what_a_draft_saves_is_what_simulated_ones_save_on_average() -> None:
    drafting, tokens, rounds = Drafting(acceptance=0.7, write_s=0.3, read_s=0.05), 12, 200_000
    agreed = np.random.default_rng(4).random((rounds, tokens)) < drafting.acceptance
    kept = np.logical_and.accumulate(agreed, axis=1).sum(axis=1)
    saved = 0.3 * kept - 0.05 * tokens
    error = 4 * saved.std() / rounds**0.5
    assert drafting.saved_s(tokens) == pytest.approx(saved.mean(), abs=error)


@given(costs, st.integers(2, 60), st.floats(0.0, 0.5))
def test_one_more_token_is_waited_for_where_it_saves_more_than_it_takes(
    drafting: Drafting, tokens: int, token_s: float
) -> None:
    more_s = drafting.saved_s(tokens + 1) - drafting.saved_s(tokens)
    if abs(more_s - token_s) > 1e-9:
        assert drafting.worth_waiting(tokens, token_s) == (more_s > token_s)


def test_a_device_that_is_no_faster_than_the_tier_does_not_draft_on() -> None:
    assert not Drafting(write_s=0.1, read_s=0.001).worth_waiting(2, 0.1)


@pytest.mark.parametrize(
    ("text", "drafting"),
    [
        ("off", Drafting("off")),
        ("lossless", Drafting("lossless")),
        ("threshold=0.25", Drafting("threshold", 0.25)),
    ],
)
def test_a_mode_is_read_from_its_words(text: str, drafting: Drafting) -> None:
    assert Drafting.parse(text) == drafting
    assert drafting.words == text
    assert drafting.on == (text != "off")
    assert Drafting.from_json(drafting.to_json()) == drafting


@pytest.mark.parametrize(
    "text", ["", "on", "lossless=0.1", "threshold", "threshold=", "threshold=x", "threshold=1"]
)
def test_another_mode_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="draft"):
        Drafting.parse(text)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": "fast"}, "drafting.mode"),
        ({"tolerance": 0.1}, "drafting.tolerance"),
        ({"mode": "threshold"}, "drafting.tolerance"),
        ({"mode": "threshold", "tolerance": float("nan")}, "drafting.tolerance"),
        ({"acceptance": 1.0}, "drafting.acceptance"),
        ({"write_s": 0.0}, "drafting.write_s"),
        ({"read_s": float("inf")}, "drafting.read_s"),
    ],
)
def test_a_policy_with_an_unusable_setting_is_refused(
    fields: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        Drafting.from_json(Drafting().to_json() | fields)


def test_a_policy_carries_it_and_one_without_reads_as_before() -> None:
    plain = replace(policy(0.5), task=free("talk"))
    assert b"drafting" not in plain.to_bytes()
    with_drafts = replace(plain, drafting=Drafting("threshold", 0.3, acceptance=0.6))
    assert Policy.from_bytes(with_drafts.to_bytes()) == with_drafts
    assert Policy.from_bytes(plain.to_bytes()).drafting is None


def test_drafts_are_of_free_answers() -> None:
    with pytest.raises(InvalidInput, match=r"policy.drafting.*closed set"):
        replace(policy(0.5), drafting=Drafting()).to_bytes()


@given(st.lists(st.integers(0, 4), max_size=12), st.integers(0, 40))
def test_the_tokens_within_a_text_are_those_that_end_there(lengths: list[int], kept: int) -> None:
    count = tokens_within(lengths, kept)
    ends = list(itertools.accumulate(lengths))
    if kept >= sum(lengths):
        assert count == len(lengths)
        return
    # Brute force: the last token that completes something and ends within what is kept.
    expected = max(
        (place + 1 for place, end in enumerate(ends) if end <= kept and lengths[place]), default=0
    )
    assert count == expected


def written(tape: DraftTape, words: list[str]) -> DraftTape:
    for token, word in enumerate(words):
        tape.add_token(token)
        tape.add_text(word)
    return tape


async def read(tape: DraftTape) -> list[DraftPiece]:
    return [piece async for piece in tape.pieces()]


async def test_a_draft_that_is_there_is_sent_at_once_and_again_for_a_retry() -> None:
    tape = written(DraftTape(ALL), ["a", "", "é"])
    tape.end(complete=True)
    expected = [DraftPiece(0, "aé", (0, 1, 2), (1, 0, 2))]
    assert await read(tape) == expected
    assert await read(tape) == expected
    assert (tape.sent, tape.complete) == (3, True)


async def test_a_draft_is_cut_where_more_of_it_is_not_worth_reading() -> None:
    short = Drafting(acceptance=0.5, write_s=1.0, read_s=0.2)  # .5 and .25 are, .125 is not
    tape = written(DraftTape(short), list("abcdef"))
    tape.end(complete=True)
    assert await read(tape) == [DraftPiece(0, "ab", (0, 1), (1, 1))]
    assert not tape.complete


async def test_a_draft_is_sent_while_another_thread_writes_it() -> None:
    tape, words = DraftTape(ALL), [f"w{number} " for number in range(200)]

    def write() -> None:
        written(tape, words)
        tape.end(complete=False)

    thread = threading.Thread(target=write)
    reading = asyncio.create_task(read(tape))
    await asyncio.sleep(0)
    thread.start()
    async with asyncio.timeout(10):
        pieces = await reading
    thread.join()
    assert "".join(piece.text for piece in pieces) == "".join(words)
    assert [token for piece in pieces for token in piece.tokens] == list(range(200))
    assert [piece.offset for piece in pieces] == list(
        itertools.accumulate((len(piece.tokens) for piece in pieces[:-1]), initial=0)
    )


async def test_the_last_token_waits_for_its_text() -> None:
    tape = written(DraftTape(ALL), ["a", "b"])
    reading = tape.pieces()
    assert (await anext(reading)).text == "a"
    waiting = asyncio.create_task(anext(reading))
    tape.add_text("c")
    await asyncio.sleep(0.01)
    assert not waiting.done()
    tape.end(complete=False)
    assert await waiting == DraftPiece(1, "bc", (1,), (2,))
    await reading.aclose()
