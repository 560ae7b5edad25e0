"""A signature on an update holds for that update, lease, round and base, and for nothing else."""

from __future__ import annotations

import dataclasses

import pytest

from cascade.errors import InvalidInput
from cascade.federation import UpdateStatement, sign_update, verify_update
from cascade.files import sha256_bytes
from cascade.signing import PublicKey, SigningKey

BASE, PAYLOAD = sha256_bytes(b"base"), sha256_bytes(b"payload")
STATEMENT = UpdateStatement("lease-7", 3, BASE, PAYLOAD)


def test_the_signed_bytes_are_fixed():
    assert STATEMENT.to_bytes() == (
        b"edge-cloud-cascade/federation/update/v1\0"
        + b"\x07\x00lease-7"
        + b"\x03\0\0\0\0\0\0\0"
        + bytes.fromhex(BASE)
        + bytes.fromhex(PAYLOAD)
    )


@pytest.mark.parametrize(
    "change",
    [
        {"lease_id": "lease-8"},
        {"round": 4},
        {"base_digest": PAYLOAD},
        {"payload_sha256": BASE},
    ],
)
def test_nothing_may_be_changed(change):
    key = SigningKey.generate()
    signature = sign_update(key, STATEMENT)
    verify_update(key.public, STATEMENT, signature)
    with pytest.raises(InvalidInput, match="signature"):
        verify_update(key.public, dataclasses.replace(STATEMENT, **change), signature)


@pytest.mark.parametrize("signature", [b"", bytes(63), bytes(64), bytes(65)])
def test_what_is_no_signature_is_refused(signature):
    with pytest.raises(InvalidInput, match="signature"):
        verify_update(SigningKey.generate().public, STATEMENT, signature)


def test_another_device_and_a_broken_key_are_refused():
    signature = sign_update(SigningKey.generate(), STATEMENT)
    for key in (SigningKey.generate().public, PublicKey(bytes(31)), PublicKey(b"\xff" * 32)):
        with pytest.raises(InvalidInput, match="signature"):
            verify_update(key, STATEMENT, signature)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lease_id", ""),
        ("lease_id", "ü" * 129),
        ("round", -1),
        ("round", 1 << 64),
        ("base_digest", BASE.upper()),
        ("payload_sha256", PAYLOAD[:-1]),
    ],
)
def test_a_field_out_of_its_range_is_named(field, value):
    with pytest.raises(InvalidInput) as refusal:
        dataclasses.replace(STATEMENT, **{field: value}).to_bytes()
    assert refusal.value.field == field
