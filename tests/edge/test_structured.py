"""Whatever the model would rather say, the answer keeps its schema or expression to the letter."""

from __future__ import annotations

import json
import re
import sys

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cascade.errors import CascadeError, InvalidInput
from cascade.request import Message
from cascade.sampling import GREEDY, Sampling
from edge.model import OnnxModel

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


LEAVES = st.one_of(
    st.sampled_from([{"type": kind} for kind in ("boolean", "null", "number")]),
    st.builds(lambda n: {"type": "string", "maxLength": n}, st.integers(0, 8)),
    st.builds(
        lambda low, span: {"type": "integer", "minimum": low, "maximum": low + span},
        st.integers(-1000, 1000),
        st.integers(0, 500),
    ),
    st.sampled_from([{"type": "string", "pattern": p} for p in ("^[a-c]{2,5}$", "^x*y$", "^é|ü$")]),
    st.builds(
        lambda values: {"enum": values},
        st.lists(st.text('ab"\\\n 🙂', max_size=4) | st.integers(-9, 9), min_size=1, max_size=4),
    ),
    st.builds(lambda value: {"const": value}, st.text(max_size=5) | st.booleans()),
)


def _object(properties: dict[str, object], needed: int) -> dict[str, object]:
    names = list(properties)
    return {
        "type": "object",
        "properties": properties,
        "required": names[:needed],
        "additionalProperties": False,
    }


SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(
            _object,
            st.dictionaries(st.text("abc é", max_size=3), inner, max_size=3),
            st.integers(0, 3),
        ),
        st.builds(
            lambda item, low, more: {
                "type": "array",
                "items": item,
                "minItems": low,
                "maxItems": low + more,
            },
            inner,
            st.integers(0, 2),
            st.integers(0, 2),
        ),
        st.builds(lambda some: {"anyOf": some}, st.lists(inner, min_size=1, max_size=3)),
    ),
    max_leaves=6,
)

LITERALS = ["a", "Z", "7", "é", "🙂", " ", "/", "-", '"', "&&", "~~", r"\.", r"\\", r"\x41", r"\n"]
CLASSES = [".", r"\d", r"\w", r"\s", r"\D", r"\W", r"\S", "[a-f]", r"[^\d\s]", r"[\w.-]", "[]x]"]
ATOMS = st.sampled_from(LITERALS) | st.sampled_from(CLASSES)
REGEXES = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=4).map("".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda some: f"({'|'.join(some)})"),
        st.builds(
            lambda one, times: f"(?:{one}){times}",
            inner,
            st.sampled_from(["?", "{0,2}", "{3}", "{1,4}", "??", "{2}?"]),
        ),
    ),
    max_leaves=8,
)
DRAWN = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@DRAWN
@given(schema=SCHEMAS, seed=st.integers(0, 1000))
def test_any_schema_is_kept(babbler, schema, seed):
    answer = babbler.generate(
        "x", max_tokens=900, sampling=Sampling(1.0, seed=seed), json_schema=json.dumps(schema)
    )
    if answer.finish == "stop":
        jsonschema.Draft202012Validator(schema).validate(json.loads(answer.text))
    else:
        assert (answer.finish, answer.tokens) == ("length", 900)


@DRAWN
@given(pattern=REGEXES, anchored=st.booleans(), seed=st.integers(0, 1000))
def test_any_expression_is_kept(babbler, pattern, anchored, seed):
    regex = f"^{pattern}$" if anchored else pattern
    answer = babbler.generate("x", max_tokens=500, sampling=Sampling(1.0, seed=seed), regex=regex)
    assert answer.finish == "stop"
    assert re.fullmatch(regex, answer.text, re.ASCII)


def test_an_answer_that_is_cut_off_says_so(babbler):
    answer = babbler.generate("x", max_tokens=5, json_schema=json.dumps(PERSON))
    assert (answer.finish, answer.tokens) == ("length", 5)
    with pytest.raises(ValueError, match="Unterminated"):
        json.loads(answer.text)
    endless = babbler.generate("x", max_tokens=40, regex="[ab]*c")
    assert endless.finish == ("stop" if endless.text.endswith("c") else "length")


def test_a_complete_answer_needs_no_end_token(babbler):
    answer = babbler.generate("x", max_tokens=5, regex="[0-9]{5}")
    assert (answer.finish, answer.tokens) == ("stop", 5)
    empty = babbler.generate("x", max_tokens=5, regex="()")
    assert (empty.finish, empty.text, empty.tokens) == ("stop", "", 0)


def test_signals_are_those_of_the_model_not_of_the_grammar(babbler):
    """The model would hardly have said this, though the grammar left it no choice."""
    answer = babbler.generate("x", max_tokens=9, regex="xyz")
    assert answer.text == "xyz"
    assert (answer.signals.logprobs < -0.5).all()
    free = babbler.generate("x", max_tokens=1)
    assert free.signals.entropies[0] == pytest.approx(answer.signals.entropies[0], abs=1e-6)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"regex": "a", "json_schema": "{}"}, "regex"),
        ({"regex": "["}, "regex"),
        ({"regex": "a(?=b)"}, "regex"),
        ({"json_schema": "[]"}, "json_schema"),
        ({"json_schema": '{"type": "colour"}'}, "json_schema"),
        ({"regex": "a", "stop": ("b",)}, "stop"),
        ({"regex": "a", "stop_tokens": (3,)}, "stop"),
    ],
)
def test_what_cannot_be_kept_is_refused_and_the_model_stays_usable(babbler, fields, field):
    with pytest.raises(InvalidInput) as refused:
        babbler.generate("x", max_tokens=5, **fields)
    assert refused.value.field == field
    assert babbler.generate("x", max_tokens=5, regex="a{5}").text == "aaaaa"


def test_without_the_extra_the_error_says_how_to_get_it(babbler, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(CascadeError, match=r"pip install 'edge-cloud-cascade\[structured\]'"):
        babbler.generate("x", max_tokens=5, regex="a")
    assert babbler.generate("x", max_tokens=2).tokens == 2


@pytest.mark.models
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(0.8, top_p=0.95, seed=1)])
def test_a_real_model_fills_in_the_form(bundle, sampling):
    model = OnnxModel(bundle)
    question = (Message("user", "Describe Ann, who is 34 years old, as JSON."),)
    answer = model.generate(
        question, max_tokens=60, sampling=sampling, json_schema=json.dumps(PERSON)
    )
    assert answer.finish == "stop"
    jsonschema.validate(json.loads(answer.text), PERSON)
    number = model.generate(question, max_tokens=12, sampling=sampling, regex=r"\d{1,3} years")
    assert re.fullmatch(r"\d{1,3} years", number.text)
