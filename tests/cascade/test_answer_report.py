"""What the command line says of an answer."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from cascade.cli import main
from cascade.cli.request import report
from cascade.errors import InvalidInput
from cascade.events import Answer, Latency
from cascade.policy import Reason

ANSWER = Answer(
    request_id="r",
    text="yes",
    source="tier1",
    model="large",
    confidence=None,
    raw_score=None,
    verified=True,
    reasons=(Reason.STOPPED_EARLY,),
    latency=Latency(0.5, remote_s=0.2),
    tokens=12,
    local_tokens=3,
    bytes_up=10,
    bytes_down=10,
    local_tokens_saved=6.5,
)


def told(capsys: pytest.CaptureFixture[str], answer: Answer) -> dict[str, str]:
    assert report(answer, as_json=False) == 0
    lines = capsys.readouterr().err.splitlines()
    return {line[:12].strip(): line[12:] for line in lines}


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_is_explained(capsys, reason):
    said = told(capsys, replace(ANSWER, reasons=(reason,)))["because"]
    assert said.startswith(f"{reason} (")


def test_what_stopping_early_saved_is_told(capsys):
    assert told(capsys, ANSWER)["device"] == "3 tokens decoded · about 6 saved by stopping early"
    unknown = told(capsys, replace(ANSWER, local_tokens_saved=None))
    assert unknown["device"] == "3 tokens decoded"
    assert report(ANSWER, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["local_tokens_saved"] == 6.5


def test_the_expected_gain_is_told_where_there_is_one(capsys):
    kept = replace(
        ANSWER,
        source="device",
        verified=False,
        reasons=(Reason.UNSURE, Reason.LITTLE_GAIN),
        expected_gain=-0.031,
        raw_score=0.5,
        local_tokens=12,
        local_tokens_saved=None,
    )
    said = told(capsys, kept)
    assert said["gain"] == "-0.03 expected from the next tier, in P(right)"
    assert "device" not in said
    assert "gain" not in told(capsys, ANSWER)
    assert report(kept, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["expected_gain"] == -0.031


def test_a_part_for_want_of_time_is_told_from_a_full_length(capsys):
    cut = replace(ANSWER, source="device", finish="length", verified=False, local_tokens=12)
    assert told(capsys, cut)["warning"] == "the answer is cut off where time ran out"
    long = told(capsys, replace(cut, raw_score=0.4))
    assert long["warning"] == "the answer is cut off at its greatest length (--max-tokens)"


def test_what_became_of_a_draft_is_told(capsys):
    assert "draft" not in told(capsys, ANSWER)
    kept = replace(ANSWER, draft_tokens=20, draft_kept=0)
    assert told(capsys, kept)["draft"] == "0 of 20 tokens kept"
    ignored = replace(ANSWER, draft_tokens=20, reasons=("lowest_tier", "tier1:draft_ignored"))
    said = told(capsys, ignored)
    assert said["draft"] == "20 tokens sent · no tier looked at them"
    assert "tier1:draft_ignored (it makes no use of the device's draft)" in said["because"]
    assert report(kept, as_json=True) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["draft_tokens"], printed["draft_kept"]) == (20, 0)


def test_a_draft_mode_that_is_not_known_is_refused(capsys):
    assert main(["ask", "hello", "--draft", "fast"]) == InvalidInput.exit_code
    problem = capsys.readouterr().err
    assert "draft: 'fast' is none of off, lossless, threshold=T" in problem
