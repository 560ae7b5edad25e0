"""A bundle that answers: free text, or one of a closed set.

Implements ``cascade.local.LocalModel``. One request at a time runs on a model; further ones wait.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascade.errors import BundleError, InvalidInput, NotFound
from cascade.local import CancelToken, LocalAnswer, ModelInfo, Prompt
from cascade.request import check_max_tokens
from cascade.sampling import GREEDY, Sampling
from cascade.signals import SEARCH_TOLERANCE, ScoreMode
from cascade.task import Task
from edge.adapter import Adapter, Floats
from edge.bundle import TOKENIZER, Bundle
from edge.choose import Chooser
from edge.decoder import Decoder, HiddenOutput
from edge.exported import ExportedDecoder
from edge.generate import Ending, OnText, OnToken, generate
from edge.head import Head
from edge.sampling import Sampler
from edge.structured import Grammars
from edge.text import TextCodec


def open_decoder(bundle: Bundle, *, threads: int = 1, caches: int = 4) -> Decoder | ExportedDecoder:
    """The runtime of a bundle's graph; see ``Decoder`` for arguments and errors."""
    runtime = Decoder if bundle.manifest.graph == "fused" else ExportedDecoder
    return runtime(bundle.path, bundle.manifest, threads=threads, caches=caches)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """An adapter that is ready: graph inputs that differ from idle, and its head."""

    inputs: dict[str, Floats]
    head: Head | None


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
        self._decoder = open_decoder(bundle, threads=threads, caches=caches)
        self._manifest = manifest
        self._adapters: dict[str, _Loaded] = {}
        self._end_tokens = frozenset(manifest.stop_token_ids)
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
        self._chooser = Chooser(self._codec, self._decoder)

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
        if adapter.head is not None:
            self._check_head(adapter.manifest.name, adapter.head)
        with self._lock:
            self._adapters[adapter.digest] = _Loaded(inputs, adapter.head)
        return adapter.digest

    def use_adapter(self, digest: str) -> None:
        """Apply a loaded adapter from the next request on; "" goes back to the base.

        Raises:
            NotFound: it is not loaded.
        """
        with self._lock:
            if digest and digest not in self._adapters:
                raise NotFound(f"adapter {digest[:12]}… is not loaded")
            self._activate(digest)

    def unload_adapter(self, digest: str) -> None:
        """Free a loaded adapter; the active one is deactivated first.

        Raises:
            NotFound: it is not loaded.
        """
        with self._lock:
            if digest not in self._adapters:
                raise NotFound(f"adapter {digest[:12]}… is not loaded")
            if digest == self._info.adapter_digest:
                self._activate("")
            del self._adapters[digest]

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
            answer = generate(
                self._decoder,
                ids,
                text=self._codec.stream(),
                sampler=Sampler(sampling, self._manifest.vocab_size, ids),
                ending=ending,
                matcher=matcher,
                on_text=on_text,
                on_token=on_token,
                cancel=cancel,
            )
            return self._by_active_adapter(answer)

    def choose(
        self,
        prompt: Prompt,
        options: tuple[str, ...],
        *,
        prior_prompt: Prompt | None = None,
        option_prefix: str = "",
        mode: ScoreMode | None = None,
        tolerance: float = SEARCH_TOLERANCE,
        cancel: CancelToken | None = None,
    ) -> LocalAnswer:
        """Answer with one of ``options``; see ``LocalModel.choose`` and ``edge.choose``.

        Arguments:
            tolerance: how far apart the bounds of a search may be, in [0, 1]. A policy is fitted
                for the default: scores of another tolerance are other scores.
        """
        with self._lock:
            answer = self._chooser.choose(
                prompt,
                options,
                prior_prompt=prior_prompt,
                option_prefix=option_prefix,
                mode=mode,
                tolerance=tolerance,
                adapter=self._info.adapter_digest,
                head=self._active().head,
                cancel=cancel,
            )
            return self._by_active_adapter(answer)

    def measured(self, task: Task, text: str) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """What a head for ``task`` sees of an input: pooled hidden states, float32
        ``[features]``, and the corrected scores of the answers, float64 ``[options]``.

        Raises:
            BundleError: the bundle gives no hidden states.
        """
        self._needs_hidden("a head")
        with self._lock:
            digest = self._info.adapter_digest
            return self._chooser.measured(task, task.for_device(text), adapter=digest)

    def features(self, task: Task, text: str) -> NDArray[np.float32]:
        """The pooled hidden states alone, float32 ``[features]``: all that a head sees which does
        not look at the model's own scores.

        Raises:
            BundleError: the bundle gives no hidden states.
        """
        self._needs_hidden("a head")
        with self._lock:
            return self._chooser.features(task, task.for_device(text))

    @property
    def hidden_layer(self) -> int:
        """Layers below the hidden states that a head sees.

        Raises:
            BundleError: the bundle gives none.
        """
        return self._needs_hidden("a head").layer

    def forget_prefix(self) -> int:
        """Empty the prompt caches, so that the next request reads its whole prompt. Returns the
        number of tokens forgotten."""
        with self._lock:
            return self._decoder.forget()

    def _by_active_adapter(self, answer: LocalAnswer) -> LocalAnswer:
        """``answer`` with the adapter that gave it; to be called before the lock is let go."""
        return dataclasses.replace(answer, adapter_digest=self._info.adapter_digest)

    def _activate(self, digest: str) -> None:
        """Apply an adapter; the lock is held."""
        inputs = self._adapters[digest].inputs if digest else None
        # Without a pair the model reads as its base does: what it has read stays valid.
        self._decoder.use_adapter(digest if inputs else "", inputs or None)
        self._info = dataclasses.replace(self._info, adapter_digest=digest)

    def _active(self) -> _Loaded:
        return self._adapters.get(self._info.adapter_digest, _Loaded({}, None))

    def _check_head(self, name: str, head: Head) -> None:
        hidden = self._needs_hidden(f"adapter {name}: its head")
        if (head.spec.layer, head.weight.shape[1]) != (hidden.layer, 2 * hidden.width):
            raise BundleError(
                f"adapter {name}: its head takes {head.weight.shape[1]} numbers of layer "
                f"{head.spec.layer}; {self._manifest.name} gives {2 * hidden.width} of layer "
                f"{hidden.layer}"
            )

    def _needs_hidden(self, what: str) -> HiddenOutput:
        hidden = self._decoder.hidden
        if hidden is None:
            how = (
                "exported bundles have none"
                if self._manifest.graph == "exported"
                else "build the bundle again with this version: cascade bundle build --force"
            )
            raise BundleError(
                f"{what} needs hidden states, which the graph of {self._manifest.name} does not "
                f"give; {how}"
            )
        return hidden

    def _ending(
        self, max_tokens: int, stop: tuple[str, ...], stop_tokens: Collection[int]
    ) -> Ending:
        check_max_tokens(max_tokens)
        if not all(stop):
            raise InvalidInput("stop", "contains an empty string")
        for token in stop_tokens:
            if not 0 <= token < self._manifest.vocab_size:
                raise InvalidInput(
                    "stop_tokens", f"{token} is not in 0 … {self._manifest.vocab_size - 1}"
                )
        return Ending(max_tokens, stop, self._end_tokens.union(stop_tokens))
