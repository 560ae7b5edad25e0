"""Short questions that a small model answers freely: some within its reach, some beyond.

Written here, by templates; as many as are asked for, no two the same. A quarter each: what a
sentence says, capitals, sums and orders of words.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from cascade.files import write_whole

Rng = np.random.Generator


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_NAMES = _words(
    "Anna Ben Clara David Emma Felix Grace Henry Iris Jonas Kate Leo Mia Noah Olga Paul"
)
_PLACES = _words("Paris London Madrid Rome Berlin Vienna Dublin Lisbon Athens Oslo Prague Warsaw")
_JOBS = _words("baker teacher nurse farmer pilot painter lawyer cook driver singer doctor tailor")
_PETS = _words("dog cat rabbit horse parrot goldfish turtle hamster")
_COLOURS = _words("red blue green yellow black white purple orange")
_WORDS = _words(
    """
    apple bread chair dream eagle flower garden house island jacket kettle lemon mirror night
    orange pencil queen river silver table umbrella village window yellow zebra
    """
)
_CAPITALS = [
    pair.split(":")
    for pair in _words(
        """
        France:Paris Spain:Madrid Italy:Rome Germany:Berlin Austria:Vienna Ireland:Dublin
        Portugal:Lisbon Greece:Athens Norway:Oslo Sweden:Stockholm Finland:Helsinki
        Denmark:Copenhagen Poland:Warsaw Hungary:Budapest Romania:Bucharest Bulgaria:Sofia
        Croatia:Zagreb Serbia:Belgrade Ukraine:Kyiv Russia:Moscow Turkey:Ankara Egypt:Cairo
        Kenya:Nairobi Ghana:Accra Nigeria:Abuja Ethiopia:Addis Morocco:Rabat Tunisia:Tunis
        Senegal:Dakar Mali:Bamako Chad:N'Djamena Uganda:Kampala Rwanda:Kigali Zambia:Lusaka
        Zimbabwe:Harare Angola:Luanda Japan:Tokyo China:Beijing India:Delhi Nepal:Kathmandu
        Thailand:Bangkok Vietnam:Hanoi Laos:Vientiane Cambodia:Phnom Mongolia:Ulaanbaatar
        Iran:Tehran Iraq:Baghdad Syria:Damascus Jordan:Amman Lebanon:Beirut Canada:Ottawa
        Mexico:Mexico Cuba:Havana Peru:Lima Chile:Santiago Argentina:Buenos Brazil:Brasília
        Uruguay:Montevideo Paraguay:Asunción Bolivia:Sucre Ecuador:Quito Colombia:Bogotá
        Venezuela:Caracas Australia:Canberra Fiji:Suva
        """
    )
]
_ASKS = (
    "What is the capital of {}?",
    "Which city is the capital of {}?",
    "Name the capital city of {}.",
    "I am visiting {}. What is its capital?",
)


def _read(rng: Rng) -> tuple[str, str]:
    name, place, job, pet, colour = (
        str(rng.choice(words)) for words in (_NAMES, _PLACES, _JOBS, _PETS, _COLOURS)
    )
    about = f"{name} lives in {place}, works as a {job} and has a {colour} {pet}."
    asked, answer = (
        (f"In which city does {name} live?", place),
        (f"What is the job of {name}?", job),
        (f"Which animal does {name} have?", pet),
        (f"What colour is the {pet}?", colour),
    )[rng.integers(4)]
    return f"{about} {asked}", answer


def _capital(rng: Rng) -> tuple[str, str]:
    country, capital = _CAPITALS[rng.integers(len(_CAPITALS))]
    return str(rng.choice(_ASKS)).format(country), capital


def _sum(rng: Rng) -> tuple[str, str]:
    one, two = (int(number) for number in rng.integers(2, 60, 2))
    kind = rng.integers(3)
    if kind == 0:
        return f"What is {one} + {two}?", str(one + two)
    if kind == 1:
        return f"What is {one + two} - {two}?", str(one)
    return f"What is {one} times {two % 12 + 2}?", str(one * (two % 12 + 2))


def _order(rng: Rng) -> tuple[str, str]:
    words = [str(word) for word in rng.choice(_WORDS, 4, replace=False)]
    place = int(rng.integers(4))
    which = ("first", "second", "third", "last")[place]
    if rng.integers(2):
        return f"What is the {which} word of this list: {', '.join(words)}?", words[place]
    word = words[0]
    return f"Spell the word {word} backwards.", word[::-1]


_KINDS: dict[str, Callable[[Rng], tuple[str, str]]] = {
    "reading": _read,
    "capitals": _capital,
    "sums": _sum,
    "order": _order,
}


def questions(count: int, seed: int = 0) -> Iterator[dict[str, str]]:
    """Rows for ``cascade record``: prompt, reference (a regular expression) and kind."""
    rng, seen = np.random.default_rng(seed), set[str]()
    kinds = list(_KINDS)
    while len(seen) < count:
        kind = kinds[len(seen) % len(kinds)]
        # Few capitals there are: where they are used up, another kind takes their turn.
        for _ in range(50):
            prompt, answer = _KINDS[kind](rng)
            if prompt not in seen:
                break
        else:
            kind = "reading"
            prompt, answer = _read(rng)
            if prompt in seen:
                continue
        seen.add(prompt)
        yield {"prompt": prompt, "reference": rf"(?i)\b{answer}\b", "kind": kind}


def write_questions(path: Path, count: int, seed: int = 0) -> None:
    """The rows as JSON lines."""
    lines = (json.dumps(row, ensure_ascii=False) for row in questions(count, seed))
    write_whole(path, ("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    write_questions(Path(sys.argv[1]), 1000)
