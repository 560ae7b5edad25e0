"""One answer of a closed set: the way from options and prompts to an answer with its scores.

Two modes, and every answer says which it was. *exact* reads every inner node of the trie of the
answers' tokens; *search* reads as many as prove the best answer and bound its share of the set.
Probabilities on the trie are ``edge.reading``, the search is ``edge.search``; what a score is worth
is ``cascade.confidence``.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Generic, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from cascade.errors import InvalidInput
from cascade.local import CancelToken, LocalAnswer, Prompt
from cascade.request import check_options, is_unicode
from cascade.signals import SEARCH_TOLERANCE, OptionScores, ScoreMode, option_signals
from cascade.task import Task
from edge.decoder import Row
from edge.head import Head, pooled
from edge.reading import PASS_NODES, HiddenReader, TreeReader, TrieReading, read_all
from edge.search import search
from edge.text import TextCodec
from edge.trie import Trie, build_trie, common_prefix

EXACT_NODES = PASS_NODES
"""Without a mode asked for, sets of at most so many inner nodes behind the root are scored exactly:
one pass reads them all, and a search could save little of it."""

_TRIES_KEPT = 32
_PRIORS_KEPT = 64

_K = TypeVar("_K")
_V = TypeVar("_V")


class Chooser:
    """Chooses among closed sets with one decoder. Not thread-safe; ``edge.model`` holds the lock.

    Tries and priors are kept, the least recently used going first: at most 32 tries and 64 priors,
    tens of kilobytes each for the largest sets.
    """

    def __init__(self, codec: TextCodec, reader: TreeReader) -> None:
        self._codec = codec
        self._reader = reader
        self._tries: _Recent[tuple[object, ...], Trie] = _Recent(_TRIES_KEPT)
        self._priors: _Recent[tuple[object, ...], NDArray[np.float64]] = _Recent(_PRIORS_KEPT)

    def choose(
        self,
        prompt: Prompt,
        options: tuple[str, ...],
        *,
        prior_prompt: Prompt | None = None,
        option_prefix: str = "",
        mode: ScoreMode | None = None,
        tolerance: float = SEARCH_TOLERANCE,
        adapter: str = "",
        head: Head | None = None,
        cancel: CancelToken | None = None,
    ) -> LocalAnswer:
        """Answer with one of ``options``; see ``LocalModel.choose`` for what is not said here.

        Arguments:
            mode: ``None`` takes ``"exact"`` up to ``EXACT_NODES`` inner nodes, ``"search"`` beyond.
            tolerance: largest width of the bounds of a search, in [0, 1]; see ``edge.search``.
            adapter: digest of the active adapter: priors differ with it.
            head: of the active adapter. Where the question is worded as its task, it scores the
                answers, all of them, whatever the mode.
        """
        check_options(options)
        _check(option_prefix, mode, tolerance)
        if head is not None and head.spec.asked(prompt, options, option_prefix):
            return self._by_head(head, prompt, adapter, cancel)
        ids = self._codec.encode(prompt)
        trie = self._trie(options, option_prefix)
        empty = None if prior_prompt is None else self._codec.encode(prior_prompt)
        prior = self._prior(empty, trie, (adapter, option_prefix, options), cancel)
        mode = mode or ("exact" if len(trie.inner) - 1 <= EXACT_NODES else "search")
        started = time.perf_counter()
        reading = TrieReading(self._reader, ids, trie, cancel)
        read_at = time.perf_counter()
        if mode == "exact":
            reading.expand(trie.inner[1:])
            weights, unknown = _weights(reading.scores.answers - prior), 0.0
        else:
            found = search(reading.scores, reading.expand, prior, tolerance)
            weights, unknown = found.weights, found.unknown
        decoded_s = time.perf_counter() - read_at
        if empty is not None:  # what both prompts begin with is the task's, the rest this input's
            self._reader.keep(common_prefix(ids, empty))
        whole = float(weights.sum()) + unknown
        scores = OptionScores(
            options,
            reading.scores.upper_bounds(),
            prior,
            weights / whole,
            mode=mode,
            unexplored=unknown / whole,
            nodes=len(trie.inner),
            nodes_scored=len(reading.scores.rows),
        )
        log = reading.scores.signals(scores.best)
        return LocalAnswer(
            text=options[scores.best],
            signals=log.signals(),
            options=scores,
            prompt_tokens=len(ids),
            tokens=len(log.logprobs),
            prefill_s=read_at - started,
            decode_s=decoded_s,
            finish="stop",
        )

    def measured(
        self, task: Task, prompt: Prompt, *, adapter: str = "", cancel: CancelToken | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """What a head sees of a prompt, worded as ``task`` words it: the pooled hidden states,
        float32 ``[features]``, and the model's own corrected scores, ``[options]``."""
        ids = self._codec.encode(prompt)
        prior = self._task_prior(task, adapter, cancel)
        row, features, shared = self._pooled(task, ids, cancel)
        trie = self._trie(task.options, task.option_prefix)
        reading = TrieReading(self._reader, ids, trie, cancel, row)
        reading.expand(trie.inner[1:])
        self._reader.keep(shared)
        return features, reading.scores.answers - prior

    def features(
        self, task: Task, prompt: Prompt, *, cancel: CancelToken | None = None
    ) -> NDArray[np.float32]:
        """What ``measured`` gives of the hidden states, without reading any answer."""
        _, features, shared = self._pooled(task, self._codec.encode(prompt), cancel)
        self._reader.keep(shared)
        return features

    def _by_head(
        self, head: Head, prompt: Prompt, adapter: str, cancel: CancelToken | None
    ) -> LocalAnswer:
        task = head.spec.task
        ids = self._codec.encode(prompt)
        prior = self._task_prior(task, adapter, cancel) if head.spec.lm_weight else None
        started = time.perf_counter()
        row, features, shared = self._pooled(task, ids, cancel)
        read_at = time.perf_counter()
        corrected, reading = head.logits(features), None
        if prior is not None:
            trie = self._trie(task.options, task.option_prefix)
            reading = TrieReading(self._reader, ids, trie, cancel, row)
            reading.expand(trie.inner[1:])
            corrected = corrected + head.spec.lm_weight * (reading.scores.answers - prior)
        weights = _weights(corrected)
        probabilities = weights / weights.sum()
        scores = OptionScores(
            task.options,
            corrected - corrected.max() - np.log(weights.sum()),
            np.zeros(len(weights)),
            probabilities,
            nodes=0 if reading is None else len(reading.scores.rows),
            nodes_scored=0 if reading is None else len(reading.scores.rows),
        )
        # Without a token the distribution over the answers is measured as that of one.
        signals = (
            option_signals(scores)
            if reading is None
            else reading.scores.signals(scores.best).signals()
        )
        decoded_s = time.perf_counter() - read_at
        self._reader.keep(shared)
        return LocalAnswer(
            text=task.options[scores.best],
            signals=signals,
            options=scores,
            prompt_tokens=len(ids),
            tokens=0 if reading is None else len(signals),
            prefill_s=read_at - started,
            decode_s=decoded_s,
            finish="stop",
        )

    def _pooled(
        self, task: Task, ids: list[int], cancel: CancelToken | None
    ) -> tuple[Row, NDArray[np.float32], int]:
        """Logits after the prompt, what a head sees of it, and how many of its tokens are the
        task's own: those that it shares with the prompt of an empty input."""
        shared = min(common_prefix(ids, self._codec.encode(task.for_device(""))), len(ids) - 1)
        if not isinstance(self._reader, HiddenReader):
            raise InvalidInput("head", "needs a model that gives out hidden states")
        row, states = self._reader.read_hidden(ids, shared, cancel)
        return row, pooled(states), shared

    def _task_prior(
        self, task: Task, adapter: str, cancel: CancelToken | None
    ) -> NDArray[np.float64]:
        prompt = task.prior_prompt()
        empty = None if prompt is None else self._codec.encode(prompt)
        trie = self._trie(task.options, task.option_prefix)
        return self._prior(empty, trie, (adapter, task.option_prefix, task.options), cancel)

    def _trie(self, options: tuple[str, ...], prefix: str) -> Trie:
        key = (prefix, options)
        trie = self._tries.get(key)
        if trie is None:
            trie = build_trie([self._codec.encode_plain(prefix + option) for option in options])
            self._tries.put(key, trie)
        return trie

    def _prior(
        self,
        prompt: list[int] | None,
        trie: Trie,
        answers: tuple[object, ...],
        cancel: CancelToken | None,
    ) -> NDArray[np.float64]:
        """Exact log probabilities of the answers after ``prompt``, from the cache if possible."""
        if prompt is None:
            return np.zeros(len(trie.nodes))
        key = (*answers, tuple(prompt))
        prior = self._priors.get(key)
        if prior is None:
            prior = read_all(self._reader, prompt, trie, cancel).answers
            prior.setflags(write=False)  # every answer's scores share it
            self._priors.put(key, prior)
        return prior


class _Recent(Generic[_K, _V]):
    """The values that were used last."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[_K, _V] = OrderedDict()

    def get(self, key: _K) -> _V | None:
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key]

    def put(self, key: _K, value: _V) -> None:
        while len(self._values) >= self._size:
            self._values.popitem(last=False)
        self._values[key] = value


def _check(prefix: str, mode: ScoreMode | None, tolerance: float) -> None:
    if not is_unicode(prefix):
        raise InvalidInput("option_prefix", "is not valid Unicode (lone surrogate)")
    if mode is not None and mode not in get_args(ScoreMode):
        raise InvalidInput("mode", f"{mode!r} is not known; known are exact and search")
    if not 0 <= tolerance <= 1:
        raise InvalidInput("tolerance", f"{tolerance} is not in 0 … 1")


def _weights(corrected: NDArray[np.float64]) -> NDArray[np.float64]:
    """exp of the corrected scores, relative to the best."""
    weights: NDArray[np.float64] = np.exp(corrected - corrected.max())
    return weights
