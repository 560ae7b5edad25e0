"""What a cluster gave this device: which bundle and adapter it runs, kept across restarts."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Self

from cascade import home, lock
from cascade.errors import BundleError, InvalidInput
from cascade.files import write_whole
from cascade.strict import Fields

DEFAULT_CHANNEL: Final = "stable"

_FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Delivered:
    """What this device was given.

    Arguments:
        channel, revision: of the last release that was installed.
        artifacts: digests of what is installed of it.
        bundle: name of the bundle's folder under ``CASCADE_HOME/bundles``; "" for none.
        adapter: digest of the adapter to run with it; "" for none.
        device_id: the random name that this device gave itself.
    """

    channel: str = DEFAULT_CHANNEL
    revision: int = 0
    artifacts: tuple[str, ...] = ()
    bundle: str = ""
    adapter: str = ""
    device_id: str = field(default_factory=lambda: secrets.token_hex(16))

    @classmethod
    def load(cls) -> Self:
        """What was installed last; nothing, under a new name, on a device that is not set up.

        Raises:
            InvalidInput: the file of it is not readable; the message says what to do.
        """
        path = home.delivery_path()
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return cls()
        return cls.read(Fields.from_bytes(data, f"{path}"), f"{path}")

    @classmethod
    def read(cls, fields: Fields, where: str) -> Self:
        """What ``to_json`` made.

        Raises:
            InvalidInput: a field is missing, unknown or unusable.
        """
        if fields.take("format") != _FORMAT:
            raise InvalidInput(where, f"is not of format {_FORMAT}; upgrade the SDK")
        read = cls(
            channel=fields.text("channel"),
            revision=fields.integer("revision", 0, 2**53),
            artifacts=fields.texts("artifacts"),
            bundle=fields.text("bundle"),
            adapter=fields.text("adapter"),
            device_id=fields.text("device_id"),
        )
        fields.end()
        return read

    def to_json(self) -> dict[str, object]:
        """As JSON values."""
        return {
            "format": _FORMAT,
            "channel": self.channel,
            "revision": self.revision,
            "artifacts": list(self.artifacts),
            "bundle": self.bundle,
            "adapter": self.adapter,
            "device_id": self.device_id,
        }

    def save(self) -> None:
        """Write it."""
        data = json.dumps(self.to_json(), indent=2) + "\n"
        write_whole(home.delivery_path(), data.encode())


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Hold the lock of this device's deliveries: two processes must not fill one folder, nor try
    one adapter.

    Raises:
        BundleError: another one holds it.
    """
    with lock.alone(home.home() / "delivery.lock") as held:
        if not held:
            raise BundleError("this device is being set up by another process; wait for it")
        yield
