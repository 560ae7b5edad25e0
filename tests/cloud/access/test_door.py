"""What every call meets at the front door, whatever its credential is."""

from __future__ import annotations

import asyncio
import json
import time
import weakref
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from cascade.cli import main
from cascade.errors import ClusterError
from cascade.wire import KeyRing
from cloud import session, startup
from cloud.access_check import access_problems
from cloud.accounting import Accounting
from cloud.config import load_config, parse_config
from cloud.errors import ConfigError
from cloud.front_door import GatewayFiles
from cloud.plan import plan_cluster
from cloud.tls import TlsPaths
from tests.cloud.access.gate import KEY, call, gate, open_message
from tests.cloud.access.issuer import Issuer, save

GOOD = (("x-api-key", KEY),)
TIERS = "tiers:\n  - {name: tier1, model: qwen2.5-coder-0.5b-instruct-q4_k_m}\n"


async def test_a_stranger_learns_nothing_about_methods(tls: TlsPaths, tmp_path: Path) -> None:
    async with gate(tls, tmp_path) as gated, gated.channel() as channel:
        unknown = channel.unary_unary("/cascade.v1.NoService/NoMethod")
        for metadata, code in (
            ((), grpc.StatusCode.UNAUTHENTICATED),
            (GOOD, grpc.StatusCode.UNIMPLEMENTED),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await unknown(b"", timeout=5.0, metadata=metadata)
            assert refused.value.code() is code


async def test_calls_that_nobody_has_picked_up_yet_are_answered_by_a_door_that_closes(
    tls: TlsPaths, tmp_path: Path
) -> None:
    async with gate(tls, tmp_path) as gated:
        credentials = grpc.ssl_channel_credentials(gated.ca_pem)
        # With threads of its own: it calls while this loop is kept busy.
        with grpc.secure_channel(gated.address, credentials) as channel:
            warm = call(channel, iter([open_message()]))
            assert (await asyncio.to_thread(list, warm))[-1].HasField("finish")
            calls = [call(channel, iter([open_message()])) for _ in range(8)]
            time.sleep(0.3)
            closing = asyncio.create_task(gated.door.close(5.0))
            for events in await asyncio.gather(*(asyncio.to_thread(list, each) for each in calls)):
                assert events[-1].HasField("finish")
            await closing


async def test_a_door_that_is_closed_holds_nothing_of_grpc(tls: TlsPaths, tmp_path: Path) -> None:
    async with gate(tls, tmp_path) as gated:
        assert await gated.ask()
        server = weakref.ref(gated.door._server)
        await gated.door.close(0.1)
        assert server() is None, "its end is a matter of this loop"
        await gated.door.close(0.1)


async def test_health_is_open_and_reflection_is_not(tls: TlsPaths, tmp_path: Path) -> None:
    async with gate(tls, tmp_path) as gated, gated.channel() as channel:
        await gated.door.set_tiers({"tier1": True})
        health = health_pb2_grpc.HealthStub(channel)
        reply = await health.Check(health_pb2.HealthCheckRequest(), timeout=5.0)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        question = reflection_pb2.ServerReflectionRequest(list_services="")

        async def names(metadata: tuple[tuple[str, str], ...]) -> list[str]:
            asked = reflection.ServerReflectionInfo(
                iter([question]), timeout=5.0, metadata=metadata
            )
            replies = [reply async for reply in asked]
            return [each.name for each in replies[0].list_services_response.service]

        assert "cascade.v1.InferenceService" in await names(GOOD)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await names(())
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_what_can_be_shown_is_named_to_who_shows_nothing(
    tls: TlsPaths, tmp_path: Path
) -> None:
    jwks = save(Issuer(), tmp_path / "jwks.json")
    given = {"issuer": "https://login.test/", "audience": "cascade", "jwks": str(jwks)}
    async with gate(tls, tmp_path, jwt=given) as gated:
        refused = await gated.refused(gated.profile(""))
        assert "a token in `authorization: Bearer` or an API key in `x-api-key`" in refused.message


@pytest.mark.usefixtures("empty_home")
def test_a_start_keeps_the_keys_of_others_and_its_own() -> None:
    path = session.api_keys_path()
    KeyRing().with_key("phone", "of-a-phone").save(path)
    key, trial = startup._api_keys(path)
    ring = KeyRing.load(path)
    assert [ring.owner(each) for each in ("of-a-phone", key, trial)] == [
        "phone",
        "local",
        "warm-up",
    ]
    # Should the start be killed, the key for its first requests ends by itself.
    assert next(each for each in ring.keys if each.name == "warm-up").expires is not None


def written(folder: Path, text: str) -> Path:
    path = folder / "cluster.yaml"
    path.write_text(text)
    return path


def test_files_about_callers_are_checked_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    (tmp_path / "jwks.json").write_text("{}")
    (tmp_path / "keys").write_text("phone in-the-clear\n")
    path = written(
        tmp_path,
        "gateway:\n  api_keys_file: keys\n  tls: {client_ca: ca.pem}\n"
        "  jwt: {issuer: i, audience: a, jwks: jwks.json}\n" + TIERS,
    )
    problems = list(access_problems(load_config(path)))
    assert len(problems) == 3
    assert [each.split(":")[0] for each in problems] == [
        "gateway.api_keys_file",
        "gateway.tls.client_ca",
        "gateway.jwt.jwks",
    ]
    assert main(["cluster", "check", str(path), "--json"]) == ClusterError.exit_code
    planned = json.loads(capsys.readouterr().out)
    assert planned["access_problems"] == problems
    assert not planned["starts"]


@pytest.mark.parametrize(
    ("gateway", "name"),
    [
        ("{quotas: {default: {usd_per_day: 1}}}", "quotas.file"),
        ("{audit: {required: true}}", "audit.file"),
    ],
)
def test_what_has_to_be_kept_needs_a_file(tmp_path: Path, gateway: str, name: str) -> None:
    files = GatewayFiles(tmp_path / "c", tmp_path / "k", tmp_path / "keys")
    with pytest.raises(ConfigError, match=f"gateway.{name} is missing"):
        Accounting(parse_config(f"gateway: {gateway}\n{TIERS}", "f.yaml"), files)


def test_a_plan_says_who_may_call(tmp_path: Path) -> None:
    text = (
        "gateway:\n  tls: {client_ca: ca.pem, client_port: 7444}\n"
        "  jwt: {issuer: 'https://login.test/', audience: a, jwks: 'https://login.test/k'}\n"
    )
    planned = plan_cluster(parse_config(text + TIERS, "f.yaml"))
    assert planned.callers == (
        "API keys, tokens of https://login.test/, client certificates on port 7444"
    )


def test_a_typo_below_a_callers_name_is_guessed() -> None:
    text = "gateway: {quotas: {callers: {phone: {tokens_per_dya: 5}}}}\n" + TIERS
    with pytest.raises(ConfigError, match="did you mean tokens_per_day"):
        parse_config(text, "f.yaml")
