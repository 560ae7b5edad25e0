"""``cascade records``: show, convert and split files of records."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from cascade.errors import InvalidInput
from cascade.records import check_disjoint, load, save, split
from cascade.records.summary import Summary, TierSummary, summarise


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    inspect = actions.add_parser(
        "inspect", help="count, accuracy, latency, tokens and cost by tier"
    )
    inspect.add_argument("file", type=Path, metavar="FILE", help=".jsonl or .parquet")
    inspect.set_defaults(run=_inspect)
    convert = actions.add_parser("convert", help="write the same records as JSONL or as Parquet")
    convert.add_argument("file", type=Path, metavar="FILE", help=".jsonl or .parquet")
    convert.add_argument("out", type=Path, metavar="OUT", help=".jsonl or .parquet")
    convert.add_argument("--force", action="store_true", help="replace what is there")
    convert.set_defaults(run=_convert)
    parts = actions.add_parser(
        "split", help="write parts that share no document and no input, e.g. FILE-test.parquet"
    )
    parts.add_argument("file", type=Path, metavar="FILE", help=".jsonl or .parquet")
    parts.add_argument(
        "--parts",
        default="develop=0.3,certify=0.5,test=0.2",
        metavar="NAME=SHARE,…",
        help="names and shares of the documents (default develop=0.3,certify=0.5,test=0.2)",
    )
    parts.add_argument("--seed", default="1", help="another one is another split (default 1)")
    parts.add_argument("--balance", metavar="GROUP", help="as many records of each of its values")
    parts.add_argument("--force", action="store_true", help="replace what is there")
    parts.set_defaults(run=_split)
    for action in actions.choices.values():
        action.add_argument("--json", action="store_true", help="print one JSON object")


def print_summary(summary: Summary, *, as_json: bool) -> None:
    """Print what records come to."""
    if as_json:
        print(json.dumps(dataclasses.asdict(summary)))
        return
    graded = f" · graded by {summary.grader}" if summary.grader else ""
    print(
        f"{summary.n} records · {summary.documents} documents · {summary.inputs} different inputs"
        f"{f' · task {summary.task_id}' if summary.task_id else ''}{graded}"
    )
    for name, counts in summary.groups.items():
        shown = ", ".join(f"{value or '(none)'} {count}" for value, count in counts.items())
        print(f"{name}: {shown}")
    for tier in summary.tiers:
        print(_line(tier))


def _inspect(args: argparse.Namespace) -> int:
    print_summary(summarise(load(args.file)), as_json=args.json)
    return 0


def _convert(args: argparse.Namespace) -> int:
    _refuse_existing(args.out, force=args.force)
    records = load(args.file)
    save(args.out, records)
    _report({str(args.out): len(records)}, as_json=args.json)
    return 0


def _split(args: argparse.Namespace) -> int:
    wanted = shares(args.parts)
    outs = {
        name: args.file.with_name(f"{args.file.stem}-{name}{args.file.suffix}") for name in wanted
    }
    for out in outs.values():
        _refuse_existing(out, force=args.force)
    parts = split(load(args.file), wanted, seed=args.seed, balance=args.balance)
    check_disjoint(parts)
    for name, part in parts.items():
        save(outs[name], part)
    _report({str(outs[name]): len(part) for name, part in parts.items()}, as_json=args.json)
    return 0


def shares(text: str, *, field: str = "parts") -> dict[str, float]:
    """Parts and their shares, as in ``develop=0.3,test=0.2``.

    Raises:
        InvalidInput: it is written otherwise, or names a part twice.
    """
    found: dict[str, float] = {}
    for item in text.split(","):
        name, equals, share = item.partition("=")
        try:
            value = float(share)
        except ValueError:
            value = -1.0
        # The name becomes part of a file's.
        if not (name.replace("-", "").replace("_", "").isalnum() and equals and value > 0):
            raise InvalidInput(field, f"{item!r} is not NAME=SHARE, e.g. test=0.2")
        if name in found:
            raise InvalidInput(field, f"names {name} twice")
        found[name] = value
    return found


def _refuse_existing(path: Path, *, force: bool) -> None:
    if path.exists() and not force:
        raise InvalidInput("out", f"{path} is there already; --force replaces it")


def _report(counts: dict[str, int], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(counts))
        return
    for path, count in counts.items():
        print(f"{path}: {count} records", file=sys.stderr)


def _line(tier: TierSummary) -> str:
    parts = [f"{tier.name:<10}{tier.model or '(unknown model)'} · {tier.answered} answers"]
    parts += [f"{count} {status}" for status, count in tier.failed.items()]
    if tier.missing:
        parts.append(f"{tier.missing} not asked")
    if tier.accuracy is not None:
        low, high = tier.accuracy_ci or (None, None)
        interval = f" [{low:.3f}, {high:.3f}]" if low is not None else ""
        parts.append(f"right {tier.accuracy:.3f}{interval} of {tier.graded}")
    if tier.mean_latency_s is not None and tier.p95_latency_s is not None:
        parts.append(
            f"{tier.mean_latency_s * 1e3:.0f} ms mean, {tier.p95_latency_s * 1e3:.0f} ms p95"
        )
    if tier.mean_prompt_tokens is not None:
        parts.append(
            f"{tier.mean_prompt_tokens:.1f} + {tier.mean_completion_tokens or 0:.1f} tokens"
        )
    if tier.cost_usd:
        parts.append(f"${tier.cost_usd:.6f}")
    return " · ".join(parts)
