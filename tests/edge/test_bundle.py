"""A bundle is used only when it is exactly what a pinned publisher signed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cascade.errors import BundleError, InvalidInput, NotFound, Tampered, UnknownPublisher
from cascade.signing import SigningKey, TrustStore
from edge.bundle import (
    FILES,
    MANIFEST,
    SIGNATURE,
    AdapterSlot,
    Bundle,
    Manifest,
    describe_files,
    inspect,
    seal,
)


@pytest.fixture
def key():
    return SigningKey.generate()


@pytest.fixture
def trust(tmp_path, key):
    store = TrustStore(tmp_path / "trust")
    store.pin("me", key.public)
    return store


@pytest.fixture
def folder(tmp_path, key):
    folder = tmp_path / "bundle"
    folder.mkdir()
    for name in FILES:
        (folder / name).write_bytes(name.encode() * 3)
    manifest = Manifest(
        name="tiny",
        base_model="none",
        licence="Apache-2.0",
        commercial_use=True,
        architecture="llama",
        quantisation="lossless Q4_1+Q8_0",
        context_tokens=64,
        vocab_size=32,
        layers=1,
        kv_heads=1,
        head_dim=8,
        stop_token_ids=(2,),
        adapter_slots=(AdapterSlot("layers.0.o", 8, ("layers.0.o_proj",), (8,)),),
        files=describe_files(folder),
    )
    seal(folder, manifest, key)
    return folder


def test_an_untouched_bundle_opens(folder, trust):
    bundle = Bundle.open(folder, trust)
    assert bundle.publisher == "me"
    assert bundle.manifest == inspect(folder)


def test_a_manifest_without_a_graph_layout_is_of_a_fused_graph(folder):
    fields = json.loads((folder / MANIFEST).read_bytes())
    assert fields.pop("graph") == "fused"
    assert Manifest.from_bytes(json.dumps(fields).encode()).graph == "fused"


def test_a_graph_layout_of_another_sdk_is_named(folder):
    fields = json.loads((folder / MANIFEST).read_bytes()) | {"graph": "woven"}
    with pytest.raises(BundleError, match="graph is 'woven'; this SDK runs fused and exported"):
        Manifest.from_bytes(json.dumps(fields).encode())


@pytest.mark.parametrize("name", FILES)
def test_the_altered_file_is_named(folder, trust, name):
    (folder / name).write_bytes(b"x" * (folder / name).stat().st_size)
    with pytest.raises(Tampered, match=name) as error:
        Bundle.open(folder, trust)
    assert error.value.file == name


def test_a_missing_file_is_named(folder, trust):
    (folder / "decode.data").unlink()
    with pytest.raises(Tampered, match=r"decode\.data: is missing"):
        Bundle.open(folder, trust)


def test_an_altered_manifest_is_refused(folder, trust):
    text = (folder / MANIFEST).read_text().replace("Apache-2.0", "MIT")
    (folder / MANIFEST).write_text(text)
    with pytest.raises(Tampered, match=MANIFEST):
        Bundle.open(folder, trust)


def test_a_malformed_signature_is_refused(folder, trust):
    (folder / SIGNATURE).write_text("{}")
    with pytest.raises(Tampered, match="malformed"):
        Bundle.open(folder, trust)


def test_an_unknown_publisher_is_refused(folder, tmp_path):
    with pytest.raises(UnknownPublisher, match="unknown publisher"):
        Bundle.open(folder, TrustStore(tmp_path / "nobody"))


def test_a_folder_without_a_bundle_says_how_to_make_one(tmp_path, trust):
    with pytest.raises(NotFound, match="cascade bundle build"):
        Bundle.open(tmp_path, trust)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, "upgrade the SDK"),
        ({"layers": 0}, "layers"),
        ({"layers": True}, "layers is True, not a positive integer"),
        ({"name": 5}, "name must be a string"),
        ({"commercial_use": "no"}, "commercial_use must be true or false"),
        ({"stop_token_ids": ["2"]}, "stop_token_ids must be whole numbers"),
        ({"colour": "red"}, "colour"),
        ({"files": {"../x": {"bytes": 1, "sha256": "00"}}}, "no plain file name"),
        ({"files": {}}, r"files lacks decode\.onnx"),
    ],
)
def test_an_unusable_manifest_is_refused(folder, change, message):
    value = json.loads((folder / MANIFEST).read_text()) | change
    with pytest.raises(BundleError, match=message):
        Manifest.from_bytes(json.dumps(value).encode())


def test_the_base_digest_ignores_the_graph_but_not_the_weights(folder, key):
    before = inspect(folder)
    (folder / "decode.onnx").write_bytes(b"another graph over the same weights")
    seal(folder, _with_files(before, folder), key)
    assert inspect(folder).base_digest == before.base_digest
    (folder / "decode.data").write_bytes(b"other weights")
    seal(folder, _with_files(before, folder), key)
    assert inspect(folder).base_digest != before.base_digest


def test_a_publisher_name_cannot_be_taken_over(trust):
    with pytest.raises(InvalidInput, match="pinned to another key"):
        trust.pin("me", SigningKey.generate().public)


def test_a_signing_key_is_readable_by_its_owner_alone(tmp_path):
    path = tmp_path / "publisher.key"
    key = SigningKey.load_or_create(path)
    assert path.stat().st_mode & 0o077 == 0
    assert SigningKey.load_or_create(path).public == key.public


def test_two_processes_that_make_a_signing_key_at_once_have_the_same(tmp_path, monkeypatch):
    path = tmp_path / "publisher.key"
    key = SigningKey.load_or_create(path)
    monkeypatch.setattr(Path, "exists", lambda path: False)  # it looked before the other one wrote
    assert SigningKey.load_or_create(path).public == key.public


def _with_files(manifest, folder):
    fields = json.loads(manifest.to_bytes())
    fields["files"] = {
        name: {"bytes": entry.bytes, "sha256": entry.sha256}
        for name, entry in describe_files(folder).items()
    }
    return Manifest.from_bytes(json.dumps(fields).encode())
