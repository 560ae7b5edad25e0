"""What a draft brings: Qwen2.5-Coder-0.5B on the device proposes, the 1.5B in the cluster verifies.

The answers with a draft and those without must be the same, but for tokens whose two best logits
are so close that a pass over many tokens may order them otherwise.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.cluster.subject import Cluster
from benchmarks.rows import Row
from benchmarks.run import Run
from benchmarks.timing import Estimate, median, ratio
from cascade import catalog, download, home
from cascade.draft import Drafting, DraftTape
from cascade.remote import Chunk, DeviceReport, Finished, Transfer, Verified
from cascade.request import Constraints, Message, Request
from cascade.signing import SigningKey, TrustStore
from cascade.wire import ClientProfile, GrpcRemote
from edge import Bundle, OnnxModel, Step
from edge.build import build_from_gguf
from edge.bundle import CHAT_TEMPLATE, TOKENIZER

_SMALL: Final = "qwen2.5-coder-0.5b-instruct-q4_k_m"
_LARGE: Final = "qwen2.5-coder-1.5b-instruct-q4_k_m"
_CLOSE: Final = 1e-3
_DEADLINE_S: Final = 500.0
_CONTEXT: Final = 512
# Sends all of it: here the figures are measured by which a device would cut it.
_ALL: Final = Drafting(acceptance=0.999, write_s=1.0, read_s=1e-6)
_PROMPTS: Final = (
    "Write a Python function that reverses a string. Only code.",
    "Write a Python function that tells whether a number is prime. Only code.",
    "Explain in two sentences what a hash table is.",
    "Write a SQL query that counts the orders of each customer. Only code.",
    "What is the difference between a list and a tuple in Python?",
    "Write a C function that adds up an array of integers. Only code.",
    "Write a regular expression for a date like 2024-05-31, and say how it works.",
    "Write a shell command that finds the ten largest files below a folder.",
)


@dataclass(frozen=True, slots=True)
class _Written:
    """An answer of the device: its tokens, their pieces of text, and seconds for each."""

    tokens: tuple[int, ...]
    texts: tuple[str, ...]
    complete: bool
    token_s: float
    seconds: float
    tokenizer_digest: str

    def tape(self) -> DraftTape:
        tape = DraftTape(_ALL)
        for token, text in zip(self.tokens, self.texts, strict=True):
            tape.add_token(token)
            tape.add_text(text)
        tape.end(complete=self.complete)
        return tape


@dataclass(frozen=True, slots=True)
class _Answered:
    text: str
    tokens: int
    seconds: float
    kept: int | None
    cpu_s: float = 0.0  # of the tier's replica


def rows(subject: None, run: Run) -> Iterator[Row]:
    """The same answers with a draft and without, how long both take, and the default engine's."""
    prompts, length = (_PROMPTS[:6], 16) if run.quick else (_PROMPTS, 32)
    with tempfile.TemporaryDirectory(prefix="cascade-bench-") as place:
        small = _bundle(Path(place), run)
        folder = _as_folder(download.pull(_LARGE), small, run)
        written = _written(small, prompts, length)
    tier = {"engine": "transformers", "model": str(folder), "context_tokens": _CONTEXT}
    with Cluster() as cluster:
        cluster.deploy(None, tier={**tier, "parallel": 1})
        cluster.until_answered(within_s=300.0)
        plain, drafted = _alternating(cluster, prompts, written, length, run.say)
        cluster.deploy(None, tier={"model": _LARGE, "context_tokens": _CONTEXT, "parallel": 1})
        cluster.until_answered(within_s=120.0)
        asked = [(prompt, None) for prompt in prompts]
        default = _ask(cluster, asked, length, run.say)
    differing = [place for place in range(len(prompts)) if plain[place].text != drafted[place].text]
    texts = [(prompts[place], (drafted[place].text, plain[place].text)) for place in differing]
    gaps = asyncio.run(_gaps(folder, texts)) if texts else []
    close = sum(gap < _CLOSE for gap in gaps)
    how = (
        f"{_LARGE}, its weights rounded to bfloat16 and computed with in float32, by the engine "
        f"transformers, one thread, over TLS; {_SMALL} as an int4 bundle on the device; "
        f"{len(prompts)} prompts, greedy, at most {length} tokens"
    )
    yield run.row(
        "answers that a draft changed, logits not close",
        _exact(len(differing) - close, len(prompts)),
        "answers",
        f"of those that differ, the two largest logits are {_CLOSE:g} or more apart where they "
        f"part; {how}",
        reach=0.0,
    )
    yield run.row(
        "answers that a draft changed, logits close",
        _exact(close, len(prompts)),
        "answers",
        f"the two largest logits are less than {_CLOSE:g} apart where they part; {how}",
    )
    sent = sum(len(each.tokens) for each in written)
    kept = sum(each.kept or 0 for each in drafted)
    yield run.row("tokens of the drafts kept", _exact(100 * kept / sent, sent), "%", how)
    plain_s, drafted_s = ([each.seconds for each in some] for some in (plain, drafted))
    written_s = [each.seconds / max(1, each.tokens) for each in plain]
    yield run.row(
        "token of the tier, its share of the prompt included", median(written_s), "s", how
    )
    yield run.row("answer without a draft, wall time", median(plain_s), "s", how)
    yield run.row(
        "answer with a draft that is there, wall time",
        median(drafted_s),
        "s",
        f"from the call to its end; the device had its answer already; {how}",
    )
    yield run.row(
        "answer with a draft that is there over one without",
        ratio(drafted_s, plain_s),
        "ratio",
        f"wall times of the two rows above; {how}",
    )
    yield run.row(
        "answer without a draft, the tier's CPU time",
        median([each.cpu_s for each in plain]),
        "s",
        how,
    )
    yield run.row(
        "answer with a draft over one without, the tier's CPU time",
        ratio([each.cpu_s for each in drafted], [each.cpu_s for each in plain]),
        "ratio",
        f"unlike the clock it hardly sees what else the machine does; {how}",
    )
    yield run.row(
        "answer with a draft, the device's time included",
        median([d.seconds + w.seconds for d, w in zip(drafted, written, strict=True)]),
        "s",
        f"as if the device wrote for the draft alone; {how}",
    )
    yield run.row(
        "answer of the default engine, wall time",
        median([each.seconds for each in default]),
        "s",
        f"{_LARGE} itself by llama_cpp, one thread, no draft; the same prompts and lengths",
    )
    yield run.row("token of the device", median([w.token_s for w in written]), "s", how)


def _alternating(
    cluster: Cluster,
    prompts: Sequence[str],
    written: Sequence[_Written],
    length: int,
    say: Callable[[str], None],
) -> tuple[list[_Answered], list[_Answered]]:
    """Answers without a draft and with one, in turn, so that a busier machine is so for both. A
    prompt never follows itself: the engine remembers the last one, and each is to be read anew."""
    half = len(prompts) // 2
    asked: list[tuple[str, _Written | None]] = []
    for place, prompt in enumerate(prompts):
        other = (place + half) % len(prompts)
        asked += [(prompt, None), (prompts[other], written[other])]
    answers = _ask(cluster, asked, length, say)
    plain, drafted = answers[::2], answers[1::2]
    return plain, [*drafted[-half:], *drafted[:-half]]


def _ask(
    cluster: Cluster,
    asked: Sequence[tuple[str, _Written | None]],
    length: int,
    say: Callable[[str], None],
) -> list[_Answered]:
    target = cluster.ours
    profile = ClientProfile(target["address"], target["ca"].encode(), target["key"])

    async def all_of_them() -> list[_Answered]:
        remote = GrpcRemote(profile)
        answers = []
        try:
            for number, (prompt, draft) in enumerate(asked):
                say(f"answer {number + 1} of {len(asked)}")
                before_s = cluster.usage()["tier_cpu_s"]
                answer = await _answer(remote, prompt, draft, length)
                cpu_s = cluster.usage()["tier_cpu_s"] - before_s
                answers.append(dataclasses.replace(answer, cpu_s=cpu_s))
        finally:
            await remote.close()
        return answers

    return asyncio.run(all_of_them())


async def _answer(
    remote: GrpcRemote, prompt: str, draft: _Written | None, length: int
) -> _Answered:
    limits = Constraints(deadline_s=_DEADLINE_S, max_remote_calls=1)
    request = Request((Message("user", prompt),), max_tokens=length, constraints=limits)
    digest = "" if draft is None else draft.tokenizer_digest
    began = time.monotonic()
    stream = remote.answer(
        request,
        DeviceReport(tokenizer_digest=digest),
        deadline_s=_DEADLINE_S,
        transfer=Transfer(),
        draft=None if draft is None else draft.tape(),
    )
    text, kept, tokens = "", None, 0
    async with aclosing(stream) as events:
        async for event in events:
            match event:
                case Chunk():
                    text += event.text
                case Verified():
                    kept = event.kept
                case Finished():
                    tokens = event.completion_tokens
    return _Answered(text, tokens, time.monotonic() - began, kept)


def _bundle(place: Path, run: Run) -> Path:
    """The small model, as a device runs it."""
    run.say(f"building the bundle from {_SMALL}")
    entry, key, trust = catalog.entry(_SMALL), SigningKey.generate(), TrustStore(place / "trust")
    trust.pin("benchmarks", key.public)
    return build_from_gguf(
        download.pull(_SMALL),
        place / "small",
        name="small",
        base_model=entry.title,
        licence=entry.licence,
        commercial_use=entry.commercial_use,
        signing_key=key,
    )


def _written(bundle: Path, prompts: Sequence[str], length: int) -> list[_Written]:
    """What the device answers."""
    model = OnnxModel(Bundle.open(bundle, TrustStore(bundle.parent / "trust")), threads=1)
    return [_write(model, prompt, length) for prompt in prompts]


def _write(model: OnnxModel, prompt: str, length: int) -> _Written:
    """One answer, its prompt read anew."""
    tokens: list[int] = []
    texts: list[list[str]] = []

    def on_token(step: Step) -> None:
        tokens.append(step.token)
        texts.append([])

    def on_text(text: str) -> None:
        texts[-1].append(text)

    model.forget_prefix()
    began = time.monotonic()
    answer = model.generate(
        (Message("user", prompt),),
        max_tokens=length,
        on_token=on_token,
        on_text=on_text,
    )
    return _Written(
        tuple(tokens),
        tuple("".join(each) for each in texts),
        answer.finish == "stop",
        answer.decode_s / max(1, answer.tokens),
        time.monotonic() - began,
        model.info.tokenizer_digest,
    )


def _as_folder(gguf: Path, bundle: Path, run: Run) -> Path:
    """The large model as transformers reads it, made once and kept, with the bundle's tokenizer:
    both models have the same, and this is how one can tell."""
    folder = home.home() / "benchmarks" / f"{_LARGE}-transformers"
    if not (folder / "generation_config.json").is_file():
        run.say(f"unpacking {gguf.name} for transformers: minutes, and 11 GB of memory")
        import torch
        import transformers

        model = transformers.AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16
        )
        model.save_pretrained(folder)
    for name in (TOKENIZER, CHAT_TEMPLATE):
        shutil.copy(bundle / name, folder / name)
    named = {"eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return folder


async def _gaps(folder: Path, texts: Sequence[tuple[str, tuple[str, str]]]) -> list[float]:
    """How far apart the two largest logits are where the answers of a pair part."""
    from cloud.engines.draft import Draft
    from cloud.engines.transformers import Transformers

    engine = Transformers(folder, context_tokens=_CONTEXT)
    await engine.start()
    gaps = []
    for prompt, answers in texts:
        scores = [
            await engine.score_draft((Message("user", prompt),), Draft(text)) for text in answers
        ]
        gaps.append(max(score.gap for score in scores if score.gap is not None))
    await engine.close()
    return gaps


def _exact(value: float, n: int) -> Estimate:
    return Estimate(value, n)
