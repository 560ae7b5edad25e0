"""The builder for Ray Serve's own commands: what it takes, and what it refuses."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError
from ray.serve import Application
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary

from cascade.errors import ClusterError, NotFound
from cascade.home import trust_dir
from cascade.ladder import Ladder, LadderPolicy
from cascade.records import TierInfo
from cascade.remote import DeviceReport, Transfer
from cascade.request import Message, Request
from cascade.signing import SigningKey, TrustStore
from cascade.testing.scripted import Script, ScriptedTier
from cascade.wire import ClientProfile, GrpcRemote, KeyRing
from cloud.config import load_config
from cloud.deployment import DeployArgs, build, gateway_files
from cloud.errors import ConfigError
from cloud.front_door import FrontDoor
from cloud.plan import plan_cluster
from cloud.routing import Router
from cloud.tls import ensure_local_tls

CLUSTER = """
gateway:
  tls: {{certificate: {folder}tls.crt, key: {folder}tls.key}}
  api_keys_file: {folder}api-keys
tiers:
  - name: tier1
    model: {folder}m.gguf
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A configuration with every file that it names."""
    for name in ("tls.crt", "tls.key", "api-keys", "m.gguf"):
        (tmp_path / name).touch()
    (tmp_path / "cluster.yaml").write_text(CLUSTER.format(folder=""))
    return tmp_path


def test_ray_serve_hands_a_files_arguments_over_as_a_type(folder: Path) -> None:
    # With postponed annotations Ray would pass the bare dictionary.
    assert inspect.signature(build).parameters["args"].annotation is DeployArgs
    args = {"config_file": str(folder / "cluster.yaml")}
    app = call_user_app_builder_with_args_if_necessary(build, args)
    assert isinstance(app, Application)


def test_relative_paths_are_taken_from_the_folder_of_the_file(folder: Path) -> None:
    config = DeployArgs(config_file=folder / "cluster.yaml").cluster()
    files = gateway_files(config, folder / "requests.jsonl")
    assert files.certificate == folder / "tls.crt"
    assert files.api_keys == folder / "api-keys"
    assert files.request_log == folder / "requests.jsonl"


def test_the_configuration_may_stand_in_the_arguments(folder: Path) -> None:
    app = build(DeployArgs(config=CLUSTER.format(folder=f"{folder}/")))
    assert isinstance(app, Application)


def test_the_ladders_that_it_names_are_followed_or_refused(folder: Path, empty_home: Path) -> None:
    tiers = (TierInfo("tier1", "m.gguf", "cloud"),)
    ladder = LadderPolicy("mood", tiers, "", Ladder(("tier1",)), {}, None)
    key = SigningKey.generate()
    (folder / "ladder.json").write_bytes(ladder.to_bytes())
    (folder / "ladder.sig").write_bytes(key.sign(ladder.to_bytes()))
    file = folder / "cluster.yaml"
    file.write_text("ladders: [ladder.json]\n" + file.read_text())
    told = "ladder.json: "
    with pytest.raises(ConfigError, match=f"{told}.*unknown publisher"):
        build(DeployArgs(config_file=file))
    planned = plan_cluster(load_config(file))
    assert len(planned.ladder_problems) == 1
    assert planned.ladder_problems[0] in planned.problems
    assert any("ladders are read when the cluster starts" in note for note in planned.notes)

    TrustStore(trust_dir()).pin("me", key.public)
    assert plan_cluster(load_config(file)).ladder_problems == ()
    app = build(DeployArgs(config_file=file))
    assert app._bound_deployment.init_args[2] == (ladder,)
    with pytest.raises(ConfigError, match=r"ladders\[0\] must be an absolute path"):
        DeployArgs(config="ladders: [l.json]\n" + CLUSTER.format(folder=f"{folder}/")).cluster()


def test_relative_paths_in_the_arguments_are_refused_by_name() -> None:
    text = CLUSTER.format(folder="") + "    autoscaling: {max_replicas: 2}\n"
    text = text.replace("gateway:\n", "gateway:\n  registry: here\n")
    with pytest.raises(ConfigError) as refused:
        DeployArgs(config=text.replace("m.gguf", "sub/m.gguf")).cluster()
    names = [line.split()[1] for line in str(refused.value).splitlines()]
    assert names == [
        "gateway.tls.certificate",
        "gateway.tls.key",
        "gateway.api_keys_file",
        "gateway.registry",
        "tiers[0].model",
    ]


@pytest.mark.parametrize("args", [{}, {"config": "tiers: []", "config_file": "f"}, {"confg": "x"}])
def test_arguments_name_one_configuration_and_nothing_else(args: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        DeployArgs.model_validate(args)


def test_what_the_supervisor_would_make_must_be_given() -> None:
    config = DeployArgs(config="tiers: [{name: tier1, model: m}]").cluster()
    with pytest.raises(ConfigError) as refused:
        gateway_files(config)
    names = [line.split()[0] for line in str(refused.value).splitlines()]
    assert names == ["gateway.tls.certificate", "gateway.tls.key", "gateway.api_keys_file"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "tls.key").unlink(), "gateway.tls.key: the file"),
        (lambda folder: (folder / "api-keys").unlink(), "gateway.api_keys_file: the file"),
        (lambda folder: (folder / "m.gguf").unlink(), "tier1: there is no model file"),
    ],
)
def test_a_file_that_is_not_there_is_named(
    folder: Path, spoil: Callable[[Path], None], said: str
) -> None:
    spoil(folder)
    with pytest.raises(ClusterError, match=said):
        build(DeployArgs(config_file=folder / "cluster.yaml"))


def test_a_log_that_cannot_be_written_is_refused(folder: Path) -> None:
    config = DeployArgs(config_file=folder / "cluster.yaml").cluster()
    with pytest.raises(ClusterError, match="request_log"):
        gateway_files(config, folder / "none" / "requests.jsonl")


def test_a_configuration_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        build(DeployArgs(config_file=tmp_path / "cluster.yaml"))


async def test_without_a_file_the_access_log_is_in_the_log_that_ray_serve_keeps(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    requests = logging.getLogger("ray.serve.requests")
    monkeypatch.setattr(requests, "handlers", [])
    monkeypatch.setattr(requests, "propagate", True)
    serve = logging.getLogger("ray.serve")
    monkeypatch.setattr(serve, "handlers", [caplog.handler])
    tls = ensure_local_tls(folder, "localhost")
    (folder / "tls.crt").write_bytes(tls.certificate.read_bytes())
    (folder / "tls.key").write_bytes(tls.key.read_bytes())
    KeyRing({}).with_key("kitchen", "secret").save(folder / "api-keys")
    config = DeployArgs(config_file=folder / "cluster.yaml").cluster()
    door = FrontDoor(
        Router(config, {"tier1": ScriptedTier(Script())}),
        gateway_files(config),
        address="127.0.0.1:0",
    )
    await door.open()
    remote = GrpcRemote(ClientProfile(f"127.0.0.1:{door.port}", tls.ca.read_bytes(), "secret"))
    request = Request((Message("user", "Is water wet?"),))
    async for _ in remote.answer(request, DeviceReport(), deadline_s=30, transfer=Transfer()):
        pass
    await remote.close()
    await door.close(1)
    (record,) = [each for each in caplog.records if each.name == requests.name]
    assert json.loads(record.getMessage())["caller"] == "kitchen"
