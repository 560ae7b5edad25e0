"""The configuration file: the shipped one is good, and what is wrong in another one is named."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from cascade.catalog import entries
from cascade.errors import NotFound
from cloud.config import Hedge, TierConfig, default_config, default_yaml, load_config, parse_config
from cloud.errors import ConfigError

TIER = "tiers: [{name: tier1, model: m}]"


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        parse_config(text, "f.yaml")
    return str(refused.value).splitlines()


def test_the_shipped_configuration_serves_one_illustratively_priced_tier() -> None:
    config = default_config()
    assert config.gateway.host == "127.0.0.1"
    (tier,) = config.tiers
    assert (tier.name, tier.engine) == ("tier1", "llama_cpp")
    assert tier.price.label == "illustrative"
    assert tier.price.cost_usd(1_000_000, 1_000_000) == pytest.approx(0.5)


def test_the_shipped_file_shows_every_key() -> None:
    config = default_config()
    text = default_yaml()
    for section in (config.gateway, config.gateway.tls, config.tiers[0], config.tiers[0].price):
        for key in type(section).model_fields:
            # The one key whose default depends on another one.
            assert f"{key}:" in text or key == "max_ongoing_requests"


def test_a_configuration_reads_back_from_its_own_yaml() -> None:
    config = default_config()
    assert parse_config(config.yaml(), "copy") == config


def test_the_files_in_the_docs_are_good() -> None:
    page = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text()
    files = re.findall(r"^```yaml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    # Some show the keys of the gateway alone.
    whole = [file if "\ntiers:" in f"\n{file}" else file + TIER for file in files]
    read = [parse_config(file, "docs") for file in whole]
    assert (Path("ladder.json"),) in [config.ladders for config in read]
    assert Hedge(to="tier1", least_s=0.05) in [config.tiers[0].hedge for config in read]
    assert any(config.tiers[-1].provider for config in read)
    assert any(config.gateway.jwt for config in read)
    assert any(config.gateway.quotas.any for config in read)
    engines = [tier.engine for config in read for tier in config.tiers]
    assert {"openai", "transformers", "vllm"} < set(engines)


def test_ladders_lie_where_the_file_lies(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(f"ladders: [mine/l.json]\n{TIER}")
    assert load_config(path).ladders == (tmp_path / "mine/l.json",)


def test_everything_but_the_tiers_has_a_default() -> None:
    assert parse_config(TIER, "f.yaml").gateway == default_config().gateway


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            f"gatway: {{}}\n{TIER}",
            "f.yaml: gatway is not a known key; did you mean gateway?",
        ),
        (
            f"gateway: {{prot: 1}}\n{TIER}",
            "f.yaml: gateway.prot is not a known key; did you mean port?",
        ),
        (
            "tiers: [{name: a, model: m, autoscaling: {min_replica: 1}}]",
            "f.yaml: tiers[0].autoscaling.min_replica is not a known key; "
            "did you mean min_replicas?",
        ),
        (
            "tiers: [{name: a, model: m, price: {zzz: 1}}]",
            "f.yaml: tiers[0].price.zzz is not a known key; known keys: "
            "input_usd_per_million_tokens, output_usd_per_million_tokens, label",
        ),
        (
            "tiers: [{name: a, model: m, hedge: {least_s: 1}}]",
            "f.yaml: tiers[0].hedge.to is missing",
        ),
        (
            "tiers: [{name: a, model: m, hedge: {to: a, leasts: 1}}]",
            "f.yaml: tiers[0].hedge.leasts is not a known key; did you mean least_s?",
        ),
        (
            "tiers: [{name: a, model: m, hedge: {to: b}}]",
            "f.yaml: the file: a is hedged by 'b', which is no tier that reads text; tiers: a",
        ),
        (
            "tiers: [{name: device, model: m}]",
            "f.yaml: tiers[0].name: is what a device calls itself; take another (it is 'device')",
        ),
        (f"ladder: []\n{TIER}", "f.yaml: ladder is not a known key; did you mean ladders?"),
        ("tiers: [{name: a}]", "f.yaml: tiers[0].model is missing"),
        ("gateway: {}", "f.yaml: tiers is missing"),
        (
            f"gateway: {{port: 10500}}\n{TIER}",
            "f.yaml: gateway.port: lies in 10002-19999, which Ray's workers use; "
            "take another, e.g. 7443 (it is 10500)",
        ),
        (
            f"gateway: {{metrics: {{prot: 1}}}}\n{TIER}",
            "f.yaml: gateway.metrics.prot is not a known key; did you mean port?",
        ),
        (
            f"gateway: {{metrics: {{port: 9995}}}}\n{TIER}",
            "f.yaml: gateway.metrics.port: and the 9 after it must keep out of 10002-19999, which "
            "Ray's workers use, and below 65536; take another, e.g. 9464 (it is 9995)",
        ),
        (
            f"gateway: {{port: 9470, metrics: {{}}}}\n{TIER}",
            "f.yaml: gateway: metrics.port and the 9 after it must keep out of gateway.port",
        ),
        (
            f"gateway: {{port: '7443'}}\n{TIER}",
            "f.yaml: gateway.port: input should be a valid integer (it is '7443')",
        ),
        (
            f"gateway: {{tls: {{key: k.pem}}}}\n{TIER}",
            "f.yaml: gateway.tls: give both certificate and key, or neither",
        ),
        (
            "tiers: [{name: a, model: m}, {name: a, model: m}]",
            "f.yaml: tiers: two tiers are called 'a'; names must differ",
        ),
        (
            "tiers: [{name: a, model: m, autoscaling: {min_replicas: 3, max_replicas: 2}}]",
            "f.yaml: tiers[0].autoscaling: min_replicas 3 is above max_replicas",
        ),
        (
            "tiers: [{name: a, model: m, price: {input_usd_per_million_tokens: .nan}}]",
            "f.yaml: tiers[0].price.input_usd_per_million_tokens: "
            "input should be less than inf (it is nan)",
        ),
        ("tiers: []", "f.yaml: tiers: is empty; name at least one tier"),
        ("- 1", "f.yaml must hold the keys gateway and tiers"),
        ("", "f.yaml must hold the keys gateway and tiers"),
    ],
)
def test_a_mistake_is_one_line_that_names_its_place(text: str, line: str) -> None:
    assert problems(text) == [line]


def test_every_mistake_gets_a_line() -> None:
    lines = problems("gateway: {port: 0}\ntiers: [{name: A, model: m, threads: 0}]")
    assert [line.split(":")[1].strip() for line in lines] == [
        "gateway.port",
        "tiers[0].name",
        "tiers[0].threads",
    ]


def test_broken_yaml_is_one_line() -> None:
    (line,) = problems("tiers: [")
    assert line.startswith("f.yaml is not YAML")


def test_a_model_that_may_answer_nothing_personal_may_not_be_sent_never_leave() -> None:
    (line,) = problems("tiers: [{name: a, model: m, data_classes: [never_leave]}]")
    assert line.startswith("f.yaml: tiers[0].data_classes[0]")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no configuration file"):
        load_config(tmp_path / "none.yaml")


def test_relative_paths_start_at_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "gateway: {api_keys_file: keys, tls: {certificate: c.pem, key: /etc/k.pem}}\n"
        "tiers: [{name: a, model: ./m.gguf}, {name: b, model: catalog-name}]\n"
    )
    config = load_config(path)
    assert config.gateway.api_keys_file == tmp_path / "keys"
    assert config.gateway.tls.certificate == tmp_path / "c.pem"
    assert config.gateway.tls.key == Path("/etc/k.pem")
    assert [tier.model for tier in config.tiers] == [str(tmp_path / "m.gguf"), "catalog-name"]
    assert config.tiers[0].model_name == "m.gguf"


def test_the_catalog_says_what_a_licence_allows_and_nobody_may_say_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    named = TierConfig(name="t", model="qwen2.5-coder-0.5b-instruct-q4_k_m")
    assert named.allows_commercial_use
    assert not named.model_copy(update={"commercial_use": False}).allows_commercial_use
    assert not TierConfig(name="t", model="folder/own.gguf").allows_commercial_use
    assert TierConfig(name="t", model="folder/own.gguf", commercial_use=True).allows_commercial_use
    research = dataclasses.replace(entries()[0], licence="CC-BY-NC-4.0", commercial_use=False)
    monkeypatch.setattr("cloud.config.entries", lambda: (research,))
    assert not TierConfig(name="t", model=research.name).allows_commercial_use
    text = f"tiers: [{{name: t, model: {research.name}, commercial_use: true}}]"
    with pytest.raises(ConfigError, match=r"tiers\[0\]: commercial_use is true, but CC-BY-NC"):
        parse_config(text, "c.yaml")
