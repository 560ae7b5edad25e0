"""Small models with random weights, saved by transformers as the folders that people download."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from edge.build.quantise import quantise

from .tiny import TOKENS, VOCABULARY

CONTEXT = 64
END = 2  # <|im_end|>
IDS = [1, 77, 30, 259, 4, 200, 131, 77, 2, 58, 99, 12, 7, 250, 33, 148, 90, 3, 255, 61]
TEMPLATE = "{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}"

_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "vocab_size": VOCABULARY,
    "initializer_range": 0.15,  # large enough that a wrong sign or row shows in the logits
    # What OPT calls them, and matrices between its embedding and its layers.
    "init_std": 0.15,
    "ffn_dim": 96,
    "word_embed_proj_dim": 32,
    "bos_token_id": 0,
    "eos_token_id": END,
}


def save_model(
    folder: Path,
    family: str,
    *,
    dtype: torch.dtype = torch.float32,
    shard_size: str = "1GB",
    **config: object,
) -> PreTrainedModel:
    """Save a model and what belongs to it; returns it in float32, as it was saved."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(family, **(_SIZES | config)), attn_implementation="eager"
        )
        for name, values in model.named_parameters():
            if name.endswith(("bias", "norm.weight", "layernorm.weight")):
                values.data += 0.2 * torch.randn_like(values)  # transformers starts them all alike
    model.to(dtype).save_pretrained(folder, max_shard_size=shard_size)
    save_text(folder)
    return load(folder)


def load(folder: Path) -> PreTrainedModel:
    """The model in ``folder``, in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def save_text(folder: Path, **tokenizer_config: object) -> None:
    """Tokenizer, its configuration, and a chat template."""
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(TOKENS)}, [("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(TOKENS[:3])
    tokenizer.save(str(folder / "tokenizer.json"))
    stated = {"eos_token": TOKENS[END], "chat_template": TEMPLATE} | tokenizer_config
    (folder / "tokenizer_config.json").write_text(json.dumps(stated))


def change_json(path: Path, **fields: object) -> None:
    """Set fields of a JSON file; None takes one out."""
    stated = json.loads(path.read_text()) | fields
    kept = {name: value for name, value in stated.items() if value is not None}
    path.write_text(json.dumps(kept))


def logits(model: PreTrainedModel, ids: list[int]) -> np.ndarray:
    """float32 [len(ids), vocabulary]."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def round_weights(model: PreTrainedModel, bits: int) -> None:
    """Replace every matrix by what its blocks stand for; embedding and head stay at eight bits."""
    for name, values in model.named_parameters():
        if values.ndim == 2:
            looked_up = "embed" in name or "lm_head" in name
            blocks = quantise(values.detach().numpy(), 8 if looked_up else bits)
            values.data = torch.from_numpy(blocks.dequantise())
