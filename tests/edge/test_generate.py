"""What ends an answer, and who is told about it on the way."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from cascade.errors import BundleError, InvalidInput
from cascade.local import CancelToken
from cascade.sampling import Sampling
from edge import Device, Final, Step

DRAWN = Sampling(1.0, seed=4)
"""Draws from the tiny model; its end tokens come up once in a hundred tokens or so."""


def drawn_steps(model, count):
    """The first tokens that ``DRAWN`` gives."""
    steps: list[Step] = []
    model.generate("x", max_tokens=count, sampling=DRAWN, on_token=steps.append)
    return steps


def test_each_token_is_told_with_its_signals(babbler):
    steps: list[Step] = []
    answer = babbler.generate("x", max_tokens=9, sampling=DRAWN, on_token=steps.append)
    assert len(steps) == answer.tokens == 9
    for name, values in (
        ("logprob", answer.signals.logprobs),
        ("entropy", answer.signals.entropies),
        ("margin", answer.signals.margins),
    ):
        np.testing.assert_allclose([getattr(step, name) for step in steps], values, rtol=1e-6)


def test_a_token_callback_ends_the_answer_behind_its_token(babbler):
    seen: list[Step] = []

    def third(step: Step) -> bool:
        seen.append(step)
        return len(seen) == 3

    answer = babbler.generate("x", max_tokens=9, sampling=DRAWN, on_token=third)
    assert (answer.finish, answer.tokens, len(seen)) == ("callback", 3, 3)


def test_a_text_callback_ends_the_answer_behind_its_piece(babbler):
    pieces: list[str] = []

    def enough(piece: str) -> bool:
        pieces.append(piece)
        return len("".join(pieces)) >= 3

    answer = babbler.generate("x", max_tokens=60, regex="[a-z]{50}", on_text=enough)
    assert answer.finish == "callback"
    assert answer.text == "".join(pieces)
    assert len(answer.text) in (3, 4)


def test_text_that_might_begin_a_stop_string_is_not_sent_after_the_end(babbler):
    pieces: list[str] = []
    answer = babbler.generate(
        "x",
        max_tokens=40,
        sampling=DRAWN,
        stop=("\x00\x01\x02",),
        on_text=lambda piece: pieces.append(piece) or True,
    )
    assert answer.finish == "callback"
    assert [answer.text] == pieces


@pytest.mark.parametrize("sampling", [Sampling(), DRAWN, Sampling(1.0, top_p=0.9)])
def test_logits_that_are_no_numbers_are_an_error_and_the_model_stays_usable(
    babbler, monkeypatch, sampling
):
    row = np.array(babbler._decoder.read([1]))
    for broken in (np.nan, np.inf):
        with monkeypatch.context() as patch:
            patch.setattr(babbler._decoder, "read", lambda *_, x=broken: np.full_like(row, x))
            with pytest.raises(BundleError, match="not finite numbers"):
                babbler.generate("x", max_tokens=4, sampling=sampling)
    assert babbler.generate("x", max_tokens=4, sampling=sampling).tokens == 4


def test_a_stop_token_ends_the_answer_before_itself(babbler):
    tokens = [step.token for step in drawn_steps(babbler, 8)]
    at = 5
    while tokens[at] in tokens[:at]:
        at -= 1
    answer = babbler.generate("x", max_tokens=8, sampling=DRAWN, stop_tokens=(tokens[at],))
    assert (answer.finish, answer.tokens) == ("stop", at)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2**32}, "max_tokens"),
        ({"max_tokens": 2.5}, "max_tokens"),
        ({"max_tokens": float("nan")}, "max_tokens"),
        ({"stop": ("a", "")}, "stop"),
        ({"stop_tokens": (-1,)}, "stop_tokens"),
        ({"stop_tokens": (10**6,)}, "stop_tokens"),
        ({"sampling": Sampling(temperature=3.0)}, "temperature"),
    ],
)
def test_unusable_arguments_are_refused_by_name(babbler, fields, field):
    with pytest.raises(InvalidInput) as refused:
        babbler.generate("x", **({"max_tokens": 4} | fields))
    assert refused.value.field == field
    assert babbler.generate("x", max_tokens=2).tokens == 2


def test_another_thread_stops_the_decode_within_one_token(babbler):
    """The decode waits in its callback, so that the moment of the cancel is known."""
    cancel, reached, seen = CancelToken(), threading.Event(), []
    go_on = threading.Event()

    def wait(step: Step) -> None:
        seen.append(step)
        if len(seen) == 4:
            reached.set()
            go_on.wait(30)

    answers = []
    thread = threading.Thread(
        target=lambda: answers.append(
            babbler.generate("x", max_tokens=500, regex="a{500}", on_token=wait, cancel=cancel)
        )
    )
    thread.start()
    assert reached.wait(30)
    cancel.cancel()
    go_on.set()
    thread.join(30)
    assert (answers[0].finish, answers[0].tokens, len(seen)) == ("cancelled", 4, 4)


def test_seeds_repeat_an_answer_and_others_do_not(babbler):
    def text(seed: int | None) -> str:
        sampling = Sampling(1.0, seed=seed)
        return babbler.generate("x", max_tokens=30, sampling=sampling, regex="[a-z]{30}").text

    assert text(1) == text(1)
    assert len({text(1), text(2), text(None), text(None)}) == 4


def test_a_repetition_penalty_keeps_the_answer_from_repeating(babbler):
    plain = babbler.generate("x", max_tokens=60, regex="[a-z]{60}").text
    penalised = babbler.generate(
        "x", max_tokens=60, regex="[a-z]{60}", sampling=Sampling(repetition_penalty=2.0)
    ).text
    assert len(set(penalised)) > len(set(plain))


def test_a_conversation_samples_every_turn(babbler):
    def say(seed: int) -> str:
        with Device.with_model(babbler) as device:
            talk = device.conversation(sampling=Sampling(1.0, seed=seed))
            for event in talk.ask("x", max_tokens=30):
                if isinstance(event, Final):
                    return event.answer.text
        raise AssertionError("no answer")

    assert say(4) == say(4)
    assert len({say(4), say(5), say(6)}) > 1
