"""``cascade cluster check`` and ``schema``: what a configuration says, before anything starts."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cascade.cli.interrupt import loading
from cascade.errors import ClusterError

if TYPE_CHECKING:
    from argparse import ArgumentParser, _SubParsersAction

    from cloud import Plan, TierPlan
    from cloud.federation.planned import FederationPlan
    from cloud.served_adapters import TierAdapter


def configure(actions: _SubParsersAction[ArgumentParser]) -> None:
    """Add both verbs to those of ``cascade cluster``."""
    check = actions.add_parser(
        "check", help="explain what a configuration would start, and what it costs"
    )
    check.add_argument(
        "config", nargs="?", type=Path, metavar="FILE", help="YAML file (default: the built-in one)"
    )
    check.add_argument(
        "--ray",
        nargs="?",
        const="auto",
        metavar="ADDRESS",
        help="also look which nodes of a running Ray cluster could run each tier (host:port of its "
        "head; without a value, the one on this machine)",
    )
    check.add_argument("--json", action="store_true", help="print one JSON object")
    check.set_defaults(run=_check)
    schema = actions.add_parser(
        "schema", help="print the JSON Schema of the configuration, for editors"
    )
    schema.set_defaults(run=_schema)


def _check(args: argparse.Namespace) -> int:
    with loading():
        from cloud import load_config, plan_cluster
        from cloud.placement import ray_nodes

    config = load_config(args.config)
    planned = plan_cluster(config, nodes=None if args.ray is None else ray_nodes(args.ray))
    if args.json:
        value = dataclasses.asdict(planned)
        print(json.dumps({**value, "starts": not planned.problems}))
    else:
        for line in _lines(planned):
            print(line)
    return ClusterError.exit_code if planned.problems else 0


def _schema(args: argparse.Namespace) -> int:
    with loading():
        from cloud import json_schema

    print(json.dumps(json_schema(), indent=2))
    return 0


def _lines(plan: Plan) -> list[str]:
    lines = [
        f"gateway  {plan.address} · TLS by {plan.tls}",
        f"callers  {plan.callers}",
        *(
            ["licence  commercial: every model's licence has to allow it"]
            if plan.commercial
            else []
        ),
        f"threads  {plan.threads} at the most, on {plan.cores} cores",
        "",
        *_table([_HEAD, *(_row(tier) for tier in plan.tiers)]),
        "",
        "A request goes to the lowest tier that its constraints allow. Mixed is the price of three",
        "tokens read for each one written.",
    ]
    for tier in plan.tiers:
        lines += ["", *_details(tier)]
    if plan.federation is not None:
        lines += ["", *_rounds(plan.federation)]
    if plan.notes:
        lines += ["", *(f"note     {note}" for note in plan.notes)]
    if plan.problems:
        return [*lines, "", *(f"missing  {problem}" for problem in plan.problems)]
    return [*lines, "", "ready    everything that it needs is on this machine"]


_HEAD = ("tier", "engine", "replicas", "at once", "$/M read", "$/M written", "$/M mixed")


def _row(tier: TierPlan) -> tuple[str, ...]:
    fewest, most = tier.replicas
    return (
        tier.name,
        tier.engine,
        str(most) if fewest == most else f"{fewest}–{most}",
        f"{tier.at_once} + {tier.queued}",
        *(f"{price:.2f}" for price in tier.usd_per_million_tokens),
    )


def _details(tier: TierPlan) -> list[str]:
    size = "not here" if tier.model_bytes is None else f"{tier.model_bytes / 1e6:.0f} MB"
    licence = tier.licence or "licence not in the catalog"
    if tier.asks:
        size, licence = f"at {tier.asks}", "under the provider's terms"
    region = f" · region {tier.region}" if tier.region else ""
    placed = [f"         on nodes with {tier.placement}"] if tier.placement else []
    return [
        f"{tier.name:<8} {tier.model} · {size} · {licence} · prices {tier.price_label}",
        f"         context {tier.context_tokens} tokens · data {', '.join(tier.data_classes)}"
        f"{region} · {tier.threads} threads at the most",
        *(line for each in tier.adapters for line in _adapter(each)),
        *placed,
    ]


def _adapter(adapter: TierAdapter) -> list[str]:
    line = f"         adapter {adapter.name}: {adapter.source}"
    if not adapter.digest:
        return [line if adapter.problem else f"{line} · no licence in it"]
    base = "for this base" if adapter.base == "checked" else "base compared at the start"
    signed = f"         signed by {adapter.publisher} · {adapter.licence} · {base}"
    known = [] if adapter.source == adapter.digest else [f"         digest {adapter.digest}"]
    return [line, *known, signed]


def _rounds(plan: FederationPlan) -> list[str]:
    size = "" if plan.payload_bytes is None else f" · {plan.payload_bytes:,} bytes an update"
    ends = f"of {plan.goal} updates, never of fewer than {plan.minimum}"
    if plan.mode == "synchronous":
        ends += f", after {plan.round_s:g} s"
    return [
        f"rounds   {plan.mode} · {ends} · {plan.leases} leases at most",
        f"         from {plan.adapter} · trains {plan.trains}{size}",
        f"         {plan.aggregation} · next from what is {plan.start_from} · kept in {plan.store}",
        *([f"masks    {plan.masks}"] if plan.masks else []),
        *([f"privacy  {plan.privacy}"] if plan.privacy else []),
        *(f"{'gate' if not place else '':<8} {line}" for place, line in enumerate(plan.gate)),
        f"rollout  {plan.rollout}",
    ]


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
