"""A policy for free text on the real default bundle: kept, stopped early, or escalated."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from benchmarks.decision.early_stop import RECORDS
from benchmarks.decision.questions import questions
from cascade import home, testing
from cascade.certify import certify, plan_grid
from cascade.decision_record import DecisionRecord, replay_decision
from cascade.early_stop import (
    TokenLists,
    certify_early_stop,
    fit_early_stop,
    mask,
    plan_threshold,
)
from cascade.estimators import fit_estimator
from cascade.features import of_records
from cascade.policy import Policy, PolicyStore
from cascade.records import input_sha256, load, split
from cascade.signing import SigningKey, TrustStore
from cascade.task import free
from edge import Bundle
from edge.async_device import DEFAULT_BUNDLE

pytestmark = [pytest.mark.models, pytest.mark.processes]

Run = Callable[..., "subprocess.CompletedProcess[str]"]

_PARTS = {"develop": 0.2, "stop": 0.45, "certify": 0.25, "test": 0.1}
_SEED = "9"  # one of the splits on which a cutoff can be certified
_TARGET = {"alpha": 0.3, "delta": 0.1}


@dataclass(frozen=True)
class Talk:
    """The policy, and what the records say of three questions that it was not fitted to."""

    policy: Policy
    kept: str
    unsure: str
    stopped: str
    whole: dict[str, int]  # tokens of each one's whole answer
    confidence: dict[str, float]


@pytest.fixture(scope="module")
def talk(machine: Path) -> Talk:
    records = load(RECORDS)
    parts = split(records, _PARTS, seed=_SEED)
    signals = {name: TokenLists.of(part, "device") for name, part in parts.items()}
    features = {name: of_records(part, "device") for name, part in parts.items()}
    names = features["develop"].complete().names
    right, rows = parts["develop"].correct("device"), len(parts["certify"])
    model = fit_estimator(features["develop"].select(names), right)
    sure = {name: model.of_features(each.select(names)) for name, each in features.items()}
    planned = plan_threshold(sure["develop"], right, rows=rows, **_TARGET)
    assert planned is not None
    stop = certify_early_stop(
        fit_early_stop(signals["develop"], sure["develop"], model, threshold=planned),
        signals["stop"],
        sure["stop"],
    )
    grid = plan_grid(sure["develop"], right, rows=rows, **_TARGET)
    certificate = certify(
        mask(sure["certify"], stop.stops_at(signals["certify"], 48) > 0),
        parts["certify"].correct("device"),
        grid=grid[grid >= planned],
        **_TARGET,
    )
    trust = TrustStore(home.trust_dir())
    # The records' bundle had the same weights and wrote its tokenizer otherwise.
    bundle = Bundle.open(home.bundles_dir() / DEFAULT_BUNDLE, trust)
    policy = Policy(
        free("talk"),
        bundle.manifest.base_digest,
        "",
        model,
        certificate.threshold,
        certificate,
        early_stop=stop,
    )
    key = SigningKey.generate()
    trust.pin("tests", key.public)
    PolicyStore(home.policies_dir(), trust).install(policy, key)

    prompts = {input_sha256(p): p for p in _prompts()}
    asked = [prompts[digest] for digest in parts["test"].inputs]
    stops, confidence = stop.stops_at(signals["test"], 48), sure["test"]
    certain = np.where(stops == 0, confidence, -1.0)
    doubtful = np.where((stops == 0) & (confidence < certificate.threshold), confidence, 2.0)
    early = np.where(stops > 0, stops / signals["test"].tokens, 2.0)
    places = [int(np.argmax(certain)), int(np.argmin(doubtful)), int(np.argmin(early))]
    kept, unsure, stopped = (asked[place] for place in places)
    return Talk(
        policy,
        kept,
        unsure,
        stopped,
        {asked[place]: int(signals["test"].tokens[place]) for place in places},
        {asked[place]: float(confidence[place]) for place in places},
    )


def _prompts() -> Iterator[str]:
    return (row["prompt"] for row in questions(1600))


def test_a_free_answer_is_kept_or_escalates_and_a_hopeless_one_is_stopped(
    cascade: Run, talk: Talk, tmp_path: Path
) -> None:
    log, profile = tmp_path / "decisions.jsonl", tmp_path / "profile.json"

    def ask(prompt: str, *words: str) -> dict[str, object]:
        common = ("--task", "talk", "--max-tokens", "48", "--json", "--decisions", str(log))
        done = cascade("ask", prompt, *common, *words)
        assert done.returncode == 0, done.stderr
        read: dict[str, object] = json.loads(done.stdout)
        return read

    with testing.cluster({"tier1": testing.Script("by the cluster")}) as cluster:
        cluster.profile.save(profile)
        there = ("--profile", str(profile))
        kept = ask(talk.kept, *there)
        assert kept["reasons"] == ["confident"]
        assert (kept["source"], kept["verified"]) == ("device", True)
        assert kept["confidence"] == pytest.approx(talk.confidence[talk.kept], abs=0.05)
        unsure = ask(talk.unsure, *there)
        assert (unsure["source"], unsure["text"]) == ("tier1", "by the cluster")
        assert unsure["reasons"][0] == "unsure"
        assert unsure["local_tokens"] > 0
        stopped = ask(talk.stopped, *there)
        assert (stopped["source"], stopped["reasons"][0]) == ("tier1", "stopped_early")
        assert stopped["local_tokens"] < talk.whole[talk.stopped]
        assert (stopped["raw_score"], stopped["device_confidence"]) == (None, None)
        told = cascade("ask", talk.stopped, "--task", "talk", "--max-tokens", "48", *there)
        assert "stopped_early (" in told.stderr
        assert f"{stopped['local_tokens']} tokens decoded · about" in told.stderr
    # The cluster is gone: what was stopped is written after all, and not vouched for.
    after_all = ask(talk.stopped, *there)
    assert (after_all["source"], after_all["verified"]) == ("device", False)
    assert after_all["reasons"] == ["stopped_early", "remote_failed"]
    assert after_all["tokens"] > stopped["local_tokens"]
    assert after_all["local_tokens"] == after_all["tokens"] + stopped["local_tokens"]
    alone = ask(talk.stopped)
    assert (alone["source"], alone["verified"]) == ("device", False)
    assert alone["local_tokens"] == alone["tokens"] > stopped["local_tokens"]
    assert alone["raw_score"] is not None

    decisions = [DecisionRecord.from_bytes(line) for line in log.read_bytes().splitlines()]
    assert len(decisions) == 5
    for record in decisions:
        assert replay_decision(record, talk.policy) == record.decision
