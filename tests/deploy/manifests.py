"""What ``deploy/`` holds, as the tools that use it would read it."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
OVERLAYS = ("base", "dev", "production", "gpu")


def tool(name: str) -> str:
    """A program that a package of the extra ``dev`` brought."""
    return str(Path(sys.executable).with_name(name))


@functools.cache
def rendered(overlay: str) -> tuple[dict[str, Any], ...]:
    """Every object of an overlay, as ``kubectl apply --kustomize`` would send it."""
    folder = DEPLOY / "kubernetes" / ("base" if overlay == "base" else f"overlays/{overlay}")
    command = [tool("kubectl"), "kustomize", str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return tuple(each for each in yaml.safe_load_all(done.stdout) if each)


def of_kind(overlay: str, kind: str) -> list[dict[str, Any]]:
    """The objects of one kind."""
    return [each for each in rendered(overlay) if each["kind"] == kind]


def ray_service(overlay: str) -> dict[str, Any]:
    """The one RayService of an overlay."""
    (found,) = of_kind(overlay, "RayService")
    return found


def ray_groups(overlay: str) -> dict[str, dict[str, Any]]:
    """Head and worker groups by their names."""
    config = ray_service(overlay)["spec"]["rayClusterConfig"]
    return {
        "head": config["headGroupSpec"],
        **{group["groupName"]: group for group in config["workerGroupSpecs"]},
    }


def pod_templates(overlay: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod template, with the name of what makes pods of it."""
    for name, group in ray_groups(overlay).items():
        yield name, group["template"]
    for deployment in of_kind(overlay, "Deployment"):
        yield deployment["metadata"]["name"], deployment["spec"]["template"]


def cluster_yaml(overlay: str) -> str:
    """The cluster's configuration as the pods see it."""
    (config,) = of_kind(overlay, "ConfigMap")
    return str(config["data"]["cluster.yaml"])
