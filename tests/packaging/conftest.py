"""A wheel of this tree, and an environment that holds it and what it depends on: nothing else."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Environment:
    """An environment apart from the one that runs the tests."""

    folder: Path

    @property
    def site_packages(self) -> Path:
        """Where its packages are."""
        (path,) = self.folder.glob("lib/python3*/site-packages")
        return path

    def run(self, code: str, *arguments: str) -> str:
        """Run ``code``, isolated from this folder, with warnings as errors. Returns its output."""
        python = self.folder / "bin" / "python"
        done = subprocess.run(
            [python, "-I", "-W", "error", "-c", code, *arguments],
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built as a release would be."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def base_install(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An empty environment into which the wheel alone was installed, without extras."""
    folder = tmp_path_factory.mktemp("base") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", wheel], check=True)
    subprocess.run([*pip, "check"], check=True)
    return Environment(folder)
