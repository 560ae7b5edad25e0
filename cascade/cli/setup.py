"""``cascade setup``: a device from nothing but an address, a key and a publisher to trust."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from pathlib import Path

from cascade import home
from cascade.cli.interrupt import loading
from cascade.cli.progress import ProgressLine
from cascade.errors import InvalidInput, NotFound
from cascade.signing import PublicKey, TrustStore
from cascade.wire import ClientProfile, profile_path

_PUBLISHER = "publisher"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("--cloud", metavar="HOST:PORT", help="the cluster's address")
    parser.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="its key (or set CASCADE_API_KEY)"
    )
    parser.add_argument(
        "--ca", type=Path, metavar="FILE", help="PEM file of its certificate authority, if private"
    )
    parser.add_argument(
        "--profile", type=Path, metavar="FILE", help="a client profile with all three instead"
    )
    parser.add_argument(
        "--publisher",
        metavar="KEY",
        help="trust what this key signed: 64 hex digits, or a .pub file; once is enough",
    )
    parser.add_argument("--channel", default="stable", metavar="NAME", help="(stable)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_setup)


def _setup(args: argparse.Namespace) -> int:
    with loading():
        from edge import set_up

    profile = _profile(args)
    trust = TrustStore(home.trust_dir())
    if args.publisher is not None:
        key = _public_key(args.publisher)
        if key not in trust.keys().values():
            trust.pin(f"{_PUBLISHER}-{key.key_id[:8]}", key)
    if not trust.keys():
        raise InvalidInput(
            "publisher",
            "is missing: no publisher is trusted on this device yet; who runs `cascade registry "
            "publish` has the file as trust/local.pub under CASCADE_HOME",
        )
    lines: dict[str, ProgressLine] = {}

    def on_bytes(name: str, done: int, size: int) -> None:
        line = lines.setdefault(name, ProgressLine(name, size, "B"))
        line.update(done)
        if done == size:
            line.done(f"{size / 1e6:.1f} MB")

    try:
        delivered = asyncio.run(set_up(profile, channel=args.channel, on_bytes=on_bytes))
    except BaseException:
        for line in lines.values():
            line.abandon()
        raise
    if args.profile is None and args.cloud is not None:
        profile.save(profile_path())
    if args.json:
        print(
            json.dumps(
                {
                    "channel": delivered.channel,
                    "revision": delivered.revision,
                    "bundle": delivered.bundle,
                    "adapter": delivered.adapter,
                    "artifacts": list(delivered.artifacts),
                    "bytes": sum(line.total for line in lines.values()),
                }
            )
        )
        return 0
    with_adapter = f" with the adapter {delivered.adapter[:12]}" if delivered.adapter else ""
    policies = len(delivered.artifacts) - 1 - bool(delivered.adapter)
    print(
        f"runs {delivered.bundle}{with_adapter} and {policies} policies · channel "
        f"{delivered.channel}, revision {delivered.revision}"
    )
    return 0


def _profile(args: argparse.Namespace) -> ClientProfile:
    if args.profile is not None or args.cloud is None:
        return ClientProfile.load(args.profile)
    if args.api_key_file is not None:
        key = _text(args.api_key_file, "api-key-file")
    else:
        key = os.environ.get("CASCADE_API_KEY", "")
    if not key:
        raise InvalidInput("api-key-file", "is missing; give it, or set CASCADE_API_KEY")
    ca_pem = None if args.ca is None else _text(args.ca, "ca").encode("ascii", "replace")
    return ClientProfile(args.cloud, ca_pem, key)


def _public_key(text: str) -> PublicKey:
    path = Path(text)
    if path.suffix == ".pub":
        text = _text(path, "publisher")
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if len(raw) != 32:
        raise InvalidInput("publisher", "must be 64 hex digits, or a .pub file that holds them")
    return PublicKey(raw)


def _text(path: Path, field: str) -> str:
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}") from None
    except UnicodeDecodeError:
        raise InvalidInput(field, f"{path} is not a text file") from None
