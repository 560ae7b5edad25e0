"""What ``cascade cluster check`` says of the gate, before anything is started."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from cascade.errors import CascadeError
from cloud.federation.gate.comparing import rows_needed
from cloud.federation.gate.config import GateConfig
from cloud.federation.gate.rows import GateRows, TaskRows, read_rows
from cloud.registry import Registry

_NEEDED = {"scipy": "tune", "sklearn": "tune", "pyarrow": "tune"}


def explained(config: GateConfig | None) -> tuple[str, ...]:
    """The gate in lines for people, as far as its files can be read."""
    if config is None:
        return ("an operator decides: `cascade federation approve`",)
    try:
        rows = read_rows(config)
    except (CascadeError, OSError):
        return ("by behaviour; its files cannot be read",)
    return tuple(_lines(config, rows))


def gate_problems(config: GateConfig, registry: Registry, base_digest: str | None) -> Iterator[str]:
    """What keeps the gate from judging, a line each.

    Arguments:
        base_digest: of the adapter that rounds start from; ``None`` where it is not known.
    """
    try:
        rows = read_rows(config)
        for each in config.checks.values():
            each.check()
    except (CascadeError, OSError) as problem:
        yield f"federation.gate: {problem}"
    else:
        for task in rows.tasks:
            held, needed = len(task.parts["held_out"].items), _needed(task)
            if held < needed:
                yield (
                    f"federation.gate: {held} held-out rows of {task.task.task_id} can never show "
                    f"that nothing is worse by {task.gate.most_worse:g}; {needed} or more can"
                )
    try:
        artifact = registry.artifact(config.bundle).artifact
        if artifact.kind != "bundle":
            yield f"federation.gate.bundle: {config.bundle[:12]}… is a {artifact.kind}"
        elif base_digest is not None and artifact.base_digest != base_digest:
            yield "federation.gate.bundle: is of another base than federation.adapter"
    except (CascadeError, OSError) as problem:
        yield f"federation.gate.bundle: {problem}"
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        yield (
            f"federation.gate: needs {', '.join(missing)}: pip install 'edge-cloud-cascade[tune]'"
        )


def _lines(config: GateConfig, rows: GateRows) -> Iterator[str]:
    yield f"by behaviour, on the bundle {config.bundle[:12]}…, {config.timeout_s:g} s at most"
    for task in rows.tasks:
        gate, sizes = task.gate, {name: len(part.items) for name, part in task.parts.items()}
        yield (
            f"{task.task.task_id}: not worse by {100 * gate.most_worse:g} points on "
            f"{sizes['held_out']} rows ({_needed(task)} are the fewest that can show it)"
        )
        yield (
            f"{task.task.task_id}: a policy for {gate.risk:g} wrong at most of what is kept, from "
            f"{sizes['develop']} + {sizes['certify']} rows"
        )
        if "out_of_scope" in sizes:
            yield (
                f"{task.task.task_id}: at most {100 * gate.most_escape:g} points less of "
                f"{sizes['out_of_scope']} inputs out of scope are escalated"
            )
    if rows.canaries:
        yield f"{len(rows.canaries)} canaries, of which {config.most_failed:.0%} may fail"


def _needed(task: TaskRows) -> int:
    return rows_needed(task.gate.most_worse, task.gate.delta)
