"""The primitives of masking, from ``cryptography``: agreed keys, masks of words, sealed parcels.

Every key is derived with HKDF-SHA256 (RFC 5869) from secrets of this round, for its session and one
purpose. None is ever used twice; that is what makes the fixed nonces below safe.
"""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cascade.errors import InvalidInput
from cascade.federation.masking.fixed_point import FixedPoint, Words

KEY_BYTES: Final = 32
TAG_BYTES: Final = 16
_DOMAIN: Final = b"edge-cloud-cascade/federation/masking/v1\0"
_NONCE: Final = bytes(12)


def public_of(private: bytes) -> bytes:
    """The X25519 public key of a private one (32 random bytes)."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agree(private: bytes, public: bytes, field: str) -> bytes:
    """The X25519 secret (RFC 7748) that two devices share; only ever an input of ``derive``.

    Raises:
        InvalidInput: ``public`` is a point of low order, which makes the secret a known one.
    """
    try:
        return X25519PrivateKey.from_private_bytes(private).exchange(
            X25519PublicKey.from_public_bytes(public)
        )
    except ValueError:
        raise InvalidInput(field, "is no usable X25519 key") from None


def derive(secret: bytes, purpose: bytes, session: bytes) -> bytes:
    """A 32-byte key for one purpose in one round."""
    return HKDF(SHA256(), KEY_BYTES, salt=session, info=_DOMAIN + purpose).derive(secret)


def mask(key: bytes, fixed: FixedPoint, elements: int) -> Words:
    """``elements`` words from AES-256-CTR's key stream: uniform modulo 2^bits, for AES's sake."""
    encryptor = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    return np.frombuffer(encryptor.update(bytes(elements * fixed.bits // 8)), fixed.dtype)


def seal(key: bytes, text: bytes, about: bytes) -> bytes:
    """AES-256-GCM with a key that seals nothing else. ``about`` is bound to it and not sent."""
    return AESGCM(key).encrypt(_NONCE, text, about)


def unseal(key: bytes, sealed: bytes, about: bytes, field: str) -> bytes:
    """What ``seal`` was given.

    Raises:
        InvalidInput: sealed with another key or about something else, or altered.
    """
    try:
        return AESGCM(key).decrypt(_NONCE, sealed, about)
    except InvalidTag:
        raise InvalidInput(field, "was altered, or is meant for someone else") from None


def commitment(purpose: bytes, session: bytes, secret: bytes) -> bytes:
    """sha256 that binds to a random secret of 32 bytes or more, and hides it."""
    return hashlib.sha256(_DOMAIN + purpose + b"\0" + session + secret).digest()
