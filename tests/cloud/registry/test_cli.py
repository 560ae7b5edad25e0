"""``cascade registry``: publish, canary, promote, roll back, list, collect."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cascade.cli import main
from cascade.errors import ClusterError, InvalidInput, NotFound
from cascade.signing import SigningKey, TrustStore
from cascade.testing import TinyBundle, tiny_bundle


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CASCADE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CASCADE_REGISTRY", raising=False)
    return tmp_path / "home"


def pinned(home: Path, tiny: TinyBundle) -> TinyBundle:
    (key,) = tiny.trust.keys().values()
    TrustStore(home / "trust").pin(f"maker-{key.key_id[:6]}", key)
    return tiny


def said(capsys, *words: str) -> dict:
    assert main(["registry", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_bundle_goes_to_a_few_then_to_all_and_back(home, tmp_path, capsys) -> None:
    first = pinned(home, tiny_bundle(tmp_path / "one"))
    second = pinned(home, tiny_bundle(tmp_path / "two", seed=3))
    said(capsys, "publish", str(first.path))
    canary = said(capsys, "publish", str(second.path), "--canary", "5")
    (variant,) = canary["channel"]["variants"]
    assert (len(variant["stable"]), len(variant["canary"]), variant["percent"]) == (1, 1, 5)
    promoted = said(capsys, "promote")["channel"]["variants"][0]
    assert (promoted["stable"], promoted["canary"]) == (variant["canary"], [])
    back = said(capsys, "rollback")["channel"]
    assert (back["variants"][0]["stable"], back["revision"]) == (variant["stable"], 4)


def test_several_artifacts_are_one_change_in_whatever_order(home, tmp_path, capsys) -> None:
    tiny = pinned(home, tiny_bundle(tmp_path / "one"))
    key = SigningKey.load_or_create(home / "keys" / "publisher.key")
    TrustStore(home / "trust").pin("local", key.public)
    policy = tiny.install_policy("mood", ("a", "b"), threshold=0.5)
    path = tmp_path / "policy.json"
    path.write_bytes(policy.to_bytes())
    path.with_suffix(".sig").write_bytes(key.sign(policy.to_bytes()))
    channel = said(capsys, "publish", str(path), str(tiny.path))["channel"]
    assert channel["revision"] == 1
    assert len(channel["variants"][0]["stable"]) == 2
    assert main(["registry", "list"]) == 0
    shown = capsys.readouterr().out
    assert "channel  stable · revision 1" in shown
    assert "policy  mood" in shown
    assert tiny.bundle.digest not in shown
    assert main(["registry", "list", "--full"]) == 0
    assert tiny.bundle.digest in capsys.readouterr().out, "as configurations name it"


def test_an_empty_registry_says_how_to_begin(home, capsys) -> None:
    assert main(["registry", "list"]) == NotFound.exit_code
    assert "begin with: cascade registry publish" in capsys.readouterr().out


def test_mistakes_are_one_line(home, tmp_path, capsys) -> None:
    tiny = tiny_bundle(tmp_path / "one")
    assert main(["registry", "publish", str(tiny.path)]) != 0  # its maker is not pinned here
    assert "unknown publisher" in capsys.readouterr().err
    pinned(home, tiny)
    for words, code in (
        (["publish", str(tiny.path), "--min-memory", "much"], InvalidInput.exit_code),
        (["publish", str(tiny.path), "--channel", "a/b"], InvalidInput.exit_code),
        (["publish", str(tiny.path), "--canary", "0"], InvalidInput.exit_code),
        (["publish", str(tiny.path), "--expires-days", "0"], InvalidInput.exit_code),
        (["promote"], NotFound.exit_code),
        (["publish", str(tmp_path / "none")], NotFound.exit_code),
    ):
        assert main(["registry", *words]) == code
        told = capsys.readouterr().err
        assert "Traceback" not in told
        assert told.splitlines()[-1].startswith("cascade registry: ")


def test_variants_are_for_kinds_of_devices(home, tmp_path, capsys) -> None:
    tiny = pinned(home, tiny_bundle(tmp_path / "one"))
    said(capsys, "publish", str(tiny.path))
    said(capsys, "publish", str(tiny.path), "--architecture", "aarch64", "--min-memory", "1.5G")
    assert main(["registry", "list"]) == 0
    assert "for aarch64, from 1500 MB of memory" in capsys.readouterr().out


def test_what_is_unused_is_listed_and_collected(home, tmp_path, capsys) -> None:
    one = pinned(home, tiny_bundle(tmp_path / "one"))
    two = pinned(home, tiny_bundle(tmp_path / "two", seed=3))
    said(capsys, "publish", str(one.path), "--channel", "old")
    said(capsys, "publish", str(two.path))
    (home / "registry" / "channels" / "old.json").unlink()
    assert main(["registry", "list"]) == 0
    assert capsys.readouterr().out.count("unused   bundle") == 1
    assert said(capsys, "gc")["removed"] == []
    assert said(capsys, "gc", "--older-than-days", "-1")["removed"]
    assert main(["registry", "list"]) == 0
    assert "unused" not in capsys.readouterr().out
    assert ClusterError.exit_code == 7
