"""Peers on the same records: what is compared is what it says, and the test part fits nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.decision import answers
from benchmarks.decision.peers import keeping, table
from benchmarks.decision.peers.cascadeflow import (
    ESTIMATORS,
    PEER,
    PREFIX,
    Cascadeflow,
    drafts,
)
from benchmarks.decision.peers.paired import compare
from benchmarks.decision.peers.parts import parts_of
from benchmarks.decision.peers.ranking import (
    OURS,
    Scores,
    bounds,
    gain,
    of_signals,
    other_ours,
    ours,
)
from benchmarks.decision.peers.text_gates import WINS, fit, text_gates
from benchmarks.peers import PeerUnavailable
from benchmarks.rows import read_rows
from benchmarks.run import Run
from cascade.cli.demo.setting import SENTENCES
from cascade.errors import InvalidInput
from cascade.files import sha256_bytes
from cascade.metrics import auroc, deferral_curve
from cascade.records import Header, Outcome, Record, RecordSet, TierInfo, input_sha256, save
from tests.benchmarks.drawn_task import drawn_parts, drawn_records

ROOT = Path(__file__).parents[2]
RUN = Run(quick=True, hardware="a test")


@pytest.fixture(scope="module")
def parts():
    return drawn_parts(800)


@pytest.fixture(scope="module")
def gates(parts):
    return text_gates(parts)


def test_parts_share_no_document_and_have_every_row(parts):
    documents = [set(p.rows.records.documents) for p in (parts.develop, parts.certify, parts.test)]
    assert (
        not documents[0] & documents[1] | documents[0] & documents[2] | documents[1] & documents[2]
    )
    assert sum(len(p.rows) for p in (parts.develop, parts.certify, parts.test)) == 800
    both = [*parts.certify.rows.records.ids, *parts.test.rows.records.ids]
    assert parts.held.rows.records.ids == both
    scores = ours(parts)
    assert (scores.held == np.concatenate([scores.certify, scores.test])).all()


def test_values_and_paired_differences_are_those_of_the_metrics(parts):
    test = parts.test
    scores = {OURS: ours(parts).test, "noise": np.random.default_rng(3).random(len(test.rows))}
    found = compare(test.rows, scores, OURS, replicates=400)
    right, cloud = test.rows.correct, test.rows.cloud_correct
    both = {name: auroc(each, right) for name, each in scores.items()}
    curves = {name: deferral_curve(each, right, cloud) for name, each in scores.items()}
    assert found["AUROC", "noise"].value.value == pytest.approx(both["noise"])
    assert found["AUROC", "noise"].difference.value == pytest.approx(both[OURS] - both["noise"])
    assert found["deferral AUC", "noise"].difference.value == pytest.approx(
        curves[OURS].normalised_auc - curves["noise"].normalised_auc
    )
    # The reference: documents drawn one resample at a time, figures on rows that really repeat.
    documents = test.rows.documents()
    members = [np.flatnonzero(documents == d) for d in range(documents.max() + 1)]
    rng, differences = np.random.default_rng(9), []
    for _ in range(400):
        rows = np.concatenate([members[d] for d in rng.integers(0, len(members), len(members))])
        first, second = (auroc(each[rows], right[rows]) for each in scores.values())
        differences.append(first - second)
    low, high = np.quantile(differences, [0.025, 0.975])
    interval = found["AUROC", "noise"].difference
    # Two Monte Carlo quantiles of 400 draws differ by about a fifth of the standard error.
    assert interval.low == pytest.approx(low, abs=0.5 * np.std(differences))
    assert interval.high == pytest.approx(high, abs=0.5 * np.std(differences))


def test_pairing_sees_a_difference_that_intervals_of_each_hide(parts):
    """The same score with a few rows spoilt: surely worse, though both intervals overlap."""
    mine = ours(parts).test
    spoilt, rng = mine.copy(), np.random.default_rng(5)
    some = rng.choice(len(mine), len(mine) // 8, replace=False)
    spoilt[some] = 1 - spoilt[some]
    found = compare(parts.test.rows, {OURS: mine, "spoilt": spoilt}, OURS, replicates=400)
    one, other = found["AUROC", OURS].value, found["AUROC", "spoilt"].value
    assert other.high > one.low
    assert found["AUROC", "spoilt"].verdict == "win"


def test_a_verdict_is_a_tie_with_oneself_and_a_loss_against_the_truth(parts):
    scores = {OURS: ours(parts).test, "same": ours(parts).test}
    scores["truth"] = bounds(parts)["oracle of who is right"].test
    found = compare(parts.test.rows, scores, OURS, replicates=100)
    assert found["AUROC", "same"].difference.value == 0
    assert found["AUROC", "same"].verdict == "tie"
    assert found["AUROC", "truth"].verdict == "loss"


def test_bounds_are_chance_and_perfection(parts):
    limits = {name: each.test for name, each in bounds(parts).items()}
    found = compare(parts.test.rows, {OURS: ours(parts).test, **limits}, OURS, replicates=0)
    assert found["AUROC", "random"].value.value == pytest.approx(0.5)
    assert found["deferral AUC", "random"].value.value == pytest.approx(0, abs=1e-12)
    assert found["AUROC", "oracle of who is right"].value.value == 1
    helps = found["deferral AUC", "oracle of where escalating helps"]
    assert helps.value.value == pytest.approx(1)


def test_signals_rank_as_their_thresholds_would(parts):
    scores, test = of_signals(parts), parts.test.rows
    lowest = test.records.column("device", "min_logprob")
    assert (np.argsort(scores["lowest log probability"].test) == np.argsort(lowest)).all()
    entropy = test.records.column("device", "mean_entropy")
    assert scores["mean entropy"].test == pytest.approx(np.exp(-entropy))


def test_a_text_gate_learns_what_the_texts_tell(parts, gates):
    right = parts.test.rows.correct
    assert auroc(gates["TF-IDF gate, P(device right)"].test, right) > 0.7
    assert auroc(gates[WINS].test, right) > 0.7


def test_a_text_gate_learns_nothing_where_texts_tell_nothing(parts):
    def without(part):
        words = (text.replace("easy", "").replace("hard", "") for text in part.inputs)
        return replace(part, inputs=tuple(words))

    gate = fit(without(parts.develop), parts.develop.rows.correct)
    scores = gate(without(parts.test).inputs)
    assert auroc(scores, parts.test.rows.correct) == pytest.approx(0.5, abs=0.1)


def test_text_gates_of_a_strong_model_that_is_always_right_agree(parts, gates):
    """P(strong wins) is then P(device wrong), and so is the gain."""
    right, gains = gates["TF-IDF gate, P(device right)"].test, gates["TF-IDF gate, gain"].test
    assert gates[WINS].test == pytest.approx(right, abs=1e-6)
    assert gains == pytest.approx(right / 2, abs=1e-12)
    assert set(np.unique(gain(parts.test))) == {0.0, 1.0}


def test_rankings_do_not_look_at_the_test_labels(parts, gates):
    rows = parts.test.rows
    other = replace(parts, test=replace(parts.test, rows=replace(rows, correct=~rows.correct)))
    made = {OURS: ours(parts), **other_ours(parts), **of_signals(parts), **gates}
    again = {
        OURS: ours(other),
        **other_ours(other),
        **of_signals(other),
        **text_gates(other),
    }
    for name, scores in made.items():
        assert (again[name].test == scores.test).all(), name


def test_cascadeflow_gets_the_drafts_as_they_were(parts):
    test, records = parts.test, parts.test.rows.records
    given = drafts(test)
    row = records[7]
    device = row.outcomes["device"]
    assert given[7]["input"] == test.inputs[7]
    assert given[7]["prompt"] == (f"{test.inputs[7]}\n\nAnswer with one of: positive, negative.")
    assert given[7]["answer"] == device.answer
    assert given[7]["logprobs"] == [float(each) for each in device.signals.logprobs]
    assert given[7]["finish"] == "stop"
    assert set(given[7]) == {"prompt", "input", "answer", "logprobs", "finish"}  # no label


def test_a_share_rule_keeps_its_share(parts, gates):
    kept = keeping.Kept.of(keeping.by_call_share(gates[WINS], 0.5), parts.test)
    assert kept.coverage == pytest.approx(0.5, abs=0.1)
    low, high = kept.coverage_interval
    assert low < kept.coverage < high


def test_certified_and_naive_thresholds_are_those_of_the_product(parts):
    scores = ours(parts)
    naive = keeping.Kept.of(keeping.naive(parts, scores, 0.2), parts.test)
    certified = keeping.Kept.of(keeping.certified(parts, scores, 0.2), parts.test)
    assert certified.coverage <= naive.coverage
    never = keeping.Kept.of(keeping.certified(parts, scores, 0.001), parts.test)
    assert (never.accepted, never.risk, never.risk_interval) == (0, None, None)
    assert never.keeps(0.001)
    wrong = keeping.Kept(100, 10, 3)
    assert wrong.risk == 0.3
    assert not wrong.keeps(0.2)
    assert wrong.keeps(0.3)


def all_accepting(parts, say):
    """A cascadeflow that is sure of everything."""
    sizes = [len(p.rows) for p in (parts.develop, parts.certify, parts.test)]
    scores = {PREFIX + name: Scores(*(np.full(size, 0.9) for size in sizes)) for name in ESTIMATORS}
    return Cascadeflow(scores, np.ones(sizes[2], np.bool_), np.zeros(sizes[2], np.bool_))


def test_rows_say_what_they_are_and_the_tally_adds_up(parts):
    tally = table.Tally()
    rows = {row.figure: row for row in table.of_task(parts, RUN, tally, all_accepting)}
    rows |= {row.figure: row for row in table.of_tally(tally, RUN)}
    mine = rows["AUROC, drawn, ours"]
    theirs = rows[f"AUROC, drawn, {PREFIX}estimator"]
    over = rows[f"AUROC, drawn, ours minus {PREFIX}estimator"]
    assert theirs.value == pytest.approx(0.5)
    assert over.value == pytest.approx(mine.value - theirs.value)
    assert (mine.peer, theirs.peer) == (None, PEER)
    counts = [
        rows[f"{word} of ours against {PREFIX}estimator"] for word in ("wins", "ties", "losses")
    ]
    assert sum(row.value for row in counts) == counts[0].n == 2
    assert (counts[2].reach, counts[2].sense, counts[2].reached) == (0, "<=", True)
    by_gain = [
        rows[f"{word} of ours, expected gain against {PREFIX}estimator"].value
        for word in ("wins", "ties", "losses")
    ]
    assert sum(by_gain) == 1
    accepting = rows[f"selective risk, drawn, {PREFIX}accept or reject"]
    assert accepting.value == pytest.approx(1 - parts.test.rows.correct.mean())
    assert rows[f"coverage, drawn, {PREFIX}accept or reject"].value == 1
    kept = rows[f"risk targets kept on the test part, {PREFIX}accept or reject"]
    assert (kept.value, kept.n) == (0, 2)
    assert len({row.figure for row in rows.values()}) == len(rows)


def test_an_absent_cascadeflow_is_a_row_without_a_value_that_says_why(parts):
    def absent(parts, say):
        raise PeerUnavailable("no index can be reached")

    tally = table.Tally()
    rows = [*table.of_task(parts, RUN, tally, absent), *table.of_tally(tally, RUN)]
    missing = [row for row in rows if row.value is None]
    assert [(row.peer, row.how, row.reach) for row in missing] == [
        (PEER, "no index can be reached", 0)
    ]
    assert any(row.figure == f"AUROC, drawn, ours minus {WINS}" for row in rows)


def test_texts_or_answers_that_are_missing_are_named():
    records, texts = drawn_records(60)
    with pytest.raises(InvalidInput, match="text: is missing for"):
        parts_of("drawn", records, {}, texts)


def test_free_answers_come_from_beside_the_records_and_are_held_against_their_hashes(tmp_path):
    def records(outcomes):
        header = Header(tiers=(TierInfo("device", "small", "device"),))
        rows = [Record(each, each, input_sha256(each), {"device": o}) for each, o in outcomes]
        return RecordSet.of(header, rows)

    hashed = Outcome(answer_sha256=sha256_bytes(b"It is Oslo."))
    recorded = records([("closed", Outcome(answer="yes")), ("free", hashed)])
    save(tmp_path / "told.jsonl", records([("free", Outcome(answer="It is Oslo."))]))
    file = tmp_path / "free.json"
    assert answers.main([str(tmp_path / "told.jsonl"), str(file)]) == 0
    free = answers.free_answers(file)
    assert answers.device_answers(recorded, free) == {"closed": "yes", "free": "It is Oslo."}
    for wrong in ({}, {"free": "It is Bergen."}):
        with pytest.raises(InvalidInput, match="another than was recorded, for 'free'"):
            answers.device_answers(recorded, wrong)
    assert answers.free_answers(tmp_path / "none.json") == {}
    assert answers.main([str(tmp_path / "nothing.jsonl"), str(file)]) == 1


@pytest.mark.models
def test_a_quick_run_of_the_group_writes_rows(model_path, tmp_path):
    home = tmp_path / "home"
    (home / "models").mkdir(parents=True)
    sentences = model_path(SENTENCES)
    (home / "models" / sentences.name).symlink_to(sentences)
    file = tmp_path / "rows.json"
    words = ["--quick", "--only", "peers", "--json", str(file)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.decision", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "CASCADE_HOME": str(home)},
    )
    assert done.returncode == 0, done.stderr
    rows = {row.figure: row for row in read_rows(file)}
    assert 0.5 < rows["AUROC, sentiment, ours"].value < 1
    over = rows["AUROC, sentiment, ours minus random"]
    assert over.ci[0] < over.value < over.ci[1]
    absent = rows[f"losses of ours against {PREFIX}best estimator"]
    assert (absent.value, absent.peer) == (None, PEER)
    assert "left out of quick runs" in absent.how
