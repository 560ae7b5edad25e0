"""Asking the local model about its own answer: raw scores that cost more decoding. Off by default.

*Self-verification* asks "is this right?" as a closed question (in the manner of P(True), Kadavath
et al. 2022, arXiv 2207.05221); *agreement* draws more answers and counts those that say the same
(self-consistency, Wang et al. 2022, arXiv 2203.11171). Both give a number in [0, 1] that means
nothing before it is calibrated, by ``cascade.calibrate.fit_platt`` like any other raw score, and
both say what they cost. A device asks for what its policy's confidence is made of (``self_checked``
with the features ``SELF_CHECKS``), and otherwise for neither.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from cascade.errors import Cancelled, InvalidInput
from cascade.features import SELF_CHECKS
from cascade.local import CancelToken, LocalAnswer, LocalModel, Prompt
from cascade.sampling import Sampling

VERIFY_PROMPT: Final = (
    "Question: {question}\nProposed answer: {answer}\n"
    "Is the proposed answer right, yes or no?\nAnswer:"
)
"""How the model is asked. Another wording is another score: calibrate it anew."""

_WARM: Final = Sampling(temperature=0.7)


def self_checked(
    model: LocalModel,
    answer: LocalAnswer,
    checks: Sequence[str],
    *,
    question: str,
    prompt: Prompt | None,
    max_tokens: int,
    stop: tuple[str, ...] = (),
    cancel: CancelToken | None = None,
) -> LocalAnswer:
    """``answer`` with these checks of it, in the one way in which devices and records make them:
    the default wording; five samples at temperature 0.7, seeds 0 to 4.

    A check that the model cannot read, or that ``cancel`` ends, is not measured.

    Arguments:
        checks: of ``SELF_CHECKS``.
        question: the input, without any wording.
        prompt, max_tokens, stop: as the answer was asked for; ``prompt`` is ``None`` where it was
            not free text, and there is no agreement then.

    Raises:
        InvalidInput: a check is unknown.
    """
    for name in checks:
        if name not in SELF_CHECKS:
            raise InvalidInput("checks", f"{name!r} is not one of {', '.join(SELF_CHECKS)}")
    if "self_verification" in checks:
        with contextlib.suppress(Cancelled, InvalidInput):
            said = self_verification(model, question, answer.text, cancel=cancel)
            answer = dataclasses.replace(
                answer,
                self_verification=said.score,
                check_tokens=answer.check_tokens + said.tokens,
            )
    if "agreement" in checks and prompt is not None:
        with contextlib.suppress(Cancelled, InvalidInput):
            drawn = agreement(
                model, prompt, answer.text, max_tokens=max_tokens, stop=stop, cancel=cancel
            )
            answer = dataclasses.replace(
                answer, agreement=drawn.score, check_tokens=answer.check_tokens + drawn.tokens
            )
    return answer


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """What a model made of its own answer, and what that cost.

    Arguments:
        score: in [0, 1], not calibrated.
        prompt_tokens: of all prompts, as far as they have to be read: what the engine has cached of
            them costs nothing again, but is counted.
        tokens: written.
    """

    score: float
    prompt_tokens: int
    tokens: int


def self_verification(
    model: LocalModel,
    question: str,
    answer: str,
    *,
    wording: str = VERIFY_PROMPT,
    corrected: bool = True,
    cancel: CancelToken | None = None,
) -> SelfCheck:
    """P(yes) of "is this right?", among yes and no.

    Arguments:
        question, answer: texts; the answer as the model gave it.
        wording: a completion prompt with ``{question}`` and ``{answer}``; yes or no follows it.
        corrected: whether the prior of yes and no under an empty question and answer is subtracted;
            small models say yes to anything. It is read once and cached.

    Raises:
        InvalidInput: the wording lacks a place, or the prompt is too long for the model.
        Cancelled: ``cancel`` was used.
    """
    for place in ("{question}", "{answer}"):
        if place not in wording:
            raise InvalidInput("wording", f"does not contain {place}")
    said = model.choose(
        _worded(wording, question, answer),
        ("yes", "no"),
        prior_prompt=_worded(wording, "", "") if corrected else None,
        option_prefix=" ",
        mode="exact",
        cancel=cancel,
    )
    if said.options is None:
        raise InvalidInput("model", f"{model.info.name} gives no scores of a closed set")
    return SelfCheck(float(said.options.probabilities[0]), said.prompt_tokens, said.tokens)


def agreement(
    model: LocalModel,
    prompt: Prompt,
    answer: str,
    *,
    max_tokens: int,
    stop: tuple[str, ...] = (),
    samples: int = 5,
    sampling: Sampling = _WARM,
    seed: int = 0,
    same: Callable[[str, str], bool] | None = None,
    cancel: CancelToken | None = None,
) -> SelfCheck:
    """The share of ``samples`` drawn answers that agree with ``answer``.

    Arguments:
        prompt, max_tokens, stop: as the answer was asked for.
        samples: ≥ 1; the score has only ``samples + 1`` values, and ties cost coverage.
        sampling: how they are drawn, with a temperature above 0.
        seed: of the first; each further one is one higher.
        same: whether a drawn answer (first) agrees with the given one; by default where the words
            are the same, case and punctuation aside.

    Raises:
        InvalidInput: ``samples`` is below 1, the temperature is 0, or the prompt is too long.
        Cancelled: ``cancel`` was used.
    """
    if samples < 1:
        raise InvalidInput("samples", f"{samples} is below 1")
    if sampling.greedy:
        raise InvalidInput("sampling", "has temperature 0: all samples would be the same")
    agrees = same or _same_words
    agreed = prompt_tokens = tokens = 0
    for place in range(samples):
        drawn = model.generate(
            prompt,
            max_tokens=max_tokens,
            stop=stop,
            sampling=dataclasses.replace(sampling, seed=seed + place),
            cancel=cancel,
        )
        if drawn.finish == "cancelled":
            raise Cancelled("the samples were stopped")
        agreed += agrees(drawn.text, answer)
        prompt_tokens += drawn.prompt_tokens
        tokens += drawn.tokens
    return SelfCheck(agreed / samples, prompt_tokens, tokens)


def _worded(wording: str, question: str, answer: str) -> str:
    """Both filled in at once: a question may itself contain ``{answer}``."""
    texts = {"{question}": question, "{answer}": answer}
    return re.sub(r"\{question\}|\{answer\}", lambda place: texts[place[0]], wording)


def _same_words(one: str, other: str) -> bool:
    from cascade.records import text_key  # late: records are made with this module

    return text_key(one) == text_key(other)
