"""Client profiles and API keys as files."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from cascade.errors import InvalidInput, NotFound
from cascade.wire import ClientProfile, KeyRing, new_key


def test_a_profile_reads_back_and_is_private(tmp_path: Path) -> None:
    profile = ClientProfile("127.0.0.1:7443", b"-----BEGIN CERTIFICATE-----\n", "k", "gateway")
    path = tmp_path / "client.json"
    profile.save(path)
    assert ClientProfile.load(path) == profile
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_profile_does_not_print_its_key() -> None:
    assert "secret" not in repr(ClientProfile("h:1", None, "secret"))


@pytest.mark.parametrize("address", ["", "host", "host:", ":1", "host:x", "host:0", "host:65536"])
def test_an_address_must_be_host_and_port(address: str) -> None:
    with pytest.raises(InvalidInput, match="address"):
        ClientProfile(address, None, "k")


def test_a_missing_profile_says_how_to_get_one(empty_home: Path) -> None:
    with pytest.raises(NotFound, match="cascade cluster up"):
        ClientProfile.load()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"address": 3}', "\x00"])
def test_a_spoilt_profile_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "client.json"
    path.write_text(content)
    with pytest.raises(InvalidInput, match="not a client profile"):
        ClientProfile.load(path)


def test_keys_are_kept_as_hashes_and_found_by_owner(tmp_path: Path) -> None:
    path = tmp_path / "api-keys"
    first, second = new_key(), new_key()
    KeyRing().with_key("phone", first).with_key("box", second).save(path)
    assert first not in path.read_text()
    ring = KeyRing.load(path)
    assert (ring.owner(first), ring.owner(second)) == ("phone", "box")
    assert ring.owner("another") is None
    assert ring.with_key("phone", "new").owner(first) is None


def test_a_missing_keys_file_lets_nobody_in(tmp_path: Path) -> None:
    assert KeyRing.load(tmp_path / "none").owner("") is None


def test_a_key_in_the_clear_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "api-keys"
    path.write_text("# devices\nphone my-password\n")
    with pytest.raises(InvalidInput, match="line 2"):
        KeyRing.load(path)
