"""The behaviour gate on a real engine: what passes, what does not, and what says nothing."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cascade.errors import CascadeError, InvalidInput
from cascade.policy import Policy
from cascade.testing.tiny import TinyBundle
from cloud.federation.database import Database
from cloud.federation.gate import comparing
from cloud.federation.gate.config import CheckConfig, GateConfig
from cloud.federation.gate.evaluation import Examination, Findings, examine
from cloud.federation.gate.gate import BehaviourGate
from cloud.federation.gate.judgements import of
from cloud.federation.gate.planned import explained, gate_problems
from cloud.federation.gate.rows import read_rows
from cloud.federation.rounds import Round
from cloud.federation.schema import migrate
from tests.cloud.federation.gated import Gated


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory, tiny: TinyBundle) -> Gated:
    return Gated.made(tmp_path_factory.mktemp("gated"), tiny)


def said(findings: Findings) -> dict[str, bool]:
    return {each.what: each.passed for each in findings.findings}


def test_an_adapter_that_changes_next_to_nothing_passes_with_a_policy_of_its_own(gated) -> None:
    candidate = gated.candidate(1e-4)
    found = examine(gated.examination(candidate))
    assert found.passed, found.why
    assert set(said(found)) == {
        "accuracy",
        "Brier score",
        "calibration error",
        "certificate",
        "out of scope",
    }
    (data,) = found.policies
    policy = Policy.from_bytes(data)
    assert policy.adapter_digest == candidate
    assert policy.base_digest == gated.tiny.bundle.manifest.base_digest
    assert policy.certificate is not None
    assert policy.certificate.n == 160
    assert Findings.from_bytes(found.to_bytes()) == found


def test_an_adapter_that_answers_otherwise_is_rejected_with_the_number(gated) -> None:
    found = examine(gated.examination(gated.candidate(3.0, version=3)))
    assert not found.passed
    assert not said(found)["accuracy"]
    (accuracy,) = (each for each in found.findings if each.what == "accuracy")
    assert accuracy.reference == pytest.approx(0.9, abs=0.02)
    assert accuracy.value < 0.8
    assert "worse by" in found.why


def test_a_head_is_examined_as_devices_would_run_it(gated) -> None:
    found = examine(gated.examination(gated.head(0.0)))
    assert found.passed, found.why
    (data,) = found.policies
    assert Policy.from_bytes(data).threshold is not None
    worse = examine(gated.examination(gated.head(5.0, version=3)))
    assert not said(worse)["accuracy"], worse.why


def test_rows_are_asked_once_however_often_an_adapter_is_examined(gated, monkeypatch) -> None:
    candidate = gated.candidate(1e-4)
    before = examine(gated.examination(candidate))
    from edge import OnnxModel

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("was asked again")

    monkeypatch.setattr(OnnxModel, "choose", refuse)
    assert examine(gated.examination(candidate)) == before


def test_canaries_must_and_must_not(gated, tmp_path) -> None:
    canaries = tmp_path / "canaries.jsonl"
    rows = [
        {"id": "colour", "prompt": "a", "options": ["red", "blue"], "must": ["a-colour"]},
        {"id": "rude", "prompt": "a", "options": ["red", "blue"], "must_not": ["a-colour"]},
        {"id": "polite", "prompt": "a", "max_tokens": 4, "must": ["polite"]},
    ]
    canaries.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = gated.config.model_copy(
        update={
            "canaries": canaries,
            "checks": {
                "a-colour": CheckConfig(regex="red|blue"),
                "polite": CheckConfig(forbids=("you fool", "idiot")),
            },
        }
    )
    examination = dataclasses.replace(gated.examination(gated.first), config=config)
    found = examine(examination)
    assert [each.what for each in found.findings] == ["canaries"], "nothing else was asked"
    assert found.findings[0].reason == "1 of 3 failed: rude"
    lenient = config.model_copy(update={"most_failed": 0.4})
    assert said(examine(dataclasses.replace(examination, config=lenient)))["canaries"]


def test_an_adapter_of_another_base_or_shape_is_no_candidate(gated, tmp_path) -> None:
    from cloud.federation.adapters import Adapters

    adapters = Adapters(gated.registry, gated.key)
    start = adapters.read(gated.first)
    name = sorted(start.tensors)[0]
    wide = {name: np.zeros((3, start.tensors[name].shape[1]), np.float32)}
    bad = adapters.publish(start, wide, version=9, name="misshapen")
    found = examine(gated.examination(bad))
    assert (found.passed, said(found)) == (False, {"fit": False})


def test_no_row_is_in_two_files(gated, tmp_path) -> None:
    task = gated.config.tasks[0]
    shared = tmp_path / "certify.jsonl"
    first = json.loads(task.held_out.read_text().splitlines()[0])
    shared.write_text(json.dumps({**first, "prompt": first["prompt"].upper() + "!"}) + "\n")
    config = gated.config.model_copy(
        update={"tasks": (task.model_copy(update={"certify": shared}),)}
    )
    with pytest.raises(InvalidInput, match=r"certify: shares the text of .* with held_out"):
        read_rows(config)


def test_what_a_policy_needs_and_cannot_have_is_a_reason(gated) -> None:
    """A risk that no threshold holds: nobody has a policy, so nothing is taken away."""
    task = gated.config.tasks[0].model_copy(update={"risk": 1e-4})
    config = gated.config.model_copy(update={"tasks": (task,)})
    examination = dataclasses.replace(gated.examination(gated.first), config=config)
    found = examine(examination)
    assert said(found)["certificate"]
    assert Policy.from_bytes(found.policies[0]).threshold is None, "all of it escalates"


def test_what_devices_answer_today_is_not_taken_away() -> None:
    def found(kept: float | None, other: float | None) -> comparing.Finding:
        return comparing.certified(
            kept, "too few labels", other, most_less_kept=0.02, task="t", against="first"
        )

    assert not found(None, 0.4).passed
    assert "too few labels" in found(None, 0.4).reason
    assert found(None, None).passed
    assert found(0.1, None).passed
    assert found(0.38, 0.4).passed
    assert not found(0.379, 0.4).passed
    assert "37.9% of the certify rows are kept, 40.0% before" in found(0.379, 0.4).reason


def test_accuracy_is_shown_not_assumed() -> None:
    def found(rows: int, worse: int, better: int = 0) -> comparing.Finding:
        mine, theirs = np.ones(rows, np.bool_), np.ones(rows, np.bool_)
        mine[:worse], theirs[rows - better :] = False, False
        return comparing.accuracy(
            mine, theirs, most_worse=0.02, delta=0.05, task="t", against="first"
        )

    needed = comparing.rows_needed(0.02, 0.05)
    assert found(needed, 0).passed
    assert not found(needed - 1, 0).passed
    assert f"about {needed} rows" in found(50, 0).reason
    assert found(2000, 10).passed
    assert not found(2000, 40).passed
    assert "worse by 4.0 points" in found(1000, 40).reason


def test_a_worse_adapter_seldom_passes() -> None:
    """At the margin itself the test lets through about delta, over 2,000 draws."""
    draw = np.random.default_rng(0)
    rows, passed = 600, 0
    for _ in range(2000):
        kind = draw.random(rows)
        theirs, mine = kind < 0.88, (kind >= 0.05) & (kind < 0.91)
        passed += comparing.accuracy(
            mine, theirs, most_worse=0.02, delta=0.05, task="t", against=""
        ).passed
    assert passed / 2000 < 0.07


async def judged(gate: BehaviourGate, candidate: Round) -> tuple[str, str]:
    async with asyncio.timeout(120):
        while True:
            verdict, why = await gate.judge(candidate)
            if verdict != "undecided" or "is being examined" not in why:
                return verdict, why
            await asyncio.sleep(0.01)


def waiting(gated: Gated, candidate: str) -> Round:
    return Round(
        number=1,
        state="waiting",
        base_digest=gated.tiny.bundle.manifest.base_digest,
        adapter_digest=gated.first,
        adapter_version=1,
        plan="",
        opened_at=0.0,
        closes_at=None,
        closed_at=0.0,
        claim=None,
        claimed_until=None,
        counted=3,
        candidate_digest=candidate,
        candidate_version=2,
        aggregation_error=None,
        note="",
    )


def a_gate(gated: Gated, database: Database, examiner: Any, **given: Any) -> BehaviourGate:
    return BehaviourGate(
        given.pop("config", gated.config),
        database,
        gated.registry,
        gated.key,
        first=gated.first,
        folder=gated.folder / "gate",
        trust=gated.folder / "trust",
        examiner=examiner,
        **given,
    )


async def in_a_thread(examination: Examination) -> Findings:
    return await asyncio.to_thread(examine, examination)


async def test_a_judgement_outlives_the_gate_and_its_policy_is_in_the_registry(
    gated, tmp_path
) -> None:
    database = Database(tmp_path / "rounds.sqlite3")
    try:
        await database.do(migrate)
        candidate = gated.candidate(1e-4)
        gate = a_gate(gated, database, in_a_thread)
        assert await gate.judge(waiting(gated, candidate)) == ("undecided", "is being examined")
        verdict, why = await judged(gate, waiting(gated, candidate))
        assert verdict == "approved", why
        kept = await database.do(lambda tx: of(tx, candidate))
        assert kept is not None
        (digest,) = kept.policies
        published = gated.registry.artifact(digest)
        assert published.artifact.adapter_digest == candidate

        async def never(_: Examination) -> Findings:
            raise AssertionError("was examined again")

        again = a_gate(gated, database, never)
        assert await again.judge(waiting(gated, candidate)) == (verdict, why)
    finally:
        database.close()


async def test_a_crash_a_time_out_and_unusable_data_leave_a_candidate_undecided(
    gated, tmp_path
) -> None:
    database = Database(tmp_path / "rounds.sqlite3")
    try:
        await database.do(migrate)
        candidate = waiting(gated, gated.candidate(1e-4))

        async def crashes(_: Examination) -> Findings:
            raise RuntimeError("worker died")

        async def hangs(_: Examination) -> Findings:
            await asyncio.Event().wait()
            raise AssertionError

        async def unusable(_: Examination) -> Findings:
            raise CascadeError("there is no file held_out.jsonl")

        clock = [0.0]
        brief: GateConfig = gated.config.model_copy(update={"timeout_s": 0.05, "attempts": 2})
        for examiner, reason in (
            (crashes, "crashed: RuntimeError: worker died"),
            (hangs, "took longer than 0.05 s"),
            (unusable, "there is no file held_out.jsonl"),
        ):
            gate = a_gate(gated, database, examiner, config=brief, now=lambda: clock[0])
            verdict, why = await judged(gate, candidate)
            assert verdict == "undecided"
            assert reason in why
            assert "1 of 2" in why
            assert (await gate.judge(candidate))[1] == why, "not at once again"
            clock[0] += 100.0
            verdict, why = await judged(gate, candidate)
            assert verdict == "undecided"
            assert "2 of 2" in why
            assert "operator" in why
            clock[0] += 1000.0
            assert (await gate.judge(candidate))[1] == why, "never again by itself"
    finally:
        database.close()


def test_forbidden_words_are_whole_words(tmp_path: Path) -> None:
    check = CheckConfig(forbids=("Ass", "you fool")).check()
    assert check("A class of asses")
    assert not check("what an ass!")
    assert not check("You,  FOOL.")
    listed = tmp_path / "words.txt"
    listed.write_text("idiot\n\nyou fool\n")
    assert not CheckConfig(forbids_file=listed).check()("idiot")
    with pytest.raises(InvalidInput, match="no words"):
        CheckConfig(forbids=()).check()


def test_the_check_of_a_configuration_says_what_can_never_work(gated, tmp_path) -> None:
    base = gated.tiny.bundle.manifest.base_digest
    assert list(gate_problems(gated.config, gated.registry, base)) == []
    told = "\n".join(explained(gated.config))
    assert "not worse by 2 points on 480 rows (266 are the fewest" in told
    assert "120 + 160 rows" in told
    (foreign,) = gate_problems(gated.config, gated.registry, "c" * 64)
    assert "another base" in foreign
    task = gated.config.tasks[0]
    few = tmp_path / "few.jsonl"
    few.write_text("".join(task.held_out.read_text().splitlines(keepends=True)[:100]))
    short = gated.config.model_copy(
        update={
            "tasks": (task.model_copy(update={"held_out": few}),),
            "bundle": "d" * 64,
            "checks": {"polite": CheckConfig(forbids_file=tmp_path / "none.txt")},
        }
    )
    problems = list(gate_problems(short, gated.registry, base))
    assert any("there is no file" in problem for problem in problems)
    assert any("no artifact" in problem for problem in problems)
    small = short.model_copy(update={"checks": {}})
    (rows, _) = gate_problems(small, gated.registry, base)
    assert "100 held-out rows of colours can never show" in rows
