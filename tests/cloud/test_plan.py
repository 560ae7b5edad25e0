"""What a configuration would start is told before it is started, and editors are told its rules."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import jsonschema
import pytest
import yaml

from cascade.cli import main
from cloud.config import MetricsConfig, default_yaml, json_schema, parse_config
from cloud.plan import plan_cluster

TWO = """
gateway: {host: 0.0.0.0}
tiers:
  - {name: small, model: ./small.gguf, threads: 2, max_output_tokens: 2048,
     price: {input_usd_per_million_tokens: 1, output_usd_per_million_tokens: 5}}
  - {name: large, model: qwen2.5-coder-0.5b-instruct-q4_k_m, region: eu,
     autoscaling: {min_replicas: 0, max_replicas: 3}}
"""


def test_a_plan_adds_up_replicas_threads_and_prices() -> None:
    planned = plan_cluster(parse_config(TWO, "f.yaml"), cores=4)
    small, large = planned.tiers
    assert (planned.threads, planned.cores) == (5, 4)
    assert small.usd_per_million_tokens == (1, 5, 2)
    assert (large.replicas, large.threads, large.at_once) == ((0, 3), 3, 6)
    assert (small.licence, large.licence) == ("", "Apache-2.0")
    assert (small.commercial_use, large.commercial_use) == (False, True)


def test_what_an_operator_should_know_is_noted(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CASCADE_HOME", str(tmp_path))
    notes = "\n".join(plan_cluster(parse_config(TWO, "f.yaml"), cores=4).notes)
    for fact in (
        "5 threads compute when all tiers are at their largest, on 4 cores",
        "0.0.0.0 is reachable from other machines",
        "large is cheaper than small below it",
        "large sleeps when idle",
        "small may write 2048 tokens into a context of 2048",
        "small answers no commercial request: nobody has said it may",
        "qwen2.5-coder-0.5b-instruct-q4_k_m is downloaded first: 491 MB",
    ):
        assert fact in notes
    assert "large answers no commercial" not in notes


def test_metrics_that_others_can_read_are_noted(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CASCADE_HOME", str(tmp_path))
    config = parse_config(TWO, "f.yaml")
    for host, noted in (("0.0.0.0", True), ("127.0.0.1", False)):
        gateway = config.gateway.model_copy(update={"metrics": MetricsConfig(host=host)})
        notes = plan_cluster(config.model_copy(update={"gateway": gateway}), cores=4).notes
        assert any("shows metrics to other machines" in note for note in notes) == noted


def test_a_model_file_that_is_not_here_is_a_problem_and_one_that_is_has_a_size(tmp_path) -> None:
    path = tmp_path / "small.gguf"
    config = parse_config(TWO.replace("./small.gguf", str(path)), "f.yaml")
    assert plan_cluster(config).problems == (f"tier small: there is no model file {path}",)
    path.write_bytes(b"12345")
    assert plan_cluster(config).problems == ()
    assert plan_cluster(config).tiers[0].model_bytes == 5


def test_check_prints_the_plan_and_starts_nothing(capsys, tmp_path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(TWO)
    assert main(["cluster", "check", str(path)]) == 7
    shown = capsys.readouterr().out
    assert "large  llama_cpp       0–3   6 + 32      0.00" in shown
    assert f"missing  tier small: there is no model file {tmp_path / 'small.gguf'}" in shown
    assert main(["cluster", "check", str(path), "--json"]) == 7
    told = json.loads(capsys.readouterr().out)
    assert told["starts"] is False
    assert [tier["name"] for tier in told["tiers"]] == ["small", "large"]


def test_check_names_every_mistake(capsys, tmp_path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("gatway: {}\ntiers: [{name: a, modle: m}]\n")
    assert main(["cluster", "check", str(path)]) == 2
    told = capsys.readouterr().err
    assert "gatway is not a known key; did you mean gateway?" in told
    assert "tiers[0].modle is not a known key; did you mean model?" in told


def test_the_published_schema_is_current(capsys) -> None:
    published = json.loads(resources.files("cloud").joinpath("cluster.schema.json").read_text())
    assert published == json_schema()
    assert main(["cluster", "schema"]) == 0
    assert json.loads(capsys.readouterr().out) == published


def test_the_schema_accepts_the_default_and_refuses_typos() -> None:
    check = jsonschema.Draft202012Validator(json_schema())
    content = yaml.safe_load(default_yaml())
    check.validate(content)
    with pytest.raises(jsonschema.ValidationError, match="prot"):
        check.validate({**content, "gateway": {"prot": 1}})
    with pytest.raises(jsonschema.ValidationError, match="model"):
        check.validate({"tiers": [{"name": "a"}]})
    assert Path("cloud/default.yaml").read_text().startswith("# yaml-language-server: $schema=")
