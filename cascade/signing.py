"""Who published this: ed25519 signatures (RFC 8032) and the keys that this device trusts.

A publisher signs the exact bytes of a manifest or policy. A device holds pinned public keys in a
folder of its own, outside of everything it downloads; a signature by any other key is refused.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cascade.errors import InvalidInput, NotFound, Tampered, UnknownPublisher
from cascade.files import sha256_bytes, write_new, write_whole

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A publisher's public key: 32 raw bytes."""

    raw: bytes

    @property
    def key_id(self) -> str:
        """sha256 of the raw key, lower-case hex; names the key in signatures and messages."""
        return sha256_bytes(self.raw)

    def signed(self, data: bytes, raw: bytes) -> bool:
        """Whether ``raw`` is this key's bare signature (64 bytes) of ``data``."""
        try:
            _verifier(self.raw).verify(raw, data)
        except (InvalidSignature, ValueError):  # ValueError: the key is no point of the curve
            return False
        return True


@lru_cache(maxsize=4096)
def _verifier(raw: bytes) -> Ed25519PublicKey:
    """The curve's point of a key, which costs half as much to find as a signature to check."""
    return Ed25519PublicKey.from_public_bytes(raw)


class SigningKey:
    """A publisher's private key. Keep it off devices."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private

    @classmethod
    def generate(cls) -> SigningKey:
        """A new random key."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> SigningKey:
        """Read a key written by ``save``.

        Raises:
            NotFound: there is no such file.
            InvalidInput: the file is not a 32-byte hex key.
        """
        try:
            return cls(
                Ed25519PrivateKey.from_private_bytes(bytes.fromhex(path.read_text().strip()))
            )
        except FileNotFoundError:
            raise NotFound(f"there is no signing key at {path}") from None
        except ValueError:
            raise InvalidInput("key", f"{path} is not an ed25519 key of 64 hex digits") from None

    @classmethod
    def load_or_create(cls, path: Path) -> SigningKey:
        """Read the key at ``path``, or make one there that only its owner can read."""
        if not path.exists():
            write_new(path, cls.generate()._hex(), private=True)
        return cls.load(path)

    def save(self, path: Path) -> None:
        """Write the key as hex, readable by the owner alone."""
        write_whole(path, self._hex(), private=True)

    @property
    def public(self) -> PublicKey:
        """The key that devices pin."""
        return PublicKey(self._private.public_key().public_bytes_raw())

    def sign(self, data: bytes) -> bytes:
        """A detached signature file (JSON) over the exact bytes of ``data``."""
        return _signature_file(self.public, self.sign_raw(data))

    def _hex(self) -> bytes:
        return (self._private.private_bytes_raw().hex() + "\n").encode()

    def sign_raw(self, data: bytes) -> bytes:
        """The bare signature, 64 bytes: for messages that name the key elsewhere."""
        return self._private.sign(data)


class TrustStore:
    """The publisher keys pinned on this device: ``<name>.pub`` files in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def pin(self, name: str, key: PublicKey) -> None:
        """Trust ``key`` under ``name`` from now on.

        Raises:
            InvalidInput: ``name`` is no plain name, or is taken by a different key.
        """
        if not _NAME.fullmatch(name):
            raise InvalidInput("publisher", "must be 1 to 64 characters of A-Z a-z 0-9 . _ -")
        pinned = self.keys().get(name)
        if pinned is not None and pinned != key:
            raise InvalidInput(
                "publisher",
                f"{name} is pinned to another key; remove {self._folder / (name + '.pub')} first",
            )
        if pinned is None:
            write_whole(self._folder / f"{name}.pub", (key.raw.hex() + "\n").encode())

    def keys(self) -> dict[str, PublicKey]:
        """Pinned keys by publisher name."""
        return {
            path.stem: PublicKey(bytes.fromhex(path.read_text().strip()))
            for path in sorted(self._folder.glob("*.pub"))
        }

    def signature_file(self, data: bytes, raw: bytes, *, what: str) -> bytes:
        """The signature file for a bare signature of 64 bytes, by whichever pinned key made it.

        Arguments:
            what: name of what was signed, for messages.

        Raises:
            UnknownPublisher: no pinned key did.
        """
        for key in self.keys().values():
            if key.signed(data, raw):
                return _signature_file(key, raw)
        raise UnknownPublisher(
            f"{what} is signed by none of the publishers that are pinned in {self._folder}"
        )

    def verify(self, data: bytes, signature: bytes, *, what: str) -> str:
        """Name of the pinned publisher that signed ``data``.

        Arguments:
            signature: the content of a signature file.
            what: name of the signed file, for messages.

        Raises:
            UnknownPublisher: signed by a key that is not pinned here.
            Tampered: the signature file is malformed or does not fit ``data``.
        """
        try:
            fields = json.loads(signature)
            key_id, raw = str(fields["key_id"]), bytes.fromhex(fields["signature"])
        except (ValueError, KeyError, TypeError):
            raise Tampered(
                what, "its signature file is malformed; fetch or build it again"
            ) from None
        for name, key in self.keys().items():
            if key.key_id == key_id:
                if not key.signed(data, raw):
                    raise Tampered(
                        what, f"differs from what {name} signed; fetch or build it again"
                    )
                return name
        raise UnknownPublisher(
            f"{what} is signed by the unknown publisher {key_id[:16]}…; "
            f"if you trust them, put their key into {self._folder}"
        )


def _signature_file(key: PublicKey, raw: bytes) -> bytes:
    signature = {"algorithm": "ed25519", "key_id": key.key_id, "signature": raw.hex()}
    return (json.dumps(signature, indent=2) + "\n").encode()
