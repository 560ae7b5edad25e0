"""A device that is set up from a cluster's registry, over gRPC; and clusters that lie or break."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import numpy as np
import pytest

from cascade import home, testing
from cascade.cli import main
from cascade.errors import BundleError, CascadeError, RemoteError, Tampered, UnknownPublisher
from cascade.release import ReleaseManifest
from cascade.signing import SigningKey, TrustStore
from cascade.wire import ArtifactQuery, ClientProfile, FilePiece, Offer, SignedBytes
from cloud.errors import Overloaded, ProviderUnavailable
from cloud.registry import Delivery, Needs, Registry
from edge import Delivered, Device, Final, set_up
from edge.adapter import LoraPair, write_adapter
from edge.delivered import alone

ANY = Needs()


class Shop:
    """A registry with its publisher, and what a device at the other end sees of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tiny = testing.tiny_bundle(folder / "made")
        self.key = self.tiny.key
        self.registry = Registry(str(folder / "registry"))
        self.source = Source(Delivery(self.registry))

    def publish(self, path: Path, percent: int | None = None) -> str:
        published = self.registry.publish(path, self.tiny.trust)
        channel = self.registry.channel("stable")
        known = {d: self.registry.artifact(d).artifact for d in channel.named}
        known[published.artifact.digest] = published.artifact
        changed, _ = channel.with_artifact(published.artifact, known, needs=ANY, percent=percent)
        self.registry.save(changed, self.key)
        return published.artifact.digest

    def adapter(self, version: int) -> Path:
        """An adapter that changes answers, signed."""
        manifest = self.tiny.bundle.manifest
        slot = next(slot for slot in manifest.adapter_slots if len(slot.modules) == 1)
        rng = np.random.default_rng(version)
        pair = LoraPair(
            rng.normal(size=(slot.columns, 4)).astype(np.float32),
            rng.normal(size=(4, slot.widths[0])).astype(np.float32),
        )
        return write_adapter(
            self.folder / f"adapter-{version}",
            {slot.modules[0]: pair},
            name="lesson",
            base_digest=manifest.base_digest,
            signing_key=self.key,
            version=version,
        )

    def policy(self, adapter_digest: str = "") -> Path:
        policy = self.tiny.install_policy("mood", ("good", "bad"), threshold=0.0)
        policy = dataclasses.replace(policy, adapter_digest=adapter_digest)
        path = self.folder / "policy.json"
        path.write_bytes(policy.to_bytes())
        path.with_suffix(".sig").write_bytes(self.key.sign(policy.to_bytes()))
        return path


class Source:
    """A delivery whose words and pieces a test may change on their way."""

    def __init__(self, inner: Delivery) -> None:
        self._inner = inner
        self.offer: Callable[[Offer], Offer] = lambda offer: offer
        self.piece: Callable[[FilePiece], FilePiece] = lambda piece: piece
        self.asked: list[ArtifactQuery] = []
        self.sent = 0

    async def resolve(self, query: ArtifactQuery) -> Offer | None:
        self.asked.append(query)
        found = await self._inner.resolve(query)
        return found and self.offer(found)

    async def download(self, sha256: str, offset: int) -> AsyncGenerator[FilePiece]:
        async for piece in self._inner.download(sha256, offset):
            changed = self.piece(piece)
            self.sent += len(changed.data)
            yield changed


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path / "shop")


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shop: Shop) -> Path:
    """An empty ``CASCADE_HOME`` that pins the publisher."""
    monkeypatch.setenv("CASCADE_HOME", str(tmp_path / "device"))
    TrustStore(home.trust_dir()).pin("maker", shop.key.public)
    return tmp_path / "device"


def install(shop: Shop, **settings: object) -> Delivered:
    with testing.cluster(artifacts=shop.source) as cluster:
        return asyncio.run(set_up(cluster.profile, **settings))


def answer() -> tuple[str, bool, str]:
    with Device.open() as opened:
        told = opened.choose("Nice.", ["good", "bad"], task="mood")
        *_, last = opened.ask("Tell me more.", max_tokens=6)
        assert isinstance(last, Final)
        return told.text, told.verified, last.answer.text


def test_a_device_is_set_up_from_an_address_a_key_and_a_publisher(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    shop.publish(shop.tiny.path)
    shop.publish(shop.policy())
    monkeypatch.setenv("CASCADE_HOME", str(tmp_path / "new"))
    with testing.cluster(artifacts=shop.source) as cluster:
        profile = cluster.profile
        (tmp_path / "ca.pem").write_bytes(profile.ca_pem or b"")
        monkeypatch.setenv("CASCADE_API_KEY", profile.api_key)
        words = ["setup", "--cloud", profile.address, "--ca", str(tmp_path / "ca.pem")]
        publisher = ["--publisher", shop.key.public.raw.hex()]
        assert main([*words, *publisher, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert main(words) == 0  # again: nothing is new
    assert (told["bundle"], told["revision"], len(told["artifacts"])) == ("tiny", 2, 2)
    assert "runs tiny and 1 policies · channel stable, revision 2" in capsys.readouterr().out
    assert ClientProfile.load().address == profile.address
    text, verified, _ = answer()
    assert text in ("good", "bad")
    assert verified


def test_an_update_fetches_what_is_new_and_nothing_else(shop: Shop, device: Path) -> None:
    shop.publish(shop.tiny.path)
    install(shop)
    first, before = shop.source.sent, answer()
    assert first == sum(entry.bytes for entry in shop.tiny.bundle.manifest.files.values())
    digest = shop.publish(shop.adapter(1))
    delivered = install(shop)
    assert delivered.adapter == digest
    assert 0 < shop.source.sent - first < 100_000
    assert answer()[2] != before[2]  # the adapter is at work
    sent = shop.source.sent
    assert install(shop) == delivered
    assert shop.source.sent == sent


@pytest.mark.parametrize("damaged", ["decode.data", "manifest.sig", "adapter.safetensors"])
def test_what_was_damaged_here_is_fetched_again(shop: Shop, device: Path, damaged: str) -> None:
    shop.publish(shop.tiny.path)
    adapter = shop.publish(shop.adapter(1))
    delivered = install(shop)
    before = answer()
    folder = home.bundles_dir() / "tiny"
    path = (home.adapters_dir() / adapter if "adapter" in damaged else folder) / damaged
    data = path.read_bytes()
    path.write_bytes(data[:-4] + bytes(4))
    assert path.read_bytes() != data
    sent, files = shop.source.sent, shop.tiny.bundle.manifest.files
    assert install(shop) == delivered
    assert path.read_bytes() == data
    assert answer() == before
    # The others are at hand.
    lost = files[damaged].bytes if damaged in files else len(data) if path.suffix != ".sig" else 0
    assert shop.source.sent - sent == lost


def test_a_policy_for_an_adapter_holds_with_it_alone(shop: Shop, device: Path) -> None:
    shop.publish(shop.tiny.path)
    shop.publish(shop.policy())
    install(shop)
    assert answer()[1]
    digest = shop.publish(shop.adapter(1))
    install(shop)
    assert not answer()[1]  # certified without the adapter
    shop.publish(shop.policy(digest))
    install(shop)
    assert answer()[1]


def test_a_withdrawn_release_is_gone_back_from(shop: Shop, device: Path) -> None:
    shop.publish(shop.tiny.path)
    shop.publish(shop.adapter(1))
    install(shop)
    shop.registry.save(shop.registry.channel("stable").rolled_back(ANY), shop.key)
    back = install(shop)
    assert (back.adapter, back.revision) == ("", 3)


def test_a_download_that_breaks_is_resumed_where_it_ended(shop: Shop, device: Path) -> None:
    shop.publish(shop.tiny.path)
    total = sum(entry.bytes for entry in shop.tiny.bundle.manifest.files.values())
    offsets: list[int] = []
    broken = 0

    def piece(sent: FilePiece) -> FilePiece:
        nonlocal broken
        offsets.append(sent.offset)
        if sent.total_bytes > 100_000 and broken < 2 and len(sent.data) > 1:
            broken += 1
            if broken == 1:
                raise ProviderUnavailable
            raise Overloaded("busy", 0.01)
        return sent

    shop.source.piece = piece
    install(shop)
    assert broken == 2
    assert shop.source.sent == total


def test_what_an_interrupted_set_up_has_fetched_is_not_fetched_again(
    shop: Shop, device: Path
) -> None:
    shop.publish(shop.tiny.path)
    seen: list[str] = []

    def leave(name: str, done: int, size: int) -> None:
        seen.append(name)
        if len(set(seen)) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        install(shop, on_bytes=leave)
    assert Delivered.load().bundle == ""
    again: list[str] = []
    install(shop, on_bytes=lambda name, done, size: again.append(name))
    assert not set(seen[:-1]) & set(again)
    assert answer()[0] in ("good", "bad")


def test_a_device_is_opened_from_one_reading_of_what_was_delivered(
    shop: Shop, device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.publish(shop.tiny.path)
    install(shop)
    read = Delivered.load
    readings: list[Delivered] = []

    def load() -> Delivered:
        readings.append(read())
        return readings[-1]

    monkeypatch.setattr(Delivered, "load", load)
    Device.open().close()
    assert [each.bundle for each in readings] == ["tiny"]


def test_a_file_that_is_not_the_signed_one_is_never_used(shop: Shop, device: Path) -> None:
    shop.publish(shop.tiny.path)
    shop.source.piece = lambda piece: dataclasses.replace(
        piece, data=bytes(len(piece.data) - 1) + b"x"
    )
    with pytest.raises(Tampered, match="is not the file that its publisher signed"):
        install(shop)
    assert not (home.bundles_dir() / "tiny").exists()
    assert Delivered.load().revision == 0
    shop.source.piece = lambda piece: piece
    assert install(shop).bundle == "tiny"


def signed(shop: Shop, manifest: ReleaseManifest) -> SignedBytes:
    data = manifest.to_bytes()
    return SignedBytes(data, bytes.fromhex(json.loads(shop.key.sign(data))["signature"]))


def test_an_older_release_is_refused_and_the_newer_one_stays(shop: Shop, device: Path) -> None:
    shop.publish(shop.tiny.path)
    old = (shop.folder / "registry" / "channels" / "stable.json").read_bytes()
    shop.publish(shop.adapter(1))
    newer = install(shop)
    (shop.folder / "registry" / "channels" / "stable.json").write_bytes(old)
    with pytest.raises(Tampered, match="has revision 1, and this device has seen 2"):
        install(shop)
    assert Delivered.load() == newer


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"channel": "beta"}, "is for the channel 'beta', not 'stable'"),
        ({"expires": 1_000_000}, r"expired at 1970-01-12 13:46 UTC, and here it is 20\d\d-"),
        ({"artifacts": ("0" * 64,)}, "left out the artifact 000000000000"),
    ],
)
def test_a_release_that_is_signed_but_wrong_is_refused(
    shop: Shop, device: Path, changes: dict, problem: str
) -> None:
    shop.publish(shop.tiny.path)

    def lie(offer: Offer) -> Offer:
        release = ReleaseManifest.from_bytes(offer.release.data)
        return Offer(signed(shop, dataclasses.replace(release, **changes)), offer.artifacts)

    shop.source.offer = lie
    with pytest.raises(CascadeError, match=problem):
        install(shop)
    assert Delivered.load().revision == 0


def test_what_no_pinned_key_has_signed_is_refused(shop: Shop, device: Path) -> None:
    shop.publish(shop.tiny.path)
    stranger = SigningKey.generate()

    def forge(offer: Offer) -> Offer:
        raw = bytes.fromhex(json.loads(stranger.sign(offer.release.data))["signature"])
        return Offer(SignedBytes(offer.release.data, raw), offer.artifacts)

    def swap(offer: Offer) -> Offer:
        item = offer.artifacts[0]
        data = item.manifest.data.replace(b'"commercial_use": true', b'"commercial_use": null')
        return Offer(
            signed(shop, ReleaseManifest("stable", 1, (_digest(data),))),
            (dataclasses.replace(item, manifest=SignedBytes(data, item.manifest.signature)),),
        )

    for lie in (forge, swap):
        shop.source.offer = lie
        with pytest.raises(UnknownPublisher, match="by none of the publishers"):
            install(shop)
    assert Delivered.load().revision == 0


def _digest(data: bytes) -> str:
    from cascade.files import sha256_bytes

    return sha256_bytes(data)


def test_a_channel_without_anything_for_this_device_says_so(shop: Shop, device: Path) -> None:
    with pytest.raises(RemoteError, match="channel stable has nothing for this device") as found:
        install(shop)
    assert found.value.status == "NOT_FOUND"
    with pytest.raises(RemoteError) as refused, testing.cluster(artifacts=shop.source) as cluster:
        asyncio.run(set_up(dataclasses.replace(cluster.profile, api_key="wrong")))
    assert refused.value.status == "UNAUTHENTICATED"


def test_a_device_keeps_its_name_and_tells_what_it_is(shop: Shop, device: Path) -> None:
    shop.publish(shop.tiny.path)
    install(shop)
    install(shop)
    first, second = shop.source.asked
    assert first.device_id == second.device_id
    assert len(first.device_id) == 32
    assert first.memory_bytes > 10**8
    assert first.architecture


def test_two_set_ups_at_once_are_one_too_many(shop: Shop, device: Path) -> None:
    shop.publish(shop.tiny.path)
    with alone(), pytest.raises(BundleError, match="by another process; wait for it"):
        install(shop)


def test_a_cluster_without_a_registry_says_so(device: Path) -> None:
    with testing.cluster() as cluster, pytest.raises(RemoteError) as refused:
        asyncio.run(set_up(cluster.profile))
    assert refused.value.status == "UNIMPLEMENTED"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--cloud", "127.0.0.1:1"], "api-key-file: is missing"),
        (["--publisher", "xyz"], "publisher: must be 64 hex digits"),
        (["--profile", "/nowhere/client.json"], "no client profile"),
    ],
)
def test_a_set_up_that_lacks_something_says_what(
    words: list[str], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("CASCADE_HOME", str(tmp_path))
    monkeypatch.delenv("CASCADE_API_KEY", raising=False)
    if words[0] == "--publisher":
        ClientProfile("127.0.0.1:1", None, "k").save(tmp_path / "cluster" / "client.json")
    assert main(["setup", *words]) != 0
    assert problem in capsys.readouterr().err
