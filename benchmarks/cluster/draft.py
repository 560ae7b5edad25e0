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
from cascade.remote import Chunk, DeviceReport, Finished, Speed, Transfer, Verified
from cascade.request import Constraints, Message, Request
from cascade.signing import SigningKey, TrustStore
from cascade.wire import ClientProfile, GrpcRemote
from edge import Bundle, OnnxModel, Step
from edge.build import build_from_gguf
from edge.bundle import CHAT_TEMPLATE, TOKENIZER

_SMALL: Final = "qwen2.5-coder-0.5b-instruct-q4_k_m"
_LARGE: Final = "qwen2.5-coder-1.5b-instruct-q4_k_m"
CLOSE: Final = 1e-3
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
class Written:
    """An answer of the device: its tokens, their pieces of text, and seconds for each."""

    tokens: tuple[int, ...]
    texts: tuple[str, ...]
    complete: bool
    token_s: float
    seconds: float
    tokenizer_digest: str

    async def onto(self, tape: DraftTape, *, live: bool) -> None:
        """Write it onto a tape, at once or each token when the device had it."""
        if live:
            await asyncio.sleep(self.seconds - self.token_s * len(self.tokens))
        for token, text in zip(self.tokens, self.texts, strict=True):
            if live:
                await asyncio.sleep(self.token_s)
            tape.add_token(token)
            tape.add_text(text)
        tape.end(complete=self.complete)


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer of a tier, and what it took."""

    text: str
    tokens: int
    seconds: float
    kept: int | None
    speed: Speed | None = None
    cpu_s: float = 0.0  # of the tier's replica


@dataclass(frozen=True, slots=True)
class Measured:
    """What the group has measured; lists are by prompt.

    Arguments:
        written: by the device.
        plain, drafted, live: answers of the tier without a draft, with one that is there when it
            is asked, and with one that is written meanwhile.
        default: of the default engine, without a draft.
        gaps: of each of ``drafted`` and ``live`` that differs from ``plain``: how far apart the two
            largest logits are where they part.
        length: most tokens of an answer.
    """

    written: Sequence[Written]
    plain: Sequence[Answered]
    drafted: Sequence[Answered]
    live: Sequence[Answered]
    default: Sequence[Answered]
    gaps: Sequence[float]
    length: int


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
        plain, drafted, live = _in_turn(cluster, prompts, written, length, run.say)
        cluster.deploy(None, tier={"model": _LARGE, "context_tokens": _CONTEXT, "parallel": 1})
        cluster.until_answered(within_s=120.0)
        default = _ask(cluster, [_Asked(prompt) for prompt in prompts], length, run.say)
    parted = [
        (prompt, (text, without.text))
        for some in (drafted, live)
        for prompt, text, without in zip(prompts, (each.text for each in some), plain, strict=True)
        if text != without.text
    ]
    gaps = asyncio.run(_gaps(folder, parted)) if parted else []
    yield from figures(Measured(written, plain, drafted, live, default, gaps, length), run)


def figures(measured: Measured, run: Run) -> Iterator[Row]:
    """The rows that come of it."""
    written, plain, drafted = measured.written, measured.plain, measured.drafted
    live, prompts = measured.live, len(measured.plain)
    how = (
        f"{_LARGE}, its weights rounded to bfloat16 and computed with in float32, by the engine "
        f"transformers, one thread, over TLS; {_SMALL} as an int4 bundle on the device; "
        f"{prompts} prompts, greedy, at most {measured.length} tokens"
    )
    close = sum(gap < CLOSE for gap in measured.gaps)
    yield run.row(
        "answers that a draft changed, logits not close",
        _exact(len(measured.gaps) - close, 2 * prompts),
        "answers",
        f"of those that differ, the two largest logits are {CLOSE:g} or more apart where they "
        f"part; each prompt once with a draft that is there and once with one that is written "
        f"meanwhile; {how}",
        reach=0.0,
    )
    yield run.row(
        "answers that a draft changed, logits close",
        _exact(close, 2 * prompts),
        "answers",
        f"the two largest logits are less than {CLOSE:g} apart where they part; {how}",
    )
    sent = sum(len(each.tokens) for each in written)
    kept = sum(each.kept or 0 for each in drafted)
    yield run.row("tokens of the drafts kept", _exact(100 * kept / sent, sent), "%", how)
    yield run.row(
        "token that the tier writes",
        _a_token([(each.written_s, each.written_tokens) for each in _speeds([*drafted, *live])]),
        "s",
        f"behind a draft, as the tier tells it; {how}",
    )
    yield run.row(
        "token of a draft that the tier reads",
        _a_token([(each.read_s, each.read_tokens) for each in _speeds([*drafted, *live])]),
        "s",
        f"as the tier tells it; {how}",
    )
    yield run.row("token of the device", median([w.token_s for w in written]), "s", how)
    yield run.row(
        "answer without a draft, wall time", median([each.seconds for each in plain]), "s", how
    )
    yield run.row(
        "answer with a draft that is there, wall time",
        median([each.seconds for each in drafted]),
        "s",
        f"from the call to its end; the device had its answer already; {how}",
    )
    yield run.row(
        "answer with a draft that is there over one without",
        ratio([each.seconds for each in drafted], [each.seconds for each in plain]),
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
        f"the device writes first and asks then; {how}",
    )
    yield run.row(
        "answer with a draft that is written meanwhile, wall time",
        median([each.seconds for each in live]),
        "s",
        f"from the call to its end; the device's tokens come as it wrote them, from the call on, "
        f"and the tier reads the prompt by then; {how}",
    )
    yield run.row(
        "answer with a draft that is written meanwhile over one without",
        ratio([each.seconds for each in live], [each.seconds for each in plain]),
        "ratio",
        f"wall times; {how}",
    )
    yield run.row(
        "answer of the default engine, wall time",
        median([each.seconds for each in measured.default]),
        "s",
        f"{_LARGE} itself by llama_cpp, one thread, no draft; the same prompts and lengths",
    )


def _speeds(answers: Sequence[Answered]) -> list[Speed]:
    return [each.speed for each in answers if each.speed is not None]


def _a_token(spent: Sequence[tuple[float, int]]) -> Estimate | None:
    """Seconds a token, over all answers; ``None`` where no tier told any."""
    tokens = sum(count for _, count in spent)
    return _exact(sum(seconds for seconds, _ in spent) / tokens, tokens) if tokens else None


@dataclass(frozen=True, slots=True)
class _Asked:
    """One question to the tier.

    Arguments:
        draft: that goes along.
        live: it is written while the call is under way, as fast as the device wrote it.
    """

    prompt: str
    draft: Written | None = None
    live: bool = False


def _in_turn(
    cluster: Cluster,
    prompts: Sequence[str],
    written: Sequence[Written],
    length: int,
    say: Callable[[str], None],
) -> tuple[list[Answered], ...]:
    """Answers without a draft, with one, and with one that is written meanwhile, in turn, so that a
    busier machine is so for all. A prompt never follows itself: the engine remembers the last one,
    and each is to be read anew."""
    count = len(prompts)
    shifts = [0, count // 3, 2 * count // 3]
    asked: list[_Asked] = []
    for place in range(count):
        first, second, third = ((place + shift) % count for shift in shifts)
        asked.append(_Asked(prompts[first]))
        asked.append(_Asked(prompts[second], written[second]))
        asked.append(_Asked(prompts[third], written[third], live=True))
    answers = _ask(cluster, asked, length, say)
    kinds = [answers[kind::3] for kind in range(3)]
    return tuple(
        [some[(place - shift) % count] for place in range(count)]
        for some, shift in zip(kinds, shifts, strict=True)
    )


def _ask(
    cluster: Cluster,
    asked: Sequence[_Asked],
    length: int,
    say: Callable[[str], None],
) -> list[Answered]:
    target = cluster.ours
    profile = ClientProfile(target["address"], target["ca"].encode(), target["key"])

    async def all_of_them() -> list[Answered]:
        remote = GrpcRemote(profile)
        answers = []
        try:
            for number, question in enumerate(asked):
                say(f"answer {number + 1} of {len(asked)}")
                before_s = cluster.usage()["tier_cpu_s"]
                answer = await _answer(remote, question, length)
                cpu_s = cluster.usage()["tier_cpu_s"] - before_s
                answers.append(dataclasses.replace(answer, cpu_s=cpu_s))
        finally:
            await remote.close()
        return answers

    return asyncio.run(all_of_them())


async def _answer(remote: GrpcRemote, asked: _Asked, length: int) -> Answered:
    limits = Constraints(deadline_s=_DEADLINE_S, max_remote_calls=1)
    request = Request((Message("user", asked.prompt),), max_tokens=length, constraints=limits)
    tape, writing = None, None
    if asked.draft is not None:
        tape = DraftTape(_ALL)
        writing = asyncio.create_task(asked.draft.onto(tape, live=asked.live))
    began = time.monotonic()
    stream = remote.answer(
        request,
        DeviceReport(tokenizer_digest=asked.draft.tokenizer_digest if asked.draft else ""),
        deadline_s=_DEADLINE_S,
        transfer=Transfer(),
        draft=tape,
    )
    text, kept, tokens, speed = "", None, 0, None
    async with aclosing(stream) as events:
        async for event in events:
            match event:
                case Chunk():
                    text += event.text
                case Verified():
                    kept = event.kept
                case Finished():
                    tokens, speed = event.completion_tokens, event.speed
    seconds = time.monotonic() - began
    if writing is not None:
        writing.cancel()
        await asyncio.wait({writing})
    return Answered(text, tokens, seconds, kept, speed)


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


def _written(bundle: Path, prompts: Sequence[str], length: int) -> list[Written]:
    """What the device answers."""
    model = OnnxModel(Bundle.open(bundle, TrustStore(bundle.parent / "trust")), threads=1)
    return [_write(model, prompt, length) for prompt in prompts]


def _write(model: OnnxModel, prompt: str, length: int) -> Written:
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
    return Written(
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


async def _gaps(folder: Path, parted: Sequence[tuple[str, tuple[str, str]]]) -> list[float]:
    from benchmarks.cluster.parting import gaps  # torch, which the other groups do not need

    return await gaps(folder, parted, context_tokens=_CONTEXT)


def _exact(value: float, n: int) -> Estimate:
    return Estimate(value, n)
