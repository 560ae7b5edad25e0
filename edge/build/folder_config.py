"""``config.json`` of a Hugging Face folder: which decoder it describes, or why it cannot be built.

The fields are those of transformers' ``LlamaConfig`` and ``Qwen2Config``, with their defaults.
Whatever would change the computation and is not supported is refused by name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from cascade.errors import InvalidInput
from edge.build.architecture import FAMILIES, Decoder
from edge.build.blocks import Floats
from edge.build.rotary import frequencies, stretch_low_bands

CONFIG = "config.json"


@dataclass(frozen=True, slots=True)
class FolderModel:
    """A decoder and how its checkpoint is to be read.

    Arguments:
        tied: whether the head is the embedding; None where the configuration does not say.
    """

    decoder: Decoder
    tied: bool | None


def read_json(path: Path) -> dict[str, object]:
    """The JSON object in ``path``.

    Raises:
        InvalidInput: the file is missing or holds something else.
    """
    try:
        fields = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InvalidInput("folder", f"{path.parent} has no {path.name}") from None
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise InvalidInput("folder", f"{path} is not a JSON object")
    return fields


def family_of(folder: Path) -> str:
    """The ``model_type`` that ``folder`` states; raises ``InvalidInput`` where there is none."""
    family = read_json(folder / CONFIG).get("model_type")
    if not isinstance(family, str):
        raise InvalidInput("folder", f"{folder / CONFIG} names no model_type")
    return family


def read_model(folder: Path) -> FolderModel:
    """The decoder of ``folder``.

    Raises:
        InvalidInput: the family or one of its variants is not supported, or a size is missing or
            impossible. The message says that exporting is the way for it.
    """
    family = family_of(folder)
    config = _Config(folder, read_json(folder / CONFIG))
    if family not in FAMILIES:
        raise config.unsupported(f"is a '{family}' model, not one of: {', '.join(FAMILIES)}")
    config.refuse_variants(family)
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    kv_heads = config.size("num_key_value_heads", heads)
    head_dim = config.size("head_dim", hidden // heads)
    if heads % kv_heads:
        raise InvalidInput("config.json", f"{heads} attention heads cannot share {kv_heads}")
    if head_dim % 2:
        raise config.unsupported(f"has heads of {head_dim} dimensions, an odd number")
    tied = config.fields.get("tie_word_embeddings")
    return FolderModel(
        Decoder(
            family=family,
            layers=config.size("num_hidden_layers"),
            hidden=hidden,
            feed_forward=config.size("intermediate_size"),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            vocabulary=config.size("vocab_size"),
            context=config.size("max_position_embeddings"),
            rotary=tuple(config.rotary(head_dim).tolist()),
            norm_epsilon=config.number("rms_norm_eps", 1e-6),
        ),
        tied=tied if isinstance(tied, bool) else None,
    )


class _Config:
    """Typed access to the fields of one ``config.json``."""

    def __init__(self, folder: Path, fields: dict[str, object]) -> None:
        self.fields = fields
        self._folder = folder

    def unsupported(self, what: str) -> InvalidInput:
        return InvalidInput(
            "config.json",
            f"{self._folder.name} {what}; export it instead, which is slower: "
            "cascade bundle build --export",
        )

    def size(self, name: str, default: int | None = None) -> int:
        value = self.fields.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidInput(f"config.json: {name}", f"is {value!r}, not a positive integer")
        return value

    def number(self, name: str, default: float) -> float:
        return _number(self.fields, name, default)

    def refuse_variants(self, family: str) -> None:
        fields = self.fields
        if fields.get("quantization_config") is not None:
            raise InvalidInput(
                "config.json",
                f"{self._folder.name} is quantised already; build from the original checkpoint, "
                "or from a GGUF file",
            )
        if fields.get("hidden_act", "silu") != "silu":
            raise self.unsupported(f"uses the activation '{fields['hidden_act']}', not silu")
        if fields.get("partial_rotary_factor", 1.0) != 1.0:
            raise self.unsupported("rotates a part of each head only")
        layers = fields.get("layer_types") or []
        windowed = isinstance(layers, list) and any(kind != "full_attention" for kind in layers)
        if windowed or fields.get("use_sliding_window"):
            raise self.unsupported("uses sliding-window attention")

    def rotary(self, head_dim: int) -> Floats:
        """Frequencies under ``rope_scaling``, or ``rope_parameters`` as transformers 5 calls it."""
        stated = self.fields.get("rope_parameters") or self.fields.get("rope_scaling") or {}
        if not isinstance(stated, dict):
            raise InvalidInput("config.json: rope_scaling", "is not a JSON object")
        base = _number(stated, "rope_theta", self.number("rope_theta", 10_000.0))
        unscaled = frequencies(base, head_dim)
        kind = stated.get("rope_type", stated.get("type", "default"))
        if kind == "default":
            return unscaled
        if kind == "linear":
            return (unscaled / _number(stated, "factor")).astype(unscaled.dtype)
        if kind == "llama3":
            return stretch_low_bands(
                unscaled,
                factor=_number(stated, "factor"),
                low=_number(stated, "low_freq_factor"),
                high=_number(stated, "high_freq_factor"),
                original_context=int(_number(stated, "original_max_position_embeddings")),
            )
        raise self.unsupported(
            f"scales its rotary embedding by '{kind}' (supported: default, linear, llama3)"
        )


def _number(fields: dict[str, object], name: str, default: float | None = None) -> float:
    value = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise InvalidInput(f"config.json: {name}", f"is {value!r}, not a positive number")
    return float(value)
