"""A machine whose device and cluster follow one ladder, in processes of their own."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from cascade import home
from cascade.confidence import ConfidenceModel, Platt
from cascade.ladder import Ladder, LadderPolicy
from cascade.ladder.device import DeviceRung
from cascade.policy import PolicyStore
from cascade.records import TierInfo
from cascade.signing import SigningKey, TrustStore
from cascade.task import generic
from edge import DEFAULT_BUNDLE, Bundle
from tests.e2e.conftest import Run

pytestmark = [pytest.mark.models, pytest.mark.processes]

OPTIONS = ("positive", "negative")
MODEL = "qwen2.5-coder-0.5b-instruct-q4_k_m"
CLUSTER = """
gateway: {{port: {port}}}
tiers:
  - {{name: small, engine: onnx, model: {bundle}, price: {{input_usd_per_million_tokens: 1}}}}
  - {{name: large, model: {model}, price: {{input_usd_per_million_tokens: 2}}}}
ladders: [ladder.json]
"""


def install_ladder(folder: Path) -> None:
    """A ladder on which neither the device nor the small tier is ever sure enough."""
    trust, key = TrustStore(home.trust_dir()), SigningKey.generate()
    trust.pin("ladders", key.public)
    manifest = Bundle.open(home.bundles_dir() / DEFAULT_BUNDLE, trust).manifest
    policy = LadderPolicy(
        "mood",
        (
            TierInfo("device", manifest.name, "device", base_digest=manifest.base_digest),
            TierInfo("small", DEFAULT_BUNDLE, "cloud"),
            TierInfo("large", MODEL, "cloud"),
        ),
        "",
        Ladder(("device", "small", "large"), "climb", (2.0, 2.0)),
        dict.fromkeys(("device", "small", "large"), ConfidenceModel(Platt(1.0, 0.0))),
        None,
        dataclasses.replace(generic(OPTIONS), task_id="mood"),
    )
    data = policy.to_bytes()
    (folder / "ladder.json").write_bytes(data)
    (folder / "ladder.sig").write_bytes(key.sign(data))
    PolicyStore(home.policies_dir(), trust).install(DeviceRung.of(policy), key)


def test_a_request_climbs_from_the_device_to_the_last_tier(
    machine: Path, cascade: Run, port: int, tmp_path: Path
) -> None:
    install_ladder(tmp_path)
    config = tmp_path / "cluster.yaml"
    config.write_text(CLUSTER.format(port=port, bundle=DEFAULT_BUNDLE, model=MODEL))
    try:
        started = cascade("cluster", "up", "--config", config, "--detach")
        assert started.returncode == 0, started.stderr
        words = ("choose", "What a lovely day.", "--options", ",".join(OPTIONS), "--cloud")
        done = cascade(*words, "--task", "mood", "--json")
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        assert answer["source"] == "large"
        assert answer["reasons"] == ["unsure", "small:unsure", "large:last"]
        # How sure llama.cpp and onnxruntime are came all the way.
        assert 0 < answer["confidence"] < 1
        assert 0 < answer["device_confidence"] < 1
        single = json.loads(cascade(*words, "--tier", "large", "--json").stdout)
        assert answer["cost_usd"] > single["cost_usd"] > 0
    finally:
        cascade("cluster", "down")
