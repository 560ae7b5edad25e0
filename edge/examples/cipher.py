"""How texts lie in the store's file: as they are, or encrypted.

``Cipher`` is the seam: an application with a key store of its platform (Android Keystore, Keychain,
a TPM) writes one of its own, or hands ``AesGcm`` a function that fetches the key.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cascade.errors import InvalidInput, NotFound
from cascade.files import write_new

_NONCE_BYTES: Final = 12
_KEY_BYTES: Final = 32


class Cipher(Protocol):
    """Seals texts. Must be safe to use from any thread."""

    @property
    def name(self) -> str:
        """Which kind it is; a store is opened with the kind that it was written with."""
        ...

    def seal(self, data: bytes, about: bytes) -> bytes:
        """``data`` in a form that only ``open`` with the same ``about`` can read."""
        ...

    def open(self, sealed: bytes, about: bytes) -> bytes:
        """What was sealed.

        Raises:
            InvalidInput: it was sealed with another key or another ``about``, or was changed.
        """
        ...


class Clear:
    """Leaves texts as they are: whoever may read the file can read them."""

    name: Final = "clear"

    def seal(self, data: bytes, about: bytes) -> bytes:
        """``data`` itself."""
        return data

    def open(self, sealed: bytes, about: bytes) -> bytes:
        """``sealed`` itself."""
        return sealed


class AesGcm:
    """AES-256-GCM (NIST SP 800-38D) with a random nonce for each text. What a text belongs to is
    authenticated with it: nobody can exchange two texts.

    Arguments:
        key: 32 bytes, or what fetches them when they are first needed.
    """

    name: Final = "aes-256-gcm"

    def __init__(self, key: bytes | Callable[[], bytes]) -> None:
        self._key = key
        self._aead: AESGCM | None = None

    @classmethod
    def from_file(cls, path: Path, *, create: bool = False) -> Self:
        """With a key of 64 hex digits in a file.

        Arguments:
            create: make a random one, readable by the owner alone, where there is none.

        Raises:
            NotFound: there is no such file.
            InvalidInput: it holds no key.
        """
        if create and not path.exists():
            write_new(path, f"{secrets.token_hex(_KEY_BYTES)}\n".encode(), private=True)
        try:
            key = bytes.fromhex(path.read_text(encoding="ascii").strip())
        except FileNotFoundError:
            raise NotFound(f"there is no key at {path}") from None
        except ValueError:
            raise InvalidInput("key", f"{path} does not hold 64 hex digits") from None
        _check_key(key)
        return cls(key)

    def seal(self, data: bytes, about: bytes) -> bytes:
        """Nonce and ciphertext."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._keyed().encrypt(nonce, data, about)

    def open(self, sealed: bytes, about: bytes) -> bytes:
        """The text."""
        try:
            return self._keyed().decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], about)
        except (InvalidTag, ValueError):
            raise InvalidInput(
                "cipher", "cannot open what was sealed; it is another key, or the text was changed"
            ) from None

    def _keyed(self) -> AESGCM:
        if self._aead is None:
            key = self._key() if callable(self._key) else self._key
            _check_key(key)
            self._aead = AESGCM(key)
        return self._aead


def _check_key(key: bytes) -> None:
    if len(key) != _KEY_BYTES:
        raise InvalidInput("key", f"has {len(key)} bytes; AES-256 takes {_KEY_BYTES}")
