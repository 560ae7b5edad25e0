"""How far a run is, on disk: whole or absent, so that a run that is killed goes on from there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy

from cascade.errors import InvalidInput
from cascade.files import write_whole
from cascade.strict import Fields
from edge.safetensors_file import read_bytes
from edge.training.lesson import Floats

_STATE = "optimiser."


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state after a whole step.

    Arguments:
        run: digest of plan, data, base and parent; of another run it is of no use.
        step: steps done.
        vector, best: parameters now, and those with the least held-out loss.
        best_loss, start_loss: held-out losses; None without examples kept aside.
        waited: epochs since ``best``.
        optimiser: its state.
    """

    run: str
    step: int
    vector: Floats
    best: Floats
    best_loss: float | None
    start_loss: float | None
    waited: int
    optimiser: Mapping[str, Floats]

    def write(self, path: Path) -> None:
        """Put it at ``path``, in place of an earlier one."""
        tensors = {"vector": self.vector, "best": self.best}
        tensors |= {f"{_STATE}{name}": values for name, values in self.optimiser.items()}
        progress = {
            "run": self.run,
            "step": self.step,
            "best_loss": self.best_loss,
            "start_loss": self.start_loss,
            "waited": self.waited,
        }
        data = safetensors.numpy.save(tensors)
        head = json.dumps(progress).encode()
        write_whole(path, len(head).to_bytes(8, "little") + head + data, private=True)


def read_checkpoint(path: Path, run: str) -> Checkpoint | None:
    """The checkpoint of ``run`` at ``path``; None where there is none, or another run's.

    Raises:
        InvalidInput: the file is damaged.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    end = 8 + int.from_bytes(data[:8], "little")
    try:
        fields = Fields.from_bytes(data[8:end], "checkpoint")
        if fields.text("run") != run:
            return None
        found = read_bytes(data[end:], path.name)
        tensors = {name: np.array(tensor.values(), np.float32) for name, tensor in found.items()}
        return Checkpoint(
            run=run,
            step=fields.integer("step", 0, 2**53),
            vector=tensors["vector"],
            best=tensors["best"],
            best_loss=fields.number_or_none("best_loss"),
            start_loss=fields.number_or_none("start_loss"),
            waited=fields.integer("waited", 0, 2**53),
            optimiser={
                name.removeprefix(_STATE): values
                for name, values in tensors.items()
                if name.startswith(_STATE)
            },
        )
    except (InvalidInput, KeyError):
        raise InvalidInput("checkpoint", f"{path} is damaged; remove it to start anew") from None
