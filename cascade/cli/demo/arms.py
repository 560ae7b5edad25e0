"""The three ways to answer, run for real on the test part: device only, cascade, cloud only.

One request at a time; every arm makes cloud calls of its own, with the tiers' prompt caches emptied
before it, and a device whose prompt cache is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cascade.cli.demo.data import Sentence
from cascade.errors import RemoteError
from cascade.events import Answer
from cascade.policy import PolicyStore
from cascade.request import Constraints, DataClass
from cascade.task import Task
from cascade.wire import ClientProfile

if TYPE_CHECKING:
    from edge import OnnxModel

Arm = Literal["device", "cascade", "cloud"]
ARMS: tuple[Arm, ...] = ("device", "cascade", "cloud")

# Published review sentences; nothing personal is sent.
_CONSTRAINTS = Constraints(deadline_s=120.0, data_class=DataClass.PUBLIC)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One answer of one arm."""

    sentence: Sentence
    answer: Answer

    @property
    def correct(self) -> bool:
        """Whether the answer is the people's."""
        return self.answer.text.strip() == self.sentence.label


def run_arm(
    arm: Arm,
    sentences: Sequence[Sentence],
    *,
    task: Task,
    model: OnnxModel,
    policies: PolicyStore,
    profile: ClientProfile,
    on_done: Callable[[int], None],
) -> tuple[Outcome, ...]:
    """Answer every sentence the way of ``arm``.

    Raises:
        RemoteError: the cluster failed: a table with a broken arm would mislead.
    """
    import cloud
    from edge import Device

    model.forget_prefix()
    cloud.reset_prefix_caches()
    outcomes: list[Outcome] = []
    with Device.with_model(
        model, cloud=profile if arm != "device" else None, policies=policies
    ) as device:
        for sentence in sentences:
            answer = device.choose(
                sentence.text,
                task.options,
                task=task.task_id,
                constraints=_CONSTRAINTS,
                prefer="cloud" if arm == "cloud" else "device",
            )
            if answer.remote_status is not None:
                raise RemoteError(answer.remote_status, answer.remote_error or "the cluster failed")
            outcomes.append(Outcome(sentence, answer))
            on_done(len(outcomes))
    return tuple(outcomes)
