"""``cascade cluster status``: what the cluster of this machine serves and how it is doing, once or
again every second.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, TextIO

from cascade.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from cloud import ClusterStatus, TierStatus
    from cloud.control import AdapterStatus

_PERIOD_S: Final = 1.0
# Home, and what follows is erased line by line: nothing flickers, and the scrollback stays.
_HOME, _ERASE_LINE, _ERASE_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
_CLEAR: Final = "\x1b[2J"
_COLUMNS: Final = (
    ("tier", "<"),
    ("health", "<"),
    ("replicas", ">"),
    ("answering", ">"),
    ("queued", ">"),
    ("req/s", ">"),
    ("p50", ">"),
    ("p95", ">"),
    ("tok/s", ">"),
    ("errors", ">"),
    ("$ today", ">"),
    ("model", "<"),
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("--json", action="store_true", help="print one JSON object a look")
    parser.add_argument(
        "--watch",
        nargs="?",
        const=_PERIOD_S,
        type=float,
        metavar="SECONDS",
        help="look again every second, or so many, until Ctrl-C",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Show the status; exit code 3 where no cluster runs."""
    import cloud

    if args.watch is None:
        return _show(cloud.status(), as_json=args.json)
    if not 0.1 <= args.watch <= 3600:
        raise InvalidInput("watch", f"{args.watch:g} is not in 0.1 … 3600 seconds")
    return watch(cloud.status, args.watch, sys.stdout, as_json=args.json)


def watch(
    look: Callable[[], ClusterStatus],
    period_s: float,
    out: TextIO,
    *,
    as_json: bool = False,
    pause: Callable[[float], None] = time.sleep,
) -> int:
    """Look again and again until Ctrl-C, which is its orderly end. On a terminal each look takes
    the place of the last one; elsewhere they follow each other, an empty line between them.

    Arguments:
        pause: waits so many seconds.
    """
    over = out.isatty() and not as_json
    try:
        if over:
            out.write(_CLEAR)
        while True:
            began = time.monotonic()
            status = look()
            if as_json:
                out.write(json.dumps(as_object(status)) + "\n")
            elif over:
                out.write(_HOME)
                out.writelines(f"{line}{_ERASE_LINE}\n" for line in lines(status))
                out.write(_ERASE_BELOW)
            else:
                out.writelines(f"{line}\n" for line in (*lines(status), ""))
            out.flush()
            pause(max(0.0, period_s - (time.monotonic() - began)))
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:  # `| head` has seen enough
        return 0


def as_object(status: ClusterStatus) -> dict[str, object]:
    """The status for programs: the dataclass, with each tier's figures summed up."""
    value = dataclasses.asdict(status)
    value["tiers"] = [
        {"name": tier.name, "model": tier.model, "health": tier.health, "figures": _figures(tier)}
        for tier in status.tiers
    ]
    return value


def lines(status: ClusterStatus) -> list[str]:
    """The status for people."""
    if not status.running:
        return ["no cluster is running; start one with: cascade cluster up"]
    head = f"cluster  {status.stage} · {status.health} · {status.address} · pid {status.pid}"
    table = [[name for name, _ in _COLUMNS], *(_cells(tier) for tier in status.tiers)]
    notes = [
        f"gateway  pid {gateway.pid} · {gateway.under_way} under way"
        for gateway in status.gateways
        if len(status.gateways) > 1
    ]
    # Gateways that look at different moments may differ for some seconds.
    served = {adapter: None for gateway in status.gateways for adapter in gateway.adapters}
    notes += [_adapter(each) for each in served]
    notes += [f"metrics  http://{address}/metrics" for address in status.metrics]
    return [head, *notes, *_table(table, [side for _, side in _COLUMNS])]


def _adapter(adapter: AdapterStatus) -> str:
    named = f"adapter  {adapter.name} of {adapter.tier} · {adapter.source[:64]}"
    if adapter.problem:
        return f"{named} · withheld: {adapter.problem}"
    revision = f" · revision {adapter.revision}" if adapter.revision else ""
    return f"{named} · {adapter.digest[:12]}{revision}"


def _show(status: ClusterStatus, *, as_json: bool) -> int:
    print(json.dumps(as_object(status)) if as_json else "\n".join(lines(status)))
    return 0 if status.running else NotFound.exit_code


def _cells(tier: TierStatus) -> list[str]:
    known = tier.figures
    if known is None:
        return [tier.name, tier.health, *("–" for _ in _COLUMNS[3:]), tier.model]
    return [
        tier.name,
        tier.health,
        str(known.replicas),
        str(known.answering),
        str(known.waiting),
        f"{known.requests_per_s:.2f}",
        _seconds(known.quantile_s(0.5)),
        _seconds(known.quantile_s(0.95)),
        f"{known.tokens_per_s:.1f}",
        str(known.failed),
        _money(known.cost_today_usd),
        tier.model,
    ]


def _figures(tier: TierStatus) -> dict[str, float | int | None] | None:
    known = tier.figures
    if known is None:
        return None
    return {
        "replicas": known.replicas,
        "answering": known.answering,
        "queued": known.waiting,
        "window_s": known.window_s,
        "requests": known.calls,
        "requests_per_s": known.requests_per_s,
        "p50_s": known.quantile_s(0.5),
        "p95_s": known.quantile_s(0.95),
        "tokens_per_s": known.tokens_per_s,
        "errors": known.failed,
        "cost_today_usd": known.cost_today_usd,
    }


def _money(usd: float) -> str:
    return "<0.0001" if 0 < usd < 0.0001 else f"{usd:.4f}"


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def _table(rows: Sequence[Sequence[str]], sides: Sequence[str]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)
        ).rstrip()
        for row in rows
    ]
