"""The seam between the decision and the model on the device.

``LocalModel`` is what the controller needs of an on-device model that reads text, and
``LocalClassifier`` of one that reads tensors; ``edge`` provides both. Nothing here runs a model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from cascade.errors import InvalidInput
from cascade.request import Message
from cascade.sampling import GREEDY, Sampling
from cascade.signals import OptionScores, ScoreMode, Signals
from cascade.tensor import Tensor

Finish = Literal["stop", "length", "cancelled", "callback"]
"""``"stop"`` at an end token, stop string, complete option or complete grammar; ``"length"`` at
max_tokens or the context's end; ``"cancelled"`` when a ``CancelToken`` was used; ``"callback"``
when a callback wanted no more."""

Prompt = str | tuple[Message, ...]
"""A raw completion prompt, or a conversation to be rendered with the model's chat template."""


class CancelToken:
    """Lets another thread stop a decode within one token."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        """Ask for the stop. Safe from any thread, any number of times."""
        self._event.set()

    @property
    def cancelled(self) -> bool:
        """Whether the stop was asked for."""
        return self._event.is_set()


class TokenSignals(Protocol):
    """One token, and what is measured of it; see ``cascade.signals.Signals``."""

    @property
    def token(self) -> int:
        """Its id."""
        ...

    @property
    def logprob(self) -> float:
        """Natural log probability, ≤ 0."""
        ...

    @property
    def entropy(self) -> float:
        """Of its distribution, in nats, ≥ 0."""
        ...

    @property
    def margin(self) -> float:
        """Difference of the two largest probabilities, in [0, 1]."""
        ...


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What answers on the device. Digests are hex sha256, ``adapter_digest`` may be empty."""

    name: str
    base_digest: str
    tokenizer_digest: str
    bundle_digest: str
    context_tokens: int
    adapter_digest: str = ""


@dataclass(frozen=True, slots=True)
class LocalAnswer:
    """What the device answered and measured.

    Arguments:
        text: the answer.
        signals: per-token measurements of the answer, of the model's own distribution: before any
            penalty, grammar, filter or temperature by which the tokens were drawn.
        options: scores over the closed set, or ``None`` for a free answer.
        prompt_tokens, tokens: tokens read (whole prompt) and written.
        prefill_s, decode_s: wall time of reading the prompt and of writing the answer, in seconds.
        finish: why the answer ends. One that had to keep a JSON Schema or a regular expression
            keeps it as a whole only with ``"stop"``.
        adapter_digest: of the adapter that was active while it was computed, "" for none. Another
            one may be by the time somebody asks the model.
        self_verification, agreement: what the model made of it when it was asked again, in [0, 1],
            not calibrated; see ``cascade.self_check``. ``None`` where it was not asked.
        check_tokens: tokens written for these.
    """

    text: str
    signals: Signals
    options: OptionScores | None
    prompt_tokens: int
    tokens: int
    prefill_s: float
    decode_s: float
    finish: Finish
    adapter_digest: str = ""
    self_verification: float | None = None
    agreement: float | None = None
    check_tokens: int = 0

    @property
    def whole(self) -> bool:
        """Whether it ended by itself or at its greatest length, and not because it was stopped."""
        return self.finish in ("stop", "length")

    @property
    def raw_score(self) -> float:
        """Uncalibrated score in [0, 1]: maximum probability over the set (its lower bound where the
        set was searched), or the geometric mean of the token probabilities of a free answer."""
        return self.options.max_probability if self.options else self.signals.mean_probability


class Unreadable(InvalidInput):
    """The model on this device cannot read this kind of input at all. One in the cluster may."""


@runtime_checkable
class LocalClassifier(Protocol):
    """An on-device model that classifies tensors. Methods block; call them from a worker thread."""

    @property
    def info(self) -> ModelInfo:
        """What this model is."""
        ...

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes."""
        ...

    def classify(
        self,
        tensors: Sequence[Tensor],
        *,
        options: tuple[str, ...] = (),
        cancel: CancelToken | None = None,
    ) -> LocalAnswer:
        """Answer with one of the labels.

        Arguments:
            tensors: the inputs of one example.
            options: the labels in the caller's order; empty for the model's own.

        Raises:
            InvalidInput: an input is missing or not of the model's type and shape, holds NaN, or
                the options are not the model's labels. It is named.
            Cancelled: ``cancel`` was used before the answer was known.
        """
        ...


@runtime_checkable
class LocalModel(Protocol):
    """An on-device model. Methods block; call them from a worker thread."""

    @property
    def info(self) -> ModelInfo:
        """What this model is."""
        ...

    def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int,
        stop: tuple[str, ...] = (),
        sampling: Sampling = GREEDY,
        json_schema: str | None = None,
        regex: str | None = None,
        on_text: Callable[[str], bool | None] | None = None,
        on_token: Callable[[TokenSignals], bool | None] | None = None,
        cancel: CancelToken | None = None,
    ) -> LocalAnswer:
        """Answer freely, or within a grammar.

        Arguments:
            json_schema, regex: what the answer has to keep; at most one of them, see
                ``cascade.structured``, and no ``stop`` beside it.
            on_text: called with each new piece of text; returning true ends the answer behind it.
            on_token: called with each token before its text, likewise.

        Raises:
            InvalidInput: the prompt is empty or longer than the context, or an argument is out of
                its range.
        """
        ...

    def choose(
        self,
        prompt: Prompt,
        options: tuple[str, ...],
        *,
        prior_prompt: Prompt | None = None,
        option_prefix: str = "",
        mode: ScoreMode | None = None,
        cancel: CancelToken | None = None,
    ) -> LocalAnswer:
        """Answer with one of ``options``.

        Arguments:
            prior_prompt: the prompt with an empty input, whose scores are subtracted; ``None`` for
                no correction. Computed once and cached.
            option_prefix: written before each option, e.g. ``" "`` after a colon.
            mode: how to score; ``None`` leaves it to the model. The answer's scores say which.

        Raises:
            InvalidInput: the prompt is empty or too long, or the options are unusable.
            Cancelled: ``cancel`` was used before the answer was known.
        """
        ...
