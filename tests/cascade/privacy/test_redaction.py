"""What is replaced comes back exactly, in one piece or in many."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.errors import InvalidInput
from cascade.privacy import PiiSpan, Redaction, StreamRestorer
from cascade.privacy.detector import merged

KEY = b"k" * 32
TEXT = st.text(alphabet="ab<>_ABC 1é", max_size=40)


@st.composite
def findings(draw) -> tuple[str, list[PiiSpan]]:
    text = draw(TEXT)
    places = st.tuples(st.integers(0, max(len(text) - 1, 0)), st.integers(1, 8))
    found = [
        PiiSpan(start, min(start + length, len(text)), kind, score)
        for (start, length), kind, score in draw(
            st.lists(st.tuples(places, st.sampled_from("AB"), st.sampled_from([0.5, 0.9])))
        )
        if text
    ]
    return text, found


def cut(text: str, sizes: list[int]) -> list[str]:
    pieces, at = [], 0
    for size in sizes:
        pieces.append(text[at : at + size])
        at += size
    return [*pieces, text[at:]]


@given(made=findings(), sizes=st.lists(st.integers(0, 5)), tail=TEXT)
def test_what_is_redacted_is_restored_however_it_is_cut(made, sizes, tail):
    text, found = made
    spans = merged(text, found, 0.0)
    redaction = Redaction(KEY, [text, tail])
    sent = redaction.redact(text, spans)
    assert redaction.restore(sent) == text
    # Anything else that a model may say around it comes through as it is.
    restorer = StreamRestorer(redaction.values)
    heard = "".join(restorer.feed(piece) for piece in cut(sent + tail, sizes)) + restorer.end()
    assert heard == text + tail


@given(made=findings())
def test_every_character_that_was_found_is_within_a_span_and_none_overlap(made):
    text, found = made
    spans = merged(text, found, 0.9)
    kept = {i for each in found if each.score >= 0.9 for i in range(each.start, each.end)}
    covered = [i for each in spans for i in range(each.start, each.end)]
    assert len(covered) == len(set(covered))
    assert kept == set(covered)


def test_overlapping_findings_become_one_of_the_surest_kind():
    found = [PiiSpan(0, 5, "A", 0.5), PiiSpan(3, 8, "B", 0.9), PiiSpan(7, 9, "C", 0.6)]
    assert merged("0123456789", found, 0.4) == (PiiSpan(0, 9, "B", 0.9),)


def test_a_finding_outside_of_the_text_is_refused():
    for span in (PiiSpan(0, 9, "A", 1.0), PiiSpan(-1, 1, "A", 1.0), PiiSpan(2, 2, "A", 1.0)):
        with pytest.raises(InvalidInput, match="not within the text"):
            merged("abc", [span], 0.0)


def test_equal_values_share_a_placeholder_and_different_ones_do_not():
    redaction = Redaction(KEY)
    sent = redaction.redact("a b a", [PiiSpan(i, i + 1, "NAME", 1.0) for i in (0, 2, 4)])
    first, second, third = sent.split()
    assert first == third != second
    assert first.startswith("<NAME_")
    assert Redaction(b"other").redact("a", [PiiSpan(0, 1, "NAME", 1.0)]) != first


def test_a_text_that_has_a_placeholder_already_gets_another():
    span = [PiiSpan(0, 1, "NAME", 1.0)]
    name = Redaction(KEY).redact("a", span)
    text = f"a {name}"
    redaction = Redaction(KEY, [text])
    sent = redaction.redact(text, span)
    assert sent.split()[0] != name
    assert redaction.restore(sent) == text


def test_only_what_may_become_a_placeholder_is_held_back():
    restorer = StreamRestorer({"<NAME_ab12>": "Ann"})
    assert restorer.feed("1 < 2 and <NAM") == "1 < 2 and "
    assert restorer.feed("E_ab12") == ""
    assert restorer.feed(">, <NAME_") == "Ann, "
    assert restorer.feed("x") == "<NAME_x"
    assert restorer.feed("<") == ""
    assert restorer.end() == "<"
    assert StreamRestorer({}).feed("<a") == "<a"


def test_a_kind_that_is_no_name_is_refused():
    with pytest.raises(InvalidInput, match="kind"):
        Redaction(KEY).redact("a", [PiiSpan(0, 1, "e-mail>", 1.0)])
