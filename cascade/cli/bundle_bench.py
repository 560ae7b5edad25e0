"""``cascade bundle bench``: measure this machine, keep the profile, show it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cascade import home
from cascade.cli.interrupt import loading
from cascade.cli.progress import ProgressLine
from cascade.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from edge.profile import Point, Profile

_BAR = 30


def configure(action: argparse.ArgumentParser) -> None:
    """Add the action's arguments; ``--json`` is the verb's own."""
    action.add_argument(
        "bundles", nargs="*", metavar="BUNDLE", help="names or folders (default: all that are here)"
    )
    action.add_argument(
        "--threads", metavar="N,N", help="thread counts (default: 1, 2, 4 … up to the cores)"
    )
    action.add_argument(
        "--memory", type=float, metavar="MB", help="recommend only what stays below this"
    )
    action.add_argument("--quick", action="store_true", help="shorter and noisier")
    action.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    with loading():
        from edge.bench import measure_apart
        from edge.profile import Profile, profile_path

    threads = _thread_counts(args.threads)
    if args.memory is not None and not 0 < args.memory < math.inf:
        raise InvalidInput("--memory", f"{args.memory:g} is not a number of megabytes above 0")
    bundles = _bundles(args.bundles)
    line = ProgressLine("bench", len(bundles) * len(threads), "points")
    points: list[Point] = []
    try:
        for bundle in bundles:
            for count in threads:
                line.note(f"{bundle.name}, {count} thread{'s' if count > 1 else ''}")
                points.append(measure_apart(bundle, threads=count, quick=args.quick))
    except BaseException:
        line.abandon()
        raise
    line.done(f"{len(points)} points")
    budget = None if args.memory is None else int(1e6 * args.memory)
    profile = Profile.of(points, memory_budget_bytes=budget, quick=args.quick)
    profile.save()
    chart = _draw(profile, profile_path().with_suffix(".png"))
    if args.json:
        paths = {"profile": str(profile_path()), "chart": str(chart) if chart else None}
        print(json.dumps(dataclasses.asdict(profile) | paths))
        return 0
    print("\n".join(_lines(profile)))
    print(f"profile: {profile_path()}", file=sys.stderr)
    if chart:
        print(f"chart: {chart}", file=sys.stderr)
    return 0


def _bundles(names: Sequence[str]) -> list[Path]:
    from edge import bundle_path
    from edge.bundle import MANIFEST, inspect

    if names:
        paths = [bundle_path(name) for name in names]
        for path in paths:  # a wrong name is no news after minutes of measuring
            if inspect(path).kind != "decoder":
                raise InvalidInput("BUNDLE", f"{path.name} is a classifier; it writes no tokens")
        return paths
    folder = home.bundles_dir()
    there = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}")) if folder.is_dir() else []
    found = [path for path in there if inspect(path).kind == "decoder"]
    if not found:
        raise NotFound(
            f"there is no language model under {folder}; make one with: cascade bundle build"
        )
    return found


def _thread_counts(text: str | None) -> list[int]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if text is None:
        return [1 << power for power in range((cores or 1).bit_length())]
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = [0]
    if min(counts) < 1 or len(set(counts)) < len(counts):
        raise InvalidInput("--threads", f"{text!r} is not a list of different counts such as 1,2,4")
    return counts


def _lines(profile: Profile) -> list[str]:
    """Measured points as a table with bars, and what follows from them."""
    fastest = max(point.decode_tokens_per_s for point in profile.points)
    width = max(len(point.bundle) for point in profile.points)
    lines = [profile.machine, ""]
    stored = max(len(point.quantisation) for point in profile.points)
    lines.append(
        f"{'bundle':<{width}} {'weights':<{stored}} threads  load s  prefill/s  decode/s  peak MB  "
        "anonymous MB"
    )
    for point in profile.points:
        bar = "█" * max(1, round(_BAR * point.decode_tokens_per_s / fastest))
        lines.append(
            f"{point.bundle:<{width}} {point.quantisation:<{stored}} {point.threads:>7} "
            f"{point.load_s:>7.2f} {point.prefill_tokens_per_s:>10.1f} "
            f"{point.decode_tokens_per_s:>9.1f} {_megabytes(point.peak_bytes):>8} "
            f"{_megabytes(point.anonymous_bytes):>13}  {bar}"
        )
    lines.append("")
    chosen = profile.recommendation
    if chosen is None:
        lines.append("nothing measured stays within the memory that was allowed")
    else:
        plural = "s" if chosen.threads > 1 else ""
        weights = next(p.quantisation for p in profile.points if p.bundle == chosen.bundle)
        lines.append(
            f"recommended: {chosen.bundle} ({weights}) with {chosen.threads} thread{plural}"
        )
        lines.append(f"({chosen.rule})")
    return lines


def _megabytes(size: int | None) -> str:
    return "–" if size is None else f"{size / 1e6:.0f}"


def _draw(profile: Profile, path: Path) -> Path | None:
    """Tokens per second by bundle and threads as a picture; None without the extra ``tune``."""
    try:
        with loading():
            from matplotlib.figure import Figure
    except ImportError:
        return None
    import io

    from cascade.files import write_whole

    figure = Figure(figsize=(8, 1.2 + 0.45 * len(profile.points)), layout="constrained")
    labels = [
        f"{p.bundle}\n{p.threads} thread{'s' if p.threads > 1 else ''}" for p in profile.points
    ]
    for axes, title, values in zip(
        figure.subplots(1, 2, sharey=True),
        ("decode, tokens/s", "prefill, tokens/s"),
        (
            [point.decode_tokens_per_s for point in profile.points],
            [point.prefill_tokens_per_s for point in profile.points],
        ),
        strict=True,
    ):
        bars = axes.barh(range(len(values)), values, color="#4477aa")
        axes.bar_label(bars, fmt="%.0f", padding=3)
        axes.set_yticks(range(len(values)), labels)
        axes.set_title(title)
        axes.margins(x=0.15)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].invert_yaxis()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_whole(path, picture.getvalue())
    return path
