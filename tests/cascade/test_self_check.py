"""Self-checks: what is asked, what it counts, and what it costs; of a real engine too."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from cascade.errors import Cancelled, InvalidInput
from cascade.local import CancelToken, LocalAnswer, ModelInfo
from cascade.sampling import Sampling
from cascade.self_check import agreement, self_verification
from cascade.signals import EMPTY_SIGNALS, OptionScores
from cascade.testing import TinyBundle
from edge import OnnxModel
from tests.cascade.test_controller import INFO


@dataclass
class Doubter:
    """Says yes with a given probability, and draws the given texts in turn."""

    yes: float = 0.8
    texts: tuple[str, ...] = ("42", "It is 42.", "43", " 42!", "forty-two")
    asked: list[tuple[object, ...]] = field(default_factory=list)
    samplings: list[Sampling] = field(default_factory=list)

    @property
    def info(self) -> ModelInfo:
        return INFO

    def choose(
        self, prompt, options, *, prior_prompt=None, option_prefix="", mode=None, cancel=None
    ):
        self.asked.append((prompt, options, prior_prompt, mode))
        p = np.array([self.yes, 1 - self.yes])
        scores = OptionScores(options, np.log(p), np.zeros(2), p)
        return LocalAnswer("yes", EMPTY_SIGNALS, scores, 30, 1, 0.0, 0.0, "stop")

    def generate(self, prompt, *, max_tokens, sampling, cancel=None):
        text = self.texts[len(self.samplings) % len(self.texts)]
        self.samplings.append(sampling)
        finish = "cancelled" if cancel is not None and cancel.cancelled else "stop"
        return LocalAnswer(text, EMPTY_SIGNALS, None, 10, 3, 0.0, 0.0, finish)


def test_self_verification_asks_yes_or_no_and_gives_the_probability_of_yes() -> None:
    model = Doubter()
    check = self_verification(model, "What is {answer}?", "42")
    assert (check.score, check.prompt_tokens, check.tokens) == (0.8, 30, 1)
    prompt, options, prior, mode = model.asked[0]
    assert "Question: What is {answer}?\nProposed answer: 42\n" in str(prompt)
    assert "Question: \nProposed answer: \n" in str(prior)
    assert (options, mode) == (("yes", "no"), "exact")
    self_verification(model, "?", "42", corrected=False)
    assert model.asked[1][2] is None


def test_agreement_is_the_share_of_samples_that_say_the_same() -> None:
    model = Doubter()
    check = agreement(model, "6 * 7?", "42", max_tokens=8, seed=7)
    assert (check.score, check.prompt_tokens, check.tokens) == (2 / 5, 50, 15)
    assert [sampling.seed for sampling in model.samplings] == [7, 8, 9, 10, 11]
    assert all(sampling.temperature > 0 for sampling in model.samplings)
    loose = agreement(
        Doubter(), "6 * 7?", "42", max_tokens=8, same=lambda drawn, answer: answer in drawn
    )
    assert loose.score == 3 / 5


def test_a_check_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"wording: does not contain \{answer\}"):
        self_verification(Doubter(), "?", "42", wording="Is {question} right?")
    with pytest.raises(InvalidInput, match="samples"):
        agreement(Doubter(), "?", "42", max_tokens=8, samples=0)
    with pytest.raises(InvalidInput, match="temperature 0"):
        agreement(Doubter(), "?", "42", max_tokens=8, sampling=Sampling())
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(Cancelled):
        agreement(Doubter(), "?", "42", max_tokens=8, cancel=cancel)


def test_a_real_engine_checks_itself_the_same_way_every_time(tiny: TinyBundle) -> None:
    model = OnnxModel(tiny.bundle)
    one, two = (self_verification(model, "Where?", "Here.") for _ in range(2))
    assert one == two
    assert 0 < one.score < 1
    assert one.prompt_tokens > 10
    drawn = [
        agreement(model, "Where?", "Here.", max_tokens=4, samples=2, same=lambda *_: True)
        for _ in range(2)
    ]
    assert drawn[0] == drawn[1]
    assert (drawn[0].score, drawn[0].tokens) == (1.0, 8)
