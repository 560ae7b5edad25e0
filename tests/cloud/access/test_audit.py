"""What goes to a provider is on the disk before it goes; what stays is not recorded."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from cascade import testing
from cascade.errors import RemoteError
from cascade.remote import DeviceReport, Finished, Transfer
from cascade.request import Constraints, Message, Request
from cascade.testing import Cluster, Fault, Script
from cascade.wire import GrpcRemote
from cloud.accounting import provider_host
from cloud.audit import AuditFile
from cloud.config import ClusterConfig
from tests.cloud.access.workers import write_many

SECRET = "my secret question"


def config(file: Path, **audit: object) -> ClusterConfig:
    """An open model below a provider's."""
    provider = {"base_url": "https://api.example.test:8443/v1", "api_key_env": "KEY"}
    price = {"input_usd_per_million_tokens": 10.0, "output_usd_per_million_tokens": 100.0}
    tiers = [
        {"name": "own", "model": "a/m.gguf"},
        {
            "name": "theirs",
            "engine": "openai",
            "model": "big-1",
            "provider": provider,
            "price": price,
        },
    ]
    return ClusterConfig.model_validate(
        {"gateway": {"audit": {"file": file, **audit}}, "tiers": tiers}
    )


def ask(cluster: Cluster, *tiers: str, calls: int = 1) -> Finished:
    async def once() -> Finished:
        remote = GrpcRemote(cluster.profile)
        allowed = frozenset(tiers or {"theirs"})
        limits = Constraints(allowed_tiers=allowed, max_remote_calls=calls)
        request = Request((Message("user", SECRET),), constraints=limits)
        try:
            events = remote.answer(
                request, DeviceReport(0.25), deadline_s=10.0, transfer=Transfer()
            )
            *_, last = [event async for event in events]
            assert isinstance(last, Finished)
            return last
        finally:
            await remote.close()

    return asyncio.run(once())


def tiers(theirs: Script | None = None) -> dict[str, Script]:
    return {"own": Script("mine"), "theirs": theirs or Script("their secret answer")}


def entries(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_call_to_a_provider_is_recorded_without_its_text(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    with testing.cluster(tiers(), config=config(file)) as cluster:
        ask(cluster, "own")
        assert not file.exists()
        done = ask(cluster)
    sent, ended = entries(file)
    record = cluster.records[-1]
    assert sent["event"] == "sent"
    assert ended["event"] == "ended"
    assert sent["call"] == ended["call"]
    for entry in (sent, ended):
        assert (entry["request_id"], entry["caller"], entry["auth"]) == (
            record.request_id,
            "testing",
            "api_key",
        )
        assert (entry["tier"], entry["model"], entry["host"]) == (
            "theirs",
            "big-1",
            "api.example.test",
        )
        assert entry["data_class"] == "personal"
        assert entry["reasons"] == ["own:not_allowed", "lowest_allowed_tier"]
        assert entry["device_confidence"] == 0.25
        assert entry["bytes_up"] == len(SECRET)
        assert "secret" not in json.dumps(entry)
    assert (ended["status"], ended["bytes_down"]) == ("OK", len("their secret answer"))
    assert (ended["prompt_tokens"], ended["completion_tokens"]) == (3, 3)
    assert ended["cost_usd"] == done.cost_usd == pytest.approx(330e-6)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_text_is_recorded_where_the_operator_wants_it(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    with testing.cluster(tiers(), config=config(file, text=True)) as cluster:
        ask(cluster)
    sent, ended = entries(file)
    assert sent["messages"] == [{"role": "user", "content": SECRET}]
    assert ended["answer"] == "their secret answer"
    assert "messages" not in ended


def test_it_is_on_the_disk_before_the_provider_is_asked(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    seen: list[int] = []

    def answer(_: object) -> str:
        seen.append(len(entries(file)))
        return "ok"

    with testing.cluster(tiers(Script(answer)), config=config(file)) as cluster:
        ask(cluster)
    assert seen == [1]


def test_a_call_that_fails_is_recorded_with_its_status(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    cut = Script("a b c d", fault=Fault("UNAVAILABLE", after=2))
    with testing.cluster(tiers(cut), config=config(file)) as cluster:
        with pytest.raises(RemoteError):
            ask(cluster)
        cluster.play("theirs", Script(fault=Fault("RESOURCE_EXHAUSTED")))
        with pytest.raises(RemoteError):
            ask(cluster)
    ended = [entry for entry in entries(file) if entry["event"] == "ended"]
    assert [(each["status"], each["completion_tokens"]) for each in ended] == [
        ("UNAVAILABLE", 2),
        ("RESOURCE_EXHAUSTED", 0),
    ]
    assert [each["prompt_tokens"] for each in ended] == [3, 0]


@pytest.mark.parametrize("required", [True, False])
def test_a_call_that_cannot_be_recorded(tmp_path: Path, required: bool) -> None:
    file = tmp_path / "audit.jsonl"
    file.mkdir()  # nothing can be appended to a folder
    with testing.cluster(tiers(), config=config(file, required=required)) as cluster:
        if required:
            with pytest.raises(RemoteError, match="cannot be recorded") as refusal:
                ask(cluster)
            assert refusal.value.status == "UNAVAILABLE"
            assert str(tmp_path) not in refusal.value.message
            assert cluster.asked("theirs") == ()
        else:
            assert ask(cluster).tier == "theirs"
        assert ask(cluster, "own").tier == "own"


def test_an_answer_whose_end_cannot_be_recorded_is_not_passed_on(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"

    def answer(_: object) -> str:
        file.unlink()
        file.mkdir()
        return "ok"

    given = config(file, required=True)
    with testing.cluster(tiers(Script(answer)), config=given) as cluster:
        with pytest.raises(RemoteError, match="cannot be recorded"):
            ask(cluster)
        assert cluster.records[-1].status == "UNAVAILABLE"


def test_a_full_file_is_put_aside_and_the_oldest_goes(tmp_path: Path) -> None:
    file = AuditFile(tmp_path / "a.jsonl", max_bytes=100, keep_files=2)
    for number in range(10):
        file.write({"number": number, "padding": "x" * 20})
    kept = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert kept == {"a.jsonl", "a.jsonl.1", "a.jsonl.2"}
    numbers = [
        entry["number"]
        for name in ("a.jsonl.2", "a.jsonl.1", "a.jsonl")
        for entry in entries(tmp_path / name)
    ]
    assert numbers == list(range(10))[-len(numbers) :]
    assert all((tmp_path / name).stat().st_size <= 100 for name in kept)


def test_half_a_line_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    file = AuditFile(tmp_path / "a.jsonl")
    file.write({"number": 1})
    write: Callable[[int, bytes], int] = os.write

    def full(descriptor: int, data: bytes) -> int:
        write(descriptor, data[:5])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            file.write({"number": 2})
    file.write({"number": 3})
    assert [entry["number"] for entry in entries(tmp_path / "a.jsonl")] == [1, 3]


def test_several_processes_lose_and_mix_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(write_many, [(str(path), 1), (str(path), 2)])
    found = [
        (entry["who"], entry["number"])
        for each in tmp_path.glob("a.jsonl*")
        for entry in entries(each)
    ]
    assert sorted(found) == [(who, number) for who in (1, 2) for number in range(50)]


def test_the_host_of_a_provider_is_known_without_an_address() -> None:
    def host(engine: str, **provider: str) -> str:
        tier = {"name": "t", "engine": engine, "model": "m"}
        given = {"provider": {"api_key_env": "K", **provider}} if engine != "llama_cpp" else {}
        return provider_host(ClusterConfig.model_validate({"tiers": [tier | given]}).tiers[0])

    assert host("openai") == "api.openai.com"
    assert host("anthropic") == "api.anthropic.com"
    assert host("openai", base_url="http://127.0.0.1:9/v1") == "127.0.0.1"
    assert host("llama_cpp") == ""


def test_a_hedge_to_a_provider_is_recorded_under_its_caller(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    plain = config(file).model_dump(mode="json")
    plain["tiers"][0]["hedge"] = {"to": "theirs", "least_s": 0.0}
    with testing.cluster(tiers(), config=ClusterConfig.model_validate(plain)) as cluster:
        for _ in range(6):  # until it is known how long the tier takes
            ask(cluster, "own", "theirs", calls=2)
        before = len(entries(file)) if file.exists() else 0
        cluster.play("own", Script("mine", pause_s=5.0))
        assert ask(cluster, "own", "theirs", calls=2).tier == "theirs"
    sent, ended = entries(file)[before:]
    assert (sent["caller"], ended["status"]) == ("testing", "OK")
    assert sent["request_id"] == cluster.records[-1].request_id
    assert sent["reasons"] == ["lowest_tier", "own:not_enough"]
