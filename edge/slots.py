"""The adapter inputs of a decode graph: how they are named, shaped, and filled when idle.

Both runtimes (``edge.decoder``, ``edge.exported``) bind what this file gives. What an adapter is
and how it is packed into a slot is in ``edge.adapter``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edge.bundle import Manifest

# Layers as Llama's are: also of Qwen, Gemma, Phi and others.
_LLAMA_LINEAR = re.compile(
    r"(?:model\.)?(?P<layer>layers\.\d+)\."
    r"(?:self_attn\.(?P<attention>[qkvo]_proj)|mlp\.(?P<feed_forward>(?:gate|up|down)_proj))"
)


def linear_name(path: str) -> str:
    """What adapters and slots call the linear at a module's path.

    The seven linears of layers as Llama's go by layer and name (``"layers.0.q_proj"``), so that an
    adapter does not depend on how the graph was made; any other by its whole path (e.g.
    ``"gpt_neox.layers.0.attention.dense"``).

    Arguments:
        path: in the Hugging Face model, e.g. ``"model.layers.0.self_attn.q_proj"``.
    """
    match = _LLAMA_LINEAR.fullmatch(path)
    return f"{match['layer']}.{match['attention'] or match['feed_forward']}" if match else path


def slot_shapes(manifest: Manifest) -> dict[str, tuple[int | None, int | None]]:
    """Shape by graph input; the rank is None: any."""
    shapes: dict[str, tuple[int | None, int | None]] = {}
    for slot in manifest.adapter_slots:
        shapes[slot.input_a] = (slot.columns, None)
        shapes[slot.input_b] = (None, slot.rows)
    return shapes


def slot_inputs(
    manifest: Manifest, adapter: Mapping[str, NDArray[np.float32]] | None
) -> dict[str, NDArray[np.float32]]:
    """Every adapter input of the graph: the active adapter's, else of rank 0, which adds nothing.

    Arguments:
        adapter: as ``Adapter.inputs`` gives it; None for none.
    """
    idle = {
        name: np.zeros([size or 0 for size in shape], np.float32)
        for name, shape in slot_shapes(manifest).items()
    }
    return idle | dict(adapter or {})
