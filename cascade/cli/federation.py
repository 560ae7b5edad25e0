"""``cascade federation``: how the rounds stand, the operator's word on what came of them, and a
device that takes part."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Final

from cascade.cli import federation_participate
from cascade.cli.interrupt import loading

if TYPE_CHECKING:
    from cloud.federation.account import Account
    from cloud.federation.database import Database
    from cloud.federation.rollout.rollouts import StoredRollout
    from cloud.federation.rounds import Round

_VARIABLE: Final = "CASCADE_FEDERATION_STORE"
_SPENT: Final = """\
Devices keep what they run, and none trains. To go on, raise federation.aggregation.most_epsilon (or
noise_multiplier, which slows what is spent) and start the cluster with it again."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listed = actions.add_parser("rounds", help="list the last rounds, and what was refused")
    listed.add_argument("--most", type=int, default=20, metavar="N", help="rounds (20)")
    _common(listed)
    listed.set_defaults(run=_rounds)
    shown = actions.add_parser("show", help="show one round")
    shown.add_argument("round", type=_number, metavar="ROUND", help="its number")
    _common(shown)
    shown.set_defaults(run=_show)
    for name, summary in (
        ("approve", "let the candidate of a round be what devices start from"),
        ("reject", "drop the candidate of a round"),
    ):
        decided = actions.add_parser(name, help=summary)
        decided.add_argument("round", type=_number, metavar="ROUND", help="its number")
        decided.add_argument("--note", default="", metavar="TEXT", help="why, for the others")
        _common(decided)
        decided.set_defaults(run=_decide, approved=name == "approve")
    rollout = actions.add_parser("rollout", help="how an approved adapter reaches the devices")
    steps = rollout.add_subparsers(dest="step", metavar="STEP", required=True)
    standing = steps.add_parser("show", help="show the last rollout, and what devices report")
    standing.add_argument("round", type=_number, nargs="?", metavar="ROUND", help="of another one")
    _common(standing)
    standing.set_defaults(run=_rollout)
    for name, summary in (
        ("promote", "let every device of the channel have the candidate"),
        ("rollback", "let the channel serve what it served before"),
    ):
        ordered = steps.add_parser(name, help=summary)
        ordered.add_argument("--note", default="", metavar="TEXT", help="why, for the others")
        _common(ordered)
        ordered.set_defaults(run=_order, promote=name == "promote")
    federation_participate.configure(actions)


def _number(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if not 1 <= number < 2**53:
        raise argparse.ArgumentTypeError(f"{text} is no round's number; they begin at 1")
    return number


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--store",
        metavar="URL",
        help="federation.store of the cluster: a file, or postgresql://… "
        f"(default: {_VARIABLE}, or the one of this machine)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _rounds(args: argparse.Namespace) -> int:
    with loading():
        from cloud.federation.account import account
        from cloud.federation.budget import standing_still
        from cloud.federation.leases import enrolled
        from cloud.federation.refusals import counters
        from cloud.federation.rounds import recent, uncounted
    database = _store(args)
    try:
        found = database.do_now(lambda tx: recent(tx, max(1, args.most)))
        counts = database.do_now(counters)
        history = database.do_now(account)
        spent = database.do_now(standing_still)
        come = database.do_now(uncounted)
        devices = database.do_now(enrolled)
    finally:
        database.close()
    privacy = _privacy(history)
    if args.json:
        told = [dataclasses.asdict(each) for each in found]
        value = {"rounds": told, "counters": counts, "privacy": privacy}
        print(json.dumps({**value, "no_round": spent, "uncounted": come, "devices": devices}))
        return 0
    if not found:
        print("no round yet")
    for each in found:
        print(_line(each, come))
    if found and (why := _out_of_reach(found[0], devices)):
        print(f"\n{why}")
    if privacy is not None:
        print("\n" + _privacy_line(privacy))
    if spent is not None:
        print(f"no further round: {spent}\n{_SPENT}")
    if counts:
        print("\n" + " · ".join(f"{name} {value}" for name, value in counts.items()))
    return 0


def _privacy(history: Account) -> dict[str, float | None] | None:
    """What was spent, and what one more round like the last will have spent."""
    from cascade.errors import CascadeError

    if history.multiplier is None or history.delta is None:
        return None
    try:
        cost = history.next()
    except CascadeError:  # the extra is not installed here
        cost = None
    return {
        "delta": history.delta,
        "noise_multiplier": history.multiplier,
        "epsilon": None if cost is None else cost.before,
        "epsilon_after_next": None if cost is None else cost.after,
        "rounds_without_noise": history.bare,
    }


def _privacy_line(told: dict[str, float | None]) -> str:
    spent = "ε is not known here: pip install 'edge-cloud-cascade[privacy]'"
    if told["epsilon"] is not None:
        spent = f"ε {told['epsilon']:.3g} spent, {told['epsilon_after_next']:.3g} after one more"
    bare = told["rounds_without_noise"]
    beside = f" · {bare:g} rounds without noise promise nothing" if bare else ""
    return f"{spent} · δ {told['delta']:g} · noise {told['noise_multiplier']:g}{beside}"


def _show(args: argparse.Namespace) -> int:
    from cascade.errors import NotFound

    with loading():
        from cloud.federation.gate import judgements
        from cloud.federation.rounds import round_numbered
    database = _store(args)
    try:
        found = database.do_now(lambda tx: round_numbered(tx, args.round))
        if found is None:
            raise NotFound(
                f"there is no round {args.round}; `cascade federation rounds` lists them"
            )
        candidate = found.candidate_digest or ""
        judged = database.do_now(lambda tx: judgements.of(tx, candidate))
    finally:
        database.close()
    findings = () if judged is None else judged.findings.findings
    if args.json:
        told = dataclasses.asdict(found)
        print(json.dumps({**told, "findings": [each.to_json() for each in findings]}))
        return 0
    _print(found, args)
    for each in findings:
        mark = "passed" if each.passed else "FAILED"
        of = f" of {each.task}" if each.task else ""
        against = f" (against {each.against})" if each.against else ""
        print(f"{mark:<10} {each.what}{of}: {each.reason}{against}")
    return 0


def _decide(args: argparse.Namespace) -> int:
    with loading():
        from cloud.federation.rounds import decide
    database = _store(args)
    try:
        found = database.do_now(
            lambda tx: decide(tx, args.round, approved=args.approved, note=args.note)
        )
    finally:
        database.close()
    _print(found, args)
    return 0


def _rollout(args: argparse.Namespace) -> int:
    from cascade.errors import NotFound

    with loading():
        from cloud.federation.rollout import counts, rollouts
    database = _store(args)
    number: int | None = args.round
    try:
        found = database.do_now(
            lambda tx: rollouts.latest(tx) if number is None else rollouts.of_round(tx, number)
        )
        if found is None:
            of = "" if number is None else f" of round {number}"
            raise NotFound(f"there was no rollout{of}; `cascade federation rounds` lists rounds")
        digests = (found.candidate_digest, found.parent_digest)
        reported = [database.do_now(partial(counts.of, adapter_digest=each)) for each in digests]
        devices = [
            database.do_now(partial(counts.devices, adapter_digest=each)) for each in digests
        ]
    finally:
        database.close()
    if args.json:
        told = [
            {
                "devices": number,
                "measures": {
                    name: {"trials": trials, "events": events}
                    for name, (trials, events) in measures.items()
                },
            }
            for number, measures in zip(devices, reported, strict=True)
        ]
        print(json.dumps({**dataclasses.asdict(found), "candidate": told[0], "parent": told[1]}))
        return 0
    for line in _rollout_told(found):
        print(line)
    print(f"devices    {devices[0]} report of the candidate, {devices[1]} of the parent")
    for measure in sorted({*reported[0], *reported[1]}):
        shares = [_share(*each.get(measure, (0, 0))) for each in reported]
        print(f"{measure:<18} {shares[0]:>22}   parent {shares[1]:>22}")
    return 0


def _order(args: argparse.Namespace) -> int:
    import time

    with loading():
        from cloud.federation.rollout import rollouts
    database = _store(args)
    try:
        found = database.do_now(
            lambda tx: rollouts.order(tx, promote=args.promote, note=args.note, now=time.time())
        )
    finally:
        database.close()
    if args.json:
        print(json.dumps(dataclasses.asdict(found)))
        return 0
    for line in _rollout_told(found):
        print(line)
    return 0


def _rollout_told(found: StoredRollout) -> Iterator[str]:
    yield f"rollout    of round {found.round} · {found.state}"
    yield f"candidate  {found.candidate_digest}"
    yield f"parent     {found.parent_digest or 'none'}"
    revision = "" if found.revision is None else f" · revision {found.revision}"
    yield f"channel    {found.channel} · {found.percent} % first{revision}"
    yield f"policies   {len(found.policies)} · {', '.join(each[:12] for each in found.policies)}"
    yield f"started    {_time(found.started_at)}"
    if found.ended_at is not None:
        yield f"ended      {_time(found.ended_at)}"
    if found.note:
        yield f"note       {found.note}"


def _share(trials: int, events: int) -> str:
    return f"{events} of {trials} ({events / trials:.1%})" if trials else "nothing"


def _store(args: argparse.Namespace) -> Database:
    from pathlib import Path

    from cascade.errors import NotFound

    with loading():
        from cloud.federation.config import default_store
        from cloud.federation.database import Database
        from cloud.federation.schema import migrate
    url = args.store or os.environ.get(_VARIABLE) or default_store()
    if "://" not in url and not Path(url).expanduser().is_file():
        raise NotFound(f"there is no store of federated rounds at {url}; name it with --store")
    database = Database(url)
    try:
        database.do_now(migrate)
    except BaseException:
        database.close()
        raise
    return database


def _print(found: Round, args: argparse.Namespace) -> None:
    if args.json:
        print(json.dumps(dataclasses.asdict(found)))
        return
    for line in _told(found):
        print(line)


def _line(found: Round, come: int) -> str:
    candidate, updates = "", f"{found.counted:>5} updates"
    if found.state == "collecting":
        of = "" if found.goal is None else f" of {found.goal}"
        updates = f"{come:>5}{of} updates so far"
    if found.candidate_digest is not None:
        candidate = f"  → {found.candidate_digest[:12]}… version {found.candidate_version}"
    return f"{found.number:>5}  {found.state:<11}  {_time(found.opened_at)}  {updates}{candidate}"


def _out_of_reach(last: Round, devices: int) -> str:
    """Why a round without a deadline will not end, in a line; "" where it may."""
    waits = last.state == "collecting" and last.closes_at is None
    if not waits or last.goal is None or devices >= last.goal:
        return ""
    return (
        f"round {last.number} ends with the updates of {last.goal} devices, and {devices} are "
        "enrolled: let more take part, or lower federation.goal and start the cluster with it again"
    )


def _told(found: Round) -> Iterator[str]:
    yield f"round      {found.number} · {found.state}"
    yield f"starts at  {found.adapter_digest} version {found.adapter_version}"
    yield f"opened     {_time(found.opened_at)}"
    if found.closed_at is not None:
        yield f"closed     {_time(found.closed_at)} · {found.counted} updates"
    if found.candidate_digest is not None:
        yield f"candidate  {found.candidate_digest} version {found.candidate_version}"
    if found.aggregation_error is not None:
        yield f"error      {found.aggregation_error:.2g} of the aggregation, relative"
    if found.noise_multiplier is not None:
        yield f"privacy    {_epsilon(found)}"
    yield f"plan       {found.plan}"
    if found.note:
        yield f"note       {found.note}"


def _epsilon(found: Round) -> str:
    noise = f"δ {found.delta:g} · noise {found.noise_multiplier:g}"
    if found.epsilon_before is None or found.epsilon_after is None:
        return f"ε was not known to the coordinator, without the extra privacy · {noise}"
    abandoned = found.state == "abandoned"
    if abandoned and not found.counted:
        return f"ε {found.epsilon_before:.3g}, of which this round has spent nothing · {noise}"
    after = "after" if found.candidate_digest or abandoned else "once it has ended"
    return f"ε {found.epsilon_before:.3g} before, {found.epsilon_after:.3g} {after} · {noise}"


def _time(seconds: float) -> str:
    at = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return at.isoformat(sep=" ", timespec="seconds").replace("+00:00", "Z")
