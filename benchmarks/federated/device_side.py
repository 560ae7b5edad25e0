"""A child that trains as a device does: onnxruntime and numpy, no torch in the process."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from benchmarks.child import Fields, serve, timed
from benchmarks.federated import batches
from cascade.conditions import Conditions, FixedConditions
from cascade.federation.plan import RoundPlan
from cascade.request import Message
from cascade.signing import TrustStore
from edge.adapter import Adapter, AdapterManifest, LoraPair
from edge.bundle import Bundle
from edge.examples import Example, ExampleStore, Source
from edge.federation import ExampleTrainer, StartingPoint, Trained
from edge.memory import memory
from edge.training import GradientSession, Trainer, TrainingPlan, drawn_a
from edge.training.allowance import TrainingAllowance
from edge.training.policy import TrainingLimits

_EXAMPLES, _LONGEST = 24, 128


def _open() -> Mapping[str, Callable[..., Fields]]:
    bundle = Bundle.open(Path(sys.argv[1]), TrustStore(Path(sys.argv[2])))
    vocabulary = bundle.manifest.vocab_size
    session: list[GradientSession] = []

    def opened() -> GradientSession:
        if not session:
            session.append(GradientSession(bundle, keep="nothing"))
        return session[0]

    def linears(modules: list[str]) -> list[tuple[str, int, int]]:
        return [
            (module, slot.columns, width)
            for slot in opened().slots
            for module, width in zip(slot.modules, slot.widths, strict=True)
            if module.rpartition(".")[2] in modules
        ]

    def gradient(seed: int, modules: list[str], out: str) -> Fields:
        pairs = batches.pairs(seed, linears(modules))
        outcome = opened().run(batches.lessons(seed, vocabulary), pairs)
        found = {name: (pair.a, pair.b) for name, pair in outcome.gradients.items()}
        np.save(out, batches.flat(found))
        return {"loss": outcome.loss}

    def step(tokens: int, modules: list[str]) -> Fields:
        pairs = batches.pairs(0, linears(modules))
        lessons = batches.of_length(tokens, vocabulary)
        return timed(lambda: opened().run(lessons, pairs))

    def train() -> Fields:
        """A whole run with the default plan, as ``cascade adapters train`` does it."""
        own = GradientSession(bundle)
        lessons = [
            lesson
            for seed in range(_EXAMPLES // 2)
            for lesson in batches.of_length(_LONGEST - seed, vocabulary) * 2
        ]
        trainer = Trainer(own, lessons, TrainingPlan(layers=len(own.layers), epochs=1))
        for _ in trainer.read():
            pass
        for _ in trainer.run():
            pass
        return {"peak": memory().peak, "torch": "torch" in sys.modules}

    def take_part() -> Fields:
        """Learn from a store of examples what a round asks for, as a device of a federation."""
        with tempfile.TemporaryDirectory() as folder:
            trained = _in_a_round(bundle, Path(folder))
        return {
            "peak": memory().peak,
            "torch": "torch" in sys.modules,
            "examples": trained.examples,
        }

    return {"gradient": gradient, "step": step, "train": train, "take_part": take_part}


def _in_a_round(bundle: Bundle, folder: Path) -> Trained:
    words = sorted({word for word in (__doc__ or "").split() if word.isalpha()})
    draw = np.random.default_rng(0)
    store = ExampleStore(folder / "examples.sqlite3")
    store.grant()
    for number in range(_EXAMPLES):
        asked = (Message("user", " ".join(draw.choice(words, 100))),)
        store.add(Example(str(number), asked, "a device", Source.CORRECTION, time.time()))
    pairs = {
        module: LoraPair(
            drawn_a("benchmark", module, slot.columns, 8), np.zeros((8, width), np.float32)
        )
        for slot in bundle.manifest.adapter_slots[-4 * RoundPlan().layers :]  # four a layer
        for module, width in zip(slot.modules, slot.widths, strict=True)
        if module.endswith(("q_proj", "v_proj"))
    }
    manifest = AdapterManifest("start", 1, "", bundle.manifest.base_digest, "", "")
    tensors = {f"{name}.{side}": getattr(p, side) for name, p in pairs.items() for side in "ab"}
    allowance = TrainingAllowance(
        TrainingLimits(),
        FixedConditions(Conditions("unmetered", charging=True, idle=True)),
        path=folder / "training.sqlite3",
    )
    start = StartingPoint(manifest.base_digest, Adapter(manifest, "0" * 64, pairs), tensors)
    return ExampleTrainer(bundle, store, allowance)(RoundPlan(), start)


if __name__ == "__main__":
    serve(_open)
