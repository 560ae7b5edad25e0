"""The default bundle, built from its GGUF file once a session; a tiny model with random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from cascade.signing import SigningKey, TrustStore
from edge.build import build_from_gguf
from edge.bundle import Bundle
from edge.model import OnnxModel
from tests.edge.build.tiny import Tiny


@pytest.fixture(scope="session")
def publisher() -> SigningKey:
    """Signs the session's bundle."""
    return SigningKey.generate()


@pytest.fixture(scope="session")
def trust(tmp_path_factory: pytest.TempPathFactory, publisher: SigningKey) -> TrustStore:
    """Pins ``publisher``."""
    store = TrustStore(tmp_path_factory.mktemp("trust"))
    store.pin("tests", publisher.public)
    return store


@pytest.fixture(scope="session")
def bundle(build: Callable[..., Bundle]) -> Bundle:
    """SmolLM2-135M-Instruct, lossless int4, as devices get it."""
    return build(accuracy_level=4)


@pytest.fixture(scope="session")
def exact_bundle(build: Callable[..., Bundle]) -> Bundle:
    """The same with float32 activations: slow, and free of rounding noise."""
    return build(accuracy_level=0)


@pytest.fixture(scope="session")
def build(
    tmp_path_factory: pytest.TempPathFactory,
    model_path: Callable[[str], Path],
    publisher: SigningKey,
    trust: TrustStore,
) -> Callable[..., Bundle]:
    """Builds the default bundle."""

    def build(accuracy_level: Literal[0, 4]) -> Bundle:
        folder = build_from_gguf(
            model_path("smollm2-135m-instruct-q4_1"),
            tmp_path_factory.mktemp("bundles") / "smollm2",
            name="smollm2-135m-instruct-int4",
            base_model="SmolLM2-135M-Instruct",
            licence="Apache-2.0",
            commercial_use=True,
            signing_key=publisher,
            accuracy_level=accuracy_level,
        )
        return Bundle.open(folder, trust)

    return build


@pytest.fixture(scope="session")
def babbler(
    tmp_path_factory: pytest.TempPathFactory, publisher: SigningKey, trust: TrustStore
) -> OnnxModel:
    """Two layers with random weights over single bytes, for which any byte is about as likely as
    another: hundreds of tokens a second, and nothing that a grammar could lean on."""
    folder = tmp_path_factory.mktemp("babbler")
    built = build_from_gguf(
        Tiny().write(folder / "tiny.gguf", context_length=1024),
        folder / "bundle",
        name="babbler",
        base_model="random weights",
        licence="Apache-2.0",
        commercial_use=True,
        signing_key=publisher,
    )
    return OnnxModel(Bundle.open(built, trust))
