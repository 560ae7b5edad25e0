"""The shipped configurations of the cluster: ``cascade cluster check`` finds no mistake in them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cascade.cli import main
from cascade.errors import ClusterError
from cloud.config import load_config
from tests.deploy.manifests import DEPLOY

FILES = sorted(DEPLOY.rglob("cluster.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(DEPLOY)))
def test_nothing_but_keys_is_missing(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["cluster", "check", str(file), "--json"])
    told = json.loads(capsys.readouterr().out)
    missing = [tier["problem"] for tier in told["tiers"] if tier["problem"]]
    missing += told["access_problems"]
    assert all(re.search(r"key", problem) for problem in missing), missing
    assert code == (ClusterError.exit_code if missing else 0)


def test_there_is_one_for_each_way_of_starting() -> None:
    assert [str(file.parent.relative_to(DEPLOY)) for file in FILES] == [
        "compose",
        "kubernetes/base",
        "kubernetes/overlays/dev",
        "kubernetes/overlays/gpu",
        "kubernetes/overlays/production",
        "serve",
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(DEPLOY)))
def test_no_key_stands_in_them(file: Path) -> None:
    for tier in load_config(file).tiers:
        assert tier.provider is None or tier.provider.api_key_file is not None
