"""The tiny bundle, under the names of its parts: what these tests look at holds for any model."""

from __future__ import annotations

import pytest

from cascade.signing import TrustStore
from cascade.testing import TinyBundle
from edge.bundle import Bundle


@pytest.fixture(scope="session")
def bundle(tiny: TinyBundle) -> Bundle:
    return tiny.bundle


@pytest.fixture(scope="session")
def trust(tiny: TinyBundle) -> TrustStore:
    """Pins the key that signed ``bundle``."""
    return tiny.trust
