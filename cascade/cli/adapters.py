"""``cascade adapters``: train an adapter from own examples, and compare it with its parent."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cascade import home
from cascade.cli.interrupt import loading
from cascade.cli.learners import Learned, learn
from cascade.cli.progress import ProgressLine
from cascade.cli.tune_files import signing_key
from cascade.errors import InvalidInput, NotFound
from cascade.signing import SigningKey, TrustStore
from cascade.task import Task

if TYPE_CHECKING:
    from edge import Adapter, Bundle
    from edge.training import (
        Figure,
        Lesson,
        LessonMaker,
        TrainingExample,
        TrainingPlan,
    )

_TRAIN_HELP = """\
Train an adapter on this machine and sign it. DATA holds one JSON object a line:

  {"prompt": "turn the lamp on", "answer": "light_on", "options": ["light_on", "light_off"]}
  {"prompt": "Who are you?", "answer": "The lamp's assistant."}
  {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}
  {"instruction": "…", "input": "…", "output": "…"}           (Alpaca; Dolly's names too)

With one closed set of answers a head on the model's hidden states, LoRA, and both are trained,
and the best on the share kept aside is taken; name one to train it alone. Ctrl-C keeps what was
learned: the same command goes on from there. Only bundles of the Llama and Qwen2 families can
train."""

_NAMES = {"head": "a head", "lora": "LoRA", "both": "LoRA with a head"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    train = actions.add_parser(
        "train",
        help="train and sign an adapter",
        description=_TRAIN_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _common(train)
    train.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the adapter's folder"
    )
    train.add_argument("--force", action="store_true", help="replace an adapter that is there")
    train.add_argument("--parent", type=Path, metavar="DIR", help="adapter to go on from")
    train.add_argument("--name", help="of the adapter (default: the folder's)")
    train.add_argument(
        "--version",
        type=int,
        metavar="N",
        help="above what a channel serves (parent's + 1, else 1)",
    )
    train.add_argument(
        "--licence", default="Apache-2.0", metavar="SPDX", help="of the adapter (Apache-2.0)"
    )
    train.add_argument("--key", type=Path, metavar="FILE", help="publisher's signing key")
    for option, kind, text in (
        ("epochs", int, "times that every example is seen"),
        ("learning-rate", float, "step size at its height"),
        ("rank", int, "of the adapter's matrices"),
        ("layers", int, "layers, from the last, that get an adapter"),
        ("batch-size", int, "examples of a step"),
        ("max-steps", int, "end after so many steps; 0 does not"),
        ("max-tokens", int, "leave out longer examples"),
        ("val-share", float, "share kept aside to tell whether it helps"),
        ("patience", int, "epochs without improvement before it stops; 0 never"),
        ("seed", int, "of order, share kept aside and start"),
    ):
        train.add_argument(f"--{option}", type=kind, metavar="N", help=text)
    learner = train.add_mutually_exclusive_group()
    for name, text in (
        ("head", "a head alone: seconds instead of minutes"),
        ("lora", "LoRA alone"),
        ("both", "LoRA with a head"),
    ):
        learner.add_argument(
            f"--{name}", action="store_const", dest="learner", const=name, help=f"train {text}"
        )
    train.add_argument(
        "--balance", action="store_true", help="of a head: count rare answers as much as others"
    )
    train.add_argument(
        "--modules", metavar="A,B,…", help="linears that get an adapter (q_proj,v_proj)"
    )
    train.add_argument(
        "--frozen-a", metavar="SEED", help="train B alone, over an A drawn from this name"
    )
    train.set_defaults(run=_train)
    evaluate = actions.add_parser("eval", help="compare an adapter with its parent")
    evaluate.add_argument("adapter", type=Path, metavar="ADAPTER", help="its folder")
    _common(evaluate)
    evaluate.add_argument(
        "--parent", type=Path, metavar="DIR", help="compare with this adapter (default: the base)"
    )
    evaluate.add_argument(
        "--grade", default="exact", metavar="SPEC", help="how free text is graded (exact)"
    )
    evaluate.set_defaults(run=_eval)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, metavar="DATA.jsonl", help="examples, one a line")
    parser.add_argument(
        "--bundle", metavar="NAME|DIR", help="device bundle (default: SmolLM2-135M)"
    )
    parser.add_argument(
        "--task", default="", metavar="ID", help="word closed sets as this task's policy does"
    )
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, metavar="N", help="(all cores)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _train(args: argparse.Namespace) -> int:
    with loading():
        from edge import Adapter
        from edge.training import LessonMaker, read_examples
    _check_out(args)
    plan = _plan(args)
    bundle = _bundle(args)
    task = task_of(args, bundle)
    examples = read_examples(args.data, task)
    trust = TrustStore(home.trust_dir())
    parent = Adapter.open(args.parent, trust) if args.parent else None
    if parent is not None:
        parent.inputs(bundle.manifest)  # refuses what does not fit
    _version(args.version, parent)
    maker = LessonMaker(bundle, task)
    lessons = _lessons(maker, examples, args.data.name)
    signer = signing_key(args.key)
    learned = learn(
        args, bundle, parent, examples=examples, lessons=lessons, maker=maker, plan=plan
    )
    _publish(args, learned, bundle, parent, signer)
    learned.state.unlink(missing_ok=True)
    digest = Adapter.open(args.out, trust).digest if args.key is None else ""
    _tell_of_head(learned, parent)
    result: dict[str, object] = {
        "adapter": str(args.out),
        "digest": digest,
        "learner": learned.best.learner,
        "losses": learned.losses,
        "examples": learned.examples,
        "held_out": learned.held_out,
        "steps": learned.steps,
        "parent_loss": learned.parent_loss,
        "loss": learned.best.loss,
        "improved": learned.improved,
        "seconds": learned.seconds,
        "plan": plan.to_json(),
    }
    if args.json:
        print(json.dumps(result))
        return 0
    print(
        f"{args.out}: {_NAMES[learned.best.learner]} from {learned.examples} examples, "
        f"{learned.steps} steps, signed"
    )
    if learned.held_out:
        print(
            f"loss on {learned.held_out} examples kept aside: {learned.parent_loss:.4f} before, "
            f"{learned.best.loss:.4f} with it"
        )
        if len(learned.losses) > 1:
            each = (f"{_NAMES[name]} {loss:.4f}" for name, loss in learned.losses.items())
            print(f"tried: {', '.join(each)}; the best was taken")
    elif len(learned.losses) > 1:
        print("nothing was kept aside to compare by, so the cheapest was taken: a head")
    if not learned.improved:
        print("it is no better than its parent there; try other settings")
    return 0


def _tell_of_head(learned: Learned, parent: Adapter | None) -> None:
    """Say where the parent's head has no part in what came of it."""
    head, made = None if parent is None else parent.head, learned.best.head
    if head is None or (made is not None and made.spec.task.asked_like(head.spec.task)):
        return
    why = (
        "LoRA alone answers by label words"
        if made is None
        else "it was for another task, and an adapter has one head"
    )
    print(f"the parent's head is left out: {why}", file=sys.stderr)


def _publish(
    args: argparse.Namespace,
    learned: Learned,
    bundle: Bundle,
    parent: Adapter | None,
    signer: SigningKey,
) -> None:
    from edge.adapter import write_adapter

    write_adapter(
        args.out,
        learned.best.pairs,
        head=learned.best.head,
        name=args.name or args.out.name,
        base_digest=bundle.manifest.base_digest,
        signing_key=signer,
        version=_version(args.version, parent),
        parent="" if parent is None else parent.digest,
        licence=args.licence,
    )


def _version(given: int | None, parent: Adapter | None) -> int:
    """The adapter's: devices and channels go to higher ones only."""
    least = 1 if parent is None else parent.manifest.version + 1
    if given is not None and given < least:
        raise InvalidInput("--version", f"{given} is below {least}")
    return least if given is None else given


def _eval(args: argparse.Namespace) -> int:
    with loading():
        from cascade.graders import grader
        from edge import Adapter, OnnxModel
        from edge.training import LessonMaker, read_examples
        from edge.training.evaluate import answers, by_kind, figure, losses
    bundle, trust = _bundle(args), TrustStore(home.trust_dir())
    adapter = Adapter.open(args.adapter, trust)
    parent = Adapter.open(args.parent, trust) if args.parent else None
    if parent is None and adapter.manifest.parent:
        print(
            f"compared with the base; its parent {adapter.manifest.parent[:12]}… is another "
            "adapter: --parent DIR",
            file=sys.stderr,
        )
    task = task_of(args, bundle)
    examples, maker = read_examples(args.data, task), LessonMaker(bundle, task)
    _lessons(maker, examples, args.data.name)
    grade = grader(args.grade)
    if grade.grade is None:
        raise InvalidInput("grade", "no tier judges here; take another spec")
    sides = {"parent": parent, "adapter": adapter}
    figures: dict[str, Figure] = {}
    if _trains(bundle):
        lost = {}
        for side, each in sides.items():
            line = ProgressLine(f"loss of the {side}", len(examples))
            lost[side] = losses(
                bundle, examples, maker, each, threads=args.threads, on_example=line.update
            )
            line.done()
        figures["loss"] = figure(lost["parent"], lost["adapter"], accuracy=False)
    model = OnnxModel(bundle, threads=args.threads)
    grades = {}
    for side, each in sides.items():
        model.use_adapter(model.load_adapter(each) if each is not None else "")
        line = ProgressLine(f"ask the {side}", len(examples))
        grades[side] = answers(model, examples, maker, grade, line.update)
        line.done()
    figures |= by_kind(examples, grades)
    if args.json:
        value = {name: dataclasses.asdict(found) for name, found in figures.items()}
        print(json.dumps({"adapter": adapter.digest, "figures": value}))
        return 0
    for name, found in figures.items():
        low, high = found.interval
        print(
            f"{name:<16} {found.parent:.4f} → {found.adapter:.4f}   difference "
            f"{found.difference:+.4f} [{low:+.4f}, {high:+.4f}]   n {found.n}"
        )
    return 0


def _plan(args: argparse.Namespace) -> TrainingPlan:
    from edge.training import TrainingPlan

    given = {
        field.name: value
        for field in dataclasses.fields(TrainingPlan)
        if (value := getattr(args, field.name, None)) is not None
    }
    if args.modules is not None:
        given["modules"] = tuple(part.strip() for part in args.modules.split(","))
    return TrainingPlan(**given)


def _bundle(args: argparse.Namespace) -> Bundle:
    with loading():
        from edge import Bundle, bundle_path

    return Bundle.open(bundle_path(args.bundle), TrustStore(home.trust_dir()))


def _trains(bundle: Bundle) -> bool:
    from edge.bundle import GRADIENT_GRAPH

    return GRADIENT_GRAPH in bundle.manifest.files


def task_of(args: argparse.Namespace, bundle: Bundle) -> Task | None:
    """The wording that ``--task`` names, from its policy; ``None`` without one."""
    if not args.task:
        return None
    from cascade.local import ModelInfo
    from cascade.policy import PolicyStore
    from edge.bundle import TOKENIZER

    manifest = bundle.manifest
    info = ModelInfo(
        name=manifest.name,
        base_digest=manifest.base_digest,
        tokenizer_digest=manifest.files[TOKENIZER].sha256,
        bundle_digest=bundle.digest,
        context_tokens=manifest.context_tokens,
    )
    policy = PolicyStore(home.policies_dir(), TrustStore(home.trust_dir())).find(args.task, info)
    if policy is None:
        raise NotFound(
            f"there is no policy for the task {args.task} on {manifest.name}; leave --task out and "
            "name the options in the data"
        )
    return policy.task


def _lessons(maker: LessonMaker, examples: list[TrainingExample], name: str) -> list[Lesson]:
    lessons = []
    for number, example in enumerate(examples, start=1):
        try:
            lessons.append(maker.lesson(example))
        except InvalidInput as problem:
            raise InvalidInput(f"{name} example {number}", problem.problem) from None
    return lessons


def _check_out(args: argparse.Namespace) -> None:
    if not args.out.exists():
        return
    if not args.force:
        raise InvalidInput("--out", f"{args.out} is there already; replace it with --force")
    if not (args.out / "adapter.json").is_file():
        raise InvalidInput("--out", f"{args.out} is no adapter; it will not be replaced")
