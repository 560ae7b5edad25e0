"""A machine that is set up: models, the default bundle, a free port for the gateway."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cascade import catalog, home
from cascade.cli.bundle import build_bundle
from tests.ports import free_port

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def machine(model_path: Callable[[str], Path]) -> Iterator[Path]:
    """CASCADE_HOME of this module, with every catalog entry and the default bundle in place."""
    with pytest.MonkeyPatch.context() as patch:
        path = Path(tempfile.mkdtemp(prefix="cascade-home-"))
        patch.setenv("CASCADE_HOME", str(path))
        home.models_dir().mkdir(parents=True)
        for entry in catalog.entries():
            (home.models_dir() / entry.file_name).symlink_to(model_path(entry.name))
        build_bundle()
        yield path
        shutil.rmtree(path)


@pytest.fixture(scope="module")
def port() -> int:
    """A port for the gateway."""
    return free_port()


@pytest.fixture(scope="module")
def cascade(machine: Path) -> Run:
    """Runs the command line in a process of its own."""

    def run(*words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "error", "-m", "cascade.cli", *words]
        return subprocess.run(
            command, check=False, capture_output=True, text=True, input=stdin, timeout=240
        )

    return run
