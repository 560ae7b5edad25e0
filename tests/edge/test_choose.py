"""Choosing on a real decoder, of a tiny model that plain float64 numpy can follow."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade.errors import Cancelled, InvalidInput
from cascade.local import CancelToken
from cascade.request import Message
from cascade.signing import SigningKey, TrustStore
from edge.build import build_from_gguf
from edge.bundle import Bundle
from edge.choose import EXACT_NODES
from edge.decoder import Decoder
from edge.model import OnnxModel

from .build.tiny import CONTEXT, Tiny

TINY = Tiny(types={"token_embd": Type.Q8_0})
PROMPT, EMPTY = "Review: bad\nLabel:", "Review: \nLabel:"
CLOSE = {"rtol": 0, "atol": 2e-3}

LABELS = tuple("".join(letters) for letters in itertools.product("abc", repeat=4))
"""81 answers of two to four tokens ("ab" is one): 50 inner nodes, and some twice as likely."""

labels = st.text("abc", min_size=1, max_size=4)
sets = st.lists(labels, min_size=2, max_size=12, unique=True).map(tuple)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder, key = tmp_path_factory.mktemp("tiny"), SigningKey.generate()
    trust = TrustStore(folder / "trust")
    trust.pin("tests", key.public)
    out = build_from_gguf(
        TINY.write(folder / "tiny.gguf"),
        folder / "bundle",
        name="tiny",
        base_model="tiny",
        licence="Apache-2.0",
        commercial_use=True,
        signing_key=key,
        accuracy_level=0,
    )
    return OnnxModel(Bundle.open(out, trust))


def enumerated(model: OnnxModel, prompt: str, options: tuple[str, ...]) -> np.ndarray:
    """Log probability of each option, from the reference alone."""
    codec = model._codec
    start, answers = codec.encode(prompt), [codec.encode_plain(option) for option in options]

    def token(path: list[int], token: int) -> float:
        row = TINY.logits([*start, *path])[-1]
        return float(row[token] - row.max() - np.log(np.exp(row - row.max()).sum()))

    totals = []
    for tokens in answers:
        total = sum(token(tokens[:i], t) for i, t in enumerate(tokens))
        nexts = {
            a[len(tokens)] for a in answers if len(a) > len(tokens) and a[: len(tokens)] == tokens
        }
        going_on = sum(np.exp(token(tokens, t)) for t in nexts)
        totals.append(total + np.log1p(-going_on))
    return np.array(totals)


@settings(max_examples=25, deadline=None)
@given(options=sets, corrected=st.booleans())
def test_exact_mode_scores_every_answer_as_the_reference_does(model, options, corrected):
    prior_prompt = EMPTY if corrected else None
    answer = model.choose(PROMPT, options, prior_prompt=prior_prompt, mode="exact")
    scores, bounds = answer.options, answer.options.bounds
    expected = enumerated(model, PROMPT, options)
    prior = enumerated(model, EMPTY, options) if corrected else np.zeros(len(options))
    np.testing.assert_allclose(scores.logprobs, expected, **CLOSE)
    np.testing.assert_allclose(scores.prior_logprobs, prior, **CLOSE)
    weights = np.exp(expected - prior)
    np.testing.assert_allclose(scores.probabilities, weights / weights.sum(), **CLOSE)
    assert scores.probabilities.sum() == pytest.approx(1)
    assert answer.text == options[scores.best]
    assert (bounds.mode, bounds.unexplored) == ("exact", 0)
    assert bounds.lower == bounds.upper == answer.raw_score
    assert bounds.nodes_scored == bounds.nodes


@settings(max_examples=25, deadline=None)
@given(options=sets, corrected=st.booleans(), tolerance=st.sampled_from([0.0, 0.1, 1.0]))
def test_search_mode_gives_exact_modes_answer_and_true_bounds(model, options, corrected, tolerance):
    prior_prompt = EMPTY if corrected else None
    exact = model.choose(PROMPT, options, prior_prompt=prior_prompt, mode="exact")
    found = model.choose(
        PROMPT, options, prior_prompt=prior_prompt, mode="search", tolerance=tolerance
    )
    bounds = found.options.bounds
    assert found.text == exact.text
    assert bounds.mode == "search"
    assert found.raw_score == bounds.lower <= bounds.upper
    assert bounds.lower - 2e-3 <= exact.raw_score <= bounds.upper + 2e-3
    assert bounds.upper - bounds.lower <= tolerance + 1e-9
    assert (found.options.probabilities <= exact.options.probabilities + 2e-3).all()
    assert (found.options.logprobs >= exact.options.logprobs - 2e-3).all()
    unscored = exact.options.probabilities[found.options.probabilities == 0].sum()
    assert unscored <= bounds.unexplored + 2e-3
    np.testing.assert_allclose(found.options.prior_logprobs, exact.options.prior_logprobs, **CLOSE)
    assert 1 <= bounds.nodes_scored <= bounds.nodes


def test_a_large_set_is_searched_and_a_small_one_scored_exactly(model):
    few = LABELS[:20]
    assert model.choose(PROMPT, few).options.mode == "exact"
    many = tuple("".join(letters) for letters in itertools.product("acde", repeat=4))
    found = model.choose(PROMPT, many).options
    assert (len(many), found.mode) == (256, "search")
    assert found.bounds.nodes > EXACT_NODES
    assert found.bounds.nodes_scored < found.bounds.nodes
    assert model.choose(PROMPT, few, mode="search").options.mode == "search"


def test_a_thousand_options_are_chosen_from(model):
    options = tuple(f"{number:03}" for number in range(1000))
    exact = model.choose(PROMPT, options, mode="exact").options
    found = model.choose(PROMPT, options, mode="search").options
    assert exact.probabilities.sum() == pytest.approx(1)
    assert found.best == exact.best
    assert found.bounds.lower - 2e-3 <= exact.max_probability <= found.bounds.upper + 2e-3


def test_the_order_of_options_does_not_matter(model):
    one = model.choose(PROMPT, LABELS, mode="exact").options
    two = model.choose(PROMPT, LABELS[::-1], mode="exact").options
    np.testing.assert_allclose(one.probabilities, two.probabilities[::-1], **CLOSE)


def test_the_prior_is_that_of_the_empty_input_and_is_computed_once(model, monkeypatch):
    model.forget_prefix()
    options, read = ("aa", "b"), []
    monkeypatch.setattr(
        Decoder,
        "read",
        lambda self, tokens, cancel=None, read_now=Decoder.read: (
            read.append(len(tokens)) or read_now(self, tokens, cancel)
        ),
    )
    neutral = model.choose(EMPTY, options, prior_prompt=EMPTY)
    np.testing.assert_allclose(neutral.options.probabilities, [0.5, 0.5], **CLOSE)
    assert len(read) == 2
    for prompt in (PROMPT, "Review: good\nLabel:"):
        model.choose(prompt, options, prior_prompt=EMPTY)
    assert len(read) == 4
    model.choose(PROMPT, ("aa", "c"), prior_prompt=EMPTY)  # another set, another prior
    model.choose(PROMPT, options, prior_prompt="Other: \nLabel:")
    model.choose(PROMPT, options, prior_prompt=EMPTY, option_prefix=" ")
    assert len(read) == 10


def test_tasks_that_take_turns_read_their_instructions_once(model, monkeypatch):
    model.forget_prefix()
    computed: list[int] = []
    extend = Decoder._extend

    def count(self, tokens, start, cancel):
        computed.append(len(tokens) - start)
        extend(self, tokens, start, cancel)

    monkeypatch.setattr(Decoder, "_extend", count)
    conversation = "A talk of some length that goes on."
    model.generate(conversation, max_tokens=1)
    tasks = ("Is this fine? {}\n", "Guess the mood: {}\n")
    inputs = ("first text", "second text", "third text", "fourth text")
    for text in inputs:
        for task in tasks:
            computed.clear()
            prior = task.format("")
            model.choose(task.format(text), ("p", "q"), prior_prompt=prior)
            own = len(text) + 1  # one token a character, and the end of the line
            if text == inputs[0]:
                assert sum(computed) == len(prior) + own
            else:
                assert sum(computed) == own
    computed.clear()
    model.generate(conversation, max_tokens=1)  # nothing of it was forgotten meanwhile
    assert sum(computed) == 1


def test_a_prior_belongs_to_all_who_share_it_and_cannot_be_written_to(model):
    prior = model.choose(PROMPT, ("aa", "b"), prior_prompt=EMPTY).options.prior_logprobs
    with pytest.raises(ValueError, match="read-only"):
        prior[0] = 0


def test_the_signals_are_those_of_the_chosen_answer(model):
    answer = model.choose(PROMPT, LABELS, mode="search")
    logprob = answer.options.logprobs[answer.options.best]
    assert answer.signals.logprobs.sum() == pytest.approx(logprob, abs=1e-4)
    assert answer.tokens == len(answer.signals)
    assert answer.prompt_tokens == len(model._codec.encode(PROMPT))


@pytest.mark.parametrize("mode", ["exact", "search"])
def test_a_cancelled_choice_leaves_the_model_usable(model, mode):
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(Cancelled):
        model.choose(PROMPT, LABELS, mode=mode, cancel=cancel)
    assert model.choose(PROMPT, LABELS, mode=mode).text in LABELS


def test_a_choice_is_cancelled_between_two_passes(model, monkeypatch):
    cancel, passes = CancelToken(), []
    read_tree = Decoder.read_tree

    def cancel_during_the_first(self, tokens, nodes, given_cancel=None, *, known=0):
        rows = read_tree(self, tokens, nodes, given_cancel, known=known)
        passes.append(len(nodes))
        cancel.cancel()
        return rows

    monkeypatch.setattr(Decoder, "read_tree", cancel_during_the_first)
    with pytest.raises(Cancelled):
        model.choose(PROMPT, LABELS, mode="search", tolerance=0, cancel=cancel)
    assert len(passes) == 1


def test_options_need_room_behind_the_prompt(model):
    almost_full = "x" * (CONTEXT - 2)
    exact = model.choose(almost_full, ("aaa", "ba", "ca"), mode="exact")
    found = model.choose(almost_full, ("aaa", "ba", "ca"), mode="search", tolerance=0)
    np.testing.assert_allclose(found.options.probabilities, exact.options.probabilities, **CLOSE)
    with pytest.raises(InvalidInput, match=r"prompt: has 62 tokens and \d+ of the answers"):
        model.choose(almost_full, ("aaaaaa", "b"))
    assert model.choose(PROMPT, ("aaaaaa", "b")).text in ("aaaaaa", "b")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "options: needs at least two"),
        (("yes",), "options: needs at least two"),
        (("yes", "yes"), "options: names 'yes' twice"),
        (("yes", " "), "options: contains an empty answer"),
        (("yes", "n\ud800"), "options: answer 2 is not valid Unicode"),
        (tuple(map(str, range(1001))), "options: has 1001 answers; at most 1000"),
    ],
)
def test_unusable_options_are_refused(model, options, message):
    with pytest.raises(InvalidInput, match=message):
        model.choose(PROMPT, options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": ""}, "prompt: is empty"),
        ({"prompt": "a\udfff"}, "prompt: is not valid Unicode"),
        ({"prompt": (Message("user", "a\udfff"),)}, "prompt: is not valid Unicode"),
        ({"prior_prompt": "\ud800"}, "prompt: is not valid Unicode"),
        ({"option_prefix": "\ud800"}, "option_prefix: is not valid Unicode"),
        ({"mode": "guess"}, "mode: 'guess' is not known"),
        ({"tolerance": 1.5}, "tolerance: 1.5 is not in 0 … 1"),
        ({"tolerance": float("nan")}, "tolerance: nan"),
    ],
)
def test_other_unusable_input_is_refused_by_name(model, changes, message):
    with pytest.raises(InvalidInput, match=message):
        model.choose(**{"prompt": PROMPT, "options": ("a", "b")} | changes)
    assert model.choose(PROMPT, ("a", "b")).text in ("a", "b")
