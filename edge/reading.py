"""The probabilities of a trie's prefixes and answers after a prompt, read in few wide passes.

Every answer's log probability is the sum over its tokens, given the prompt. Where one answer is a
prefix of another, the shorter one also has to *end*: it takes the probability that no longer answer
is continued, 1 − Σ P(continuation). So the answers are disjoint events, whatever their tokens.

Which nodes are read is the caller's choice; ``edge.search`` chooses them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from cascade.errors import BundleError
from cascade.local import CancelToken
from edge.decoder import Row, TreeNode
from edge.measure import RowStats, SignalLog, row_stats
from edge.trie import ROOT, Trie

PASS_NODES = 64
"""Nodes of one pass at most: bounds the logits in memory and the time between looks at cancel."""

# Nodes whose keys and values are kept behind the prompt at most: 21 MB on SmolLM2-135M.
# More would save little, fewer make a search over hundreds of answers read many parents again.
_TREE_NODES = 448

_TINY = 1e-12
# Finite, so that answers of forbidden tokens (logits of −inf) can still be compared.
_LOWEST = -1e4


class TreeReader(Protocol):
    """What is needed of ``edge.decoder.Decoder``."""

    @property
    def free_tokens(self) -> int:
        """How many more tokens fit behind what was read."""
        ...

    def read(self, tokens: Sequence[int], cancel: CancelToken | None = None) -> Row:
        """Logits that follow ``tokens``."""
        ...

    def keep(self, tokens: int) -> None:
        """Remember the first ``tokens`` of what was read, and not the rest."""
        ...

    def read_tree(
        self,
        tokens: Sequence[int],
        nodes: Sequence[TreeNode],
        cancel: CancelToken | None = None,
        *,
        known: int = 0,
    ) -> NDArray[np.float32]:
        """Logits after ``tokens`` and the path to each of ``nodes[known:]``."""
        ...


@runtime_checkable
class HiddenReader(Protocol):
    """A reader that also gives out hidden states."""

    def read_hidden(
        self, tokens: Sequence[int], start: int, cancel: CancelToken | None = None
    ) -> tuple[Row, NDArray[np.float32]]:
        """Logits that follow ``tokens``, and the hidden states of ``tokens[start:]``."""
        ...


class TrieScores:
    """Log probabilities on a trie after one prompt, as far as they are known.

    Attributes:
        prefixes: float64, shape ``[nodes]``: of each prefix; NaN until its parent was read.
        answers: float64, shape ``[options]``: of each whole answer; NaN until known.
        rows: what was measured of the distribution after each node that was read.
    """

    def __init__(self, trie: Trie) -> None:
        self.trie = trie
        self.prefixes: NDArray[np.float64] = np.full(len(trie), np.nan)
        self.prefixes[ROOT] = 0.0
        self.answers: NDArray[np.float64] = np.full(len(trie.nodes), np.nan)
        self.rows: dict[int, RowStats] = {}

    def add(self, node: int, logits: Row) -> None:
        """Take in the logits (float32, shape ``[vocab]``) after an inner node of known probability.

        Raises:
            BundleError: the logits are not numbers.
        """
        trie, stats = self.trie, row_stats(logits)
        if not math.isfinite(stats.log_z):
            raise BundleError("the model's logits are not finite numbers; its weights are damaged")
        self.rows[node] = stats
        total = float(self.prefixes[node])
        for child in trie.children[node]:
            logprob = float(logits[trie.tokens[child]]) - stats.log_z
            # Rounding must not lift a prefix above its parent: bounds rest on that.
            logprob = min(0.0, max(_LOWEST, logprob))
            self.prefixes[child] = total + logprob
            if not trie.children[child]:
                self.answers[trie.ends[child]] = total + logprob
        if trie.ends[node] >= 0:
            # Summed, not subtracted from 1: of a small remainder rounding would leave nothing.
            others = np.exp(logits - np.float32(stats.log_z))
            others[[trie.tokens[child] for child in trie.children[node]]] = 0
            ending = float(others.sum(dtype=np.float64))
            self.answers[trie.ends[node]] = total + math.log(min(1.0, max(ending, _TINY)))

    def upper_bounds(self) -> NDArray[np.float64]:
        """Log probability of each answer; of an unknown one, that of its longest known prefix."""
        reached = self.prefixes.copy()
        for node, parent in enumerate(self.trie.parents):
            if np.isnan(reached[node]):
                reached[node] = reached[parent]
        return np.where(np.isnan(self.answers), reached[list(self.trie.nodes)], self.answers)

    def signals(self, option: int) -> SignalLog:
        """The tokens of a known answer, without the implied end of a prefix answer."""
        log, before = SignalLog(), ROOT
        for node in self.trie.path(self.trie.nodes[option]):
            log.add(float(self.prefixes[node] - self.prefixes[before]), self.rows[before])
            before = node
        return log


class TrieReading:
    """Reads nodes of a trie behind a prompt and remembers what it read.

    Arguments:
        prompt: token ids; read at once, for the distribution after the root.
        first: the logits that follow the prompt, where the reader has read it just now.

    Raises:
        InvalidInput: the prompt is empty, or does not fit with an answer into the context.
        Cancelled: ``cancel`` was used. ``expand`` raises both too.
    """

    def __init__(
        self,
        reader: TreeReader,
        prompt: Sequence[int],
        trie: Trie,
        cancel: CancelToken | None = None,
        first: Row | None = None,
    ) -> None:
        self._reader, self._prompt, self._trie, self._cancel = reader, prompt, trie, cancel
        self.scores = TrieScores(trie)
        self.scores.add(ROOT, reader.read(prompt, cancel) if first is None else first)
        self._limit = min(max(_TREE_NODES, trie.depth), reader.free_tokens)
        self._tree: list[TreeNode] = []
        self._nodes: list[int] = []  # of the trie, in the order of the tree
        self._slots: dict[int, int] = {}
        self._known = 0

    def expand(self, nodes: Sequence[int]) -> None:
        """Read the distributions after inner nodes; each one's parent before it or earlier."""
        for node in nodes:
            path = self._missing(node)
            if len(self._nodes) + len(path) > self._limit:
                self._read()
                self._restart()
                path = self._missing(node)
            for step in path:
                if len(self._nodes) - self._known == PASS_NODES:
                    self._read()
                self._slots[step] = len(self._nodes)
                parent = self._slots.get(self._trie.parents[step], -1)
                self._tree.append(TreeNode(parent, self._trie.tokens[step]))
                self._nodes.append(step)
        self._read()

    def _missing(self, node: int) -> list[int]:
        """``node`` and those above it that are not in the tree, top down."""
        missing: list[int] = []
        while node != ROOT and node not in self._slots:
            missing.append(node)
            node = self._trie.parents[node]
        return missing[::-1]

    def _read(self) -> None:
        if self._known == len(self._nodes):
            return
        rows = self._reader.read_tree(self._prompt, self._tree, self._cancel, known=self._known)
        for node, row in zip(self._nodes[self._known :], rows, strict=True):
            if node not in self.scores.rows:
                self.scores.add(node, row)
        self._known = len(self._nodes)

    def _restart(self) -> None:
        """Begin a new tree behind the prompt."""
        self._tree, self._nodes, self._slots, self._known = [], [], {}, 0


def read_all(
    reader: TreeReader, prompt: Sequence[int], trie: Trie, cancel: CancelToken | None = None
) -> TrieScores:
    """The scores of every answer; see ``TrieReading`` for arguments and errors."""
    reading = TrieReading(reader, prompt, trie, cancel)
    reading.expand(trie.inner[1:])
    return reading.scores
