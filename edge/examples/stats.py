"""What would be learned from a store, and why the rest is left out, in numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from edge.examples.curate import Curated
from edge.examples.example import Example


@dataclass(frozen=True, slots=True)
class ClassStats:
    """One answer of a closed set: how many examples, and their weights together."""

    answer: str
    learn: int
    weight: float


@dataclass(frozen=True, slots=True)
class TaskStats:
    """One task.

    Arguments:
        examples: of it in the store.
        rehearsal: answers of the device's own that a head of it is trained on, at a small weight.
        doubted: examples among ``learn`` whose label is probably wrong.
        noise: estimated share of wrong labels; ``None`` where there are too few to tell.
        classes: of closed sets, in the order of the alphabet.
    """

    task: str
    examples: int
    learn: int
    held_out: int
    rehearsal: int
    doubted: int
    noise: float | None
    left_out: dict[str, int]
    classes: tuple[ClassStats, ...]


@dataclass(frozen=True, slots=True)
class ExampleStats:
    """All of a store; see ``TaskStats``. ``sources`` counts examples by who says that they are
    right."""

    examples: int
    learn: int
    held_out: int
    rehearsal: int
    left_out: dict[str, int]
    sources: dict[str, int]
    tasks: tuple[TaskStats, ...]


def summarise(examples: Sequence[Example], curated: Curated) -> ExampleStats:
    """Count ``examples`` and what ``curate`` made of them."""
    sources = Counter(each.source.value for each in examples)
    tasks = sorted({each.task_id for each in examples})
    return ExampleStats(
        len(examples),
        len(curated.learn),
        len(curated.held_out),
        len(curated.rehearsal),
        curated.reasons(),
        dict(sorted(sources.items())),
        tuple(_task(task, examples, curated) for task in tasks),
    )


def _task(task: str, examples: Sequence[Example], curated: Curated) -> TaskStats:
    learn = [each for each in curated.learn if each.example.task_id == task]
    out = tuple(each for each in curated.left_out if each.example.task_id == task)
    classes = sorted({each.example.answer for each in learn if each.example.options})
    return TaskStats(
        task,
        sum(each.task_id == task for each in examples),
        len(learn),
        sum(each.example.task_id == task for each in curated.held_out),
        sum(each.example.task_id == task for each in curated.rehearsal),
        sum(each.doubted for each in learn),
        curated.noise.get(task),
        Curated((), (), (), out, {}).reasons(),
        tuple(
            ClassStats(
                name,
                sum(each.example.answer == name for each in learn),
                sum(each.weight for each in learn if each.example.answer == name),
            )
            for name in classes
        ),
    )
