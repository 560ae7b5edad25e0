"""The examination as the product runs it: a Ray task, and what its death says of a candidate."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[3]


def test_a_killed_examiner_leaves_it_undecided_and_the_next_one_decides(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="ray-") as short:
        done = subprocess.run(
            [sys.executable, "-m", "tests.cloud.federation.judged_on_ray", str(tmp_path), short],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        )
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["killed"]
    assert any("could not be examined (1 of 3): crashed" in each for each in told["said"]), told
    assert (told["verdict"], told["policies"]) == ("approved", 1)
