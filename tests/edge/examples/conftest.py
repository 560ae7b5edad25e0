"""Examples made in a line."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from cascade.request import Message
from edge.examples import Example, ExampleStore, Source

Make = Callable[..., Example]


@pytest.fixture
def make() -> Make:
    """An example of the task "mood": ``make("a text", "good")``; each is newer than the last."""
    count = itertools.count(1)

    def example(
        text: str,
        answer: str = "good",
        *,
        source: Source = Source.CLOUD,
        options: tuple[str, ...] = ("good", "bad"),
        task_id: str = "mood",
        **fields: object,
    ) -> Example:
        number = next(count)
        return Example(
            str(fields.pop("request_id", f"r{number}")),
            (Message("user", text),),
            answer,
            source,
            float(fields.pop("at_s", number)),  # type: ignore[arg-type]
            options=options,
            task_id=task_id,
            **fields,  # type: ignore[arg-type]
        )

    return example


@pytest.fixture
def store(tmp_path) -> ExampleStore:
    """A store in which examples may be kept, and whose time is 1000 s."""
    with ExampleStore(tmp_path / "examples.sqlite3", clock=lambda: 1000.0) as store:
        store.grant()
        yield store
