"""``cascade bundle``: make, describe and check what a device runs."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cascade import home
from cascade.cli import bundle_bench, classifier_bundle, recipe
from cascade.cli.interrupt import loading
from cascade.cli.progress import ProgressLine
from cascade.cli.recipe import Recipe
from cascade.errors import InvalidInput
from cascade.signing import SigningKey, TrustStore

if TYPE_CHECKING:
    from edge.bundle import AdapterSlot

DEFAULT_MODEL = "smollm2-135m-instruct-q4_1"
_PUBLISHER = "this-machine"
_LAYER = re.compile(r"(.*?\.)(\d+)(\..*)")  # "gpt_neox.layers.", "0", ".attention.dense"

_BUILD_HELP = """\
Make a signed bundle, which is what a device runs, and pin its key on this machine.

From the catalog (downloaded if need be):
  cascade bundle build
  cascade bundle build --model qwen2.5-coder-0.5b-instruct-q4_k_m

From your own model:
  cascade bundle build --from model.gguf --licence Apache-2.0
  cascade bundle build --from my-model/ --licence MIT --commercial-use
  cascade bundle build --classifier digits.onnx --labels labels.txt

A GGUF file keeps its own quantisation, without any loss. A folder as Hugging Face lays it out
(config.json, tokenizer.json, *.safetensors) is quantised to int8 blocks. Llama and Qwen2 models
need no torch and run fast; any other family is exported with torch and optimum (pip install
'edge-cloud-cascade[build]'), and its bundle runs slower."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = actions.add_parser(
        "build",
        help="make a signed bundle from the catalog, a GGUF file or a Hugging Face folder",
        description=_BUILD_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _configure_build(build)
    for name, run, text in (
        ("inspect", _inspect, "print the manifest without checking anything"),
        ("verify", _verify, "check signature, publisher and every file"),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument("bundle", nargs="?", help="name or folder (default: SmolLM2-135M)")
        action.set_defaults(run=run)
    bundle_bench.configure(actions.add_parser("bench", help="measure what this machine can do"))
    for action in actions.choices.values():
        action.add_argument("--json", action="store_true", help="print one JSON object")


def _configure_build(build: argparse.ArgumentParser) -> None:
    source = build.add_mutually_exclusive_group()
    source.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="NAME",
        help=f"model of the catalog, see cascade models list (default {DEFAULT_MODEL})",
    )
    source.add_argument(
        "--from", dest="path", type=Path, metavar="PATH", help="a .gguf file or a model folder"
    )
    build.add_argument(
        "--quantise",
        choices=("lossless", "int8", "int4", "fp32"),
        help="how weights are stored. GGUF files: lossless (default). Folders: int8 (default, "
        "hardly any loss), int4 (half the size, much loss). fp32 is a reference for either",
    )
    build.add_argument(
        "--context", type=int, metavar="TOKENS", help="longest conversation (default: the model's)"
    )
    build.add_argument(
        "--chat-template",
        metavar="FILE",
        help="Jinja file to use instead of the model's own; 'plain' for a model that only "
        "completes text",
    )
    build.add_argument(
        "--export", action="store_true", help="export with torch even a Llama or Qwen2 folder"
    )
    build.add_argument(
        "--gradient",
        type=int,
        metavar="LAYERS",
        help="let adapters be trained for so many layers, from the last (4; 0: none)",
    )
    build.add_argument("--name", help="name of the bundle (default: from the source)")
    build.add_argument(
        "--base-model", metavar="TEXT", help="with --from: the model it was made from, for people"
    )
    build.add_argument(
        "--licence",
        metavar="SPDX",
        help="with --from or --classifier: licence of the weights, e.g. Apache-2.0",
    )
    build.add_argument(
        "--commercial-use",
        action="store_true",
        help="that licence allows commercial use (default: it is taken not to)",
    )
    build.add_argument("--out", type=Path, metavar="DIR", help="where to put it (default: by name)")
    build.add_argument("--force", action="store_true", help="replace a bundle that is there")
    build.add_argument(
        "--key", type=Path, metavar="FILE", help="publisher's signing key (default: this machine's)"
    )
    classifier_bundle.add_options(build)
    build.set_defaults(run=_build)


def build_bundle(
    model: str = DEFAULT_MODEL,
    *,
    out: Path | None = None,
    force: bool = False,
    key: Path | None = None,
) -> Path:
    """Build a model of the catalog, sign it, and pin the key on this machine.

    Raises:
        NotFound, InvalidInput: the catalog has no such GGUF model, or the bundle is there already.
    """
    return _carry_out(lambda: recipe.from_catalog(model), out=out, force=force, key=key)


def _carry_out(
    prepare: Callable[[], Recipe], *, out: Path | None, force: bool, key: Path | None
) -> Path:
    with loading():
        from edge.build import build_from_folder, build_from_gguf

    wanted = prepare()
    target = out or home.bundles_dir() / wanted.name
    if target.exists() and not force:
        raise InvalidInput("--out", f"{target} is there already; replace it with --force")
    build = build_from_gguf if wanted.way == "gguf" else build_from_folder
    if wanted.way == "export":
        print(
            f"build {wanted.name}: going through torch and optimum, the slower path: the bundle "
            "copies its past at every token",
            file=sys.stderr,
        )
        with loading():
            from edge.build.export import build_by_export
        build = build_by_export
    source = wanted.fetch()
    signer = (
        SigningKey.load(key)
        if key
        else SigningKey.load_or_create(home.keys_dir() / "publisher.key")
    )
    line = ProgressLine(f"build {wanted.name}", 100, "%")
    try:
        build(
            source,
            target,
            name=wanted.name,
            base_model=wanted.base_model,
            licence=wanted.licence,
            commercial_use=wanted.commercial_use,
            signing_key=signer,
            quantise=wanted.quantise,
            context=wanted.context,
            chat_template=wanted.template,
            gradient_layers=wanted.gradient_layers,
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
        target = _carry_out(lambda: _recipe(args), out=args.out, force=args.force, key=args.key)
    if args.key:
        print(f"signed with {args.key}; devices need that key pinned", file=sys.stderr)
        return _show(target, as_json=args.json)
    bundle = Bundle.open(target, TrustStore(home.trust_dir()))
    if args.json:
        return _show(target, as_json=True)
    print(f"{target}: {_megabytes(bundle.path):.1f} MB, signed and pinned as {bundle.publisher}")
    return 0


def _recipe(args: argparse.Namespace) -> Recipe:
    wishes = recipe.Wishes(
        quantise=args.quantise,
        name=args.name,
        context=args.context,
        chat_template=args.chat_template,
        export=args.export,
        gradient_layers=args.gradient,
    )
    if args.path is not None:
        return recipe.from_path(
            args.path,
            wishes,
            base_model=args.base_model,
            licence=args.licence or recipe.UNKNOWN_LICENCE,
            commercial_use=args.commercial_use,
        )
    for option in ("base_model", "licence", "commercial_use"):
        if getattr(args, option):
            raise InvalidInput(
                f"--{option.replace('_', '-')}", "goes with --from; the catalog states its own"
            )
    return recipe.from_catalog(args.model, wishes)


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
        if name not in ("files", "adapter_slots"):
            print(f"{name:<18} {value}")
    for linear in _linears(manifest.adapter_slots):
        print(f"{'adapters for':<18} {linear}")
    for name, entry in manifest.files.items():
        print(f"{name:<22} {entry.bytes:>12,} bytes  sha256 {entry.sha256}")
    return 0


def _linears(slots: Sequence[AdapterSlot]) -> Iterator[str]:
    """Every linear that takes an adapter, with its inputs and outputs; what is alike in several
    layers is one line, e.g. ``"layers.0–29.v_proj, 576 to 192"``."""
    layers: dict[tuple[str, str, int, int], list[str]] = {}
    for slot in slots:
        for module, outputs in zip(slot.modules, slot.widths, strict=True):
            numbered = _LAYER.fullmatch(module)
            before, layer, after = numbered.groups() if numbered else (module, "", "")
            layers.setdefault((before, after, slot.columns, outputs), []).append(layer)
    for (before, after, inputs, outputs), found in layers.items():
        shown = ",".join(found)
        if len(found) > 1 and found == [str(int(found[0]) + i) for i in range(len(found))]:
            shown = f"{found[0]}–{found[-1]}"
        yield f"{before}{shown}{after}, {inputs} to {outputs}"


def _megabytes(path: Path) -> float:
    return sum(file.stat().st_size for file in path.iterdir()) / 1e6
