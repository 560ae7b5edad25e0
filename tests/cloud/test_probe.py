"""The probe of containers, against a gateway on the loopback."""

from __future__ import annotations

from pathlib import Path

import pytest

from cascade.testing import cluster
from cascade.wire import profile_path
from cloud import probe
from cloud.config import parse_config
from cloud.tls import ensure_local_tls


def test_it_says_that_the_gateway_serves_and_that_it_does_not(
    empty_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with cluster() as running:
        running.profile.save(profile_path())
        assert probe.main([]) == 0
        assert capsys.readouterr().out == "SERVING\n"
        assert probe.main(["--service", "tier/tier1"]) == 0
        assert probe.main(["--service", "tier/none"]) == 1
        running.stop()
        assert probe.main(["--timeout", "1"]) == 1
    assert "UNAVAILABLE" in capsys.readouterr().err


def test_it_needs_no_key(empty_home: Path) -> None:
    with cluster() as running:
        running.profile.save(profile_path())
        stored = profile_path().read_text()
        profile_path().write_text(stored.replace(running.profile.api_key, "another"))
        assert probe.main([]) == 0


def test_it_reaches_a_configured_gateway_over_the_loopback_by_the_certificates_name(
    tmp_path: Path,
) -> None:
    tls = ensure_local_tls(tmp_path, "gateway.example")
    text = f"""
gateway:
  host: 0.0.0.0
  port: 7999
  tls: {{certificate: {tls.certificate}, key: {tls.key}, ca: {tls.ca}}}
tiers: [{{name: tier1, model: m}}]
"""
    profile = probe.own_profile(parse_config(text, "f.yaml"))
    assert profile.address == "127.0.0.1:7999"
    assert profile.ca_pem == tls.ca.read_bytes()
    assert profile.server_name == "localhost"
    assert profile.api_key == ""


def test_it_says_what_it_cannot_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("tiers: [{name: tier1, model: m}]")
    assert probe.main(["--config", str(file)]) == 1
    file.write_text("gateway: {tls: {certificate: c, key: k}}\ntiers: [{name: tier1, model: m}]")
    assert probe.main(["--config", str(file)]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert "probe without --config" in first
    assert "no readable certificate" in second
