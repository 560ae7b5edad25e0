"""``cascade record`` over a tiny device and an in-process cluster; and what it leaves behind."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from cascade import home, testing
from cascade.cli import main
from cascade.files import sha256_bytes
from cascade.records import load
from cascade.records.journal import Journal
from cascade.signing import TrustStore
from cascade.task import generic
from cascade.testing import Cluster, Fault, Script, TinyBundle
from cloud.config import ClusterConfig, PriceList, TierConfig
from cloud.engines import ChatRequest

Run = Callable[..., tuple[int, str, str]]

MOODS = ("good", "bad")
ROWS = """id,prompt,reference,document,domain
a,What a day.,good,d1,shop
b,What a night.,bad,d1,shop
c,What a film.,good,d2,film
d,What a book.,bad,d3,film
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.csv"
    path.write_text(ROWS)
    return path


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    config = ClusterConfig(
        tiers=(
            TierConfig(
                name="tier1",
                model="scripted",
                price=PriceList(
                    input_usd_per_million_tokens=1.0, output_usd_per_million_tokens=2.0
                ),
            ),
            TierConfig(name="tier2", model="scripted-2"),
        )
    )
    tiers = {"tier1": Script("bad"), "tier2": Script("good")}
    with testing.cluster(tiers, config=config) as cluster:
        yield cluster


@pytest.fixture
def run(
    empty_home: Path, tiny: TinyBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs the command line in this process; the tiny bundle's publisher is pinned."""
    TrustStore(home.trust_dir()).pin("tests", tiny.key.public)

    def run(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def cloud(cluster: Cluster, tmp_path: Path) -> tuple[str, Path]:
    cluster.profile.save(tmp_path / "client.json")
    return "--profile", tmp_path / "client.json"


CLOSED = ("--options", "good,bad", "--group", "domain")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_every_tier_is_asked_about_every_row(
    run: Run,
    data: Path,
    cluster: Cluster,
    cloud: tuple[str, Path],
    *,
    tiny: TinyBundle,
    suffix: str,
) -> None:
    out = data.with_suffix(suffix)
    words = ("record", data, "--tiers", "device,tier1", "--out", out, *CLOSED, *cloud)
    code, stdout, _ = run(*words, "--bundle", tiny.path, "--task", "mood", "--json")
    assert code == 0
    records = load(out)
    header = records.header
    assert (header.task_id, header.options, header.grader) == ("mood", MOODS, "choice")
    assert header.wording is not None
    assert header.wording.device_prompt == generic(MOODS).device_prompt
    assert header.data_sha256 == sha256_bytes(ROWS.encode())
    device, tier1 = header.tiers
    assert (device.kind, device.base_digest) == ("device", tiny.bundle.manifest.base_digest)
    assert device.bundle_digest == tiny.bundle.digest
    assert (tier1.kind, tier1.model) == ("cloud", "scripted")

    assert records.ids == ["a", "b", "c", "d"]
    assert records.documents == ["d1", "d1", "d2", "d3"]
    assert records.group("domain") == ["shop", "shop", "film", "film"]
    np.testing.assert_array_equal(records.correct("tier1"), [0, 1, 0, 1])
    tokens = records.column("tier1", "prompt_tokens")
    np.testing.assert_allclose(records.column("tier1", "cost_usd"), (tokens + 2) / 1e6)
    assert (records.column("tier1", "bytes_up") > 0).all()
    assert (records.column("device", "bytes_up") == 0).all()
    for record in records:
        outcome = record.outcomes["device"]
        assert outcome.correct == (outcome.answer == record.reference)
        assert outcome.scores is not None
        assert outcome.signals is not None
        assert outcome.raw_score == pytest.approx(outcome.scores.probabilities.max())
        assert outcome.completion_tokens == len(outcome.signals)
    assert [request.options for request in cluster.asked("tier1")] == [MOODS] * 4
    assert not cluster.asked("tier2")
    summary = json.loads(stdout)
    assert summary["n"] == 4
    assert summary["documents"] == 3
    assert [tier["answered"] for tier in summary["tiers"]] == [4, 4]
    assert summary["tiers"][1]["accuracy"] == 0.5


def test_no_text_of_others_is_kept_unless_asked(
    run: Run, data: Path, cluster: Cluster, cloud: tuple[str, Path]
) -> None:
    out = data.with_suffix(".jsonl")
    cluster.play("tier1", Script("A secret answer."))
    words = ("record", data, "--tiers", "tier1", "--grader", "exact", *cloud)
    assert run(*words, "--out", out)[0] == 0
    for text in ("What a", "secret", '"good"'):
        assert text not in out.read_text()
    (one, *_) = load(out)
    assert one.outcomes["tier1"].answer_sha256 == sha256_bytes(b"A secret answer.")

    # A tier that breaks out of the closed set is no reason to keep what it says.
    closed = data.with_name("closed.jsonl")
    words_closed = ("record", data, "--tiers", "tier1", *CLOSED, *cloud, "--out", closed)
    assert run(*words_closed)[0] == 0
    assert "secret" not in closed.read_text()
    np.testing.assert_array_equal(load(closed).correct("tier1"), [0, 0, 0, 0])
    assert load(closed)[0].reference == "good"

    kept = data.with_name("kept.jsonl")
    assert run(*words, "--out", kept, "--text", "keep")[0] == 0
    (one, *_) = load(kept)
    assert (one.text, one.reference) == ("What a day.", "good")
    assert one.outcomes["tier1"].answer == "A secret answer."


def test_rows_may_have_options_of_their_own(
    run: Run, tmp_path: Path, cluster: Cluster, cloud: tuple[str, Path], tiny: TinyBundle
) -> None:
    data = tmp_path / "quiz.jsonl"
    rows = [
        {"prompt": "2 + 2?", "options": ["three", "four"], "reference": "four"},
        {"prompt": "3 + 3?", "options": ["five", "six", "seven"], "reference": "five"},
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cluster.play("tier1", Script(lambda request: request.options[0]))
    words = ("record", data, "--tiers", "device,tier1", *cloud, "--bundle", tiny.path)
    for text, options in (("keep", ("five", "six", "seven")), ("drop", ())):
        out = tmp_path / f"{text}.parquet"
        assert run(*words, "--out", out, "--text", text)[0] == 0
        records = load(out)
        assert records[1].options == options
        assert records.header.wording is None
        np.testing.assert_array_equal(records.correct("tier1"), [0, 1])
        scores = records[1].outcomes["device"].scores
        assert scores is not None
        assert len(scores) == 3
    assert b"seven" not in (tmp_path / "drop.parquet").read_bytes()


def test_a_tier_that_fails_is_recorded_and_asked_again_when_told(
    run: Run, data: Path, cluster: Cluster, cloud: tuple[str, Path]
) -> None:
    out = data.with_suffix(".jsonl")
    words = ("record", data, "--tiers", "tier1,tier2", "--out", out, *CLOSED, *cloud)
    cluster.play("tier1", Script("bad", fault=Fault("FAILED_PRECONDITION", times=2)))
    code, stdout, stderr = run(*words, "--jobs", 1)
    assert code == 0
    assert "2 FAILED_PRECONDITION" in stdout
    assert "tier1: 2 × FAILED_PRECONDITION: as the test's script says" in stderr
    assert load(out).texts("tier1", "status") == ["FAILED_PRECONDITION"] * 2 + ["OK"] * 2
    np.testing.assert_array_equal(load(out).correct("tier1"), [np.nan, np.nan, 0, 1])

    asked = len(cluster.asked("tier1"))
    assert run(*words)[0] == 0
    assert len(cluster.asked("tier1")) == asked
    assert run(*words, "--retry-errors")[0] == 0
    assert len(cluster.asked("tier1")) == asked + 2
    assert len(cluster.asked("tier2")) == 4
    np.testing.assert_array_equal(load(out).correct("tier1"), [0, 1, 0, 1])


def test_a_full_cluster_is_asked_again_later(
    run: Run, data: Path, cluster: Cluster, cloud: tuple[str, Path]
) -> None:
    out = data.with_suffix(".jsonl")
    full = Fault("RESOURCE_EXHAUSTED", times=3, retry_after_s=0.01)
    cluster.play("tier1", Script("bad", fault=full))
    words = ("record", data, "--tiers", "tier1", "--out", out, *CLOSED, *cloud)
    assert run(*words, "--jobs", 1)[0] == 0
    assert load(out).answered("tier1").all()
    assert len(cluster.asked("tier1")) == 4 + 3


def test_rows_are_written_in_the_order_of_the_data(
    run: Run, data: Path, cluster: Cluster, cloud: tuple[str, Path]
) -> None:
    """The first rows take longest."""

    def answer(request: ChatRequest) -> str:
        return "word " * max(1, 6 - int(request.messages[-1].content.split()[1]))

    out = data.with_suffix(".jsonl")
    data.write_text("id,prompt\n" + "".join(f"r{i:02},prompt {i}\n" for i in range(12)))
    cluster.play("tier1", Script(answer, pause_s=0.02))
    words = ("record", data, "--tiers", "tier1", "--out", out, *cloud, "--jobs", 6)
    assert run(*words)[0] == 0
    assert load(out).ids == [f"r{i:02}" for i in range(12)]


def test_more_rows_are_added_to_what_is_there(
    run: Run, data: Path, cluster: Cluster, cloud: tuple[str, Path]
) -> None:
    out = data.with_suffix(".parquet")
    words = ("record", data, "--tiers", "tier1", "--out", out, *CLOSED, *cloud)
    assert run(*words, "--limit", 1)[0] == 0
    assert load(out).ids == ["a"]
    created = load(out).header.created
    assert run(*words)[0] == 0
    assert load(out).ids == ["a", "b", "c", "d"]
    assert load(out).header.created == created
    assert len(cluster.asked("tier1")) == 4


def test_another_model_behind_the_same_name_is_refused(
    run: Run, data: Path, cloud: tuple[str, Path], tmp_path: Path
) -> None:
    out = data.with_suffix(".jsonl")
    words = ("record", data, "--tiers", "tier1", "--out", out, *CLOSED)
    assert run(*words, *cloud, "--limit", 1)[0] == 0
    config = ClusterConfig(tiers=(TierConfig(name="tier1", model="newer"),))
    with testing.cluster(config=config) as other:
        other.profile.save(tmp_path / "other.json")
        code, _, stderr = run(*words, "--profile", tmp_path / "other.json")
    assert code == 1
    assert "tier1 is newer now and was scripted; start another file" in stderr
    assert load(out).ids == ["a"], stderr
    assert load(out).header.tiers[0].model == "scripted"


def test_rows_with_and_without_self_checks_are_not_mixed(
    run: Run, data: Path, tiny: TinyBundle
) -> None:
    out = data.with_suffix(".jsonl")
    words = ("record", data, "--tiers", "device", "--out", out, *CLOSED, "--bundle", tiny.path)
    check = ("--self-check", "verification")
    assert run(*words, *check, "--limit", 1)[0] == 0
    assert load(out).header.self_checks == ("self_verification",)
    code, _, stderr = run(*words)
    assert (code, load(out).ids) == (2, ["a"])
    assert "is of a run with another self_checks; choose another file" in stderr
    assert run(*words, *check)[0] == 0
    assert not np.isnan(load(out).column("device", "self_verification")).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--tiers", "tier2"), "is of a run with another tiers"),
        (("--options", "bad,good"), "is of a run with another options"),
        (("--grader", "exact"), "is of a run with another grader"),
        (("--task", "mood"), "is of a run with another task_id"),
    ],
)
def test_a_file_of_another_run_is_left_alone(
    run: Run,
    data: Path,
    cloud: tuple[str, Path],
    change: tuple[str, str],
    message: str,
) -> None:
    out = data.with_suffix(".jsonl")
    words = ("record", data, "--tiers", "tier1", "--out", out, *CLOSED, *cloud)
    assert run(*words)[0] == 0
    before = out.read_bytes()
    code, _, stderr = run(*words, *change)
    assert code == 2
    assert message in stderr
    assert out.read_bytes() == before
    data.write_text(ROWS + "e,One more.,good,d5,film\n")
    assert "with another data_sha256" in run(*words)[2]
    assert list(out.parent.glob(".*partial")) == []


def test_a_crash_leaves_what_was_done(
    run: Run, data: Path, cluster: Cluster, cloud: tuple[str, Path]
) -> None:
    """The journal of a run that was killed while it wrote a line."""
    out = data.with_suffix(".jsonl")
    words = ("record", data, "--tiers", "tier1", "--out", out, *CLOSED, *cloud)
    assert run(*words, "--limit", 2)[0] == 0
    header, one, two = out.read_bytes().splitlines(keepends=True)
    out.unlink()
    partial = out.with_name(f".{out.name}.partial")
    partial.write_bytes(header + one + two[: len(two) // 2])
    assert run(*words)[0] == 0
    assert load(out).ids == ["a", "b", "c", "d"]
    assert load(out)[0].outcomes["tier1"].answer == "bad"
    assert len(cluster.asked("tier1")) == 2 + 3
    assert not partial.exists()


def test_a_crash_does_not_lose_who_answered(
    run: Run, data: Path, cluster: Cluster, cloud: tuple[str, Path]
) -> None:
    out = data.with_suffix(".jsonl")
    words = ("record", data, "--tiers", "tier1", "--out", out, *CLOSED, *cloud)
    assert run(*words)[0] == 0
    whole = load(out)
    out.unlink()
    (tier,) = whole.header.tiers
    assert tier.model
    unknown = dataclasses.replace(whole.header, tiers=(dataclasses.replace(tier, model=""),))
    with Journal(out, unknown) as journal:
        journal.know({"tier1": tier.model})
        for record in whole:
            journal.append(record)
    assert not out.exists()
    # Nothing is left to be asked, so nobody says again who it was.
    asked = len(cluster.asked("tier1"))
    assert run(*words)[0] == 0
    assert len(cluster.asked("tier1")) == asked
    assert load(out).header.tiers == whole.header.tiers


def test_two_runs_do_not_write_one_file(run: Run, data: Path, cloud: tuple[str, Path]) -> None:
    out = data.with_suffix(".jsonl")
    words = ("record", data, "--tiers", "tier1", "--out", out, *CLOSED, *cloud)
    assert run(*words)[0] == 0
    with Journal(out, load(out).header):
        code, _, stderr = run(*words)
    assert code == 2
    assert "is being written by another run" in stderr
    assert run(*words)[0] == 0


def test_where_nothing_can_be_written_is_said_in_one_line(
    run: Run, data: Path, cluster: Cluster, cloud: tuple[str, Path]
) -> None:
    out = data / "below-a-file.jsonl"
    code, _, stderr = run("record", data, "--tiers", "tier1", "--out", out, *CLOSED, *cloud)
    assert code == 1
    assert f"cannot write {out}: " in stderr
    assert not cluster.asked("tier1")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_kill_leave_a_whole_file_that_can_be_gone_on_with(
    run: Run, data: Path, cluster: Cluster, cloud: tuple[str, Path], number: signal.Signals
) -> None:
    out = data.with_suffix(".parquet")
    words = ["record", data, "--tiers", "tier1", "--out", out, *CLOSED, *cloud, "--jobs", "1"]

    def answer(request: ChatRequest) -> str:
        """The first row is answered, the second never comes to its end."""
        return "good" if "day" in request.messages[-1].content else "word " * 100_000

    cluster.play("tier1", Script(answer, pause_s=0.05))
    # A background job of a shell has SIGINT ignored, and so would its children: for Ctrl-C it is
    # put back; kill must do without.
    handler = "default_int_handler" if number == signal.SIGINT else "SIG_IGN"
    code = (
        f"import signal, sys; signal.signal(signal.SIGINT, signal.{handler})\n"
        "from cascade.cli import main; sys.exit(main())"
    )
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, *map(str, words)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        partial = out.with_name(f".{out.name}.partial")
        while time.monotonic() < deadline and process.poll() is None:
            if partial.exists() and b'"outcomes"' in partial.read_bytes():
                break
            time.sleep(0.01)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert load(out).ids == ["a"], stderr
    assert f"1 of 4 rows are in {out}; the same command goes on from there" in stderr
    cluster.play("tier1", Script("good"))
    assert run(*words)[0] == 0
    assert load(out).ids == ["a", "b", "c", "d"]


def test_a_tier_judges(run: Run, data: Path, cluster: Cluster, cloud: tuple[str, Path]) -> None:
    cluster.play("tier1", Script("It was fine."))
    cluster.play(
        "tier2", Script(lambda request: "yes" if "day" in request.messages[-1].content else "no")
    )
    out = data.with_suffix(".jsonl")
    words = ("record", data, "--tiers", "tier1", "--out", out, "--grader", "judge:tier2", *cloud)
    assert run(*words)[0] == 0
    np.testing.assert_array_equal(load(out).correct("tier1"), [1, 0, 0, 0])
    asked = cluster.asked("tier2")
    assert {request.options for request in asked} == {("yes", "no")}
    assert all("Given answer:\nIt was fine." in r.messages[-1].content for r in asked)


def test_a_grader_that_breaks_costs_no_row_that_was_done(
    run: Run,
    data: Path,
    cloud: tuple[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "my_strict_grader.py").write_text(
        "def grade(answered):\n"
        "    if 'book' in answered.prompt: raise RuntimeError('no books')\n"
        "    return 1\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    out = data.with_suffix(".jsonl")
    words = ("record", data, "--tiers", "tier1", "--out", out, *CLOSED, *cloud, "--jobs", 1)
    code, _, stderr = run(*words, "--grader", "python:my_strict_grader:grade")
    assert code == 2
    assert "data.csv line 5: grader: my_strict_grader:grade raised RuntimeError: no" in stderr
    assert load(out).ids == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--tiers", "tier1", "--grader", "choice"), 2, "line 2: options: are missing"),
        (("--tiers", "tier1"), 2, "grader: is missing, and there are references"),
        (("--tiers", "tier1", "--grader", "numeric"), 2, "line 2: reference: 'good' holds no num"),
        (("--tiers", "tier1", "--options", "good,evil"), 2, "line 3: reference: 'bad' is none of"),
        (("--tiers", "tier9", *CLOSED), 3, "the cluster has no tier tier9"),
        (("--tiers", "tier1,tier1"), 2, "tiers: names tier1 twice"),
        (("--tiers", "Tier 1"), 2, "tiers: 'Tier 1' is not 1 to 32 characters"),
        (("--tiers", "tier1", "--jobs", 0), 2, "jobs: 0 is below 1"),
        (("--tiers", "tier1", "--limit", 0), 2, "limit: 0 is below 1"),
        (("--tiers", "tier1", "--deadline", "nan"), 2, "deadline: nan is not"),
        (("--tiers", "tier1", *CLOSED, "--price", "tier1=1"), 2, "price: 'tier1=1' is not TIER="),
        (("--tiers", "tier1", "--group", "colour"), 2, "groups: no column 'colour'"),
        (("--tiers", "tier1", *CLOSED, "--wording", "nope.json"), 3, "no file nope.json"),
        (("--tiers", "tier1", "--grader", "judge:device"), 2, "device cannot judge"),
    ],
)
def test_a_mistake_is_found_before_anything_is_asked(
    run: Run,
    data: Path,
    cluster: Cluster,
    cloud: tuple[str, Path],
    *,
    words: tuple[object, ...],
    code: int,
    message: str,
) -> None:
    out = data.with_suffix(".jsonl")
    got, stdout, stderr = run("record", data, "--out", out, *cloud, *words)
    assert got == code
    assert message in stderr
    assert len(stderr.strip().splitlines()) == 1 or "columns not used" in stderr
    assert stdout == ""
    assert not cluster.asked("tier1")
    assert list(data.parent.glob("*.jsonl")) + list(data.parent.glob(".*")) == []


def test_a_wrong_key_ends_the_run_at_once(
    run: Run, data: Path, cluster: Cluster, tmp_path: Path
) -> None:
    dataclasses.replace(cluster.profile, api_key="wrong").save(tmp_path / "wrong.json")
    out = data.with_suffix(".jsonl")
    words = ("record", data, "--tiers", "tier1", "--out", out, *CLOSED)
    code, _, stderr = run(*words, "--profile", tmp_path / "wrong.json")
    assert code == 8
    assert "UNAUTHENTICATED" in stderr
    assert not out.exists()
    code, _, stderr = run(*words)
    assert code == 2
    assert "give --cloud" in stderr


def test_a_wording_of_ones_own_is_used_and_kept(
    run: Run, data: Path, cluster: Cluster, cloud: tuple[str, Path], tmp_path: Path
) -> None:
    wording = generic(MOODS).to_json() | {"task_id": "mood", "cloud_prompt": "Mood of: {input}"}
    (tmp_path / "mood.json").write_text(json.dumps(wording))
    out = data.with_suffix(".jsonl")
    words = ("record", data, "--tiers", "tier1", "--out", out, *cloud)
    assert run(*words, "--wording", tmp_path / "mood.json", "--price", "tier1=10,20")[0] == 0
    records = load(out)
    assert records.header.wording is not None
    assert records.header.wording.to_json() == wording
    assert records.header.task_id == "mood"
    assert cluster.asked("tier1")[0].messages[-1].content.startswith("Mood of: What")
    assert records.header.tiers[0].input_usd_per_million_tokens == 10
    tokens = records.column("tier1", "prompt_tokens")
    np.testing.assert_allclose(records.column("tier1", "cost_usd"), (10 * tokens + 20) / 1e6)


def test_an_installed_policys_wording_is_used(
    run: Run, data: Path, empty_home: Path, tiny: TinyBundle
) -> None:
    made = testing.tiny_bundle(empty_home / "made")
    policy = made.install_policy("mood", MOODS, threshold=0.5)
    (empty_home / "made" / "policies").rename(home.policies_dir())
    out = data.with_suffix(".jsonl")
    words = ("record", data, "--tiers", "device", "--out", out, "--bundle", tiny.path)
    code, _, stderr = run(*words, "--task", "mood", "--grader", "choice")
    assert code == 0, stderr
    assert load(out).header.wording == policy.task


@pytest.fixture
def recorded(run: Run, data: Path, cloud: tuple[str, Path]) -> Path:
    rows = [f"r{i},prompt {i},good,d{i // 2},{'shop' if i % 2 else 'film'}" for i in range(40)]
    data.write_text("id,prompt,reference,document,domain\n" + "\n".join(rows) + "\n")
    out = data.with_suffix(".jsonl")
    assert run("record", data, "--tiers", "tier1", "--out", out, *CLOSED, *cloud)[0] == 0
    return out


def test_a_file_is_shown_converted_and_split(run: Run, recorded: Path) -> None:
    code, stdout, _ = run("records", "inspect", recorded)
    assert code == 0
    assert "40 records · 20 documents · 40 different inputs · graded by choice" in stdout
    assert "domain: film 20, shop 20" in stdout
    assert "right 0.000 [0.000, 0.088] of 40" in stdout

    parquet = recorded.with_suffix(".parquet")
    assert run("records", "convert", recorded, parquet)[0] == 0
    assert load(parquet) == load(recorded)
    code, _, stderr = run("records", "convert", recorded, parquet)
    assert code == 2
    assert "is there already; --force replaces it" in stderr
    assert run("records", "convert", parquet, recorded, "--force")[0] == 0
    assert load(parquet) == load(recorded)

    code, stdout, _ = run("records", "split", parquet, "--balance", "domain", "--json")
    assert code == 0
    counts = json.loads(stdout)
    assert list(counts) == [
        str(recorded.with_name(f"data-{part}.parquet")) for part in ("develop", "certify", "test")
    ]
    parts = [load(Path(path)) for path in counts]
    assert [len(part) for part in parts] == list(counts.values())
    documents = [set(part.documents) for part in parts]
    assert sum(map(len, documents)) == len(set().union(*documents))


@pytest.mark.parametrize("parts", ["develop", "a=x", "a=0.5,a=0.5", "../a=0.5", "=1", "a=2"])
def test_parts_that_cannot_be_read_are_refused(run: Run, recorded: Path, parts: str) -> None:
    code, _, stderr = run("records", "split", recorded, "--parts", parts)
    assert code == 2
    assert "parts" in stderr or "shares" in stderr


@pytest.mark.models
def test_the_default_model_is_recorded_offline(
    default_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "films.csv", tmp_path / "films.parquet"
    data.write_text(
        "prompt,reference\n"
        '"I love it, works great!",positive\n'
        '"Terrible, a waste of money.",negative\n'
        "A wonderful evening.,positive\n"
        "I hated every minute.,negative\n"
    )
    words = ["--tiers", "device", "--options", "positive,negative", "--out", str(out)]
    assert main(["record", str(data), *words]) == 0
    assert "smollm2-135m-instruct-int4 · 4 answers" in capsys.readouterr().out
    records = load(out)
    assert records.header.tiers[0].bundle_digest
    assert records.answered("device").all()
    scores = records.column("device", "raw_score")
    assert ((scores >= 0.5) & (scores <= 1)).all()
    assert np.nanmean(records.correct("device")) >= 0.5
    assert (records.column("device", "mean_entropy") > 0).all()
