"""Runs a command as one phase: one line with its seconds; its output only if it fails.

    python scripts/phase.py LABEL -- COMMAND…            output is kept back, the last line shown
    python scripts/phase.py --stream LABEL -- COMMAND…   output is passed through

Standard library only: this runs before anything is installed.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

HEARTBEAT_S = 30.0
WIDTH = 100


def main() -> int:
    """Run the command of the command line. Returns its exit code."""
    parser = argparse.ArgumentParser(description="run a command as one visible phase")
    parser.add_argument("--stream", action="store_true", help="pass the output through")
    parser.add_argument("label")
    parser.add_argument("command", nargs="+", metavar="COMMAND")
    arguments = parser.parse_args()
    return run(arguments.label, arguments.command, stream=arguments.stream)


def run(label: str, command: list[str], *, stream: bool = False, cwd: Path | None = None) -> int:
    """Run ``command`` and print one line about it. Returns its exit code; 130 after Ctrl-C."""
    started = time.monotonic()
    if stream:
        print(f"▸ {label}", flush=True)
    try:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            stdout=None if stream else subprocess.PIPE,
            stderr=None if stream else subprocess.STDOUT,
        )
    except OSError as error:
        print(f"✗ {label}: cannot run {command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    lines: list[str] = []
    try:
        if not stream:
            _watch(label, process, lines, started)
        code = process.wait()
    except KeyboardInterrupt:
        code = _let_end(process)
    seconds = time.monotonic() - started
    _clear()
    if code == 0:
        print(f"✓ {label} · {seconds:.1f} s", flush=True)
    else:
        sys.stdout.write("".join(lines))
        sys.stdout.flush()
        how = "stopped" if code in (130, -signal.SIGINT) else f"failed, exit code {code},"
        print(f"✗ {label} {how} after {seconds:.1f} s", file=sys.stderr, flush=True)
    return 130 if code == -signal.SIGINT else abs(code)


def _watch(label: str, process: subprocess.Popen[bytes], lines: list[str], started: float) -> None:
    """Collect the output, and show that something is going on, until it ends."""
    assert process.stdout is not None
    output = process.stdout

    def collect() -> None:
        for line in output:
            lines.append(line.decode(errors="replace"))

    reader = threading.Thread(target=collect, daemon=True)
    reader.start()
    spoke = time.monotonic()
    while reader.is_alive():
        reader.join(0.5)
        now = time.monotonic()
        latest = lines[-1].strip() if lines else ""
        status = f"… {label} · {now - started:.0f} s · {latest}"[:WIDTH]
        if sys.stdout.isatty():
            print(f"\r\033[K{status}", end="", flush=True)
        elif now - spoke >= HEARTBEAT_S:
            print(status, flush=True)
            spoke = now


def _let_end(process: subprocess.Popen[bytes]) -> int:
    """Give a command that got the same Ctrl-C ten seconds to clean up, then end it."""
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()
    return 130


def _clear() -> None:
    if sys.stdout.isatty():
        print("\r\033[K", end="")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
