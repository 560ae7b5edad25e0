"""The device's answers to a whole part, with every core at work, kept for the next run.

An answer depends on the bundle, the task's wording and the sentence alone, so the rows are kept
under a digest of the three.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cascade import home
from cascade.cli.demo.data import Sentence
from cascade.files import sha256_bytes, write_whole
from cascade.local import CancelToken
from cascade.task import Task

if TYPE_CHECKING:
    from edge import Bundle, OnnxModel

_MAX_WORKERS = 4  # each holds a model of 200 MB


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """The device's answer to one sentence.

    Arguments:
        id: the sentence's.
        score: raw score of the answer, in [0.5, 1].
        correct: whether the answer is the people's.
    """

    id: str
    score: float
    correct: bool


def answer_part(
    name: str,
    sentences: Sequence[Sentence],
    task: Task,
    bundle: Bundle,
    on_done: Callable[[int], None],
) -> tuple[DeviceRow, ...]:
    """The device's rows for ``sentences``, in their order; ``on_done`` hears how many are done."""
    path = _kept(name, sentences, task, bundle)
    if path.is_file():
        return tuple(DeviceRow(**json.loads(line)) for line in path.read_text().splitlines())
    rows = _answer(sentences, task, bundle, on_done)
    text = "".join(json.dumps(asdict(row)) + "\n" for row in rows)
    write_whole(path, text.encode())
    return rows


def _answer(
    sentences: Sequence[Sentence], task: Task, bundle: Bundle, on_done: Callable[[int], None]
) -> tuple[DeviceRow, ...]:
    from edge import OnnxModel

    mine = threading.local()
    cancel = CancelToken()
    workers = min(_MAX_WORKERS, os.cpu_count() or 1, len(sentences))

    def start_worker() -> None:
        mine.model = OnnxModel(bundle, threads=1)

    def answer(sentence: Sentence) -> DeviceRow:
        return _row(mine.model, sentence, task, cancel)

    pool = ThreadPoolExecutor(workers, initializer=start_worker)
    try:
        futures = [pool.submit(answer, sentence) for sentence in sentences]
        for done, future in enumerate(as_completed(futures), start=1):
            future.result()
            on_done(done)
        return tuple(future.result() for future in futures)
    finally:
        cancel.cancel()
        pool.shutdown(cancel_futures=True)


def _row(model: OnnxModel, sentence: Sentence, task: Task, cancel: CancelToken) -> DeviceRow:
    answer = model.choose(
        task.for_device(sentence.text),
        task.options,
        prior_prompt=task.prior_prompt(),
        option_prefix=task.option_prefix,
        mode="exact",  # what the confidence is fitted to
        cancel=cancel,
    )
    return DeviceRow(sentence.id, answer.raw_score, answer.text == sentence.label)


def _kept(name: str, sentences: Sequence[Sentence], task: Task, bundle: Bundle) -> Path:
    key = json.dumps([bundle.digest, task.to_json(), [(s.id, s.text, s.label) for s in sentences]])
    return home.home() / "demo" / f"{name}-{sha256_bytes(key.encode())[:16]}.jsonl"
