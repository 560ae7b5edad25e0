"""What is sealed can be read with the same key alone, and belongs where it was put."""

from __future__ import annotations

from pathlib import Path

import pytest

from cascade.errors import InvalidInput, NotFound
from edge.examples import AesGcm, Clear

KEY = bytes(range(32))


def test_what_was_sealed_is_opened():
    cipher = AesGcm(KEY)
    sealed = cipher.seal(b"my own words", b"r1")
    assert b"words" not in sealed
    assert cipher.seal(b"my own words", b"r1") != sealed  # a nonce of its own
    assert cipher.open(sealed, b"r1") == b"my own words"


@pytest.mark.parametrize("change", ["key", "about", "bit", "short"])
def test_anything_else_is_refused(change):
    sealed = AesGcm(KEY).seal(b"my own words", b"r1")
    other = AesGcm(bytes(32)) if change == "key" else AesGcm(KEY)
    about = b"r2" if change == "about" else b"r1"
    changed = {"bit": bytes([sealed[0] ^ 1]) + sealed[1:], "short": sealed[:5]}.get(change, sealed)
    with pytest.raises(InvalidInput, match="another key, or the text was changed"):
        other.open(changed, about)


def test_the_key_is_fetched_when_it_is_needed_and_once():
    asked = []

    def fetch() -> bytes:
        asked.append(1)
        return KEY

    cipher = AesGcm(fetch)
    assert not asked
    assert cipher.open(cipher.seal(b"x", b""), b"") == b"x"
    assert len(asked) == 1


def test_a_key_file_is_made_for_its_owner_alone(tmp_path):
    path = tmp_path / "keys" / "examples.key"
    with pytest.raises(NotFound, match="no key"):
        AesGcm.from_file(path)
    sealed = AesGcm.from_file(path, create=True).seal(b"x", b"")
    assert path.stat().st_mode & 0o777 == 0o600
    assert AesGcm.from_file(path, create=True).open(sealed, b"") == b"x"


def test_two_processes_that_make_a_key_at_once_have_the_same(tmp_path, monkeypatch):
    path = tmp_path / "examples.key"
    sealed = AesGcm.from_file(path, create=True).seal(b"x", b"")
    monkeypatch.setattr(Path, "exists", lambda path: False)  # it looked before the other one wrote
    assert AesGcm.from_file(path, create=True).open(sealed, b"") == b"x"


@pytest.mark.parametrize(("text", "message"), [("not hex", "64 hex digits"), ("abcd", "2 bytes")])
def test_a_file_without_a_key_is_refused(tmp_path, text, message):
    path = tmp_path / "key"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=message):
        AesGcm.from_file(path)


def test_in_clear_nothing_changes():
    assert Clear().open(Clear().seal(b"x", b"a"), b"b") == b"x"
