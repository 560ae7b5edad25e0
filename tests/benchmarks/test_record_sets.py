"""The shipped record sets hold what they promise, and no text of anybody else."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest

from benchmarks.decision.pools import of_records, recorded
from benchmarks.decision.shipped import FOLDER, NAMES, records
from cascade.errors import NotFound
from cascade.pair import pair
from cascade.records import LISTS, NUMBERS, check_disjoint, split
from tests.cascade.drawn_records import drawn

CLOSED = ("sentiment", "commands", "commonsense")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MEASURED = (
    "latency_s",
    "prompt_tokens",
    "completion_tokens",
    "bytes_up",
    "bytes_down",
    "cost_usd",
)
_SUMMARY = [name for name in NUMBERS if name.startswith(("mean", "min", "max", "q25", "first"))]


def test_every_file_in_the_folder_is_a_named_set() -> None:
    # free_answers.parquet is early_stop's: answers of the device alone.
    files = {path.stem for path in FOLDER.glob("*.parquet")} - {"free_answers"}
    assert files == set(NAMES)
    with pytest.raises(NotFound, match="no record set is called 'other'; there are sentiment"):
        records("other")


@pytest.mark.parametrize("name", NAMES)
def test_a_set_is_small_and_names_who_answered(name: str) -> None:
    assert os.path.getsize(FOLDER / f"{name}.parquet") < 4 * 2**20
    header = records(name).header
    device, tier1 = header.tiers
    assert (device.name, device.kind) == ("device", "device")
    assert (tier1.name, tier1.kind) == ("tier1", "cloud")
    assert device.model == "smollm2-135m-instruct-int4"
    assert _DIGEST.fullmatch(device.bundle_digest)
    assert _DIGEST.fullmatch(device.base_digest)
    assert tier1.model == "qwen2.5-coder-0.5b-instruct-q4_k_m"
    assert _DIGEST.fullmatch(header.data_sha256)
    assert header.task_id == name
    assert header.description
    assert header.licence
    assert header.grader


@pytest.mark.parametrize("name", NAMES)
def test_a_set_holds_no_text_but_ids_groups_and_shared_options(name: str) -> None:
    found = records(name)
    allowed = {"", *found.header.options}
    for record in found:
        assert record.text is None
        assert not record.options
        assert record.reference is None or record.reference in found.header.options
        for outcome in record.outcomes.values():
            assert (outcome.answer or "") in allowed
            assert (outcome.answer is None) == (outcome.answer_sha256 is not None)
    # Ids, documents and groups are short names, not sentences.
    names = {*found.ids, *found.documents, *(g for n in found.group_names for g in found.group(n))}
    assert max(map(len, names)) <= 40


@pytest.mark.parametrize("name", NAMES)
def test_no_input_is_there_twice_and_parts_share_nothing(name: str) -> None:
    found = records(name)
    assert len(set(found.inputs)) == len(found) >= 80
    parts = split(found, {"develop": 0.3, "certify": 0.5, "test": 0.2}, seed="1")
    check_disjoint(parts)
    assert sum(map(len, parts.values())) == len(found)


@pytest.mark.parametrize("name", NAMES)
def test_every_signal_is_there(name: str) -> None:
    found = records(name)
    for tier in found.tiers:
        answered = found.answered(tier)
        assert answered.mean() > 0.99
        for field in ("correct", *_MEASURED):
            assert np.isfinite(found.column(tier, field)[answered]).all(), field
        assert set(found.correct(tier)[answered]) == {0.0, 1.0}
    answered = found.answered("device")
    for field in ("raw_score", *_SUMMARY):
        assert np.isfinite(found.column("device", field)[answered]).all(), field
    tokens = np.diff(found.lists("device", "token_logprobs").offsets)
    assert (tokens[answered] > 0).all()
    options = {
        field: np.diff(found.lists("device", field).offsets)[answered]
        for field in LISTS
        if field.startswith("option")
    }
    for field, lengths in options.items():
        assert (lengths == len(found.header.options)).all(), field
    modes = set(np.array(found.texts("device", "option_mode"))[answered])
    assert modes == ({"exact"} if name in CLOSED else {""})


def test_a_pool_has_no_row_that_its_confidence_was_fitted_on() -> None:
    whole = drawn(400, per_document=2)
    pool = of_records("drawn", whole)
    parts = split(whole, {"develop": 0.3, "pool": 0.7}, seed="pools")
    check_disjoint(parts)
    rest = pair(parts["pool"], alone=True)
    assert pool.correct.tolist() == rest.correct.tolist()
    # Platt's map keeps the order of the scores.
    assert np.argsort(pool.confidence).tolist() == np.argsort(rest.score).tolist()


def test_every_shipped_set_is_a_pool() -> None:
    pools = recorded()
    assert [pool.name for pool in pools] == [f"{name} records" for name in NAMES]
    for pool, name in zip(pools, NAMES, strict=True):
        assert 0.6 * len(records(name)) < len(pool.confidence) < 0.8 * len(records(name))
