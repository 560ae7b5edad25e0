"""A line for each call, and one for many refusals."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from cascade.wire import CallRecord
from cloud.request_log import RequestLog


def answered(request_id: str) -> CallRecord:
    return CallRecord(request_id, "phone", "mood", "OK", "", 0.5, "tier1", auth="api_key")


def refused(caller: str, seconds: float = 0.001) -> CallRecord:
    problem = "tier1 has no room in its queue"
    return CallRecord(
        "", caller, "", "RESOURCE_EXHAUSTED", problem, seconds, trace_id="ab", auth="api_key"
    )


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_refusals_of_one_caller_become_two_lines_that_count_them_all(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    log = RequestLog(path, gathered_s=0.05)
    for number in range(100):
        log(refused("phone", seconds=0.001 * number))
    log(refused("watch"))
    log(answered("r1"))
    first, other, whole = lines(path)
    assert (first["caller"], first["trace_id"]) == ("phone", "ab")
    assert "calls" not in first
    assert other["caller"] == "watch"
    assert whole["request_id"] == "r1"
    while len(lines(path)) < 4:
        await asyncio.sleep(0.01)
    gathered = lines(path)[-1]
    assert (gathered["calls"], gathered["caller"], gathered["status"]) == (
        99,
        "phone",
        "RESOURCE_EXHAUSTED",
    )
    assert gathered["seconds"] == 0.099
    assert gathered["trace_id"] == ""
    log(refused("phone"))  # later ones begin anew
    assert len(lines(path)) == 5
    log.flush()
    assert len(lines(path)) == 5


async def test_what_is_gathered_is_written_before_the_end(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    log = RequestLog(path, gathered_s=60.0)
    for _ in range(3):
        log(refused("phone"))
    log.flush()
    assert [line.get("calls") for line in lines(path)] == [None, 2]


async def test_a_used_up_quota_and_a_call_that_was_read_have_lines_of_their_own(
    tmp_path: Path,
) -> None:
    path = tmp_path / "requests.jsonl"
    log = RequestLog(path, gathered_s=60.0)
    over = CallRecord(
        "r1", "phone", "", "RESOURCE_EXHAUSTED", "too many", 0.1, quota="tokens_per_day"
    )
    for _ in range(3):
        log(over)
    assert [line["quota"] for line in lines(path)] == ["tokens_per_day"] * 3


async def test_a_file_that_another_gateway_put_aside_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    log = RequestLog(path)
    log(answered("r1"))
    path.rename(tmp_path / "requests.jsonl.1")
    log(answered("r2"))
    path.unlink()
    log(answered("r3"))
    assert [line["request_id"] for line in lines(path)] == ["r3"]
    assert [line["request_id"] for line in lines(tmp_path / "requests.jsonl.1")] == ["r1"]


async def test_a_file_that_is_full_of_several_gateways_lines_is_put_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloud.request_log._LOG_BYTES", 2000)
    path = tmp_path / "requests.jsonl"
    log = RequestLog(path)
    log(answered("r1"))
    with path.open("a") as another:
        another.write(json.dumps({"request_id": "another's", "why": "x" * 1900}) + "\n")
    log(answered("r2"))
    log(answered("r3"))
    kept = lines(tmp_path / "requests.jsonl.1")
    assert [line["request_id"] for line in kept] == ["r1", "another's"]
    assert [line["request_id"] for line in lines(path)] == ["r2", "r3"]
