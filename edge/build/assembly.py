"""A bundle folder that is finished or absent: filled beside its destination, sealed, renamed.

What goes into the folder is written by the caller; nothing here knows of graphs or checkpoints.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from cascade.errors import CascadeError, InvalidInput
from cascade.signing import SigningKey
from edge.bundle import MANIFEST, AdapterSlot, GraphLayout, Manifest, describe_files, seal

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
    """What a manifest says about the graph that was written; see ``Manifest``."""

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
        InvalidInput: ``out`` exists (and is no bundle, or ``overwrite`` is off).
        CascadeError: the disk is full; nothing is left of the attempt.
    """
    if out.exists():
        if not overwrite:
            raise InvalidInput("out", f"{out} exists; choose another folder or allow overwriting")
        if not (out / MANIFEST).is_file():
            raise InvalidInput("out", f"{out} is not a bundle; it will not be overwritten")
    with _room(out), _finished_or_absent(out) as folder:
        contents = fill(folder)
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
            files=describe_files(folder),
            graph=contents.graph,
        )
        seal(folder, manifest, signing_key)
    report("done", 1.0)
    return out


@contextmanager
def _room(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        if problem.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CascadeError(
            f"{out}: the disk is full; nothing was left behind. Free some space or build elsewhere"
        ) from None


@contextmanager
def _finished_or_absent(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that takes its place at the end, and is removed on any failure."""
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        folder = aside / "new"
        folder.mkdir()
        yield folder
        if out.exists():
            os.replace(out, aside / "old")
        os.replace(folder, out)
    finally:
        if (aside / "old").exists() and not out.exists():  # interrupted between the two renames
            os.replace(aside / "old", out)
        shutil.rmtree(aside)
