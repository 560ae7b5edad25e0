"""The files that the gate's configuration names, read and found to share nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cascade.errors import InvalidInput, NotFound
from cascade.policy import check_task_id
from cascade.records import text_key
from cascade.records.dataset import Dataset, read_dataset
from cascade.strict import Fields
from cascade.task import Task
from cloud.federation.gate.config import GateConfig, TaskGate


@dataclass(frozen=True, slots=True)
class TaskRows:
    """One task with its rows.

    Arguments:
        parts: by their key in the configuration: ``held_out``, ``develop``, ``certify``, and
            ``out_of_scope`` where there is one.
    """

    gate: TaskGate
    task: Task
    parts: Mapping[str, Dataset]


@dataclass(frozen=True, slots=True)
class Canary:
    """One prompt whose answer is checked.

    Arguments:
        options: asks for one of them; empty for free text.
        must, must_not: names of checks that the answer has to pass, and to fail.
    """

    id: str
    prompt: str
    max_tokens: int
    options: tuple[str, ...]
    must: tuple[str, ...]
    must_not: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GateRows:
    """All that the configuration names."""

    tasks: tuple[TaskRows, ...]
    canaries: tuple[Canary, ...]


def read_rows(config: GateConfig) -> GateRows:
    """Read every file.

    Raises:
        NotFound, InvalidInput: a file is not there or cannot be used, two share a text, or a canary
            asks for a check that there is not; the place is named.
    """
    tasks = tuple(_task(place, each) for place, each in enumerate(config.tasks))
    ids = [each.task.task_id for each in tasks]
    if len(set(ids)) < len(ids):
        raise InvalidInput("gate.tasks", "has two of one task id")
    found = () if config.canaries is None else read_canaries(config.canaries)
    for canary in found:
        for name in (*canary.must, *canary.must_not):
            if name not in config.checks:
                raise InvalidInput(
                    f"gate.canaries: {canary.id}", f"asks for {name!r}, which gate.checks lacks"
                )
    return GateRows(tasks, found)


def read_canaries(path: Path) -> tuple[Canary, ...]:
    """Prompts of a ``.jsonl`` file: ``prompt``, ``must`` and ``must_not``, and where wanted ``id``,
    ``options`` and ``max_tokens``.

    Raises:
        NotFound: there is no such file.
        InvalidInput: a line cannot be used.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError):
        raise InvalidInput("gate.canaries", f"{path} cannot be read as UTF-8 text") from None
    found: dict[str, Canary] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        fields = Fields.from_bytes(line.encode(), f"{path.name} line {number}")

        def texts(name: str, fields: Fields = fields) -> tuple[str, ...]:
            return fields.texts(name) if fields.given(name) else ()

        canary = Canary(
            id=fields.text("id") if fields.given("id") else str(number),
            prompt=fields.text("prompt"),
            max_tokens=fields.integer("max_tokens", 1, 100_000)
            if fields.given("max_tokens")
            else 64,
            options=texts("options"),
            must=texts("must"),
            must_not=texts("must_not"),
        )
        fields.end()
        if not (canary.must or canary.must_not):
            raise InvalidInput(f"{path.name} line {number}", "has neither must nor must_not")
        if canary.id in found:
            raise InvalidInput(f"{path.name} line {number}: id", f"{canary.id!r} comes again")
        found[canary.id] = canary
    if not found:
        raise InvalidInput("gate.canaries", f"{path.name} has no line")
    return tuple(found.values())


def _task(place: int, gate: TaskGate) -> TaskRows:
    where = f"gate.tasks[{place}]"
    try:
        value = json.loads(gate.wording.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(f"{where}.wording: there is no file {gate.wording}") from None
    except (OSError, ValueError):
        raise InvalidInput(f"{where}.wording", f"{gate.wording} is no JSON text") from None
    task = Task.from_json(value, where=f"{where}.wording")
    check_task_id(task.task_id)
    parts = {name: read_dataset(path) for name, path in gate.files.items()}
    _check_apart(parts, where)
    return TaskRows(gate, task, parts)


def _check_apart(parts: Mapping[str, Dataset], where: str) -> None:
    """Rows by which a policy is certified must not choose the adapter, nor the other way round."""
    first: dict[tuple[str, str], str] = {}
    for name, part in parts.items():
        for item in part.items:
            keys = [("text", text_key(item.prompt))]
            if item.document != item.id:
                keys.append(("document", item.document))
            for key in keys:
                other = first.setdefault(key, name)
                if other != name:
                    raise InvalidInput(
                        f"{where}.{name}",
                        f"shares the {key[0]} of {item.where} with {other}; no row may be in two",
                    )
