"""Which of Ray's nodes may run a tier's replicas, as the YAML says it."""

from __future__ import annotations

import math
import re
from typing import Annotated, Final

from pydantic import Field, field_validator

from cloud.strict_model import StrictModel as _Strict

_LABEL: Final = re.compile(r"!?(in\([\w.-]+( *, *[\w.-]+)*\)|[\w.-]+)", re.ASCII)
_NOT_CUSTOM: Final = ("CPU", "GPU", "memory")


class Placement(_Strict):
    """What a node has to have beside CPUs for the tier's threads: so much of each resource, and
    these labels (``a``, ``!a``, ``in(a,b)`` or ``!in(a,b)``)."""

    resources: dict[str, Annotated[float, Field(gt=0, lt=math.inf)]] = Field(default={})
    labels: dict[str, str] = Field(default={})

    @field_validator("resources")
    @classmethod
    def _custom(cls, resources: dict[str, float]) -> dict[str, float]:
        for name in resources:
            if name in _NOT_CUSTOM:
                raise ValueError(
                    f"the resource {name} cannot be asked for here; threads are CPUs, GPUs are "
                    "vllm's, and others have names that `ray start --resources` gives them"
                )
        return resources

    @field_validator("labels")
    @classmethod
    def _selectors(cls, labels: dict[str, str]) -> dict[str, str]:
        for name, selector in labels.items():
            if not _LABEL.fullmatch(selector):
                raise ValueError(f"{name}: {selector!r} is none of a, !a, in(a,b), !in(a,b)")
        return labels
