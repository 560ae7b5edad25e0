"""Suites: data sets as they are and perturbed, by every tier; and the matrix of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade import home, testing
from cascade.cli import main
from cascade.cli.suite import read_suite
from cascade.errors import InvalidInput, NotFound
from cascade.metrics import auroc, deferral_curve, ece, paired_difference
from cascade.records import Outcome, Record, RecordSet, input_sha256, load
from cascade.records.matrix import CLEAN, cascade_cell, cells
from cascade.records.perturb import PERTURBATIONS, no_punctuation, perturbation, typos, uppercase
from cascade.signing import TrustStore
from cascade.testing import Script, TinyBundle
from cloud.engines import ChatRequest
from tests.cascade.records import drawn


@pytest.mark.parametrize("name", PERTURBATIONS)
@given(text=st.text(), seed=st.text(max_size=3))
def test_a_perturbation_is_the_same_every_time(name: str, text: str, seed: str) -> None:
    assert perturbation(name)(text, seed) == perturbation(name)(text, seed)


@given(st.lists(st.text("abcdefgh", min_size=1, max_size=9), min_size=1, max_size=12))
def test_typos_are_small_and_inside_of_words(words: list[str]) -> None:
    changed = typos(" ".join(words), "1").split(" ")
    assert len(changed) == len(words)
    wrong = [(one, two) for one, two in zip(words, changed, strict=True) if one != two]
    for one, two in wrong:
        assert len(one) >= 4
        assert abs(len(one) - len(two)) <= 1
        assert (one[0], one[-1]) == (two[0], two[-1])
    assert bool(wrong) or not any(len(word) >= 4 for word in words)


def test_what_perturbations_do() -> None:
    assert typos("It is 1234 ok?", "1") == "It is 1234 ok?"
    assert typos("wonderful evening", "1") != typos("wonderful evening", "2")
    assert uppercase("Straße!", "1") == "STRASSE!"
    assert no_punctuation("Well, it's 4_5... fine!", "1") == "Well it s 4 5 fine"
    assert no_punctuation("?!", "1") == "?!"
    with pytest.raises(InvalidInput, match="'typo' is not known; known are typos, uppercase"):
        perturbation("typo")


def made(scores: list[float], device: list[float], tier1: list[float | None]) -> RecordSet:
    return RecordSet.of(
        drawn.header(),
        [
            Record(
                f"r{i}",
                f"r{i}",
                input_sha256(str(i)),
                {
                    "device": Outcome(raw_score=score, correct=one),
                    "tier1": Outcome(correct=two, latency_s=1.0),
                },
            )
            for i, (score, one, two) in enumerate(zip(scores, device, tier1, strict=True))
        ],
    )


def test_cells_are_the_metrics_of_their_records() -> None:
    clean = made([0.9, 0.8, 0.6, 0.3], [1, 1, 0, 0], [1, 1, 1, None])
    bad = made([0.9, 0.7, 0.6, 0.2], [1, 0, 0, 1], [0, 1, 1, 1])
    (device, tier1), (device_bad, tier1_bad) = (
        cells("s", variant, records, clean) for variant, records in ((CLEAN, clean), ("typos", bad))
    )
    assert (device.auroc, device.change) == (1.0, None)
    assert device.ece == ece([0.9, 0.8, 0.6, 0.3], [1, 1, 0, 0])
    assert (tier1.auroc, tier1.ece) == (None, None)
    assert device_bad.auroc == auroc([0.9, 0.7, 0.6, 0.2], [1, 0, 0, 1])
    assert device_bad.change == paired_difference([1, 0, 0, 1], [1, 1, 0, 0])
    # Only the rows that are graded in both.
    assert tier1_bad.change == paired_difference([0, 1, 1], [1, 1, 1])
    assert tier1.summary.graded == 3

    cell = cascade_cell("s", CLEAN, clean)
    assert cell is not None
    curve = deferral_curve([0.9, 0.8, 0.6], [1, 1, 0], [1, 1, 1])
    assert (cell.n, cell.normalised_auc) == (3, curve.normalised_auc)
    assert (cell.best_accuracy, cell.best_share) == (1.0, pytest.approx(1 / 3))
    nothing = made([0.5], [1], [None])
    assert cascade_cell("s", CLEAN, nothing) is None


SUITE = """
tiers: [device, tier1]
scenarios:
  - name: mood
    data: mood.csv
    options: [good, bad]
    variants: [typos, "column:other words"]
  - name: sums
    data: sums.jsonl
    grader: numeric
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "suite.yaml").write_text(SUITE)
    (tmp_path / "mood.csv").write_text(
        "prompt,reference,other words\n"
        "What a wonderful day.,good,Great day!\n"
        "What a terrible night.,bad,Such a night!\n"
    )
    (tmp_path / "sums.jsonl").write_text('{"prompt": "2 + 2?", "reference": 4}\n')
    return tmp_path


def test_a_suite_is_recorded_once_and_printed_as_a_matrix(
    folder: Path, empty_home: Path, tiny: TinyBundle, capsys: pytest.CaptureFixture[str]
) -> None:
    TrustStore(home.trust_dir()).pin("tests", tiny.key.public)

    def answer(request: ChatRequest) -> str:
        if not request.options:
            return "It is 4."
        return "good" if "wonderful" in request.messages[-1].content else "bad"

    with testing.cluster({"tier1": Script(answer)}) as cluster:
        cluster.profile.save(folder / "client.json")
        words = ["suite", str(folder / "suite.yaml"), "--out", str(folder / "out")]
        words += ["--profile", str(folder / "client.json"), "--bundle", str(tiny.path)]
        words += ["--max-tokens", "4"]
        assert main(words) == 0
        table = capsys.readouterr().out
        assert len(cluster.asked("tier1")) == 2 * 3 + 1
        assert main([*words, "--json"]) == 0
        assert len(cluster.asked("tier1")) == 2 * 3 + 1
    content = json.loads(capsys.readouterr().out)
    accuracy = {
        (cell["scenario"], cell["variant"]): cell["summary"]["accuracy"]
        for cell in content["tiers"]
        if cell["summary"]["name"] == "tier1"
    }
    assert accuracy[("mood", "clean")] == 1.0
    # It goes by one word, which the paraphrase does not have.
    assert accuracy[("mood", "column:other words")] == 0.5
    assert accuracy[("sums", "clean")] == 1.0
    assert {cell["scenario"] for cell in content["cascade"]} == {"mood", "sums"}
    assert table.count("\nmood") == 3 * 2
    assert "raw scores, which are not confidences" in table
    names = {path.name for path in (folder / "out").iterdir()}
    assert names == {
        "mood.jsonl",
        "mood+typos.jsonl",
        "mood+column-other-words.jsonl",
        "sums.jsonl",
    }
    clean, perturbed = (load(folder / "out" / f"mood{x}.jsonl") for x in ("", "+typos"))
    assert clean.ids == perturbed.ids
    assert not set(clean.inputs) & set(perturbed.inputs)
    np.testing.assert_array_equal(clean.correct("tier1"), [1, 1])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("tiers: [device, tier1]", "tier: [a]", r"suite\.yaml\.tiers: is missing"),
        ("tiers: [device, tier1]", "tiers: device", r"tiers: must be a list of strings"),
        ("grader: numeric", "graders: numeric", r"scenarios\[1\]\.graders: is not a known field"),
        ("name: sums", "name: mood", "scenarios: two are called 'mood'"),
        ("name: sums", "name: ../sums", "name: must be letters, digits"),
        ("[typos,", "[typo,", "variants: 'typo' is not known"),
        ("[typos,", "[typos, typos,", "variants: names typos twice"),
        ("[good, bad]", '["a, b", c]', "options: have a comma"),
        ("tiers:", "tiers: {", "is no YAML"),
    ],
)
def test_a_bad_suite_is_refused_by_field(folder: Path, old: str, new: str, message: str) -> None:
    (folder / "suite.yaml").write_text(SUITE.replace(old, new))
    with pytest.raises(InvalidInput, match=message):
        read_suite(folder / "suite.yaml")


def test_a_suite_names_scenarios(folder: Path) -> None:
    (folder / "suite.yaml").write_text("tiers: [device]\nscenarios: []\n")
    with pytest.raises(InvalidInput, match="must be a list of at least one scenario"):
        read_suite(folder / "suite.yaml")
    with pytest.raises(NotFound, match="there is no file"):
        read_suite(folder / "nope.yaml")
