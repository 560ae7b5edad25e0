"""Any causal language model of Hugging Face transformers, from a local folder, with exact logits.

For research and for scoring drafts, not for many users: one request is computed at a time. Weights
are read from safetensors only, and no code out of the folder is run.
"""

from __future__ import annotations

import asyncio
import functools
import tempfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from cascade.errors import Cancelled, CascadeError, InvalidInput
from cascade.home import trust_dir
from cascade.local import CancelToken, LocalAnswer
from cascade.remote import Verified
from cascade.request import Message
from cascade.signing import TrustStore
from cloud.engines.base import Capabilities, ChatRequest, EngineEvent, check_adapter
from cloud.engines.causal import CausalModel, FolderFiles
from cloud.engines.draft import Draft, DraftScore
from cloud.engines.one_at_a_time import Put, answering, stream_answer
from cloud.errors import EngineFailed, ModelUnusable
from edge.parts import Row, TreeNode

if TYPE_CHECKING:
    from cloud.engines.torch_adapters import TorchAdapters

# Tokens read in one pass, which cannot be interrupted.
_PASS_TOKENS: Final = 64


class Transformers:
    """An ``Engine`` over one folder.

    Arguments:
        folder: as ``save_pretrained`` writes it: ``config.json``, safetensors, ``tokenizer.json``.
        context_tokens: tokens of prompt and answer together; the model's own limit if lower.
        threads: threads that compute, for the whole process: torch knows no others.
        adapters: LoRA adapters of this model, folders by name: PEFT's, or signed as devices take
            them. All are checked at the start; those that were used last are in memory, and the
            others are read when asked for.
        most_adapters: in memory at one time, ≥ 1.
        trust: publisher keys that this machine accepts, for signed adapters; by default those that
            are pinned on it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        context_tokens: int,
        threads: int = 1,
        adapters: Mapping[str, Path] | None = None,
        most_adapters: int = 4,
        trust: TrustStore | None = None,
    ) -> None:
        self._folder = folder
        self._context_tokens = context_tokens
        self._threads = threads
        self._folders = dict(adapters or {})
        self._most_adapters = most_adapters
        self._trust = trust or TrustStore(trust_dir())
        self._adapters: TorchAdapters | None = None
        self._torch: Any = None
        self._model: CausalModel | None = None
        self._worker: ThreadPoolExecutor | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    @property
    def capabilities(self) -> Capabilities:
        """Everything."""
        return Capabilities(
            options=True,
            json_schema=True,
            regex=True,
            logprobs=True,
            seeds=True,
            context_tokens=self._context_tokens,
            draft_scoring=True,
        )

    async def start(self) -> None:
        """Load the model.

        Raises:
            ModelUnusable: the folder is missing or holds no model that this engine can run, or one
                of the adapters is damaged or for another model.
        """
        if self._model is not None:
            return
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="transformers")
        try:
            self._model = await asyncio.get_running_loop().run_in_executor(self._worker, self._load)
        except BaseException:
            await self.close()
            raise

    async def stream(
        self, request: ChatRequest, draft: Draft | None = None
    ) -> AsyncGenerator[list[EngineEvent]]:
        """Answer ``request``; see ``Engine.stream``.

        Arguments:
            draft: the beginning of the answer as somebody else proposes it; not for options. By
                default that of the request.
        """
        model, worker = self._model, self._worker
        if model is None or worker is None:
            raise EngineFailed
        check_adapter(request.adapter, self._folders)

        def compute(put: Put, cancel: CancelToken) -> LocalAnswer:
            self._adapt(model, request.adapter)  # in the one worker: no other request is under way
            if request.prefill:
                return model.prefill(request.messages, cancel)
            write = functools.partial(
                model.generate,
                draft=draft or request.draft,
                on_kept=lambda kept: put(Verified(kept)),
                on_speed=put,
            )
            return answering(write, model.choose, request)(put, cancel)

        prompt_tokens = model.count_tokens(request.messages)
        async with aclosing(stream_answer(worker, request, prompt_tokens, compute)) as batches:
            async for batch in batches:
                yield batch

    async def score_draft(
        self, messages: tuple[Message, ...], draft: Draft, adapter: str = ""
    ) -> DraftScore:
        """How far this model, with one of its adapters, agrees with ``draft`` as its answer to
        ``messages``.

        What was read stays at hand, so that ``stream`` goes on from there at once.

        Raises:
            InvalidInput: the prompt does not fit the context, the draft is of another tokenizer, or
                there is no such adapter.
        """
        model, worker = self._model, self._worker
        if model is None or worker is None:
            raise EngineFailed
        check_adapter(adapter, self._folders)
        cancel = CancelToken()

        def compute() -> DraftScore:
            self._adapt(model, adapter)
            return model.score_draft(messages, draft, cancel)

        try:
            return await asyncio.get_running_loop().run_in_executor(worker, compute)
        finally:
            cancel.cancel()

    async def add_adapter(self, name: str, folder: Path) -> None:
        """Have requests ask for one more adapter; see ``Swapping.add_adapter``. Waits for the
        answer that is under way: the model is changed by it."""
        model, worker = self._model, self._worker
        if model is None or worker is None:
            raise EngineFailed

        def add() -> None:
            if self._adapters is None:
                self._adapters = self._torch_adapters(self._torch)
            model.forget_prefix()
            self._adapters.add(name, folder)

        await asyncio.get_running_loop().run_in_executor(worker, add)
        self._folders[name] = folder

    async def reset_prefix_cache(self) -> int:
        """Forget what was read; see ``Engine.reset_prefix_cache``."""
        if self._model is None:
            return 0
        forget = self._model.forget_prefix
        return await asyncio.get_running_loop().run_in_executor(self._worker, forget)

    async def close(self) -> None:
        """Free the model and its thread."""
        worker, self._worker, self._model = self._worker, None, None
        self._adapters = self._torch = None
        scratch, self._scratch = self._scratch, None
        if worker is not None:
            worker.shutdown(wait=False, cancel_futures=True)
        if scratch is not None:
            scratch.cleanup()

    def _adapt(self, model: CausalModel, name: str) -> None:
        """Have the next answer be an adapter's, or the model's alone."""
        if self._adapters is not None and name != self._adapters.active:
            model.forget_prefix()  # what another one read
            self._adapters.use(name)

    def _load(self) -> CausalModel:
        folder = self._folder
        if not (folder / "config.json").is_file():
            raise ModelUnusable(f"there is no model in {folder}: it has no config.json")
        torch.set_num_threads(self._threads)
        try:
            # On a processor all arithmetic is in float32, whatever the file's type; on a GPU, of
            # which Ray shows only what was asked for, in the file's own.
            gpu = torch.cuda.is_available()
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                dtype="auto" if gpu else torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
            )
            model = model.to("cuda" if gpu else "cpu").eval()
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as problem:
            reason = str(problem).strip().splitlines() or [type(problem).__name__]
            raise ModelUnusable(f"transformers cannot load {folder}: {reason[0]}") from None
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._context_tokens = min(self._context_tokens, limit or self._context_tokens)
        self._torch = model
        if self._folders:
            self._adapters = self._torch_adapters(model)
            self._adapters.check()
        decoder = TorchDecoder(model, self._context_tokens)
        self._scratch = tempfile.TemporaryDirectory(prefix="cascade-text-")
        try:
            return CausalModel(decoder, FolderFiles(folder, Path(self._scratch.name)))
        except CascadeError as problem:
            raise ModelUnusable(f"{folder}: {problem}") from None

    def _torch_adapters(self, model: Any) -> TorchAdapters:
        try:
            from cloud.engines.torch_adapters import TorchAdapters
        except ImportError:
            raise ModelUnusable(
                "adapters on transformers need PEFT: pip install 'edge-cloud-cascade[transformers]'"
            ) from None
        return TorchAdapters(model, self._folders, most=self._most_adapters, trust=self._trust)


class TorchDecoder:
    """A causal model that remembers the sequence it read last. Not thread-safe.

    Arguments:
        model: in evaluation mode.
        context_tokens: the longest sequence.

    Raises:
        ModelUnusable: the model keeps a state that cannot go back, as recurrent ones do.
    """

    def __init__(self, model: Any, context_tokens: int) -> None:
        self._model = model
        self._context_tokens = context_tokens
        self._tokens: list[int] = []
        self._cache = _empty_cache()
        self._few = {"logits_to_keep": 1} if model._supports_logits_to_keep() else {}
        self.vocab_size = self._run([0], 1).shape[1]
        if self._cache.get_seq_length() != 1:
            raise ModelUnusable(
                f"{type(model).__name__} keeps a state that cannot go back; use a model with "
                "attention alone"
            )
        self.forget()

    @property
    def free_tokens(self) -> int:
        """How many more tokens fit into the context."""
        return self._context_tokens - len(self._tokens)

    def read(self, tokens: Sequence[int], cancel: CancelToken | None = None) -> Row:
        """Logits that follow ``tokens``, of which those in common with what is held are not
        computed again: float32, shape ``[vocab]``.

        Raises:
            InvalidInput: the sequence is empty or does not fit the context.
            Cancelled: ``cancel`` was used; what was read by then is held.
        """
        if not tokens:
            raise InvalidInput("prompt", "is empty; write what you want to ask")
        if len(tokens) > self._context_tokens:
            raise InvalidInput(
                "prompt",
                f"has {len(tokens)} tokens with its template; this tier reads at most "
                f"{self._context_tokens}; shorten it",
            )
        row: Row = self._rows_after(tokens, 1, cancel)[0]
        return row

    def push(self, token: int) -> Row:
        """Logits after one more token."""
        row: Row = self.extend([token])[0]
        return row

    def extend(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits after each of some more tokens, read in one pass: float32, shape
        ``[tokens, vocab]``.

        Raises:
            InvalidInput: they do not fit the context.
        """
        if len(tokens) > self.free_tokens:
            raise InvalidInput("prompt", f"fills all {self._context_tokens} tokens")
        return self._run(tokens, len(tokens))

    def read_tree(
        self,
        tokens: Sequence[int],
        nodes: Sequence[TreeNode],
        cancel: CancelToken | None = None,
        *,
        known: int = 0,
    ) -> NDArray[np.float32]:
        """Logits after ``tokens`` and the path to each of ``nodes[known:]``: float32, shape
        ``[nodes − known, vocab]``. Parents come before their children.

        Path by path, because masks of trees are not what every model takes: a pass for each chain
        of nodes that follow each other.

        Raises:
            InvalidInput, Cancelled: see ``read``.
        """
        if len(tokens) + _depth(nodes) > self._context_tokens:
            raise InvalidInput(
                "prompt",
                f"leaves no room for the answer in {self._context_tokens} tokens; shorten it",
            )
        rows = np.empty((len(nodes) - known, self.vocab_size), np.float32)
        start = known
        while start < len(nodes):
            end = start + 1
            while end < len(nodes) and nodes[end].parent == end - 1:
                end += 1
            path = _path(nodes, end - 1)
            rows[start - known : end - known] = self._rows_after(
                [*tokens, *path], end - start, cancel
            )
            start = end
        self.keep(len(tokens))
        return rows

    def keep(self, tokens: int) -> None:
        """Hold the first ``tokens`` of what was read, and not the rest."""
        if tokens < len(self._tokens):
            del self._tokens[tokens:]
            if tokens:
                self._cache.crop(tokens)
            else:
                self._cache = _empty_cache()

    def forget(self) -> int:
        """Hold nothing; returns the number of tokens forgotten."""
        held = len(self._tokens)
        self.keep(0)
        return held

    def _rows_after(
        self, tokens: Sequence[int], count: int, cancel: CancelToken | None
    ) -> NDArray[np.float32]:
        """Logits after each of the last ``count`` of ``tokens``, which are held afterwards."""
        most = len(tokens) - count
        pairs = zip(self._tokens, tokens[:most], strict=False)
        start = next((at for at, (one, other) in enumerate(pairs) if one != other), None)
        start = min(len(self._tokens), most) if start is None else start
        self.keep(start)
        rows = np.empty((count, self.vocab_size), np.float32)
        while start < len(tokens):
            if cancel is not None and cancel.cancelled:
                raise Cancelled("the request was cancelled while the prompt was read")
            end = min(start + _PASS_TOKENS, len(tokens))
            wanted = min(max(end - most, 0), end - start)
            read = self._run(tokens[start:end], wanted)
            if wanted:
                rows[end - wanted - most : end - most] = read
            start = end
        return rows

    def _run(self, tokens: Sequence[int], wanted: int) -> NDArray[np.float32]:
        """One pass behind what is held; logits after the last ``wanted`` tokens."""
        few = {name: max(wanted, 1) for name in self._few}
        with torch.inference_mode():
            ids = torch.tensor([list(tokens)], device=self._model.device)
            output = self._model(input_ids=ids, past_key_values=self._cache, use_cache=True, **few)
        self._tokens.extend(tokens)
        rows: NDArray[np.float32] = (
            output.logits[0, -wanted:].float().cpu().numpy()
            if wanted
            else np.empty((0, output.logits.shape[-1]), np.float32)
        )
        return rows


def _empty_cache() -> Any:
    # Without the model's configuration every layer keeps all it read, so that going back is
    # possible where attention slides; masks are the model's business.
    return transformers.DynamicCache()


def _path(nodes: Sequence[TreeNode], node: int) -> list[int]:
    path: list[int] = []
    while node >= 0:
        path.append(nodes[node].token)
        node = nodes[node].parent
    return path[::-1]


def _depth(nodes: Sequence[TreeNode]) -> int:
    depths: list[int] = []
    for node in nodes:
        depths.append(1 + (depths[node.parent] if node.parent >= 0 else 0))
    return max(depths, default=0)
