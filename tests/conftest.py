"""What all tests share: a home of their own, and the default models, fetched once into a cache."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from cascade import download, home
from cascade.testing import TinyBundle, tiny_bundle

# Before any test has a home of its own: models are too large to fetch for each run.
_CACHE = Path(os.environ.get("CASCADE_TEST_CACHE") or home.models_dir())

# Shared machines pause; a slow example is not a wrong one. The same examples everywhere: a check
# that fails now and then is no gate (HYPOTHESIS_PROFILE=search looks for new ones).
_PATIENT = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("default", derandomize=True, **_PATIENT)
hypothesis.settings.register_profile("search", **_PATIENT)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(scope="session", autouse=True)
def session_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """CASCADE_HOME of all tests and of what they start; the user's own is never touched."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("home")
        patch.setenv("CASCADE_HOME", str(path))
        yield path


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CASCADE_HOME for this test alone, with nothing in it."""
    path = tmp_path / "empty-home"
    monkeypatch.setenv("CASCADE_HOME", str(path))
    return path


@pytest.fixture(scope="session")
def model_path() -> Callable[[str], Path]:
    """The file of a catalog entry, fetched on first use into ``CASCADE_TEST_CACHE`` (by default the
    user's own models folder) and kept there."""

    def path(name: str) -> Path:
        return download.pull(name, directory=_CACHE)

    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    """The tiny bundle. Its policies stay empty: a test that installs one builds its own."""
    return tiny_bundle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def default_bundle(session_home: Path, model_path: Callable[[str], Path]) -> Path:
    """The default bundle, built from its GGUF file, where ``Device.open()`` looks for it; its
    publisher is pinned there too."""
    from cascade.signing import SigningKey, TrustStore
    from edge import DEFAULT_BUNDLE
    from edge.build import build_from_gguf

    key = SigningKey.generate()
    TrustStore(home.trust_dir()).pin("tests", key.public)
    return build_from_gguf(
        model_path("smollm2-135m-instruct-q4_1"),
        home.bundles_dir() / DEFAULT_BUNDLE,
        name=DEFAULT_BUNDLE,
        base_model="SmolLM2-135M-Instruct",
        licence="Apache-2.0",
        commercial_use=True,
        signing_key=key,
    )
