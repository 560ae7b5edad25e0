"""What an application sees of a request: ``Token``, ``Superseded``, one ``Final`` at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cascade.signals import ScoreBounds

DEVICE = "device"
"""The ``source`` of what was answered locally; any other source is the name of a tier."""


@dataclass(frozen=True, slots=True)
class Token:
    """More text of the answer.

    Arguments:
        source: ``"device"`` or the name of a tier.
        provisional: the text may still be superseded.
    """

    text: str
    source: str
    provisional: bool


@dataclass(frozen=True, slots=True)
class Superseded:
    """Forget all text received so far: another source answers from here on."""

    source: str


@dataclass(frozen=True, slots=True)
class Latency:
    """Wall time in seconds. Parts that did not happen are 0.

    Arguments:
        prefill_s, decode_s: reading the prompt and writing the answer on the device.
        remote_s: from opening the call to its last event.
        total_s: from the call to ``Final``.
    """

    total_s: float
    prefill_s: float = 0.0
    decode_s: float = 0.0
    remote_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a request: what, by whom, how sure, why, and what it cost.

    Arguments:
        source: ``"device"`` or the name of the tier that answered.
        model: name of the model that answered.
        confidence: calibrated P(this answer is right) in [0, 1]; ``None`` where no policy can tell.
        device_confidence: calibrated P(the device's own answer is right), kept or not.
        raw_score: the device's uncalibrated score in [0, 1]; ``None`` when it did not try.
        verified: whether a policy accepted this answer or a tier of the cluster gave it. An
            unverified answer is the device's best effort.
        reasons: why it came out so, in the order of deciding; see ``cascade.policy.Reason``.
        bytes_up, bytes_down: serialised gRPC messages, without HTTP/2 and TLS framing.
        cost_usd: by the tier's price list.
        finish: why the answer ended; one that had to keep a JSON Schema or a regular expression
            keeps it as a whole only with ``"stop"``, not with ``"length"``.
        tokens: tokens of the answer; ``local_tokens`` were decoded on the device, kept or not.
        remote_error: why the cluster did not answer, one line, or ``None``.
        remote_status: the gRPC status name of that error, or ``None``.
        expected_gain: P(the next tier is right) - P(the device is), as far as the device can tell;
            ``None`` where its policy cannot.
        local_tokens_saved: tokens that stopping the local decode early saved, by what was still to
            come at that point in the records; ``None`` where it was not stopped, or that is not
            known.
        draft_tokens: tokens of the device's own answer that were sent to the cluster as a draft.
        draft_kept: how many of them, from the first on, are a part of this answer; ``None`` where
            no tier looked at them.
        bounds: how the device scored a closed set and what is proven of ``raw_score``, or ``None``
            for a free answer and where it did not try.
    """

    request_id: str
    text: str
    source: str
    model: str
    confidence: float | None
    raw_score: float | None
    verified: bool
    reasons: tuple[str, ...]
    latency: Latency
    tokens: int
    local_tokens: int = 0
    cloud_prompt_tokens: int = 0
    cloud_completion_tokens: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    cost_usd: float = 0.0
    device_confidence: float | None = None
    remote_error: str | None = None
    remote_status: str | None = None
    finish: Literal["stop", "length"] = "stop"
    bounds: ScoreBounds | None = None
    expected_gain: float | None = None
    local_tokens_saved: float | None = None
    draft_tokens: int = 0
    draft_kept: int | None = None

    @property
    def local(self) -> bool:
        """Whether the device answered."""
        return self.source == DEVICE

    @property
    def tokens_per_second(self) -> float | None:
        """Rate at which the answer was written, or ``None`` for an answer of under two tokens."""
        seconds = self.latency.decode_s if self.local else self.latency.remote_s
        return self.tokens / seconds if self.tokens > 1 and seconds > 0 else None


@dataclass(frozen=True, slots=True)
class Final:
    """The last event of every request."""

    answer: Answer


Event = Token | Superseded | Final
