"""The base install is what a device needs: small, free of heavy libraries, and runs alone."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from tests.packaging.conftest import ROOT, Environment

pytestmark = pytest.mark.packaging

MAX_BYTES = 260_000_000
HEAVY = {
    "gguf",
    "matplotlib",
    "onnx",
    "optimum",
    "pandas",
    "pyarrow",
    "ray",
    "scipy",
    "sklearn",
    "torch",
    "transformers",
    "xllamacpp",
}
PURE_IMPORT = "import sys, cascade, edge; print(*{name.partition('.')[0] for name in sys.modules})"


def test_the_wheel_holds_the_packages_and_their_data_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {
        "cascade",
        "cloud",
        "edge",
        "edge_cloud_cascade-0.1.0.dist-info",
    }
    shipped = {
        str(path.relative_to(ROOT))
        for package in ("cascade", "cloud", "edge")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix not in {".pyc", ".pyo"}
    }
    assert shipped <= set(names)
    assert "edge_cloud_cascade-0.1.0.dist-info/licenses/LICENSE" in names


def test_the_base_install_has_none_of_the_heavy_libraries(base_install: Environment) -> None:
    folders = {path.name for path in base_install.site_packages.iterdir()}
    assert {"cascade", "edge", "onnxruntime"} <= folders
    assert not folders & HEAVY


def test_the_base_install_fits_into_260_mb(base_install: Environment) -> None:
    tools = {"pip", "setuptools", "pkg_resources", "_distutils_hack"}  # the environment's own
    size = sum(
        path.stat().st_size
        for top in base_install.site_packages.iterdir()
        if top.name.partition("-")[0] not in tools
        for path in (top.rglob("*") if top.is_dir() else [top])
        if path.is_file()
    )
    assert size <= MAX_BYTES


def test_importing_the_sdk_loads_no_heavy_library_even_where_they_are_installed() -> None:
    assert metadata.version("ray")
    command = [sys.executable, "-W", "error", "-c", PURE_IMPORT]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    assert "cascade" in done.stdout.split()
    assert not set(done.stdout.split()) & HEAVY


def test_the_installed_sdk_imports_without_a_warning(base_install: Environment) -> None:
    assert "edge" in base_install.run(PURE_IMPORT).split()


ANSWER_OFFLINE = """
import json, socket, sys
from pathlib import Path

def refuse(*arguments):
    raise AssertionError("the device opened a connection")

socket.socket.connect = socket.getaddrinfo = refuse

from edge import Device, TrustStore

bundle, trust = map(Path, sys.argv[1:])
with Device.open(bundle, trust=TrustStore(trust)) as device:
    answer = device.choose("What a lovely day!", ["positive", "negative"])
print(json.dumps([answer.text, answer.source, answer.confidence]))
"""


@pytest.mark.models
def test_the_installed_sdk_answers_offline(
    base_install: Environment, default_bundle: Path, session_home: Path
) -> None:
    output = base_install.run(ANSWER_OFFLINE, str(default_bundle), str(session_home / "trust"))
    text, source, confidence = json.loads(output)
    assert text in {"positive", "negative"}
    assert source == "device"
    assert confidence is None, "there is no policy, so no number is called a confidence"


def test_the_command_is_installed(base_install: Environment) -> None:
    command = base_install.folder / "bin" / "cascade"
    done = subprocess.run([command, "--help"], check=True, capture_output=True, text=True)
    assert "usage: cascade" in done.stdout
