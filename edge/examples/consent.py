"""What may be kept to learn from: the one place that says no.

The store asks before it writes, and curation asks again before anything is learned, since the terms
may have changed in between.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Self

from cascade.errors import InvalidInput
from cascade.request import DataClass
from cascade.strict import Fields
from edge.examples.example import Example

_CLASSES: Final = frozenset({DataClass.NEVER_LEAVE})


@dataclass(frozen=True, slots=True)
class Consent:
    """The terms on which a device keeps examples.

    Arguments:
        never_train: data classes of which nothing is kept. By default what may not leave the
            device: text has been reconstructed from LoRA updates (arXiv 2601.17533), so learning
            from an input and sending the update lets some of it out.
        never_train_tasks: task ids of which nothing is kept.
        tasks: the only tasks of which anything is kept; ``None`` means all but the above.
    """

    never_train: frozenset[DataClass] = _CLASSES
    never_train_tasks: frozenset[str] = field(default_factory=frozenset)
    tasks: frozenset[str] | None = None

    @classmethod
    def to(
        cls,
        *,
        never_train: Iterable[DataClass] = _CLASSES,
        never_train_tasks: Iterable[str] = (),
        tasks: Iterable[str] | None = None,
    ) -> Self:
        """The same from any iterables."""
        only = None if tasks is None else frozenset(tasks)
        return cls(frozenset(never_train), frozenset(never_train_tasks), only)

    def refusal(self, example: Example) -> str | None:
        """Why nothing of ``example`` may be kept or learned, a fixed word, or ``None``."""
        if example.never_train:
            return "never_train"
        if example.data_class in self.never_train:
            return "data_class"
        if example.task_id in self.never_train_tasks:
            return "task"
        if self.tasks is not None and example.task_id not in self.tasks:
            return "task"
        return None

    def to_text(self) -> str:
        """JSON, the same for the same terms."""
        value = {
            "never_train": sorted(each.value for each in self.never_train),
            "never_train_tasks": sorted(self.never_train_tasks),
            "tasks": None if self.tasks is None else sorted(self.tasks),
        }
        return json.dumps(value, sort_keys=True)

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Read what ``to_text`` wrote.

        Raises:
            InvalidInput: a field is missing, unknown or unusable; it is named.
        """
        fields = Fields.from_bytes(text.encode(), "consent")
        classes = fields.texts("never_train")
        known = {each.value for each in DataClass}
        if not known.issuperset(classes):
            raise InvalidInput("consent.never_train", "names a data class that is not known")
        read = cls(
            frozenset(DataClass(each) for each in classes),
            frozenset(fields.texts("never_train_tasks")),
            frozenset(fields.texts("tasks")) if fields.given("tasks") else None,
        )
        fields.end()
        return read


@dataclass(frozen=True, slots=True)
class ConsentEntry:
    """A line of the store's log of consents: given on these terms, or withdrawn.

    Arguments:
        at_s: seconds since 1970.
        terms: ``None`` where consent was withdrawn.
    """

    at_s: float
    terms: Consent | None
