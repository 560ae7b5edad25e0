"""Runs that were ended, and go on from their last whole round to the same figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cascade import home
from cascade.cli import main
from cascade.errors import CascadeError, InvalidInput
from cascade.testing import TinyBundle
from cloud.fleet import Attackers, BundleAt, FleetPlan, FleetSimulation, checkpoint, parts
from cloud.fleet.simulation import Watcher
from tests.cloud.fleet import test_heads
from tests.cloud.fleet.test_command import ROOT, words  # noqa: F401
from tests.cloud.fleet.test_simulation import untimed

PLAN = replace(
    test_heads.PLAN,
    devices=5,
    rounds=2,
    per_round=16,
    dropout=0.4,
    attackers=Attackers(0.2, "sign-flip"),
    recertify=False,
)
HEADS = ("--learner", "head", "--starting", "9", "--rounds", "2", "--processes", "0")


class Killed(BaseException):
    """What a simulation does not catch."""


def opened(
    plan: FleetPlan, tiny: TinyBundle, folder: Path, watch: Watcher | None = None
) -> FleetSimulation:
    """Of this folder: begun, or gone on with."""
    return FleetSimulation(
        folder,
        plan,
        test_heads.TASK,
        tiny.bundle,
        BundleAt(tiny.path, tiny.path.parent / "trust"),
        rows=parts(
            test_heads.rows(), seed=plan.seed, most=40, starting=plan.starting, outside=True
        ),
        trunk=folder.parent / "trunk",
        watch=watch or (lambda stage, round_number, done, total: None),
        resume=True,
    )


@pytest.mark.parametrize(
    "plan",
    # Of seed 49 the liar is cut off in the first round, and lies in the second of what it kept.
    [replace(PLAN, masked=True), replace(PLAN, mode="asynchronous", goal=2, seed=49)],
    ids=["masked", "asynchronous"],
)
def test_a_run_that_was_ended_goes_on_to_the_same_figures(
    plan: FleetPlan, tiny: TinyBundle, tmp_path: Path
) -> None:
    whole = test_heads.simulated(plan, tiny, tmp_path / "whole")

    def kill(stage: str, round_number: int, done: int, total: int) -> None:
        if round_number == 2 and done == 3:
            raise Killed  # three devices have learned in a round that is not whole

    ended = opened(plan, tiny, tmp_path / "ended", kill)
    with pytest.raises(Killed):
        list(ended.run())
    ended.close()
    resumed = opened(plan, tiny, tmp_path / "ended")
    try:
        assert [each.round for each in resumed.run()] == [2]
        found = resumed.result()
    finally:
        resumed.close()
    assert found.complete
    assert untimed(found) == untimed(whole)


def test_one_that_was_killed_before_its_first_round_begins_anew(
    tiny: TinyBundle, tmp_path: Path
) -> None:
    plan = replace(PLAN, rounds=1, dropout=0.0)
    opened(plan, tiny, tmp_path / "fleet").close()
    again = opened(plan, tiny, tmp_path / "fleet")
    try:
        assert [each.round for each in again.run()] == [0, 1]
    finally:
        again.close()
    # One more process that wants to go on with it finds nothing to do.
    over = opened(plan, tiny, tmp_path / "fleet")
    try:
        assert not list(over.run())
        assert untimed(over.result()) == untimed(again.result())
    finally:
        over.close()
    with pytest.raises(InvalidInput, match="holds a run; resume it"):
        test_heads.simulated(plan, tiny, tmp_path / "fleet")
    with pytest.raises(InvalidInput, match=r"another run: alpha is 0\.2 there and 0\.3 here"):
        opened(replace(plan, alpha=0.3), tiny, tmp_path / "fleet")


@pytest.mark.parametrize("content", [b'{"devices": ', b"[]", b"[" * 100_000])
def test_what_a_damaged_folder_held_is_not_gone_on_with(
    content: bytes, tiny: TinyBundle, tmp_path: Path
) -> None:
    opened(PLAN, tiny, tmp_path / "fleet").close()
    (tmp_path / "fleet" / "run.json").write_bytes(content)
    with pytest.raises(CascadeError, match=r"run\.json cannot be read .*in a new folder"):
        opened(PLAN, tiny, tmp_path / "fleet")


def test_two_runs_do_not_share_a_folder(
    tiny: TinyBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_ENDS_S", 0.3)
    held = checkpoint.running(tmp_path / "fleet", first=True)
    with pytest.raises(CascadeError, match="another run goes on"):
        opened(PLAN, tiny, tmp_path / "fleet")
    os.close(held)


def killed_after_a_round(command: list[str], figures: Path) -> None:
    """Run it, and kill it once a round is whole."""
    running = subprocess.Popen(
        [sys.executable, "-m", "cascade.cli", *command],
        cwd=ROOT,
        env={**os.environ, "CASCADE_HOME": str(home.home())},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    end = time.monotonic() + 240
    while not (figures.is_file() and len(json.loads(figures.read_text())["rounds"]) > 1):
        assert time.monotonic() < end
        assert running.poll() is None
        time.sleep(0.02)
    running.kill()
    running.wait()


@pytest.mark.processes
def test_masked_devices_in_actors_go_on_after_kill_9(
    words: list[str],  # noqa: F811
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    masked = ("--masked", "--devices", "4", "--dropout", "0.3", "--processes", "2")
    command = [*words, *HEADS, *masked]
    killed_after_a_round(command, out / "fleet.json")
    subprocess.run(
        [sys.executable, "-m", "cascade.cli", *command, "--resume"],
        cwd=ROOT,
        env={**os.environ, "CASCADE_HOME": str(home.home())},
        check=True,
        capture_output=True,
    )
    resumed = json.loads((out / "fleet.json").read_text())
    command[command.index("--out") + 1] = str(tmp_path / "whole")
    assert main([*command, "--processes", "0"]) == 0
    whole = json.loads((tmp_path / "whole" / "fleet.json").read_text())
    for each in (*resumed["rounds"], *whole["rounds"]):
        del each["seconds"]
    assert resumed == whole


@pytest.mark.processes
def test_the_command_goes_on_after_kill_9(
    words: list[str],  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = [*words, *HEADS]
    killed_after_a_round(command, tmp_path / "out" / "fleet.json")
    assert main(command) == InvalidInput("out", "is there").exit_code
    assert "or go on with its run by --resume" in capsys.readouterr().err
    assert main([*command, "--seed", "1", "--resume"]) == InvalidInput("resume", "").exit_code
    assert "seed is 0 there and 1 here" in capsys.readouterr().err
    assert main([*command, "--resume", "--json"]) == 0
    resumed = json.loads(capsys.readouterr().out)
    command[command.index("--out") + 1] = str(tmp_path / "whole")
    assert main([*command, "--resume", "--json"]) == 0, "where there is none it begins"
    whole = json.loads(capsys.readouterr().out)
    assert whole["complete"]
    assert resumed["complete"]
    for each in (*resumed["rounds"], *whole["rounds"]):
        del each["seconds"]
    assert resumed == whole
