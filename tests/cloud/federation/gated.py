"""A gate to test with: the tiny bundle, an adapter that it is right with, and rows to show it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cascade.signing import SigningKey, TrustStore
from cascade.task import Task
from cascade.testing.tiny import TinyBundle
from cloud.federation.adapters import Adapters
from cloud.federation.gate.config import GateConfig, TaskGate
from cloud.federation.gate.evaluation import Examination
from cloud.registry import Registry
from edge import OnnxModel
from edge.adapter import LoraPair, write_adapter
from edge.head import Head, HeadSpec

OPTIONS = ("red", "green", "blue")
TASK = Task("colours", OPTIONS, "Text: {input}\nLabel:", " ", "{input}", prior_correction=False)
RANK = 2


def words(seed: int, rows: int) -> list[str]:
    draw = np.random.default_rng(seed)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    return ["".join(draw.choice(letters, size=8)) + f" {seed} {row}" for row in range(rows)]


@dataclass
class Gated:
    """Files of a gate, and a registry with the first adapter, which the rows agree with."""

    folder: Path
    tiny: TinyBundle
    registry: Registry
    key: SigningKey
    first: str
    config: GateConfig

    @classmethod
    def made(cls, folder: Path, tiny: TinyBundle, share: float = 1.0, **given: Any) -> Gated:
        registry = Registry(str(folder / "registry"))
        key = SigningKey.generate()
        trust = TrustStore(folder / "trust")
        trust.pin("tiny", tiny.key.public)
        trust.pin("gate", key.public)
        registry.publish(tiny.path, trust)
        path = write_adapter(
            folder / "first",
            pairs(tiny, 0.0),
            name="first",
            base_digest=tiny.bundle.manifest.base_digest,
            signing_key=key,
        )
        first = registry.publish(path, trust).artifact.digest
        (folder / "task.json").write_text(json.dumps(TASK.to_json()))
        model = OnnxModel(tiny.bundle)
        for seed, (name, rows) in enumerate(
            {"held_out": 480, "develop": 120, "certify": 160, "out_of_scope": 60}.items()
        ):
            write_rows(
                folder / f"{name}.jsonl",
                model,
                words(seed, round(share * rows)),
                label=name[0] != "o",
            )
        task = {
            "wording": folder / "task.json",
            **{name: folder / f"{name}.jsonl" for name in ("held_out", "develop", "certify")},
            "out_of_scope": folder / "out_of_scope.jsonl",
            "risk": 0.2,
            **given.pop("task", {}),
        }
        config = GateConfig(bundle=tiny.bundle.digest, tasks=(TaskGate(**task),), **given)
        return cls(folder, tiny, registry, key, first, config)

    def candidate(self, size: float, *, version: int = 2, seed: int = 1) -> str:
        """Publish an adapter whose B is drawn with this scale; its digest."""
        adapters = Adapters(self.registry, self.key)
        start = adapters.read(self.first)
        changed = {
            name: tensor
            for module, pair in pairs(self.tiny, size, seed).items()
            for name, tensor in ((f"{module}.b", pair.b),)
        }
        return adapters.publish(start, changed, version=version, name=f"round-{version}")

    def head(self, weight: float, *, version: int = 2) -> str:
        """Publish an adapter that is a head alone, which adds nothing (0) or noise to the model's
        own scores; its digest."""
        model = OnnxModel(self.tiny.bundle)
        width = len(model.features(TASK, "a"))
        draw = np.random.default_rng(7).normal(size=(len(OPTIONS), width))
        head = Head(
            HeadSpec(TASK, model.hidden_layer, lm_weight=1.0),
            (weight * draw).astype(np.float32),
            np.zeros(len(OPTIONS), np.float32),
            np.zeros(width, np.float32),
            np.ones(width, np.float32),
        )
        path = write_adapter(
            self.folder / f"head-{version}",
            {},
            name="head",
            base_digest=self.tiny.bundle.manifest.base_digest,
            signing_key=self.key,
            version=version,
            head=head,
        )
        return self.registry.publish(path, TrustStore(self.folder / "trust")).artifact.digest

    def examination(self, candidate: str) -> Examination:
        return Examination(
            self.config,
            candidate,
            (self.first,),
            self.registry.url,
            self.folder / "gate",
            self.folder / "trust",
        )


def write_rows(path: Path, model: OnnxModel, texts: list[str], *, label: bool) -> None:
    """Rows of which the bare model knows nine of ten, the ones that it is surest of."""
    rows: list[dict[str, object]] = [{"prompt": text} for text in texts]
    if label:
        answers = [
            model.choose(TASK.for_device(text), OPTIONS, option_prefix=" ") for text in texts
        ]
        unsure = np.quantile([each.raw_score for each in answers], 0.1)
        for row, each in zip(rows, answers, strict=True):
            wrong = OPTIONS[(OPTIONS.index(each.text) + 1) % len(OPTIONS)]
            row["reference"] = wrong if each.raw_score <= unsure else each.text
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def pairs(tiny: TinyBundle, size: float, seed: int = 1) -> Mapping[str, LoraPair]:
    """Adapters of every q and v projection."""
    draw = np.random.default_rng(seed)
    found = {}
    for slot in tiny.bundle.manifest.adapter_slots:
        for module, width in zip(slot.modules, slot.widths, strict=True):
            if module.endswith(("q_proj", "v_proj")):
                found[module] = LoraPair(
                    draw.normal(size=(slot.columns, RANK)).astype(np.float32),
                    (size * draw.normal(size=(RANK, width))).astype(np.float32),
                )
    return found
