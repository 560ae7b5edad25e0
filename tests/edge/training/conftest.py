"""Tiny models of every kind that the gradient graph is written for, and the tiny bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from cascade.signing import SigningKey, TrustStore
from edge.build import build_from_folder
from edge.bundle import Bundle
from tests.edge.build.folders import round_weights, save_model


@dataclass(frozen=True)
class Kind:
    """A model to build; ``config`` as transformers takes it."""

    family: str
    quantise: str
    kv_heads: int
    tied: bool
    biases: bool = False

    def __str__(self) -> str:
        tied = "tied" if self.tied else "untied"
        more = "-biases" if self.biases else ""
        return f"{self.family}-{self.quantise}-kv{self.kv_heads}-{tied}{more}"


KINDS = (
    Kind("llama", "fp32", 2, tied=False),
    Kind("llama", "fp32", 4, tied=True, biases=True),
    Kind("llama", "int8", 4, tied=True),
    Kind("llama", "int4", 1, tied=False),
    Kind("qwen2", "fp32", 2, tied=True),
    Kind("qwen2", "int8", 1, tied=False),
    Kind("qwen2", "int4", 2, tied=True),
)

Built = tuple[Bundle, PreTrainedModel]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Kind], Built]:
    """A bundle of a kind and the torch model that has exactly its weights; made once each."""
    known: dict[Kind, Built] = {}
    key = SigningKey.generate()
    trust = TrustStore(tmp_path_factory.mktemp("trust"))
    trust.pin("tests", key.public)

    def build(kind: Kind) -> Built:
        if kind not in known:
            folder: Path = tmp_path_factory.mktemp("model")
            config: dict[str, object] = {
                "num_key_value_heads": kind.kv_heads,
                "tie_word_embeddings": kind.tied,
            }
            if kind.biases:
                config |= {"attention_bias": True, "mlp_bias": True}
            model = save_model(folder, kind.family, **config)
            path = build_from_folder(
                folder,
                folder / "bundle",
                name=str(kind),
                base_model="random weights",
                licence="Apache-2.0",
                commercial_use=True,
                signing_key=key,
                quantise=kind.quantise,
                accuracy_level=0,
                gradient_layers=2,
            )
            if kind.quantise != "fp32":
                round_weights(model, int(kind.quantise.removeprefix("int")))
            known[kind] = (Bundle.open(path, trust), model)
        return known[kind]

    return build


@pytest.fixture(scope="session", params=KINDS, ids=str)
def pair(request: pytest.FixtureRequest, built: Callable[[Kind], Built]) -> Built:
    """Each kind in turn."""
    return built(request.param)


@pytest.fixture(scope="session")
def without_gradient(tiny, tmp_path_factory) -> Bundle:
    """The tiny bundle as older versions made it."""
    files = {
        name: entry
        for name, entry in tiny.bundle.manifest.files.items()
        if name not in ("gradient.onnx", "scores.onnx", "trunk.onnx")
    }
    manifest = dataclasses.replace(tiny.bundle.manifest, files=files)
    return dataclasses.replace(tiny.bundle, manifest=manifest)
