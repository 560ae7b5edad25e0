"""The decoder graph at work: token ids in, rows of logits out.

What was read stays in one of several key-value caches (``edge.cache``), so that a sequence is
computed only from where it leaves the sequences known. Choosing tokens is not done here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from cascade.errors import BundleError, Cancelled, InvalidInput
from cascade.local import CancelToken
from edge.bundle import DECODE_GRAPH, HIDDEN_PREFIX, Manifest
from edge.cache import CachePool, KeyValueCache
from edge.huge_pages import new_memory, use_huge_pages
from edge.session import open_session
from edge.slots import slot_inputs, slot_shapes

# Tokens read in one run: bounds the time between two looks at the cancel token.
_CHUNK = 128

_HIDDEN = re.compile(re.escape(HIDDEN_PREFIX) + r"(\d+)")

Row = NDArray[np.float32]


class TreeNode(NamedTuple):
    """One token of a tree of continuations; ``parent`` is an earlier node's index, −1 for none."""

    parent: int
    token: int


@dataclass(frozen=True, slots=True)
class HiddenOutput:
    """The decode graph's output of hidden states.

    Arguments:
        name: of the output, float32 ``[T, width]``.
        layer: how many layers are below.
    """

    name: str
    layer: int
    width: int


class Decoder:
    """One decoder graph. Not thread-safe; ``edge.model`` holds the lock.

    Arguments:
        folder: a verified bundle's folder.
        threads: threads of one run. They sleep instead of spinning while they wait, because
            spinning starves whatever else runs on the device's cores.
        caches: sequences that are remembered at a time, ≥ 1.

    Raises:
        BundleError: onnxruntime cannot load the graph, or it is not the one that the manifest
            describes.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, *, threads: int = 1, caches: int = 4
    ) -> None:
        if caches < 1:
            raise InvalidInput("caches", f"{caches} is below 1")
        self._manifest = manifest
        with new_memory() as self._weights:
            self._session = open_session(folder / DECODE_GRAPH, threads=threads)
        self.hidden = _hidden_output(self._session)
        """Where the graph gives hidden states; None for bundles of versions without."""
        _check_graph(self._session, manifest, self.hidden)
        self._pool = CachePool(manifest, caches)
        self._cache = self._pool.pick((), "")
        # A binding that gives hidden states is another: what is bound cannot be unbound.
        self._bindings: dict[tuple[KeyValueCache, bool], _Binding] = {}
        self._tree: list[TreeNode] = []  # read behind the current cache's tokens
        self._adapter, self._adapter_inputs = "", slot_inputs(manifest, None)
        self._rows = np.zeros((1, manifest.vocab_size), np.float32)
        self._row: Row = self._rows[0]

    def read(self, tokens: Sequence[int], cancel: CancelToken | None = None) -> Row:
        """Logits that follow ``tokens``.

        Arguments:
            tokens: the whole sequence from its start, 1 to ``context_tokens`` ids.

        Returns:
            float32, shape ``[vocab]``; valid until the next call.

        Raises:
            InvalidInput: the sequence is empty or too long, or an id is not in the vocabulary.
            Cancelled: ``cancel`` was used; what was read stays in the cache.
        """
        self._check(tokens)
        self._cache = self._pool.pick(tokens, self._adapter)
        # The last token is always run, for its logits.
        start = min(self._cache.common_prefix(tokens), len(tokens) - 1)
        self._extend(tokens, start, cancel)
        return self._row

    def read_hidden(
        self, tokens: Sequence[int], start: int, cancel: CancelToken | None = None
    ) -> tuple[Row, NDArray[np.float32]]:
        """``read``, and the hidden states of ``tokens[start:]``, which are always computed.

        Arguments:
            start: 0 to ``len(tokens) - 1``.

        Returns:
            logits as ``read`` gives them, and float32 ``[len(tokens) - start, width]``.

        Raises:
            BundleError: the graph gives none; see ``hidden``.
        """
        if self.hidden is None:
            raise BundleError(f"{DECODE_GRAPH} of {self._manifest.name} gives no hidden states")
        self._check(tokens)
        self._cache = self._pool.pick(tokens, self._adapter)
        first = min(self._cache.common_prefix(tokens), start)
        states = np.empty((len(tokens) - first, self.hidden.width), np.float32)
        self._extend(tokens, first, cancel, states)
        return self._row, states[start - first :]

    def push(self, token: int) -> Row:
        """Logits after one more token: ``read`` of everything held plus ``token``.

        Raises:
            InvalidInput: the context is full.
        """
        if not self.free_tokens:
            raise InvalidInput("prompt", f"fills all {self._manifest.context_tokens} tokens")
        if self._weights:  # once, and not before the first words: a process may end without any
            use_huge_pages(self._weights)
            self._weights = []
        self._tree.clear()
        self._binding().step(token, len(self._cache.tokens))
        self._cache.tokens.append(token)
        return self._row

    def read_tree(
        self,
        tokens: Sequence[int],
        nodes: Sequence[TreeNode],
        cancel: CancelToken | None = None,
        *,
        known: int = 0,
    ) -> NDArray[np.float32]:
        """Logits after ``tokens`` and the path to each node, all paths in one pass.

        Every node attends to the prompt, its ancestors and itself only, and is rotated by its
        depth (tree attention, as in arXiv 2305.09781).

        Arguments:
            nodes: parents come before their children.
            known: logits are not wanted of so many nodes from the first on. Where they are those of
                the call before on the same tokens, they are not computed again either.

        Returns:
            float32, shape ``[nodes − known, vocab]``. The cache holds ``tokens`` alone afterwards.

        Raises:
            InvalidInput: prompt and nodes together exceed the context.
            Cancelled: ``cancel`` was used before the pass.
        """
        self._check(tokens, more=len(nodes))
        before, self._cache = self._cache, self._pool.pick(tokens, self._adapter)
        if self._cache is not before:
            self._tree.clear()
        self._extend(tokens, self._cache.common_prefix(tokens), cancel)
        if cancel is not None and cancel.cancelled:
            raise Cancelled("the request was cancelled while the answers were scored")
        start, count = len(tokens), len(nodes)
        first = known if self._tree == list(nodes[:known]) else 0
        positions = np.empty(count, np.int64)
        bias = np.full((count, count), -np.inf, np.float32)
        for index, node in enumerate(nodes):
            if node.parent < 0:
                positions[index] = start
            else:
                bias[index] = bias[node.parent]
                positions[index] = positions[node.parent] + 1
            bias[index, index] = 0
        logits = np.empty((count - known, self._manifest.vocab_size), np.float32)
        ids = np.array([node.token for node in nodes[first:]], np.int64)
        self._tree.clear()
        self._binding(room=count).run(
            ids,
            start + first,
            positions=positions[first:],
            bias=bias[first:],
            wanted=np.arange(known - first, count - first),
            logits=logits,
        )
        self._tree.extend(nodes)
        return logits

    def use_adapter(self, digest: str, inputs: Mapping[str, NDArray[np.float32]] | None) -> None:
        """Apply an adapter from the next call on; ``("", None)`` applies none.

        Arguments:
            digest: tells the adapter's cached sequences from others'.
            inputs: ``lora.*`` inputs of the graph that differ from idle.
        """
        self._adapter = digest
        self._adapter_inputs = slot_inputs(self._manifest, inputs)
        self._bindings.clear()

    def keep(self, tokens: int) -> None:
        """Forget what follows the first ``tokens`` of the sequence that was read last.

        A cache that holds little more than a task's instruction is taken for the task's next input;
        one with a long input behind it is spared, and another sequence forgotten in its place.
        """
        self._tree.clear()
        del self._cache.tokens[tokens:]

    def forget(self) -> int:
        """Empty the caches, so that the next ``read`` computes everything; returns the number of
        tokens forgotten."""
        return self._pool.forget()

    @property
    def free_tokens(self) -> int:
        """How many more tokens fit into the context."""
        return self._manifest.context_tokens - len(self._cache.tokens)

    def _check(self, tokens: Sequence[int], more: int = 0) -> None:
        manifest = self._manifest
        if not tokens:
            raise InvalidInput("prompt", "is empty; write what you want to ask")
        if len(tokens) + more > manifest.context_tokens:
            answers = f" and {more} of the answers" if more else ""
            raise InvalidInput(
                "prompt",
                f"has {len(tokens)} tokens{answers}; {manifest.name} reads at most "
                f"{manifest.context_tokens}. Shorten it",
            )
        if not 0 <= min(tokens) <= max(tokens) < manifest.vocab_size:
            raise InvalidInput(
                "tokens", f"must be ids from 0 to {manifest.vocab_size - 1} of {manifest.name}"
            )

    def _extend(
        self,
        tokens: Sequence[int],
        start: int,
        cancel: CancelToken | None,
        states: NDArray[np.float32] | None = None,
    ) -> None:
        """Make the cache hold exactly ``tokens``, of which it holds the first ``start`` already.

        Arguments:
            states: takes the hidden states of the others, shape ``[others, width]``.
        """
        held, first = self._cache.tokens, start
        if start < max(len(tokens), len(held)):
            self._tree.clear()
        del held[start:]
        while start < len(tokens):
            if cancel is not None and cancel.cancelled:
                raise Cancelled("the request was cancelled while the prompt was read")
            chunk = tokens[start : start + _CHUNK]
            count = len(chunk)
            self._binding(room=count, hidden=states is not None).run(
                np.array(chunk, np.int64),
                start,
                positions=np.arange(start, start + count),
                bias=np.zeros((count, 1), np.float32),
                wanted=np.array([count - 1]),
                logits=self._rows,
                hidden=None if states is None else states[start - first : start - first + count],
            )
            held.extend(chunk)
            start += count

    def _binding(self, room: int = 1, *, hidden: bool = False) -> _Binding:
        """The current cache's binding, with room for as many more tokens."""
        cache = self._cache
        if cache.reserve(len(cache.tokens) + room):
            for other in (False, True):
                self._bindings.pop((cache, other), None)
        if (cache, hidden) not in self._bindings:
            self._bindings[cache, hidden] = _Binding(
                self._session,
                cache.arrays,
                self._adapter_inputs,
                self._rows,
                hidden=self.hidden.name if hidden and self.hidden else "",
            )
        return self._bindings[cache, hidden]


class _Binding:
    """The graph's inputs and outputs over the arrays of one cache.

    What a single-token step needs is bound once and updated in place: binding all of it for every
    token would cost more than the signals do.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        cache: Sequence[NDArray[np.float32]],
        adapter: Mapping[str, NDArray[np.float32]],
        rows: NDArray[np.float32],
        hidden: str = "",
    ) -> None:
        self._session, self._hidden = session, hidden
        self._io = session.io_binding()
        self._kept = (cache, adapter)  # bound values do not keep their arrays alive
        self._seqlens_k = np.zeros(1, np.int32)
        self._total = np.zeros((), np.int32)
        self._bind("seqlens_k", self._seqlens_k)
        self._bind("total_sequence_length", self._total)
        for index, array in enumerate(cache):
            layer, half = divmod(index, 2)
            name = ("key", "value")[half]
            self._bind(f"past_key_values.{layer}.{name}", array)
            self._io.bind_ortvalue_output(f"present.{layer}.{name}", _view(array))
        for name, array in adapter.items():
            self._bind(name, array)
        self._rows = rows
        self._id = np.zeros((1, 1), np.int64)
        self._position = np.zeros((1, 1), np.int64)
        self._first = np.zeros(1, np.int64)
        self._no_bias = np.zeros((1, 1, 1, 1), np.float32)
        self._stepping = False

    def run(
        self,
        ids: NDArray[np.int64],
        start: int,
        *,
        positions: NDArray[np.int64],
        bias: NDArray[np.float32],
        wanted: NDArray[np.int64],
        logits: NDArray[np.float32],
        hidden: NDArray[np.float32] | None = None,
    ) -> None:
        """Run T tokens behind the first ``start``; float32 ``[len(wanted), vocab]`` to ``logits``.

        Arguments:
            positions: rotary position of each token, shape ``[T]``.
            bias: added to the scores of the last W positions, shape ``[T, W]``.
            wanted: indices of the tokens whose logits are wanted.
            hidden: takes the hidden states, shape ``[T, width]``, where the binding has them.
        """
        if hidden is not None:
            self._io.bind_ortvalue_output(self._hidden, _view(hidden))
        self._bind("input_ids", ids[None])
        self._bind("position_ids", positions[None])
        self._bind("attention_bias", bias[None, None])
        self._bind("logit_positions", wanted)
        self._io.bind_ortvalue_output("logits", _view(logits))
        self._stepping = False
        self._run(start + len(ids))

    def step(self, token: int, start: int) -> None:
        """Run one token behind the first ``start``; its logits go to ``rows``."""
        if not self._stepping:
            self._bind("input_ids", self._id)
            self._bind("position_ids", self._position)
            self._bind("logit_positions", self._first)
            self._bind("attention_bias", self._no_bias)
            self._io.bind_ortvalue_output("logits", _view(self._rows))
            self._stepping = True
        self._id[0, 0] = token
        self._position[0, 0] = start
        self._run(start + 1)

    def _run(self, total: int) -> None:
        self._seqlens_k[0] = total - 1
        self._total[()] = total
        self._session.run_with_iobinding(self._io)

    def _bind(self, name: str, array: NDArray[np.generic]) -> None:
        self._io.bind_ortvalue_input(name, _view(array))


def _hidden_output(session: ort.InferenceSession) -> HiddenOutput | None:
    for output in session.get_outputs():
        if match := _HIDDEN.fullmatch(output.name):
            return HiddenOutput(output.name, int(match[1]), int(output.shape[1]))
    return None


def _check_graph(
    session: ort.InferenceSession, manifest: Manifest, hidden: HiddenOutput | None
) -> None:
    """Raise ``BundleError`` unless the graph has the inputs and outputs that are bound here."""
    halves = [(layer, half) for layer in range(manifest.layers) for half in ("key", "value")]
    buffer = (1, manifest.kv_heads, None, manifest.head_dim)
    inputs: dict[str, tuple[int | None, ...]] = {
        "input_ids": (1, None),
        "seqlens_k": (1,),
        "total_sequence_length": (),
        "position_ids": (1, None),
        "attention_bias": (1, 1, None, None),
        "logit_positions": (None,),
        **{f"past_key_values.{layer}.{half}": buffer for layer, half in halves},
    }
    inputs |= slot_shapes(manifest)
    outputs: dict[str, tuple[int | None, ...]] = {"logits": (None, manifest.vocab_size)}
    outputs |= {f"present.{layer}.{half}": buffer for layer, half in halves}
    if hidden is not None:
        outputs[hidden.name] = (None, hidden.width)
    for kind, expected, found in (
        ("input", inputs, session.get_inputs()),
        ("output", outputs, session.get_outputs()),
    ):
        shapes = {
            value.name: tuple(size if isinstance(size, int) else None for size in value.shape)
            for value in found
        }
        for name in sorted(expected.keys() | shapes.keys()):
            if expected.get(name) != shapes.get(name):
                raise BundleError(
                    f"{DECODE_GRAPH}: {kind} {name} is not as {manifest.name}'s manifest says; "
                    "build the bundle again"
                )


def _view(array: NDArray[np.generic]) -> ort.OrtValue:
    """On the CPU onnxruntime shares the array's memory; it must outlive the value."""
    return ort.OrtValue.ortvalue_from_numpy(array)
