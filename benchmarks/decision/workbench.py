"""How long tuning and replaying take on a million records of two tiers, file to verdict."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.rows import Row
from benchmarks.run import Run
from benchmarks.timing import Sample, cpu, measure, median, wall
from cascade.cli import main
from cascade.errors import CascadeError
from cascade.files import sha256_bytes
from cascade.records import Header, RecordSet, TierInfo, from_columns, save
from cascade.task import generic

_RECORDS, _QUICK = 1_000_000, 50_000
_PER_DOCUMENT = 3
_OPTIONS = ("positive", "negative")
_TUNE_S, _REPLAY_S = 10.0, 5.0


def rows(subject: None, run: Run) -> Iterator[Row]:
    """Wall time of the two commands in this process, and the CPU time beside it."""
    count, rounds = (_QUICK, 1) if run.quick else (_RECORDS, 3)
    with tempfile.TemporaryDirectory(prefix="cascade-workbench-") as scratch:
        folder = Path(scratch)
        file, policy = folder / "records.parquet", folder / "policy.json"
        run.say(f"drawing {count:,} records")
        save(file, _drawn(count))
        tuning = ["tune", str(file), "--target", "risk=0.2", "--out", str(policy), "--force"]
        replaying = ["replay", str(policy), str(file)]
        with _home(folder / "home"):
            for name, command, reach, what in (
                (
                    "tune",
                    tuning,
                    _TUNE_S,
                    "load, split by document, calibrate, certify, test, sign",
                ),
                ("replay", replaying, _REPLAY_S, "load, every figure, 1,000 resamples by document"),
            ):
                run.say(name)
                samples = [_timed(command) for _ in range(rounds)]
                for clock, values in (("wall", wall(samples)), ("CPU", cpu(samples))):
                    yield run.row(
                        f"{name} on {count:,} records, 2 tiers, {clock} time",
                        median(values),
                        "s",
                        f"cascade {name} in this process on a Parquet file of {count:,} drawn "
                        f"records: {what}",
                        reach=reach if clock == "wall" and not run.quick else None,
                    )


def _timed(command: list[str]) -> Sample:
    codes: list[int] = []
    with contextlib.redirect_stdout(io.StringIO()):
        sample = measure(lambda: codes.append(main(command)))
    if codes != [0]:
        raise CascadeError(f"cascade {command[0]} ended with {codes}")
    return sample


@contextlib.contextmanager
def _home(path: Path) -> Iterator[None]:
    """Keys of its own: the user's are not touched."""
    before = os.environ.get("CASCADE_HOME")
    os.environ["CASCADE_HOME"] = str(path)
    try:
        yield
    finally:
        if before is None:
            del os.environ["CASCADE_HOME"]
        else:
            os.environ["CASCADE_HOME"] = before


def _drawn(count: int) -> RecordSet:
    """P(right) of the device is its raw score; the cluster is right nine times of ten."""
    rng = np.random.default_rng(20_261)
    score = rng.uniform(0.5, 1, count)
    ids = [f"r{i}" for i in range(count)]
    header = Header(
        tiers=(
            TierInfo("device", "drawn", "device", base_digest="00" * 32),
            TierInfo("tier1", "drawn", "cloud"),
        ),
        task_id="drawn",
        options=_OPTIONS,
        wording=generic(_OPTIONS),
    )
    return from_columns(
        header,
        {
            "id": ids,
            "document": [f"d{i // _PER_DOCUMENT}" for i in range(count)],
            "input_sha256": [sha256_bytes(each.encode()) for each in ids],
            "tier.device.raw_score": score,
            "tier.device.correct": (rng.random(count) < score).astype(np.float64),
            "tier.device.latency_s": rng.gamma(9, 0.02, count),
            "tier.device.prompt_tokens": rng.integers(20, 90, count),
            "tier.device.completion_tokens": rng.integers(1, 4, count),
            "tier.tier1.correct": (rng.random(count) < 0.9).astype(np.float64),
            "tier.tier1.latency_s": rng.gamma(4, 0.2, count),
            "tier.tier1.cost_usd": rng.gamma(4, 0.0001, count),
            "tier.tier1.bytes_up": rng.integers(200, 900, count),
            "tier.tier1.prompt_tokens": rng.integers(20, 90, count),
            "tier.tier1.completion_tokens": rng.integers(1, 4, count),
        },
    )
