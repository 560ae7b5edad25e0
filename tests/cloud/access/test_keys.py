"""API keys are let in and shut out while the cluster runs."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest

from cascade.cli import main
from cascade.errors import InvalidInput
from cascade.wire import ClientProfile, KeyFile, KeyRing, editing_keys
from cloud.session import api_keys_path
from cloud.tls import TlsPaths
from tests.cloud.access.gate import KEY, gate

NOW = datetime.datetime(2027, 1, 1, 12, tzinfo=datetime.UTC)
PAST = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)


async def test_a_key_is_rotated_while_the_door_is_open(tls: TlsPaths, tmp_path: Path) -> None:
    async with gate(tls, tmp_path) as gated:
        path = gated.files.api_keys
        assert await gated.ask() == "tests by api_key"
        with editing_keys(path) as ring:
            ring.with_key("tests", "a-new-key").save(path)
        assert (await gated.refused()).status == "UNAUTHENTICATED"
        assert await gated.ask(gated.profile("a-new-key")) == "tests by api_key"
        path.unlink()
        assert (await gated.refused(gated.profile("a-new-key"))).status == "UNAUTHENTICATED"


async def test_two_keys_of_one_caller_overlap(tls: TlsPaths, tmp_path: Path) -> None:
    async with gate(tls, tmp_path) as gated:
        path = gated.files.api_keys
        later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
        KeyRing.load(path).with_key("tests", "next", others_until=later).save(path)
        assert await gated.ask() == await gated.ask(gated.profile("next")) == "tests by api_key"
        KeyRing().with_key("tests", KEY).with_key("tests", "next", others_until=PAST).save(path)
        refusal = await gated.refused()
        assert "has expired" in refusal.message
        assert await gated.ask(gated.profile("next")) == "tests by api_key"


async def test_an_expired_key_is_told_so_and_recorded(tls: TlsPaths, tmp_path: Path) -> None:
    KeyRing().with_key("phone", KEY, expires=PAST).save(tmp_path / "api-keys")
    async with gate(tls, tmp_path) as gated:
        refusal = await gated.refused()
        assert (refusal.status, "has expired" in refusal.message) == ("UNAUTHENTICATED", True)
        (record,) = gated.records
        assert (record.status, record.caller) == ("UNAUTHENTICATED", "")
        assert KEY not in repr(record)


async def test_keys_of_the_operators_own_file_count_too(tls: TlsPaths, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    KeyRing().with_key("box", "of-a-box").save(theirs)
    async with gate(tls, tmp_path, api_keys_file=theirs) as gated:
        assert await gated.ask(gated.profile("of-a-box")) == "box by api_key"
        assert await gated.ask() == "tests by api_key"
        KeyRing().save(theirs)
        assert (await gated.refused(gated.profile("of-a-box"))).status == "UNAUTHENTICATED"


def test_a_spoilt_change_leaves_the_keys_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    KeyRing().with_key("phone", KEY).save(path)
    file = KeyFile(path)
    path.write_text("phone in-the-clear\n")
    assert file.ring().owner(KEY) == "phone"
    KeyRing().with_key("box", KEY).save(path)
    assert file.ring().owner(KEY) == "box"


def test_an_expiry_is_kept_in_the_file_and_a_bad_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    KeyRing().with_key("phone", KEY, expires=NOW).save(path)
    (key,) = KeyRing.load(path).keys
    assert (key.expires, key.expired(NOW)) == (NOW, True)
    assert not key.expired(NOW - datetime.timedelta(seconds=1))
    path.write_text(f"phone {key.sha256} expires=tomorrow\n")
    with pytest.raises(InvalidInput, match="line 1: 'tomorrow' is not a time"):
        KeyRing.load(path)
    path.write_text(f"phone {key.sha256} expires=2020-01-01\n")
    assert KeyRing.load(path).keys[0].expires == PAST


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = main(["cluster", "key", *words])
    return code, capsys.readouterr().out


@pytest.mark.usefixtures("empty_home")
def test_the_command_adds_lists_and_revokes(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = run(capsys, "add", "phone", "--expires-days", "30")
    key = out.strip()
    assert code == 0
    assert KeyRing.load(api_keys_path()).owner(key) == "phone"
    assert key not in api_keys_path().read_text()
    code, out = run(capsys, "list")
    assert "phone" in out
    assert key not in out
    code, out = run(capsys, "add", "phone", "--overlap-hours", "1", "--json")
    assert KeyRing.load(api_keys_path()).owner(json.loads(out)["key"]) == "phone"
    assert KeyRing.load(api_keys_path()).owner(key) == "phone"
    listed = json.loads(run(capsys, "list", "--json")[1])["keys"]
    assert [each["name"] for each in listed] == ["phone", "phone"]
    assert run(capsys, "revoke", "phone") == (0, "revoked 2 keys of phone\n")
    assert KeyRing.load(api_keys_path()).keys == ()
    assert run(capsys, "revoke", "phone")[0] == 3


@pytest.mark.usefixtures("empty_home")
@pytest.mark.parametrize(
    "words", [["local"], ["warm-up"], ["a b"], ["phone", "--expires-days", "0"]]
)
def test_an_unusable_name_or_time_makes_no_key(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert run(capsys, "add", *words)[0] == 2
    assert KeyRing.load(api_keys_path()).keys == ()


@pytest.mark.usefixtures("empty_home")
def test_a_key_comes_with_a_profile_for_another_device(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "phone.json"
    assert run(capsys, "add", "phone", "--profile", str(file))[0] == 3  # there is no cluster yet
    assert KeyRing.load(api_keys_path()).keys == ()
    own = ClientProfile("127.0.0.1:7443", b"ca", "own", certificate_pem=b"c", key_pem=b"k")
    own.save(api_keys_path().parent / "client.json")
    key = run(capsys, "add", "phone", "--profile", str(file))[1].strip()
    assert ClientProfile.load(file) == ClientProfile("127.0.0.1:7443", b"ca", key)
