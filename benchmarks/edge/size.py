"""How large the bundle is, and how long it takes to make where there is no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.edge.subject import Subject
from benchmarks.rows import Row
from benchmarks.run import Run
from benchmarks.timing import Estimate, median
from cascade.errors import CascadeError

_BUILD = """
import json, sys, time
from pathlib import Path
from benchmarks.edge.subject import build
from cascade.signing import SigningKey
cpu, wall = time.process_time(), time.perf_counter()
build(Path(sys.argv[1]), Path(sys.argv[2]), SigningKey.generate())
took = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
print(json.dumps({**took, "torch": "torch" in sys.modules}))
"""


def rows(subject: Subject, run: Run) -> Iterator[Row]:
    """Bytes of all files; seconds of fresh processes that never import torch."""
    size = sum(file.stat().st_size for file in subject.bundle.iterdir())
    yield run.row(
        "bundle size",
        Estimate(size / 1e6, 1),
        "MB",
        "all files of the bundle folder; 1 MB = 10^6 bytes",
        reach=105.0,
    )
    replies = []
    for number in range(1 if run.quick else 7):
        command = [sys.executable, "-c", _BUILD, str(subject.gguf)]
        out = Path(subject.folder.name) / f"built-{number}"
        root = Path(__file__).resolve().parents[2]
        done = subprocess.run(
            [*command, str(out)], cwd=root, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise CascadeError(f"the bundle cannot be built: {done.stderr.strip()[-200:]}")
        replies.append(json.loads(done.stdout))
    assert not any(reply["torch"] for reply in replies)
    how = "GGUF file in the system's cache to a signed bundle, in a fresh process without torch"
    for clock, name in (("wall", "wall_s"), ("CPU", "cpu_s")):
        yield run.row(
            f"build from the GGUF, {clock} time",
            median([reply[name] for reply in replies]),
            "s",
            how,
            reach=5.0 if clock == "wall" else None,
        )
