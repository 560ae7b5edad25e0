"""``cascade fleet simulate``: a fleet that learns from its escalations, on this machine."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from cascade import home
from cascade.cli.fleet_progress import FleetProgress
from cascade.cli.interrupt import loading
from cascade.errors import InvalidInput
from cascade.files import write_whole
from cascade.signing import TrustStore
from cascade.task import Task, generic

if TYPE_CHECKING:
    from cloud.fleet import FleetPlan, FleetResult, FleetRow
    from edge import Bundle

_HELP: Final = """\
Run many devices and one coordinator on this machine: the product's own code, over real sockets, in
simulated time. Devices see rows, escalate what they are unsure of, learn from it, and send small
signed updates; each round's adapter is judged, and its threshold certified anew. Writes fleet.json,
fleet.png and fleet.html. Ctrl-C ends it, and what was done is written; --resume goes on.

DATA is sentiment (four domains), or a JSONL file with prompt and answer, and where wanted group,
document, teacher (what the cluster would answer) and out_of_scope: true in place of an answer."""

_TRAINING: Final = (
    ("layers", int, "last layers that are trained (4)"),
    ("learning-rate", float, "of a device's steps (0.01)"),
    ("batch", int, "examples of a step (4)"),
    ("max-steps", int, "of a device in a round (50)"),
    ("clip-norm", float, "L2 norm of an update at most (1)"),
    ("bits", int, "of each number that is sent: 4, 8 or 32 (8)"),
)
_FLEET: Final = (
    ("per-round", int, "rows that a device sees in a round (40)"),
    ("goal", int, "updates that end an asynchronous round (half of the devices)"),
    ("minimum", int, "updates that a round needs (a quarter of the devices)"),
    ("starting", int, "labelled rows that the first adapter is trained on (0; a head needs some)"),
    ("alpha", float, "largest tolerated value of the target (0.1)"),
    ("delta", float, "tolerated probability that a threshold does not hold that (0.1)"),
    ("most-worse", float, "a candidate that is worse by more is rejected (0.02)"),
    ("gate-delta", float, "so is one not shown to be worse by less, at this level (not asked)"),
    ("most-less-kept", float, "so is one with which devices would keep less by more (0.02)"),
    ("rank", int, "of the adapter's matrices (8)"),
    ("level", float, "how sure a device must be that its update helps, as a p-value (0.5)"),
    ("least", int, "examples kept aside that a device needs to judge (1)"),
    ("epochs", int, "times that a device sees each of its examples at most (4)"),
    ("rehearsal", float, "weight of its own answers where a device fits a head; 0: none (0.1)"),
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    verb = actions.add_parser(
        "simulate",
        help="run devices and a coordinator on this machine",
        description=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_argument("--devices", type=int, default=10, metavar="N", help="(10)")
    verb.add_argument("--rounds", type=int, default=3, metavar="R", help="(3)")
    verb.add_argument(
        "--dataset", default="sentiment", metavar="DATA", help="sentiment, or FILE.jsonl"
    )
    verb.add_argument(
        "--group", default="group", metavar="COLUMN", help="of the file: the kind of device (group)"
    )
    verb.add_argument(
        "--wording", type=Path, metavar="FILE", help="the file's task, as JSON (default: generic)"
    )
    verb.add_argument(
        "--partition",
        default="iid",
        metavar="HOW",
        help="who sees which rows: dirichlet:ALPHA, by-group or iid (iid)",
    )
    verb.add_argument(
        "--develop",
        type=int,
        metavar="ROWS",
        help="rows of the develop part at most; the certify part has 2.5 times as many, the test "
        "part 1.5 times",
    )
    verb.add_argument(
        "--dropout", type=float, default=0.0, metavar="P", help="share of devices lost in a round"
    )
    verb.add_argument(
        "--byzantine", metavar="P:KIND", help="hostile devices, e.g. 0.2:sign-flip (none)"
    )
    verb.add_argument(
        "--mode", choices=("sync", "async"), default="sync", help="of the coordinator (sync)"
    )
    verb.add_argument(
        "--strategy",
        choices=("ffa", "product"),
        default="ffa",
        help="ffa trains and averages B alone, product A and B (ffa)",
    )
    verb.add_argument(
        "--rule",
        choices=("mean", "trimmed_mean", "median", "krum"),
        default="mean",
        help="how updates are put together (mean)",
    )
    verb.add_argument("--trim", type=float, metavar="SHARE", help="of trimmed_mean, each end (0.1)")
    verb.add_argument("--tolerate", type=int, metavar="N", help="hostile devices for krum (1)")
    verb.add_argument(
        "--masked",
        action="store_true",
        help="sum updates under masks: the cluster learns no device's own (secure aggregation); "
        "for ffa, mean and sync",
    )
    verb.add_argument(
        "--mask-threshold",
        type=int,
        metavar="N",
        help="devices that must stay until a sum is unmasked (more than half, and at least 3)",
    )
    verb.add_argument(
        "--server", choices=("plain", "momentum", "adam"), default="plain", help="optimiser (plain)"
    )
    verb.add_argument("--server-rate", type=float, metavar="RATE", help="of its step")
    verb.add_argument(
        "--private",
        nargs="?",
        type=float,
        const=1.0,
        metavar="NOISE",
        help="add noise of so many clip norms, and account for ε (1)",
    )
    verb.add_argument(
        "--most-epsilon",
        type=float,
        metavar="E",
        help="with --private: open no round after which ε would be more",
    )
    verb.add_argument(
        "--ranks",
        type=_numbers,
        metavar="N,N",
        help="with --strategy product: that devices train, in turn, of the adapter's (its whole)",
    )
    for name, kind, text in (*_FLEET, *_TRAINING):
        verb.add_argument(f"--{name}", type=kind, metavar="N", help=text)
    verb.add_argument(
        "--most-escape",
        type=float,
        default=0.03,
        metavar="N",
        help="so is a candidate that escalates less of what is out of scope by more (0.03)",
    )
    verb.add_argument("--seed", type=int, default=0, metavar="S", help="of everything drawn (0)")
    verb.add_argument("--bundle", metavar="NAME|DIR", help="device bundle (default: SmolLM2-135M)")
    verb.add_argument(
        "--processes",
        type=int,
        default=min(2, os.cpu_count() or 1),
        metavar="N",
        help="Ray actors that host the devices; 0 has them in this process (2)",
    )
    verb.add_argument(
        "--trunk", type=Path, metavar="DIR", help="activations to share between runs (default: OUT)"
    )
    verb.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="a new folder for all of it"
    )
    verb.add_argument(
        "--resume",
        action="store_true",
        help="go on with the same run, which was ended in OUT, from its last whole round; begin it "
        "where there is none",
    )
    verb.add_argument(
        "--learner",
        choices=("lora", "head"),
        default="lora",
        help="what is trained (lora); head: a linear head on frozen features",
    )
    verb.add_argument(
        "--target",
        choices=("risk", "excess"),
        default="risk",
        help="what alpha bounds: wrong answers among those kept (risk), or, of all inputs, those "
        "kept and wrong that the teacher had right (excess)",
    )
    verb.add_argument(
        "--no-recertify",
        action="store_true",
        help="keep the first certified policy for all later adapters, to see why that is wrong",
    )
    verb.add_argument("--json", action="store_true", help="print one JSON object")
    verb.set_defaults(run=_simulate)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the coordinator logs out of the progress: the figures have it, too."""
    log = logging.getLogger("ray.serve")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


@_quiet()
def _simulate(args: argparse.Namespace) -> int:
    with loading():
        from cloud.fleet import BundleAt, FleetSimulation, parts
        from cloud.fleet.page import html_page, png, ran_out, refusals, summary, table
    if args.processes < 0:
        raise InvalidInput("--processes", "must be at least 0")
    plan = _plan(args)
    out: Path = args.out.absolute()
    taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    held = (out / "run.json").is_file()
    if taken and not (args.resume and held):
        how = ", or go on with its run by --resume" if held else ""
        raise InvalidInput("--out", f"{args.out} is there already; name a new folder{how}")
    task, rows, said = _data(args)
    path, bundle = _bundle(args)
    given = parts(
        rows,
        seed=plan.seed,
        most=args.develop,
        starting=plan.starting,
        outside=bool(task.outside),
    )
    told = FleetProgress(plan.rounds)
    try:
        simulation = FleetSimulation(
            out,
            plan,
            task,
            bundle,
            BundleAt(path.absolute(), home.trust_dir()),
            rows=given,
            trunk=(args.trunk or out / "trunk").absolute(),
            processes=args.processes,
            data=said,
            watch=told.watch,
            resume=args.resume,
        )
    except BaseException:
        told.abandon()
        raise
    if short := ran_out(simulation.lasting, plan.rounds):
        told.say(short.strip())
    interrupted = False
    try:
        for each in simulation.run():
            told.round(each)
            _write(out, simulation.result())
    except KeyboardInterrupt:
        interrupted = True
        told.abandon()
        print(
            f"\nended; what was done is in {args.out}, and --resume goes on from there",
            file=sys.stderr,
        )
    finally:
        simulation.close()
    result = simulation.result()
    if result.rounds:
        _write(out, result)
        write_whole(out / "fleet.png", png(result))
        write_whole(out / "fleet.html", html_page(result).encode())
        if args.json:
            print(json.dumps(result.to_json()))
        else:
            print("\n".join((*table(result), "", summary(result), refusals(result))))
            print(f"{args.out}/fleet.html")
    if interrupted:
        raise KeyboardInterrupt
    return 0


def _bundle(args: argparse.Namespace) -> tuple[Path, Bundle]:
    with loading():
        from edge import Bundle, bundle_path
        from edge.training.gradient import GradientSession, check_trains
    path = bundle_path(args.bundle)
    bundle = Bundle.open(path, TrustStore(home.trust_dir()))
    check_trains(bundle.manifest)
    if args.learner == "lora" and args.layers is not None:
        most = len(GradientSession(bundle).layers)
        if args.layers > most:
            raise InvalidInput("--layers", f"must be at most {most}: the bundle trains no more")
    return path, bundle


def _plan(args: argparse.Namespace) -> FleetPlan:
    from pydantic import ValidationError

    from cloud.federation.config import AggregationConfig, PlanConfig
    from cloud.fleet import Attackers, FleetPlan, Partition
    from cloud.fleet.plan import invalid

    trained: Literal["b", "both"] = "b" if args.strategy == "ffa" else "both"
    if trained == "both" and (args.rule not in ("mean", "krum") or args.server != "plain"):
        raise InvalidInput("--strategy", "product takes --rule mean or krum and --server plain")
    if args.private is not None and (trained == "both" or args.rule != "mean"):
        raise InvalidInput("--private", "needs --strategy ffa and --rule mean")
    if args.private is not None and args.mode == "async":
        raise InvalidInput("--private", "needs --mode sync")
    if args.most_epsilon is not None and args.private is None:
        raise InvalidInput("--most-epsilon", "is for --private fleets; add that, or leave it out")
    if args.ranks is not None and trained == "b":
        raise InvalidInput("--ranks", "needs --strategy product: B alone has one rank for all")
    if args.trim is not None and args.rule != "trimmed_mean":
        raise InvalidInput("--trim", "is for --rule trimmed_mean; add that, or leave it out")
    if args.tolerate is not None and args.rule != "krum":
        raise InvalidInput("--tolerate", "is for --rule krum; add that, or leave it out")
    if args.masked:
        _check_masked(args)
    elif args.mask_threshold is not None:
        raise InvalidInput("--mask-threshold", "is for --masked rounds; add that, or leave it out")
    try:
        training = PlanConfig(trained=trained, seed=args.seed, **_chosen(args, _TRAINING))
        aggregation = AggregationConfig(
            rule=args.rule,
            optimiser=args.server,
            noise_multiplier=args.private,
            **{
                name: value
                for name, value in (
                    ("trim", args.trim),
                    ("byzantine", args.tolerate),
                    ("rate", args.server_rate),
                    ("most_epsilon", args.most_epsilon),
                )
                if value is not None
            },
        )
    except ValidationError as problem:
        raise invalid(problem) from None
    return FleetPlan(
        devices=args.devices,
        rounds=args.rounds,
        seed=args.seed,
        partition=Partition.of(args.partition),
        learner=args.learner,
        recertify=not args.no_recertify,
        most_escape=args.most_escape,
        target=args.target,
        dropout=args.dropout,
        attackers=Attackers() if args.byzantine is None else Attackers.of(args.byzantine),
        ranks=args.ranks,
        masked=args.masked,
        mask_threshold=args.mask_threshold,
        mode="synchronous" if args.mode == "sync" else "asynchronous",
        training=training,
        aggregation=aggregation,
        **_chosen(args, _FLEET),
    )


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(each) for each in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 2,4,8") from None


def _check_masked(args: argparse.Namespace) -> None:
    for option, value, wanted in (
        ("--strategy", args.strategy, "ffa"),
        ("--rule", args.rule, "mean"),
        ("--mode", args.mode, "sync"),
    ):
        if value != wanted:
            raise InvalidInput(
                "--masked",
                f"needs {option} {wanted}, not {value}: the cluster has no more than the sum",
            )
    if args.bits is not None:
        raise InvalidInput("--bits", "is of updates in the clear; leave it out with --masked")
    if (args.byzantine or "").endswith(":nan"):
        raise InvalidInput(
            "--byzantine",
            "nan cannot be sent under masks, which are on integers; take another kind, or leave "
            "--masked out",
        )


def _chosen(args: argparse.Namespace, options: tuple[tuple[str, type, str], ...]) -> dict[str, Any]:
    names = [name.replace("-", "_") for name, _, _ in options]
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def _data(args: argparse.Namespace) -> tuple[Task, list[FleetRow], str]:
    from cloud.fleet import FleetRow, read_rows

    if args.dataset != "sentiment":
        rows, options = read_rows(Path(args.dataset), group=args.group)
        return _wording(args.wording, options), rows, Path(args.dataset).name
    from cascade.cli.demo.data import load_sentences
    from cascade.cli.demo.setting import SENTENCES, TASK
    from cascade.cli.models import pull_with_progress

    sentences = load_sentences(pull_with_progress(SENTENCES)).sentences
    shown = {example.text for example in TASK.examples}
    rows = [
        FleetRow(each.id, each.text, each.label, group=each.domain.value, document=each.document)
        for each in sentences
        if each.text not in shown
    ]
    return TASK, rows, "sentences of four domains, rated by people (VADER, Hutto and Gilbert 2014)"


def _wording(path: Path | None, options: tuple[str, ...]) -> Task:
    if path is None:
        return dataclasses.replace(generic(options), task_id="fleet")
    try:
        task = Task.from_json(json.loads(path.read_bytes()), where=path.name)
    except (ValueError, RecursionError) as problem:
        raise InvalidInput(path.name, f"is not the JSON of a task ({problem})") from None
    if set(task.options) - {task.outside} != set(options) - {task.outside}:
        raise InvalidInput(path.name, "has other options than the data's answers")
    return task


def _write(out: Path, result: FleetResult) -> None:
    write_whole(out / "fleet.json", (json.dumps(result.to_json(), indent=1) + "\n").encode())
