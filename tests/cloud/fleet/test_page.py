"""What a simulation says of itself to people."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cascade.confidence import ConfidenceModel, Platt
from cloud.fleet import Attackers, FleetPlan, FleetResult, Partition
from cloud.fleet.figures import figures
from cloud.fleet.page import html_page, summary
from cloud.fleet.referee import Standing
from cloud.fleet.served import ServedPolicy

PLAN = FleetPlan(devices=4, rounds=1, starting=12, partition=Partition("dirichlet", 0.3))


def result(plan: FleetPlan, *thresholds: float | None) -> FleetResult:
    """Of rounds with these thresholds."""
    rounds = []
    for number, threshold in enumerate(thresholds):
        policy = ServedPolicy(ConfidenceModel(Platt(1.0, 0.0)), threshold)
        standing = Standing(
            policy, np.ones(8, bool), 0.8, 0.5, 0.5, 50, 2, 50, 0.02, 0.9, 0.9, None
        )
        rounds.append(figures(number, standing, served=(1, "a" * 64)))
    parts = {"develop": 20, "test": 30, "fleet": 100, "starting": plan.starting}
    return FleetResult(plan.to_json(), "data", ("tiny", "b" * 64), parts, (2, 3), rounds, True, "")


def test_the_summary_claims_no_certificate_that_there_is_not() -> None:
    what = "for at most 10 % wrong among the answers kept"
    assert f", at thresholds certified {what}." in summary(result(PLAN, 0.7, 0.8))
    assert f"after the last: no threshold could be certified {what}." in summary(
        result(PLAN, None, None)
    )
    assert f"certified (none could be in round 0, 1) {what}." in summary(
        result(PLAN, None, None, 0.8)
    )
    first = summary(result(replace(PLAN, recertify=False), 0.7, 0.7))
    assert f", at the first threshold certified {what}." in first


def test_the_summary_says_for_how_long_the_rows_last() -> None:
    enough, short = result(PLAN, 0.7, 0.8, 0.8), result(PLAN, 0.7, 0.8, 0.8, 0.8)
    assert "have rows" not in summary(enough)
    said = "Devices have rows for 2 to 3 of the 3 rounds, and see nothing new after that."
    assert said in summary(short)
    assert "rows for 2 of the 3 rounds" in summary(replace(short, lasting=(2, 2)))


def test_the_page_is_about_this_run() -> None:
    page = html_page(result(PLAN, 0.7, 0.8))
    assert "Round 0 is before the first round, of an adapter that was trained on 12" in page
    assert "Six line charts" in page
    assert "<em>Wrong of kept</em> is the share of wrong answers" in page
    assert "<dt>partition</dt><dd>dirichlet:0.3</dd>" in page
    assert "<dt>recertify</dt><dd>yes</dd>" in page
    assert "layers 4, trained b" in page
    for never in ("None", "{", "attackers", "delta 1e-05"):
        assert never not in page[page.index("What was run") :]
    excess = replace(PLAN, target="excess", starting=0, attackers=Attackers(0.25, "nan"))
    page = html_page(result(excess, 0.7, 0.8))
    assert "Wrong of kept" not in page
    assert "<em>Only teacher right</em> is the share of all test rows" in page
    assert "Round 0 is before the first round." in page
    assert "<dt>attackers</dt><dd>0.25:nan</dd>" in page
