"""What this machine can do with which bundle: measured points, the recommendation that follows from
them, and the file that keeps both.

Measuring is ``edge.bench``'s business. Nothing here decides what a model is *worth*: quality is
measured by labelled data (``cascade.certify``), not by a stopwatch.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from cascade import home
from cascade.errors import InvalidInput
from cascade.files import write_whole
from cascade.strict import Fields

PROFILE_FORMAT = 1
# Fewer threads leave cores to other programs; 5 % is less than anybody notices.
_NEAR_BEST = 0.95


@dataclass(frozen=True, slots=True)
class Point:
    """One bundle with one number of threads.

    Arguments:
        bundle, quantisation: of its manifest.
        threads: ≥ 1.
        load_s: from the verified files to a loaded model, files in the system's cache.
        first_token_s: from there to the first token of a 16-token prompt.
        prefill_tokens_per_s, decode_tokens_per_s: medians, by the clock.
        cpu_s_per_token: CPU time of one decoded token, over all threads.
        peak_bytes, anonymous_bytes: memory of the whole process; see ``edge.memory``.
    """

    bundle: str
    quantisation: str
    threads: int
    load_s: float
    first_token_s: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    cpu_s_per_token: float
    peak_bytes: int | None
    anonymous_bytes: int | None


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The bundle and the number of threads to use here; ``rule`` says why, in a sentence."""

    bundle: str
    threads: int
    rule: str


@dataclass(frozen=True, slots=True)
class Profile:
    """What was measured on a machine.

    Arguments:
        machine: what it was measured on; a profile of another machine is not used.
        measured_at: UTC, ISO 8601.
        memory_budget_bytes: what ``recommendation`` kept within; None for no limit.
        recommendation: None where no point keeps within the budget.
        quick: from a short run, which is noisier.
    """

    machine: str
    measured_at: str
    memory_budget_bytes: int | None
    points: tuple[Point, ...]
    recommendation: Recommendation | None
    quick: bool = False
    format_version: int = PROFILE_FORMAT

    @classmethod
    def of(
        cls, points: Sequence[Point], *, memory_budget_bytes: int | None = None, quick: bool = False
    ) -> Self:
        """The profile of this machine, now."""
        return cls(
            machine=machine(),
            measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
            memory_budget_bytes=memory_budget_bytes,
            points=tuple(points),
            recommendation=recommend(points, memory_budget_bytes),
            quick=quick,
        )

    def threads_for(self, bundle: str) -> int | None:
        """The number of threads to use with a bundle; None where it was not measured."""
        points = [point for point in self.points if point.bundle == bundle]
        return _fewest_threads(points).threads if points else None

    def save(self, path: Path | None = None) -> Path:
        """Write it, by default to where ``load`` finds it."""
        path = path or profile_path()
        write_whole(path, (json.dumps(dataclasses.asdict(self), indent=2) + "\n").encode())
        return path

    @classmethod
    def load(cls, path: Path | None = None) -> Self | None:
        """The profile of this machine; None where there is none, or it is another machine's.

        Raises:
            InvalidInput: the file holds something else; the field is named.
        """
        path = path or profile_path()
        try:
            profile = cls.from_bytes(path.read_bytes())
        except FileNotFoundError:
            return None
        return profile if profile.machine == machine() else None

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what ``save`` wrote.

        Raises:
            InvalidInput: it is something else; the field is named.
        """
        try:
            fields = Fields(json.loads(data), "profile")
        except ValueError as problem:
            if isinstance(problem, InvalidInput):
                raise
            raise InvalidInput("profile", f"is not JSON ({problem})") from None
        fields.integer("format_version", PROFILE_FORMAT, PROFILE_FORMAT)
        points = fields.take("points")
        if not isinstance(points, list):
            raise InvalidInput("profile.points", "must be a list")
        advice: object = fields.take("recommendation")
        profile = cls(
            machine=fields.text("machine"),
            measured_at=fields.text("measured_at"),
            memory_budget_bytes=_whole(fields.number_or_none("memory_budget_bytes", 0)),
            points=tuple(
                point_from_json(point, f"profile.points[{i}]") for i, point in enumerate(points)
            ),
            recommendation=None if advice is None else _recommendation(advice),
            quick=fields.boolean("quick"),
        )
        fields.end()
        return profile


def recommend(points: Iterable[Point], memory_budget_bytes: int | None) -> Recommendation | None:
    """The fastest decoding within the budget, and of its thread counts the fewest within 5 %.

    Arguments:
        memory_budget_bytes: bound on ``Point.peak_bytes``; None for no limit.

    Returns:
        None where no point keeps within the budget.
    """
    within = [
        point
        for point in points
        if memory_budget_bytes is None or (point.peak_bytes or 0) <= memory_budget_bytes
    ]
    if not within:
        return None
    best = max(within, key=lambda point: point.decode_tokens_per_s)
    chosen = _fewest_threads([point for point in within if point.bundle == best.bundle])
    budget = (
        ""
        if memory_budget_bytes is None
        else f" within {memory_budget_bytes / 1e6:.0f} MB of memory"
    )
    rule = f"most tokens per second when decoding{budget}; the fewest threads within 5 % of that"
    return Recommendation(chosen.bundle, chosen.threads, rule)


def recommended_threads(bundle: str) -> int:
    """Threads for a bundle by this machine's profile; 1 without one. A broken profile is no reason
    not to start: it counts as none."""
    try:
        profile = Profile.load()
    except InvalidInput:
        return 1
    return (profile.threads_for(bundle) if profile else None) or 1


def machine() -> str:
    """What a profile belongs to: processor, usable cores, and the runtime that was measured."""
    import onnxruntime

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    processor = found[1] if found else platform.processor() or platform.machine()
    return f"{processor}, {cores} cores, onnxruntime {onnxruntime.__version__}"


def profile_path() -> Path:
    """Where this machine's profile is kept."""
    return home.profile_dir() / "profile.json"


def point_from_json(value: object, where: str) -> Point:
    """Read a point that was written as JSON.

    Raises:
        InvalidInput: it is something else; the field is named.
    """
    fields = Fields(value, where)
    point = Point(
        bundle=fields.text("bundle"),
        quantisation=fields.text("quantisation"),
        threads=fields.integer("threads", 1, 4096),
        load_s=fields.number("load_s", 0),
        first_token_s=fields.number("first_token_s", 0),
        prefill_tokens_per_s=fields.number("prefill_tokens_per_s", 0),
        decode_tokens_per_s=fields.number("decode_tokens_per_s", 0),
        cpu_s_per_token=fields.number("cpu_s_per_token", 0),
        peak_bytes=_whole(fields.number_or_none("peak_bytes", 0)),
        anonymous_bytes=_whole(fields.number_or_none("anonymous_bytes", 0)),
    )
    fields.end()
    return point


def _whole(number: float | None) -> int | None:
    return None if number is None else int(number)


def _recommendation(value: object) -> Recommendation:
    fields = Fields(value, "profile.recommendation")
    chosen = Recommendation(
        bundle=fields.text("bundle"),
        threads=fields.integer("threads", 1, 4096),
        rule=fields.text("rule"),
    )
    fields.end()
    return chosen


def _fewest_threads(points: Sequence[Point]) -> Point:
    """Of one bundle's points, that with the fewest threads among those near the fastest."""
    best = max(point.decode_tokens_per_s for point in points)
    near = [point for point in points if point.decode_tokens_per_s >= _NEAR_BEST * best]
    return min(near, key=lambda point: point.threads)
