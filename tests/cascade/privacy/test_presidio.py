"""Presidio's recognisers behind the seam: what they find, and that they ask nobody for it."""

from __future__ import annotations

import socket
import sys

import pytest

from benchmarks.decision.pii_sample import MARKED, PLAIN, marked
from cascade.errors import CascadeError, InvalidInput
from cascade.privacy import Privacy
from cascade.privacy.presidio import KINDS, PresidioPatterns
from cascade.request import Message, Request


@pytest.fixture(scope="module")
def detector() -> PresidioPatterns:
    return PresidioPatterns()


@pytest.mark.parametrize("kind", KINDS)
def test_most_of_the_sample_is_found_as_what_it_is(detector, kind):
    texts = MARKED.get(kind, ())
    hits = 0
    for text, start, end in map(marked, texts):
        found = [each for each in detector.find(text) if each.score >= 0.4]
        hits += any(each.start <= start and end <= each.end for each in found)
    assert hits >= 0.75 * len(texts)


def test_little_of_what_only_looks_so_is_found(detector):
    assert sum(bool(detector.find(text)) for text in PLAIN) <= 2


def test_it_never_asks_the_network(monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("a detector must not open a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    (found,) = PresidioPatterns(["EMAIL_ADDRESS"]).find("mail ann@example.co.uk")
    assert (found.start, found.end, found.kind) == (5, 22, "EMAIL_ADDRESS")


def test_a_request_leaves_without_what_was_found(detector):
    request = Request((Message("user", "I am ann@example.com, IBAN DE89370400440532013000."),))
    inspection = Privacy(detector, never_leave=frozenset({"CREDIT_CARD"})).inspect(request)
    assert inspection.forbidden == ()
    assert "ann@" not in inspection.request.text
    assert "DE89" not in inspection.request.text
    assert sorted(inspection.values.values()) == ["DE89370400440532013000", "ann@example.com"]


def test_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(InvalidInput, match="'PERSON' is not one of EMAIL_ADDRESS"):
        PresidioPatterns(["PERSON"])


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    with pytest.raises(CascadeError, match=r"edge-cloud-cascade\[pii\]"):
        PresidioPatterns()
