"""The ``federation.gate`` section of the cluster's YAML: by what candidates are judged."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from cascade.checks import Check, forbids, matches, satisfies
from cascade.errors import InvalidInput, NotFound
from cloud.strict_model import StrictModel

_SHA256 = re.compile(r"[0-9a-f]{64}")


class TaskGate(StrictModel):
    """One task that candidates must not become worse at. No text may be in two of the files.

    Arguments:
        wording: the task as JSON, as ``cascade record --wording`` takes it; free text where it has
            no options. Its id is the one of the policy.
        held_out: labelled rows by which adapters are compared, ``.csv`` or ``.jsonl`` with the
            columns ``prompt`` and ``reference``.
        develop, certify: labelled rows from which the confidence policy is made, as `cascade tune`
            does: the calibrator from the first, the threshold from the second.
        out_of_scope: inputs that are none of the task's; no reference is needed.
        grader: what says whether an answer is right, see ``cascade.graders``; no tier is asked.
        max_tokens: of a free answer.
        most_worse: by how much the candidate's accuracy may be below that of the adapters that it
            is compared with, in (0, 1). The candidate must show that it is less.
        delta: tolerated probability that a candidate which is worse by ``most_worse`` passes;
            small, for whoever lies may try again in every round.
        most_brier_rise, most_ece_rise: by how much the errors of its confidence may be higher.
        most_escape: by how much a smaller share of what is out of scope may be escalated.
        risk: the largest share of wrong answers among those that a device keeps.
        most_less_kept: by how much a smaller share of the certify rows its policy may keep.
        certify_delta: tolerated probability that the policy does not hold ``risk``.
        calibrator: of the raw score.
    """

    wording: Path = Field(strict=False)
    held_out: Path = Field(strict=False)
    develop: Path = Field(strict=False)
    certify: Path = Field(strict=False)
    out_of_scope: Path | None = Field(default=None, strict=False)
    grader: str = Field(default="choice", min_length=1)
    max_tokens: int = Field(default=64, ge=1, le=100_000)
    most_worse: float = Field(default=0.02, gt=0, lt=1)
    delta: float = Field(default=0.01, gt=0, lt=0.5)
    most_brier_rise: float = Field(default=0.02, ge=0, le=1)
    most_ece_rise: float = Field(default=0.05, ge=0, le=1)
    most_escape: float = Field(default=0.03, ge=0, le=1)
    risk: float = Field(default=0.05, gt=0, lt=1)
    most_less_kept: float = Field(default=0.02, ge=0, le=1)
    certify_delta: float = Field(default=0.05, gt=0, lt=0.5)
    calibrator: Literal["platt", "isotonic"] = "platt"

    @property
    def files(self) -> dict[str, Path]:
        """The files of rows, by the name of their key."""
        named = {"held_out": self.held_out, "develop": self.develop, "certify": self.certify}
        return named if self.out_of_scope is None else {**named, "out_of_scope": self.out_of_scope}

    def anchored(self, folder: Path) -> Self:
        """The same with relative paths taken from ``folder``."""
        named = {"wording": self.wording, **self.files}
        return self.model_copy(update={key: folder / path for key, path in named.items()})


class CheckConfig(StrictModel):
    """A check of an answer's text; exactly one of the four.

    Arguments:
        regex: the whole answer matches it.
        json_schema: the answer is a JSON document that satisfies it.
        forbids: none of these words or phrases is in it, whatever their case.
        forbids_file: the same from a file, one a line.
    """

    regex: str | None = None
    json_schema: str | None = None
    forbids: tuple[str, ...] | None = Field(default=None, strict=False)
    forbids_file: Path | None = Field(default=None, strict=False)

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = (self.regex, self.json_schema, self.forbids, self.forbids_file)
        if sum(each is not None for each in given) != 1:
            raise ValueError("must have exactly one of regex, json_schema, forbids, forbids_file")
        return self

    def check(self) -> Check:
        """The check itself.

        Raises:
            InvalidInput: it cannot be used.
            NotFound: there is no such file.
            CascadeError: jsonschema is not installed.
        """
        if self.regex is not None:
            return matches(self.regex)
        if self.json_schema is not None:
            return satisfies(self.json_schema)
        words = self.forbids or ()
        if self.forbids_file is not None:
            try:
                words = tuple(self.forbids_file.read_text(encoding="utf-8").splitlines())
            except FileNotFoundError:
                raise NotFound(f"there is no file {self.forbids_file}") from None
            except (OSError, UnicodeDecodeError):
                raise InvalidInput(
                    "forbids_file", f"{self.forbids_file} cannot be read as UTF-8 text"
                ) from None
        return forbids(words)

    def anchored(self, folder: Path) -> Self:
        """The same with relative paths taken from ``folder``."""
        if self.forbids_file is None:
            return self
        return self.model_copy(update={"forbids_file": folder / self.forbids_file})


class GateConfig(StrictModel):
    """What a candidate adapter must show before devices may start from it or run it.

    It is compared with the adapter that its round started from, and with the first one of all, so
    that many small steps do not add up to what one step may not do.

    Arguments:
        bundle: digest of the bundle in the registry that runs it.
        tasks: what it must not become worse at; at least one, with different wordings.
        canaries: prompts with checks that the answer must or must not pass, ``.jsonl``.
        checks: by the name by which canaries ask for them.
        most_failed: the share of canaries that may fail.
        threads: of the process in which candidates run.
        timeout_s: after which an evaluation is ended, undecided.
        attempts: evaluations that may crash or time out before an operator has to decide.
    """

    bundle: str
    tasks: tuple[TaskGate, ...] = Field(min_length=1, strict=False)
    canaries: Path | None = Field(default=None, strict=False)
    checks: dict[str, CheckConfig] = Field(default_factory=dict)
    most_failed: float = Field(default=0.0, ge=0, lt=1)
    threads: int = Field(default=1, ge=1, le=1024)
    timeout_s: float = Field(default=3600.0, gt=0, lt=math.inf)
    attempts: int = Field(default=3, ge=1, le=100)

    @field_validator("bundle")
    @classmethod
    def _digest(cls, digest: str) -> str:
        if not _SHA256.fullmatch(digest):
            raise ValueError(
                "must be a bundle's digest: 64 lower-case hex digits, which `cascade registry list "
                "--full` shows"
            )
        return digest

    def anchored(self, folder: Path) -> Self:
        """The same with relative paths taken from ``folder``."""
        return self.model_copy(
            update={
                "tasks": tuple(task.anchored(folder) for task in self.tasks),
                "canaries": None if self.canaries is None else folder / self.canaries,
                "checks": {name: each.anchored(folder) for name, each in self.checks.items()},
            }
        )

    @property
    def paths(self) -> dict[str, Path | None]:
        """Every file, by its key in the cluster's YAML."""
        named: dict[str, Path | None] = {"federation.gate.canaries": self.canaries}
        for place, task in enumerate(self.tasks):
            for key, path in {"wording": task.wording, **task.files}.items():
                named[f"federation.gate.tasks[{place}].{key}"] = path
        for name, each in self.checks.items():
            named[f"federation.gate.checks.{name}.forbids_file"] = each.forbids_file
        return named
