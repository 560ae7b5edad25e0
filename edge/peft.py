"""Reads a LoRA adapter that the PEFT library saved, without PEFT or torch.

PEFT keeps ``lora_A`` as [rank, inputs] and ``lora_B`` as [outputs, rank], and a scale in its
configuration. What a device could not reproduce is refused, not ignored.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from cascade.errors import InvalidInput, NotFound
from edge.adapter import LoraPair

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_TENSOR = re.compile(
    r"base_model\.model\.(?:model\.)?layers\.(?P<layer>\d+)\.(?:self_attn|mlp)\.(?P<linear>\w+)"
    r"\.lora_(?P<half>[AB])(?:\.default)?\.weight"
)


def read_peft(folder: Path) -> dict[str, LoraPair]:
    """The pairs of a folder that PEFT's ``save_pretrained`` wrote, ready for ``write_adapter``.

    Raises:
        NotFound: the folder lacks a file of the two.
        InvalidInput: it is no plain LoRA of linears inside of the layers, or unreadable.
    """
    config = _config(folder)
    try:
        tensors = safetensors.numpy.load(_read(folder, _WEIGHTS))
    except (SafetensorError, TypeError) as problem:
        raise InvalidInput("peft", f"{_WEIGHTS} cannot be read ({problem})") from None
    halves: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        match = _TENSOR.fullmatch(name)
        if not match:
            raise InvalidInput("peft", f"{name} is no LoRA matrix of a layer's linear")
        module = f"layers.{match['layer']}.{match['linear']}"
        halves.setdefault(module, {})[match["half"]] = tensor.astype(np.float32)
    pairs = {}
    for module, pair in sorted(halves.items()):
        if set(pair) != {"A", "B"}:
            raise InvalidInput("peft", f"{module} has only one of lora_A and lora_B")
        scale = np.float32(_scale(config, module, rank=pair["A"].shape[0]))
        pairs[module] = LoraPair(pair["A"].T, pair["B"].T * scale)
    return pairs


def _config(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(_read(folder, _CONFIG))
    except ValueError as problem:
        raise InvalidInput("peft", f"{_CONFIG} is not JSON ({problem})") from None
    if config.get("peft_type") != "LORA":
        raise InvalidInput("peft", f"{_CONFIG}: peft_type is {config.get('peft_type')}, not LORA")
    for option, plain in (("use_dora", False), ("fan_in_fan_out", False), ("bias", "none")):
        if config.get(option, plain) != plain:
            raise InvalidInput("peft", f"{_CONFIG}: {option} is {config[option]!r}, not {plain!r}")
    if config.get("modules_to_save"):
        raise InvalidInput("peft", f"{_CONFIG}: modules_to_save is set; only LoRA can be taken")
    return config


def _scale(config: dict[str, Any], module: str, *, rank: int) -> float:
    """alpha / rank, or alpha / sqrt(rank) with rank stabilisation (arXiv 2312.03732)."""
    patterns: dict[str, float] = config.get("alpha_pattern") or {}
    matching = [value for pattern, value in patterns.items() if re.search(rf"{pattern}$", module)]
    alpha = matching[0] if matching else config["lora_alpha"]
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"there is no PEFT adapter at {folder} ({name} is missing)") from None
