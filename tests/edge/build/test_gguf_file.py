"""The GGUF reader agrees with the format's own writer, and refuses what it cannot use."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from cascade.errors import InvalidInput
from edge.build.gguf_file import read_gguf


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("a.u8", 200)
    writer.add_int64("an.i64", -(1 << 40))
    writer.add_float32("an.f32", 0.5)
    writer.add_bool("a.bool", True)
    writer.add_string("a.string", "Grüße 🙂")
    writer.add_array("some.strings", ["", "ä", "b c"])
    writer.add_array("some.integers", [3, -1, 2])
    writer.add_tensor("floats", np.arange(12, dtype=np.float32).reshape(3, 4))
    values = np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, 64)
    writer.add_tensor("blocks", gguf.quantize(values, Type.Q4_1), raw_dtype=Type.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_reads_metadata_of_every_kind(written):
    file = read_gguf(written)
    assert file.value("general.architecture", str) == "llama"
    assert file.value("a.u8", int) == 200
    assert file.value("an.i64", int) == -(1 << 40)
    assert file.value("an.f32", float) == 0.5
    assert file.value("a.bool", bool) is True
    assert file.value("a.string", str) == "Grüße 🙂"
    assert file.values("some.strings", str) == ["", "ä", "b c"]
    assert file.values("some.integers", int) == [3, -1, 2]


def test_reads_tensors_rows_first(written):
    file = read_gguf(written)
    floats, blocks = file.tensor("floats"), file.tensor("blocks")
    assert (floats.shape, blocks.shape) == ((3, 4), (2, 64))
    assert np.array_equal(floats.raw.view(np.float32), np.arange(12).reshape(3, 4))
    assert blocks.raw.shape == (2, 2 * 20)


@pytest.mark.parametrize("key", ["missing", "a.string"])
def test_a_missing_or_mistyped_value_is_named(written, key):
    with pytest.raises(InvalidInput, match=f"model.gguf has no int '{key}'"):
        read_gguf(written).value(key, int)


@pytest.mark.parametrize("key", ["a.string", "some.strings"])
def test_a_mistyped_array_is_named(written, key):
    with pytest.raises(InvalidInput, match=key):
        read_gguf(written).values(key, int)


def test_a_missing_tensor_is_named(written):
    with pytest.raises(InvalidInput, match="no tensor 'elsewhere'"):
        read_gguf(written).tensor("elsewhere")


def test_a_file_cut_short_anywhere_is_refused(written):
    whole = written.read_bytes()
    for length in range(0, len(whole) - 40, 7):
        written.write_bytes(whole[:length])
        with pytest.raises(InvalidInput, match=r"cut short|not a GGUF"):
            read_gguf(written)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"PK\3\4" + data[4:], "not a GGUF file"),
        (lambda data: data[:4] + b"\x09\0\0\0" + data[8:], "GGUF version 9"),
    ],
)
def test_other_formats_are_refused(written, change, message):
    written.write_bytes(change(written.read_bytes()))
    with pytest.raises(InvalidInput, match=message):
        read_gguf(written)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="no file"):
        read_gguf(tmp_path / "absent.gguf")


def test_a_tensor_type_without_lossless_form_is_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    raw = np.zeros((1, gguf.GGML_QUANT_SIZES[Type.Q2_K][1]), np.uint8)
    writer.add_tensor("odd", raw, raw_dtype=Type.Q2_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InvalidInput, match=r"'odd' has ggml type 10; supported: F32, .*Q6_K"):
        read_gguf(tmp_path / "model.gguf")
