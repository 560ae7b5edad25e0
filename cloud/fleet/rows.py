"""What a fleet is asked: labelled rows, their parts that share nothing, and who gets which.

A row's answer is what its user would say is right. ``teacher`` is what the cluster would answer,
where that is known; a device that escalates then learns that instead.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self

import numpy as np

from cascade.errors import InvalidInput, NotFound
from cascade.records import text_key
from cascade.records.split import connected
from cascade.strict import Fields
from cascade.task import Task

_SHARES: Final = {"develop": 0.1, "certify": 0.25, "test": 0.15, "fleet": 0.5}
_MOST_DEVICES: Final = 100_000


@dataclass(frozen=True, slots=True)
class FleetRow:
    """One input.

    Arguments:
        id: unique.
        answer: the right one of the task's options; empty for an input that is none of its task's.
        teacher: the cluster's answer, one of the options; empty where the user says what is right.
        group: kind of device that sees such inputs; may be empty.
        document: rows of one document stay in one part.
    """

    id: str
    text: str
    answer: str
    teacher: str = ""
    group: str = ""
    document: str = ""

    @property
    def out_of_scope(self) -> bool:
        """Whether it is none of the task's inputs."""
        return not self.answer

    def told(self, task: Task) -> str:
        """What a device hears when it escalates: the teacher's word, or the user's; "" where the
        task has no answer for what is none of its inputs."""
        return self.teacher or self.answer or task.outside


@dataclass(frozen=True, slots=True)
class Parts:
    """Rows by their use. No document and no text is in two of them.

    Arguments:
        develop: by which calibrators are fitted and candidates judged.
        certify: by which thresholds are certified.
        test: of which the figures are.
        fleet: which devices see.
        out_of_scope: inputs that should be escalated, whatever was learned.
        starting: labelled before the first round.
    """

    develop: tuple[FleetRow, ...]
    certify: tuple[FleetRow, ...]
    test: tuple[FleetRow, ...]
    fleet: tuple[FleetRow, ...]
    out_of_scope: tuple[FleetRow, ...]
    starting: tuple[FleetRow, ...] = ()


def read_rows(path: Path, *, group: str = "group") -> tuple[list[FleetRow], tuple[str, ...]]:
    """Rows of a JSONL file, and the options of their task.

    A line has ``prompt`` and ``answer`` (or ``reference``), and may have ``id``, ``document``,
    ``teacher``, a group, and ``out_of_scope: true`` in place of an answer; what else it has is not
    looked at. The options are all answers that occur, sorted.

    Arguments:
        group: name of the column that tells the kind of device.

    Raises:
        NotFound: there is no such file.
        InvalidInput: a line cannot be used; it is named.
    """
    try:
        content = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise NotFound(f"there is no file {path}") from None
    rows = [
        _row(line, f"{path.name} line {number}", number, group)
        for number, line in enumerate(content.split(b"\n"), start=1)
        if line.strip()
    ]
    if len({row.id for row in rows}) < len(rows):
        raise InvalidInput(path.name, "has two rows with one id")
    options = tuple(sorted({row.answer for row in rows if row.answer}))
    if len(options) < 2:
        raise InvalidInput(path.name, "has fewer than two different answers")
    if unknown := min({row.teacher for row in rows if row.teacher} - set(options), default=None):
        raise InvalidInput(path.name, f"has a teacher that says {unknown!r}, which nobody answers")
    return rows, options


def parts(
    rows: Sequence[FleetRow],
    *,
    seed: int,
    most: int | None = None,
    starting: int = 0,
    outside: bool = False,
) -> Parts:
    """Split rows by document, by the seed. Of each answer and group every part gets its share of
    the documents, so that an answer with few of them is not in one part alone.

    Arguments:
        most: rows of the develop part at most; others in proportion. ``None`` takes all.
        starting: rows of the fleet's part that are labelled before the first round instead; as many
            of each answer as of another, as far as there are so many.
        outside: whether inputs out of scope are among what devices see and what is certified; they
            are then in all parts but the test part, whose own ones are ``out_of_scope``.

    Raises:
        InvalidInput: a part comes out too small to be of use.
    """
    if most is not None and most < 1:
        raise InvalidInput("develop", f"{most}: must be at least 1 row")
    given = _shared_out(rows, seed)
    rng = np.random.default_rng([seed, 1])
    made: dict[str, tuple[FleetRow, ...]] = {}
    for name, share in _SHARES.items():
        mine = [
            row
            for row, part in zip(rows, given, strict=True)
            if part == name and (not row.out_of_scope or (outside and name != "test"))
        ]
        limit = len(mine)
        if most is not None and name != "fleet":
            limit = round(most * share / _SHARES["develop"])
        order = rng.permutation(len(mine))[:limit]
        made[name] = tuple(mine[place] for place in order)
        if len(made[name]) < 20:
            raise InvalidInput(
                "dataset", f"gives {len(made[name])} rows to the {name} part; 20 are needed"
            )
    beyond = [
        row
        for row, part in zip(rows, given, strict=True)
        if row.out_of_scope and (part == "test" or not outside)
    ]
    order = rng.permutation(len(beyond))[: len(made["test"])]
    first = _in_turn(made["fleet"], starting)
    taken = {row.id for row in first}
    made["fleet"] = tuple(row for row in made["fleet"] if row.id not in taken)
    return Parts(
        **made, out_of_scope=tuple(beyond[place] for place in order), starting=tuple(first)
    )


def _shared_out(rows: Sequence[FleetRow], seed: int) -> list[str]:
    """The part of each row."""
    groups = connected(
        [row.document or row.id for row in rows], [text_key(row.text) for row in rows]
    )
    kinds: dict[tuple[str, str], list[str]] = {}
    first: dict[str, FleetRow] = {}
    for group, row in zip(groups, rows, strict=True):
        if group not in first:
            first[group] = row
            kinds.setdefault((row.answer, row.group), []).append(group)
    rng, ends, names = np.random.default_rng([seed, 8]), np.cumsum([*_SHARES.values()]), [*_SHARES]
    part: dict[str, str] = {}
    for _, mine in sorted(kinds.items()):
        # Evenly spaced from a drawn start: each part gets its share of however few there are.
        places = (np.arange(len(mine)) + rng.random()) / len(mine)
        for group, place in zip(rng.permutation(sorted(mine)).tolist(), places, strict=True):
            part[group] = names[int(np.searchsorted(ends[:-1], place, side="right"))]
    return [part[group] for group in groups]


def _in_turn(rows: Sequence[FleetRow], count: int) -> list[FleetRow]:
    """So many rows, one of each answer in turn."""
    of: dict[str, list[FleetRow]] = {}
    for row in rows:
        of.setdefault(row.answer, []).append(row)
    ranked = [(place, answer, row) for answer, mine in of.items() for place, row in enumerate(mine)]
    return [row for _, _, row in sorted(ranked, key=lambda each: each[:2])[:count]]


@dataclass(frozen=True, slots=True)
class Partition:
    """How rows are shared out among devices.

    Arguments:
        kind: ``dirichlet``: each answer's rows go to the devices in proportions drawn from
            Dirichlet(alpha) (Hsu et al. 2019, arXiv 1909.06335); ``by-group``: each device sees one
            group; ``iid``: anything.
        alpha: > 0; the smaller, the more devices differ.
    """

    kind: Literal["dirichlet", "by-group", "iid"] = "iid"
    alpha: float = 0.0

    @classmethod
    def of(cls, text: str) -> Self:
        """Read ``dirichlet:0.3``, ``by-group`` or ``iid``.

        Raises:
            InvalidInput: it is none of these.
        """
        found = re.fullmatch(r"dirichlet:(\d+(?:\.\d+)?)", text)
        if found and float(found[1]) > 0:
            return cls("dirichlet", float(found[1]))
        if text == "by-group":
            return cls("by-group")
        if text == "iid":
            return cls("iid")
        raise InvalidInput("partition", f"{text!r} is none of dirichlet:ALPHA, by-group and iid")

    def share_out(
        self, rows: Sequence[FleetRow], devices: int, seed: int
    ) -> list[tuple[FleetRow, ...]]:
        """The rows of each device, in the order in which it sees them.

        Raises:
            InvalidInput: there are more groups than devices, or no groups.
        """
        if not 1 <= devices <= _MOST_DEVICES:
            raise InvalidInput("devices", f"{devices} is not in 1 … {_MOST_DEVICES}")
        rng = np.random.default_rng([seed, 2])
        shuffled = [rows[place] for place in rng.permutation(len(rows))]
        owners: list[list[FleetRow]] = [[] for _ in range(devices)]
        if self.kind == "iid":
            for place, row in enumerate(shuffled):
                owners[place % devices].append(row)
        elif self.kind == "by-group":
            for row, owner in zip(shuffled, _by_group(shuffled, devices), strict=True):
                owners[owner].append(row)
        else:
            for answer in sorted({row.answer for row in shuffled}):  # out of scope is one, too
                mine = [row for row in shuffled if row.answer == answer]
                shares = rng.dirichlet(np.full(devices, self.alpha))
                ends = np.round(np.cumsum(shares)[:-1] * len(mine)).astype(int)
                for owned, chosen in zip(owners, np.split(np.arange(len(mine)), ends), strict=True):
                    owned.extend(mine[place] for place in chosen)
            for owned in owners:
                order = rng.permutation(len(owned))
                owned[:] = [owned[place] for place in order]
        return [tuple(owner) for owner in owners]


def lasting(owned: Sequence[Sequence[FleetRow]], per_round: int) -> tuple[int, int]:
    """For how many rounds the devices have rows: the one with the fewest, and the one with the
    most."""
    rounds = [math.ceil(len(mine) / per_round) for mine in owned]
    return min(rounds), max(rounds)


def _by_group(rows: Sequence[FleetRow], devices: int) -> list[int]:
    groups = sorted({row.group for row in rows})
    if len(groups) < 2:
        raise InvalidInput("partition", "by-group needs rows of two or more groups")
    if len(groups) > devices:
        raise InvalidInput("devices", f"{devices} is fewer than the {len(groups)} groups")
    of = {group: list(range(place, devices, len(groups))) for place, group in enumerate(groups)}
    seen = dict.fromkeys(groups, 0)
    owners = []
    for row in rows:
        mine = of[row.group]
        owners.append(mine[seen[row.group] % len(mine)])
        seen[row.group] += 1
    return owners


def _row(line: bytes, where: str, number: int, group: str) -> FleetRow:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as problem:
        raise InvalidInput(where, f"is not JSON ({problem})") from None
    fields = Fields(value, where)

    def text(name: str) -> str:
        return fields.text(name) if fields.given(name) else ""

    outside = fields.boolean("out_of_scope") if fields.given("out_of_scope") else False
    row = FleetRow(
        id=text("id") or str(number),
        text=fields.text("prompt"),
        answer=text("answer") or text("reference"),
        teacher=text("teacher"),
        group=text(group),
        document=text("document"),
    )
    if not row.text.strip():
        raise InvalidInput(where, "has an empty prompt")
    if outside == bool(row.answer):
        raise InvalidInput(where, "needs an answer, or out_of_scope: true, and not both")
    return row
