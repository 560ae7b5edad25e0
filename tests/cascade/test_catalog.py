"""The catalog is read strictly, and what it says of the default models holds."""

from __future__ import annotations

import re

import pytest

from cascade import catalog
from cascade.catalog import FilePart, HubPart, PackagePart
from cascade.errors import InvalidInput, NotFound

SHA = "ab" * 32
GOOD = f"""
format = 1
[entries.tiny]
kind = "model"
title = "Tiny"
file_format = "gguf"
parameters = 7
licence = "Apache-2.0"
commercial_use = true
homepage = "https://example.org"
bytes = 10
sha256 = "{SHA}"
sources = [
  "hf:org/repo/a/b.gguf@main",
  "file:/srv/b.gguf",
  ["pypi:tiny-part1==1.0#tiny/1.bin", "pypi:tiny-part2==1.0"],
]
[packages]
"tiny-part1==1.0" = {{ bytes = 5, sha256 = "{SHA}", archive = "wheel" }}
"tiny-part2==1.0" = {{ bytes = 6, sha256 = "{SHA}", archive = "sdist" }}
"""


def test_the_shipped_catalog_names_the_default_models_and_the_sentences() -> None:
    assert [entry.name for entry in catalog.entries()] == [
        "smollm2-135m-instruct-q4_1",
        "qwen2.5-coder-0.5b-instruct-q4_k_m",
        "qwen2.5-coder-1.5b-instruct-q4_k_m",
        "vader-sentences",
    ]
    small = catalog.entry("smollm2-135m-instruct-q4_1")
    assert (small.parameters, small.bytes) == (134_515_008, 98_362_432)
    assert all(entry.commercial_use for entry in catalog.entries())


def test_every_shipped_entry_can_be_had_without_a_hub() -> None:
    for entry in catalog.entries():
        assert any(isinstance(source.parts[0], PackagePart) for source in entry.sources)


def test_hub_files_are_pinned_to_a_commit() -> None:
    parts = [part for e in catalog.entries() for s in e.sources for part in s.parts]
    hub = [part for part in parts if isinstance(part, HubPart)]
    assert hub
    assert all(re.fullmatch("[0-9a-f]{40}", part.revision) for part in hub)


def test_an_unknown_name_is_answered_with_those_that_exist() -> None:
    with pytest.raises(NotFound, match=r"'gpt-9'.*smollm2-135m-instruct-q4_1, .*vader-sentences"):
        catalog.entry("gpt-9")


def test_sources_are_parsed_into_their_parts() -> None:
    (entry,) = catalog.parse(GOOD)
    hub, file, package = entry.sources
    assert hub.parts == (HubPart("org/repo", "a/b.gguf", "main"),)
    assert file.parts == (FilePart("/srv/b.gguf"),)
    assert [part.member for part in package.parts if isinstance(part, PackagePart)] == [
        "tiny/1.bin",
        "",
    ]
    assert [str(source) for source in entry.sources] == [
        "hf:org/repo/a/b.gguf@main",
        "file:/srv/b.gguf",
        "pypi:tiny-part1==1.0#tiny/1.bin and 1 more",
    ]
    assert entry.file_name == "tiny.gguf"


@pytest.mark.parametrize(
    ("old", "new", "field", "problem"),
    [
        ('title = "Tiny"', 'titel = "Tiny"', "entries.tiny.title", "is missing"),
        ("bytes = 10", 'bytes = 10\nextra = "x"', "entries.tiny.extra", "not a known field"),
        ("bytes = 10", "bytes = 0", "entries.tiny.bytes", "whole number"),
        ("parameters = 7", "", "entries.tiny.parameters", "is missing"),
        ('kind = "model"', 'kind = "dataset"', "entries.tiny.parameters", "not a known field"),
        ('kind = "model"', 'kind = "thing"', "entries.tiny.kind", "known are model, dataset"),
        ('"gguf"', '"exe"', "entries.tiny.file_format", "known are"),
        ("commercial_use = true", 'commercial_use = "yes"', "commercial_use", "true or false"),
        (f'sha256 = "{SHA}"\nsources', 'sha256 = "ABC"\nsources', "tiny.sha256", "lower-case hex"),
        ("[entries.tiny]", '[entries."Tiny!"]', "entries.Tiny!", "is not a name"),
        ("format = 1", "format = 2", "catalog.format", "whole number"),
        ("@main", "", "sources[0]", "is none of hf:"),
        ("hf:org/repo/a/b", "hf:org/repo/../b", "sources[0]", "without '..'"),
        ('"file:/srv/b.gguf"', '"file:b.gguf"', "sources[1]", "is none of hf:"),
        ('"file:/srv/b.gguf"', '"http://x/y"', "sources[1]", "is none of hf:"),
        ('"file:/srv/b.gguf"', "7", "sources[1]", "must be a URI"),
        ('"file:/srv/b.gguf"', "[]", "sources[1]", "must be a URI"),
        ('["pypi:', '["hf:o/r/p@m", "pypi:', "sources[2]", "stands alone"),
        ("pypi:tiny-part1==1.0", "pypi:tiny-part1==2.0", "sources[2][0]", "is not pinned"),
        ("#tiny/1.bin", "#/etc/passwd", "sources[2][0]", "relative path"),
        (', "pypi:tiny-part2==1.0"]', ', "file:/x"]', "tiny-part2==1.0", "is not used"),
        ('archive = "sdist"', 'archive = "egg"', "packages.tiny-part2==1.0.archive", "known are"),
        ("format = 1", "format = ", "catalog", "is not TOML"),
    ],
)
def test_a_mistake_is_refused_by_name(old: str, new: str, field: str, problem: str) -> None:
    assert old in GOOD
    with pytest.raises(InvalidInput) as refusal:
        catalog.parse(GOOD.replace(old, new, 1))
    assert refusal.value.field.endswith(field)
    assert problem in refusal.value.problem
