"""``--audit``: one command, one answer, and the audit of it before the command ends."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from cascade import testing
from cascade.cli import main
from cascade.task import free
from cascade.testing import Script

OPTIONS = ("good", "bad")


@pytest.fixture
def machine(empty_home):
    """A home with a bundle, its publisher's key, and a policy that keeps every answer."""
    tiny = testing.tiny_bundle(empty_home)
    tiny.install_policy("topics", OPTIONS, threshold=0.0)
    return tiny


@pytest.fixture
def cloud(machine, tmp_path):
    """Words that name bundle and cluster; the cluster says "good" to everything."""
    with testing.cluster({"tier1": Script("good")}) as cluster:
        cluster.profile.save(tmp_path / "profile.json")
        yield ["--bundle", str(machine.path), "--profile", str(tmp_path / "profile.json")]


def status(capsys):
    capsys.readouterr()
    assert main(["monitor", "status", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_kept_answer_is_audited_before_the_command_ends(cloud, capsys):
    words = ["choose", "What a day.", "--options", "good,bad", "--task", "topics", *cloud]
    answers = []
    for _ in range(3):
        assert main([*words, "--json", "--audit", "1", "--tier-error", "0.02"]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert {answer["source"] for answer in answers} == {"device"}
    (row,) = status(capsys)
    wrong = sum(answer["text"] != "good" for answer in answers)
    assert (row["task"], row["audits"], row["errors"], row["lost"]) == ("topics", 3, wrong, 0)
    assert row["tier_error"] == 0.02
    assert main([*words, "--json"]) == 0
    (row,) = status(capsys)
    assert row["audits"] == 3  # without the option nothing is audited


def test_free_text_is_audited_by_a_grader(machine, cloud, capsys):
    kept = machine.install_policy("topics", OPTIONS, threshold=0.0)
    machine.policies.install(replace(kept, task=free("notes")), machine.key)
    words = ["ask", "What a day.", "--task", "notes", "--max-tokens", "4", *cloud, "--json"]
    words += ["--audit", "1", "--tier-error", "0.1"]
    for grader, audits, errors in (
        ([], 0, 0),  # nobody can compare them
        (["--grader", "exact"], 1, 1),
        (["--grader", "regex:[a-z]"], 2, 1),
        (["--grader", "python:tests.cascade.monitor.test_opinion:half"], 2, 1),
    ):
        assert main([*words, *grader]) == 0
        (row,) = status(capsys)
        assert (row["audits"], row["errors"]) == (audits, errors), grader
    assert row["lost"] == 1


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--audit", "1", "--tier-error", "0"], "task"),
        (["--task", "topics", "--audit", "1"], "tier-error"),
        (["--task", "topics", "--audit", "2", "--tier-error", "0"], "share"),
        (["--task", "topics", "--tier-error", "0"], "audit"),
        (["--task", "topics", "--grader", "exact"], "audit"),
        (["--task", "t", "--audit", "1", "--tier-error", "0", "--grader", "choice"], "grader"),
    ],
)
def test_mistakes_are_named(cloud, capsys, words, named):
    assert main(["choose", "What a day.", "--options", "good,bad", *cloud, *words]) != 0
    assert f"{named}: " in capsys.readouterr().err


def test_an_audit_without_anybody_to_ask_is_refused(machine, capsys):
    words = ["choose", "What a day.", "--options", "good,bad", "--bundle", str(machine.path)]
    words += ["--task", "topics", "--audit", "1", "--tier-error", "0"]
    assert main(words) != 0
    assert "cloud: is missing" in capsys.readouterr().err
