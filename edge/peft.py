"""Reads a LoRA adapter that the PEFT library saved, without PEFT or torch.

PEFT keeps ``lora_A`` as [rank, inputs] and ``lora_B`` as [outputs, rank], and a scale in its
configuration. What a device could not reproduce is refused, not ignored.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cascade.errors import InvalidInput, NotFound
from edge.adapter import Floats, LoraPair
from edge.safetensors_file import read_bytes
from edge.slots import linear_name

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_TENSOR = re.compile(
    r"base_model\.model\.(?P<path>[\w.]+)\.lora_(?P<half>[AB])(?:\.default)?\.weight"
)


def read_peft(folder: Path) -> dict[str, LoraPair]:
    """The pairs of a folder that PEFT's ``save_pretrained`` wrote, ready for ``write_adapter``.

    Raises:
        NotFound: the folder lacks a file of the two.
        InvalidInput: it is no plain LoRA of linears, or unreadable.
    """
    scaling = _scaling(folder)
    tensors = read_bytes(_read(folder, _WEIGHTS), _WEIGHTS)
    halves: dict[str, dict[str, Floats]] = {}
    paths: dict[str, str] = {}
    for name, tensor in tensors.items():
        match = _TENSOR.fullmatch(name)
        if not match:
            raise InvalidInput("peft", f"{name} is no LoRA matrix of a linear")
        module = linear_name(match["path"])
        halves.setdefault(module, {})[match["half"]] = tensor.values().astype(np.float32)
        paths[module] = match["path"]
    pairs = {}
    for module, pair in sorted(halves.items()):
        if set(pair) != {"A", "B"}:
            raise InvalidInput("peft", f"{module} has only one of lora_A and lora_B")
        if any(half.ndim != 2 or not half.size for half in pair.values()):
            raise InvalidInput("peft", f"{module}: lora_A and lora_B must be matrices of rank ≥ 1")
        scale = np.float32(scaling.of(paths[module], rank=len(pair["A"])))
        pairs[module] = LoraPair(pair["A"].T, pair["B"].T * scale)
    return pairs


@dataclass(frozen=True, slots=True)
class _Scaling:
    """alpha / rank, or alpha / sqrt(rank) with rank stabilisation (arXiv 2312.03732).

    Arguments:
        alpha: of linears that no pattern matches.
        patterns: alpha by regular expression, the first that matches counts.
    """

    alpha: float
    patterns: Mapping[str, float]
    rank_stabilised: bool

    def of(self, path: str, *, rank: int) -> float:
        """The factor of one linear, e.g. ``"model.layers.0.self_attn.q_proj"``."""
        alpha = next(
            # As PEFT matches: the end of the path, from the beginning of one of its parts.
            (alpha for end, alpha in self.patterns.items() if re.match(rf"(.*\.)?({end})$", path)),
            self.alpha,
        )
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


# What changes the base or the formula; an absent option has the plain value.
_PLAIN: tuple[tuple[str, tuple[object, ...]], ...] = (
    ("use_dora", (False,)),
    ("fan_in_fan_out", (False, True)),  # how GPT-2 keeps the base's matrices; A and B are the same
    ("use_qalora", (False,)),
    ("lora_bias", (False,)),
    ("bias", ("none",)),
    ("init_lora_weights", (True, False, "gaussian", "orthogonal")),
    ("modules_to_save", (None, [])),
    ("layer_replication", (None, [])),
    ("alora_invocation_tokens", (None, [])),
    ("target_parameters", (None, [])),
    ("trainable_token_indices", (None, [], {})),
    ("use_bdlora", (None, False)),
    ("arrow_config", (None,)),
    ("kasa_config", (None,)),
    ("monteclora_config", (None,)),
    ("velora_config", (None,)),
)


def _scaling(folder: Path) -> _Scaling:
    try:
        config = json.loads(_read(folder, _CONFIG))
    except ValueError as problem:
        raise InvalidInput("peft", f"{_CONFIG} is not JSON ({problem})") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise InvalidInput("peft", f"{_CONFIG}: peft_type is {kind}, not LORA")
    for option, plain in _PLAIN:
        if (value := config.get(option, plain[0])) not in plain:
            raise InvalidInput(
                "peft", f"{_CONFIG}: {option} is {value!r}; only plain LoRA can be taken"
            )
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise InvalidInput("peft", f"{_CONFIG}: alpha_pattern is no object")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as problem:
            raise InvalidInput(
                "peft", f"{_CONFIG}: alpha_pattern {pattern!r} is no expression ({problem})"
            ) from None
    return _Scaling(
        _alpha("lora_alpha", config.get("lora_alpha")),
        {end: _alpha(f"alpha_pattern {end!r}", alpha) for end, alpha in patterns.items()},
        bool(config.get("use_rslora")),
    )


def _alpha(option: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidInput("peft", f"{_CONFIG}: {option} is {value!r}, not a number")
    return float(value)


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"there is no PEFT adapter at {folder} ({name} is missing)") from None
