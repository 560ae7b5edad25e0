"""The demo from set-up to report, with real models and a real cluster on a few test sentences.

The device's answers to the develop and certify parts, which take minutes, are put where an earlier
run would have kept them.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

import cloud
from cascade import home
from cascade.cli.demo import device_rows, run
from cascade.cli.demo.data import Sentence, load_sentences
from cascade.cli.demo.parts import Sizes, split
from cascade.cli.demo.report import terminal_report, write_json, write_report
from cascade.cli.demo.setting import DELTA, TASK
from cascade.files import write_whole
from cascade.policy import PolicyStore, Reason
from cascade.signing import TrustStore
from edge import Bundle, OnnxModel

pytestmark = [pytest.mark.models, pytest.mark.processes]

SIZES = Sizes(develop=400, certify=1200, test=8)
ARM_FIGURES = {
    "accuracy",
    "local_share",
    "p50_ms",
    "p95_ms",
    "bytes_up",
    "cloud_tokens",
    "cost_usd",
    "n",
}


@pytest.fixture
def small(machine, port, monkeypatch):
    """The demo on eight test sentences, on a port of its own."""
    prepare = run.prepare_config
    monkeypatch.setattr(run, "SIZES", SIZES)
    monkeypatch.setattr(run, "prepare_config", lambda path: prepare(path, port))


def keep_rows(seed: int, skill: float) -> None:
    """Rows as an earlier run would have kept them, of a device that is right as often as ``skill``
    and knows it."""
    bundle = Bundle.open(
        home.bundles_dir() / "smollm2-135m-instruct-int4", TrustStore(home.trust_dir())
    )
    corpus = load_sentences(home.models_dir() / "vader-sentences.tar.gz")
    parts = split(corpus.sentences, SIZES)
    rng = np.random.default_rng(seed)
    for name, part in (("develop", parts.develop), ("certify", parts.certify)):
        text = "".join(
            json.dumps(asdict(row)) + "\n" for row in (random_row(s, rng, skill) for s in part)
        )
        write_whole(device_rows._kept(name, part, TASK, bundle), text.encode())


def random_row(sentence: Sentence, rng: np.random.Generator, skill: float) -> device_rows.DeviceRow:
    score = float(rng.uniform(0.5, 1.0))
    right = bool(rng.uniform() < skill + 0.5 * (score - 0.75))
    return device_rows.DeviceRow(sentence.id, score, right)


def test_the_demo_reports_three_arms_and_a_certificate(small, tmp_path):
    keep_rows(seed=1, skill=0.85)
    result = run.run_demo()
    assert not cloud.status().running
    write_json(result, tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    for arm in ("device", "cascade", "cloud"):
        assert set(figures[arm]) >= ARM_FIGURES
        assert figures[arm]["n"] == SIZES.test
    assert figures["device"]["local_share"] == 1
    assert figures["cloud"]["local_share"] == 0
    assert figures["device"]["bytes_up"] == 0
    assert figures["cloud"]["cloud_tokens"] > 10
    certificate = figures["certificate"]
    assert set(certificate) >= {"alpha", "delta", "n", "coverage", "test_risk", "test_risk_ci"}
    assert certificate["n"] == SIZES.certify
    assert certificate["delta"] == DELTA
    assert 0 < certificate["coverage"] < 1
    files = write_report(result, tmp_path / "report")
    assert files.picture.read_bytes().startswith(b"\x89PNG")
    assert "http" not in _resources(files.page)
    assert "accuracy" in terminal_report(result)


def test_the_demo_leaves_a_policy_that_answers(small):
    trust = TrustStore(home.trust_dir())
    bundle = Bundle.open(home.bundles_dir() / "smollm2-135m-instruct-int4", trust)
    model = OnnxModel(bundle)
    policy = PolicyStore(home.policies_dir(), trust).find(TASK.task_id, model.info)
    assert policy is not None
    assert policy.covers(("negative", "positive"), model.info)
    assert policy.certificate is not None
    assert policy.certificate.threshold == policy.threshold


def test_an_infeasible_target_escalates_everything_and_ends_well(small):
    keep_rows(seed=2, skill=0.6)
    result = run.run_demo()
    assert not cloud.status().running
    assert not result.certificate.feasible
    assert result.certificate.coverage == 0
    assert result.cascade.local_share == 0
    assert all(Reason.TARGET_INFEASIBLE in sample.reasons for sample in result.samples)
    assert "escalat" in terminal_report(result)


def _resources(page: Path) -> str:
    """Everything that a browser would fetch for the page."""
    text = page.read_text()
    return " ".join(part.split('"')[1] for part in text.split("src=")[1:] if '"' in part)
