"""The node that the coordinator is on is killed: its rounds go on from another one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.cloud.federation.federated import ROOT
from tests.cloud.federation.lost_node import GOAL, SEEN
from tests.cloud.federation.test_masked import DEVICES


@pytest.mark.processes
def test_nothing_that_was_committed_is_lost_with_the_coordinator_s_node(
    postgresql_url: str,
) -> None:
    # Short: Ray's socket names must fit into 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="cc-", dir="/tmp"))
    try:
        command = [
            sys.executable,
            "-m",
            "tests.cloud.federation.lost_node",
            str(folder),
            postgresql_url,
        ]
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        seen = json.loads((folder / SEEN).read_text())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for each in seen.values():
        assert len(each["after"]) == 1
        assert each["before"] not in each["after"]
    clear, masked = seen["clear"], seen["masked"]
    assert (clear["receipts"], clear["committed"], clear["dropped"]) == (2 * GOAL, 2 * GOAL, 0)
    assert clear["counted"][:2] == [GOAL, GOAL]
    # Three updates were committed before the node was killed, the fourth after it: 0, 1, 2 and 3.
    assert clear["first"] == pytest.approx(1.5)
    assert masked["told"] == ["masking"] * DEVICES
    assert masked["counted"][0] == DEVICES
    assert masked["trained"] == [1] * DEVICES
    assert masked["off"] < 1  # each number was rounded once, by less than a step
