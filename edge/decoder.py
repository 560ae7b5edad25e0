"""The decoder graph at work: token ids in, one row of logits out, over one key-value cache.

The cache is an array per layer that the graph reads and extends in place. It remembers which tokens
it holds, so that reading a sequence computes only what follows the longest prefix in common with
the previous one. Choosing tokens is not done here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from cascade.errors import BundleError, Cancelled, InvalidInput
from cascade.local import CancelToken
from edge.bundle import DECODE_GRAPH, Manifest

# Tokens read in one run: bounds the time between two looks at the cancel token.
_CHUNK = 128
# The cache grows in steps, so that short prompts do not pay for the longest context.
_CACHE_STEP = 256

Row = NDArray[np.float32]


class Decoder:
    """One decoder graph with one key-value cache. Not thread-safe; ``edge.model`` holds the lock.

    Arguments:
        folder: a verified bundle's folder.
        threads: threads of one run. They sleep instead of spinning while they wait, because
            spinning starves whatever else runs on the device's cores.
    """

    def __init__(self, folder: Path, manifest: Manifest, *, threads: int = 1) -> None:
        if threads < 1:
            raise InvalidInput("threads", f"{threads} is below 1")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(
                str(folder / DECODE_GRAPH), options, providers=["CPUExecutionProvider"]
            )
        except Exception as problem:  # onnxruntime raises a dozen unrelated types
            first_line = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
            raise BundleError(
                f"{DECODE_GRAPH}: onnxruntime cannot load it ({first_line})"
            ) from None
        self._manifest = manifest
        self._binding = self._session.io_binding()
        self._held: list[int] = []
        self._capacity = 0
        self._cache: list[NDArray[np.float32]] = []
        # Bound once and updated in place: rebinding on every token would cost more than the copy.
        self._one_id = np.zeros((1, 1), np.int64)
        self._last = np.zeros(1, np.int64)
        self._seqlens_k = np.zeros(1, np.int32)
        self._total = np.zeros((), np.int32)
        self._logits = np.zeros((1, manifest.vocab_size), np.float32)
        self._row: Row = self._logits[0]
        self._step_ready = False

    def read(self, tokens: Sequence[int], cancel: CancelToken | None = None) -> Row:
        """Logits that follow ``tokens``.

        Arguments:
            tokens: the whole sequence from its start, 1 to ``context_tokens`` ids.

        Returns:
            float32, shape ``[vocab]``; valid until the next call.

        Raises:
            InvalidInput: the sequence is empty or too long.
            Cancelled: ``cancel`` was used; what was read stays in the cache.
        """
        self._check_length(len(tokens))
        start = self._common_prefix(tokens)
        del self._held[start:]
        while start < len(tokens):
            if cancel is not None and cancel.cancelled:
                raise Cancelled("the request was cancelled while the prompt was read")
            chunk = tokens[start : start + _CHUNK]
            self._run(np.array([chunk], np.int64))
            self._held.extend(chunk)
            start += len(chunk)
        return self._row

    def push(self, token: int) -> Row:
        """Logits after one more token: ``read`` of everything held plus ``token``.

        Raises:
            InvalidInput: the context is full.
        """
        self._check_length(len(self._held) + 1)
        self._one_id[0, 0] = token
        self._run(self._one_id)
        self._held.append(token)
        return self._row

    def forget(self) -> None:
        """Empty the cache, so that the next ``read`` computes everything."""
        self._held.clear()

    @property
    def free_tokens(self) -> int:
        """How many more tokens fit into the context."""
        return self._manifest.context_tokens - len(self._held)

    def _check_length(self, tokens: int) -> None:
        if tokens < 1:
            raise InvalidInput("prompt", "is empty; write what you want to ask")
        if tokens > self._manifest.context_tokens:
            raise InvalidInput(
                "prompt",
                f"has {tokens} tokens; {self._manifest.name} reads at most "
                f"{self._manifest.context_tokens}. Shorten it",
            )
        if tokens > self._capacity:
            self._grow(tokens)

    def _common_prefix(self, tokens: Sequence[int]) -> int:
        """Length of the cached prefix; at least the last token is always run for its logits."""
        limit = min(len(self._held), len(tokens) - 1)
        for position in range(limit):
            if self._held[position] != tokens[position]:
                return position
        return limit

    def _run(self, ids: NDArray[np.int64]) -> None:
        count = ids.shape[1]
        total = len(self._held) + count
        self._last[0] = count - 1
        self._seqlens_k[0] = total - 1
        self._total[()] = total
        step = ids is self._one_id
        if not (step and self._step_ready):
            self._binding.bind_cpu_input("input_ids", ids)
            self._bind_fixed()
            self._step_ready = step
        self._session.run_with_iobinding(self._binding)

    def _bind_fixed(self) -> None:
        """Bind what keeps its place. Cheap beside a prefill; skipped while stepping."""
        binding = self._binding
        binding.bind_ortvalue_input("logit_positions", _ortvalue(self._last))
        binding.bind_ortvalue_input("seqlens_k", _ortvalue(self._seqlens_k))
        binding.bind_ortvalue_input("total_sequence_length", _ortvalue(self._total))
        binding.bind_ortvalue_output("logits", _ortvalue(self._logits))
        for index, buffer in enumerate(self._cache):
            layer, part = divmod(index, 2)
            value = _ortvalue(buffer)
            name = ("key", "value")[part]
            binding.bind_ortvalue_input(f"past_key_values.{layer}.{name}", value)
            binding.bind_ortvalue_output(f"present.{layer}.{name}", value)

    def _grow(self, tokens: int) -> None:
        capacity = min(-(-tokens // _CACHE_STEP) * _CACHE_STEP, self._manifest.context_tokens)
        shape = (1, self._manifest.kv_heads, capacity, self._manifest.head_dim)
        grown = [np.zeros(shape, np.float32) for _ in range(2 * self._manifest.layers)]
        for new, old in zip(grown, self._cache, strict=False):
            new[:, :, : old.shape[2]] = old
        self._cache, self._capacity, self._step_ready = grown, capacity, False


def _ortvalue(array: NDArray[np.generic]) -> ort.OrtValue:
    """A view: on the CPU onnxruntime shares the array's memory."""
    return ort.OrtValue.ortvalue_from_numpy(array)
