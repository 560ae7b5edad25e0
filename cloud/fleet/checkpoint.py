"""A simulation's last whole round, in its folder, from which a run that was killed goes on.

    run.json            what is run: the plan, the data, the bundle
    run.lock            held by every process of a run
    whole/00003/        checkpoint.json, rounds.sqlite3, devices/

What is written whole and then renamed is linked, not copied; databases are copied. All else in the
folder (registry, keys, activations) goes by digest, and may be ahead of the round.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Final, Self

from cascade.errors import CascadeError, InvalidInput
from cascade.files import sha256_bytes, write_whole
from cascade.task import Task
from cloud.fleet.figures import RoundFigures
from cloud.fleet.plan import FleetPlan
from cloud.fleet.rows import Parts

STORE: Final = "rounds.sqlite3"
DEVICES: Final = "devices"
_RUN: Final = "run.json"
_WHOLE: Final = "whole"
_NEW: Final = ".new"
_ENDS_S: Final = 20.0
"""For which a killed run's other processes are waited for."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A run after a whole round.

    Arguments:
        wall_s: the simulation's time.
        start: digest of the adapter that the first round started from.
        first: of the one whose policy stays where none is certified anew; ``None`` before there is
            one.
        rounds: figures so far, number 0 first.
    """

    wall_s: float
    start: str
    first: str | None
    rounds: tuple[RoundFigures, ...]

    def to_bytes(self) -> bytes:
        """As it is kept."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what ``to_bytes`` wrote."""
        value = json.loads(data)
        rounds = tuple(RoundFigures.from_json(each) for each in value["rounds"])
        return cls(value["wall_s"], value["start"], value["first"], rounds)


def identity(plan: FleetPlan, task: Task, rows: Parts, base_digest: str) -> dict[str, object]:
    """What must be the same for a run to go on."""
    data = json.dumps(asdict(rows), sort_keys=True).encode()
    found = {
        **plan.to_json(),
        "task": sha256_bytes(json.dumps(task.to_json(), sort_keys=True).encode()),
        "data": sha256_bytes(data),
        "bundle": base_digest,
        "version of edge-cloud-cascade": metadata.version("edge-cloud-cascade"),
    }
    kept: dict[str, object] = json.loads(json.dumps(found))  # as it is read again
    return kept


class Checkpoints:
    """The whole rounds of a run: the last one is kept.

    Arguments:
        folder: of the simulation.
        what: its ``identity``.
    """

    def __init__(self, folder: Path, what: Mapping[str, object]) -> None:
        self._folder, self._what = folder, dict(what)

    def begin(self, *, resume: bool) -> Checkpoint | None:
        """Make the folder ready: as it was after the last whole round, which is returned, or empty
        where there was none.

        Raises:
            InvalidInput: the folder holds a run already; to be resumed, it must be the same run.
        """
        known = self._folder / _RUN
        if not known.is_file():
            write_whole(known, json.dumps(self._what, indent=1).encode())
            return None
        if not resume:
            raise InvalidInput("folder", f"{self._folder} holds a run; resume it, or take another")
        if differing := _differences(_kept(known), self._what):
            raise InvalidInput("resume", f"{self._folder} holds another run: {differing}")
        whole = sorted((self._folder / _WHOLE).glob("[0-9]*"))
        shutil.rmtree(self._folder / DEVICES, ignore_errors=True)
        for path in self._folder.glob(f"{STORE}*"):
            path.unlink()
        if not whole:
            return None
        _copy(whole[-1] / DEVICES, self._folder / DEVICES)
        _copy_database(whole[-1] / STORE, self._folder / STORE)
        try:
            return Checkpoint.from_bytes((whole[-1] / "checkpoint.json").read_bytes())
        except (OSError, ValueError, TypeError, KeyError) as problem:
            raise _damaged(whole[-1], problem) from None

    def keep(self, now: Checkpoint) -> None:
        """Keep the folder as it is, while nobody changes it."""
        every = self._folder / _WHOLE
        fresh = every / _NEW
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        _copy(self._folder / DEVICES, fresh / DEVICES)
        _copy_database(self._folder / STORE, fresh / STORE)
        write_whole(fresh / "checkpoint.json", now.to_bytes())
        before = sorted(every.glob("[0-9]*"))
        os.replace(fresh, every / f"{len(now.rounds):05d}")
        for path in before:
            shutil.rmtree(path, ignore_errors=True)


def running(folder: Path, *, first: bool = False) -> int:
    """Hold the lock of a run together with its other processes; a descriptor to be closed.

    Arguments:
        first: there must be no others; those of a run that was just killed are waited for.

    Raises:
        CascadeError: another run lives in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / "run.lock", os.O_RDWR | os.O_CREAT, 0o600)
    ends = time.monotonic() + _ENDS_S
    while first:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > ends:
                os.close(lock)
                raise CascadeError(f"another run goes on in {folder}; end it first") from None
            time.sleep(0.2)
    fcntl.flock(lock, fcntl.LOCK_SH)
    return lock


def _kept(path: Path) -> dict[str, object]:
    """The identity of a run that was begun."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as problem:
        raise _damaged(path, problem) from None
    if not isinstance(value, dict):
        raise _damaged(path, "it is no JSON object")
    return value


def _damaged(path: Path, why: object) -> CascadeError:
    return CascadeError(f"{path} cannot be read ({why}); run it again in a new folder")


def _differences(there: Mapping[str, object], here: Mapping[str, object]) -> str:
    old, new = _flat(there), _flat(here)
    names = [name for name in (old | new) if old.get(name) != new.get(name)]
    told = []
    for name in names:
        if name in ("task", "data", "bundle"):
            told.append(f"another {name}")
        else:
            told.append(f"{name} is {old.get(name)} there and {new.get(name)} here")
    return ", ".join(told)


def _flat(value: Mapping[str, object], above: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for name, each in value.items():
        if isinstance(each, Mapping):
            found |= _flat(each, f"{above}{name}.")
        else:
            found[above + name] = each
    return found


def _copy(source: Path, target: Path) -> None:
    """Copy a folder: databases and what lies in them yet to be written as a whole, locks not."""
    target.mkdir(parents=True, exist_ok=True)
    if not source.is_dir():
        return
    for path in source.iterdir():
        if path.is_dir():
            _copy(path, target / path.name)
        elif path.suffix == ".sqlite3":
            _copy_database(path, target / path.name)
        elif path.suffix != ".lock" and not path.name.endswith((".sqlite3-wal", ".sqlite3-shm")):
            try:
                os.link(path, target / path.name)
            except OSError:  # not on every file system
                shutil.copy2(path, target / path.name)


def _copy_database(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as there, closing(sqlite3.connect(target)) as here:
        here.execute("PRAGMA synchronous = OFF")  # the folder is taken for whole when it is renamed
        there.backup(here)
