"""What is licensed for research only is refused where answers are sold: at start, when it is
published, when it is delivered, and by request."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest

from cascade import catalog, testing
from cascade.cli import main
from cascade.errors import ClusterError, RemoteError
from cascade.remote import DeviceReport, Transfer
from cascade.request import Constraints, Message, Request
from cascade.signing import SigningKey, TrustStore
from cascade.testing import Script
from cascade.wire import ArtifactQuery, GrpcRemote
from cloud import config as config_module
from cloud import startup
from cloud.config import ClusterConfig, parse_config
from cloud.errors import ConfigError, LicenceForbids
from cloud.plan import plan_cluster
from cloud.registry import Delivery, Needs, Registry
from edge.bundle import inspect, seal

RESEARCH = "research-3b"
LICENCE = "CC-BY-NC-4.0"


@pytest.fixture
def research_model(monkeypatch: pytest.MonkeyPatch) -> str:
    """A model of the catalog that must not be sold; the shipped ones all may."""
    (entry, *_) = catalog.entries()
    only = dataclasses.replace(entry, name=RESEARCH, licence=LICENCE, commercial_use=False)
    monkeypatch.setattr(config_module, "entries", lambda: (*catalog.entries(), only))
    return RESEARCH


@pytest.fixture
def research_bundle(tmp_path: Path) -> testing.TinyBundle:
    """A bundle whose licence forbids commercial use, signed anew."""
    tiny = testing.tiny_bundle(tmp_path / "tiny")
    key = SigningKey.generate()
    manifest = dataclasses.replace(inspect(tiny.path), licence=LICENCE, commercial_use=False)
    seal(tiny.path, manifest, key)
    trust = TrustStore(tmp_path / "trust")
    trust.pin("maker", key.public)
    return dataclasses.replace(tiny, trust=trust)


def text(model: str, *, commercial: bool = True, more: str = "") -> str:
    tiers = f"tiers:\n  - name: tier1\n    model: {model}\n{more}"
    return f"commercial: {str(commercial).lower()}\n{tiers}"


def test_a_research_model_does_not_start_for_money(research_model: str, tmp_path: Path) -> None:
    parse_config(text(research_model, commercial=False), "f.yaml")
    with pytest.raises(ConfigError, match=f"{LICENCE}, the licence of {RESEARCH}.*tier1"):
        parse_config(text(research_model), "f.yaml")


def test_the_check_says_so_before_anything_starts(
    research_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(text(research_model))
    assert main(["cluster", "check", str(file)]) == 2
    assert LICENCE in capsys.readouterr().err


def test_a_model_of_which_nobody_said_it_may_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"x")
    with pytest.raises(ConfigError, match="nobody has said"):
        parse_config(text("./m.gguf"), "f.yaml")
    said = parse_config(text("./m.gguf", more="    commercial_use: true\n"), "f.yaml")
    assert said.commercial


def test_a_bundles_own_licence_overrules_what_the_operator_says(
    research_bundle: testing.TinyBundle,
) -> None:
    more = "    engine: onnx\n    commercial_use: true\n"
    sold = parse_config(text(str(research_bundle.path), more=more), "f.yaml")
    (problem,) = plan_cluster(sold).problems
    assert LICENCE in problem
    with pytest.raises(ClusterError, match=LICENCE):
        startup.model_files(sold)
    given = parse_config(text(str(research_bundle.path), commercial=False, more=more), "f.yaml")
    assert plan_cluster(given).problems == ()
    assert startup.model_files(given) == {"tier1": research_bundle.path}


def test_the_shipped_default_may_be_sold() -> None:
    default = text("qwen2.5-coder-0.5b-instruct-q4_k_m")
    assert parse_config(default, "f.yaml").commercial


def test_a_commercial_request_for_a_research_model_is_told_the_licence(
    research_model: str,
) -> None:
    given = ClusterConfig.model_validate({"tiers": [{"name": "tier1", "model": research_model}]})

    async def ask(profile: object, *, commercial: bool) -> str:
        remote = GrpcRemote(profile)  # type: ignore[arg-type]
        limits = Constraints(commercial=commercial)
        request = Request((Message("user", "hello"),), constraints=limits)
        try:
            events = remote.answer(request, DeviceReport(), deadline_s=5.0, transfer=Transfer())
            return repr([event async for event in events][-1])
        finally:
            await remote.close()

    with testing.cluster({"tier1": Script()}, config=given) as cluster:
        assert "lowest_tier" in asyncio.run(ask(cluster.profile, commercial=False))
        with pytest.raises(RemoteError, match=f"tier1:licence.*{LICENCE}") as refusal:
            asyncio.run(ask(cluster.profile, commercial=True))
        assert refusal.value.status == "FAILED_PRECONDITION"


def test_publishing_for_money_refuses_research_weights(
    research_bundle: testing.TinyBundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CASCADE_HOME", str(tmp_path / "home"))
    for name, key in research_bundle.trust.keys().items():
        TrustStore(tmp_path / "home" / "trust").pin(name, key)
    place = ["--registry", str(tmp_path / "registry")]
    code = main(["registry", "publish", str(research_bundle.path), "--commercial", *place])
    assert code == LicenceForbids.exit_code
    assert LICENCE in capsys.readouterr().err
    assert main(["registry", "list", *place]) == 3  # nothing is there
    assert main(["registry", "publish", str(research_bundle.path), *place]) == 0


async def test_a_commercial_cluster_does_not_deliver_research_weights(
    research_bundle: testing.TinyBundle, tmp_path: Path
) -> None:
    registry = Registry(str(tmp_path / "registry"))
    published = registry.publish(research_bundle.path, research_bundle.trust)
    digest = published.artifact.digest
    channel, _ = registry.channel("stable").with_artifact(
        published.artifact, {digest: published.artifact}, needs=Needs(), percent=None
    )
    registry.save(channel, SigningKey.generate())
    query = ArtifactQuery()
    assert await Delivery(registry).resolve(query) is not None
    with pytest.raises(LicenceForbids, match=LICENCE) as refusal:
        await Delivery(registry, commercial=True).resolve(query)
    assert refusal.value.status == "FAILED_PRECONDITION"
