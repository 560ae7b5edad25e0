"""Bundles of the default device model: as devices get it, and as an exact reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cascade.signing import SigningKey
from edge.build import build_from_folder, build_from_gguf

Build = Callable[..., Path]


@pytest.fixture(scope="session")
def smollm2_gguf(model_path: Callable[[str], Path]) -> Path:
    return model_path("smollm2-135m-instruct-q4_1")


@pytest.fixture(scope="session")
def build() -> Build:
    """``build_from_gguf`` with the fields that these tests do not look at filled in."""
    return _filled_in(build_from_gguf)


@pytest.fixture(scope="session")
def build_folder() -> Build:
    """``build_from_folder`` likewise."""
    return _filled_in(build_from_folder)


@pytest.fixture(scope="session")
def build_by_export() -> Build:
    """``build_by_export`` likewise."""
    from edge.build.export import build_by_export

    return _filled_in(build_by_export)


def _filled_in(builder: Build) -> Build:
    key = SigningKey.generate()

    def build(source: Path, out: Path, **options: object) -> Path:
        return builder(
            source,
            out,
            name="tested",
            base_model="a model",
            licence="Apache-2.0",
            commercial_use=True,
            signing_key=key,
            **options,
        )

    return build


@pytest.fixture(scope="session")
def device_bundle(default_bundle: Path) -> Path:
    return default_bundle


@pytest.fixture(scope="session")
def exact_bundle(smollm2_gguf: Path, build: Build, tmp_path_factory) -> Path:
    return build(smollm2_gguf, tmp_path_factory.mktemp("bundles") / "exact", accuracy_level=0)
