"""Serve config files, read more strictly than Ray does: it takes misspelt keys of deployments."""

from __future__ import annotations

import importlib
import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel
from ray.serve.schema import ServeDeploySchema

from cloud.config import parse_config
from cloud.deployment import DeployArgs, build
from cloud.gateway import APP_NAME, deployment_name
from tests.deploy.manifests import DEPLOY, OVERLAYS, cluster_yaml, ray_service

CONFIGS = {
    "serve.yaml": (DEPLOY / "serve" / "serve.yaml").read_text(),
    **{name: ray_service(name)["spec"]["serveConfigV2"] for name in OVERLAYS},
}


def unknown_keys(model: type[BaseModel], value: dict[str, Any], place: str = "") -> Iterator[str]:
    """Keys of ``value`` that ``model``, or a model within it, does not have."""
    for key, inner in value.items():
        field = model.model_fields.get(key)
        if field is None:
            yield f"{place}{key}"
            continue
        within = next(models(field.annotation), None)
        for number, item in enumerate(inner if isinstance(inner, list) else [inner]):
            if within is not None and isinstance(item, dict):
                step = f"[{number}]" if isinstance(inner, list) else ""
                yield from unknown_keys(within, item, f"{place}{key}{step}.")


def models(annotation: object) -> Iterator[type[BaseModel]]:
    """The models that a field's annotation names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Annotated, Union, list, types.UnionType):
        for part in get_args(annotation):
            yield from models(part)


@pytest.mark.parametrize("name", CONFIGS)
def test_ray_reads_it_and_knows_every_key(name: str) -> None:
    content = yaml.safe_load(CONFIGS[name])
    read = ServeDeploySchema.model_validate(content)
    assert list(unknown_keys(ServeDeploySchema, content)) == []
    assert str(read.proxy_location.value) == "Disabled"


def test_a_key_that_ray_would_not_miss_is_missed_here() -> None:
    content = yaml.safe_load(CONFIGS["base"])
    deployment = content["applications"][0]["deployments"][0]
    deployment["num_replica"] = deployment.pop("num_replicas")
    deployment["ray_actor_options"]["num_cpu"] = 1
    content["logging_config"]["levle"] = "INFO"
    assert sorted(unknown_keys(ServeDeploySchema, content)) == [
        "applications[0].deployments[0].num_replica",
        "applications[0].deployments[0].ray_actor_options.num_cpu",
        "logging_config.levle",
    ]


@pytest.mark.parametrize("name", CONFIGS)
def test_it_builds_the_application_that_the_gateway_looks_for(name: str) -> None:
    (application,) = yaml.safe_load(CONFIGS[name])["applications"]
    module, _, attribute = application["import_path"].partition(":")
    assert getattr(importlib.import_module(module), attribute) is build
    assert application["name"] == APP_NAME
    assert DeployArgs.model_validate(application["args"]).config_file is not None


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_it_changes_only_deployments_that_there_are(overlay: str) -> None:
    tiers = parse_config(cluster_yaml(overlay), overlay).tiers
    known = {"gateway", *(deployment_name(tier.name) for tier in tiers)}
    (application,) = yaml.safe_load(CONFIGS[overlay])["applications"]
    assert {each["name"] for each in application["deployments"]} <= known
