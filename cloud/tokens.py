"""Tokens of an identity provider (JWT, OpenID Connect): who issued them, for whom, until when.

PyJWT verifies; what is decided here is which keys count, when they are fetched again, and what a
caller is told.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol, cast

import jwt

from cascade.errors import RemoteError
from cascade.wire import Caller, Shown, caller_name, unauthenticated
from cloud.access_config import JwtConfig
from cloud.errors import ConfigError

_log = logging.getLogger(__name__)

TOKEN_HEADER: Final = "authorization"
_SCHEME: Final = "bearer"
_FETCH_S: Final = 5.0
_MOST_JWKS_BYTES: Final = 1 << 20


class Memory(Protocol):
    """What was used once, shared by all gateways."""

    def first_use(self, token: str, ends_s: float) -> bool:
        """Whether ``token`` is used for the first time. Blocks; call it in a thread.

        Arguments:
            token: names the token, without being one.
            ends_s: from then on (seconds since 1970) it is refused anyway.

        Raises:
            CascadeError: nobody can tell.
        """
        ...


class Tokens:
    """Takes ``authorization: Bearer`` tokens; an ``Authenticator``.

    Arguments:
        memory: of used tokens, where each is good for one call.

    Raises:
        ConfigError: the keys are in a file that holds none, or used tokens would be forgotten.
    """

    wanted = f"a token in `{TOKEN_HEADER}: Bearer`"

    def __init__(self, config: JwtConfig, memory: Memory | None = None) -> None:
        self._config = config
        if config.single_use and memory is None:
            raise ConfigError("gateway.jwt.single_use: there is no file to remember tokens in")
        self._memory = memory if config.single_use else None
        self._keys: _Keys = (
            _FetchedKeys(config) if "://" in config.jwks else _FileKeys(Path(config.jwks))
        )

    async def caller(self, shown: Shown) -> Caller | None:
        """See ``Authenticator``."""
        sent = shown.metadata.get(TOKEN_HEADER)
        if sent is None:
            return None
        scheme, _, token = sent.partition(" ")
        if scheme.lower() != _SCHEME:
            raise unauthenticated(f"`{TOKEN_HEADER}` is not `Bearer` and a token")
        claims = await self._claims(token.strip())
        await self._use_up(claims)
        name = claims.get(self._config.name_claim)
        if not isinstance(name, str):
            raise unauthenticated(f"the token has no text in its claim {self._config.name_claim}")
        return Caller(caller_name(name, f"the claim {self._config.name_claim}"), "jwt")

    async def _claims(self, token: str) -> dict[str, object]:
        config = self._config
        try:
            header = jwt.get_unverified_header(token)
            algorithm, key_id = header.get("alg"), header.get("kid")
            # Before any key is looked for: a stranger's header must not cause a fetch.
            if algorithm not in config.algorithms:
                raise unauthenticated("the token is signed by an algorithm that is not taken here")
            key = await self._keys.find(key_id, str(algorithm))
            required = ["exp", "iss", "aud", config.name_claim]
            return cast(
                "dict[str, object]",
                jwt.decode(
                    token,
                    key,
                    algorithms=[str(algorithm)],
                    issuer=config.issuer,
                    audience=config.audience,
                    leeway=config.leeway_s,
                    options={"require": required + (["jti"] if config.single_use else [])},
                ),
            )
        except (jwt.PyJWTError, ValueError, TypeError) as problem:
            raise unauthenticated(_said(problem)) from None

    async def _use_up(self, claims: dict[str, object]) -> None:
        if self._memory is None:
            return
        ends_s = float(cast(Any, claims["exp"])) + self._config.leeway_s
        name = f"{self._config.issuer} {claims['jti']}"
        if not await asyncio.to_thread(self._memory.first_use, name, ends_s):
            raise unauthenticated(
                "the token was used before, and is good for one call; get a new one"
            )


def check_keys(config: JwtConfig) -> None:
    """See whether the issuer's keys can be read where they are in a file; addresses are left alone.

    Raises:
        ConfigError: they cannot.
    """
    if "://" not in config.jwks:
        _FileKeys(Path(config.jwks))


def _said(problem: Exception) -> str:
    """What is wrong with a token, without anything of it."""
    match problem:
        case jwt.ExpiredSignatureError():
            what = "has expired; get a new one"
        case jwt.ImmatureSignatureError():
            what = "is not good yet; look at this device's clock"
        case jwt.InvalidAudienceError():
            what = "is for another audience than this cluster"
        case jwt.InvalidIssuerError():
            what = "is of another issuer than this cluster takes"
        case jwt.MissingRequiredClaimError():
            what = f"lacks the claim {problem.claim}"
        case jwt.InvalidSignatureError():
            what = "does not carry the issuer's signature"
        case _:
            what = "is not a token that this cluster can read"
    return f"the token {what}"


class _Keys(Protocol):
    async def find(self, key_id: object, algorithm: str) -> jwt.PyJWK:
        """The issuer's key of that id; without an id, the only one that fits the algorithm.

        Raises:
            RemoteError: UNAUTHENTICATED, there is none; UNAVAILABLE, nobody can tell.
        """
        ...


_KeyList = tuple[jwt.PyJWK, ...]


class _FileKeys:
    """A JWKS file, read again when it has changed; a change that cannot be read changes nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: object = None
        try:
            self._keys = self._read()
        except (OSError, ValueError) as problem:
            raise ConfigError(f"gateway.jwt.jwks: {path}: {problem}") from None

    async def find(self, key_id: object, algorithm: str) -> jwt.PyJWK:
        try:
            if self._stamp() != self._seen:
                self._keys = self._read()
        except (OSError, ValueError) as problem:
            _log.error("the issuer's keys stay as they were: %s: %s", self._path, problem)
        found = _matching(self._keys, key_id, algorithm)
        if found is None:
            raise _unknown_key()
        return found

    def _read(self) -> _KeyList:
        self._seen = self._stamp()
        return _parse(self._path.read_bytes())

    def _stamp(self) -> object:
        found = self._path.stat()
        return (found.st_mtime_ns, found.st_size, found.st_ino)


class _FetchedKeys:
    """A JWKS address. Its keys are kept for a while; an unknown key id asks again, but not more
    often than allowed: ids are what strangers make up."""

    def __init__(
        self,
        config: JwtConfig,
        fetch: Callable[[str], bytes] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._fetch = fetch or _download
        self._clock = clock
        self._keys: _KeyList = ()
        self._fetched_s: float | None = None
        self._asked_s: float | None = None
        self._asking = asyncio.Lock()

    async def find(self, key_id: object, algorithm: str) -> jwt.PyJWK:
        found = _matching(self._keys, key_id, algorithm)
        if found is None or self._stale():
            async with self._asking:
                found = _matching(self._keys, key_id, algorithm)
                if (found is None or self._stale()) and self._may_ask():
                    await self._refresh()
                    found = _matching(self._keys, key_id, algorithm)
        if self._fetched_s is None:
            raise RemoteError(
                "UNAVAILABLE",
                "the issuer's keys cannot be fetched now, so no token can be checked; try again",
                self._config.unknown_key_s,
            )
        if found is None:
            raise _unknown_key()
        return found

    def _stale(self) -> bool:
        last = self._fetched_s
        return last is None or self._clock() - last > self._config.keys_max_age_s

    def _may_ask(self) -> bool:
        last = self._asked_s
        return last is None or self._clock() - last >= self._config.unknown_key_s

    async def _refresh(self) -> None:
        self._asked_s = self._clock()
        try:
            data = await asyncio.to_thread(self._fetch, self._config.jwks)
            self._keys = _parse(data)
        except (OSError, ValueError) as problem:
            # Old keys serve on: an issuer that is down for an hour locks nobody out.
            _log.error("the issuer's keys at %s: %s", self._config.jwks, problem)
        else:
            self._fetched_s = self._clock()


def _unknown_key() -> RemoteError:
    return unauthenticated("the token is signed with a key that its issuer does not publish")


def _matching(keys: _KeyList, key_id: object, algorithm: str) -> jwt.PyJWK | None:
    fitting = [key for key in keys if key.algorithm_name == algorithm]
    if key_id is None:
        return fitting[0] if len(fitting) == 1 else None
    return next((key for key in fitting if key.key_id == key_id), None)


def _parse(data: bytes) -> _KeyList:
    """The usable keys of a JWKS: public ones for signatures.

    Raises:
        ValueError: it is no JWKS, or has no such key.
    """
    content = json.loads(data)
    listed = content.get("keys") if isinstance(content, dict) else None
    if not isinstance(listed, list):
        raise ValueError("is not a JWKS (an object with `keys`)")
    found = [key for each in listed for key in _public(each)]
    if not found:
        raise ValueError("holds no public key for signatures")
    return tuple(found)


def _public(entry: object) -> list[jwt.PyJWK]:
    # A symmetric key, or one for encryption, must not verify anything.
    if not isinstance(entry, dict) or entry.get("kty") not in ("RSA", "EC", "OKP"):
        return []
    if entry.get("use", "sig") != "sig":
        return []
    kind = str(entry.get("crv") or entry["kty"])
    names = [entry["alg"]] if "alg" in entry else _DEFAULT_ALGORITHMS.get(kind, [])
    keys = []
    for name in names:
        try:
            keys.append(jwt.PyJWK(entry, algorithm=name))
        except (jwt.PyJWTError, ValueError, TypeError):
            continue
    return keys


# What a key without `alg` may verify, by its curve or type.
_DEFAULT_ALGORITHMS: Final = {
    "RSA": ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"],
    "P-256": ["ES256"],
    "P-384": ["ES384"],
    "P-521": ["ES512"],
    "Ed25519": ["EdDSA"],
}


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Keys come from the address in the configuration and from no other."""

    def redirect_request(self, *answer: Any) -> None:
        """None: the answer that leads elsewhere is the error that it then is."""


def _download(url: str) -> bytes:
    opener = urllib.request.build_opener(_NoRedirect)
    with opener.open(url, timeout=_FETCH_S) as reply:
        data = cast(bytes, reply.read(_MOST_JWKS_BYTES + 1))
    if len(data) > _MOST_JWKS_BYTES:
        raise ValueError("is larger than 1 MiB")
    return data
