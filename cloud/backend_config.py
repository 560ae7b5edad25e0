"""How a tier reaches a model that another program computes: a provider, or vLLM's deployment."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import Field, JsonValue, field_validator, model_validator

from cloud.strict_model import StrictModel as _Strict

# What vLLM is told by keys of the tier, and therefore not in ``engine_kwargs``.
_FROM_THE_TIER: Final = frozenset(
    {
        "enable_lora",
        "max_loras",
        "max_model_len",
        "max_num_seqs",
        "pipeline_parallel_size",
        "structured_outputs_config",
        "tensor_parallel_size",
    }
)


class ProviderConfig(_Strict):
    """How a tier asks somebody else's API. Keys are never written here: they come from a variable
    of the environment, or from a file, which is read anew for each request."""

    base_url: str | None = None
    api_key_env: str | None = Field(default=None, min_length=1)
    api_key_file: Path | None = Field(default=None, strict=False)
    timeout_s: float = Field(default=60.0, gt=0, le=3600)
    logprobs: bool = False
    sampling: bool = True
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"

    @field_validator("base_url")
    @classmethod
    def _web(cls, url: str | None) -> str | None:
        if url is not None and not re.fullmatch(r"https?://[^\s/@]+(/\S*)?", url):
            raise ValueError("must be an http or https address without a user name or key")
        return url

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if self.api_key_env is not None and self.api_key_file is not None:
            raise ValueError("give api_key_env or api_key_file, not both")
        if self.base_url is None and self.api_key_env is None and self.api_key_file is None:
            raise ValueError("name where the key is: api_key_env or api_key_file")
        return self


class VllmConfig(_Strict):
    """How ray.serve.llm runs a tier's model: docs/cluster.md, "GPUs by vLLM"."""

    accelerator_type: str | None = Field(default=None, min_length=1)
    tensor_parallel: int = Field(default=1, ge=1, le=1024)
    pipeline_parallel: int = Field(default=1, ge=1, le=1024)
    cpus_per_worker: float = Field(default=1.0, ge=0, lt=math.inf)
    gpus_per_worker: float = Field(default=1.0, ge=0, lt=math.inf)
    placement: Literal["PACK", "STRICT_PACK", "SPREAD", "STRICT_SPREAD"] = "PACK"
    adapters_url: str | None = None
    adapter: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")
    most_adapters: int = Field(default=4, ge=1, le=1024)
    engine_kwargs: dict[str, JsonValue] = Field(default={}, strict=False)

    @field_validator("engine_kwargs")
    @classmethod
    def _not_the_tiers(cls, given: dict[str, JsonValue]) -> dict[str, JsonValue]:
        taken = sorted(_FROM_THE_TIER.intersection(given))
        if taken:
            raise ValueError(f"{', '.join(taken)} follows from the tier's other keys; leave it out")
        return given

    @field_validator("adapters_url")
    @classmethod
    def _remote(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(("s3://", "gs://", "abfss://", "azure://")):
            raise ValueError("must begin with s3://, gs://, abfss:// or azure://")
        return url

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.adapter is not None and self.adapters_url is None:
            raise ValueError("adapter needs adapters_url, the place of the adapters")
        if self.gpus_per_worker == 0 and self.accelerator_type is not None:
            raise ValueError("accelerator_type needs gpus_per_worker above 0")
        return self
