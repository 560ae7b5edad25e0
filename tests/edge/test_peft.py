"""Adapters that PEFT saved do on the device what they do in torch."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cascade.errors import InvalidInput, NotFound
from cascade.signing import SigningKey, TrustStore
from edge.adapter import Adapter, write_adapter
from edge.build import build_from_gguf
from edge.bundle import Bundle
from edge.decoder import Decoder
from edge.peft import read_peft

from .build.tiny import (
    CONTEXT,
    EPSILON,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    ROPE_BASE,
    VOCABULARY,
    WIDE,
    Tiny,
)

TINY = Tiny("qwen2")
IDS = [1, 77, 30, 259, 4, 200, 131, 77]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder, key = tmp_path_factory.mktemp("tiny"), SigningKey.generate()
    trust = TrustStore(folder / "trust")
    trust.pin("tests", key.public)
    out = build_from_gguf(
        TINY.write(folder / "tiny.gguf", tokenizer__ggml__pre="qwen2"),
        folder / "bundle",
        name="tiny",
        base_model="tiny",
        licence="Apache-2.0",
        commercial_use=True,
        signing_key=key,
        accuracy_level=0,
    )
    return Bundle.open(out, trust), trust, key


def torch_model():
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    model = Qwen2ForCausalLM(
        Qwen2Config(
            hidden_size=HIDDEN,
            intermediate_size=WIDE,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS,
            max_position_embeddings=CONTEXT,
            rope_theta=ROPE_BASE,
            rms_norm_eps=EPSILON,
            vocab_size=VOCABULARY,
            tie_word_embeddings=True,
        )
    ).eval()
    names = {
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_output": "self_attn.o_proj",
        **{f"attn_{x}": f"self_attn.{x}_proj" for x in "qkv"},
        **{f"ffn_{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")},
    }
    state = {}
    for name, values in TINY.weights.items():
        if name.startswith("blk."):
            _, layer, part, kind = name.split(".")
            target = f"model.layers.{layer}.{names[part]}.{kind}"
        else:
            outer = {"token_embd.weight": "embed_tokens", "output_norm.weight": "norm"}
            target = f"model.{outer[name]}.weight"
        state[target] = torch.from_numpy(values.astype(np.float32))
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    return model


@pytest.mark.filterwarnings("ignore:The following alpha_pattern keys:RuntimeWarning")
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "v_proj"], "r": 8, "lora_alpha": 16},
        {
            "target_modules": "all-linear",
            "r": 4,
            "lora_alpha": 8,
            "use_rslora": True,
            "alpha_pattern": {
                "proj": 100,  # no whole part of a path: matches nothing
                "down_proj": 3,
                "self_attn.v_proj": 5,
                "model.layers.0.mlp.up_proj": 2,
                r"layers\.\d+\.mlp\.gate_proj": 6,
                "up_proj": 7,
            },
            "rank_pattern": {"k_proj": 2},
        },
    ],
    ids=["q and v", "all linears, rank-stabilised"],
)
def test_a_peft_adapter_gives_the_logits_that_torch_gives(tiny, tmp_path, options):
    import torch
    from peft import LoraConfig, get_peft_model

    bundle, trust, key = tiny
    torch.manual_seed(0)
    model = torch_model()
    with torch.no_grad():
        base = model(torch.tensor([IDS])).logits[0].numpy()
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.5)
        expected = adapted(torch.tensor([IDS])).logits[0].numpy()
    adapted.save_pretrained(tmp_path / "peft")
    assert np.abs(expected - base).max() > 0.5  # strong enough to matter

    folder = write_adapter(
        tmp_path / "adapter",
        read_peft(tmp_path / "peft"),
        name="from peft",
        base_digest=bundle.manifest.base_digest,
        signing_key=key,
    )
    adapter = Adapter.open(folder, trust)
    decoder = Decoder(bundle.path, bundle.manifest)
    decoder.use_adapter(adapter.digest, adapter.inputs(bundle.manifest))
    for length in (1, len(IDS)):
        got = decoder.read(IDS[:length])
        np.testing.assert_allclose(got, expected[length - 1], rtol=0, atol=1e-4)
    decoder.use_adapter("", None)
    np.testing.assert_allclose(decoder.read(IDS), base[-1], rtol=0, atol=1e-4)


def test_what_is_no_plain_lora_is_refused(tmp_path):
    with pytest.raises(NotFound, match=r"adapter_config\.json is missing"):
        read_peft(tmp_path)
    config = tmp_path / "adapter_config.json"
    for fields, problem in (
        ({"peft_type": "IA3"}, "peft_type is IA3"),
        ({"peft_type": "LORA", "use_dora": True}, "use_dora is True"),
        ({"peft_type": "LORA", "bias": "all"}, "bias is 'all'"),
        ({"peft_type": "LORA", "modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "LORA", "init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"peft_type": "LORA", "alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"peft_type": "LORA", "layer_replication": [[0, 2]]}, "layer_replication"),
        ({"peft_type": "LORA"}, "lora_alpha is None"),
        ({"peft_type": "LORA", "lora_alpha": 1, "alpha_pattern": {"(": 1}}, "no expression"),
        ({"peft_type": "LORA", "lora_alpha": 1, "alpha_pattern": {"q": "x"}}, "not a number"),
        ([], "peft_type is None"),
    ):
        config.write_text(json.dumps(fields))
        with pytest.raises(InvalidInput, match=problem):
            read_peft(tmp_path)
    config.write_text("{")
    with pytest.raises(InvalidInput, match="is not JSON"):
        read_peft(tmp_path)
    config.write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 8}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(InvalidInput, match=r"adapter_model\.safetensors is cut short or damaged"):
        read_peft(tmp_path)


def test_bfloat16_is_read_as_it_is(tmp_path):
    import torch
    from safetensors.torch import save_file

    values = {
        f"base_model.model.model.layers.0.self_attn.q_proj.lora_{half}.weight": torch.randn(shape)
        for half, shape in (("A", (2, HIDDEN)), ("B", (HEADS * (HIDDEN // HEADS), 2)))
    }
    save_file(
        {name: value.bfloat16() for name, value in values.items()},
        tmp_path / "adapter_model.safetensors",
    )
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "lora_alpha": 2})
    )
    (module, pair) = next(iter(read_peft(tmp_path).items()))
    assert module == "layers.0.q_proj"
    for got, value in zip((pair.a, pair.b), values.values(), strict=True):
        np.testing.assert_array_equal(got, value.bfloat16().float().numpy().T)
