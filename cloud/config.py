"""The cluster's one YAML file: what may be written in it, and what is wrong with it when it is.

Strict: unknown keys are errors, with a guess at what was meant. Nothing is started here.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Final, Literal, Self, get_args

import yaml
from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from cascade.catalog import Entry, entries
from cascade.errors import NotFound
from cascade.events import DEVICE
from cascade.request import ADAPTER_NAME
from cloud.access_config import AuditConfig, JwtConfig, Quotas, TlsFiles
from cloud.adapter_source import in_registry
from cloud.backend_config import ProviderConfig, VllmConfig
from cloud.errors import ConfigError
from cloud.federation.config import FederationConfig
from cloud.placement_config import Placement
from cloud.strict_model import StrictModel as _Strict

EngineName = Literal[
    "llama_cpp", "onnx", "onnx_classifier", "transformers", "vllm", "openai", "anthropic"
]
_ADAPTABLE: Final = ("llama_cpp", "onnx", "transformers", "vllm")
# They take the signed folders that a registry has, and keep those in memory that were used last.
_SWAPPING: Final = ("onnx", "transformers")
_MOST_ADAPTERS: Final = 4
_PROVIDERS: Final = ("openai", "anthropic")
Input = Literal["text", "tensors"]
# One gRPC message carries 4 MiB, the rest of the request included.
_MOST_TENSOR_BYTES: Final = 4_000_000
METRIC_PORTS: Final = 10
"""Gateways on one node that can show their metrics: so many ports from the first one on."""
# Beside text and tensors a message holds options, a schema, the device's signals.
_MESSAGE_REST_BYTES: Final = 1 << 18
_MOST_BYTES_OF_A_CHARACTER: Final = 4
# Ray's workers take ports from this range.
_RAY_PORTS: Final = range(10002, 20000)
_TIER_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")

Price = Annotated[float, Field(ge=0, lt=math.inf)]


class MetricsConfig(_Strict):
    """Where Prometheus finds this cluster's metrics, and which tasks they name."""

    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=9464, ge=1, le=65535)
    tasks: tuple[str, ...] = Field(default=(), strict=False)

    @field_validator("port")
    @classmethod
    def _clear_of_ray(cls, port: int) -> int:
        last = port + METRIC_PORTS - 1
        if last > 65535 or port in _RAY_PORTS or last in _RAY_PORTS:
            raise ValueError(
                f"and the {METRIC_PORTS - 1} after it must keep out of 10002-19999, which Ray's "
                "workers use, and below 65536; take another, e.g. 9464"
            )
        return port


class GatewayConfig(_Strict):
    """Where devices connect and what one of them may ask for."""

    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=7443, ge=1, le=65535)
    replicas: int = Field(default=1, ge=1, le=1000)
    replicas_per_node: int | None = Field(default=None, ge=1, le=METRIC_PORTS)
    tls: TlsFiles = TlsFiles()
    api_keys_file: Path | None = Field(default=None, strict=False)
    jwt: JwtConfig | None = None
    quotas: Quotas = Quotas()
    audit: AuditConfig = AuditConfig()
    registry: str | None = Field(default=None, min_length=1)
    metrics: MetricsConfig | None = None
    max_concurrent_requests: int = Field(default=64, ge=1)
    max_open_calls: int = Field(default=4096, ge=16)
    max_prompt_chars: int = Field(default=32_000, ge=1)
    max_tensor_bytes: int = Field(default=1_000_000, ge=1, le=_MOST_TENSOR_BYTES)
    max_deadline_s: float = Field(default=600.0, gt=0, lt=math.inf)
    first_message_s: float = Field(default=10.0, gt=0, le=600)
    stalled_s: float = Field(default=30.0, gt=0, le=3600)
    draft_s: float = Field(default=10.0, gt=0, le=600)
    idle_connection_s: float = Field(default=600.0, ge=1, le=86_400)
    connection_age_s: float = Field(default=3600.0, ge=1, le=604_800)
    max_streams_per_connection: int = Field(default=100, ge=1, le=10_000)
    drain_s: float = Field(default=5.0, ge=0, le=600)

    @field_validator("port")
    @classmethod
    def _clear_of_ray(cls, port: int) -> int:
        if port in _RAY_PORTS:
            raise ValueError(
                "lies in 10002-19999, which Ray's workers use; take another, e.g. 7443"
            )
        return port

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.metrics is not None and 0 <= self.port - self.metrics.port < METRIC_PORTS:
            raise ValueError("metrics.port and the 9 after it must keep out of gateway.port")
        return self

    @model_validator(mode="after")
    def _second_port(self) -> Self:
        other = self.tls.client_port
        if other is not None and (other == self.port or other in _RAY_PORTS):
            raise ValueError("tls.client_port must differ from port and lie out of 10002-19999")
        return self

    @model_validator(mode="after")
    def _counted_together(self) -> Self:
        if self.metrics is not None and min(self.replicas, self.on_one_node) > METRIC_PORTS:
            raise ValueError(f"replicas: at most {METRIC_PORTS} on one node can show their metrics")
        if self.nodes > 1 and self.jwt is not None and self.jwt.single_use:
            raise ValueError(
                "jwt.single_use needs all replicas on one node, where they remember used tokens "
                "together; raise replicas_per_node, or leave it out"
            )
        return self

    @property
    def on_one_node(self) -> int:
        """The most replicas that one node runs."""
        return self.replicas_per_node or self.replicas

    @property
    def nodes(self) -> int:
        """Nodes that the replicas are on. Each node has files, and so counts, of its own."""
        return math.ceil(self.replicas / self.on_one_node)

    @property
    def max_message_bytes(self) -> int:
        """The largest message that a permitted request can be."""
        text = self.max_prompt_chars * _MOST_BYTES_OF_A_CHARACTER
        return max(text, self.max_tensor_bytes) + _MESSAGE_REST_BYTES


class PriceList(_Strict):
    """What a tier charges, in US dollars. ``label`` says what the figures are worth."""

    input_usd_per_million_tokens: Price = 0.0
    output_usd_per_million_tokens: Price = 0.0
    label: str = "illustrative"

    def cost_usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Price of so many tokens."""
        return (
            prompt_tokens * self.input_usd_per_million_tokens
            + completion_tokens * self.output_usd_per_million_tokens
        ) / 1e6


class Autoscaling(_Strict):
    """Bounds on the number of replicas, and how they follow the load between them."""

    min_replicas: int = Field(default=1, ge=0)
    max_replicas: int = Field(default=1, ge=1)
    target_ongoing_requests: float = Field(default=2.0, gt=0, lt=math.inf)
    upscale_delay_s: float = Field(default=30.0, ge=0, le=3600)
    downscale_delay_s: float = Field(default=600.0, ge=0, le=86_400)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is above max_replicas")
        return self


class Hedge(_Strict):
    """Who is asked too where a tier is slow to begin: another tier, or by the tier's own name
    another replica of it."""

    to: str = Field(min_length=1)
    least_s: float = Field(default=0.05, ge=0, lt=math.inf)


class TierConfig(_Strict):
    """One rung of the ladder."""

    name: str
    engine: EngineName = "llama_cpp"
    model: str = Field(min_length=1)
    context_tokens: int = Field(default=2048, ge=256, le=1 << 20)
    threads: int = Field(default=1, ge=1, le=256)
    parallel: int = Field(default=2, ge=1, le=256)
    max_output_tokens: int = Field(default=512, ge=1)
    data_classes: tuple[Literal["public", "personal"], ...] = Field(
        default=("public", "personal"), strict=False
    )
    region: str = ""
    commercial_use: bool | None = None
    provider: ProviderConfig | None = None
    vllm: VllmConfig | None = None
    adapters: dict[str, str] = Field(default={})
    most_adapters: int | None = Field(default=None, ge=1, le=1024)
    price: PriceList = PriceList()
    autoscaling: Autoscaling = Autoscaling()
    max_ongoing_requests: int | None = Field(default=None, ge=1)
    max_queued_requests: int = Field(default=32, ge=0)
    placement: Placement = Placement()
    hedge: Hedge | None = None

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if name == DEVICE:
            raise ValueError("is what a device calls itself; take another")
        if not _TIER_NAME.fullmatch(name):
            raise ValueError("must be 1 to 32 characters of a-z 0-9 _ - and begin with a letter")
        return name

    @field_validator("data_classes")
    @classmethod
    def _some(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        # Not min_length: it counts the good items alone and adds a second line for each bad one.
        if not classes:
            raise ValueError("is empty; name public, personal or both")
        return classes

    @model_validator(mode="after")
    def _asked_somewhere(self) -> Self:
        theirs = self.engine in _PROVIDERS
        if theirs and self.provider is None:
            raise ValueError(f"provider is missing; {self.engine} needs to know where the key is")
        if not theirs and self.provider is not None:
            raise ValueError(f"provider is for {' and '.join(_PROVIDERS)}, not for {self.engine}")
        return self

    @model_validator(mode="after")
    def _with_its_section(self) -> Self:
        if self.engine == "vllm" and self.vllm is None:
            raise ValueError("vllm is missing; write vllm: {} for its defaults")
        if self.engine != "vllm" and self.vllm is not None:
            raise ValueError(f"vllm is for the engine vllm, not for {self.engine}")
        if self.vllm is not None and self.placement.labels:
            raise ValueError(
                "placement.labels is not offered by ray.serve.llm; take placement.resources or "
                "vllm.accelerator_type"
            )
        return self

    @field_validator("adapters", mode="before")
    @classmethod
    def _named(cls, adapters: object) -> object:
        if not isinstance(adapters, dict):
            return adapters
        for name in adapters:
            if not ADAPTER_NAME.fullmatch(str(name)):
                raise ValueError(f"{name!r} is no name; take 1 to 64 of A-Z a-z 0-9 . _ -")
        return {name: str(at) if isinstance(at, Path) else at for name, at in adapters.items()}

    @model_validator(mode="after")
    def _can_adapt(self) -> Self:
        if not self.adapters:
            return self
        if self.engine not in _ADAPTABLE:
            raise ValueError(f"adapters are for {', '.join(_ADAPTABLE)}, not for {self.engine}")
        if self.vllm is not None and self.vllm.adapters_url is None:
            raise ValueError("adapters needs vllm.adapters_url, the place of the adapters")
        named = ", ".join(name for name, at in self.adapters.items() if in_registry(at))
        if named and self.engine not in _SWAPPING:
            takes = "GGUF files" if self.engine == "llama_cpp" else "folders of vllm.adapters_url"
            raise ValueError(
                f"adapters of a registry ({named}) are for {' and '.join(_SWAPPING)}; "
                f"{self.engine} takes {takes}"
            )
        return self

    @model_validator(mode="after")
    def _has_an_effect(self) -> Self:
        if self.most_adapters is None or self.engine in _SWAPPING:
            return self
        raise ValueError(
            f"most_adapters has no effect on {self.engine}, "
            + (
                "of which every replica loads all of its adapters when it starts; leave it out"
                if self.engine == "llama_cpp"
                else "which has vllm.most_adapters for it; leave it out"
                if self.engine == "vllm"
                else "which takes no adapters; leave it out"
            )
        )

    @model_validator(mode="after")
    def _within_the_licence(self) -> Self:
        known = self.catalogued
        if self.commercial_use and known is not None and not known.commercial_use:
            raise ValueError(
                f"commercial_use is true, but {known.licence}, the licence of {known.name}, "
                "does not allow that; leave it out"
            )
        return self

    @property
    def allows_commercial_use(self) -> bool:
        """Whether the model's licence allows commercial use: what ``commercial_use`` says, else
        what the catalog says. Of a model that nobody has said it of, or of its adapters, it is
        taken not to; those of a registry say it themselves (``tier_adapters``)."""
        if self.commercial_use is not None:
            return self.commercial_use
        known = self.catalogued
        return known is not None and known.commercial_use and not self.files_of_adapters

    @property
    def files_of_adapters(self) -> dict[str, str]:
        """Paths of the adapters that are not in the registry, by name."""
        return {name: at for name, at in self.adapters.items() if in_registry(at) is None}

    @property
    def resident_adapters(self) -> int:
        """Adapters that a replica keeps in memory at one time, where the engine swaps them."""
        return self.most_adapters or _MOST_ADAPTERS

    @property
    def catalogued(self) -> Entry | None:
        """The model in the catalog, or ``None`` where it is a file, a bundle, unknown or a
        provider's."""
        if self.provider is not None:
            return None
        return next((entry for entry in entries() if entry.name == self.model), None)

    @property
    def local(self) -> bool:
        """Whether this machine needs its model: neither a provider nor vLLM's workers have it."""
        return self.provider is None and self.vllm is None

    @property
    def model_name(self) -> str:
        """What answers are signed with: the name in the catalog, of the bundle or of the file."""
        return _file_name(self.model) if self.local else self.model

    @property
    def reads(self) -> Input:
        """What this tier can be asked with."""
        return "tensors" if self.engine == "onnx_classifier" else "text"

    @property
    def keeps_regex(self) -> bool:
        """Whether its answers can be made to keep a regular expression."""
        return self.provider is None

    @property
    def scores_drafts(self) -> bool:
        """Whether its engine says how far it agrees with a draft, and goes on from there."""
        return self.engine == "transformers"

    @property
    def ongoing_requests(self) -> int:
        """Requests that one replica answers at one time."""
        return self.max_ongoing_requests or self.parallel

    @property
    def handed_requests(self) -> int:
        """Requests that a gateway hands one replica at one time: those that it answers, and where
        its engine has a queue of its own some more, so that no slot waits for the way there and
        back."""
        if self.max_ongoing_requests is not None or not self.local:
            return self.ongoing_requests
        return self.parallel + max(1, self.parallel // 4)


class ClusterConfig(_Strict):
    """The whole file. ``tiers`` go from the lowest to the highest; ``ladders`` are signed files."""

    commercial: bool = False
    gateway: GatewayConfig = GatewayConfig()
    tiers: tuple[TierConfig, ...] = Field(strict=False)
    ladders: tuple[Annotated[Path, Field(strict=False)], ...] = Field(default=(), strict=False)
    federation: FederationConfig | None = None

    @model_validator(mode="after")
    def _adapters_from_somewhere(self) -> Self:
        if self.federation is not None and self.gateway.registry is None:
            raise ValueError(
                "federation needs gateway.registry: its adapters come from there and go there"
            )
        store = None if self.federation is None else self.federation.store
        postgresql = store is not None and store.startswith(("postgresql://", "postgres://"))
        if self.federation is not None and self.gateway.nodes > 1 and not postgresql:
            raise ValueError(
                "federation.store must be postgresql://… where gateways run on several nodes: a "
                "SQLite file is one node's"
            )
        return self

    @model_validator(mode="after")
    def _registry_is_there(self) -> Self:
        for tier in self.tiers if self.gateway.registry is None else ():
            for name, source in tier.adapters.items():
                if in_registry(source):
                    raise ValueError(
                        f"the adapter {name} of {tier.name} is {source!r} of a registry, and "
                        "gateway.registry is missing; a path begins with ./"
                    )
        return self

    @field_validator("tiers")
    @classmethod
    def _distinct(cls, tiers: tuple[TierConfig, ...]) -> tuple[TierConfig, ...]:
        if not tiers:
            raise ValueError("is empty; name at least one tier")
        names = [tier.name for tier in tiers]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two tiers are called {name!r}; names must differ")
        return tiers

    @model_validator(mode="after")
    def _may_be_sold(self) -> Self:
        for tier in self.tiers if self.commercial else ():
            if tier.allows_commercial_use:
                continue
            known = tier.catalogued
            if known is not None:
                raise ValueError(
                    f"commercial is true, but {known.licence}, the licence of {tier.model} (tier "
                    f"{tier.name}), does not allow that; take another model"
                )
            raise ValueError(
                f"commercial is true, but nobody has said that {tier.model} (tier {tier.name}) may "
                "be used so; read its licence, then set commercial_use: true there"
            )
        return self

    @model_validator(mode="after")
    def _hedged_by_others(self) -> Self:
        reads = {tier.name: tier.reads for tier in self.tiers}
        for tier in self.tiers:
            if tier.hedge is not None and reads.get(tier.hedge.to) != tier.reads:
                raise ValueError(
                    f"{tier.name} is hedged by {tier.hedge.to!r}, which is no tier that reads "
                    f"{tier.reads}; tiers: {', '.join(reads)}"
                )
        return self

    @property
    def threads(self) -> int:
        """Threads that compute when every tier is at its largest."""
        return sum(tier.threads * tier.autoscaling.max_replicas for tier in self.tiers)

    def with_port(self, port: int) -> ClusterConfig:
        """The same on another gateway port.

        Raises:
            ConfigError: the port cannot be used.
        """
        gateway = self.gateway.model_copy(update={"port": port})
        return parse_config(self.model_copy(update={"gateway": gateway}).yaml(), "--port")

    def yaml(self) -> str:
        """The file that reads back as this configuration."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def default_config() -> ClusterConfig:
    """The local demonstration cluster: one small model on one thread."""
    return parse_config(default_yaml(), "the built-in default.yaml")


def default_yaml() -> str:
    """Text of the default configuration, with its comments, to start one's own from."""
    return resources.files("cloud").joinpath("default.yaml").read_text()


def json_schema() -> dict[str, object]:
    """JSON Schema (2020-12) of the file, for editors; what goes beyond it, ``load_config`` says."""
    schema: dict[str, object] = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return schema | ClusterConfig.model_json_schema()


def load_config(path: Path | None = None) -> ClusterConfig:
    """Read a configuration file; the default one without a path. Relative paths in it are taken
    from its own folder.

    Raises:
        NotFound: there is no such file.
        ConfigError: with one line for each problem.
    """
    if path is None:
        return default_config()
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise NotFound(f"no configuration file at {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    return _anchored(parse_config(text, str(path)), path.absolute().parent)


def parse_config(text: str, source: str) -> ClusterConfig:
    """Check the text of a configuration.

    Arguments:
        source: how messages name the text.

    Raises:
        ConfigError: with one line for each problem.
    """
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{source} must hold the keys gateway and tiers")
    try:
        return ClusterConfig.model_validate(content)
    except ValidationError as error:
        lines = [
            _problem(item["loc"], item["type"], item["msg"], item.get("input"))
            for item in error.errors(include_url=False, include_context=False)
        ]
        raise ConfigError("\n".join(f"{source}: {line}" for line in lines)) from None


def is_model_path(model: str) -> bool:
    """Whether a tier's ``model`` is a file or folder, and not the name of a model or bundle."""
    return "/" in model or model.endswith(".gguf")


@lru_cache(maxsize=256)  # asked for several times a request
def _file_name(model: str) -> str:
    return Path(model).name if is_model_path(model) else model


def _anchored(config: ClusterConfig, folder: Path) -> ClusterConfig:
    def anchor(path: Path | None) -> Path | None:
        return None if path is None else folder / path.expanduser()

    given = config.gateway
    gateway = given.model_copy(
        update={
            "tls": given.tls.anchored(folder),
            "api_keys_file": anchor(given.api_keys_file),
            "jwt": None if given.jwt is None else given.jwt.anchored(folder),
            "quotas": given.quotas.model_copy(update={"file": anchor(given.quotas.file)}),
            "audit": given.audit.model_copy(update={"file": anchor(given.audit.file)}),
            "registry": _anchored_url(config.gateway.registry, folder),
        }
    )
    tiers = tuple(
        _anchored_provider(tier, folder)
        if tier.provider is not None
        else _anchored_files(tier, folder)
        for tier in config.tiers
    )
    ladders = tuple(folder / path.expanduser() for path in config.ladders)
    anchored = {"gateway": gateway, "tiers": tiers, "ladders": ladders}
    if config.federation is not None:
        anchored["federation"] = config.federation.anchored(folder)
    return config.model_copy(update=anchored)


def _anchored_files(tier: TierConfig, folder: Path) -> TierConfig:
    if not tier.local:
        return tier
    paths = tier.files_of_adapters.items()
    files = {name: str(folder / Path(path).expanduser()) for name, path in paths}
    model = tier.model
    if is_model_path(model):
        model = str(folder / Path(model).expanduser())
    return tier.model_copy(update={"model": model, "adapters": tier.adapters | files})


def _anchored_url(url: str | None, folder: Path) -> str | None:
    return url if url is None or "://" in url else str(folder / Path(url).expanduser())


def _anchored_provider(tier: TierConfig, folder: Path) -> TierConfig:
    provider = tier.provider
    if provider is None or provider.api_key_file is None:
        return tier
    path = folder / provider.api_key_file.expanduser()
    return tier.model_copy(update={"provider": provider.model_copy(update={"api_key_file": path})})


def _problem(place: Sequence[int | str], kind: str, text: str, value: object) -> str:
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place)
    path = path.removeprefix(".") or "the file"
    if kind == "extra_forbidden":
        known = _keys_at(place[:-1])
        close = difflib.get_close_matches(str(place[-1]), known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"
        return f"{path} is not a known key; {hint}"
    if kind == "missing":
        return f"{path} is missing"
    text = text.removeprefix("Value error, ")
    shown = "" if isinstance(value, dict | list | BaseModel) else f" (it is {value!r})"
    return f"{path}: {text[:1].lower()}{text[1:]}{shown}"


def _keys_at(place: Sequence[int | str]) -> list[str]:
    model: type[BaseModel] = ClusterConfig
    for step in place:
        # The names of a mapping are no keys of a model.
        if isinstance(step, str) and step in model.model_fields:
            annotation = model.model_fields[step].annotation
            parts = (annotation, *get_args(annotation))
            model = next(p for p in parts if isinstance(p, type) and issubclass(p, BaseModel))
    return list(model.model_fields)
