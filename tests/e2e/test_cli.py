"""The command line as a newcomer meets it: offline, with a cluster, and with every mistake."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cascade import home
from cascade.decision_record import DecisionRecord, replay_decision
from edge.bundle import DECODE_WEIGHTS, TOKENIZER

pytestmark = [pytest.mark.models, pytest.mark.processes]


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """What a refused command said: one line, no traceback, nothing on standard output."""
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_choosing_offline_answers_and_says_what_it_is_worth(cascade):
    done = cascade("choose", "What a lovely day.", "--options", "positive,negative")
    assert done.returncode == 0
    assert done.stdout.strip() in ("positive", "negative")
    assert "unverified" in done.stderr
    assert "uncertified_task" in done.stderr
    assert "not calibrated" in done.stderr


def test_asking_offline_streams_and_reports_the_rate(cascade):
    done = cascade("ask", "-", "--max-tokens", "8", stdin="Say hello.")
    assert done.returncode == 0
    assert done.stdout.strip()
    assert "tokens/s" in done.stderr


def test_json_is_one_object(cascade):
    done = cascade("ask", "Say hello.", "--max-tokens", "4", "--json")
    answer = json.loads(done.stdout)
    assert done.stderr == ""
    assert answer["source"] == "device"
    assert answer["confidence"] is None
    assert answer["reasons"] == ["uncertified_task", "no_cluster"]


def test_every_reason_is_told_and_the_decision_can_be_made_again(cascade, tmp_path):
    log = tmp_path / "decisions.jsonl"
    words = ["--must-match", "[0-9]+", "--data-class", "never_leave", "--decisions", str(log)]
    words += ["--budget-day", "0", "--redact", "pii"]
    done = cascade("choose", "What a lovely day.", "--options", "good,bad", "--json", *words)
    reasons = json.loads(done.stdout)["reasons"]
    assert reasons == ["uncertified_task", "veto:must_match", "never_leave", "no_cluster",
                       "budget_day"]  # fmt: skip
    cascade("choose", "What a lovely day.", "--options", "good,bad", *words)
    first, second = map(DecisionRecord.from_bytes, log.read_bytes().splitlines())
    assert list(replay_decision(first).reasons) == reasons
    assert second.decision == first.decision


def test_an_answer_fills_in_a_form(cascade, tmp_path):
    schema = tmp_path / "age.json"
    schema.write_text(
        '{"type": "object", "properties": {"age": {"type": "integer", "maximum": 120}},'
        ' "required": ["age"], "additionalProperties": false}'
    )
    words = ["--json-schema", str(schema), "--temperature", "0.9", "--seed", "0", "--max-tokens=40"]
    one, two = (cascade("ask", "Ann is 34 years old.", *words) for _ in range(2))
    assert one.returncode == 0, one.stderr
    assert list(json.loads(one.stdout)) == ["age"]
    assert one.stdout == two.stdout
    cut = cascade("ask", "Ann is 34 years old.", "--regex", "[0-9]{9}", "--max-tokens", "4")
    assert "cut off" in cut.stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["ask", ""], 2, "prompt: is empty"),
        (["ask", "hello " * 9000], 2, "reads at most"),
        (["ask", "hi", "--max-tokens", "0"], 2, "max_tokens"),
        (["ask", "hi", "--temperature", "3"], 2, "temperature"),
        (["ask", "hi", "--top-p", "0"], 2, "top_p"),
        (["ask", "hi", "--regex", "["], 2, "regex"),
        (["ask", "hi", "--regex", "a", "--json-schema", "{}"], 2, "regex"),
        (["ask", "hi", "--json-schema", "{"], 2, "json_schema"),
        (["ask", "hi", "--json-schema", "nope.json"], 2, "nope.json"),
        (["ask", "hi", "--json-schema", '{"not": {}}'], 2, "not"),
        (["ask", "hi", "--deadline", "0"], 2, "deadline_s"),
        (["ask", "hi", "--deadline", "0.001"], 9, "allow more time"),
        (["ask", "hi", "--prefer", "cloud"], 2, "give --cloud"),
        (["choose", "hi", "--options", "yes"], 2, "at least two"),
        (["choose", "hi", "--options", "yes,yes"], 2, "twice"),
        (["choose", "hi", "--options", "yes,no", "--task", "../x"], 2, "task"),
        (["choose", "hi", "--options", "yes,no", "--bundle", "nope"], 3, "cascade bundle build"),
        (["ask", "hi", "--cloud"], 3, "cascade cluster up"),
        (["ask", "hi", "--budget-day", "-1"], 2, "money.per_day_usd"),
        (["ask", "hi", "--max-cost", "nan"], 2, "max_cost_usd"),
        (["ask", "hi", "--min-battery", "20"], 2, "min_battery"),
        (["ask", "hi", "--must-match", "["], 2, "regex"),
        (["ask", "hi", "--never-send", "NAME"], 2, "EMAIL_ADDRESS"),
        (["ask", "hi", "--max-tokens", "1", "--decisions", "/nope/log"], 2, "/nope/log"),
        (["models", "pull", "nope"], 3, "smollm2-135m-instruct-q4_1"),
        (["bundle", "build", "--model", "nope"], 3, "smollm2-135m-instruct-q4_1"),
        (["bundle", "build", "--model", "vader-sentences"], 2, "no GGUF model"),
        (["bundle", "build"], 2, "--force"),
        (["bundle", "inspect", "/nope"], 3, "/nope"),
        (["cluster", "up", "--config", "nope.yaml"], 3, "nope.yaml"),
        (["cluster", "up", "--port", "10100"], 2, "10002-19999"),
    ],
)
def test_a_mistake_gets_one_line_and_an_exit_code(cascade, words, code, message):
    done = cascade(*words)
    assert message in one_line(done)
    assert done.returncode == code
    assert done.stdout == ""


def test_a_mistake_is_machine_readable_too(cascade):
    done = cascade("choose", "hi", "--options", "yes", "--json")
    assert json.loads(done.stdout)["error"]["kind"] == "InvalidInput"


def test_options_may_begin_with_one_another(cascade):
    done = cascade("choose", "Is it?", "--options", "yes,yes please,no", "--json")
    scores = json.loads(done.stdout)
    assert scores["text"] in ("yes", "yes please", "no")


def test_a_file_of_options_is_searched_and_the_bounds_are_told(cascade, tmp_path):
    file = tmp_path / "labels.txt"
    labels = [f"{what} {how}" for what in ("card", "transfer") for how in ("lost", "late", "wrong")]
    file.write_text("\n".join(labels))
    words = ("choose", "Somebody stole my card.", "--options-file", str(file), "--mode")
    answer = json.loads(cascade(*words, "search", "--json").stdout)
    assert answer["text"] in labels
    assert answer["bounds"]["mode"] == "search"
    assert 0 < answer["bounds"]["lower"] == answer["raw_score"] <= answer["bounds"]["upper"] <= 1
    human = cascade(*words, "exact")
    assert human.stdout.strip() in labels
    assert re.search(r"scored +exact · 0\.\d\d of the set · (\d+) of \1 nodes", human.stderr)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "options-file: cannot be read (No such file or directory)"),
        (b"yes\nn\xe9e\n", "options-file: is not UTF-8 text (byte 5)"),
        (b"yes\n\n", "options: needs at least two"),
        ("\n".join(map(str, range(1001))).encode(), "options: has 1001 answers"),
    ],
)
def test_an_unusable_file_of_options_gets_one_line(cascade, tmp_path, content, message):
    file = tmp_path / "options.txt"
    if content is not None:
        file.write_bytes(content)
    done = cascade("choose", "hi", "--options-file", str(file))
    assert message in one_line(done)
    assert done.returncode == 2


@pytest.mark.parametrize("name", [DECODE_WEIGHTS, TOKENIZER])
def test_an_altered_bundle_is_refused_by_name(cascade, machine, tmp_path, name):
    copy = tmp_path / "copy"
    shutil.copytree(home.bundles_dir() / "smollm2-135m-instruct-int4", copy)
    with (copy / name).open("r+b") as file:
        file.seek(100)
        byte = file.read(1)
        file.seek(100)
        file.write(bytes([byte[0] ^ 1]))
    for words in (["bundle", "verify", str(copy)], ["ask", "hi", "--bundle", str(copy)]):
        done = cascade(*words)
        assert name in one_line(done)
        assert done.returncode == 4


def test_a_bundle_of_a_stranger_is_refused(cascade, machine, tmp_path):
    key = tmp_path / "stranger.key"
    from cascade.signing import SigningKey

    SigningKey.generate().save(key)
    made = cascade("bundle", "build", "--key", str(key), "--out", str(tmp_path / "foreign"))
    assert made.returncode == 0, made.stderr
    done = cascade("bundle", "verify", str(tmp_path / "foreign"))
    assert "unknown publisher" in one_line(done)
    assert done.returncode == 4


def test_ctrl_c_ends_an_answer_at_once(machine):
    process = subprocess.Popen(
        [sys.executable, "-m", "cascade.cli", "ask", "Count to one million.", "--max-tokens",
         "4000", "--show", "provisional"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b"interrupted" in said
    assert b"Traceback" not in said
    assert time.monotonic() - started < 10


@pytest.fixture(scope="module")
def cluster(cascade, port) -> Iterator[None]:
    done = cascade("cluster", "up", "--detach", "--port", str(port))
    assert done.returncode == 0, done.stderr
    yield
    done = cascade("cluster", "down")
    assert (done.returncode, done.stdout) == (0, "stopped\n")
    assert cascade("cluster", "status").returncode == 3


def test_the_cluster_answers_what_the_device_may_not_promise(cluster, cascade):
    done = cascade("choose", "What a lovely day.", "--options", "positive,negative", "--cloud")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "positive"
    assert "tier1 · qwen2.5-coder-0.5b-instruct-q4_k_m" in done.stderr
    assert "uncertified_task" in done.stderr


def test_the_cluster_streams_a_free_answer(cluster, cascade, port):
    done = cascade("ask", "Say hello.", "--cloud", f"127.0.0.1:{port}", "--max-tokens", "12",
                   "--json")  # fmt: skip
    answer = json.loads(done.stdout)
    assert answer["source"] == "tier1"
    assert answer["verified"]
    assert answer["bytes_up"] > 0
    assert answer["cost_usd"] > 0
    assert 0 < answer["cloud_completion_tokens"] <= 12


def test_the_cluster_fills_in_the_same_form(cluster, cascade):
    done = cascade("ask", "Name a phone number.", "--regex", r"\d{3}-\w{4}", "--cloud", "--json",
                   "--temperature", "1", "--seed", "0", "--top-k", "20")  # fmt: skip
    answer = json.loads(done.stdout)
    assert (answer["source"], answer["finish"]) == ("tier1", "stop")
    assert re.fullmatch(r"\d{3}-\w{4}", answer["text"], re.ASCII)


def test_status_shows_every_tier(cluster, cascade, port):
    done = cascade("cluster", "status")
    assert done.returncode == 0
    assert f"127.0.0.1:{port}" in done.stdout
    assert re.search(r"^tier1 +SERVING +1 ", done.stdout, re.MULTILINE)
    assert json.loads(cascade("cluster", "status", "--json").stdout)["stage"] == "ready"


def test_a_data_set_is_recorded_by_the_device_and_a_tier(cluster, cascade, tmp_path):
    data, out = tmp_path / "films.csv", tmp_path / "films.parquet"
    data.write_text("prompt,reference\nA wonderful evening.,positive\nA dull evening.,negative\n")
    words = ("--tiers", "device,tier1", "--cloud", "--options", "positive,negative")
    done = cascade("record", str(data), *words, "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
    device, tier1 = json.loads(done.stdout)["tiers"]
    assert [tier["answered"] for tier in (device, tier1)] == [2, 2]
    assert tier1["model"] == "qwen2.5-coder-0.5b-instruct-q4_k_m"
    assert [tier["graded"] for tier in (device, tier1)] == [2, 2]
    assert tier1["cost_usd"] > device["cost_usd"] == 0.0
    new = str(tmp_path / "new.parquet")
    other = cascade("record", str(data), *words, "--out", new, "--tiers", "tier7")
    assert other.returncode == 3
    assert "the cluster has no tier tier7" in one_line(other)


def test_a_second_cluster_is_refused(cluster, cascade):
    done = cascade("cluster", "up", "--detach")
    assert "cascade cluster down" in one_line(done)
    assert done.returncode == 7


def test_a_refusal_leaves_the_local_answer_and_its_own_exit_code(cluster, cascade):
    done = cascade("choose", "hi", "--options", "yes,no", "--cloud", "--tier", "tier9")
    assert done.returncode == 8
    assert "INVALID_ARGUMENT" in done.stderr
    assert "tier1" in done.stderr
    assert "unverified" in done.stderr
    assert done.stdout.strip() in ("yes", "no")


def test_a_wrong_key_is_a_mistake_with_its_own_exit_code(cluster, machine):
    done = subprocess.run(
        [sys.executable, "-m", "cascade.cli", "choose", "hi", "--options", "yes,no", "--cloud"],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"CASCADE_API_KEY": "wrong"},
    )
    assert done.returncode == 8
    assert "UNAUTHENTICATED" in done.stderr
    assert "unverified" in done.stderr


def test_a_cluster_that_is_away_leaves_the_local_answer(cluster, cascade):
    started = time.monotonic()
    done = cascade("choose", "hi", "--options", "yes,no", "--cloud", "127.0.0.1:9")
    assert done.returncode == 0
    assert "UNAVAILABLE" in done.stderr
    assert "remote_failed" in done.stderr
    assert time.monotonic() - started < 30


def test_a_file_that_is_no_profile_is_refused(cascade, tmp_path):
    path: Path = tmp_path / "profile.json"
    path.write_text("{}")
    done = cascade("ask", "hi", "--profile", str(path))
    assert str(path) in one_line(done)
    assert done.returncode == 2
