"""Artifacts and channels at a place: published whole, signed, collected with care."""

from __future__ import annotations

import os
import time
from pathlib import Path

import fsspec
import pytest

from cascade.errors import CascadeError, ClusterError, InvalidInput, NotFound, Tampered
from cascade.files import sha256_bytes
from cascade.release import ReleaseManifest
from cascade.signing import SigningKey, TrustStore
from cascade.testing import TinyBundle, tiny_bundle
from cloud.registry import Needs, Registry

ANY = Needs()


@pytest.fixture(params=["folder", "memory"])
def registry(request, tmp_path: Path) -> Registry:
    if request.param == "folder":
        return Registry(str(tmp_path / "registry"))
    fsspec.filesystem("memory").store.clear()
    return Registry("memory://registry")


def serve(registry: Registry, tiny: TinyBundle, key: SigningKey) -> str:
    published = registry.publish(tiny.path, tiny.trust)
    known = {published.artifact.digest: published.artifact}
    channel, _ = registry.channel("stable").with_artifact(
        published.artifact, known, needs=ANY, percent=None
    )
    registry.save(channel, key)
    return published.artifact.digest


def test_a_bundle_comes_out_as_it_went_in(registry: Registry, tiny: TinyBundle) -> None:
    published = registry.publish(tiny.path, tiny.trust)
    assert registry.artifact(published.artifact.digest) == published
    assert published.manifest == (tiny.path / "manifest.json").read_bytes()
    for name, (sha256, size) in published.files.items():
        data = b"".join(registry.chunks(sha256, 0))
        assert data == (tiny.path / name).read_bytes()
        assert (registry.size(sha256), sha256_bytes(data)) == (size, sha256)
        assert b"".join(registry.chunks(sha256, size // 2)) == data[size // 2 :]


def test_publishing_twice_copies_nothing(registry: Registry, tiny: TinyBundle) -> None:
    copied: list[int] = []
    registry.publish(tiny.path, tiny.trust, copied.append)
    assert sum(copied) == sum(size for _, size in next(registry.artifacts()).files.values())
    copied.clear()
    registry.publish(tiny.path, tiny.trust, copied.append)
    assert copied == []


def test_a_channel_is_signed_with_its_revision(
    registry: Registry, tiny: TinyBundle, tmp_path
) -> None:
    key = SigningKey.generate()
    digest = serve(registry, tiny, key)
    signed = registry.release("stable", (digest,))
    trust = TrustStore(tmp_path / "trust")
    trust.pin("me", key.public)
    assert trust.verify(signed.manifest, signed.signature, what="release") == "me"
    assert ReleaseManifest.from_bytes(signed.manifest) == ReleaseManifest("stable", 1, (digest,))
    with pytest.raises(NotFound, match="does not serve this release"):
        registry.release("stable", ("x",))


def test_a_channel_that_changed_meanwhile_is_not_overwritten(
    registry: Registry, tiny: TinyBundle
) -> None:
    key = SigningKey.generate()
    serve(registry, tiny, key)
    stale = registry.channel("stable")
    published = next(registry.artifacts()).artifact
    known = {published.digest: published}
    one, _ = stale.with_artifact(published, known, needs=Needs(("a",)), percent=None)
    two, _ = stale.with_artifact(published, known, needs=Needs(("b",)), percent=None)
    registry.save(one, key)
    with pytest.raises(ClusterError, match="changed by somebody else"):
        registry.save(two, key)
    assert registry.channel("stable") == one


def test_collecting_never_takes_what_a_channel_names(
    registry: Registry, tiny: TinyBundle, tmp_path: Path
) -> None:
    key = SigningKey.generate()
    served = serve(registry, tiny, key)
    other = tiny_bundle(tmp_path / "other", seed=7)
    unused = registry.publish(other.path, other.trust).artifact.digest
    assert registry.collect() == []  # all of it is young
    would = registry.collect(older_than_s=-10, dry_run=True)
    gone = registry.collect(older_than_s=-10)
    assert gone == would
    assert f"artifacts/{unused}.json" in gone
    with pytest.raises(NotFound):
        registry.artifact(unused)
    for sha256, size in registry.artifact(served).files.values():
        assert registry.size(sha256) == size


def test_what_may_be_gone_back_to_is_kept(registry: Registry, tiny: TinyBundle, tmp_path) -> None:
    key = SigningKey.generate()
    first = serve(registry, tiny, key)
    other = tiny_bundle(tmp_path / "other", seed=7)
    published = registry.publish(other.path, other.trust).artifact
    known = {published.digest: published, first: registry.artifact(first).artifact}
    channel, _ = registry.channel("stable").with_artifact(published, known, needs=ANY, percent=None)
    registry.save(channel, key)
    registry.collect(older_than_s=-10)
    assert registry.artifact(first)
    registry.save(registry.channel("stable").rolled_back(ANY), key)
    assert registry.channel("stable").variants[0].stable == (first,)


def test_an_altered_bundle_is_not_published(registry: Registry, tmp_path: Path) -> None:
    tiny = tiny_bundle(tmp_path / "mine")
    file = tiny.path / "decode.data"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(Tampered, match=r"decode\.data"):
        registry.publish(tiny.path, tiny.trust)
    assert list(registry.artifacts()) == []


def test_what_is_no_artifact_is_named(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="holds no bundle, adapter or policy"):
        registry.publish(tmp_path, TrustStore(tmp_path))


def test_a_record_that_was_altered_in_the_registry_is_refused(
    tmp_path: Path, tiny: TinyBundle
) -> None:
    registry = Registry(str(tmp_path / "r"))
    digest = registry.publish(tiny.path, tiny.trust).artifact.digest
    path = tmp_path / "r" / "artifacts" / f"{digest}.json"
    path.write_text(path.read_text().replace(digest, "0" * 64))
    with pytest.raises(InvalidInput, match="is not the one of its digest"):
        registry.artifact(digest)


def test_a_registry_that_cannot_be_written_says_so(tmp_path: Path, tiny: TinyBundle) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ClusterError, match="cannot be written"):
        Registry(str(tmp_path / "file" / "r")).publish(tiny.path, tiny.trust)
    with pytest.raises(CascadeError, match="registry: nope://x cannot be reached"):
        Registry("nope://x")


def test_files_that_were_begun_and_never_finished_are_not_seen(
    tmp_path: Path, tiny: TinyBundle
) -> None:
    registry = Registry(str(tmp_path / "r"))
    registry.publish(tiny.path, tiny.trust)
    aside = tmp_path / "r" / "artifacts" / ".half.1234"
    aside.write_bytes(b"{")
    os.utime(aside, (time.time() - 10**6,) * 2)
    assert len(list(registry.artifacts())) == 1
