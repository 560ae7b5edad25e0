"""A virtual environment a peer, with pinned packages, kept under a cache folder.

``CASCADE_BENCH_CACHE`` moves the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_STAMP = "installed.json"


class PeerUnavailable(Exception):
    """A peer cannot be measured here; the message is a row's reason."""


@dataclass(frozen=True, slots=True)
class Environment:
    """What pip installs for one peer.

    Arguments:
        name: of the folder.
        requirements: pinned.
        pip_arguments: e.g. ``("--no-binary", "NAME")``.
        variables: environment variables of the installation, e.g. compiler flags.
        limit_s: when to give up on the installation.
    """

    name: str
    requirements: tuple[str, ...]
    pip_arguments: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    limit_s: float = 900.0

    def python(self, say: Callable[[str], None]) -> Path:
        """The interpreter; the environment is made first where it is missing.

        Raises:
            PeerUnavailable: it cannot be made; pip's last line says why.
        """
        key = hashlib.sha256(
            repr((self.requirements, self.pip_arguments, sorted(self.variables.items()))).encode()
        ).hexdigest()[:12]
        folder = cache_dir() / f"{self.name}-{key}"
        python = folder / "bin" / "python"
        if not (folder / _STAMP).is_file():
            say(f"installing {' '.join(self.requirements)} into an environment of its own")
            shutil.rmtree(folder, ignore_errors=True)
            folder.parent.mkdir(parents=True, exist_ok=True)
            started = time.perf_counter()
            # Our own pip installs into it: copying one there takes longer than most packages.
            self._run([sys.executable, "-m", "venv", "--without-pip", str(folder)])
            pip = [sys.executable, "-m", "pip", "--python", str(python)]
            install = ["install", "--disable-pip-version-check"]
            self._run([*pip, *install, *self.pip_arguments, *self.requirements])
            seconds = time.perf_counter() - started
            (folder / _STAMP).write_text(json.dumps({"seconds": round(seconds)}))
        return python

    def _run(self, command: list[str]) -> None:
        run_whole(
            command,
            what=self.name,
            limit_s=self.limit_s,
            variables={**os.environ, **self.variables},
        )


def run_whole(
    command: Sequence[str],
    *,
    what: str,
    limit_s: float,
    variables: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> None:
    """Run a command to its end; whatever it started ends with it.

    Raises:
        PeerUnavailable: it failed, and its last line says why; or it took longer than ``limit_s``.
    """
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # a group of its own: pip starts compilers
        )
    except OSError as problem:
        raise PeerUnavailable(f"{what}: {problem}") from None
    with process:
        try:
            output, _ = process.communicate(timeout=limit_s)
        except BaseException as reason:
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(reason, subprocess.TimeoutExpired):
                minutes = limit_s / 60
                raise PeerUnavailable(f"{what}: not done within {minutes:.0f} minutes") from None
            raise
    if process.returncode:
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        raise PeerUnavailable(f"{what}: {lines[-1] if lines else 'failed without a word'}")


def cache_dir() -> Path:
    """Where environments and the models built for peers are kept."""
    override = os.environ.get("CASCADE_BENCH_CACHE")
    if override:
        return Path(override).expanduser().absolute()
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "cascade-benchmarks"
