"""The tasks of the loop: rows, wording, who teaches, and what is promised.

Commands: sentences of all 42 intents of Home Assistant's templates; at most four of a template, for
sentences of one are nearly the same and would count as many in a certificate. Templates are drawn
for the parts, so that an intent of one or two is not in all of them. The user corrects what was
wrong. Beside them devices are asked questions of NQ-open (Kwiatkowski et al. 2019), which are none
of the task's.

Sentiment: sentences of four domains (``cascade.cli.demo.data``), as the demo puts them. A larger
model teaches, through the gateway; its answers were recorded once (``data/README.md``), and what
people said of a sentence is what is right.

Banking77 is read from the folder that ``CASCADE_EVAL_DATA`` names, as an evaluation alone.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np

from benchmarks.decision.datasets.commands import all_sentences
from benchmarks.decision.datasets.sources import fetched
from cascade.cli.demo.data import load_sentences
from cascade.cli.demo.setting import SENTENCES, TASK
from cascade.download import pull
from cascade.records import load, text_key
from cascade.task import Task
from cloud.fleet import FleetRow
from cloud.fleet.plan import Bounded

_DATA: Final = Path(__file__).parents[1] / "data"
_OF_TEMPLATE, _OF_INTENT = 4, 320
_TEACHERS: Final = {"tier1": "0.5B", "tier2": "1.5B"}
Attacked = Literal["head, label-flip", "head, sign-flip", "head, scale"]
Product = Literal["lora, product", "lora, product of rank 3"]
Arm = Literal["head", "head, not certified anew", "lora"] | Product | Attacked
_OUTSIDE: Final = "none of these"
_WORD: Final = re.compile("[A-Z][a-z]+")


@dataclass(frozen=True, slots=True)
class LoopTask:
    """One task.

    Arguments:
        rows: without parts.
        starting: labels before the first round.
        per_round: rows that a device sees in one.
        most: rows of the develop part; others in proportion (``cloud.fleet.parts``).
        target, alpha: what is certified.
        partition: which device sees what.
        lora: how LoRA is asked, where it is not as a head is: it needs no examples in its prompt,
            which it would have to read again in every step.
        lora_steps: that a device takes in a round at most; one over 27 answers takes four times as
            long as one over two.
        wordings: how the base model is asked, for set-ups that learn nothing.
        attacked: it is run with attackers, too, under this rule. The median needs devices that see
            the same answers: of a row that most have nothing to say of, it leaves nothing.
        evaluation: it is only looked at; nothing was to be reached on it.
    """

    name: str
    task: Task
    rows: tuple[FleetRow, ...]
    starting: int
    per_round: int
    most: int | None
    target: Bounded
    alpha: float
    partition: str
    wordings: Mapping[str, Task]
    lora: Task | None = None
    lora_steps: int = 20
    attacked: Literal["mean", "median"] | None = None
    evaluation: bool = False


def commands() -> LoopTask:
    """Smart-home commands, corrected by their user."""
    content = json.loads(fetched("home-assistant-intents-en").read_text(encoding="utf-8"))
    drawn = [(row.prompt, row.reference, row.document) for row in all_sentences(content)]
    intents = defaultdict(set)
    for text, intent, _ in drawn:
        intents[text_key(text)].add(intent)
    of_template: dict[str, dict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for text, intent, template in drawn:
        if len(intents[text_key(text)]) == 1:
            of_template[intent][template].setdefault(text_key(text), text)
    rows = []
    for intent, templates in sorted(of_template.items()):
        rows += list(_in_turn(_named(intent), templates))
    inside = len(rows)
    rows += [
        FleetRow(f"nq/{place}", question, "", document=f"nq/{place}")
        for place, question in enumerate(_questions()[: inside // 4])
    ]
    options = (*sorted({row.answer for row in rows if row.answer}), _OUTSIDE)
    task = Task("commands", options, "Command: {input}\nIntent:", " ", "{input}", outside=_OUTSIDE)
    return LoopTask(
        name="commands",
        task=task,
        rows=tuple(rows),
        starting=2 * len(options),
        per_round=30,
        most=None,
        target="risk",
        alpha=0.05,
        partition="dirichlet:0.3",
        wordings={"plain": task},
        lora_steps=10,
        attacked="mean",
    )


def sentiment(teacher: str) -> LoopTask:
    """Sentences of four domains, of which each device sees one.

    Arguments:
        teacher: ``tier1`` or ``tier2`` of the recorded answers.
    """
    told = _recorded(teacher)
    rows = tuple(
        FleetRow(
            each.id,
            each.text,
            each.label,
            teacher=told[each.id],
            group=each.domain.value,
            document=each.document,
        )
        for each in load_sentences(pull(SENTENCES)).sentences
        if each.id in told
    )
    return LoopTask(
        name=f"sentiment, {_TEACHERS[teacher]}",
        task=TASK,
        rows=rows,
        starting=32,
        per_round=50,
        most=None,
        target="excess",
        alpha=0.05,
        partition="by-group",
        wordings={"two examples": TASK, "plain": replace(TASK, examples=())},
        lora=replace(TASK, examples=()),
        attacked="median",
    )


def banking77() -> LoopTask | None:
    """Banking questions of 77 kinds, corrected by their user; ``None`` where the data is not."""
    folder = os.environ.get("CASCADE_EVAL_DATA")
    path = Path(folder or "") / "banking77" / "train.csv"
    if not folder or not path.is_file():
        return None
    with path.open(encoding="utf-8", newline="") as file:
        found = [(row["text"], row["category"]) for row in csv.DictReader(file)]
    rng = np.random.default_rng(77)
    rows = [
        FleetRow(str(place), found[place][0].strip(), found[place][1].replace("_", " "))
        for place in rng.permutation(len(found))[:4000].tolist()
    ]
    options = tuple(sorted({row.answer for row in rows}))
    task = Task("banking", options, "Customer: {input}\nAbout:", " ", "{input}")
    return LoopTask(
        name="banking77",
        task=task,
        rows=tuple(rows),
        starting=3 * len(options),
        per_round=25,
        most=None,
        target="risk",
        alpha=0.05,
        partition="dirichlet:0.3",
        wordings={"plain": task},
        evaluation=True,
    )


def _in_turn(answer: str, templates: dict[str, dict[str, str]]) -> Iterator[FleetRow]:
    """Sentences of the templates in turn, some of each."""
    taken = 0
    for place in range(_OF_TEMPLATE):
        for template, texts in sorted(templates.items()):
            if place < len(texts) and taken < _OF_INTENT:
                taken += 1
                text = list(texts.values())[place]
                yield FleetRow(f"{template}/{place}", text, answer, document=template)


def _named(intent: str) -> str:
    return " ".join(_WORD.findall(intent.removeprefix("Hass"))).lower()


def _questions() -> list[str]:
    lines = fetched("nq-open").read_text(encoding="utf-8").splitlines()
    found = sorted({json.loads(line)["question"] for line in lines if line})
    return [found[place] for place in np.random.default_rng(0).permutation(len(found))]


def _recorded(teacher: str) -> dict[str, str]:
    """What a tier answered, by the sentence's id."""
    records = load(_DATA / "sentiment_teachers.parquet")
    said = zip(
        records.ids, records.texts(teacher, "answer"), records.answered(teacher), strict=True
    )
    return {row: answer for row, answer, answered in said if answered}
