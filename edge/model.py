"""A bundle that answers: free text greedily, or one of a closed set.

Implements ``cascade.local.LocalModel``. One request at a time runs on a model; further ones wait.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cascade.errors import BundleError, Cancelled, InvalidInput, NotFound
from cascade.local import CancelToken, LocalAnswer, ModelInfo, Prompt
from cascade.request import check_options
from cascade.signals import OptionScores
from edge import options as trie
from edge.adapter import Adapter, Floats
from edge.bundle import TOKENIZER, Bundle
from edge.decoder import Decoder, Row
from edge.measure import SignalLog, row_stats
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
        if manifest.kind != "decoder":
            raise BundleError(f"{manifest.name} is a {manifest.kind} bundle: it reads no text")
        self._codec = TextCodec(bundle)
        self._decoder = Decoder(bundle.path, manifest, threads=threads, caches=caches)
        self._manifest = manifest
        self._adapters: dict[str, dict[str, Floats]] = {}
        self._stop_tokens = frozenset(manifest.stop_token_ids)
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
        on_text: Callable[[str], None] | None = None,
        cancel: CancelToken | None = None,
    ) -> LocalAnswer:
        """Answer freely and greedily; see ``LocalModel.generate``.

        An answer also ends where the context is full, with ``finish="length"``.
        """
        if max_tokens < 1:
            raise InvalidInput("max_tokens", f"{max_tokens} is below 1")
        ids = self._codec.encode(prompt)
        with self._lock:
            started = time.perf_counter()
            logits = self._decoder.read(ids, cancel)
            read_at = time.perf_counter()
            writer = _Writer(self._codec, stop, on_text)
            log = SignalLog()
            finish = self._write(logits, max_tokens, writer, log, cancel)
            return LocalAnswer(
                text=writer.finish(),
                signals=log.signals(),
                options=None,
                prompt_tokens=len(ids),
                tokens=len(log.logprobs),
                prefill_s=read_at - started,
                decode_s=time.perf_counter() - read_at,
                finish=finish,
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

    def forget_prefix(self) -> None:
        """Empty the prompt cache, so that the next request reads its whole prompt."""
        with self._lock:
            self._decoder.forget()

    def _write(
        self,
        logits: Row,
        max_tokens: int,
        writer: _Writer,
        log: SignalLog,
        cancel: CancelToken | None,
    ) -> Literal["stop", "length", "cancelled"]:
        while True:
            if cancel is not None and cancel.cancelled:
                return "cancelled"
            stats = row_stats(logits)
            token = stats.argmax
            if token in self._stop_tokens:
                return "stop"
            log.add(float(logits[token]) - stats.log_z, stats)
            if writer.push(token):
                return "stop"
            if len(log.logprobs) == max_tokens or self._decoder.free_tokens == 0:
                return "length"
            logits = self._decoder.push(token)

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


class _Writer:
    """Text of one answer: streams it, and ends it before the first stop string."""

    def __init__(
        self, codec: TextCodec, stop: tuple[str, ...], on_text: Callable[[str], None] | None
    ) -> None:
        self._stream = codec.stream()
        self._stop = stop
        self._on_text = on_text
        self._sent: list[str] = []
        self._held = ""

    def push(self, token: int) -> bool:
        """Add a token; true when a stop string was completed."""
        self._held += self._stream.push(token)
        ends = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if ends:
            self._send(min(ends))
            self._held = ""
            return True
        self._send(len(self._held) - self._possible_stop())
        return False

    def finish(self) -> str:
        """Send what was held back, and give the whole text."""
        self._send(len(self._held))
        return "".join(self._sent)

    def _possible_stop(self) -> int:
        """Length of the longest end of the held text that may begin a stop string."""
        longest = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:length]):
                    longest = length
                    break
        return longest

    def _send(self, length: int) -> None:
        if length:
            text, self._held = self._held[:length], self._held[length:]
            self._sent.append(text)
            if self._on_text is not None:
                self._on_text(text)
