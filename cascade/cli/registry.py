"""``cascade registry``: publish what devices run, to everybody or to a few of them first."""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cascade import home
from cascade.cli.interrupt import loading
from cascade.cli.progress import ProgressLine
from cascade.cli.tune_files import signing_key
from cascade.errors import InvalidInput, NotFound
from cascade.signing import TrustStore

if TYPE_CHECKING:
    from cloud.registry import Channel, Needs, Published, Registry, Variant

_DEFAULT_CHANNEL: Final = "stable"
_VARIABLE: Final = "CASCADE_REGISTRY"
_DAY_S: Final = 86_400
_UNITS: Final = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    publish = actions.add_parser("publish", help="put bundles, adapters or policies on a channel")
    publish.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="a bundle, an adapter or a policy"
    )
    publish.add_argument(
        "--canary", type=int, metavar="PERCENT", help="to so many of a hundred devices first"
    )
    publish.add_argument(
        "--commercial", action="store_true", help="refuse what is licensed for research only"
    )
    _changes(publish)
    publish.set_defaults(run=_publish)
    promote = actions.add_parser("promote", help="serve a channel's canary to everybody")
    _changes(promote)
    promote.set_defaults(run=_promote)
    rollback = actions.add_parser(
        "rollback", help="withdraw a channel's canary, or go back to the release before"
    )
    _changes(rollback)
    rollback.set_defaults(run=_rollback)
    listed = actions.add_parser("list", help="show channels and artifacts")
    listed.add_argument(
        "--full", action="store_true", help="whole digests, as a cluster's configuration names them"
    )
    listed.add_argument("--json", action="store_true", help="print one JSON object")
    _where(listed)
    listed.set_defaults(run=_list)
    collect = actions.add_parser("gc", help="remove what no channel names")
    collect.add_argument("--dry-run", action="store_true", help="only say what would go")
    collect.add_argument(
        "--older-than-days", type=float, default=1.0, metavar="N", help="keep what is younger (1)"
    )
    collect.add_argument("--json", action="store_true", help="print one JSON object")
    _where(collect)
    collect.set_defaults(run=_collect)


def _where(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--registry",
        metavar="URL",
        help=f"folder or fsspec URL (default: {_VARIABLE}, or the one of this machine)",
    )


def _changes(parser: argparse.ArgumentParser) -> None:
    _where(parser)
    parser.add_argument("--channel", default=_DEFAULT_CHANNEL, metavar="NAME", help="(stable)")
    parser.add_argument(
        "--architecture",
        action="append",
        default=[],
        metavar="NAME",
        help="the variant for such devices only, e.g. aarch64; may be repeated",
    )
    parser.add_argument(
        "--min-memory", default="0", metavar="SIZE", help="… with so much memory, e.g. 500M"
    )
    parser.add_argument(
        "--expires-days", type=float, metavar="N", help="devices take nothing new after that"
    )
    parser.add_argument("--key", type=Path, metavar="FILE", help="sign with this publisher key")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _publish(args: argparse.Namespace) -> int:
    registry, needs = _registry(args), _needs(args)
    trust = TrustStore(home.trust_dir())
    signer = signing_key(args.key)
    with loading():
        from cloud.registry import Artifact
    published: list[Published] = []
    for path in args.paths:
        line = ProgressLine(f"publish {path.name}", unit="B")
        copied = 0

        def on_bytes(count: int, line: ProgressLine = line) -> None:
            nonlocal copied
            copied += count
            line.update(copied)

        published.append(registry.publish(path, trust, on_bytes, commercial=args.commercial))
        line.done(f"{copied / 1e6:.1f} MB copied")
    # A bundle first, then what is for it.
    order = {"bundle": 0, "adapter": 1, "policy": 2}
    channel = registry.channel(args.channel)
    known: dict[str, Artifact] = {
        digest: registry.artifact(digest).artifact for digest in channel.named
    }
    revision, dropped = channel.revision, set[str]()
    for each in sorted(published, key=lambda item: order[item.artifact.kind]):
        known[each.artifact.digest] = each.artifact
        channel, out = channel.with_artifact(each.artifact, known, needs=needs, percent=args.canary)
        dropped |= set(out)
    channel = channel.as_one_change(revision)
    registry.save(channel, signer, _expiry(args))
    served = {digest for v in channel.variants for digest in (*v.stable, *v.canary)}
    _told(args, registry, channel, left_out=sorted(dropped - served))
    return 0


def _promote(args: argparse.Namespace) -> int:
    return _step(args, lambda channel, needs: channel.promoted(needs))


def _rollback(args: argparse.Namespace) -> int:
    return _step(args, lambda channel, needs: channel.rolled_back(needs))


def _step(args: argparse.Namespace, change: Callable[[Channel, Needs], Channel]) -> int:
    registry = _registry(args)
    channel = change(registry.channel(args.channel), _needs(args))
    registry.save(channel, signing_key(args.key), _expiry(args))
    _told(args, registry, channel)
    return 0


def _list(args: argparse.Namespace) -> int:
    registry = _registry(args)
    channels, artifacts = list(registry.channels()), list(registry.artifacts())
    if args.json:
        value = {
            "registry": registry.url,
            "channels": [channel.to_json() for channel in channels],
            "artifacts": [_artifact_json(each) for each in artifacts],
        }
        print(json.dumps(value))
        return 0
    if not channels and not artifacts:
        print(f"nothing is published at {registry.url}; begin with: cascade registry publish")
        return NotFound.exit_code
    for channel in channels:
        for line in _channel_lines(registry, channel, full=args.full):
            print(line)
    named = {digest for channel in channels for digest in channel.named}
    for each in artifacts:
        if each.artifact.digest not in named:
            print(f"unused   {_called(each, full=args.full)}")
    return 0


def _collect(args: argparse.Namespace) -> int:
    gone = _registry(args).collect(older_than_s=args.older_than_days * _DAY_S, dry_run=args.dry_run)
    if args.json:
        print(json.dumps({"removed": gone, "dry_run": args.dry_run}))
    else:
        for name in gone:
            print(name)
        print(f"{len(gone)} {'would be removed' if args.dry_run else 'removed'}")
    return 0


def _registry(args: argparse.Namespace) -> Registry:
    with loading():
        from cloud.registry import Registry, default_url

    return Registry(args.registry or os.environ.get(_VARIABLE) or default_url(home.home()))


def _needs(args: argparse.Namespace) -> Needs:
    from cloud.registry import Needs

    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]?)B?", args.min_memory.strip().upper())
    if found is None:
        raise InvalidInput("min-memory", f"{args.min_memory!r} is not a size such as 500M or 2G")
    return Needs(tuple(sorted(set(args.architecture))), int(float(found[1]) * _UNITS[found[2]]))


def _expiry(args: argparse.Namespace) -> int | None:
    if args.expires_days is None:
        return None
    if not 0 < args.expires_days <= 36_500:
        raise InvalidInput("expires-days", f"{args.expires_days:g} is not above 0")
    return int(time.time() + args.expires_days * _DAY_S)


def _told(
    args: argparse.Namespace,
    registry: Registry,
    channel: Channel,
    left_out: list[str] | None = None,
) -> None:
    if args.json:
        print(json.dumps({"channel": channel.to_json(), "left_out": left_out or []}))
        return
    for line in _channel_lines(registry, channel):
        print(line)
    for digest in left_out or []:
        print(f"left out {_called(registry.artifact(digest))}: it does not fit any longer")


def _channel_lines(registry: Registry, channel: Channel, *, full: bool = False) -> list[str]:
    lines = []
    for variant in channel.variants:
        lines.append(f"channel  {channel.name} · revision {channel.revision}{_for(variant)}")
        for word, release in (("stable", variant.stable), ("canary", variant.canary)):
            share = f"{variant.percent} %" if word == "canary" else ""
            for digest in release:
                called = _called(registry.artifact(digest), full=full)
                lines.append(f"  {word:<6} {share:<4} {called}")
        if variant.earlier:
            earlier = len(variant.earlier)
            lines.append(f"  {earlier} earlier release{'s' * (earlier > 1)} to go back to")
    return lines


def _for(variant: Variant) -> str:
    needs = variant.needs
    words = list(needs.architectures)
    if needs.memory_bytes:
        words.append(f"from {needs.memory_bytes / 1e6:.0f} MB of memory")
    return f" · for {', '.join(words)}" if words else ""


def _called(each: Published, *, full: bool = False) -> str:
    item = each.artifact
    version = f" version {item.version}" if item.kind == "adapter" else ""
    size = sum(size for _, size in each.files.values())
    shown = f" · {size / 1e6:.1f} MB" if size else ""
    licence = f" · {each.licence}" if each.licence else ""
    digest = item.digest if full else item.digest[:12]
    return (
        f"{item.kind:<7} {each.name}{version} · {digest}{shown}{licence} · "
        f"signed by {each.publisher}"
    )


def _artifact_json(each: Published) -> dict[str, object]:
    item = each.artifact
    return {
        "kind": item.kind,
        "digest": item.digest,
        "name": each.name,
        "base_digest": item.base_digest,
        "adapter_digest": item.adapter_digest,
        "task_id": item.task_id,
        "version": item.version,
        "publisher": each.publisher,
        "licence": each.licence,
        "commercial_use": each.commercial_use,
        "bytes": sum(size for _, size in each.files.values()),
    }
