"""An adapter on trial: installed here, and not yet seen to answer.

What to go back to is on disk before anything of the new adapter is in use, and is taken away when
the model has answered under it. So a process that the adapter ends, or that is killed meanwhile,
leaves word: whoever opens the device next tries once more, and then goes back for good.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from cascade import home
from cascade.errors import BundleError, InvalidInput
from cascade.files import write_whole
from cascade.strict import Fields
from edge.delivered import Delivered

_log = logging.getLogger(__name__)

_FORMAT: Final = 1
TRIES: Final = 2
"""Processes may be killed for other reasons, so one that ends proves nothing."""

Folders = dict[str, dict[str, bytes]]
"""Files of policies by name, by the base digest that they are of."""


class AdapterRefused(BundleError):
    """The release's adapter ended this device's process when it was tried."""

    def __init__(self, adapter: str) -> None:
        super().__init__(
            f"adapter {adapter[:12]}… is left: {TRIES} processes ended while it was tried here; "
            f"publish another, or delete {home.trial_path()} to try it again"
        )
        self.adapter = adapter


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial.

    Arguments:
        adapter: digest of what is tried.
        back: what runs here when it fails; ``None`` once it has, and is not to be tried again.
        policies: of before.
        tries: how many were begun.
    """

    adapter: str
    back: Delivered | None
    policies: Folders
    tries: int = 0

    @classmethod
    def load(cls) -> Self | None:
        """The trial under way, or what the last one left; ``None`` for none.

        Raises:
            InvalidInput: the file of it is not readable.
        """
        path = home.trial_path()
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        where = f"{path}"
        fields = Fields.from_bytes(data, where)
        if fields.take("format") != _FORMAT:
            raise InvalidInput(where, f"is not of format {_FORMAT}; upgrade the SDK")
        back = fields.take("back")
        trial = cls(
            adapter=fields.sha256("adapter"),
            back=None if back is None else Delivered.read(Fields(back, where), f"{where}.back"),
            policies=_folders(fields.take("policies"), where),
            tries=fields.integer("tries", 0, 2**31),
        )
        fields.end()
        return trial

    @classmethod
    def begin(cls, before: Delivered, after: Delivered, bases: Iterable[str]) -> None:
        """Note what to go back to. Call it when all files of ``after`` are here, and nothing of it
        is in use.

        Arguments:
            bases: base digests whose policies are about to change.
        """
        pending, policies, tries = cls.load(), {base: _files(base) for base in bases}, 0
        if pending is not None and pending.back is not None:
            before = pending.back  # what is here now was not proved either
            policies |= pending.policies
            tries = pending.tries if pending.adapter == after.adapter else 0
        same = before.artifacts[:1] == after.artifacts[:1]  # the first is the bundle
        back = dataclasses.replace(
            after,
            adapter=before.adapter if same else "",  # no adapter is for another bundle
            artifacts=before.artifacts if same else after.artifacts,
            bundle=before.bundle if same else after.bundle,
        )
        cls(after.adapter, back, policies, tries).save()

    def save(self) -> None:
        """Write it."""
        value = {
            "format": _FORMAT,
            "adapter": self.adapter,
            "back": None if self.back is None else self.back.to_json(),
            "policies": {
                base: {name: base64.b64encode(data).decode() for name, data in files.items()}
                for base, files in self.policies.items()
            },
            "tries": self.tries,
        }
        write_whole(home.trial_path(), (json.dumps(value, indent=2) + "\n").encode())

    def tried(self) -> Self:
        """One more try, noted before it begins."""
        more = dataclasses.replace(self, tries=self.tries + 1)
        more.save()
        return more

    def go_back(self, *, for_good: bool = False) -> Delivered:
        """Install what was here before; may be done again if it was cut off.

        Arguments:
            for_good: do not try this adapter again.
        """
        if self.back is None:
            return Delivered.load()
        for base, files in self.policies.items():
            _restore(home.policies_dir() / base, files)
        self.back.save()
        if for_good:
            dataclasses.replace(self, back=None, policies={}).save()
        else:
            passed()
        return self.back


def passed() -> None:
    """End the trial: what is installed stays."""
    home.trial_path().unlink(missing_ok=True)


def settled() -> Trial | None:
    """The trial that is still open, after one that was tried too often is given up for good."""
    trial = Trial.load()
    if trial is None or trial.back is None:
        return None
    here = Delivered.load()
    if trial.adapter != here.adapter:
        if here.channel == trial.back.channel and here.revision <= trial.back.revision:
            trial.go_back()  # its installation was cut off
        else:
            passed()  # the installation of a later release without an adapter was
        return None
    if trial.tries < TRIES:
        return trial
    trial.go_back(for_good=True)
    _log.warning("%s", AdapterRefused(trial.adapter))
    return None


def on_trial(adapter: str) -> bool:
    """Whether an adapter has not answered here yet."""
    trial = Trial.load()
    return trial is not None and trial.back is not None and trial.adapter == adapter


def refuse_given_up(adapter: str) -> None:
    """Raise ``AdapterRefused`` for an adapter of which the trial was given up for good."""
    trial = Trial.load()
    if trial is not None and trial.back is None and trial.adapter == adapter:
        raise AdapterRefused(adapter)


def _files(base: str) -> dict[str, bytes]:
    folder = home.policies_dir() / base
    return {path.name: path.read_bytes() for path in folder.glob("*") if path.is_file()}


def _restore(folder: Path, kept: dict[str, bytes]) -> None:
    """Put policies back as they were. A signature goes first and comes last: a policy without one
    is none."""
    for path in sorted(folder.glob("*"), key=lambda path: path.suffix != ".sig"):
        path.unlink()
    for name in sorted(kept, key=lambda name: name.endswith(".sig")):
        write_whole(folder / name, kept[name])


def _folders(value: object, where: str) -> Folders:
    try:
        return {
            str(base): {
                str(name): base64.b64decode(data, validate=True) for name, data in files.items()
            }
            for base, files in value.items()  # type: ignore[attr-defined]
        }
    except (AttributeError, TypeError, binascii.Error):
        raise InvalidInput(f"{where}.policies", "must be files in base64, by folder") from None
