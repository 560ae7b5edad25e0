"""A child that trains as a device does: onnxruntime and numpy, no torch in the process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from benchmarks.child import Fields, serve, timed
from benchmarks.federated import batches
from cascade.signing import TrustStore
from edge.bundle import Bundle
from edge.memory import memory
from edge.training import GradientSession, Trainer, TrainingPlan

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
        trainer = Trainer(own, lessons, TrainingPlan(epochs=1, batch_size=8))
        for _ in trainer.read():
            pass
        for _ in trainer.run():
            pass
        return {"peak": memory().peak, "torch": "torch" in sys.modules}

    return {"gradient": gradient, "step": step, "train": train}


if __name__ == "__main__":
    serve(_open)
