"""Inputs changed so little that a person would answer the same: how robust is a tier?

Pure functions of a text and a seed, the same on every machine. Paraphrases cannot be made by rule:
they come from a column of the data set.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Final

from cascade.errors import InvalidInput

TYPO_RATE: Final = 0.15
"""Share of the words of at least ``_SHORTEST`` letters that get a typo; at least one does."""

_SHORTEST: Final = 4
_WORD = re.compile(rf"[^\W\d_]{{{_SHORTEST},}}")


def typos(text: str, seed: str) -> str:
    """Typing errors: in some words two neighbours swapped, a letter missing, or one doubled.

    First and last letters stay, and short words, digits and punctuation. A text without a word of
    four letters stays as it is.
    """
    draw = random.Random(f"{seed}\0{text}")  # seeded by the text: by sha512, alike everywhere
    words = list(_WORD.finditer(text))
    if not words:
        return text
    chosen = [word for word in words if draw.random() < TYPO_RATE] or [draw.choice(words)]
    parts, end = [], 0
    for word in chosen:
        parts += [text[end : word.start()], _typo(word[0], draw)]
        end = word.end()
    return "".join([*parts, text[end:]])


def uppercase(text: str, seed: str) -> str:
    """All in capitals."""
    return text.upper()


def no_punctuation(text: str, seed: str) -> str:
    """Without what is neither letter, digit nor white space, unless nothing else is there."""
    bare = " ".join(re.sub(r"[^\w\s]|_", " ", text).split())
    return bare or text


PERTURBATIONS: Final[dict[str, Callable[[str, str], str]]] = {
    "typos": typos,
    "uppercase": uppercase,
    "no_punctuation": no_punctuation,
}


def perturbation(name: str) -> Callable[[str, str], str]:
    """The perturbation of this name.

    Raises:
        InvalidInput: there is none; those that there are, are named.
    """
    if name not in PERTURBATIONS:
        raise InvalidInput(
            "variants",
            f"{name!r} is not known; known are {', '.join(PERTURBATIONS)} and column:NAME",
        )
    return PERTURBATIONS[name]


def _typo(word: str, draw: random.Random) -> str:
    place = draw.randrange(1, len(word) - 2)  # an inner letter with an inner neighbour
    before, one, two, after = word[:place], word[place], word[place + 1], word[place + 2 :]
    kinds = [before + two + after, before + one + one + two + after]
    if one != two:
        kinds.append(before + two + one + after)
    return draw.choice(kinds)
