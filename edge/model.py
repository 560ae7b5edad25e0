"""A bundle that answers: free text, or one of a closed set.

Implements ``cascade.local.LocalModel``. One request at a time runs on a model; further ones wait.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from cascade.errors import Cancelled, InvalidInput, NotFound
from cascade.local import CancelToken, LocalAnswer, ModelInfo, Prompt
from cascade.request import check_options
from cascade.sampling import GREEDY, Sampling
from cascade.signals import OptionScores
from edge import options as trie
from edge.adapter import Adapter, Floats
from edge.bundle import TOKENIZER, Bundle
from edge.decoder import Decoder, Row
from edge.exported import ExportedDecoder
from edge.generate import Ending, OnText, OnToken, generate
from edge.measure import SignalLog
from edge.sampling import Sampler
from edge.structured import Grammars
from edge.text import TextCodec

_PRIORS_KEPT = 64


class OnnxModel:
    """The model of a verified bundle, loaded.

    Arguments:
        threads: threads of one run, ≥ 1.
        caches: sequences (conversations, tasks) whose computed beginnings are kept, ≥ 1.

    Raises:
        BundleError: onnxruntime or tokenizers cannot load the bundle.
    """

    def __init__(self, bundle: Bundle, *, threads: int = 1, caches: int = 4) -> None:
        manifest = bundle.manifest
        self._codec = TextCodec(bundle)
        runtime = Decoder if manifest.graph == "fused" else ExportedDecoder
        self._decoder = runtime(bundle.path, manifest, threads=threads, caches=caches)
        self._manifest = manifest
        self._adapters: dict[str, dict[str, Floats]] = {}
        self._end_tokens = frozenset(manifest.stop_token_ids)
        self._vocab_size = manifest.vocab_size
        self._grammars = Grammars(
            bundle.file(TOKENIZER), manifest.vocab_size, manifest.stop_token_ids
        )
        self._info = ModelInfo(
            name=manifest.name,
            base_digest=manifest.base_digest,
            tokenizer_digest=manifest.files[TOKENIZER].sha256,
            bundle_digest=bundle.digest,
            context_tokens=manifest.context_tokens,
        )
        self._lock = threading.Lock()
        self._priors: dict[tuple[object, ...], NDArray[np.float64]] = {}

    @property
    def info(self) -> ModelInfo:
        """What this model is."""
        return self._info

    def count_tokens(self, prompt: Prompt) -> int:
        """Tokens that reading ``prompt`` takes, the chat template's included."""
        return len(self._codec.encode(prompt))

    @property
    def adapters(self) -> tuple[str, ...]:
        """Digests of the loaded adapters, in the order of their loading."""
        return tuple(self._adapters)

    def load_adapter(self, adapter: Adapter) -> str:
        """Keep an adapter ready and return its digest; several may be loaded at a time.

        Raises:
            BundleError: it does not fit this bundle; what is wrong is named.
        """
        inputs = adapter.inputs(self._manifest)
        with self._lock:
            self._adapters[adapter.digest] = inputs
        return adapter.digest

    def use_adapter(self, digest: str) -> None:
        """Apply a loaded adapter from the next request on; "" goes back to the base.

        Raises:
            NotFound: it is not loaded.
        """
        with self._lock:
            if digest and digest not in self._adapters:
                raise NotFound(f"adapter {digest[:12]}… is not loaded")
            self._decoder.use_adapter(digest, self._adapters.get(digest))
            self._info = dataclasses.replace(self._info, adapter_digest=digest)

    def unload_adapter(self, digest: str) -> None:
        """Free a loaded adapter; the active one is deactivated first.

        Raises:
            NotFound: it is not loaded.
        """
        if digest == self._info.adapter_digest:
            self.use_adapter("")
        with self._lock:
            if self._adapters.pop(digest, None) is None:
                raise NotFound(f"adapter {digest[:12]}… is not loaded")

    def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int,
        stop: tuple[str, ...] = (),
        stop_tokens: Collection[int] = (),
        sampling: Sampling = GREEDY,
        json_schema: str | None = None,
        regex: str | None = None,
        on_text: OnText | None = None,
        on_token: OnToken | None = None,
        cancel: CancelToken | None = None,
    ) -> LocalAnswer:
        """Answer freely, or within a grammar; see ``LocalModel.generate``.

        An answer also ends where the context is full, with ``finish="length"``.

        Arguments:
            stop_tokens: ids that end the answer, beside those of the bundle.
            on_token: called with each token before its text; returning true ends the answer behind
                it, with ``finish="callback"``.

        Raises:
            InvalidInput: an argument is out of its range; it is named.
            CascadeError: a grammar is given, and llguidance is not installed.
        """
        ending = self._ending(max_tokens, stop, stop_tokens)
        sampling.check()
        if (stop or stop_tokens) and (json_schema is not None or regex is not None):
            raise InvalidInput("stop", "cannot be combined with json_schema or regex; leave it out")
        matcher = self._grammars.matcher(json_schema, regex)
        ids = self._codec.encode(prompt)
        with self._lock:
            return generate(
                self._decoder,
                ids,
                text=self._codec.stream(),
                sampler=Sampler(sampling, self._vocab_size, ids),
                ending=ending,
                matcher=matcher,
                on_text=on_text,
                on_token=on_token,
                cancel=cancel,
            )

    def choose(
        self,
        prompt: Prompt,
        options: tuple[str, ...],
        *,
        prior_prompt: Prompt | None = None,
        option_prefix: str = "",
        cancel: CancelToken | None = None,
    ) -> LocalAnswer:
        """Answer with one of ``options``; see ``LocalModel.choose``."""
        check_options(options)
        ids = self._codec.encode(prompt)
        sequences = [self._codec.encode_plain(option_prefix + option) for option in options]
        root = trie.build_trie(sequences)
        with self._lock:
            prior = self._prior(prior_prompt, sequences, root, cancel)
            started = time.perf_counter()
            self._decoder.read(ids, cancel)
            read_at = time.perf_counter()
            scores = self._score(ids, root, len(options), cancel)
            decoded_s = time.perf_counter() - read_at
        result = OptionScores(
            options, scores.logprobs, prior, trie.normalise(scores.logprobs, prior)
        )
        log = SignalLog()
        for step in scores.steps[result.best]:
            log.add(step.logprob, step.stats)
        return LocalAnswer(
            text=options[result.best],
            signals=log.signals(),
            options=result,
            prompt_tokens=len(ids),
            tokens=len(sequences[result.best]),
            prefill_s=read_at - started,
            decode_s=decoded_s,
            finish="stop",
        )

    def forget_prefix(self) -> int:
        """Empty the prompt caches, so that the next request reads its whole prompt. Returns the
        number of tokens forgotten."""
        with self._lock:
            return self._decoder.forget()

    def _ending(
        self, max_tokens: int, stop: tuple[str, ...], stop_tokens: Collection[int]
    ) -> Ending:
        if max_tokens < 1:
            raise InvalidInput("max_tokens", f"{max_tokens} is below 1")
        if not all(stop):
            raise InvalidInput("stop", "contains an empty string")
        for token in stop_tokens:
            if not 0 <= token < self._vocab_size:
                raise InvalidInput("stop_tokens", f"{token} is not in 0 … {self._vocab_size - 1}")
        return Ending(max_tokens, stop, self._end_tokens.union(stop_tokens))

    def _score(
        self, ids: list[int], root: trie.Node, options: int, cancel: CancelToken | None
    ) -> trie.TrieScores:
        def read(path: tuple[int, ...]) -> Row:
            if cancel is not None and cancel.cancelled:
                raise Cancelled("the request was cancelled while the answers were scored")
            return self._decoder.read([*ids, *path])

        return trie.score(root, options, read)

    def _prior(
        self,
        prompt: Prompt | None,
        sequences: list[list[int]],
        root: trie.Node,
        cancel: CancelToken | None,
    ) -> NDArray[np.float64]:
        if prompt is None:
            return np.zeros(len(sequences))
        ids = self._codec.encode(prompt)
        key = (self._info.adapter_digest, tuple(ids), *map(tuple, sequences))
        if key not in self._priors:
            while len(self._priors) >= _PRIORS_KEPT:
                self._priors.pop(next(iter(self._priors)))
            self._priors[key] = self._score(ids, root, len(sequences), cancel).logprobs
        return self._priors[key]
