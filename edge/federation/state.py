"""What a participating device keeps on disk, so that it goes on after a restart where it was.

One folder for each coordinator's address: the state in one JSON file, and the update that is being
sent beside it. A file is written whole before anything that depends on it is sent.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final, Self

import numpy as np

from cascade import lock
from cascade.clock import Reading
from cascade.errors import CascadeError, InvalidInput
from cascade.federation.tensors import Doubles
from cascade.federation.terms import UploadHeader
from cascade.files import sha256_bytes, write_whole
from cascade.home import home
from cascade.strict import Fields
from edge.federation.limits import DAY_S, Usage
from edge.federation.masking import Masking
from edge.federation.timer import Timer, reading

_FORMAT: Final = 1


class DeviceBusy(CascadeError):
    """Another process of this device takes part already. Let it."""


@dataclass(frozen=True, slots=True)
class PendingUpload:
    """An update that was not acknowledged yet; its bytes lie beside the state."""

    header: UploadHeader
    expires: Timer


@dataclass(frozen=True, slots=True)
class RoundInHand:
    """A round that was joined, of which the training has not ended.

    Arguments:
        spent_s: of the plan's seconds, before its pauses. What a killed process used is not seen.
        begun: how often training was begun and did not come to a pause or an end.
    """

    lease_id: str
    expires: Timer
    spent_s: float = 0.0
    begun: int = 0


@dataclass(frozen=True, slots=True)
class DeviceState:
    """The state.

    Arguments:
        coordinator_id: of the coordinator that knows this device; "" before it was enrolled.
        request_id: of the check-in under way, hex; "" for none.
        seen: highest adapter version that was offered, by base digest.
        wait: not to call before it is over.
        pending: to be sent.
        masking: the round under masks that it is in.
        training: the round that it trains for.
        learned: what ``forgotten`` said when what is unsent was learned.
    """

    coordinator_id: str = ""
    request_id: str = ""
    seen: tuple[tuple[str, int], ...] = ()
    usage: Usage = field(default_factory=Usage)
    wait: Timer | None = None
    pending: PendingUpload | None = None
    masking: Masking | None = None
    training: RoundInHand | None = None
    learned: str = ""

    @property
    def unsent(self) -> bool:
        """Whether something that was learned is on its way."""
        return self.pending is not None or self.masking is not None

    def highest(self, base_digest: str) -> int:
        """The highest version that was seen for a base; 0 for none."""
        return dict(self.seen).get(base_digest, 0)

    def having_seen(self, base_digest: str, version: int) -> DeviceState:
        """With a version noted."""
        seen = {**dict(self.seen), base_digest: max(version, self.highest(base_digest))}
        return replace(self, seen=tuple(sorted(seen.items())))

    def to_bytes(self) -> bytes:
        """The file's content."""
        pending = None
        if self.pending is not None:
            header = asdict(self.pending.header)
            header["signature"] = self.pending.header.signature.hex()
            pending = {"header": header, "expires": self.pending.expires.to_json()}
        value: dict[str, object] = {
            "format": _FORMAT,
            "coordinator_id": self.coordinator_id,
            "request_id": self.request_id,
            "seen": [list(each) for each in self.seen],
            "usage": {**asdict(self.usage.now), "rounds": self.usage.rounds},
            "wait": None if self.wait is None else self.wait.to_json(),
            "pending": pending,
        }
        # These were not there in earlier versions.
        if self.masking is not None:
            value["masking"] = self.masking.to_json()
        if self.training is not None:
            value["training"] = {
                "lease_id": self.training.lease_id,
                "expires": self.training.expires.to_json(),
                "spent_s": self.training.spent_s,
                "begun": self.training.begun,
            }
        if self.learned:
            value["learned"] = self.learned
        return (json.dumps(value, indent=2) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Self:
        """Read what ``to_bytes`` wrote.

        Raises:
            InvalidInput: a field is missing, unknown or unusable.
        """
        fields = Fields.from_bytes(data, where)
        if fields.take("format") != _FORMAT:
            raise InvalidInput(where, f"is not of format {_FORMAT}; upgrade the SDK")
        waits = fields.take("wait")
        pending = fields.take("pending")
        masking = fields.take("masking") if fields.given("masking") else None
        training = fields.take("training") if fields.given("training") else None
        learned = fields.text("learned") if fields.given("learned") else ""
        state = cls(
            coordinator_id=fields.text("coordinator_id"),
            request_id=fields.text("request_id"),
            seen=_seen(fields.take("seen"), where),
            usage=_usage(fields.take("usage"), f"{where}.usage"),
            wait=None if waits is None else Timer.from_json(waits, f"{where}.wait"),
            pending=None if pending is None else _pending(pending, f"{where}.pending"),
            masking=None if masking is None else Masking.from_json(masking, f"{where}.masking"),
            training=None if training is None else _training(training, f"{where}.training"),
            learned=learned,
        )
        fields.end()
        return state


class DeviceFolder:
    """Where a device keeps what it knows of one coordinator.

    Arguments:
        root: of all coordinators; by default under ``CASCADE_HOME``.
    """

    def __init__(self, address: str, root: Path | None = None) -> None:
        self.root = root or home() / "federation"
        self.path = self.root / sha256_bytes(address.encode())[:16]

    @property
    def key_path(self) -> Path:
        """The device's private key: one for all coordinators."""
        return self.root / "device.key"

    def load(self) -> DeviceState:
        """The state; a fresh one where there is none.

        Raises:
            InvalidInput: it cannot be read; the message says what to do.
        """
        path = self.path / "state.json"
        try:
            return DeviceState.from_bytes(path.read_bytes(), str(path))
        except FileNotFoundError:
            return DeviceState()
        except InvalidInput as problem:
            raise InvalidInput(
                problem.field,
                f"{problem.problem}; remove that file to start anew: an update that waits is lost",
            ) from None

    def save(self, state: DeviceState) -> None:
        """Write the state; a payload that it does not name any more is removed."""
        write_whole(self.path / "state.json", state.to_bytes(), private=True)
        kept = None if state.pending is None else self._payload(state.pending.header)
        for path in self.path.glob("*.update"):
            if path != kept:
                path.unlink(missing_ok=True)
        bare = None if state.masking is None else self._vector(state.masking.vector_sha256)
        for path in self.path.glob("*.vector"):
            if path != bare:
                path.unlink(missing_ok=True)

    def save_payload(self, header: UploadHeader, payload: bytes) -> None:
        """Write an update; before the state that names it."""
        write_whole(self._payload(header), payload, private=True)

    def payload(self, header: UploadHeader) -> bytes | None:
        """An update's bytes; ``None`` where they are gone or damaged."""
        try:
            data = self._payload(header).read_bytes()
        except FileNotFoundError:
            return None
        return data if sha256_bytes(data) == header.payload_sha256 else None

    def save_vector(self, values: Doubles) -> str:
        """Write an update that is to be masked; before the state that names it by its sha256."""
        data = values.astype("<f8").tobytes()
        digest = sha256_bytes(data)
        write_whole(self._vector(digest), data, private=True)
        return digest

    def vector(self, digest: str) -> Doubles | None:
        """An update that is not masked yet; ``None`` where it is gone or damaged."""
        try:
            data = self._vector(digest).read_bytes()
        except FileNotFoundError:
            return None
        return np.frombuffer(data, "<f8") if sha256_bytes(data) == digest else None

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Be the one process of this device.

        Raises:
            DeviceBusy: another one is.
        """
        with lock.alone(self.root / "device.lock") as held:
            if not held:
                raise DeviceBusy("another process of this device takes part already")
            yield

    def _payload(self, header: UploadHeader) -> Path:
        return self.path / f"{header.payload_sha256}.update"

    def _vector(self, digest: str) -> Path:
        return self.path / f"{digest}.vector"


def _seen(value: object, where: str) -> tuple[tuple[str, int], ...]:
    try:
        pairs = tuple((str(base), int(version)) for base, version in value)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise InvalidInput(f"{where}.seen", "must be pairs of base and version") from None
    return pairs


def _usage(value: object, where: str) -> Usage:
    fields = Fields(value, where)
    if fields.given("day"):  # of earlier versions, which went by the clock on the wall
        now = Reading(DAY_S * fields.integer("day", 0, 2**31), 0.0, "")
    else:
        now = reading(fields)
    found = Usage(now, fields.integer("rounds", 0, 2**31))
    fields.end()
    return found


def _training(value: object, where: str) -> RoundInHand:
    fields = Fields(value, where)
    found = RoundInHand(
        fields.text("lease_id"),
        Timer.from_json(fields.take("expires"), f"{where}.expires"),
        fields.number("spent_s", 0.0),
        fields.integer("begun", 0, 2**31),
    )
    fields.end()
    return found


def _pending(value: object, where: str) -> PendingUpload:
    fields = Fields(value, where)
    header = Fields(fields.take("header"), f"{where}.header")
    try:
        signature = bytes.fromhex(header.text("signature"))
    except ValueError:
        raise InvalidInput(f"{where}.header.signature", "is not hex") from None
    pending = PendingUpload(
        UploadHeader(
            device_id=header.text("device_id"),
            lease_id=header.text("lease_id"),
            payload_bytes=header.integer("payload_bytes", 1, 2**53),
            payload_sha256=header.sha256("payload_sha256"),
            offset=header.integer("offset", 0, 2**53),
            base_digest=header.text("base_digest"),
            adapter_version=header.integer("adapter_version", 1, 2**53),
            examples=header.integer("examples", 1, 2**53),
            signature=signature,
        ),
        Timer.from_json(fields.take("expires"), f"{where}.expires"),
    )
    header.end()
    fields.end()
    return pending
