"""One record (an input and what each tier made of it) and the header that a set of them shares.

The text of an input is optional: ``input_sha256`` is enough to find duplicates, ``document`` to
keep what belongs together in one part of a split.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Literal, Self, get_args

from cascade.errors import InvalidInput
from cascade.records.outcome import MOST, Outcome
from cascade.request import check_options
from cascade.strict import Fields
from cascade.task import Task

FORMAT: Final = "cascade-records"
VERSION: Final = 1

Kind = Literal["device", "cloud"]

_TIER_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")  # as the cluster's configuration has them
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_DIGESTS = ("bundle_digest", "base_digest", "adapter_digest")


@dataclass(frozen=True, slots=True)
class TierInfo:
    """Who answered under a tier's name.

    Arguments:
        name: 1 to 32 characters of a-z 0-9 _ -; begins with a letter.
        model: name of the model; empty where no answer ever told.
        kind: whether it ran on the device or in the cluster.
        bundle_digest, base_digest, adapter_digest: hex sha256 of what ran; empty where not known,
            the adapter's also where there is none.
        input_usd_per_million_tokens, output_usd_per_million_tokens: its prices; ``None`` where not
            known.
    """

    name: str
    model: str
    kind: Kind
    bundle_digest: str = ""
    base_digest: str = ""
    adapter_digest: str = ""
    input_usd_per_million_tokens: float | None = None
    output_usd_per_million_tokens: float | None = None

    def to_json(self) -> dict[str, object]:
        """A plain dict."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, data: object, where: str) -> Self:
        """The tier that ``to_json`` wrote.

        Raises:
            InvalidInput: a field is missing, unknown or unusable; it is named.
        """
        read = Fields(data, where)
        name = read.text("name")
        check_tier_name(read.path("name"), name)
        tier = cls(
            name=name,
            model=read.text("model"),
            kind="device" if read.choice("kind", get_args(Kind)) == "device" else "cloud",
            **{digest: _sha256_or_empty(read, digest) for digest in _DIGESTS},
            input_usd_per_million_tokens=read.number_or_none("input_usd_per_million_tokens", 0),
            output_usd_per_million_tokens=read.number_or_none("output_usd_per_million_tokens", 0),
        )
        read.end()
        return tier


@dataclass(frozen=True, slots=True)
class Header:
    """What holds for every record of a set.

    Arguments:
        tiers: who answered, from the lowest to the highest; at least one.
        task_id: the task of a policy, or empty.
        options: the closed set of answers; empty for free text, and where every record has its own.
        wording: how a closed question was put to the tiers; ``None`` for free text, and where every
            record has its own options.
        max_tokens: upper bound on the tokens of a free answer; ``None`` where it is not known.
        grader: what decided whether an answer is right, as ``cascade.graders.grader`` takes it;
            empty where nothing did.
        self_checks: what the device's model was asked about each of its answers, of
            ``cascade.features.SELF_CHECKS``.
        data_sha256: of the file that the inputs come from; empty where not known.
        description, licence: of the data, one line each, for whoever gets the file.
        created: UTC, whole seconds.
    """

    tiers: tuple[TierInfo, ...]
    task_id: str = ""
    options: tuple[str, ...] = ()
    wording: Task | None = None
    max_tokens: int | None = None
    grader: str = ""
    self_checks: tuple[str, ...] = ()
    data_sha256: str = ""
    description: str = ""
    licence: str = ""
    created: datetime = field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))

    @property
    def tier_names(self) -> tuple[str, ...]:
        """Names of the tiers, from the lowest to the highest."""
        return tuple(tier.name for tier in self.tiers)

    def to_json(self) -> dict[str, object]:
        """A plain dict for ``json.dumps``, without self checks where there are none."""
        checks = {"self_checks": list(self.self_checks)} if self.self_checks else {}
        return {
            "format": FORMAT,
            "version": VERSION,
            "created": self.created.strftime(_TIME),
            "task_id": self.task_id,
            "options": list(self.options),
            "wording": None if self.wording is None else self.wording.to_json(),
            "max_tokens": self.max_tokens,
            "grader": self.grader,
            **checks,
            "data_sha256": self.data_sha256,
            "description": self.description,
            "licence": self.licence,
            "tiers": [tier.to_json() for tier in self.tiers],
        }

    @classmethod
    def from_json(cls, data: object, where: str = "header") -> Self:
        """The header that ``to_json`` wrote.

        Raises:
            InvalidInput: it is of another format or of a newer version, or a field is missing,
                unknown or unusable; it is named.
        """
        read = Fields(data, where)
        if not read.given("format") or read.take("format") != FORMAT:
            raise InvalidInput(
                read.path("format"), f"is not {FORMAT!r}; this file holds no records"
            )
        version = read.integer("version", 1, 1 << 31)
        if version > VERSION:
            raise InvalidInput(
                read.path("version"), f"{version} is newer than {VERSION}; update this program"
            )
        header = cls(
            created=_time(read.text("created"), read.path("created")),
            task_id=read.text("task_id"),
            options=read.texts("options"),
            wording=(
                Task.from_json(read.take("wording"), where=read.path("wording"))
                if read.given("wording")
                else None
            ),
            max_tokens=read.integer("max_tokens", 1, MOST) if read.given("max_tokens") else None,
            grader=read.text("grader"),
            self_checks=read.texts("self_checks") if read.given("self_checks") else (),
            data_sha256=_sha256_or_empty(read, "data_sha256"),
            description=read.text("description"),
            licence=read.text("licence"),
            tiers=_tiers(read.take("tiers"), read.path("tiers")),
        )
        read.end()
        _check_options(header.options, where)
        if header.wording is not None and header.wording.options != header.options:
            raise InvalidInput(read.path("wording"), "has other options than the header")
        return header


@dataclass(frozen=True, slots=True)
class Record:
    """One input and what each tier made of it.

    Arguments:
        id: unique within the set.
        document: records of one document stay in one part of a split.
        input_sha256: see ``input_sha256``; equal for inputs that differ in case, punctuation and
            spacing alone.
        groups: what it belongs to, e.g. ``{"domain": "tweet", "language": "en"}``.
        features: numbers known before any tier was asked.
        options: the closed set of answers, where it is not the header's and texts are kept.
        text, reference: the input and its right answer, where they are kept.
        outcomes: by the names of the tiers; a tier that was not asked has none.
    """

    id: str
    document: str
    input_sha256: str
    outcomes: Mapping[str, Outcome]
    groups: Mapping[str, str] = field(default_factory=dict)
    features: Mapping[str, float] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    text: str | None = None
    reference: str | None = None

    def to_json(self) -> dict[str, object]:
        """A plain dict for ``json.dumps``, without what is absent."""
        content: dict[str, object] = {
            "id": self.id,
            "document": self.document,
            "input_sha256": self.input_sha256,
            "groups": dict(self.groups),
            "features": dict(self.features),
            "options": list(self.options),
            "text": self.text,
            "reference": self.reference,
            "outcomes": {name: outcome.to_json() for name, outcome in self.outcomes.items()},
        }
        return {name: value for name, value in content.items() if value not in (None, {}, [])}

    @classmethod
    def from_json(cls, data: object, header: Header, where: str = "record") -> Self:
        """The record that ``to_json`` wrote.

        Raises:
            InvalidInput: a field is missing, unknown, unusable, or does not fit the header; it is
                named.
        """
        read = Fields(data, where)
        record = cls(
            id=_some_text(read, "id"),
            document=_some_text(read, "document"),
            input_sha256=read.sha256("input_sha256"),
            groups=_texts(read, "groups"),
            features=_numbers(read, "features"),
            options=read.texts("options") if read.given("options") else (),
            text=read.text("text") if read.given("text") else None,
            reference=read.text("reference") if read.given("reference") else None,
            outcomes=_outcomes(read, header),
        )
        read.end()
        _check_options(record.options, where)
        size = len(record.options or header.options)
        for name, outcome in record.outcomes.items():
            # Without text the options may have been left out; then their number is not known.
            if outcome.scores is not None and size and len(outcome.scores) != size:
                raise InvalidInput(
                    f"{read.path('outcomes')}.{name}.option_logprobs",
                    f"has {len(outcome.scores)} numbers for {size} options",
                )
        return record


def text_key(text: str) -> str:
    """What makes two texts the same: their letters and digits, NFKC and case folded, by words.

    A text without any is its own key.
    """
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(words) or text


def input_sha256(text: str) -> str:
    """Hex sha256 of the ``text_key`` of an input.

    It hides a text from reading, not from guessing: who has the text can tell that it was asked.
    """
    return hashlib.sha256(text_key(text).encode()).hexdigest()


def check_tier_name(field: str, name: str) -> None:
    """Raise ``InvalidInput`` unless ``name`` can be a tier's."""
    if not _TIER_NAME.fullmatch(name):
        raise InvalidInput(
            field, f"{name!r} is not 1 to 32 characters of a-z 0-9 _ - that begin with a letter"
        )


def _check_options(options: tuple[str, ...], where: str) -> None:
    try:
        if options:
            check_options(options)
    except InvalidInput as problem:
        raise InvalidInput(f"{where}.options", problem.problem) from None


def _time(text: str, where: str) -> datetime:
    try:
        return datetime.strptime(text, _TIME).replace(tzinfo=UTC)
    except ValueError:
        raise InvalidInput(where, f"{text!r} is no UTC time such as 2026-01-31T12:00:00Z") from None


def _tiers(value: object, where: str) -> tuple[TierInfo, ...]:
    if not isinstance(value, list) or not value:
        raise InvalidInput(where, "must be a list of at least one tier")
    tiers = tuple(TierInfo.from_json(item, f"{where}[{i}]") for i, item in enumerate(value))
    names = [tier.name for tier in tiers]
    for name in names:
        if names.count(name) > 1:
            raise InvalidInput(where, f"names {name} twice")
    return tiers


def _outcomes(read: Fields, header: Header) -> dict[str, Outcome]:
    if not read.given("outcomes"):
        return {}
    where = read.path("outcomes")
    value = read.take("outcomes")
    if not isinstance(value, dict):
        raise InvalidInput(where, "must be a JSON object")
    for name in value:
        if name not in header.tier_names:
            raise InvalidInput(
                f"{where}.{name}", f"is no tier of the header ({', '.join(header.tier_names)})"
            )
    return {name: Outcome.from_json(item, f"{where}.{name}") for name, item in value.items()}


def _texts(read: Fields, name: str) -> dict[str, str]:
    inner = _inner(read, name)
    return {key: inner[0].text(key) for key in inner[1]}


def _numbers(read: Fields, name: str) -> dict[str, float]:
    inner = _inner(read, name)
    return {key: inner[0].number(key) for key in inner[1]}


def _inner(read: Fields, name: str) -> tuple[Fields, tuple[str, ...]]:
    """An optional object of free names, and those names."""
    value = read.take(name) if read.given(name) else {}
    inner = Fields(value, read.path(name))
    keys = tuple(value) if isinstance(value, dict) else ()
    for key in keys:
        if not key:
            raise InvalidInput(read.path(name), "has an empty name")
    return inner, keys


def _some_text(read: Fields, name: str) -> str:
    text = read.text(name)
    if not text:
        raise InvalidInput(read.path(name), "is empty")
    return text


def _sha256_or_empty(read: Fields, name: str) -> str:
    value = read.take(name)
    if value == "":
        return ""
    return Fields({name: value}, read.path(name).removesuffix(f".{name}")).sha256(name)
