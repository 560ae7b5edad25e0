"""Qwen2.5-Coder-0.5B-Instruct, whose file mixes Q5_0, Q8_0, Q6_K and Q4_K, against torch."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from tokenizers import Tokenizer

from edge.build.gguf_file import read_gguf
from edge.bundle import inspect

from .running import Graph
from .test_parity import _torch_name, agreement, divergence, log_softmax, regret

pytestmark = pytest.mark.models

TEXT = """def mean(values):
    if not values:
        return 0.0
    return sum(values) / len(values)
"""


@pytest.fixture(scope="module")
def source(model_path):
    return model_path("qwen2.5-coder-0.5b-instruct-q4_k_m")


@pytest.fixture(scope="module")
def device(source, build, tmp_path_factory):
    return build(source, tmp_path_factory.mktemp("qwen") / "device")


@pytest.fixture(scope="module")
def ids(device):
    return Tokenizer.from_file(str(device / "tokenizer.json")).encode(TEXT).ids


@pytest.fixture(scope="module")
def expected(source, ids):
    """float64 log-probabilities [T, vocabulary] of torch in float32 on the de-quantised weights."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    file = read_gguf(source)
    config = Qwen2Config(
        hidden_size=file.value("qwen2.embedding_length", int),
        intermediate_size=file.value("qwen2.feed_forward_length", int),
        num_hidden_layers=file.value("qwen2.block_count", int),
        num_attention_heads=file.value("qwen2.attention.head_count", int),
        num_key_value_heads=file.value("qwen2.attention.head_count_kv", int),
        max_position_embeddings=file.value("qwen2.context_length", int),
        rope_theta=file.value("qwen2.rope.freq_base", float),
        rms_norm_eps=file.value("qwen2.attention.layer_norm_rms_epsilon", float),
        vocab_size=file.tensor("token_embd.weight").shape[0],
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = Qwen2ForCausalLM(config)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    weights = {}
    for name, tensor in file.tensors.items():
        # A quarter of all weights are embeddings of tokens that do not occur.
        rows = sorted(set(ids)) if name == "token_embd.weight" else slice(None)
        values = np.zeros((len(tensor.raw), tensor.shape[-1]), np.float32)
        values[rows] = gguf.dequantize(tensor.raw[rows], gguf.GGMLQuantizationType(tensor.kind))
        torch_name = "lm_head.weight" if name == "output.weight" else _torch_name(name)
        weights[torch_name] = torch.from_numpy(values.reshape(tensor.shape))
    model.load_state_dict(weights, assign=True)
    with torch.inference_mode():
        logits = model.eval()(torch.tensor([ids])).logits[0].numpy()
    return log_softmax(logits)


def test_the_source_itself_reads_the_text_well(expected, ids):
    assert -expected[np.arange(len(ids) - 1), ids[1:]].mean() < 1.5


def test_device_graph_is_close_to_torch(device, expected, ids):
    assert inspect(device).quantisation == "lossless Q5_0+Q8_0+Q6_K+Q4_K"
    logits = Graph(device).extend_in([ids[:5], ids[5:]])
    assert divergence(expected, logits) < 0.015
    assert agreement(expected, logits) >= 0.85
    assert regret(expected, logits) < 0.5


def test_exact_graph_is_torch(source, build, expected, ids, tmp_path):
    logits = Graph(build(source, tmp_path / "exact", accuracy_level=0)).extend(ids)
    assert divergence(expected, logits) < 1e-8
    assert agreement(expected, logits) == 1.0
