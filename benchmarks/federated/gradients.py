"""Gradients on the device against torch: whether they are right, what they cost, and the memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.edge.subject import Subject
from benchmarks.federated import batches
from benchmarks.hardware import package_version
from benchmarks.peers import Child
from benchmarks.rows import Row
from benchmarks.run import Run
from benchmarks.timing import Estimate, alternate, cpu, median, ratio
from edge.training import LINEARS

_LENGTHS = (25, 128, 256)
_DEFAULT = ["q_proj", "v_proj"]
_PEAKS = (
    (
        "peak memory of a training device",
        "train",
        "24 examples of up to 128 tokens with the default plan",
    ),
    (
        "peak memory of a device in a round",
        "take_part",
        "24 examples of some 150 tokens from its store, a round's default plan, compared with the "
        "adapter it started from",
    ),
)


def rows(subject: Subject, run: Run) -> Iterator[Row]:
    """Correctness on random batches, then CPU, then memory of a process of its own."""
    floats = _float_bundle(subject, run)
    with (
        Child("benchmarks.federated.torch_side", subject.gguf) as peer,
        Child("benchmarks.federated.device_side", subject.bundle, subject.trust) as shared,
        Child("benchmarks.federated.device_side", floats, subject.trust) as exact,
    ):
        yield from _correct(run, peer, {"fp32": exact, "shared int4": shared})
        yield from _cost(run, peer, {"ours": shared, "ours with fp32 weights": exact})
    for figure, what, how in _PEAKS:
        peaks = []
        for _ in range(1 if run.quick else 7):
            with Child("benchmarks.federated.device_side", subject.bundle, subject.trust) as child:
                reply = child.ask(what)
                assert not reply["torch"]
                peaks.append(reply["peak"] / 1e6)
        yield run.row(
            figure,
            median(peaks),
            "MB",
            f"{how}, in a fresh process without torch; VmHWM, Python and libraries included",
            reach=450.0,
        )


def _correct(run: Run, peer: Child, sides: dict[str, Child]) -> Iterator[Row]:
    count = 6 if run.quick else 100
    errors: dict[str, list[float]] = {name: [] for name in sides}
    cosines: dict[str, list[float]] = {name: [] for name in sides}
    run.say(f"{count} random batches")
    for seed in range(count):
        modules = list(LINEARS) if seed % 2 else _DEFAULT
        expected = _gradient(peer, seed, modules)
        for name, child in sides.items():
            found = _gradient(child, seed, modules)
            size = np.abs(expected).max()
            errors[name].append(float(np.abs(found - expected).max() / size))
            norms = np.linalg.norm(found) * np.linalg.norm(expected)
            cosines[name].append(float(found @ expected / norms))
    how = (
        f"{count} random batches of two texts, K = {batches.LAYERS}, rank {batches.RANK}, on q and "
        "v or all linears; torch in float32 on the weights that the GGUF's blocks stand for"
    )
    peer_name = f"torch {package_version('torch')}"
    for name in sides:
        yield run.row(
            f"gradients, {name}: largest error relative to the largest gradient",
            Estimate(max(errors[name]), count),
            "",
            f"maximum over {how}",
            reach=1e-3 if name == "fp32" else None,
            peer=peer_name,
        )
        yield run.row(
            f"gradients, {name}: cosine with torch, least",
            Estimate(min(cosines[name]), count),
            "",
            f"minimum over {how}",
            reach=None if name == "fp32" else 0.995,
            sense=">=",
            peer=peer_name,
        )


def _gradient(child: Child, seed: int, modules: list[str]) -> NDArray[np.float64]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "gradient.npy"
        child.ask("gradient", seed=seed, modules=modules, out=str(out))
        found: NDArray[np.float64] = np.load(out).astype(np.float64)
        return found


def _cost(run: Run, peer: Child, sides: dict[str, Child]) -> Iterator[Row]:
    """Of the bundle that devices have, whose weights are shared int4, and of one with the same
    floats that torch has."""
    rounds = 3 if run.quick else 15
    children = {**sides, "torch": peer}
    for tokens in _LENGTHS:
        run.say(f"CPU of a step, {tokens} tokens")
        samples = alternate(
            {
                name: partial(child.time, "step", tokens=tokens, modules=_DEFAULT)
                for name, child in children.items()
            },
            rounds,
        )
        how = (
            f"loss and gradients of one text of {tokens} tokens, ten of them targets, K = "
            f"{batches.LAYERS}, rank {batches.RANK} on q and v, one thread, trunk computed on "
            "all sides, alternating; ours reads shared int4 weights unless it says otherwise"
        )
        for name in children:
            figures = [1e3 * value for value in cpu(samples[name])]
            yield run.row(f"CPU of a step, {tokens} tokens, {name}", median(figures), "ms", how)
        for name in sides:
            yield run.row(
                f"CPU of a step, {tokens} tokens, {name} / torch",
                ratio(cpu(samples[name]), cpu(samples["torch"])),
                "",
                how,
                reach=0.8 if name == "ours" and tokens >= 128 else None,
                peer=f"torch {package_version('torch')}, float32",
            )


def _float_bundle(subject: Subject, run: Run) -> Path:
    """The same weights as floats."""
    from edge.build import build_from_gguf

    run.say("building the float32 reference")
    return build_from_gguf(
        subject.gguf,
        Path(subject.folder.name) / "fp32",
        name="fp32",
        base_model="SmolLM2-135M-Instruct",
        licence="Apache-2.0",
        commercial_use=True,
        signing_key=subject.key,
        quantise="fp32",
    )
