"""A build is repeatable, signed, and whole or absent."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cascade.errors import CascadeError, InvalidInput
from cascade.signing import SigningKey, TrustStore
from edge.build import build_from_gguf
from edge.build.weight_file import WeightFile
from edge.bundle import FILES, MANIFEST, Bundle

from .tiny import CONTEXT, LAYERS, VOCABULARY, Tiny


@pytest.fixture
def tiny_gguf(tmp_path):
    return Tiny().write(tmp_path / "tiny.gguf")


def test_the_same_file_gives_the_same_bytes(smollm2_gguf, device_bundle, build, tmp_path):
    again = build(smollm2_gguf, tmp_path / "again")
    for name in FILES:
        assert (again / name).read_bytes() == (device_bundle / name).read_bytes()


def test_the_default_bundle_is_small(device_bundle):
    assert sum((device_bundle / name).stat().st_size for name in FILES) < 105e6


def test_a_device_that_pins_the_key_opens_it(tiny_gguf, tmp_path):
    key, trust = SigningKey.generate(), TrustStore(tmp_path / "trust")
    trust.pin("publisher", key.public)
    heard = []
    out = build_from_gguf(
        tiny_gguf,
        tmp_path / "out",
        name="tiny",
        base_model="none",
        licence="Apache-2.0",
        commercial_use=True,
        signing_key=key,
        progress=lambda text, share: heard.append((text, share)),
    )
    bundle = Bundle.open(out, trust)
    assert bundle.publisher == "publisher"
    manifest = bundle.manifest
    assert (manifest.layers, manifest.vocab_size) == (LAYERS, VOCABULARY)
    assert (manifest.context_tokens, manifest.stop_token_ids) == (CONTEXT, (0, 2))
    assert (manifest.quantisation, manifest.graph) == ("lossless Q4_1", "fused")
    shares = [share for _, share in heard]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)


class Interrupt:
    """A user's Ctrl-C at the ``count``-th report of progress."""

    def __init__(self, count):
        self.left = count

    def __call__(self, text, share):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("count", [2, 3, 4])
def test_an_interrupted_build_leaves_nothing(tiny_gguf, build, tmp_path, count):
    with pytest.raises(KeyboardInterrupt):
        build(tiny_gguf, tmp_path / "out", progress=Interrupt(count))
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny.gguf"]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_an_interrupted_replacement_leaves_the_old_one(tiny_gguf, build, tmp_path, count):
    out = build(tiny_gguf, tmp_path / "out")
    before = {name: (out / name).read_bytes() for name in (*FILES, MANIFEST)}
    with pytest.raises(KeyboardInterrupt):
        build(tiny_gguf, out, overwrite=True, progress=Interrupt(count))
    assert {name: (out / name).read_bytes() for name in (*FILES, MANIFEST)} == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "tiny.gguf"]


def full_disk(*_arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("step", [(WeightFile, "add"), (Path, "write_bytes"), (os, "fsync")])
def test_a_full_disk_is_one_line_and_leaves_nothing(tiny_gguf, build, tmp_path, monkeypatch, step):
    monkeypatch.setattr(*step, full_disk)
    with pytest.raises(CascadeError, match=r"out: the disk is full; nothing was left behind"):
        build(tiny_gguf, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny.gguf"]
    monkeypatch.undo()
    build(tiny_gguf, tmp_path / "out")


def test_a_template_that_is_none_is_refused_in_one_line(tiny_gguf, build, tmp_path):
    with pytest.raises(InvalidInput, match=r"^chat_template: is no Jinja template \(.+\)$"):
        build(tiny_gguf, tmp_path / "out", chat_template="{% for %}")
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny.gguf"]


def test_a_full_disk_leaves_the_old_one(tiny_gguf, build, tmp_path, monkeypatch):
    out = build(tiny_gguf, tmp_path / "out")
    before = (out / MANIFEST).read_bytes()
    monkeypatch.setattr(WeightFile, "add", full_disk)
    with pytest.raises(CascadeError, match="the disk is full"):
        build(tiny_gguf, out, overwrite=True)
    assert (out / MANIFEST).read_bytes() == before


def test_other_trouble_with_the_disk_keeps_its_name(tiny_gguf, build, tmp_path, monkeypatch):
    def broken(*_arguments):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(WeightFile, "add", broken)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        build(tiny_gguf, tmp_path / "out")


def test_a_bundle_is_replaced_only_when_asked(tiny_gguf, build, tmp_path):
    out = build(tiny_gguf, tmp_path / "out")
    (out / "left-over").touch()
    with pytest.raises(InvalidInput, match="exists"):
        build(tiny_gguf, out)
    build(tiny_gguf, out, overwrite=True)
    assert not (out / "left-over").exists()


def test_a_folder_that_is_no_bundle_is_never_replaced(tiny_gguf, build, tmp_path):
    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "letter").write_text("dear")
    with pytest.raises(InvalidInput, match="is not a bundle"):
        build(tiny_gguf, precious, overwrite=True)
    assert (precious / "letter").read_text() == "dear"
