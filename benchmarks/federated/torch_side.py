"""A child that computes the same with torch in float32, on the weights that the GGUF stands for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.child import Fields, serve, timed
from benchmarks.federated import batches
from edge.build.architecture import read_decoder
from edge.build.gguf_checkpoint import GgufCheckpoint
from edge.build.gguf_file import read_gguf
from edge.slots import linear_name
from edge.training.lesson import Lesson

_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}


def _load(path: Path) -> Any:
    gguf = read_gguf(path)
    decoder, weights = read_decoder(gguf), GgufCheckpoint(gguf, as_floats=True)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=decoder.hidden,
            intermediate_size=decoder.feed_forward,
            num_hidden_layers=decoder.layers,
            num_attention_heads=decoder.heads,
            num_key_value_heads=decoder.kv_heads,
            max_position_embeddings=decoder.context,
            rope_theta=gguf.value("llama.rope.freq_base", float),
            rms_norm_eps=decoder.norm_epsilon,
            vocab_size=decoder.vocabulary,
            tie_word_embeddings=True,
        )
    ).eval()
    heads = {"attn_q": decoder.heads, "attn_k": decoder.kv_heads}
    state = {
        "model.embed_tokens.weight": weights.matrix(
            "token_embd.weight", decoder.vocabulary, decoder.hidden
        ),
        "model.norm.weight": weights.vector("output_norm.weight"),
    }
    for layer in range(decoder.layers):
        for ours, theirs in _NAMES.items():
            shape = model.get_submodule(f"model.layers.{layer}.{theirs}").weight.shape
            state[f"model.layers.{layer}.{theirs}.weight"] = weights.matrix(
                f"blk.{layer}.{ours}.weight", *shape, heads=heads.get(ours, 0)
            )
        for ours, theirs in _NORMS.items():
            name = f"blk.{layer}.{ours}.weight"
            state[f"model.layers.{layer}.{theirs}.weight"] = weights.vector(name)
    tensors = {name: torch.from_numpy(np.array(each, np.float32)) for name, each in state.items()}
    model.load_state_dict(tensors, strict=False)
    model.tie_weights()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def _open() -> Mapping[str, Callable[..., Fields]]:
    torch.set_num_threads(1)
    model = _load(Path(sys.argv[1]))
    adapter: dict[str, tuple[Any, Any]] = {}
    first = model.config.num_hidden_layers - batches.LAYERS
    linears: dict[str, tuple[str, int, int]] = {}
    for path, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or ".layers." not in path:
            continue
        name = linear_name(path)
        if int(name.split(".")[1]) >= first:
            linears[name] = (name, module.in_features, module.out_features)
            module.register_forward_hook(
                lambda _module, given, out, name=name: (
                    out + (given[0] @ adapter[name][0]) @ adapter[name][1]
                    if name in adapter
                    else None
                )
            )

    def apply(seed: int, modules: list[str]) -> None:
        chosen = [each for name, each in linears.items() if name.rpartition(".")[2] in modules]
        adapter.clear()
        for name, pair in batches.pairs(seed, chosen).items():
            adapter[name] = (
                torch.tensor(pair.a, requires_grad=True),
                torch.tensor(pair.b, requires_grad=True),
            )

    def loss(lessons: list[Lesson]) -> Any:
        """Logits at the targets alone, as ours."""
        total: Any = 0.0
        for lesson in lessons:
            ids = torch.tensor([lesson.segments[0].ids])
            at = torch.tensor([target.at for target in lesson.targets])
            hidden = model.model(ids).last_hidden_state[0][at]
            logs = torch.log_softmax(model.lm_head(hidden), -1)
            wanted = torch.tensor([[target.token] for target in lesson.targets])
            total = total - logs.gather(1, wanted).mean() / len(lessons)
        return total

    def gradient(seed: int, modules: list[str], out: str) -> Fields:
        apply(seed, modules)
        found = loss(batches.lessons(seed, model.config.vocab_size))
        found.backward()
        np.save(
            out,
            batches.flat(
                {name: (a.grad.numpy(), b.grad.numpy()) for name, (a, b) in adapter.items()}
            ),
        )
        return {"loss": float(found.detach())}

    def step(tokens: int, modules: list[str]) -> Fields:
        apply(0, modules)
        lessons = batches.of_length(tokens, model.config.vocab_size)
        return timed(lambda: loss(lessons).backward())

    return {"gradient": gradient, "step": step}


if __name__ == "__main__":
    serve(_open)
