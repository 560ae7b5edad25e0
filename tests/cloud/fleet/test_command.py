"""``cascade fleet simulate``: what it writes, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from cascade import home
from cascade.cli import main
from cascade.errors import InvalidInput, NotFound
from cascade.signing import TrustStore
from cascade.testing import TinyBundle
from cloud.federation.config import AggregationConfig, PlanConfig
from cloud.fleet import Attackers, FleetPlan, Partition, checkpoint, read_rows, simulation
from tests.cloud.fleet.test_simulation import rows

ROOT = Path(__file__).parents[3]
SMALL = (
    *("--devices", "2", "--rounds", "1", "--per-round", "30", "--develop", "30"),
    *("--least", "3", "--level", "0.5", "--layers", "2", "--learning-rate", "0.05"),
    *("--batch", "8", "--max-steps", "16", "--clip-norm", "20", "--epochs", "12"),
)


@pytest.fixture
def words(tiny: TinyBundle, empty_home: Path, tmp_path: Path) -> list[str]:
    """The command, but for its options; the tiny bundle's publisher is pinned."""
    TrustStore(home.trust_dir()).pin("tests", tiny.key.public)
    lines = []
    for row in rows():
        line: dict[str, object] = {"prompt": row.text, "group": row.group, "more": "not looked at"}
        lines.append(line | ({"answer": row.answer} if row.answer else {"out_of_scope": True}))
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "out"
    command = ["fleet", "simulate", "--dataset", str(data), "--bundle", str(tiny.path)]
    return [*command, "--out", str(out), *SMALL]


def test_it_writes_figures_a_picture_and_a_page(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--processes", "0", "--json"]) == 0
    told = capsys.readouterr()
    result = json.loads(told.out)
    assert result == json.loads((tmp_path / "out" / "fleet.json").read_text())
    assert result["complete"]
    assert [each["round"] for each in result["rounds"]] == [0, 1]
    assert result["rounds"][1]["outcomes"]
    assert result["plan"]["partition"]["kind"] == "iid"
    assert result["plan"]["most_escape"] == 0.03
    assert "starting: done" in told.err
    assert "round 1 of 1" in told.err
    assert (tmp_path / "out" / "fleet.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "out" / "fleet.html").read_text()
    assert "<svg" in page
    assert "data.jsonl" in page
    with pytest.raises(SystemExit):
        main([*words, "--rule", "best"])
    assert main(words) == InvalidInput("out", "is there").exit_code, "the folder is taken"


@pytest.mark.processes
def test_devices_live_in_ray_actors(words: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cascade.cli", *words, "--processes", "2", "--json"]
    environment = {**os.environ, "CASCADE_HOME": str(home.home())}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "fork" not in done.stderr
    apart = json.loads(done.stdout)["rounds"]
    words[words.index("--out") + 1] = str(tmp_path / "one")
    assert main([*words, "--processes", "0", "--json"]) == 0
    together = json.loads((tmp_path / "one" / "fleet.json").read_text())["rounds"]
    for each in (*apart, *together):
        del each["seconds"]
    assert apart == together, "where devices live changes nothing"


@pytest.mark.processes
def test_an_interrupt_keeps_what_was_done(words: list[str], tmp_path: Path) -> None:
    words[words.index("--rounds") + 1] = "1000"
    words[words.index("--per-round") + 1] = "1"
    running = subprocess.Popen(
        [sys.executable, "-m", "cascade.cli", *words, "--processes", "0"],
        cwd=ROOT,
        env={**os.environ, "CASCADE_HOME": str(home.home())},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    figures = tmp_path / "out" / "fleet.json"
    end = time.monotonic() + 120
    while not (figures.is_file() and len(json.loads(figures.read_text())["rounds"]) > 1):
        assert time.monotonic() < end
        assert running.poll() is None, running.communicate()[1]
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert "Traceback" not in err
    assert "ended; what was done is in" in err
    assert not json.loads(figures.read_text())["complete"]
    assert (tmp_path / "out" / "fleet.html").is_file()
    assert "The run was ended early." in out


@pytest.mark.processes
def test_an_interrupt_at_the_start_leaves_nothing(words: list[str]) -> None:
    words[words.index("--rounds") + 1] = "1000"
    # Not tmp_path: names of Ray's sockets have a limit.
    with tempfile.TemporaryDirectory(prefix="f-", dir="/tmp") as folder:
        running = subprocess.Popen(
            [sys.executable, "-m", "cascade.cli", *words, "--processes", "1"],
            cwd=ROOT,
            env={**os.environ, "CASCADE_HOME": str(home.home()), "TMPDIR": folder},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert running.stderr is not None
        assert "starting: processes" in running.stderr.readline()
        while not list(Path(folder).glob("cascade-*")):
            assert running.poll() is None
            time.sleep(0.05)
        time.sleep(0.5)  # Ray begins its processes
        os.killpg(running.pid, signal.SIGINT)
        _, err = running.communicate(timeout=60)
        assert running.returncode == 130, err
        assert "interrupted" in err
        assert not list(Path(folder).glob("cascade-*"))
    with pytest.raises(ProcessLookupError):
        os.killpg(running.pid, 0)


def test_what_fails_at_the_start_closes_what_is_open(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(simulation, "InProcess", ends)
    threads = threading.active_count()
    assert main([*words, "--processes", "0"]) == 130
    assert threading.active_count() == threads, "the cluster's loop has ended"
    os.close(checkpoint.running(tmp_path / "out", first=True))


def test_what_the_coordinator_logs_does_not_come_into_the_progress(
    words: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    command = [*words, "--processes", "0", "--devices", "3", "--masked", "--dropout", "0.99"]
    assert main(command) == 0
    assert [each for each in caplog.records if each.name == "ray.serve"] == []


def test_a_budget_of_epsilon_ends_the_run(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*words, "--processes", "0", "--rounds", "3", "--most-epsilon", "0.01"]
    assert main(command) == InvalidInput("most-epsilon", "").exit_code
    assert "is for --private fleets; add that, or leave it out" in capsys.readouterr().err
    assert main([*command, "--private", "0.5", "--per-round", "60"]) == 0
    told, err = capsys.readouterr()
    assert "Devices have rows for 2 of the 3 rounds" in err
    assert "No further round was opened: one more round would make ε" in told
    kept = json.loads((tmp_path / "out" / "fleet.json").read_text())
    assert len(kept["rounds"]) == 1
    assert kept["ended"].endswith("and most_epsilon is 0.01")


@pytest.mark.parametrize("text", ["dirichlet:0", "dirichlet", "by_group", "dirichlet:-1"])
def test_a_partition_that_there_is_not_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="is none of dirichlet:ALPHA"):
        Partition.of(text)


@pytest.mark.parametrize("text", ["0.2", "0.2:unkind", "2:nan", "x:nan"])
def test_an_attack_that_there_is_not_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="is not SHARE:KIND"):
        Attackers.of(text)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rule", "krum"], "minimum: comes to 1; krum needs 5 updates, and as many devices"),
        (["--partition", "by-group", "--group", "more"], "by-group needs rows of two or more"),
        (["--develop", "-5"], "develop: -5: must be at least 1 row"),
        (["--trim", "0.2"], "--trim: is for --rule trimmed_mean"),
        (["--tolerate", "2", "--rule", "median"], "--tolerate: is for --rule krum"),
        (["--layers", "99"], "--layers: must be at most 2: the bundle trains no more"),
    ],
)
def test_what_is_refused_leaves_no_folder(
    options: list[str],
    said: str,
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*words, "--processes", "0", *options]) == InvalidInput("", "").exit_code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_plan_out_of_range_is_refused() -> None:
    with pytest.raises(InvalidInput, match="devices"):
        FleetPlan(devices=1, rounds=1)
    with pytest.raises(InvalidInput, match="dropout"):
        FleetPlan(devices=2, rounds=1, dropout=1.0)
    with pytest.raises(InvalidInput, match="minimum: comes to 2; krum needs 5 updates"):
        FleetPlan(devices=10, rounds=1, aggregation=AggregationConfig(rule="krum"))
    assert FleetPlan(devices=20, rounds=1, aggregation=AggregationConfig(rule="krum")).fewest == 5
    with pytest.raises(InvalidInput, match=r"aggregation\.rule median is for plan\.trained: b"):
        FleetPlan(
            devices=4,
            rounds=1,
            training=PlanConfig(trained="both"),
            aggregation=AggregationConfig(rule="median"),
        )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1.*not JSON"),
        ("[" * 100_000, "line 1.*not JSON"),
        ('{"prompt": "a"}', "needs an answer, or out_of_scope"),
        ('{"prompt": " ", "answer": "b"}', "has an empty prompt"),
        ('{"prompt": "a", "answer": "b"}', "fewer than two different answers"),
    ],
)
def test_rows_that_cannot_be_used_are_named(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(InvalidInput, match=message):
        read_rows(path)
    with pytest.raises(NotFound):
        read_rows(tmp_path / "none.jsonl")
