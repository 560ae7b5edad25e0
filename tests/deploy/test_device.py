"""The device's unit files and their install script."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from cascade.cli import parse
from tests.deploy.manifests import DEPLOY, tool

FOLDER = DEPLOY / "device"
SCRIPT = FOLDER / "install.sh"
# What systemd's manual has for these sections, as far as it is used.
KNOWN = {
    "Unit": {"Description", "Documentation", "Wants", "After", "ConditionPathExists"},
    "Timer": {
        "OnBootSec",
        "OnCalendar",
        "RandomizedDelaySec",
        "FixedRandomDelay",
        "AccuracySec",
        "Persistent",
    },
    "Install": {"WantedBy"},
}
HARDENED = {
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes",
    "ProtectKernelModules": "yes",
    "ProtectKernelTunables": "yes",
    "ProtectControlGroups": "yes",
    "RestrictNamespaces": "yes",
    "RestrictSUIDSGID": "yes",
    "LockPersonality": "yes",
    "SystemCallArchitectures": "native",
}


def unit(name: str) -> dict[str, list[tuple[str, str]]]:
    """Sections of a unit file; a key may stand in one several times."""
    sections: dict[str, list[tuple[str, str]]] = {}
    text = (FOLDER / name).read_text().replace("\\\n", " ")
    for line in text.splitlines():
        if not line or line[0] in "#;":
            continue
        heading = re.fullmatch(r"\[([A-Z][a-z]+)\]", line)
        if heading is not None:
            current = sections.setdefault(heading[1], [])
            continue
        key, equals, value = line.partition("=")
        assert equals, line
        current.append((key, value))
    return sections


def test_the_units_have_the_sections_and_keys_that_they_should() -> None:
    assert set(unit("cascade-setup.service")) == {"Unit", "Service"}
    assert set(unit("cascade-setup.timer")) == {"Unit", "Timer", "Install"}
    for name in ("cascade-setup.service", "cascade-setup.timer"):
        for section, keys in unit(name).items():
            assert section == "Service" or {key for key, _ in keys} <= KNOWN[section], name


def test_the_service_runs_a_command_that_there_is_as_somebody_else_than_root() -> None:
    service = dict(unit("cascade-setup.service")["Service"])
    assert service["User"] == "cascade"
    words = shlex.split(service["ExecStart"])
    assert words[0] == "/opt/cascade/bin/cascade"
    filled = [word.replace("${CASCADE_CLOUD}", "c:1") for word in words[1:]]
    assert parse([word for word in filled if word != "$CASCADE_SETUP_OPTIONS"]).cloud == "c:1"


def test_the_service_may_do_little() -> None:
    service = dict(unit("cascade-setup.service")["Service"])
    assert {key: service.get(key) for key in HARDENED} == HARDENED


def test_devices_do_not_ask_all_at_once() -> None:
    timer = dict(unit("cascade-setup.timer")["Timer"])
    assert timer["RandomizedDelaySec"] == "5h"
    assert timer["FixedRandomDelay"] == "yes"
    assert timer["Persistent"] == "yes"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_reads_the_units(tmp_path: Path) -> None:
    done = install(tmp_path)
    assert done.returncode == 0, done.stderr
    for program in ("opt/cascade/bin/cascade",):
        (tmp_path / program).parent.mkdir(parents=True)
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
    command = ["systemd-analyze", "verify", f"--root={tmp_path}", "--recursive-errors=no"]
    units = ["cascade-setup.service", "cascade-setup.timer"]
    done = subprocess.run([*command, *units], check=False, capture_output=True, text=True)
    complaints = [line for line in done.stderr.splitlines() if "cascade-setup" in line]
    assert complaints == [], done.stderr


def test_shellcheck_finds_nothing() -> None:
    command = [tool("shellcheck"), "--shell=sh", "--severity=style", SCRIPT]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def install(root: Path, *words: str, **changed: str | None) -> subprocess.CompletedProcess[str]:
    """Run the script for files under ``root``; ``changed`` replaces options, ``None`` drops one."""
    given = root.parent / f"{root.name}-given"
    given.mkdir(exist_ok=True)
    (given / "key").write_text("secret\n")
    (given / "publisher.pub").write_text("00" * 32 + "\n")
    options: dict[str, str | None] = {
        "cloud": "cluster.example:7443",
        "api-key-file": str(given / "key"),
        "publisher": str(given / "publisher.pub"),
        **{name.replace("_", "-"): value for name, value in changed.items()},
    }
    flags = [
        word
        for name, value in options.items()
        if value is not None
        for word in (f"--{name}", value)
    ]
    command = ["sh", str(SCRIPT), "--root", str(root), *flags, *words]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def tree(root: Path) -> dict[str, tuple[int, int, bytes]]:
    """Mode, time of the last change and content of every file."""
    return {
        str(file.relative_to(root)): (
            stat.S_IMODE(file.stat().st_mode),
            file.stat().st_mtime_ns,
            file.read_bytes(),
        )
        for file in root.rglob("*")
        if file.is_file()
    }


def test_it_lays_everything_out_and_keeps_the_key_private(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        done = install(tmp_path)
    finally:
        os.umask(old)
    assert (done.returncode, done.stderr) == (0, "")
    laid = tree(tmp_path)
    assert {name: oct(mode) for name, (mode, _, _) in laid.items()} == {
        "etc/cascade/api-key": "0o600",
        "etc/cascade/publisher.pub": "0o644",
        "etc/cascade/device.env": "0o644",
        "etc/systemd/system/cascade-setup.service": "0o644",
        "etc/systemd/system/cascade-setup.timer": "0o644",
    }
    settings = (tmp_path / "etc/cascade/device.env").read_text()
    assert "CASCADE_CLOUD=cluster.example:7443\n" in settings
    assert "CASCADE_CHANNEL=stable\n" in settings


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    install(tmp_path)
    before = tree(tmp_path)
    done = install(tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert tree(tmp_path) == before


def test_what_is_left_out_keeps_its_value(tmp_path: Path) -> None:
    authority = tmp_path.parent / f"{tmp_path.name}-ca.pem"
    authority.write_text("a certificate\n")
    install(tmp_path, channel="canary", ca=str(authority))
    before = tree(tmp_path)
    done = install(tmp_path, cloud=None, api_key_file=None, publisher=None)
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path) == before
    settings = (tmp_path / "etc/cascade/device.env").read_text()
    assert "CASCADE_CHANNEL=canary\n" in settings
    assert "CASCADE_SETUP_OPTIONS=--ca /etc/cascade/ca.pem\n" in settings


def test_a_new_address_replaces_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    install(tmp_path)
    before = tree(tmp_path)
    done = install(tmp_path, cloud="other.example:7443")
    assert done.stdout == f"wrote {tmp_path}/etc/cascade/device.env\n"
    after = tree(tmp_path)
    assert {name for name in before if before[name] != after[name]} == {"etc/cascade/device.env"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"cloud": None}, "--cloud is missing"),
        ({"cloud": "cluster.example"}, "--cloud must be host:port"),
        ({"cloud": "c:1\nEVIL=1"}, "--cloud must be host:port"),
        ({"channel": "a b"}, "--channel must be"),
        ({"api_key_file": None}, "--api-key-file is missing"),
        ({"publisher": None}, "--publisher is missing"),
        ({"publisher": "/none.pub"}, "/none.pub cannot be read"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(
    tmp_path: Path, changed: dict[str, str | None], said: str
) -> None:
    done = install(tmp_path, **changed)
    assert done.returncode == 2
    assert said in done.stderr
    assert tree(tmp_path) == {}


def test_an_unknown_option_is_refused(tmp_path: Path) -> None:
    done = install(tmp_path, "--frobnicate")
    assert done.returncode == 2
    assert "unknown option --frobnicate" in done.stderr
