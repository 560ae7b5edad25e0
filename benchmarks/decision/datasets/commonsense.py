"""CommonsenseQA: five answers to a question, and which is right takes knowledge of the world.

Chosen to be hard for a device of 135 million weights: a set on which a certificate is refused is as
telling as one on which it is not. The closed set is the letters of the answers, since all rows of a
policy share one; so the answers are part of the input.
"""

from __future__ import annotations

import json
import re

from benchmarks.decision.datasets.dataset import Dataset, Row, fairly_ordered
from benchmarks.decision.datasets.sources import fetched
from cascade.task import Example, Task

_LETTERED = re.compile(r"^([A-E])\. (.+)$", re.MULTILINE)
_LETTERS = tuple("ABCDE")


def rows() -> list[Row]:
    """The questions in a seeded order, without the thirty or so of which the file has not five
    different answers with the right one among them."""
    lines = fetched("commonsense-qa-validation").read_text(encoding="utf-8").splitlines()
    read = [question(number, json.loads(line)) for number, line in enumerate(lines, start=1)]
    return fairly_ordered(row for row in read if row is not None)


def question(number: int, content: dict[str, str]) -> Row | None:
    """The row of one line of the file, by its number; ``None`` where it is to be left out."""
    lettered = [(letter, text.strip()) for letter, text in _LETTERED.findall(content["options"])]
    answer, _, text = (part.strip() for part in content["answer"].partition(". "))
    whole = tuple(letter for letter, _ in lettered) == _LETTERS and (answer, text) in lettered
    if not whole or len({text.casefold() for _, text in lettered}) < len(lettered):
        return None
    name = f"validation/{number}"
    prompt = "\n".join([content["question"].strip(), *map(". ".join, lettered)])
    return Row(name, name, prompt, answer)


COMMONSENSE = Dataset(
    name="commonsense",
    description="CommonsenseQA, validation part (Talmor et al. 2019)",
    licence="MIT",
    group="",
    wording=Task(
        task_id="commonsense",
        options=_LETTERS,
        device_prompt="Question: {input}\nAnswer:",
        option_prefix=" ",
        cloud_prompt="Question: {input}\nAnswer:",
        # Written here. They show that a letter is wanted.
        examples=(
            Example(
                "Where is bread made?\nA. beach\nB. bakery\nC. cinema\nD. stable\nE. attic", "B"
            ),
            Example(
                "What do you wear on a cold day?\nA. fork\nB. map\nC. lamp\nD. scarf\nE. drum",
                "D",
            ),
        ),
    ),
    grader="choice",
    max_tokens=64,
    rows=rows,
)
