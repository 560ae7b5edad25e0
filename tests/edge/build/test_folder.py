"""A bundle from a Hugging Face folder computes what transformers computes from the same folder."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from cascade.errors import InvalidInput
from edge.build.folder_config import read_model
from edge.bundle import FILES, inspect

from .folders import CONTEXT, END, IDS, change_json, load, logits, round_weights, save_model
from .running import Graph
from .tiny import VOCABULARY

LLAMA_31 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
VARIANTS = {
    "Llama": ("llama", {"num_key_value_heads": 2}),
    "Llama, one matrix for embedding and head": ("llama", {"tie_word_embeddings": True}),
    "Llama with biases everywhere": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "Llama with heads of their own size": ("llama", {"head_dim": 32, "num_key_value_heads": 1}),
    "Llama 3.1's rotary scaling": ("llama", {"rope_scaling": LLAMA_31, "rope_theta": 500.0}),
    "linear rotary scaling": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "Qwen2": ("qwen2", {"num_key_value_heads": 2, "rope_theta": 1e6, "rms_norm_eps": 1e-3}),
    "Qwen2, tied": ("qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 2}),
}
STORED = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.fixture(params=VARIANTS, ids=str)
def variant(request, tmp_path):
    family, config = VARIANTS[request.param]
    return save_model(tmp_path / "model", family, **config)


def test_fp32_equals_torch(variant, build_folder, tmp_path):
    bundle = build_folder(tmp_path / "model", tmp_path / "out", quantise="fp32")
    expected = logits(variant, IDS)
    assert expected.std() > 0.3  # the comparison below means something
    graph = Graph(bundle, CONTEXT)
    assert np.abs(graph.extend(IDS) - expected).max() < 1e-4
    assert np.abs(graph.extend_in([IDS[:7], IDS[7:8], IDS[8:]]) - expected).max() < 1e-4


@pytest.mark.parametrize(("quantisation", "bits"), [("int8", 8), ("int4", 4)])
def test_blocks_equal_torch_on_the_rounded_weights(
    variant, build_folder, tmp_path, quantisation, bits
):
    bundle = build_folder(
        tmp_path / "model", tmp_path / "out", quantise=quantisation, accuracy_level=0
    )
    before = logits(variant, IDS)
    round_weights(variant, bits)
    expected = logits(variant, IDS)
    assert np.abs(expected - before).max() > 1e-3  # rounding is not what is compared below
    assert np.abs(Graph(bundle, CONTEXT).extend(IDS) - expected).max() < 1e-4


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("shard_size", ["1GB", "40KB"])
def test_half_precision_and_shards_lose_nothing(build_folder, tmp_path, dtype, shard_size):
    folder = tmp_path / "model"
    model = save_model(folder, "llama", dtype=STORED[dtype], shard_size=shard_size)
    assert len(list(folder.glob("*.safetensors"))) == 1 or shard_size == "40KB"
    bundle = build_folder(folder, tmp_path / "out", quantise="fp32")
    assert np.abs(Graph(bundle, CONTEXT).extend(IDS) - logits(model, IDS)).max() < 1e-4


@pytest.fixture(scope="module")
def saved_llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_model(folder, "llama")
    return folder


@pytest.fixture
def llama(saved_llama, tmp_path):
    """A folder to build from or to spoil."""
    return shutil.copytree(saved_llama, tmp_path / "model")


def test_the_default_is_int8_for_devices(llama, build_folder, tmp_path):
    model = load(llama)
    bundle = build_folder(tmp_path / "model", tmp_path / "out")
    manifest = inspect(bundle)
    assert (manifest.quantisation, manifest.graph) == ("int8 in blocks of 32", "fused")
    assert (manifest.vocab_size, manifest.context_tokens) == (VOCABULARY, CONTEXT)
    assert manifest.stop_token_ids == (END,)
    expected = logits(model, IDS)
    found = Graph(bundle, CONTEXT).extend(IDS)
    assert np.abs(found - expected).mean() < 0.03 * expected.std()


def test_the_same_folder_gives_the_same_bytes(build_folder, tmp_path):
    save_model(tmp_path / "model", "qwen2", num_key_value_heads=2)
    first, second = (build_folder(tmp_path / "model", tmp_path / name) for name in "ab")
    for name in FILES:
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_a_tied_head_is_stored_once_even_if_the_file_repeats_it(build_folder, tmp_path):
    sizes = []
    for tied in (True, False):
        save_model(tmp_path / f"{tied}", "llama", tie_word_embeddings=tied)
        bundle = build_folder(tmp_path / f"{tied}", tmp_path / f"out-{tied}")
        sizes.append((bundle / "decode.data").stat().st_size)
    assert sizes[1] - sizes[0] >= VOCABULARY * 64
    change_json(tmp_path / "False" / "config.json", tie_word_embeddings=True)
    bundle = build_folder(tmp_path / "False", tmp_path / "again")
    assert (bundle / "decode.data").stat().st_size == sizes[0]


def test_a_shorter_context_is_kept_to(llama, build_folder, tmp_path):
    bundle = build_folder(llama, tmp_path / "out", context=32)
    assert inspect(bundle).context_tokens == 32
    for wrong in (0, CONTEXT + 1):
        with pytest.raises(InvalidInput, match=rf"context: {wrong} is not between 1 and .* 64"):
            build_folder(llama, tmp_path / "more", context=wrong)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "gpt_neox"}, r"'gpt_neox' model, not one of: llama, qwen2; export it"),
        ({"model_type": None}, "names no model_type"),
        ({"hidden_act": "gelu"}, "activation 'gelu', not silu; export it"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "by 'yarn' .*; export it"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "by 'dynamic' .*; export it"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor: is None, not a positive number"),
        ({"rope_scaling": "linear"}, "rope_scaling: is not a JSON object"),
        ({"partial_rotary_factor": 0.5}, "a part of each head only; export it"),
        ({"use_sliding_window": True}, "sliding-window attention; export it"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding-window"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised already"),
        ({"num_attention_heads": "4"}, "num_attention_heads: is '4', not a positive integer"),
        ({"num_key_value_heads": 3}, "4 attention heads cannot share 3"),
        ({"hidden_size": None}, "hidden_size: is None"),
        ({"num_hidden_layers": 3}, r"no tensor 'model.layers.2.input_layernorm.weight'"),
        ({"intermediate_size": 32}, r"'model.layers.0.mlp.gate_proj.weight' is \(96, 64\), not"),
        ({"vocab_size": 100}, "tokenizer.json: has the id 259; model knows 100 ids"),
        ({"eos_token_id": VOCABULARY}, "has the id 260; model knows 260 ids"),
    ],
)
def test_a_configuration_that_is_not_supported_is_named(
    llama, build_folder, tmp_path, fields, message
):
    (llama / "generation_config.json").unlink()
    change_json(llama / "config.json", **fields)
    with pytest.raises(InvalidInput, match=message):
        build_folder(llama, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(llama, build_folder, tmp_path, name):
    (llama / name).unlink()
    with pytest.raises(InvalidInput, match=name):
        build_folder(llama, tmp_path / "out")


def test_weights_that_are_no_numbers_are_refused(llama, build_folder, tmp_path):
    model = load(llama)
    model.model.layers[1].mlp.up_proj.weight.data[3, 5] = torch.nan
    model.save_pretrained(llama)
    with pytest.raises(InvalidInput, match=r"layers.1.mlp.up_proj.weight' is not all finite"):
        build_folder(llama, tmp_path / "out")


def test_rows_that_are_no_whole_blocks_are_refused(build_folder, tmp_path):
    save_model(tmp_path / "model", "llama", intermediate_size=72)
    with pytest.raises(InvalidInput, match=r"72 columns of '.*down_proj.weight' .* fp32"):
        build_folder(tmp_path / "model", tmp_path / "out")
    build_folder(tmp_path / "model", tmp_path / "out", quantise="fp32")


def test_lossless_is_not_for_folders(llama, build_folder, tmp_path):
    with pytest.raises(InvalidInput, match="quantise: lossless is for GGUF files"):
        build_folder(llama, tmp_path / "out", quantise="lossless")


def test_transformers_5_states_the_rotation_elsewhere(tmp_path):
    save_model(tmp_path / "model", "llama", rope_theta=500.0)
    before = read_model(tmp_path / "model").decoder.rotary
    change_json(
        tmp_path / "model" / "config.json",
        rope_theta=None,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )
    assert read_model(tmp_path / "model").decoder.rotary == before
