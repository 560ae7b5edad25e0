"""Policies: read strictly, signed, bound to one model, and used as they say."""

from __future__ import annotations

import json
from dataclasses import replace

import grpc
import pytest

from cascade.errors import InvalidInput, PolicyMismatch, Tampered, UnknownPublisher
from cascade.policy import Policy, PolicyStore
from cascade.score_reference import ScoreReference
from cascade.signing import SigningKey, TrustStore
from cascade.wire.status import status_of
from tests.cascade.scripted import INFO, policy


@pytest.fixture
def key():
    return SigningKey.generate()


@pytest.fixture
def store(tmp_path, key):
    trust = TrustStore(tmp_path / "trust")
    trust.pin("me", key.public)
    return PolicyStore(tmp_path / "policies", trust)


@pytest.mark.parametrize("threshold", [0.8, None])
def test_a_policy_survives_its_file(threshold):
    assert Policy.from_bytes(policy(threshold).to_bytes()) == policy(threshold)


def test_the_scores_of_the_certify_part_are_signed_with_it():
    scores = ScoreReference.of([0.5, 0.7, 0.7, 0.9])
    watched = replace(policy(0.8), scores=scores)
    assert Policy.from_bytes(watched.to_bytes()) == watched
    assert b"scores" not in policy(0.8).to_bytes()
    value = json.loads(watched.to_bytes())
    value["scores"]["rows"] = 0
    with pytest.raises(InvalidInput, match=r"score_reference\.rows"):
        Policy.from_bytes(json.dumps(value).encode())


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"treshold": 0.5}, "treshold"),
        ({"threshold": 1.5}, "threshold"),
        ({"threshold": None}, "certificate"),
        ({"format_version": 1}, "format_version"),
        ({"task": {"task_id": "x"}}, "task"),
    ],
)
def test_an_unusable_field_is_named(change, field):
    value = json.loads(policy(0.8).to_bytes()) | change
    with pytest.raises(InvalidInput, match=field):
        Policy.from_bytes(json.dumps(value).encode())


def test_an_installed_policy_is_found_for_its_model_only(store, key):
    store.install(policy(0.8), key)
    assert store.find("mood", INFO) == policy(0.8)
    assert store.find("mood", replace(INFO, base_digest="00" * 32)) is None
    assert store.find("mood", replace(INFO, adapter_digest="00" * 32)) is None
    assert store.find("weather", INFO) is None


def test_a_policy_for_another_bundle_or_adapter_is_a_failed_precondition():
    refused = status_of(PolicyMismatch("is for another adapter"))
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION


def test_an_altered_policy_is_refused(store, key):
    path = store.install(policy(0.8), key)
    path.write_bytes(path.read_bytes().replace(b"0.8", b"0.1"))
    with pytest.raises(Tampered, match="mood"):
        store.find("mood", INFO)


def test_a_policy_by_a_stranger_is_refused(store):
    store.install(policy(0.8), SigningKey.generate())
    with pytest.raises(UnknownPublisher, match="mood"):
        store.find("mood", INFO)


def test_a_task_id_cannot_leave_the_folder(store):
    with pytest.raises(InvalidInput, match="task"):
        store.find("../../etc/passwd", INFO)
