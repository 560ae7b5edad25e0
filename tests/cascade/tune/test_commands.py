"""``cascade tune`` and ``cascade replay`` as commands: from record files to a policy in use."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cascade import home
from cascade.cli import main
from cascade.draft import Drafting
from cascade.errors import InvalidInput
from cascade.ladder import LadderPolicy
from cascade.ladder.device import DeviceRung
from cascade.local import ModelInfo
from cascade.policy import Policy, PolicyStore
from cascade.records import Header, RecordSet, from_columns, load, save, split
from cascade.score_reference import ScoreReference
from cascade.signing import SigningKey, TrustStore
from cascade.task import free
from cascade.testing import TinyBundle
from cascade.tune import group_tasks
from cascade.verdicts import judge
from tests.cascade.drawn_records import BASE, OPTIONS, drawn, header
from tests.cascade.talk_records import talk

Run = Callable[..., tuple[int, str, str]]
THREE = ("device", "tier1", "tier2")


@pytest.fixture
def run(empty_home: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line in this process."""

    def run(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        stdout, stderr = capsys.readouterr()
        return code, stdout, stderr

    return run


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mood.parquet"
    save(path, drawn(3000, per_document=2))
    return path


def model(base: str = BASE) -> ModelInfo:
    return ModelInfo("tiny", base, "", "", 512)


def test_from_records_to_a_policy_that_devices_find(run: Run, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "policy.json"
    code, stdout, _ = run("tune", file, "--target", "risk=0.2", "--out", out, "--install")
    assert code == 0
    assert "risk ≤ 0.2 with 0.9 certainty" in stdout
    assert f"written     {out} · signed by" in stdout
    policy = Policy.from_bytes(out.read_bytes())
    trust = TrustStore(home.trust_dir())
    assert trust.verify(out.read_bytes(), out.with_suffix(".sig").read_bytes(), what="") == "local"
    assert PolicyStore(home.policies_dir(), trust).find("mood", model()) == policy
    assert policy.covers(OPTIONS, model())

    code, stdout, _ = run("replay", out, file, "--bootstrap", 50)
    assert code == 0
    assert "signed by local" in stdout
    assert "selective_risk ≤ 0.2: " in stdout
    for title in ("decision", "order", "calibration", "time", "use"):
        assert f"\n{title}\n" in stdout


def test_choose_judges_by_the_policy_that_was_installed(
    run: Run, tmp_path: Path, tiny: TinyBundle
) -> None:
    TrustStore(home.trust_dir()).pin("tests", tiny.key.public)
    head = header("device", "tier1", base=tiny.bundle.manifest.base_digest)
    save(tmp_path / "mood.jsonl", drawn(600, head=head))
    code, *_ = run("tune", tmp_path / "mood.jsonl", "--target", "risk=0.35", "--install")
    assert code == 0
    words = ("choose", "fine", "--options", ",".join(OPTIONS), "--bundle", tiny.path)
    _, stdout, _ = run(*words, "--json")
    assert json.loads(stdout)["reasons"][0] == "uncertified_task"
    _, stdout, _ = run(*words, "--task", "mood", "--json")
    answer = json.loads(stdout)
    assert answer["reasons"][0] in ("confident", "unsure")
    assert 0 <= answer["device_confidence"] <= 1


def test_what_is_printed_as_json(run: Run, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "policy.json"
    key = tmp_path / "own.key"
    SigningKey.generate().save(key)
    words = ("--target", "excess=0.15", "--out", out, "--key", key, "--json")
    code, stdout, stderr = run("tune", file, *words)
    assert (code, stderr) == (0, "")
    content = json.loads(stdout)
    assert (content["tier"], content["cloud_tier"], content["leaky"]) == ("device", "tier1", False)
    parts = split(load(file), {"develop": 0.3, "certify": 0.5, "test": 0.2}, seed="1")
    assert content["parts"] == {name: len(part) for name, part in parts.items()}
    (policy,) = content["policies"]
    assert policy["threshold"] == Policy.from_bytes(out.read_bytes()).threshold
    assert policy["certificate"]["promises"][0]["kind"] == "excess_error"
    assert policy["test"]["promises"][0]["interval"][0] <= policy["test"]["promises"][0]["observed"]
    assert policy["signed_by"] == SigningKey.load(key).public.key_id[:16]
    assert (policy["group"], policy["feasible"], policy["refusal"]) == (None, True, None)

    code, stdout, _ = run("replay", out, file, "--bootstrap", 40, "--json")
    content = json.loads(stdout)
    assert (code, content["signed_by"], content["n"], content["documents"]) == (0, "", 3000, 1500)
    figure = content["figures"]["handoff_to_match.tier1"]
    assert figure["unit"] == "share"
    assert figure["ci"][0] <= figure["value"] <= figure["ci"][1]
    assert content["promises"][0]["promise"]["alpha"] == 0.15
    assert len(content["reliability"]) == 10
    # Strict JSON: nothing that only Python reads.
    json.loads(stdout, parse_constant=pytest.fail)


def test_a_refusal_is_a_policy_that_escalates_and_the_exit_code_6(
    run: Run, file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "policy.json"
    code, stdout, _ = run("tune", file, "--target", "risk=0.02", "--out", out, "--json")
    assert code == 6
    (policy,) = json.loads(stdout)["policies"]
    assert (policy["feasible"], policy["threshold"]) == (False, None)
    assert "cannot certify an error of at most 0.02" in policy["refusal"]["reason"]
    assert Policy.from_bytes(out.read_bytes()).threshold is None
    code, stdout, _ = run("tune", file, "--target", "risk=0.02")
    assert code == 6
    assert "keeps nothing: everything escalates" in stdout
    assert "\nrefused     cannot certify" in stdout


def test_files_that_are_parts_give_what_splitting_gives(
    run: Run, file: Path, tmp_path: Path
) -> None:
    run("records", "split", file)
    names = [f"{part}={file.with_name(f'mood-{part}.parquet')}" for part in ("develop", "certify")]
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    assert run("tune", file, "--target", "risk=0.2", "--out", one)[0] == 0
    code, stdout, _ = run("tune", *names, "--target", "risk=0.2", "--out", two)
    assert code == 0
    assert "\ntest " not in stdout
    assert one.read_bytes() == two.read_bytes()


def test_parts_that_leak_are_refused_unless_told(run: Run, file: Path, tmp_path: Path) -> None:
    words = [f"{part}={file}" for part in ("develop", "certify")]
    code, stdout, stderr = run("tune", *words, "--target", "risk=0.2")
    assert (code, stdout) == (2, "")
    assert "develop and certify share 3000 of their inputs" in stderr
    code, stdout, _ = run("tune", *words, "--target", "risk=0.2", "--allow-leak")
    assert code == 0
    assert "LEAKY" in stdout
    assert "worth none  risk ≤ 0.2 with 0.9 certainty" in stdout
    assert "certified" not in stdout
    for aim in (
        ("--target", "risk=0.2"),
        ("--ladder", "device,tier1", "--objective", "min cost s.t. risk<=0.2"),
    ):
        code, _, stderr = run("tune", *words, *aim, "--allow-leak", "--install")
        assert code == 2
        assert "install: is not for --allow-leak" in stderr


def test_a_policy_for_each_group(run: Run, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "policy.json"
    words = ("--target", "risk=0.25", "--group", "domain", "--out", out, "--json")
    code, stdout, _ = run("tune", file, *words)
    assert code == 0
    policies = json.loads(stdout)["policies"]
    assert [policy["task"] for policy in policies] == ["mood.film", "mood.news", "mood.shop"]
    for policy in policies:
        written = Policy.from_bytes((tmp_path / f"policy-{policy['group']}.json").read_bytes())
        assert written.task.task_id == policy["task"]
        assert written.threshold == policy["threshold"]
        assert policy["test"]["n"] > 0
    # The group's own rows, by the split of all.
    test = split(load(file), {"develop": 0.3, "certify": 0.5, "test": 0.2}, seed="1")["test"]
    assert policies[0]["test"]["n"] == np.sum(np.asarray(test.group("domain")) == "film")


def test_groups_of_any_name_have_tasks_and_files(run: Run, tmp_path: Path) -> None:
    records = drawn(4000)
    kinds = [("movie review", "tweets/über")[i % 2] for i in range(4000)]
    plain = {
        name: np.asarray(records.source.numbers(f"tier.device.{name}"))
        for name in ("raw_score", "correct")
    }
    columns = {
        "id": records.ids,
        "input_sha256": records.inputs,
        **{f"tier.device.{name}": each for name, each in plain.items()},
    }
    header = dataclasses.replace(records.header, tiers=records.header.tiers[:1])
    save(tmp_path / "kinds.parquet", from_columns(header, {**columns, "group.kind": kinds}))
    out = tmp_path / "policy.json"
    words = ("tune", tmp_path / "kinds.parquet", "--group", "kind", "--out", out)
    code, stdout, _ = run(*words, "--target", "risk=0.25", "--json")
    assert code == 0
    policies = json.loads(stdout)["policies"]
    assert [each["task"] for each in policies] == ["mood.movie-review", "mood.tweets-ber"]
    assert [each["group"] for each in policies] == ["movie review", "tweets/über"]
    files = ["policy-movie-review.json", "policy-tweets-ber.json"]
    assert [Path(each["file"]).name for each in policies] == files
    assert all((tmp_path / name).exists() for name in files)
    code, _, stderr = run(*words, "--target", "risk=0.25")
    assert (code, "policy-movie-review.json is there already" in stderr) == (2, True)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (["a b", "a/b"], "group: 'a b' and 'a/b' would both be the task mood.a-b; rename one"),
        (["x" * 70], f"group: '{'x' * 70}' makes the task mood.{'x' * 70}, longer than 64"),
    ],
)
def test_groups_that_cannot_name_tasks_are_refused(values: list[str], problem: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(problem)):
        group_tasks("mood", values)


def test_a_ladder_is_installed_where_devices_look(run: Run, tmp_path: Path) -> None:
    file, out = tmp_path / "three.parquet", tmp_path / "ladder.json"
    save(file, drawn(4000, tiers=THREE))
    words = ("tune", file, "--ladder", ",".join(THREE), "--install", "--out", out, "--force")
    code, stdout, _ = run(*words, "--objective", "min cost s.t. risk<=0.1")
    assert code == 0
    store = PolicyStore(home.policies_dir(), TrustStore(home.trust_dir()))
    found = store.find("mood", model())
    assert isinstance(found, DeviceRung)
    assert found.to_bytes() == out.read_bytes()
    assert found.covers(OPTIONS, model())
    assert found.threshold == found.ladder.ladder.thresholds[0]
    (installed,) = (line for line in stdout.splitlines() if line.startswith("installed"))
    assert Path(installed.split()[1]).read_bytes() == out.read_bytes()

    # Where everything goes to the last tier, no device takes part, and what was there stays.
    code, stdout, _ = run(*words, "--objective", "min cost s.t. risk<=0.001")
    assert code == 6
    assert "not installed: the ladder begins with tier2" in stdout
    assert store.find("mood", model()) == found
    code, stdout, _ = run(*words, "--objective", "min cost s.t. risk<=0.001", "--json")
    assert json.loads(stdout)["installed"] is None


def test_a_ladder_is_searched_signed_and_replayed(run: Run, tmp_path: Path) -> None:
    file, out = tmp_path / "three.parquet", tmp_path / "ladder.json"
    save(file, drawn(4000, tiers=THREE))
    words = ("--ladder", ",".join(THREE), "--objective", "min cost s.t. risk<=0.1", "--out", out)
    code, stdout, _ = run("tune", file, *words)
    assert code == 0
    for line in ("searched ", "wanted      min cost s.t. risk<=0.1", "chosen ", "test "):
        assert f"\n{line}" in stdout
    code, stdout, _ = run("tune", file, *words, "--force", "--json")
    content = json.loads(stdout, parse_constant=pytest.fail)
    policy = LadderPolicy.from_bytes(out.read_bytes())
    assert content["ladder"] == policy.ladder.to_json()
    assert content["certificate"]["bounds"][0]["observed"] <= 0.1
    accuracies = [each["figures"]["accuracy"] for each in content["front"]]
    assert accuracies == sorted(accuracies)
    low, high = content["test_accuracy_ci"]
    assert low < content["test"]["accuracy"] < high

    code, _, stderr = run("report", file, "--policy", out, "--out", tmp_path / "page")
    assert code == 2
    assert "is a ladder, and a report is of two sides; cascade replay follows it" in stderr
    code, stdout, _ = run("replay", out, file, "--bootstrap", 40)
    assert code == 0
    assert "signed by local" in stdout
    _, stdout, _ = run("replay", out, file, "--bootstrap", 40, "--json")
    figures = json.loads(stdout)["figures"]
    assert sum(figures[f"answered.{tier}"]["value"] for tier in THREE) == pytest.approx(1)
    assert figures["accuracy"]["ci"][0] < figures["accuracy"]["value"]

    code, stdout, _ = run("tune", file, *words[:2], "--objective", "min cost s.t. risk<=0.001")
    assert code == 6
    assert "everything goes to tier2" in stdout
    other = tmp_path / "other.parquet"
    save(other, drawn(100))
    code, _, stderr = run("replay", out, other)
    assert code == 6
    assert "the records have (no such tier)" in stderr


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "target: is missing; say what is to hold, e.g. --target risk=0.1"),
        (["--target", "risk"], "target: 'risk' is not NAME=ALPHA"),
        (["--target", "speed=1"], "names are risk, excess, net, escalation, cost, deadline"),
        (["--target", "risk=low"], "target: 'risk=low' has no number after ="),
        (["--target", "risk=1.5"], "alpha: 1.5 is not between 0 and 1"),
        (["--target", "risk=0.1", "--target", "risk=0.2"], "targets: has two of one kind"),
        (["--target", "risk=0.2", "--delta", "0"], "delta: 0.0 is not between 0 and 1"),
        (["--target", "cost=0.001"], "most-usd: is missing"),
        (["--target", "deadline=0.1"], "deadline-s: is missing"),
        (["--target", "risk=0.2", "--tier", "tier9"], "no tier 'tier9'; there are device, tier1"),
        (["--target", "risk=0.2", "--tier", "tier1"], "no row can be used: tier1 has no raw score"),
        (["--target", "risk=0.2", "--group", "language"], "no group 'language'; there are domain"),
        (["--target", "risk=0.2", "--split", "develop=0.5"], "split: names no part certify"),
        (["--target", "risk=0.2", "--split", "a=0.5"], "split: names 'a'; the parts are develop"),
        (["--target", "risk=0.2", "--split", "develop"], "split: 'develop' is not NAME=SHARE"),
        (["--target", "risk=0.2", "--task", "a/b"], "task: must be 1 to 64 characters"),
        (["--target", "risk=0.2", "--key", "none.key", "--install"], "no signing key at"),
        (["more.parquet", "--target", "risk=0.2"], "records: give one file, or develop=FILE"),
        (["--objective", "min cost s.t. risk<=0.1"], "objective: is for ladders"),
        (["--ladder", "device,tier1"], "objective: is missing"),
        (
            ["--ladder", "device", "--objective", "min cost s.t. risk<=0.1"],
            "ladder: needs two or more different tiers",
        ),
        (
            ["--ladder", "device,tier1", "--objective", "x", "--target", "risk=0.1"],
            "target: is not for ladders",
        ),
        (
            [
                *("--ladder", "device,tier1", "--objective", "min cost s.t. risk<=0.3"),
                *("--install", "--task", "a/b"),
            ],
            "task: must be 1 to 64 characters",
        ),
    ],
)
def test_a_mistake_is_said_in_one_line(
    run: Run, file: Path, words: list[str], problem: str
) -> None:
    code, stdout, stderr = run("tune", file, *words)
    assert code in (2, 3)
    assert stdout == ""
    assert problem in stderr
    assert stderr.count("\n") == 1


def without(head: Header, **changes: object) -> RecordSet:
    return drawn(200, head=dataclasses.replace(head, **changes))


def test_records_to_which_no_policy_can_be_bound_are_refused(run: Run, tmp_path: Path) -> None:
    head = header("device", "tier1")
    for name, records, problem in (
        ("unworded", without(head, wording=None), "have options but no wording of them"),
        ("nobody", without(header("device", "tier1", base="")), "do not say which model device"),
        ("nameless", without(head, task_id=""), "task: is not named by the records; give --task"),
    ):
        save(tmp_path / f"{name}.jsonl", records)
        code, _, stderr = run("tune", tmp_path / f"{name}.jsonl", "--target", "risk=0.2")
        assert code == 2
        assert problem in stderr
    code, _, stderr = run("tune", tmp_path / "none.jsonl", "--target", "risk=0.2")
    assert (code, "there is no file" in stderr) == (3, True)


def test_a_key_that_no_device_trusts_installs_nothing(run: Run, file: Path, tmp_path: Path) -> None:
    SigningKey.generate().save(tmp_path / "own.key")
    words = ("--target", "risk=0.2", "--install", "--key", tmp_path / "own.key")
    code, _, stderr = run("tune", file, *words)
    assert code == 4
    assert "signed by the unknown publisher" in stderr
    assert not list(home.policies_dir().glob("**/*.json"))


def test_a_cluster_that_failed_costs_no_label_where_only_the_device_is_judged(
    run: Run, tmp_path: Path
) -> None:
    records = drawn(2000)
    columns = {
        name: np.asarray(records.source.numbers(f"tier.device.{name}"))
        for name in ("raw_score", "correct")
    }
    some = from_columns(
        records.header,
        {
            "id": records.ids,
            "input_sha256": records.inputs,
            "tier.tier1.status": ["UNAVAILABLE", "OK"] * 1000,
            "tier.tier1.correct": np.where(np.arange(2000) % 2, 1.0, np.nan),
            **{f"tier.device.{name}": each for name, each in columns.items()},
        },
    )
    save(tmp_path / "half.parquet", some)
    for target, used in (("risk=0.25", 1.0), ("excess=0.25", 0.5)):
        code, stdout, _ = run("tune", tmp_path / "half.parquet", "--target", target, "--json")
        content = json.loads(stdout)
        assert code == 0
        assert content["parts"]["certify"] == pytest.approx(1000 * used, rel=0.1)
        assert content["cloud_tier"] == "tier1"
        assert content["left_out"]["test"]["tier1 gave no answer"] > 100


def test_what_is_there_is_not_replaced(run: Run, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "policy.json"
    out.write_text("mine")
    code, _, stderr = run("tune", file, "--target", "risk=0.2", "--out", out)
    assert (code, out.read_text()) == (2, "mine")
    assert "--force replaces it" in stderr


def test_a_policy_that_does_not_fit_is_replayed_only_anyway(
    run: Run, file: Path, tmp_path: Path
) -> None:
    out, other = tmp_path / "policy.json", tmp_path / "other.parquet"
    run("tune", file, "--target", "risk=0.2", "--out", out)
    save(other, drawn(300, head=header("device", "tier1", base="0c" * 32)))
    code, _, stderr = run("replay", out, other)
    assert code == 6
    assert "policy: is for the base_digest 0b0b0b0b0b0b, and device of the records had" in stderr
    assert run("replay", out, other, "--anyway", "--bootstrap", 0)[0] == 0

    out.write_bytes(out.read_bytes().replace(b'"mood"', b'"rude"'))
    code, _, stderr = run("replay", out, file)
    assert code == 4
    assert "differs from what local signed" in stderr
    out.with_suffix(".sig").unlink()
    code, stdout, _ = run("replay", out, file, "--bootstrap", 0)
    assert (code, "not signed" in stdout) == (0, True)
    code, _, stderr = run("replay", tmp_path / "none.json", file)
    assert (code, "there is no policy" in stderr) == (3, True)
    code, _, stderr = run("replay", file, file)
    assert code == 2


def test_free_answers_with_features_gain_and_an_early_stop(run: Run, tmp_path: Path) -> None:
    file, out = tmp_path / "talk.parquet", tmp_path / "policy.json"
    save(file, talk(4000, empty=100))
    words = ("--target", "risk=0.2", "--early-stop", "--gain", "--feature", "mean_logprob")
    words = (*words, "--drafting", "threshold=0.3")
    code, stdout, stderr = run("tune", file, *words, "--out", out, "--json")
    assert (code, stderr) == (0, "")
    content = json.loads(stdout, parse_constant=pytest.fail)
    assert set(content["parts"]) == {"develop", "stop", "certify", "test"}
    assert content["unmeasured"]["certify"]["mean_logprob"] > 5
    (shown,) = content["policies"]
    policy = Policy.from_bytes(out.read_bytes())
    assert policy.task == free("talk")
    assert policy.confidence.features == ("mean_logprob",)
    assert policy.gain is not None
    assert policy.early_stop is not None
    assert policy.early_stop.threshold <= policy.threshold
    assert policy.drafting == Drafting("threshold", 0.3)
    assert shown["drafting"] == policy.drafting.to_json()
    assert shown["early_stop"]["certificate"]["lost"] == 0.05
    assert 0 < shown["test"]["saved"]["saved"] < 1
    assert shown["test"]["unmeasured"] > 0
    # What the monitor compares with: what is written to its end, kept or not.
    shares = {"develop": 0.2, "stop": 0.3, "certify": 0.3, "test": 0.2}
    certify = split(load(file), shares, seed="1")["certify"]
    stops = judge(policy, certify, "device").stopped
    written = certify.column("device", "raw_score")[~stops]
    assert 0 < stops.sum() < len(certify)
    assert policy.scores == ScoreReference.of(written)

    code, stdout, _ = run("replay", out, file, "--bootstrap", 20, "--json")
    found = json.loads(stdout, parse_constant=pytest.fail)
    assert code == 0
    assert found["unmeasured"] == 40
    assert found["figures"]["coverage"]["value"] < 1
    assert found["early_stop"]["saved_tokens"] > 0
    lead, plain, gain = (
        found["figures"][name]["value"]
        for name in ("deferral_auc_gain_lead", "deferral_auc", "deferral_auc_by_gain")
    )
    assert lead == pytest.approx(gain - plain)


def test_what_gains_little_stays_and_is_counted_apart(run: Run, tmp_path: Path) -> None:
    file, out = tmp_path / "talk.parquet", tmp_path / "policy.json"
    save(file, talk(4000))
    code, _, stderr = run("tune", file, "--target", "risk=0.2", "--min-gain", 0.3, "--out", out)
    assert (code, stderr) == (0, "")
    assert Policy.from_bytes(out.read_bytes()).min_gain == 0.3
    code, stdout, _ = run("replay", out, file, "--bootstrap", 20, "--json")
    found = json.loads(stdout, parse_constant=pytest.fail)
    assert code == 0
    shares = [found["figures"][name]["value"] for name in ("coverage", "unverified", "escalated")]
    assert sum(shares) == pytest.approx(1)
    assert shares[1] == found["unverified"] / found["n"] > 0


def test_confidences_are_compared_on_develop_alone(run: Run, tmp_path: Path) -> None:
    records = talk(500)
    one, two = tmp_path / "one.parquet", tmp_path / "two.parquet"
    save(one, records)
    parts = split(records, {"develop": 0.3, "certify": 0.5, "test": 0.2}, seed="1")
    save(two, parts["develop"])
    code, whole, _ = run("tune", one, "--compare", "--feature", "log_tokens", "--json")
    assert code == 0
    code, alone, _ = run("tune", f"develop={two}", "--compare", "--feature", "log_tokens", "--json")
    assert code == 0
    assert json.loads(whole, parse_constant=pytest.fail) == json.loads(alone)
    names = [each["name"] for each in json.loads(whole)["compared"]]
    assert names[0] == "score (the default)"
    assert "--feature log_tokens" in names


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--confidence", "sklearn.svm.SVC"], "neither score, features nor an estimator that can"),
        (["--confidence", "sklearn.tree.RandomForestClassifier"], "sklearn.ensemble.RandomForest"),
        (
            ["--confidence", "RandomForestClassifier", "--params", "[1]"],
            "params: is no JSON object",
        ),
        (["--confidence", "RandomForestClassifier", "--params", '{"n": 1}'], "has no 'n'; it has"),
        (["--params", "{}"], "params: are an estimator's"),
        (["--confidence", "score", "--feature", "log_tokens"], "feature: is for --confidence"),
        (["--feature", "nonsense"], "features: 'nonsense' is not known"),
        (["--feature", "top2_margin"], "no row has a value of top2_margin"),
        (["--min-gain", "2"], "min-gain: 2.0 is not between -1 and 1"),
        (["--early-stop"], "early-stop: is for free text"),
        (["--early-stop", "--min-gain", "0.1"], "min-gain: is not for --early-stop"),
        (["--early-stop", "--group", "domain"], "early-stop: is for one policy of all rows"),
        (["--split", "develop=0.3,stop=0.3,certify=0.4"], "stop, which is for --early-stop alone"),
        (["--compare"], "target: does not go with --compare"),
        (["--drafting", "lossless"], "drafting: is for free text, not for a closed set"),
        (
            ["--drafting", "threshold"],
            "drafting: 'threshold' is none of off, lossless, threshold=T",
        ),
        (["--drafting", "threshold=2"], "drafting.tolerance: 2 is not between 0 and 1"),
    ],
)
def test_what_cannot_be_fitted_is_said_in_one_line(
    run: Run, file: Path, words: list[str], problem: str
) -> None:
    code, stdout, stderr = run("tune", file, "--target", "risk=0.2", *words)
    assert (code, stdout) == (2, "")
    assert problem in stderr
    assert stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        (["--confidence", "features"], "confidence: features is not for ladders"),
        (["--gain"], "gain: is not for ladders"),
        (["--early-stop"], "early-stop: is not for ladders"),
        (["--drafting", "lossless"], "drafting: is not for ladders"),
    ],
)
def test_ladders_go_by_scores_alone(run: Run, file: Path, word: list[str], problem: str) -> None:
    words = ("--ladder", "device,tier1", "--objective", "min cost s.t. risk<=0.1")
    code, _, stderr = run("tune", file, *words, *word)
    assert code == 2
    assert problem in stderr
