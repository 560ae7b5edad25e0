"""A task on which strategies can be compared in seconds: LoRA on a small network, numpy only.

A frozen network of two 64 × 64 linears classifies inputs; a teacher is the same network with a
change of low rank in both linears, and devices hold few inputs that the teacher has labelled, of
few classes each (Dirichlet over classes). Training and averaging LoRA over the devices should find
the change. Server and codec are the product's own; only model and training are made up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cascade.federation import Bits, clip_to_norm, decode, encode, shapes_of
from cascade.federation.tensors import Floats
from cloud.federation import FRESH, Contribution, Strategy

Doubles: TypeAlias = NDArray[np.float64]
Trained: TypeAlias = Literal["b", "ab"]

WIDTH, CLASSES = 64, 10
_MODULES = ("layers.0.up", "layers.1.up")
_TRUE_RANK, _CHANGE = 4, 4.0
_EACH, _STEPS, _BATCH = 200, 10, 20
CLIP = 10.0


@dataclass(frozen=True, slots=True)
class Task:
    """A seed's network, devices and test set.

    Arguments:
        frozen: two [WIDTH, WIDTH] and a readout [WIDTH, CLASSES].
        inputs: of the devices, [devices, examples, WIDTH].
        labels: [devices, examples].
        test: inputs and labels, as the teacher has them.
    """

    frozen: tuple[Doubles, Doubles, Doubles]
    inputs: Doubles
    labels: NDArray[np.intp]
    test: tuple[Doubles, NDArray[np.intp]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to.

    Arguments:
        accuracy: on the test set, in %.
        errors: ``agg_rel_err`` of each round.
        bytes_up: of one update.
    """

    accuracy: float
    errors: tuple[float, ...]
    bytes_up: int


def draw_task(seed: int, devices: int = 16, concentration: float = 0.3) -> Task:
    """Network, teacher and devices of a seed."""
    rng = np.random.default_rng([seed, 1])
    scale = 1 / np.sqrt(WIDTH)
    frozen = (
        scale * rng.standard_normal((WIDTH, WIDTH)),
        scale * rng.standard_normal((WIDTH, WIDTH)),
        3 * scale * rng.standard_normal((WIDTH, CLASSES)),
    )
    changes = [_low_rank(rng) for _ in _MODULES]
    pool = _draw_inputs(rng, 20_000)
    labels = _forward(frozen, changes, pool)[-1].argmax(axis=1)
    by_class = [np.flatnonzero(labels == c) for c in range(CLASSES)]
    picked = []
    for _ in range(devices):
        share = rng.dirichlet(np.full(CLASSES, concentration))
        wanted = rng.choice(CLASSES, size=_EACH, p=share)
        picked.append([rng.choice(by_class[c]) for c in wanted])
    inputs = _draw_inputs(rng, 4000)
    test = inputs, _forward(frozen, changes, inputs)[-1].argmax(axis=1)
    return Task(frozen, pool[picked], labels[picked], test)


def federate(
    task: Task,
    strategy: Strategy,
    *,
    rank: int,
    trained: Trained,
    rate: float,
    bits: Bits,
    rounds: int,
    seed: int,
) -> Outcome:
    """Run ``rounds`` rounds in which every device takes part."""
    rng = np.random.default_rng([seed, 2])
    served = fresh(rank, rng)
    state, errors, size = FRESH, [], 0
    for _ in range(rounds):
        contributions = []
        for change in train(task, served, trained, rate, rng):
            sent = encode(clip_to_norm(change, CLIP), bits, rng)
            size = len(sent)
            contributions.append(Contribution(served, decode(sent, shapes_of(change))))
        made = strategy.aggregate(served, contributions, state)
        served, state = dict(made.tensors), made.state
        errors.append(made.agg_rel_err)
    return Outcome(accuracy(task, served), tuple(errors), size)


def accuracy(task: Task, served: dict[str, Floats]) -> float:
    """Share of test inputs on which the adapted network says what the teacher does, in %.

    Arguments:
        served: empty for the frozen network.
    """
    inputs, labels = task.test
    return 100 * float(np.mean(said(task, served, inputs) == labels))


def said(task: Task, served: dict[str, Floats], inputs: Doubles) -> NDArray[np.intp]:
    """The class that the adapted network gives each input, shape ``[inputs]``."""
    nothing = np.zeros((WIDTH, WIDTH))
    changes = [_product(served, module) if served else nothing for module in _MODULES]
    return np.asarray(_forward(task.frozen, changes, inputs)[-1].argmax(axis=1), np.intp)


def fresh(rank: int, rng: np.random.Generator) -> dict[str, Floats]:
    """The adapter that training starts from."""
    served: dict[str, Floats] = {}
    for module in _MODULES:
        a = rng.standard_normal((WIDTH, rank)) / np.sqrt(WIDTH)
        served[f"{module}.a"] = a.astype(np.float32)
        served[f"{module}.b"] = np.zeros((rank, WIDTH), np.float32)
    return served


def train(
    task: Task,
    served: dict[str, Floats],
    trained: Trained,
    rate: float,
    rng: np.random.Generator,
) -> list[dict[str, Floats]]:
    """What each device changes in its tensors by some steps of SGD on the cross entropy.

    All devices at once, along a first axis.
    """
    count, size = task.labels.shape
    now = {
        name: np.repeat(tensor[None].astype(np.float64), count, axis=0)
        for name, tensor in served.items()
    }
    for _ in range(_STEPS):
        rows = rng.permuted(np.tile(np.arange(size), (count, 1)), axis=1)[:, :_BATCH]
        inputs = np.take_along_axis(task.inputs, rows[:, :, None], axis=1)
        labels = np.take_along_axis(task.labels, rows, axis=1)
        changes = [now[f"{module}.a"] @ now[f"{module}.b"] for module in _MODULES]
        x, first, second, logits = _forward(task.frozen, changes, inputs)
        odds = np.exp(logits - logits.max(axis=2, keepdims=True))
        back = odds / odds.sum(axis=2, keepdims=True) - np.eye(CLASSES)[labels]
        back = (back / _BATCH) @ task.frozen[2].T * (1 - second**2)
        gradients = {_MODULES[1]: _turned(first) @ back}
        back = back @ _turned(task.frozen[1] + changes[1]) * (1 - first**2)
        gradients[_MODULES[0]] = _turned(x) @ back
        for module, gradient in gradients.items():
            a, b = now[f"{module}.a"], now[f"{module}.b"]
            now[f"{module}.b"] = b - rate * _turned(a) @ gradient
            if trained == "ab":
                now[f"{module}.a"] = a - rate * gradient @ _turned(b)
    kept = [name for name in served if trained == "ab" or name.endswith(".b")]
    return [
        {name: (now[name][device] - served[name]).astype(np.float32) for name in kept}
        for device in range(count)
    ]


def _forward(
    frozen: tuple[Doubles, Doubles, Doubles], changes: Sequence[Doubles], x: Doubles
) -> tuple[Doubles, Doubles, Doubles, Doubles]:
    first = np.tanh(x @ (frozen[0] + changes[0]))
    second = np.tanh(first @ (frozen[1] + changes[1]))
    return x, first, second, second @ frozen[2]


def _turned(matrices: Doubles) -> Doubles:
    return np.asarray(np.swapaxes(matrices, -1, -2), np.float64)


def _product(tensors: dict[str, Floats] | dict[str, Doubles], module: str) -> Doubles:
    return np.asarray(tensors[f"{module}.a"] @ tensors[f"{module}.b"], np.float64)


def _draw_inputs(rng: np.random.Generator, count: int) -> Doubles:
    """With a spectrum that falls as 1/j, as that of a language model's activations falls."""
    spread = 1 / np.arange(1, WIDTH + 1)
    spread *= np.sqrt(WIDTH / np.sum(spread**2))
    return np.asarray(rng.standard_normal((count, WIDTH)) * spread, np.float64)


def _low_rank(rng: np.random.Generator) -> Doubles:
    """A change whose singular values halve, as strong as the frozen weights."""
    left = np.linalg.qr(rng.standard_normal((WIDTH, _TRUE_RANK)))[0]
    right = np.linalg.qr(rng.standard_normal((WIDTH, _TRUE_RANK)))[0]
    return np.asarray(_CHANGE * (left * 0.8 ** np.arange(_TRUE_RANK)) @ right.T, np.float64)
