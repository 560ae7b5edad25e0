"""Certificates survive their file, and are read strictly."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from cascade.certificate import Certificate, GroupCertificate, Promise, Refusal
from cascade.certify import certify, certify_targets, cost_usd, selective_risk
from cascade.errors import InvalidInput
from cascade.signing import SigningKey, TrustStore

CERTIFICATE = certify([0.9] * 100, [1] * 90 + [0] * 10, alpha=0.25, delta=0.1, grid=[0.5])
TWO = certify_targets(
    [0.9] * 100 + [0.1] * 100,
    [
        selective_risk([1] * 200, alpha=0.25),
        cost_usd([0.01] * 200, alpha=0.015, most=0.02),
    ],
    delta=0.05,
    grid=[0.5],
)
GROUPS = GroupCertificate(
    0.1,
    {"en": replace(CERTIFICATE, delta=0.05), "de": TWO},
    {"fr": Refusal("12 rows are too few", 40), "nl": Refusal("no use", None)},
)


@pytest.mark.parametrize("certificate", [CERTIFICATE, TWO])
def test_json_gives_back_an_equal_certificate(certificate: Certificate) -> None:
    assert Certificate.from_json(json.loads(json.dumps(certificate.to_json()))) == certificate


def test_json_gives_back_equal_groups() -> None:
    assert GroupCertificate.from_json(json.loads(json.dumps(GROUPS.to_json()))) == GROUPS


def test_a_signed_group_certificate_is_read_where_its_publisher_is_pinned(tmp_path) -> None:
    key, trust = SigningKey.generate(), TrustStore(tmp_path)
    trust.pin("me", key.public)
    data = json.dumps(GROUPS.to_json()).encode()
    trust.verify(data, key.sign(data), what="groups")
    assert GroupCertificate.from_json(json.loads(data)) == GROUPS


def test_a_group_without_a_certificate_escalates() -> None:
    assert GROUPS.threshold("en") == 0.5
    assert GROUPS.threshold("fr") is None
    assert GROUPS.threshold("never seen") is None


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"surprise": 1}, "certificate.surprise"),
        ({"delta": None}, "certificate.delta"),
        ({"n": 10.0}, "certificate.n"),
        ({"n_accepted": 101}, "certificate.n_accepted"),
        ({"n_accepted": 99, "coverage": 0.99}, r"certificate.promises\[0\].rows"),
        ({"coverage": 0.5}, "certificate.coverage"),
        ({"delta": 1e-9}, r"certificate.promises\[0\].p_value"),
        ({"family": "hope"}, "certificate.family"),
        ({"family": "holm"}, "certificate.starts"),
        ({"starts": []}, "certificate.starts"),
        ({"starts": [1]}, "certificate.starts"),
        ({"starts": [0, 0]}, "certificate.starts"),
        ({"data_digest": "xyz"}, "certificate.data_digest"),
        ({"promises": []}, "certificate.promises"),
        ({"promises": [CERTIFICATE.promises[0].to_json()] * 2}, "two of one kind"),
    ],
)
def test_json_that_is_not_exactly_a_certificate_is_refused(
    change: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidInput, match=field):
        Certificate.from_json(CERTIFICATE.to_json() | change)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"surprise": 1}, "promise.surprise"),
        ({"kind": "joy"}, "promise.kind"),
        ({"method": "hope"}, "promise.method"),
        ({"alpha": 1.5}, "promise.alpha"),
        ({"high": 0.0}, "promise.high"),
        ({"observed": -0.1}, "promise.observed"),
        ({"rows": 0}, "promise.rows"),
        ({"upper": 1.01}, "promise.upper"),
    ],
)
def test_json_that_is_not_exactly_a_promise_is_refused(
    change: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidInput, match=field):
        Promise.from_json(CERTIFICATE.promises[0].to_json() | change)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"surprise": 1}, "group_certificate.surprise"),
        ({"delta": 0.09}, "below the sum"),
        ({"certificates": []}, "group_certificate.certificates"),
        ({"certificates": {"en": {}}}, "group_certificate.certificates.en"),
        ({"refused": {"en": {"reason": "", "labels_needed": None}}}, "has a certificate too"),
        ({"refused": {"fr": {"reason": ""}}}, "refused.fr.labels_needed: is missing"),
        ({"refused": {"fr": {"reason": "", "labels_needed": 0}}}, "refused.fr.labels_needed"),
    ],
)
def test_json_that_is_not_exactly_a_group_certificate_is_refused(
    change: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidInput, match=field):
        GroupCertificate.from_json(GROUPS.to_json() | change)


def test_a_missing_field_is_named() -> None:
    data = CERTIFICATE.to_json()
    del data["delta"]
    with pytest.raises(InvalidInput, match=r"certificate\.delta: is missing"):
        Certificate.from_json(data)
