"""What the demo fixes before it looks at any result: question, risk level, sizes.

Changing a number here after looking at the test part would void what the demo prints about it.
"""

from __future__ import annotations

from cascade.cli.demo.parts import Sizes
from cascade.task import Task

TASK = Task(
    task_id="sentiment",
    options=("positive", "negative"),
    # A completion with two examples: of five wordings the best on the develop part (84 % right of
    # 200; without examples 77 %). The examples cost nothing: the prompt cache keeps them.
    device_prompt=(
        "Text: I love it, works great!\nSentiment: positive\n\n"
        "Text: This was a terrible waste of time.\nSentiment: negative\n\n"
        "Text: {input}\nSentiment:"
    ),
    option_prefix=" ",
    cloud_prompt=(
        "Is the sentiment of this text positive or negative?\n\n"
        "Text: {input}\n\nAnswer with one word: positive or negative."
    ),
)

ALPHA = 0.15
"""Largest tolerated share of wrong answers among those that the device keeps. Below the device's
error on the develop part, .16: a laxer target would be met by keeping everything."""

DELTA = 0.1
"""Tolerated probability that the certify part misleads and the true share is above ALPHA."""

SIZES = Sizes(develop=400, certify=1200, test=160)

DEVICE_MODEL = "smollm2-135m-instruct-q4_1"
SENTENCES = "vader-sentences"
