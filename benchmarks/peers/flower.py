"""Flower's deployment runtime: one SuperLink, two SuperNodes, an app that sends one array back and
forth. Runs in Flower's own environment; standard library and Flower only.

``python -m benchmarks.peers.flower FOLDER``
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.child import Fields, serve

_PORT = 9193
_NODES = 2
_RUN_S = 900.0
_PROJECT = """
[project]
name = "one-array"
version = "1.0.0"
description = "One array, back and forth"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "benchmarks"

[tool.flwr.app.components]
serverapp = "one_array.server:app"
clientapp = "one_array.client:app"

[tool.flwr.app.config]
rounds = 1
elements = 1
"""
_CONFIG = f"""
[superlink]
default = "here"

[superlink.here]
address = "127.0.0.1:{_PORT}"
insecure = true
"""
_SERVER = """
import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    rounds, elements = int(context.run_config["rounds"]), int(context.run_config["elements"])
    start = ArrayRecord([np.zeros(elements, np.float32)])
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=NODES, min_available_nodes=NODES)
    strategy.start(grid=grid, initial_arrays=start, num_rounds=rounds)
""".replace("NODES", str(_NODES))
_CLIENT = """
import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    # Of each device its own: Flower sends equal arrays once.
    draw = np.random.default_rng()
    arrays = [
        array + draw.random(array.shape, np.float32)
        for array in message.content["arrays"].to_numpy_ndarrays()
    ]
    content = RecordDict(
        {"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 1})}
    )
    return Message(content=content, reply_to=message)
"""


class Flower:
    """What the parent may ask for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._bin = Path(sys.executable).parent
        self._processes: list[subprocess.Popen[bytes]] = []
        self._env = {
            **os.environ,
            "FLWR_HOME": str(folder / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "PATH": f"{self._bin}{os.pathsep}{os.environ.get('PATH', '')}",
        }

    def start_link(self) -> Fields:
        """Write the app, start the SuperLink; the port that SuperNodes call."""
        app = self._folder / "app" / "one_array"
        app.mkdir(parents=True)
        (app / "__init__.py").write_text("")
        (app / "server.py").write_text(_SERVER)
        (app / "client.py").write_text(_CLIENT)
        (app.parent / "pyproject.toml").write_text(_PROJECT)
        home = self._folder / "home"
        home.mkdir()
        (home / "config.toml").write_text(_CONFIG)
        link = self._run(
            "flower-superlink",
            "--insecure",
            *("--host", "127.0.0.1"),
            *("--port", str(_PORT)),
            *("--database", str(self._folder / "flower.sqlite3")),
        )
        self._link = link
        time.sleep(10)
        self._check()
        return {"port": _PORT}

    def start_nodes(self, port: int) -> Fields:
        """Start SuperNodes that call this port; how many."""
        for number in range(_NODES):
            self._run(
                "flower-supernode",
                "--insecure",
                *("--superlink", f"127.0.0.1:{port}"),
                *("--port", str(_PORT + 1 + number)),
            )
        time.sleep(10)
        self._check()
        return {"nodes": _NODES}

    def idle(self, seconds: float) -> Fields:
        """CPU seconds a second of the server while SuperNodes poll and nothing runs."""
        before, began = self._cpu_s(), time.monotonic()
        time.sleep(seconds)
        return {"share": (self._cpu_s() - before) / (time.monotonic() - began)}

    def rounds(self, rounds: int, elements: int) -> Fields:
        """Run the app for so many rounds; what the server's processes used.

        Arguments:
            elements: float32 numbers of the array.
        """
        before, began = self._cpu_s(), time.monotonic()
        done = subprocess.run(
            [
                str(self._bin / "flwr"),
                "run",
                ".",
                "here",
                "--run-config",
                f"rounds={rounds} elements={elements}",
                "--stream",
            ],
            cwd=self._folder / "app",
            env=self._env,
            capture_output=True,
            text=True,
            timeout=_RUN_S,
            check=False,
        )
        wall_s = time.monotonic() - began
        if done.returncode:
            raise SystemExit(f"flwr run: {(done.stderr or done.stdout).strip()[-300:]}")
        # The app's process ends a moment later; what it used is its parent's then.
        time.sleep(3)
        told = f"{done.stdout}{done.stderr}"
        return {"cpu_s": self._cpu_s() - before, "wall_s": wall_s, "told": told[-4000:]}

    def stop(self) -> None:
        """End what was started."""
        for process in self._processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            process.wait()

    def _run(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        log = (self._folder / f"{program}-{len(self._processes)}.log").open("wb")
        process = subprocess.Popen(
            [str(self._bin / program), *arguments],
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        log.close()
        self._processes.append(process)
        return process

    def _check(self) -> None:
        if any(process.poll() is not None for process in self._processes):
            raise SystemExit(f"a part of Flower ended: {self._last_words()}")

    def _last_words(self) -> str:
        logs = sorted(self._folder.glob("*.log"))
        return " | ".join(path.read_text(errors="replace").strip()[-200:] for path in logs)

    def _cpu_s(self) -> float:
        """Of the SuperLink, what it started, and what of that has ended."""
        return sum(map(_cpu_s, _family(self._link.pid)))


def _family(root: int) -> list[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
    found = [root]
    for pid in found:
        found.extend(child for child, parent in parents.items() if parent == pid)
    return found


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Serve until standard input ends."""
    flower = Flower(Path(sys.argv[1]))
    try:
        serve(
            lambda: {
                "start_link": flower.start_link,
                "start_nodes": flower.start_nodes,
                "idle": flower.idle,
                "rounds": flower.rounds,
            }
        )
    finally:
        flower.stop()


if __name__ == "__main__":
    main()
