"""What a device's signature on an update covers, to the byte, and how it is made and checked.

An ed25519 signature (RFC 8032) over

    "edge-cloud-cascade/federation/update/v1" 0x00
    lease length u16 · lease UTF-8 · round u64 · base digest [32] · payload sha256 [32]

little-endian. The first line separates it from everything else that the same key may ever sign (a
check-in, a manifest); every field has a known length, so that no two statements share their bytes.
That a lease is used once, and which key is which device's, is for the coordinator to know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cascade.errors import InvalidInput
from cascade.signing import PublicKey, SigningKey

_DOMAIN: Final = b"edge-cloud-cascade/federation/update/v1\0"
_MAX_LEASE_BYTES: Final = 256


@dataclass(frozen=True, slots=True)
class UpdateStatement:
    """What a device says by uploading.

    Arguments:
        lease_id: the lease that it answers, 1 to 256 bytes of UTF-8.
        round: number of the round that gave the lease, ≥ 0.
        base_digest: hex sha256; of the bundle's base (``Manifest.base_digest``).
        payload_sha256: hex sha256 of the encoded update.
    """

    lease_id: str
    round: int
    base_digest: str
    payload_sha256: str

    def to_bytes(self) -> bytes:
        """The bytes that are signed.

        Raises:
            InvalidInput: a field is out of its range.
        """
        lease = self.lease_id.encode()
        if not 1 <= len(lease) <= _MAX_LEASE_BYTES:
            raise InvalidInput("lease_id", f"must be of 1 to {_MAX_LEASE_BYTES} bytes")
        if not 0 <= self.round < 1 << 64:
            raise InvalidInput("round", "must be a whole number of 64 bits")
        return b"".join(
            (
                _DOMAIN,
                len(lease).to_bytes(2, "little"),
                lease,
                self.round.to_bytes(8, "little"),
                _digest("base_digest", self.base_digest),
                _digest("payload_sha256", self.payload_sha256),
            )
        )


def sign_update(key: SigningKey, statement: UpdateStatement) -> bytes:
    """The device's bare signature, 64 bytes."""
    return key.sign_raw(statement.to_bytes())


def verify_update(key: PublicKey, statement: UpdateStatement, signature: bytes) -> None:
    """Raise ``InvalidInput`` unless the device of ``key`` signed exactly this.

    Arguments:
        key: as enrolled; never as sent along.
        statement: made from the coordinator's own lease and the bytes that it received.
    """
    if not key.signed(statement.to_bytes(), signature):
        raise InvalidInput(
            "signature", "is not the enrolled key's over this lease, round, base and payload"
        )


def _digest(field: str, value: str) -> bytes:
    if len(value) != 64 or set(value) - set("0123456789abcdef"):
        raise InvalidInput(field, "must be a lower-case hex sha256")
    return bytes.fromhex(value)
