"""The tiny bundle, under the names of its parts: what these tests look at holds for any model."""

from __future__ import annotations

import pytest

from cascade.signing import SigningKey, TrustStore
from cascade.testing import TinyBundle
from edge.build import build_from_gguf
from edge.bundle import Bundle
from edge.model import OnnxModel
from tests.edge.build.tiny import Tiny


@pytest.fixture(scope="session")
def bundle(tiny: TinyBundle) -> Bundle:
    return tiny.bundle


@pytest.fixture(scope="session")
def trust(tiny: TinyBundle) -> TrustStore:
    """Pins the key that signed ``bundle``."""
    return tiny.trust


@pytest.fixture(scope="session")
def publisher(tiny: TinyBundle) -> SigningKey:
    """Signed ``bundle``."""
    return tiny.key


@pytest.fixture(scope="session")
def babbler(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    """Two layers with random weights over single bytes, for which any byte is about as likely as
    another: hundreds of tokens a second, and nothing that a grammar could lean on."""
    folder, key = tmp_path_factory.mktemp("babbler"), SigningKey.generate()
    trust = TrustStore(folder / "trust")
    trust.pin("tests", key.public)
    built = build_from_gguf(
        Tiny().write(folder / "tiny.gguf", context_length=1024),
        folder / "bundle",
        name="babbler",
        base_model="random weights",
        licence="Apache-2.0",
        commercial_use=True,
        signing_key=key,
    )
    return OnnxModel(Bundle.open(built, trust))
