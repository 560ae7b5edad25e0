"""The decoder graph of an exported model at work: the slower counterpart of ``edge.decoder``.

Such a graph takes the keys and values of the past as inputs and returns them grown by the new
tokens, so every step copies the past, and it computes logits for every token that it reads. Any
architecture comes this way. Methods and what they promise are those of ``edge.decoder.Decoder``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from cascade.errors import BundleError, Cancelled, InvalidInput
from cascade.local import CancelToken
from edge.bundle import DECODE_GRAPH, Manifest
from edge.decoder import HiddenOutput, TreeNode
from edge.session import open_session
from edge.slots import slot_inputs, slot_shapes

# Tokens read in one run: bounds the time between two looks at the cancel token, and the logits.
_CHUNK = 64
_PAST, _PRESENT = "past_key_values.", "present."

Row = NDArray[np.float32]


class ExportedDecoder:
    """One exported graph with one past. Not thread-safe; ``edge.model`` holds the lock.

    Arguments:
        folder: a verified bundle's folder.
        threads: threads of one run, ≥ 1.
        caches: taken for the sake of the common interface; there is one past only.

    Raises:
        BundleError: the graph cannot be loaded, or does not take and return what is expected.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, *, threads: int = 1, caches: int = 1
    ) -> None:
        self._session = open_session(folder / DECODE_GRAPH, threads=threads)
        self._manifest = manifest
        self.hidden: HiddenOutput | None = None
        """Exported graphs give no hidden states."""
        inputs = {value.name: value.shape for value in self._session.get_inputs()}
        self._past_names = [
            f"{_PAST}{layer}.{half}"
            for layer in range(manifest.layers)
            for half in ("key", "value")
        ]
        self._outputs = [
            "logits",
            *(name.replace(_PAST, _PRESENT, 1) for name in self._past_names),
        ]
        slots = slot_shapes(manifest)
        expected = {"input_ids", "attention_mask", *self._past_names, *slots}
        self._takes_positions = "position_ids" in inputs
        if inputs.keys() - {"position_ids"} != expected or not set(self._outputs) <= {
            value.name for value in self._session.get_outputs()
        }:
            raise BundleError(
                f"{DECODE_GRAPH}: is no exported decoder of {manifest.layers} layers with the "
                "adapter slots of its manifest; build the bundle again"
            )
        for name, shape in slots.items():
            if tuple(size if isinstance(size, int) else None for size in inputs[name]) != shape:
                raise BundleError(
                    f"{DECODE_GRAPH}: input {name} is not as {manifest.name}'s manifest says; "
                    "build the bundle again"
                )
        self._adapter, self._slots = "", self._slot_values(None)
        self._held: list[int] = []
        self._past: list[ort.OrtValue] = []
        self.forget()

    def read(self, tokens: Sequence[int], cancel: CancelToken | None = None) -> Row:
        """Logits that follow ``tokens``, float32 [vocab]; computes what follows the prefix in
        common with what is held.

        Raises:
            InvalidInput: the sequence is empty, too long, or has a token that is none.
            Cancelled: ``cancel`` was used; what was read stays.
        """
        self._check(len(tokens), tokens)
        start = self._common_prefix(tokens)
        self._go_back(start)
        row = np.zeros(0, np.float32)
        while start < len(tokens):
            if cancel is not None and cancel.cancelled:
                raise Cancelled("the request was cancelled while the prompt was read")
            chunk = tokens[start : start + _CHUNK]
            row = self._extend(chunk)
            start += len(chunk)
        return row

    def read_hidden(
        self, tokens: Sequence[int], start: int, cancel: CancelToken | None = None
    ) -> tuple[Row, NDArray[np.float32]]:
        """There are none.

        Raises:
            BundleError: always.
        """
        raise BundleError(f"{DECODE_GRAPH} of {self._manifest.name} gives no hidden states")

    def push(self, token: int) -> Row:
        """Logits after one more token: ``read`` of everything held plus ``token``.

        Raises:
            InvalidInput: the context is full, or ``token`` is none of the model's.
        """
        self._check(len(self._held) + 1, (token,))
        return self._extend((token,))

    def read_tree(
        self,
        tokens: Sequence[int],
        nodes: Sequence[TreeNode],
        cancel: CancelToken | None = None,
        *,
        known: int = 0,
    ) -> NDArray[np.float32]:
        """Logits after ``tokens`` and the path to each of ``nodes``, parents before children.

        Reads path after path, in an order in which each continues what it shares with the last.

        Returns:
            float32 [len(nodes) − known, vocab], without those of the first ``known`` nodes; what is
            held afterwards is ``tokens`` alone.
        """
        paths: list[tuple[int, ...]] = []
        for node in nodes:
            before = paths[node.parent] if node.parent >= 0 else ()
            paths.append((*before, node.token))
        rows = np.empty((len(nodes) - known, self._manifest.vocab_size), np.float32)
        for index in sorted(range(known, len(nodes)), key=paths.__getitem__):
            rows[index - known] = self.read([*tokens, *paths[index]], cancel)
        if nodes:
            self._go_back(len(tokens))
        return rows

    def keep(self, tokens: int) -> None:
        """Hold the first ``tokens`` of what was read, and not the rest."""
        self._go_back(tokens)

    def use_adapter(self, digest: str, inputs: Mapping[str, NDArray[np.float32]] | None) -> None:
        """Apply an adapter from the next call on; ``("", None)`` applies none.

        What is held was read under the adapter before, and is forgotten where that is another.
        """
        if digest != self._adapter:
            self.forget()
        self._adapter, self._slots = digest, self._slot_values(inputs)

    def forget(self) -> int:
        """Hold nothing, so that the next ``read`` computes everything; the tokens forgotten."""
        forgotten = len(self._held)
        self._held.clear()
        shape = (1, self._manifest.kv_heads, 0, self._manifest.head_dim)
        self._past = [_value(np.zeros(shape, np.float32)) for _ in self._past_names]
        return forgotten

    @property
    def free_tokens(self) -> int:
        """How many more tokens fit into the context."""
        return self._manifest.context_tokens - len(self._held)

    def _slot_values(
        self, adapter: Mapping[str, NDArray[np.float32]] | None
    ) -> dict[str, ort.OrtValue]:
        return {name: _value(x) for name, x in slot_inputs(self._manifest, adapter).items()}

    def _check(self, length: int, tokens: Sequence[int]) -> None:
        if length < 1:
            raise InvalidInput("prompt", "is empty; write what you want to ask")
        if length > self._manifest.context_tokens:
            raise InvalidInput(
                "prompt",
                f"has {length} tokens; {self._manifest.name} reads at most "
                f"{self._manifest.context_tokens}. Shorten it",
            )
        for token in tokens:
            if not 0 <= token < self._manifest.vocab_size:
                raise InvalidInput("prompt", f"{token} is no token of {self._manifest.name}")

    def _common_prefix(self, tokens: Sequence[int]) -> int:
        """Length of the held prefix; at least the last token is always run for its logits."""
        limit = min(len(self._held), len(tokens) - 1)
        for position in range(limit):
            if self._held[position] != tokens[position]:
                return position
        return limit

    def _go_back(self, length: int) -> None:
        """Hold the first ``length`` tokens only."""
        if length < len(self._held):
            self._past = [_value(value.numpy()[:, :, :length]) for value in self._past]
            del self._held[length:]

    def _extend(self, tokens: Sequence[int]) -> Row:
        first, total = len(self._held), len(self._held) + len(tokens)
        feeds = self._slots | dict(zip(self._past_names, self._past, strict=True))
        feeds["input_ids"] = _value(np.array([tokens], np.int64))
        feeds["attention_mask"] = _value(np.ones((1, total), np.int64))
        if self._takes_positions:
            feeds["position_ids"] = _value(np.arange(first, total, dtype=np.int64)[None])
        logits, *present = self._session.run_with_ort_values(self._outputs, feeds)
        self._past = present
        self._held.extend(tokens)
        row: Row = logits.numpy()[0, -1]
        return row


def _value(array: NDArray[np.generic]) -> ort.OrtValue:
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
