"""What is measured: the default bundle, built anew from its GGUF file by the code at hand."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import Child
from benchmarks.run import Run
from cascade import catalog, download
from cascade.signing import SigningKey, TrustStore

MODEL = "smollm2-135m-instruct-q4_1"


@dataclass(frozen=True, slots=True)
class Subject:
    """The model, and a folder that is gone after the run.

    Arguments:
        gguf: the source file.
        bundle: for devices: int8 activations.
        trust: pins the key that signed it.
    """

    gguf: Path
    bundle: Path
    trust: Path
    key: SigningKey
    folder: tempfile.TemporaryDirectory[str]

    def engine(self) -> Child:
        """A child that runs the bundle."""
        return Child("benchmarks.edge.engine", self.bundle, self.trust)


def prepare(run: Run) -> Subject:
    """Fetch the model where it is not here, and build the bundle.

    Raises:
        CascadeError: it cannot be fetched or built.
    """
    run.say(f"building the bundle from {MODEL}")
    gguf = download.pull(MODEL)
    folder = tempfile.TemporaryDirectory(prefix="cascade-bench-")
    key = SigningKey.generate()
    trust = Path(folder.name) / "trust"
    TrustStore(trust).pin("benchmarks", key.public)
    bundle = Path(folder.name) / "smollm2-135m-instruct-int4"
    build(gguf, bundle, key)
    return Subject(gguf, bundle, trust, key, folder)


def build(gguf: Path, out: Path, key: SigningKey, *, exact: bool = False) -> Path:
    """A bundle for devices, or the exact one: float32 activations."""
    from edge.build import build_from_gguf

    entry = catalog.entry(MODEL)
    return build_from_gguf(
        gguf,
        out,
        name=out.name,
        base_model=entry.title,
        licence=entry.licence,
        commercial_use=entry.commercial_use,
        signing_key=key,
        accuracy_level=0 if exact else 4,
    )
