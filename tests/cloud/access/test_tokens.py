"""Tokens of an identity provider, good and bad in every way, at the real front door."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from cascade.errors import RemoteError
from cloud.access_config import JwtConfig
from cloud.errors import ConfigError
from cloud.tls import TlsPaths
from cloud.tokens import Tokens
from tests.cloud.access.gate import Gate, gate
from tests.cloud.access.issuer import ISSUER, Issuer, public_pem, rsa_entry, save


@pytest.fixture
def issuer() -> Issuer:
    return Issuer()


def config(jwks: object, **more: object) -> dict[str, object]:
    return {"issuer": ISSUER, "audience": "cascade", "jwks": str(jwks), "leeway_s": 5.0, **more}


async def show(gated: Gate, token: str, *, key: str = "") -> str:
    """Ask with a token, as a device does: from a file."""
    return await gated.ask(gated.profile(key, token_file=_file(gated, token)))


async def refusal(gated: Gate, token: str, *, key: str = "") -> RemoteError:
    refused = await gated.refused(gated.profile(key, token_file=_file(gated, token)))
    for part in token.split("."):
        assert len(part) < 8 or part not in refused.message
    return refused


def _file(gated: Gate, token: str) -> Path:
    path = gated.files.api_keys.with_name("token")
    path.write_text(token + "\n")
    return path


async def test_a_good_token_names_its_caller(tls: TlsPaths, tmp_path: Path, issuer: Issuer) -> None:
    jwks = save(issuer, tmp_path / "jwks.json")
    async with gate(tls, tmp_path, jwt=config(jwks)) as gated:
        assert await show(gated, issuer.token()) == "phone by jwt"
        assert (gated.records[0].caller, gated.records[0].auth) == ("phone", "jwt")
        assert await gated.ask() == "tests by api_key"  # keys are taken beside it
    async with gate(tls, tmp_path, jwt=config(jwks, name_claim="azp")) as gated:
        assert await show(gated, issuer.token(azp="app", aud=["x", "cascade"])) == "app by jwt"
        assert "lacks the claim azp" in (await refusal(gated, issuer.token())).message


BAD_CLAIMS = [
    ({"exp": int(time.time()) - 60}, "has expired"),
    ({"nbf": int(time.time()) + 6000}, "is not good yet"),
    ({"aud": "another"}, "is for another audience"),
    ({"aud": None}, "lacks the claim aud"),
    ({"iss": "https://evil.test/"}, "is of another issuer"),
    ({"iss": None}, "lacks the claim iss"),
    ({"exp": None}, "lacks the claim exp"),
    ({"exp": "soon"}, "cannot be read|this cluster can read"),
    ({"sub": None}, "lacks the claim sub"),
    ({"sub": ""}, "is not a name"),
    ({"sub": "a\nb"}, "is not a name"),
    ({"sub": "x" * 129}, "is not a name"),
]


@pytest.mark.parametrize(("claims", "problem"), BAD_CLAIMS)
async def test_a_token_with_a_bad_claim_is_refused(
    tls: TlsPaths, tmp_path: Path, issuer: Issuer, claims: dict[str, object], problem: str
) -> None:
    jwks = save(issuer, tmp_path / "jwks.json")
    async with gate(tls, tmp_path, jwt=config(jwks)) as gated:
        refused = await refusal(gated, issuer.token(**claims))
        assert refused.status == "UNAUTHENTICATED"
        assert any(each in refused.message for each in problem.split("|"))
        assert gated.records[0].status == "UNAUTHENTICATED"
        # A good API key beside it does not make up for it.
        assert (await refusal(gated, issuer.token(**claims), key="a-key-for-tests")).status == (
            "UNAUTHENTICATED"
        )


def _encoded(value: object) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


async def test_forged_tokens_are_refused(tls: TlsPaths, tmp_path: Path, issuer: Issuer) -> None:
    jwks = save(issuer, tmp_path / "jwks.json")
    claims, kid = issuer.claims(), issuer.key_id
    body = _encoded({"alg": "HS256", "kid": kid}) + "." + _encoded(claims)
    # With the public key as an HMAC secret: what a library that trusts `alg` would accept.
    mac = hmac.new(public_pem(issuer.key), body.encode(), hashlib.sha256).digest()
    stranger = Issuer()
    good = issuer.token()
    forged = {
        "none": _encoded({"alg": "none", "kid": kid}) + "." + _encoded(claims) + ".",
        "hmac": f"{body}.{_encoded(mac)}",
        "another key under a known id": stranger.token(),
        "unknown id": jwt.encode(claims, issuer.key, algorithm="ES256", headers={"kid": "k9"}),
        "changed": good[:-8] + ("AAAAAAAA" if good[-8:] != "AAAAAAAA" else "BBBBBBBB"),
        "no token": "hello",
        "dots": "..",
        "a list": _encoded([]) + "." + _encoded([]) + ".AAAA",
    }
    async with gate(tls, tmp_path, jwt=config(jwks)) as gated:
        for kind, token in forged.items():
            assert (await refusal(gated, token)).status == "UNAUTHENTICATED", kind
        assert await show(gated, good) == "phone by jwt"


async def test_other_schemes_are_refused(tls: TlsPaths, tmp_path: Path, issuer: Issuer) -> None:
    jwks = save(issuer, tmp_path / "jwks.json")
    async with gate(tls, tmp_path, jwt=config(jwks)) as gated:
        path = _file(gated, "a b")
        refused = await gated.refused(gated.profile("", token_file=path))
        assert "does not hold one token" in refused.message


async def test_an_algorithm_must_be_allowed_and_fit_its_key(
    tls: TlsPaths, tmp_path: Path, issuer: Issuer
) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    issuer.published["r1"] = rsa_entry(key, "r1")
    issuer.published["e1"] = rsa_entry(key, "e1", use="enc")
    issuer.published["o1"] = {"kty": "oct", "kid": "o1", "k": _encoded(b"x" * 32)}
    issuer.published["bad"] = {"kty": "RSA", "kid": "bad", "n": "?"}
    jwks = save(issuer, tmp_path / "jwks.json")

    def signed(algorithm: str, key_id: str) -> str:
        return jwt.encode(issuer.claims(), key, algorithm=algorithm, headers={"kid": key_id})

    async with gate(tls, tmp_path, jwt=config(jwks, algorithms=["RS256"])) as gated:
        assert await show(gated, signed("RS256", "r1")) == "phone by jwt"
        assert "algorithm" in (await refusal(gated, signed("PS256", "r1"))).message
        assert "algorithm" in (await refusal(gated, issuer.token())).message
        assert "does not publish" in (await refusal(gated, signed("RS256", "e1"))).message
        assert "does not publish" in (await refusal(gated, signed("RS256", "o1"))).message
        no_id = jwt.encode(issuer.claims(), key, algorithm="RS256")
        assert await show(gated, no_id) == "phone by jwt"  # one key fits


async def test_clocks_may_differ_a_little(tls: TlsPaths, tmp_path: Path, issuer: Issuer) -> None:
    jwks = save(issuer, tmp_path / "jwks.json")
    now = int(time.time())
    late, early = issuer.token(exp=now - 20), issuer.token(nbf=now + 20)
    async with gate(tls, tmp_path, jwt=config(jwks, leeway_s=60.0)) as gated:
        assert await show(gated, late) == await show(gated, early) == "phone by jwt"
    async with gate(tls, tmp_path, jwt=config(jwks, leeway_s=0.0)) as gated:
        assert (await refusal(gated, late)).status == "UNAUTHENTICATED"
        assert (await refusal(gated, early)).status == "UNAUTHENTICATED"


async def test_a_file_of_keys_is_read_again_when_it_changes(
    tls: TlsPaths, tmp_path: Path, issuer: Issuer
) -> None:
    jwks = save(issuer, tmp_path / "jwks.json")
    async with gate(tls, tmp_path, jwt=config(jwks)) as gated:
        old = issuer.token()
        issuer.published.clear()
        issuer.rotate("k2")
        assert (await refusal(gated, issuer.token())).status == "UNAUTHENTICATED"
        save(issuer, jwks)
        assert await show(gated, issuer.token()) == "phone by jwt"
        assert "does not publish" in (await refusal(gated, old)).message
        jwks.write_text("<html>")
        assert await show(gated, issuer.token()) == "phone by jwt"


async def test_an_address_is_asked_for_an_unknown_key_but_not_often(
    tls: TlsPaths, tmp_path: Path, issuer: Issuer
) -> None:
    with issuer.serving() as url:
        async with gate(tls, tmp_path, jwt=config(url, unknown_key_s=1.0)) as gated:
            assert await show(gated, issuer.token()) == "phone by jwt"
            assert await show(gated, issuer.token()) == "phone by jwt"
            assert issuer.asked == 1
            issuer.rotate("k2")
            await asyncio.sleep(1.0)
            assert await show(gated, issuer.token()) == "phone by jwt"
            assert issuer.asked == 2
            issuer.rotate("k3", publish=False)
            # Many strangers with made-up ids cause one question, if any.
            for _ in range(5):
                assert "does not publish" in (await refusal(gated, issuer.token())).message
            assert issuer.asked <= 4


async def test_an_issuer_that_is_down_locks_nobody_out_who_was_known(
    tls: TlsPaths, tmp_path: Path, issuer: Issuer
) -> None:
    with issuer.serving() as url:
        issuer.down = True
        given = config(url, unknown_key_s=1.0, keys_max_age_s=1.0)
        async with gate(tls, tmp_path, jwt=given) as gated:
            refused = await refusal(gated, issuer.token())
            assert (refused.status, refused.retry_after_s) == ("UNAVAILABLE", 1.0)
            issuer.down = False
            await asyncio.sleep(1.0)
            assert await show(gated, issuer.token()) == "phone by jwt"
            issuer.down = True
            await asyncio.sleep(1.1)
            assert await show(gated, issuer.token()) == "phone by jwt"


async def test_keys_come_from_the_configured_address_alone(
    tls: TlsPaths, tmp_path: Path, issuer: Issuer
) -> None:
    with issuer.serving() as url:
        moved = url.replace("/keys", "/moved")
        async with gate(tls, tmp_path, jwt=config(moved)) as gated:
            assert (await refusal(gated, issuer.token())).status == "UNAVAILABLE"


async def test_a_single_use_token_is_refused_when_it_is_replayed(
    tls: TlsPaths, tmp_path: Path, issuer: Issuer
) -> None:
    given = config(save(issuer, tmp_path / "jwks.json"), single_use=True)
    token = issuer.token(jti="1")
    # Two gateways on one machine, and later a third: a restart forgets nothing.
    async with gate(tls, tmp_path, jwt=given) as one, gate(tls, tmp_path, jwt=given) as other:
        assert await show(one, token) == "phone by jwt"
        for gated in (one, other):
            refused = await refusal(gated, token)
            assert (refused.status, "was used before" in refused.message) == (
                "UNAUTHENTICATED",
                True,
            )
        assert await show(other, issuer.token(jti="2")) == "phone by jwt"
        assert "lacks the claim jti" in (await refusal(one, issuer.token())).message
    async with gate(tls, tmp_path, jwt=given) as gated:
        assert "was used before" in (await refusal(gated, token)).message


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"keys": []}', '{"keys": [{"kty": "oct"}]}'])
def test_a_file_without_public_keys_does_not_start(tmp_path: Path, content: str) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"gateway\.jwt\.jwks"):
        Tokens(JwtConfig.model_validate(config(path)))


def test_single_use_without_a_memory_does_not_start(tmp_path: Path, issuer: Issuer) -> None:
    path = save(issuer, tmp_path / "jwks.json")
    with pytest.raises(ConfigError, match="single_use"):
        Tokens(JwtConfig.model_validate(config(path, single_use=True)))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"algorithms": ["HS256"]}, "algorithms"),
        ({"algorithms": ["none"]}, "algorithms"),
        ({"algorithms": []}, "is empty"),
        ({"jwks": "http://login.test/keys"}, "must be a file or an https address"),
        ({"jwks": "https://me:secret@login.test/keys"}, "must be a file or an https address"),
        ({"issuer": ""}, "issuer"),
    ],
)
def test_an_unsafe_configuration_is_refused(change: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        JwtConfig.model_validate({**config("https://login.test/keys"), **change})
