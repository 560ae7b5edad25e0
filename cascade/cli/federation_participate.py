"""``cascade federation participate``: this device takes part in the rounds of a cluster."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cascade import home
from cascade.cli.adapters import task_of
from cascade.cli.interrupt import loading, terminable
from cascade.cli.learning import add_store_options, cipher
from cascade.cli.progress import ProgressLine
from cascade.conditions import Conditions, LinuxConditions
from cascade.errors import InvalidInput
from cascade.signing import TrustStore

if TYPE_CHECKING:
    from argparse import ArgumentParser, _SubParsersAction

    from edge.federation import Participant, Step

_HELP: Final = """\
Learn from this device's own examples in the rounds of a cluster, and send a small signed update. No
text leaves the device. By default it trains only while the device is known to be idle, on power and
on an unmetered connection; an app knows these, the command line is told by --idle, --charging and
--unmetered. Ctrl-C ends it; nothing that was committed is lost."""
_HELD: Final = ("not_ready", "spent")
_WORDS: Final = {
    "not_idle": "the device is in use, as far as is known (--idle)",
    "not_charging": "it is on battery, as far as is known (--charging)",
    "not_unmetered": "its connection is metered, as far as is known (--unmetered)",
    "too_hot": "it is too warm",
    "time_spent": "it has trained as long today as it may (--seconds-per-day)",
    "steps_spent": "it has taken as many steps today as it may",
    "energy_spent": "it has used as much energy today as it may",
    "too_soon": "its last round was too short a time ago (--separation-s)",
    "week_full": "it took part as often in seven days as it may (--per-week)",
    "already_training": "another process of this device trains",
    "no_round": "no round takes devices now",
    "cohort_full": "the round has all the devices that it wants",
    "other_base": "the rounds are for another bundle",
    "budget_spent": "the fleet's privacy budget is used up",
}
"""What devices and clusters call their reasons, for people."""


def configure(actions: _SubParsersAction[ArgumentParser]) -> None:
    """Add the verb to those of ``cascade federation``."""
    verb = actions.add_parser(
        "participate",
        help="learn from this device's examples in a cluster's rounds",
        description=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_argument(
        "--profile", type=Path, metavar="FILE", help="client profile (default: the local cluster's)"
    )
    verb.add_argument("--bundle", metavar="NAME|DIR", help="device bundle (default: SmolLM2-135M)")
    verb.add_argument(
        "--task", default="", metavar="ID", help="word closed sets as this task's policy does"
    )
    verb.add_argument("--once", action="store_true", help="take one step, and say what came of it")
    verb.add_argument(
        "--masked-only",
        action="store_true",
        help="take part only where the cluster learns a sum, and no device's update",
    )
    verb.add_argument(
        "--rank",
        type=int,
        metavar="N",
        help="train no larger rank, where the cluster averages products (default: the adapter's)",
    )
    for name in ("idle", "charging", "unmetered"):
        verb.add_argument(f"--{name}", action="store_true", help=f"the device is {name}")
    verb.add_argument(
        "--seconds-per-day", type=float, metavar="S", help="of training at most (600)"
    )
    verb.add_argument(
        "--separation-s", type=float, metavar="S", help="between two rounds at least (21600: 6 h)"
    )
    verb.add_argument("--per-week", type=int, metavar="N", help="rounds in seven days at most (7)")
    verb.add_argument(
        "--rehearsal",
        type=float,
        metavar="W",
        help="weight of the device's own answers where it fits a head; 0: none (0.1)",
    )
    verb.add_argument("--json", action="store_true", help="print one JSON object a step")
    add_store_options(verb)
    verb.set_defaults(run=_participate)


def _participate(args: argparse.Namespace) -> int:
    with loading():
        from cascade.wire import ClientProfile
        from edge import Bundle, bundle_path
        from edge.examples import CurationRules, ExampleStore
        from edge.federation import ExampleTrainer, Limits, Participant
        from edge.training.allowance import TrainingAllowance
        from edge.training.gradient import check_trains
        from edge.training.policy import TrainingLimits
    if args.rehearsal is not None and not 0 <= args.rehearsal <= 1:
        raise InvalidInput("--rehearsal", f"{args.rehearsal:g} is not in 0 … 1")
    if args.rank is not None and args.rank < 1:
        raise InvalidInput("--rank", f"{args.rank} is not 1 or more")
    rules = CurationRules() if args.rehearsal is None else CurationRules(rehearsal=args.rehearsal)
    trust = TrustStore(home.trust_dir())
    bundle = Bundle.open(bundle_path(args.bundle), trust)
    check_trains(bundle.manifest)
    given = {
        name: value
        for name in ("seconds_per_day", "separation_s", "per_week")
        if (value := getattr(args, name)) is not None
    }
    allowance = TrainingAllowance(TrainingLimits(**given), _Told(args))
    profile = ClientProfile.load(args.profile)
    with ExampleStore(args.examples, cipher=cipher(args)) as store:
        progress = _Progress()
        task = task_of(args, bundle)
        trainer = ExampleTrainer(
            bundle, store, allowance, task=task, rules=rules, watch=progress.watch
        )
        participant = Participant(
            profile,
            bundle.manifest.base_digest,
            trainer,
            trust=trust,
            allowance=allowance,
            ready=trainer.ready,
            fit=trainer.fit,
            consented=trainer.consented,
            forgotten=trainer.forgotten,
            discard=trainer.discard,
            stop=trainer.stop,
            limits=Limits(masked_only=args.masked_only, rank=args.rank),
        )
        asyncio.run(_run(participant, args, progress))
    return 0


async def _run(participant: Participant, args: argparse.Namespace, progress: _Progress) -> None:
    with terminable():
        try:
            masking = False
            while True:
                done = await participant.step()
                progress.end()
                _tell(done, args)
                # Under masks the others count on it: leaving now would be dropping out.
                masking = done.outcome == "masking" or (masking and done.outcome == "waiting")
                if args.once and not masking:
                    return
                await asyncio.sleep(done.wait_s)
        finally:
            await participant.close()


def _tell(done: Step, args: argparse.Namespace) -> None:
    if args.json:
        print(json.dumps(dataclasses.asdict(done)), flush=True)
        return
    why = ", ".join(_WORDS.get(word, word) for word in done.note.split(", "))
    if done.outcome == "not_needed" and done.note == "too_soon":
        why = "the cluster wants it less often"
    if done.outcome in _HELD and not why:
        why = "the device is in use, on battery, metered, or has trained enough"
    wait = f" · again in {_duration(done.wait_s)}" if done.wait_s else ""
    print(f"{done.outcome.replace('_', ' ')}{f': {why}' if why else ''}{wait}", flush=True)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


class _Progress:
    """A line for each thing that training does; told from the thread that trains."""

    def __init__(self) -> None:
        self._what = ""
        self._line: ProgressLine | None = None

    def watch(self, what: str, done: int, total: int) -> None:
        """See ``ExampleTrainer``."""
        if what != self._what or self._line is None:
            self.end()
            unit = "steps" if what.startswith("train") else "examples"
            self._what, self._line = what, ProgressLine(what, total, unit)
            if not done:
                self._line.note(f"{total} {unit}")
        if done:
            self._line.update(done)

    def end(self) -> None:
        """End the line that is there, if one is."""
        if self._line is not None:
            self._line.done()
        self._what, self._line = "", None


class _Told:
    """The kernel's word on the device's state, and on top of it the user's."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._kernel = LinuxConditions(temperature=True) if sys.platform == "linux" else None

    def read(self) -> Conditions:
        """The state now."""
        now = Conditions() if self._kernel is None else self._kernel.read()
        return dataclasses.replace(
            now,
            idle=self._args.idle or now.idle,
            charging=self._args.charging or now.charging,
            connectivity="unmetered" if self._args.unmetered else now.connectivity,
        )

    def note_call(self, reached: bool) -> None:
        """See ``cascade.conditions.ConditionsSource``."""
        if self._kernel is not None:
            self._kernel.note_call(reached)
