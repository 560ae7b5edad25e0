"""Fetching the files that data sets are read from: pinned in ``sources.toml``, read as data."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cascade import catalog
from cascade.catalog import Entry
from cascade.download import pull

_FILE: Final = Path(__file__).with_name("sources.toml")


def fetched(name: str) -> Path:
    """The file called ``name`` in ``sources.toml``, fetched unless it is cached.

    Raises:
        DownloadError: it could not be fetched.
    """
    return pull(entry(name))


def entry(name: str) -> Entry:
    """The entry called ``name`` in ``sources.toml``."""
    return next(
        each for each in catalog.parse(_FILE.read_text(encoding="utf-8")) if each.name == name
    )
