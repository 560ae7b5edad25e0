"""The ladders that a configuration names: signed by somebody who is pinned, or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from cascade.ladder import Ladder, LadderPolicy
from cascade.records import TierInfo
from cascade.signing import SigningKey, TrustStore
from cloud.config import ClusterConfig, TierConfig
from cloud.errors import ConfigError
from cloud.ladders import load_ladders

POLICY = LadderPolicy(
    "mood",
    (TierInfo("tier1", "m", "cloud"), TierInfo("tier2", "m", "cloud")),
    "",
    Ladder(("tier1", "tier2"), "climb", (2.0,)),
    {},
    None,
)


class Shelf:
    """A folder with one signed ladder, and a configuration that names it."""

    def __init__(self, folder: Path) -> None:
        self.key, self.trust = SigningKey.generate(), TrustStore(folder / "trust")
        self.trust.pin("me", self.key.public)
        self.path = folder / "ladder.json"
        self.put(POLICY.to_bytes(), self.key)
        tiers = tuple(TierConfig(name=name, model="m") for name in ("tier1", "tier2"))
        self.config = ClusterConfig(tiers=tiers, ladders=(self.path,))

    def put(self, data: bytes, key: SigningKey) -> None:
        self.path.write_bytes(data)
        self.path.with_suffix(".sig").write_bytes(key.sign(data))

    def refusal(self) -> str:
        with pytest.raises(ConfigError) as refused:
            load_ladders(self.config, self.trust)
        return str(refused.value)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def test_a_signed_ladder_is_read(shelf: Shelf) -> None:
    assert load_ladders(shelf.config, shelf.trust) == (POLICY,)


def test_one_that_was_altered_is_refused(shelf: Shelf) -> None:
    shelf.path.write_bytes(POLICY.to_bytes().replace(b"2.0", b"0.1"))
    assert "differs from what me signed" in shelf.refusal()


def test_one_of_a_stranger_is_refused(shelf: Shelf) -> None:
    shelf.put(POLICY.to_bytes(), SigningKey.generate())
    assert "unknown publisher" in shelf.refusal()


def test_one_without_a_signature_is_refused(shelf: Shelf) -> None:
    shelf.path.with_suffix(".sig").unlink()
    assert "ladder.sig cannot be read" in shelf.refusal()


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"{}", "ladder.format: is missing"),
        (POLICY.to_bytes().replace(b"tier2", b"tier3"), "asks tier3; tiers: tier1, tier2"),
        (POLICY.to_bytes().replace(b'"model": "m"', b'"model": "n"'), "tuned with n as tier1"),
        (POLICY.to_bytes().replace(b"2.0", b"0.5"), "has no model for tier1"),
        (POLICY.to_bytes().replace(b'"mood"', b'""'), "is for no task"),
    ],
)
def test_one_that_cannot_be_followed_is_refused(shelf: Shelf, data: bytes, problem: str) -> None:
    shelf.put(data, shelf.key)
    assert problem in shelf.refusal()
