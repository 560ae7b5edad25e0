"""Checks veto what they are there to veto, and what breaks them."""

from __future__ import annotations

import sys

import pytest

from cascade.checks import Checks, matches, satisfies
from cascade.errors import CascadeError, InvalidInput

AGE = '{"type": "object", "properties": {"age": {"type": "integer", "maximum": 120}},' \
      ' "required": ["age"]}'  # fmt: skip


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (matches(r"\d{3}-\w+"), "123-abc", "x123-abc"),
        (matches(r"[0-9]+"), "12", "12\n"),
        (matches(r"\d+"), "12", "١٢"),
        (satisfies(AGE), '{"age": 3}', '{"age": 300}'),
        (satisfies(AGE), '{"age": 3}', "not JSON"),
        (satisfies(AGE), '{"age": 3}', '{"age": 3} and more'),
        (lambda text: "sorry" not in text, "yes", "sorry, no"),
        (lambda text: 1 / len(text) > 0, "yes", ""),
    ],
)
def test_a_check_vetoes_what_it_is_there_for(check, good, bad):
    checks = Checks({"form": check})
    assert checks.vetoes(good, "", ("form",)) == ()
    assert checks.vetoes(bad, "", ("form",)) == ("veto:form",)


def test_a_tasks_checks_come_first_and_each_runs_once():
    asked = []
    checks = Checks(
        {name: lambda text, name=name: bool(asked.append(name)) for name in "abc"},
        tasks={"mood": ("b", "a")},
    )
    assert checks.vetoes("x", "mood", ("a", "c")) == ("veto:b", "veto:a", "veto:c")
    assert asked == ["b", "a", "c"]
    assert checks.vetoes("x", "other") == ()


def test_names_are_checked():
    with pytest.raises(InvalidInput, match="no check is called 'nope'; there are: ok"):
        Checks({"ok": bool}).vetoes("x", "", ("nope",))
    with pytest.raises(InvalidInput, match=r"checks\.tasks\.mood"):
        Checks({"ok": bool}, tasks={"mood": ("nope",)})
    with pytest.raises(InvalidInput, match="characters"):
        Checks({"not a name": bool})


def test_unusable_forms_are_refused_when_the_check_is_made():
    for bad in ("{", "[]", '{"type": 5}'):
        with pytest.raises(InvalidInput, match="json_schema"):
            satisfies(bad)
    with pytest.raises(InvalidInput, match="regex"):
        matches("[")


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(CascadeError, match=r"edge-cloud-cascade\[checks\]"):
        satisfies(AGE)
