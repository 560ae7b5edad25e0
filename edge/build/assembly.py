"""A bundle folder that is finished or absent: filled beside its destination, sealed, renamed.

What goes into the folder is written by the caller; nothing here knows of graphs or checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from cascade.signing import SigningKey
from edge.build.place import check_free, finished_or_absent
from edge.bundle import (
    CHAT_TEMPLATE,
    FILES,
    AdapterSlot,
    GraphLayout,
    Manifest,
    describe_files,
    seal,
)
from edge.text import compiled

Progress: TypeAlias = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Label:
    """What a manifest says that no weight file can be trusted to say; see ``Manifest``."""

    name: str
    base_model: str
    licence: str
    commercial_use: bool


@dataclass(frozen=True, slots=True)
class Contents:
    """What a manifest says about the graph that was written; see ``Manifest``.

    Arguments:
        more_files: written beside those that every decoder has.
    """

    architecture: str
    quantisation: str
    context_tokens: int
    vocab_size: int
    layers: int
    kv_heads: int
    head_dim: int
    stop_token_ids: tuple[int, ...]
    adapter_slots: tuple[AdapterSlot, ...]
    graph: GraphLayout
    more_files: tuple[str, ...] = ()


def assemble(
    out: Path,
    fill: Callable[[Path], Contents],
    *,
    label: Label,
    signing_key: SigningKey,
    overwrite: bool,
    report: Progress,
) -> Path:
    """Make the bundle folder ``out``.

    Arguments:
        fill: writes graph, weights, tokenizer and template into the folder that it is given.
        overwrite: replace ``out`` if it exists; it stays whole until the new bundle is finished.
        report: progress, 0 to 1.

    Returns:
        ``out``.

    Raises:
        InvalidInput: ``out`` exists (and is no bundle, or ``overwrite`` is off), or the chat
            template is none.
        CascadeError: the disk is full; nothing is left of the attempt.
    """
    check_free(out, overwrite=overwrite)
    with finished_or_absent(out) as folder:
        contents = fill(folder)
        compiled((folder / CHAT_TEMPLATE).read_text(encoding="utf-8"))
        report("signing", 0.9)
        manifest = Manifest(
            name=label.name,
            base_model=label.base_model,
            licence=label.licence,
            commercial_use=label.commercial_use,
            architecture=contents.architecture,
            quantisation=contents.quantisation,
            context_tokens=contents.context_tokens,
            vocab_size=contents.vocab_size,
            layers=contents.layers,
            kv_heads=contents.kv_heads,
            head_dim=contents.head_dim,
            stop_token_ids=contents.stop_token_ids,
            adapter_slots=contents.adapter_slots,
            files=describe_files(folder, (*FILES, *contents.more_files)),
            graph=contents.graph,
        )
        seal(folder, manifest, signing_key)
    report("done", 1.0)
    return out
