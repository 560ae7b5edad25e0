"""Activations that enter the first trained layer: computed once a segment, then kept.

They depend on the base and, where an adapter reaches below the trained layers, on that adapter, but
on nothing that is being learned. Halves on disk: their rounding is far below that of the 8-bit
products that the trunk computes with.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, TypeAlias

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from cascade.errors import BundleError
from cascade.files import write_whole
from edge.bundle import COARSE_GRAPH, TRUNK_GRAPH, Bundle
from edge.memory import give_back
from edge.session import open_session
from edge.slots import slot_inputs
from edge.training.lesson import Floats, Segment

# A token before all others that nobody sees: see edge.build.trunk.
_PAST: Final = "past"
_BEFORE: Final = ((0, 0), (1, 0))


class Trunk:
    """The graph below the trained layers. Loaded when it is first needed.

    Arguments:
        adapter: ``lora.*`` inputs that are not idle; those of higher layers are left aside.
    """

    def __init__(
        self, bundle: Bundle, adapter: Mapping[str, Floats] | None = None, *, threads: int = 1
    ) -> None:
        self._bundle, self._threads = bundle, threads
        self._session: ort.InferenceSession | None = None
        self._inputs = slot_inputs(bundle.manifest, adapter)

    def hidden(self, segment: Segment) -> Floats:
        """float32 [T, hidden].

        Raises:
            BundleError: the bundle's trunk was built before it could read trees.
        """
        if self._session is None:
            self._session = self._opened()
        shapes = {wanted.name: wanted.shape for wanted in self._session.get_inputs()}
        if _PAST not in shapes:
            raise BundleError(
                f"{TRUNK_GRAPH}: is of a version that misread the answers of closed sets; build "
                "the bundle again with: cascade bundle build --force"
            )
        size = len(segment)
        _, heads, _, width = shapes[_PAST]
        given: dict[str, NDArray[np.generic]] = {
            "input_ids": np.array([segment.ids], np.int64),
            "seqlens_k": np.array([size], np.int32),
            "total_sequence_length": np.array(size + 1, np.int32),
            "position_ids": segment.positions[None],
            "attention_bias": np.pad(segment.bias(), _BEFORE, constant_values=-np.inf)[None, None],
            _PAST: np.zeros((1, heads, 1, width), np.float32),
            **self._inputs,
        }
        hidden: Floats = self._session.run(["hidden"], {name: given[name] for name in shapes})[0]
        return hidden

    def _opened(self) -> ort.InferenceSession:
        """The session copies the matrices that it is given: they do not outlive this call."""
        coarse = {}
        if COARSE_GRAPH in self._bundle.manifest.files:
            coarse = coarse_weights(self._bundle.file(COARSE_GRAPH), threads=self._threads)
        return open_session(self._bundle.file(TRUNK_GRAPH), threads=self._threads, weights=coarse)

    @property
    def digest(self) -> str:
        """Hex sha256 of all that activations depend on, beside the segment: base, cut, adapter."""
        manifest = self._bundle.manifest
        state = hashlib.sha256(manifest.base_digest.encode())
        # The graphs say where it ends and how it rounds; they do not know the weights they read.
        for graph in (TRUNK_GRAPH, COARSE_GRAPH):
            if graph in manifest.files:
                state.update(manifest.files[graph].sha256.encode())
        for name, values in sorted(self._inputs.items()):
            if values.size:
                state.update(name.encode() + values.tobytes())
        return state.hexdigest()

    def close(self) -> bool:
        """Free the graph, if it is loaded; it is loaded again when it is needed. Whether it was."""
        was, self._session = self._session, None
        return was is not None


def coarse_weights(graph: Path, *, threads: int) -> dict[str, ort.OrtValue]:
    """Matrices that a trunk multiplies in whole numbers (``edge.build.coarse``), by name.

    Arguments:
        graph: the bundle's, that makes them of its weights.
        threads: see ``open_session``.
    """
    maker = open_session(graph, threads=threads)
    names = [output.name for output in maker.get_outputs()]
    made = maker.run(names, {"first": np.array(0)})
    return {
        name: ort.OrtValue.ortvalue_from_numpy(values)
        for name, values in zip(names, made, strict=True)
    }


Keep: TypeAlias = Path | Literal["memory", "nothing"]
"""Where activations are kept: in a folder, from run to run; in memory; or nowhere."""


class Activations:
    """What a trunk gave, kept as float16. Without keeping, it comes as it is."""

    def __init__(self, trunk: Trunk, keep: Keep = "memory") -> None:
        self._trunk = trunk
        self._keeps = keep != "nothing"
        self._held: dict[str, NDArray[np.float16]] = {}
        self._folder = keep / trunk.digest if isinstance(keep, Path) else None

    def get(self, segment: Segment) -> Floats:
        """float32 [T, hidden] of a segment."""
        if not self._keeps:
            return self._trunk.hidden(segment)
        kept = self._kept(segment)
        if kept is None or kept.shape[0] != len(segment):
            kept = self._trunk.hidden(segment).astype(np.float16)
            self._keep(segment, kept)
        return kept.astype(np.float32)

    def keeps(self, segment: Segment) -> bool:
        """Whether a segment's are kept, so that ``get`` need not compute them."""
        if self._folder is None:
            return segment.digest in self._held
        return self._path(segment).exists()

    def release_trunk(self) -> None:
        """Free the trunk's memory; what is not kept yet loads it again."""
        if self._trunk.close():
            give_back()

    def _kept(self, segment: Segment) -> NDArray[np.float16] | None:
        if self._folder is None:
            return self._held.get(segment.digest)
        try:
            kept = np.load(self._path(segment), allow_pickle=False)
        except (OSError, ValueError, EOFError):  # not there, or cut short: computed again
            return None
        return kept if kept.dtype == np.float16 and kept.ndim == 2 else None

    def _keep(self, segment: Segment, values: NDArray[np.float16]) -> None:
        if self._folder is None:
            self._held[segment.digest] = values
            return
        file = io.BytesIO()
        np.save(file, values)
        write_whole(self._path(segment), file.getvalue())

    def _path(self, segment: Segment) -> Path:
        assert self._folder is not None
        return self._folder / f"{segment.digest}.npy"
