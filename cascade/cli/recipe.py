"""What ``cascade bundle build`` was asked to build: from the catalog, a GGUF file or a folder.

Nothing is built here; ``bundle.py`` carries a recipe out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cascade import catalog
from cascade.cli.models import pull_with_progress
from cascade.errors import InvalidInput

if TYPE_CHECKING:
    from edge.build import Quantisation

UNKNOWN_LICENCE = "unknown"
PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class Wishes:
    """Options that go with any source; None where the user left them out.

    Arguments:
        quantise: one of ``edge.build``'s ``Quantisation``.
        context: longest conversation in tokens.
        chat_template: a file, or ``plain``.
        export: export with torch even if that is not needed.
        gradient_layers: how many layers adapters can be trained for.
    """

    quantise: Quantisation | None = None
    name: str | None = None
    context: int | None = None
    chat_template: str | None = None
    export: bool = False
    gradient_layers: int | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """Which builder to call, and with what.

    Arguments:
        fetch: gives the file or folder, after pulling it if need be.
        template: Jinja text, None for the model's own.
    """

    way: Literal["gguf", "folder", "export"]
    fetch: Callable[[], Path]
    quantise: Quantisation
    name: str
    base_model: str
    licence: str
    commercial_use: bool
    context: int | None
    template: str | None
    gradient_layers: int | None


def from_catalog(model: str, wishes: Wishes = Wishes()) -> Recipe:
    """A model of the catalog.

    Raises:
        NotFound, InvalidInput: there is no such entry, or it is no GGUF model.
    """
    entry = catalog.entry(model)
    if entry.file_format != "gguf":
        raise InvalidInput("--model", f"{model} is no GGUF model; see: cascade models list")
    if wishes.export:
        raise _only_folders_are_exported()
    quantise = wishes.quantise or "lossless"
    suffix = "int4" if quantise == "lossless" else quantise
    return Recipe(
        way="gguf",
        fetch=lambda: pull_with_progress(model),
        quantise=quantise,
        name=_name(wishes.name or f"{model.rsplit('-', 1)[0]}-{suffix}"),
        base_model=entry.title,
        licence=entry.licence,
        commercial_use=entry.commercial_use,
        context=wishes.context,
        template=_template(wishes.chat_template),
        gradient_layers=wishes.gradient_layers,
    )


def from_path(
    path: Path, wishes: Wishes, *, base_model: str | None, licence: str, commercial_use: bool
) -> Recipe:
    """A GGUF file or a Hugging Face folder on this machine.

    Raises:
        InvalidInput: ``path`` is neither, or an option does not go with it.
    """
    whole = path.expanduser().resolve()
    way: Literal["gguf", "folder", "export"] = "gguf"
    if whole.is_dir():
        way = "export" if wishes.export or not _built_node_by_node(whole) else "folder"
    elif not whole.is_file():
        raise InvalidInput("--from", f"there is no file or folder {path}")
    if way == "gguf":
        if wishes.export:
            raise _only_folders_are_exported()
        quantise = wishes.quantise or "lossless"
        stem = whole.stem + ("" if quantise == "lossless" else f"-{quantise}")
    else:
        quantise = wishes.quantise or "int8"
        stem = f"{whole.name}-{quantise}"
    return Recipe(
        way=way,
        fetch=lambda: whole,
        quantise=quantise,
        name=_name(wishes.name or re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("-._")),
        base_model=base_model or whole.name,
        licence=licence,
        commercial_use=commercial_use,
        context=wishes.context,
        template=_template(wishes.chat_template),
        gradient_layers=wishes.gradient_layers,
    )


def _built_node_by_node(folder: Path) -> bool:
    from edge.build import FAMILIES, family_of

    return family_of(folder) in FAMILIES


def _only_folders_are_exported() -> InvalidInput:
    return InvalidInput("--export", "is for Hugging Face folders, not for GGUF files")


def _name(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,99}", name):
        raise InvalidInput(
            "--name", f"{name!r} must be lower-case letters, digits, '.', '_' and '-', at most 100"
        )
    return name


def _template(given: str | None) -> str | None:
    if given is None:
        return None
    if given == PLAIN:
        from edge.build import PLAIN_TEMPLATE

        return PLAIN_TEMPLATE
    try:
        return Path(given).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        reason = getattr(problem, "strerror", None) or "is not UTF-8 text"
        raise InvalidInput("--chat-template", f"{given}: {reason}") from None
