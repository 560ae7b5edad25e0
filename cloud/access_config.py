"""The keys of the YAML file about who may call, how much, and what is written down about it."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from cloud.strict_model import StrictModel

# No HMAC among them: who verifies with it can also sign, and a public key is no secret.
Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_CALLER = re.compile(r"[\x21-\x7e]{1,128}")

Limit = Annotated[float, Field(gt=0, lt=math.inf)]


class TlsFiles(StrictModel):
    """PEM files of the operator's own certificate, all ``None`` for a local authority; and whose
    certificates callers may show."""

    certificate: Path | None = Field(default=None, strict=False)
    key: Path | None = Field(default=None, strict=False)
    ca: Path | None = Field(default=None, strict=False)
    client_ca: Path | None = Field(default=None, strict=False)
    client_port: int | None = Field(default=None, ge=1, le=65535)
    client_name: Literal["subject", "san"] = "subject"

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("give both certificate and key, or neither")
        if self.ca is not None and self.certificate is None:
            raise ValueError("ca needs a certificate and key too")
        if self.client_port is not None and self.client_ca is None:
            raise ValueError("client_port needs client_ca, which says whose certificates count")
        return self

    def anchored(self, folder: Path) -> TlsFiles:
        """The same with paths from ``folder``."""
        paths = ("certificate", "key", "ca", "client_ca")
        return self.model_copy(
            update={name: anchored(getattr(self, name), folder) for name in paths}
        )


class JwtConfig(StrictModel):
    """Tokens of an identity provider that are taken."""

    issuer: str = Field(min_length=1)
    audience: str = Field(min_length=1)
    jwks: str = Field(min_length=1)
    algorithms: tuple[Algorithm, ...] = Field(default=("RS256", "ES256"), strict=False)
    name_claim: str = Field(default="sub", min_length=1)
    leeway_s: float = Field(default=30.0, ge=0, le=600)
    unknown_key_s: float = Field(default=60.0, ge=1, le=86_400)
    keys_max_age_s: float = Field(default=3600.0, ge=1, le=604_800)
    single_use: bool = False

    @field_validator("jwks")
    @classmethod
    def _reached_safely(cls, place: str) -> str:
        if "://" not in place:
            return place
        parts = urlsplit(place)
        plain = parts.scheme == "http" and parts.hostname in _LOOPBACK
        if (parts.scheme != "https" and not plain) or not parts.hostname or parts.username:
            raise ValueError("must be a file or an https address (http on this machine only)")
        return place

    @field_validator("algorithms")
    @classmethod
    def _some(cls, algorithms: tuple[str, ...]) -> tuple[str, ...]:
        if not algorithms:
            raise ValueError("is empty; name the algorithms that the issuer signs with")
        return algorithms

    def anchored(self, folder: Path) -> JwtConfig:
        """The same with a file's path from ``folder``."""
        if "://" in self.jwks:
            return self
        return self.model_copy(update={"jwks": str(folder / Path(self.jwks).expanduser())})


class Quota(StrictModel):
    """What one caller may use; ``None`` sets no limit. Days are from midnight to midnight UTC."""

    requests_per_minute: Limit | None = None
    tokens_per_day: Limit | None = None
    usd_per_day: Limit | None = None

    def divided(self, parts: int) -> Quota:
        """One of so many equal parts."""

        def part(limit: float | None) -> float | None:
            return None if limit is None else limit / parts

        return Quota(
            requests_per_minute=part(self.requests_per_minute),
            tokens_per_day=part(self.tokens_per_day),
            usd_per_day=part(self.usd_per_day),
        )


class Quotas(StrictModel):
    """What callers may use: each by its name, or by default."""

    default: Quota = Quota()
    callers: dict[str, Quota] = Field(default_factory=dict)
    file: Path | None = Field(default=None, strict=False)

    @field_validator("callers")
    @classmethod
    def _names(cls, callers: dict[str, Quota]) -> dict[str, Quota]:
        for name in callers:
            if not _CALLER.fullmatch(name):
                raise ValueError(f"{name!r} is not the name of a caller")
        return callers

    def of(self, caller: str) -> Quota:
        """What ``caller`` may use."""
        return self.callers.get(caller, self.default)

    @property
    def any(self) -> bool:
        """Whether anybody is limited."""
        return any(quota != Quota() for quota in (self.default, *self.callers.values()))


class AuditConfig(StrictModel):
    """The record of what went to providers."""

    file: Path | None = Field(default=None, strict=False)
    text: bool = False
    required: bool = False
    max_bytes: int = Field(default=10_000_000, ge=10_000)
    keep_files: int = Field(default=10, ge=1, le=1000)


def anchored(path: Path | None, folder: Path) -> Path | None:
    """``path`` as seen from ``folder``."""
    return None if path is None else folder / path.expanduser()
