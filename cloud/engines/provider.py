"""What all engines over somebody else's API share: their client and its key, what an answer has to
be, and what the provider's errors mean here.

The two SDKs are made by one generator: their errors have the same names and fields, and are told
apart by status alone.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, Protocol, TypeVar, cast

from cascade.errors import CascadeError, InvalidInput
from cloud.backend_config import ProviderConfig
from cloud.engines.base import ChatRequest
from cloud.errors import EngineFailed, ModelUnusable, Overloaded, ProviderUnavailable

_log = logging.getLogger(__name__)

_RETRY_AFTER_S: Final = 5.0
_MOST_RETRY_AFTER_S: Final = 600.0
_ANSWER: Final = "answer"
_OBJECT_TOKENS: Final = 16
_BUSY: Final = ("overloaded_error", "rate_limit_error", "rate_limit_exceeded")
_BUSY_STATUS: Final = (429, 529)
_TOO_LONG: Final = (
    "context_length_exceeded",
    "exceed_context_size_error",  # of llama.cpp
    "string_above_max_length",
)
_NO_MONEY: Final = ("insufficient_quota", "billing_error", "billing_hard_limit_reached")


class Key:
    """The provider's key, read anew for each request, so that it is rotated without a restart.

    Raises:
        ModelUnusable: there is none; the message says where it was looked for.
    """

    def __init__(self, provider: ProviderConfig) -> None:
        self._variable, self._file = provider.api_key_env, provider.api_key_file
        self.read()

    def read(self) -> str:
        """The key now; a word that no provider takes where none is configured."""
        if self._file is not None:
            try:
                found = Path(self._file).read_text().strip()
            except (OSError, UnicodeDecodeError):
                found = ""
            where = f"the file {self._file}"
        elif self._variable is not None:
            found = os.environ.get(self._variable, "").strip()
            where = f"the environment variable {self._variable}"
        else:
            return "none"
        if not found:
            raise ModelUnusable(f"{where} holds no key for the provider; put it there")
        return found


class Client(Protocol):
    """What both SDKs' clients have."""

    async def close(self) -> None: ...


C = TypeVar("C", bound=Client)


class ProviderEngine(Generic[C]):
    """The part of an ``Engine`` over somebody else's API that is the same for all of them.

    Arguments:
        model: its name there.
        provider: where it is and how it is asked.
        context_tokens: that the model reads and writes together, for the ladder.
    """

    def __init__(self, model: str, provider: ProviderConfig, *, context_tokens: int) -> None:
        self._model = model
        self._provider = provider
        self._context_tokens = context_tokens
        self._key: Key | None = None
        self._client: C | None = None

    async def start(self) -> None:
        """Find the key. Nothing is sent: a provider that is down now may be up when it is needed.

        Raises:
            ModelUnusable: there is no key.
        """
        if self._client is None:
            self._key = Key(self._provider)
            self._client = self._connected(self._key.read())

    async def reset_prefix_cache(self) -> int:
        """Nothing is kept here."""
        return 0

    async def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _connected(self, key: str) -> C:
        """The SDK's client, which sends nothing yet."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the text of an answer has to be, where that is not up to the model.

    Arguments:
        schema: that the provider is asked to keep; ``None`` for free text.
        options: one of these; the provider then writes ``{"answer": …}``.
    """

    schema: dict[str, object] | None
    options: tuple[str, ...] = ()

    @classmethod
    def of(cls, request: ChatRequest) -> Wanted:
        """What ``request`` asks for.

        Raises:
            InvalidInput: it asks for a regular expression, which no provider keeps.
        """
        if request.regex is not None:
            raise InvalidInput("regex", "is not kept by this tier; ask for a JSON Schema")
        if request.json_schema is not None:
            return cls(_object(request.json_schema))
        if not request.options:
            return cls(None)
        schema: dict[str, object] = {
            "type": "object",
            "properties": {_ANSWER: {"type": "string", "enum": list(request.options)}},
            "required": [_ANSWER],
            "additionalProperties": False,
        }
        return cls(schema, request.options)

    @property
    def whole(self) -> bool:
        """Whether pieces are held back until all are there."""
        return self.schema is not None

    def text(self, written: str, *, cut: bool) -> str:
        """The answer in what the provider wrote.

        Arguments:
            cut: it was cut off at the most tokens, so a schema need not be kept.

        Raises:
            EngineFailed: it is not what was asked for; the log says so.
        """
        if self.options:
            chosen = _chosen(written, self.options)
            if chosen is None:
                _log.error("the provider's answer is none of the %d options", len(self.options))
                raise EngineFailed
            return chosen
        if self.schema is not None and not cut and not _keeps(written, self.schema):
            _log.error("the provider's answer does not keep the JSON Schema")
            raise EngineFailed
        return written


def refuse_sampling(request: ChatRequest) -> None:
    """Refuse what providers have no words for.

    Raises:
        InvalidInput: it is named.
    """
    sampling = request.sampling
    for name, given in (
        ("top_k", sampling.top_k != 0),
        ("min_p", sampling.min_p != 0),
        ("repetition_penalty", sampling.repetition_penalty != 1),
    ):
        if given:
            raise InvalidInput(f"sampling.{name}", "is not offered by this tier; leave it out")


def room(request: ChatRequest) -> int:
    """Tokens that the provider may write: an option stands in a small JSON object."""
    return request.max_tokens + (_OBJECT_TOKENS if request.options else 0)


def withheld(sdk: str) -> EngineFailed:
    """The provider's own filter held the answer back."""
    _log.warning("%s: the provider withheld the answer", sdk)
    return EngineFailed()


def prompt_bytes(request: ChatRequest) -> int:
    """An upper bound on the prompt's tokens, for providers that do not tell."""
    return sum(len(turn.content.encode()) for turn in request.messages)


def meaning(error: Exception, sdk: str) -> CascadeError:
    """What an SDK's error means to the cluster. Texts of providers are neither shown nor logged:
    they may quote the key or the prompt.

    Arguments:
        error: an ``APIError`` of either SDK, or what broke while its answer was read.
        sdk: for the log.
    """
    status = getattr(error, "status_code", None)
    words = {str(word) for word in (_field(error, "code"), _field(error, "type")) if word}
    _log.warning(
        "%s: %s, status %s, %s", sdk, type(error).__name__, status, ", ".join(sorted(words)) or "-"
    )
    if words.intersection(_TOO_LONG) or status == 413:
        return InvalidInput("prompt", "is longer than this tier's model reads; shorten it")
    if words.intersection(_NO_MONEY):
        return ProviderUnavailable()
    if status in _BUSY_STATUS or words.intersection(_BUSY):
        return Overloaded("the provider behind this tier is busy", _retry_after_s(error))
    if status in (400, 422):
        return EngineFailed()
    return ProviderUnavailable()


def _field(error: Exception, name: str) -> object:
    """``code`` or ``type`` of the error, or of the body that came with it."""
    found = getattr(error, name, None)
    body = getattr(error, "body", None)
    if found is None and isinstance(body, dict):
        inner = body.get("error", body)
        found = inner.get(name) if isinstance(inner, dict) else None
    return found if isinstance(found, str) else None


def _retry_after_s(error: Exception) -> float:
    headers = getattr(getattr(error, "response", None), "headers", {})
    wanted = cast("dict[str, str]", headers).get("retry-after", "")
    # The other form, a date, is not worth reading.
    return min(float(wanted), _MOST_RETRY_AFTER_S) if wanted.isdecimal() else _RETRY_AFTER_S


def _object(text: str) -> dict[str, object]:
    schema = json.loads(text)
    if not isinstance(schema, dict):
        raise InvalidInput("json_schema", 'is not a JSON object such as {"type": "object"}')
    return schema


def _chosen(written: str, options: Sequence[str]) -> str | None:
    """The option in what was written: its JSON, or the bare word of a model that ignores it."""
    try:
        value = json.loads(written)
    except ValueError:
        value = written.strip().strip("\"'`.").strip()
    if isinstance(value, dict):
        value = value.get(_ANSWER)
    if value in options:
        return str(value)
    alike = [option for option in options if str(value).casefold() == option.casefold()]
    return alike[0] if len(alike) == 1 else None


def _keeps(written: str, schema: dict[str, object]) -> bool:
    import jsonschema

    try:
        jsonschema.validate(json.loads(written), schema)
    except (ValueError, jsonschema.ValidationError, jsonschema.SchemaError, RecursionError):
        return False
    return True
