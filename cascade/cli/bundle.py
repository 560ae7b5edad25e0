"""``cascade bundle``: make, describe and check what a device runs."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from cascade import catalog, home
from cascade.cli import classifier_bundle
from cascade.cli.interrupt import loading
from cascade.cli.models import pull_with_progress
from cascade.cli.progress import ProgressLine
from cascade.errors import InvalidInput
from cascade.signing import SigningKey, TrustStore

DEFAULT_MODEL = "smollm2-135m-instruct-q4_1"
_PUBLISHER = "this-machine"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = actions.add_parser("build", help="make a signed bundle from a GGUF file")
    build.add_argument(
        "--model", default=DEFAULT_MODEL, help=f"name in the catalog (default {DEFAULT_MODEL})"
    )
    build.add_argument("--out", type=Path, metavar="DIR", help="where to put it (default: by name)")
    build.add_argument("--force", action="store_true", help="replace a bundle that is there")
    build.add_argument(
        "--key", type=Path, metavar="FILE", help="publisher's signing key (default: this machine's)"
    )
    classifier_bundle.add_options(build)
    build.set_defaults(run=_build)
    for name, run, text in (
        ("inspect", _inspect, "print the manifest without checking anything"),
        ("verify", _verify, "check signature, publisher and every file"),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument("bundle", nargs="?", help="name or folder (default: SmolLM2-135M)")
        action.set_defaults(run=run)
    for action in actions.choices.values():
        action.add_argument("--json", action="store_true", help="print one JSON object")


def build_bundle(
    model: str = DEFAULT_MODEL,
    *,
    out: Path | None = None,
    force: bool = False,
    key: Path | None = None,
) -> Path:
    """Pull the source if need be, build, sign, and pin the key on this machine.

    Raises:
        InvalidInput: the catalog entry is no GGUF model, or the bundle is there already.
    """
    with loading():
        from edge.build import build_from_gguf

    entry = catalog.entry(model)
    if entry.file_format != "gguf":
        raise InvalidInput("--model", f"{model} is no GGUF model; see: cascade models list")
    name = f"{model.rsplit('-', 1)[0]}-int4"
    target = out or home.bundles_dir() / name
    if target.exists() and not force:
        raise InvalidInput("--out", f"{target} is there already; replace it with --force")
    source = pull_with_progress(model)
    signer = (
        SigningKey.load(key)
        if key
        else SigningKey.load_or_create(home.keys_dir() / "publisher.key")
    )
    line = ProgressLine(f"build {name}", 100, "%")
    try:
        build_from_gguf(
            source,
            target,
            name=name,
            base_model=entry.title,
            licence=entry.licence,
            commercial_use=entry.commercial_use,
            signing_key=signer,
            overwrite=force,
            progress=lambda step, share: line.update(int(100 * share), step),
        )
    except BaseException:
        line.abandon()
        raise
    line.done()
    if key is None:
        TrustStore(home.trust_dir()).pin(_PUBLISHER, signer.public)
    return target


def _build(args: argparse.Namespace) -> int:
    with loading():
        from edge import Bundle

    if classifier_bundle.wanted(args):
        target = classifier_bundle.build(args)
    else:
        target = build_bundle(args.model, out=args.out, force=args.force, key=args.key)
    if args.key:
        print(f"signed with {args.key}; devices need that key pinned", file=sys.stderr)
        return _show(target, as_json=args.json)
    bundle = Bundle.open(target, TrustStore(home.trust_dir()))
    if args.json:
        return _show(target, as_json=True)
    print(f"{target}: {_megabytes(bundle.path):.1f} MB, signed and pinned as {bundle.publisher}")
    return 0


def _inspect(args: argparse.Namespace) -> int:
    from edge import bundle_path

    return _show(bundle_path(args.bundle), as_json=args.json)


def _verify(args: argparse.Namespace) -> int:
    with loading():
        from edge import Bundle, bundle_path

    bundle = Bundle.open(bundle_path(args.bundle), TrustStore(home.trust_dir()))
    if args.json:
        fields = {
            "bundle": str(bundle.path),
            "digest": bundle.digest,
            "publisher": bundle.publisher,
        }
        print(json.dumps(fields))
    else:
        files = len(bundle.manifest.files)
        print(f"{bundle.path}: all {files} files are as {bundle.publisher} signed them")
        print(f"digest {bundle.digest}")
    return 0


def _show(path: Path, *, as_json: bool) -> int:
    from edge.bundle import inspect

    manifest = inspect(path)
    fields = dataclasses.asdict(manifest) | {"base_digest": manifest.base_digest}
    if as_json:
        print(json.dumps(fields))
        return 0
    for name, value in fields.items():
        if name != "files":
            print(f"{name:<18} {value}")
    for name, entry in manifest.files.items():
        print(f"{name:<22} {entry.bytes:>12,} bytes  sha256 {entry.sha256}")
    return 0


def _megabytes(path: Path) -> float:
    return sum(file.stat().st_size for file in path.iterdir()) / 1e6
