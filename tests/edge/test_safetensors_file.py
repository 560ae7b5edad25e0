"""The safetensors reader agrees with the format's own writer, and refuses what it cannot use."""

from __future__ import annotations

import json
import struct

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors.torch import save_file

from cascade.errors import InvalidInput
from edge.safetensors_file import INDEX, WHOLE, read_safetensors

TENSORS = {
    "single": torch.arange(12, dtype=torch.float32).reshape(3, 4) / 7,
    "half": torch.arange(6, dtype=torch.float16).reshape(2, 3) / 7,
    "brain": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3) / 7,
    "vector": torch.tensor([1.5, -2.5]),
    "empty": torch.zeros(0, 4),
}


@pytest.fixture
def folder(tmp_path):
    save_file(TENSORS, tmp_path / WHOLE, metadata={"format": "pt"})
    return tmp_path


def test_reads_every_kind_of_float(folder):
    found = read_safetensors(folder)
    assert set(found) == set(TENSORS)
    for name, tensor in TENSORS.items():
        values = found[name].values()
        assert values.shape == tuple(tensor.shape)
        assert np.array_equal(values.astype(np.float32), tensor.float().numpy())


@given(arrays(np.uint16, array_shapes(max_dims=2), elements=st.integers(0, 2**16 - 1)))
def test_any_bfloat16_is_what_torch_says(tmp_path_factory, bits):
    folder = tmp_path_factory.mktemp("bf16")
    tensor = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
    save_file({"x": tensor}, folder / WHOLE)
    found = read_safetensors(folder)["x"].values()
    assert np.array_equal(found.view(np.uint32), tensor.float().numpy().view(np.uint32))


def test_reads_shards(tmp_path):
    places = {name: f"part-{index % 2}.safetensors" for index, name in enumerate(TENSORS)}
    for place in set(places.values()):
        save_file(
            {name: TENSORS[name] for name in places if places[name] == place}, tmp_path / place
        )
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": places}))
    assert set(read_safetensors(tmp_path)) == set(TENSORS)
    (tmp_path / "part-1.safetensors").unlink()
    with pytest.raises(InvalidInput, match=r"lacks the shard part-1.safetensors"):
        read_safetensors(tmp_path)


@pytest.mark.parametrize(
    "index",
    [
        "[]",
        "{",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": ["b"]}}',
    ],
)
def test_a_damaged_index_is_refused(tmp_path, index):
    (tmp_path / INDEX).write_text(index)
    with pytest.raises(InvalidInput, match=rf"{INDEX} in .* is damaged"):
        read_safetensors(tmp_path)


def test_an_index_names_no_file_elsewhere(folder):
    inner = folder / "inner"
    inner.mkdir()
    (inner / INDEX).write_text(json.dumps({"weight_map": {"single": f"../{WHOLE}"}}))
    with pytest.raises(InvalidInput, match="lacks the shard"):
        read_safetensors(inner)


def test_a_file_cut_short_anywhere_is_refused(folder):
    whole = (folder / WHOLE).read_bytes()
    for length in range(len(whole)):
        (folder / WHOLE).write_bytes(whole[:length])
        with pytest.raises(InvalidInput, match="cut short or damaged"):
            read_safetensors(folder)


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"\xff\xfe",
        b"[]",
        b'{"x": 1}',
        json.dumps({"x": ENTRY | {"shape": [3]}}).encode(),
        json.dumps({"x": ENTRY | {"shape": [-1, -2]}}).encode(),
        json.dumps({"x": ENTRY | {"shape": 2}}).encode(),
        json.dumps({"x": ENTRY | {"data_offsets": [8, 0]}}).encode(),
        json.dumps({"x": ENTRY | {"data_offsets": [-8, 0]}}).encode(),
        json.dumps({"x": ENTRY | {"data_offsets": [0, 99]}}).encode(),
        json.dumps({"x": {"dtype": "F32"}}).encode(),
    ],
)
def test_a_damaged_header_is_refused(tmp_path, header):
    (tmp_path / WHOLE).write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(InvalidInput, match="cut short or damaged"):
        read_safetensors(tmp_path)


def test_another_type_is_named_when_it_is_needed(tmp_path):
    save_file({"codes": torch.zeros(2, 2, dtype=torch.float8_e4m3fn)}, tmp_path / WHOLE)
    with pytest.raises(InvalidInput, match=r"'codes' is F8_E4M3; supported: F32, F16, BF16"):
        read_safetensors(tmp_path)["codes"].values()


def test_a_folder_of_pickles_says_how_to_get_on(tmp_path):
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(InvalidInput, match="safe_serialization=True"):
        read_safetensors(tmp_path)
