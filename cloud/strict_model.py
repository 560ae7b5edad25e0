"""What all parts of the configuration have in common: unknown keys are errors."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class StrictModel(BaseModel):
    """A part of the YAML file; frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
