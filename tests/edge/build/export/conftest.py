"""Small random models of several families and their bundles, each exported once for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from cascade.signing import SigningKey, TrustStore
from edge.build.export import build_by_export
from edge.build.quantise import Quantisation
from edge.bundle import Bundle

from ..folders import save_model


class Exports:
    """Models by family, and bundles of them with float32 activations.

    Attributes:
        key, trust: what the bundles are signed with, and a store that pins it.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._bundles: dict[tuple[str, str], Bundle] = {}
        self.key = SigningKey.generate()
        self.trust = TrustStore(home / "trust")
        self.trust.pin("tests", self.key.public)

    def folder(self, family: str) -> Path:
        """The model's folder; not to be written to."""
        folder = self._home / "models" / family
        if not folder.exists():
            save_model(folder, family)
        return folder

    def bundle(self, family: str, quantisation: Quantisation = "fp32") -> Bundle:
        """The model's bundle."""
        if (family, quantisation) not in self._bundles:
            out = build_by_export(
                self.folder(family),
                self._home / f"{family}-{quantisation}",
                name=f"tiny-{quantisation}",
                base_model="none",
                licence="Apache-2.0",
                commercial_use=True,
                signing_key=self.key,
                quantise=quantisation,
                accuracy_level=0,
            )
            self._bundles[family, quantisation] = Bundle.open(out, self.trust)
        return self._bundles[family, quantisation]


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    return Exports(tmp_path_factory.mktemp("exports"))
