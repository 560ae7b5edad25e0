"""The default bundle against torch, which runs the architecture's own code on the same weights."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from tokenizers import Tokenizer

from edge.build.gguf_file import read_gguf

from .running import Graph

pytestmark = pytest.mark.models

TEXT = """<|im_start|>user
Where does the Danube rise, and where does it end?<|im_end|>
<|im_start|>assistant
The Danube rises in the Black Forest in Germany, where two small streams meet. It flows east through
ten countries and four capital cities, Vienna, Bratislava, Budapest and Belgrade, and reaches the
Black Sea after about 2,850 kilometres.<|im_end|>
"""
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@pytest.fixture(scope="module")
def ids(device_bundle):
    tokens = Tokenizer.from_file(str(device_bundle / "tokenizer.json")).encode(TEXT).ids
    assert len(tokens) >= 64
    return tokens


@pytest.fixture(scope="module")
def expected(smollm2_gguf, ids):
    """float64 log-probabilities [T, vocabulary] of torch in float32 on the de-quantised weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    file = read_gguf(smollm2_gguf)
    config = LlamaConfig(
        hidden_size=file.value("llama.embedding_length", int),
        intermediate_size=file.value("llama.feed_forward_length", int),
        num_hidden_layers=file.value("llama.block_count", int),
        num_attention_heads=file.value("llama.attention.head_count", int),
        num_key_value_heads=file.value("llama.attention.head_count_kv", int),
        max_position_embeddings=file.value("llama.context_length", int),
        rope_theta=file.value("llama.rope.freq_base", float),
        rms_norm_eps=file.value("llama.attention.layer_norm_rms_epsilon", float),
        vocab_size=file.value("llama.vocab_size", int),
        tie_word_embeddings=True,
    )
    weights = {}
    for name, tensor in file.tensors.items():
        values = gguf.dequantize(tensor.raw, gguf.GGMLQuantizationType(int(tensor.kind)))
        values = values.reshape(tensor.shape)
        heads = {
            "attn_q.weight": config.num_attention_heads,
            "attn_k.weight": config.num_key_value_heads,
        }.get(name.split(".", 2)[-1])
        if heads:  # llama.cpp rotates neighbouring rows, transformers the halves of each head
            pairs = values.reshape(heads, -1, 2, config.hidden_size)
            values = np.concatenate([pairs[:, :, 0], pairs[:, :, 1]], axis=1)
            values = values.reshape(tensor.shape)
        weights[_torch_name(name)] = torch.from_numpy(np.array(values, np.float32))
    model = LlamaForCausalLM(config).eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert missing == ["lm_head.weight"]
    assert not unexpected
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0].numpy()
    torch.set_num_threads(threads)
    return log_softmax(logits)


def _torch_name(name: str) -> str:
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    _, layer, own, kind = name.split(".")
    return f"model.layers.{layer}.{_LAYER_NAMES[own]}.{kind}"


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def divergence(expected: np.ndarray, logits: np.ndarray) -> float:
    """Mean KL divergence from ``expected``, in nats."""
    return float((np.exp(expected) * (expected - log_softmax(logits))).sum(axis=-1).mean())


def agreement(expected: np.ndarray, logits: np.ndarray) -> float:
    """Share of positions with the same most probable token."""
    return float((expected.argmax(axis=-1) == logits.argmax(axis=-1)).mean())


def regret(expected: np.ndarray, logits: np.ndarray) -> float:
    """How much log-probability the most probable token gives away at worst, in nats."""
    chosen = np.take_along_axis(expected, logits.argmax(axis=-1)[:, None], axis=-1)[:, 0]
    return float((expected.max(axis=-1) - chosen).max())


def chunked(ids: list[int]) -> list[list[int]]:
    return [ids[:7], ids[7:40], ids[40:]]


def stepped(ids: list[int]) -> list[list[int]]:
    return [[token] for token in ids]


def test_the_source_itself_reads_the_text_well(expected, ids):
    """Guards what follows: weights that both sides misread alike could not predict text."""
    surprise = -expected[np.arange(len(ids) - 1), ids[1:]]
    assert surprise.mean() < 3.0


def test_exact_graph_is_torch(exact_bundle, expected, ids):
    graph = Graph(exact_bundle)
    whole = graph.extend(ids)
    assert divergence(expected, whole) < 1e-8
    assert agreement(expected, whole) == 1.0
    assert np.abs(graph.extend_in(chunked(ids)) - whole).max() < 1e-3
    few_steps = [ids[:-10], *stepped(ids[-10:])]  # a step of this graph takes half a second
    assert np.abs(graph.extend_in(few_steps) - whole).max() < 1e-2


@pytest.mark.parametrize(
    "split", [lambda ids: [ids], chunked, stepped], ids=["whole", "chunks", "steps"]
)
def test_device_graph_is_close_to_torch(device_bundle, expected, ids, split):
    logits = Graph(device_bundle).extend_in(split(ids))
    assert divergence(expected, logits) < 0.015
    assert agreement(expected, logits) >= 0.85
    assert regret(expected, logits) < 0.5
