"""A bundle answers: the same whatever was cached, streamed, cancellable, bounded."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from cascade.errors import Cancelled, InvalidInput
from cascade.local import CancelToken
from cascade.request import Message
from edge.decoder import Decoder
from edge.model import OnnxModel

QUESTION = (Message("user", "Name three colours."),)
REVIEW = "Review: The battery died after two days.\nSentiment (positive or negative):"


@pytest.fixture(scope="module")
def model(bundle):
    return OnnxModel(bundle)


@pytest.fixture
def fresh(model):
    model.forget_prefix()
    return model


def test_streamed_pieces_are_the_answer(fresh):
    pieces: list[str] = []
    answer = fresh.generate(QUESTION, max_tokens=24, on_text=pieces.append)
    assert "".join(pieces) == answer.text
    assert len(pieces) > 3
    assert answer.tokens == len(answer.signals)
    assert np.all(answer.signals.logprobs <= 0)
    assert 0 < answer.raw_score < 1


def test_a_cached_prefix_changes_nothing(fresh):
    first = fresh.generate(QUESTION, max_tokens=12)
    again = fresh.generate(QUESTION, max_tokens=12)
    assert again.text == first.text
    fresh.generate((Message("user", "Name three colours that are warm."),), max_tokens=3)
    after_other = fresh.generate(QUESTION, max_tokens=12)
    assert after_other.text == first.text
    np.testing.assert_allclose(after_other.signals.logprobs, first.signals.logprobs, atol=5e-2)


def test_an_answer_ends_before_a_stop_string(fresh):
    whole = fresh.generate(QUESTION, max_tokens=24).text
    stop = whole[6:9]
    pieces: list[str] = []
    answer = fresh.generate(QUESTION, max_tokens=24, stop=(stop, "@@@"), on_text=pieces.append)
    assert answer.text == whole[: whole.find(stop)] == "".join(pieces)
    assert answer.finish == "stop"


def test_max_tokens_bounds_the_answer(fresh):
    answer = fresh.generate(QUESTION, max_tokens=3)
    assert (answer.tokens, answer.finish) == (3, "length")


def test_another_thread_stops_the_decode_within_a_token(fresh):
    cancel = CancelToken()
    seen: list[float] = []
    result = []

    def note(_: str) -> None:
        seen.append(time.perf_counter())
        if len(seen) == 2:
            cancel.cancel()

    thread = threading.Thread(
        target=lambda: result.append(
            fresh.generate(QUESTION, max_tokens=200, on_text=note, cancel=cancel)
        )
    )
    thread.start()
    thread.join(60)
    assert result[0].finish == "cancelled"
    assert len(seen) == 2


def test_a_cancelled_prompt_leaves_the_model_usable(fresh):
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(Cancelled):
        fresh.generate(QUESTION, max_tokens=5, cancel=cancel)
    with pytest.raises(Cancelled):
        fresh.choose(REVIEW, ("positive", "negative"), cancel=cancel)
    assert fresh.generate(QUESTION, max_tokens=5).tokens == 5


def test_the_order_of_options_does_not_matter(fresh):
    one = fresh.choose(REVIEW, ("positive", "negative"), option_prefix=" ").options
    two = fresh.choose(REVIEW, ("negative", "positive"), option_prefix=" ").options
    np.testing.assert_allclose(one.probabilities, two.probabilities[::-1], atol=0.02)


@pytest.mark.parametrize("prompt", ["", ()])
def test_an_empty_prompt_is_refused(fresh, prompt):
    with pytest.raises(InvalidInput, match="prompt: is empty"):
        fresh.generate(prompt, max_tokens=4)


def test_a_prompt_longer_than_the_context_is_refused_and_the_model_stays_usable(fresh):
    with pytest.raises(InvalidInput, match=r"prompt: has \d+ tokens; .* reads at most"):
        fresh.generate("word " * (fresh.info.context_tokens + 1), max_tokens=4)
    assert fresh.generate(QUESTION, max_tokens=2).tokens == 2


def test_a_full_context_ends_the_answer(bundle):
    import dataclasses

    small = dataclasses.replace(bundle.manifest, context_tokens=32)
    model = OnnxModel(dataclasses.replace(bundle, manifest=small))
    answer = model.generate("one two three four five", max_tokens=50)
    assert answer.finish == "length"
    assert answer.prompt_tokens + answer.tokens == 33


def test_a_growing_cache_keeps_what_it_holds(bundle):
    """Reading beyond the first cache step gives the logits of reading everything at once."""
    tokens = [int(t) for t in np.random.default_rng(0).integers(3, 300, 262)]
    grown, whole = (Decoder(bundle.path, bundle.manifest) for _ in range(2))
    grown.read(tokens[:100])
    grown.read(tokens[:250])
    for token in tokens[250:]:
        row = grown.push(token)
    np.testing.assert_allclose(row, whole.read(tokens), atol=1e-2)
