"""Commands to a home, of fifteen kinds: sentences drawn from Home Assistant's templates.

A document is a template: sentences of one differ in rooms, numbers and small words alone. Of the 42
intents those with at least ten templates are used: fewer could not be split by template into parts
that each have some. Their names are ours, for a model reads words and not ``HassTurnOff``.

hassil reads the templates; it can list all sentences of one, of which there may be millions, but
not draw some, which is done here. Rooms and devices are a household's own and so not in the file.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
from hassil.expression import (
    Alternative,
    Expression,
    ListReference,
    Permutation,
    RuleReference,
    Sequence,
    TextChunk,
)
from hassil.intents import Intents, RangeSlotList, TextSlotList
from hassil.util import normalize_whitespace

from benchmarks.decision.datasets.dataset import Dataset, Row, fairly_ordered
from benchmarks.decision.datasets.sources import fetched
from cascade.records import text_key
from cascade.task import Example, Task

_SEED: Final = 20_262
_DRAWS: Final = 12  # of each template; many give the same sentence again

# Intent: our name for it, and an example of our own that teaches it.
INTENTS: Final = {
    "HassTurnOn": ("turn on or open", "please switch the heater on"),
    "HassTurnOff": ("turn off or close", "the hall lamp can go off now"),
    "HassLightSet": ("change a light", "dim the desk lamp to a third"),
    "HassGetState": ("ask about the home", "did I leave the back door open?"),
    "HassFanSetSpeed": ("set a fan", "let the ceiling fan run at half speed"),
    "HassSetVolume": ("set the volume", "I want the radio at volume 20"),
    "HassSetVolumeRelative": ("louder or quieter", "a little louder please"),
    "HassMediaPrevious": ("previous track", "play the one before this again"),
    "HassStartTimer": ("start a timer", "wake me in twenty minutes"),
    "HassIncreaseTimer": ("lengthen a timer", "give the egg timer two more minutes"),
    "HassDecreaseTimer": ("shorten a timer", "make the egg timer two minutes shorter"),
    "HassCancelTimer": ("cancel a timer", "I do not need the egg timer any more"),
    "HassPauseTimer": ("pause a timer", "hold the egg timer for now"),
    "HassUnpauseTimer": ("resume a timer", "let the egg timer run again"),
    "HassTimerStatus": ("check a timer", "when will the egg timer ring?"),
}

_THINGS: Final = {
    "light": ("reading lamp", "chandelier", "porch light", "night light"),
    "fan": ("ceiling fan", "tower fan", "extractor"),
    "switch": ("coffee maker", "heater", "tree lights"),
    "cover": ("left blind", "patio awning", "front shutter"),
    "valve": ("garden valve", "main water valve"),
    "lock": ("front door", "cellar door", "garden gate"),
    "media_player": ("television", "radio", "record player"),
    "binary_sensor": ("hallway motion", "leak alarm", "fridge door"),
    "person": ("Clara", "Jonas", "Grandma"),
    "scene": ("movie night", "sunrise", "dinner party"),
    "button": ("doorbell", "reset button"),
    "script": ("morning routine", "bedtime"),
    "todo": ("errands", "packing", "birthday"),
    "lawn_mower": ("back garden", "robot"),
}
_ANY_THING: Final = "switch"
_WORDS: Final = {
    "area": ("kitchen", "bedroom", "living room", "office", "garage", "bathroom", "hallway"),
    "floor": ("ground", "first", "second", "top"),
    "timer_name": ("pizza", "laundry", "tea", "homework", "workout"),
    "timer_command": ("close the blinds", "turn off the radio", "lock the front door"),
    "zone": ("school", "work", "the gym"),
    "shopping_list_item": ("oat milk", "two lemons", "washing powder", "rice", "candles"),
    "todo_list_item": ("call the dentist", "socks", "water the plants", "passport", "pay the rent"),
    "message": ("dinner is ready", "we leave in ten minutes", "the parcel is here"),
    "search_query": ("Nina Simone", "the morning news", "Moon River", "some quiet jazz"),
}


def rows() -> list[Row]:
    """Sentences that only one intent gives; intents in turn, and the templates of each in turn."""
    content = json.loads(fetched("home-assistant-intents-en").read_text(encoding="utf-8"))
    drawn = list(sentences(content))
    intents = defaultdict(set)
    for row in drawn:
        intents[text_key(row.prompt)].add(row.reference)
    clear = [row for row in drawn if len(intents[text_key(row.prompt)]) == 1]
    return fairly_ordered(clear, balance="intent")


def sentences(content: Mapping[str, Any]) -> Iterator[Row]:
    """Sentences of every template of our intents, some of them the same.

    Arguments:
        content: of the file, as hassil takes it.
    """
    return _drawn(content, {name: label for name, (label, _) in INTENTS.items()})


def all_sentences(content: Mapping[str, Any]) -> Iterator[Row]:
    """The same of all intents, by their own names; templates with words that we have none for are
    left out."""
    return _drawn(content, {name: name for name in content["intents"]}, leave_out=True)


def _drawn(
    content: Mapping[str, Any], labels: Mapping[str, str], *, leave_out: bool = False
) -> Iterator[Row]:
    used = {name: content["intents"][name] for name in labels}
    intents = Intents.from_dict({**content, "intents": used})
    for name, label in labels.items():
        place = 0
        for data in intents.intents[name].data:
            domains = (data.requires_context or {}).get("domain", [])
            for sentence in data.sentences:
                place += 1
                words = _Words(intents, _things(domains), np.random.default_rng([_SEED, place]))
                for draw in range(_DRAWS):
                    try:
                        text = normalize_whitespace(words.draw(sentence.expression)).strip()
                    except (KeyError, TypeError):
                        if not leave_out:
                            raise
                        break
                    document = f"{name}/{place}"
                    groups = {"intent": label}
                    yield Row(f"{document}/{draw}", document, text, label, groups=groups)


def _things(domains: list[str]) -> tuple[str, ...]:
    named = [thing for domain in domains for thing in _THINGS.get(domain, ())]
    return tuple(named) or _THINGS[_ANY_THING]


class _Words:
    """Draws one sentence at a time from templates."""

    def __init__(self, intents: Intents, things: tuple[str, ...], rng: np.random.Generator) -> None:
        self._intents = intents
        self._words: Mapping[str, tuple[str, ...]] = _WORDS | {"name": things}
        self._rng = rng

    def draw(self, expression: Expression) -> str:
        """A text that the expression stands for; every alternative is as likely."""
        match expression:
            case TextChunk():
                return expression.original_text
            case Alternative():
                return self.draw(expression.items[self._below(len(expression.items))])
            case Permutation():
                order = self._rng.permutation(len(expression.items))
                return "".join(self.draw(expression.items[place]) for place in order)
            case Sequence():
                return "".join(map(self.draw, expression.items))
            case RuleReference():
                return self.draw(self._intents.expansion_rules[expression.rule_name].expression)
            case ListReference():
                return self._value(expression.list_name)
        raise TypeError(f"a template holds a {type(expression).__name__}")

    def _value(self, name: str) -> str:
        if name in self._words:
            return self._words[name][self._below(len(self._words[name]))]
        values = self._intents.slot_lists[name]
        if isinstance(values, RangeSlotList):
            return str(int(self._rng.integers(values.start, values.stop + 1)))
        if isinstance(values, TextSlotList):
            return self.draw(values.values[self._below(len(values.values))].text_in)
        raise TypeError(f"there are no words for the list {name}")

    def _below(self, count: int) -> int:
        return int(self._rng.integers(count))


COMMANDS = Dataset(
    name="commands",
    description="sentences drawn from Home Assistant's English templates, fifteen intents",
    licence="Apache-2.0",
    group="intent",
    wording=Task(
        task_id="commands",
        options=tuple(label for label, _ in INTENTS.values()),
        device_prompt="Command: {input}\nIntent:",
        option_prefix=" ",
        cloud_prompt="Command: {input}\nIntent:",
        examples=tuple(Example(text, label) for label, text in INTENTS.values()),
    ),
    grader="choice",
    max_tokens=64,
    rows=rows,
)
