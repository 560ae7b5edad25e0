"""Callers that show a certificate: required on the port, or on a second one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from cryptography import x509

from cascade.errors import InvalidInput
from cascade.wire import ClientProfile
from cloud.config import GatewayConfig
from cloud.tls import TlsPaths, ensure_local_client
from tests.cloud.access.gate import Authority, gate
from tests.ports import free_port


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.make()


@pytest.fixture
def client_ca(authority: Authority, tmp_path: Path) -> Path:
    path = tmp_path / "client-ca.pem"
    path.write_bytes(authority.pem)
    return path


async def test_a_certificate_names_its_caller(
    tls: TlsPaths, tmp_path: Path, authority: Authority, client_ca: Path
) -> None:
    async with gate(tls, tmp_path, tls={"client_ca": client_ca}) as gated:
        profile = gated.profile("", **authority.issue("box-7"))
        assert await gated.ask(profile) == "box-7 by mtls"
        assert (gated.records[0].caller, gated.records[0].auth) == ("box-7", "mtls")
        # A key says more exactly who it is, and a wrong one is not made up for.
        assert await gated.ask(dataclasses.replace(profile, api_key="a-key-for-tests")) == (
            "tests by api_key"
        )
        wrong = await gated.refused(dataclasses.replace(profile, api_key="wrong"))
        assert wrong.status == "UNAUTHENTICATED"


async def test_the_name_may_stand_in_the_alternative_names(
    tls: TlsPaths, tmp_path: Path, authority: Authority, client_ca: Path
) -> None:
    spiffe = x509.UniformResourceIdentifier("spiffe://test/box/7")
    async with gate(tls, tmp_path, tls={"client_ca": client_ca, "client_name": "san"}) as gated:
        profile = gated.profile("", **authority.issue("ignored", san=[spiffe]))
        assert await gated.ask(profile) == "spiffe://test/box/7 by mtls"
        nameless = await gated.refused(gated.profile("", **authority.issue("ignored")))
        assert (nameless.status, "alternative name" in nameless.message) == (
            "UNAUTHENTICATED",
            True,
        )


async def test_without_a_good_certificate_there_is_no_connection(
    tls: TlsPaths, tmp_path: Path, authority: Authority, client_ca: Path
) -> None:
    async with gate(tls, tmp_path, tls={"client_ca": client_ca}) as gated:
        for profile in (
            gated.profile(),  # a good key alone
            gated.profile(**Authority.make().issue("box")),
            gated.profile(**authority.issue("box", ends_in_s=-60)),
        ):
            assert (await gated.refused(profile)).status == "UNAVAILABLE"
        assert gated.records == []


async def test_certificates_can_have_a_port_of_their_own(
    tls: TlsPaths, tmp_path: Path, authority: Authority, client_ca: Path
) -> None:
    port = free_port()
    given = {"client_ca": client_ca, "client_port": port}
    async with gate(tls, tmp_path, tls=given) as gated:
        assert await gated.ask() == "tests by api_key"
        profile = dataclasses.replace(
            gated.profile("", **authority.issue("box")), address=f"127.0.0.1:{port}"
        )
        assert await gated.ask(profile) == "box by mtls"
        # On the other port nobody looks at certificates, so one is no credential there.
        elsewhere = dataclasses.replace(profile, address=gated.address)
        refused = await gated.refused(elsewhere)
        assert (refused.status, "shows no credential" in refused.message) == (
            "UNAUTHENTICATED",
            True,
        )


async def test_this_machines_own_authority_counts_too(
    tls: TlsPaths, tmp_path: Path, client_ca: Path
) -> None:
    certificate, key = ensure_local_client(tls.ca.parent, "local")
    own = {"certificate_pem": certificate.read_bytes(), "key_pem": key.read_bytes()}
    async with gate(tls, tmp_path, tls={"client_ca": client_ca}) as gated:
        assert await gated.ask(gated.profile("", **own)) == "local by mtls"
    again, _ = ensure_local_client(tls.ca.parent, "local")
    assert again.read_bytes() == own["certificate_pem"]


def test_a_profile_carries_a_certificate_and_keeps_it_private(
    authority: Authority, tmp_path: Path
) -> None:
    profile = ClientProfile("127.0.0.1:7443", b"ca", "", **authority.issue("box"))
    profile.save(tmp_path / "client.json")
    assert ClientProfile.load(tmp_path / "client.json") == profile
    assert "PRIVATE" not in repr(profile)
    with pytest.raises(InvalidInput, match="key_pem"):
        dataclasses.replace(profile, key_pem=None)


@pytest.mark.parametrize(
    ("tls", "problem"),
    [
        ({"client_port": 7444}, "client_port needs client_ca"),
        ({"client_port": 7443, "client_ca": "x"}, "client_port must differ"),
        ({"client_port": 10500, "client_ca": "x"}, "client_port must differ"),
    ],
)
def test_ports_that_cannot_be_are_refused(tls: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        GatewayConfig.model_validate({"tls": tls})
