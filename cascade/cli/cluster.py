"""``cascade cluster``: the local Ray cluster behind its gateway."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cascade import catalog
from cascade.cli import cluster_check, cluster_keys, cluster_status
from cascade.cli.interrupt import loading
from cascade.cli.models import pull_with_progress

if TYPE_CHECKING:
    from cloud import ClusterConfig


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    up = actions.add_parser("up", help="start it and stay in the foreground until Ctrl-C")
    up.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML file (default: one small tier)"
    )
    up.add_argument("--detach", action="store_true", help="return once it is ready")
    up.add_argument("--port", type=int, metavar="N", help="gateway port, instead of the file's")
    up.set_defaults(run=_up)
    status = actions.add_parser("status", help="show whether it runs and what it serves")
    cluster_status.configure(status)
    down = actions.add_parser("down", help="stop it and wait until it is gone")
    down.set_defaults(run=_down)
    cluster_check.configure(actions)
    cluster_keys.configure(actions)


def prepare_config(path: Path | None, port: int | None = None) -> ClusterConfig:
    """The checked configuration, with the models that it names downloaded."""
    with loading():
        from cloud import load_config

    config = load_config(path)
    if port is not None:
        config = config.with_port(port)
    for tier in config.tiers:
        if tier.model in {entry.name for entry in catalog.entries()}:
            pull_with_progress(tier.model)
    return config


def _up(args: argparse.Namespace) -> int:
    with loading():
        from cloud import up, up_detached

    config = prepare_config(args.config, args.port)
    if not args.detach:
        up(config, on_progress=_say)
        return 0
    status = up_detached(config, on_progress=_say)
    print(f"cluster ready at {status.address}; stop it with: cascade cluster down")
    return 0


def _down(args: argparse.Namespace) -> int:
    import cloud

    if cloud.status().running:
        _say("stopping")
    print("stopped" if cloud.down() else "no cluster is running")
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
