"""What ``ask`` and ``choose`` share: their options, the device they open, the report they print."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cascade.cli import audits, learning, limits
from cascade.cli.interrupt import loading
from cascade.events import DEVICE, Answer
from cascade.policy import Reason
from cascade.request import Constraints, DataClass
from cascade.signals import ScoreBounds
from cascade.wire import ClientProfile

if TYPE_CHECKING:
    from edge import Device

_WHY: dict[str, str] = {
    Reason.CONFIDENT: "its confidence reaches the certified threshold",
    Reason.UNSURE: "the device was not sure enough",
    Reason.TARGET_INFEASIBLE: "no threshold could be certified for this task",
    Reason.UNCERTIFIED_TASK: "no policy certifies this task on this model",
    Reason.UNCERTIFIED_MODE: "its policy was fitted to the other scoring mode",
    Reason.POLICY_DEMOTED: "the monitor withdrew this task's policy (cascade monitor status)",
    Reason.UNMEASURED: "nothing was measured that its confidence could be computed from",
    Reason.STOPPED_EARLY: "the device's answer would hardly have been kept, by its beginning",
    Reason.LITTLE_GAIN: "the cluster is not expected to do better by enough",
    Reason.NEVER_LEAVE: "the data class forbids escalation",
    Reason.NO_TIER_ALLOWED: "the limits of the request allow no tier",
    Reason.NO_CLUSTER: "no cluster was given (--cloud)",
    Reason.REMOTE_FAILED: "the cluster did not answer",
    Reason.CLOUD_PREFERRED: "you asked for the cluster",
    Reason.NO_LOCAL_MODEL: "there is no model on this device",
    Reason.LOCAL_FAILED: "the device could not read the request",
    Reason.OFFLINE: "there is no connection",
    Reason.METERED: "the connection is metered",
    Reason.BATTERY_LOW: "the battery is too low",
    Reason.CIRCUIT_OPEN: "the cluster failed repeatedly and is left alone for a while",
    Reason.DEADLINE_TOO_SHORT: "no tier is expected to answer in the time that is left",
    Reason.BUDGET_DAY: "the day's money is spent",
    Reason.BUDGET_RATE: "the hour's money is spent",
    Reason.BUDGET_UNREADABLE: "the ledger of what was spent cannot be used",
}

_RUNGS = {
    "confident": "its confidence reaches its threshold",
    "unsure": "not sure enough",
    "no_score": "it does not tell how sure it is",
    "skip": "so unsure that the last tier is asked at once",
    "last": "the last tier's answer is always taken",
    "agree": "it gave the same answer",
    "disagree": "it gave another answer",
    "surer": "the surer of the two",
    "slow": "it had not begun in its usual time",
    "hedge": "it was faster than the one asked first",
    "best_there_is": "the one to be taken has no answer",
    "draft_ignored": "it makes no use of the device's draft",
}
"""What became of a tier of the cluster, after its name."""

# A wrong key or a forbidden request is a mistake to be mended, unlike a cluster that is away.
_MISTAKES = ("UNAUTHENTICATED", "PERMISSION_DENIED", "INVALID_ARGUMENT", "FAILED_PRECONDITION")


def add_request_options(parser: argparse.ArgumentParser) -> None:
    """Options of every request."""
    parser.add_argument(
        "--task",
        default="",
        metavar="ID",
        help="task whose policy judges the answer, e.g. sentiment",
    )
    add_answering_options(parser)
    add_data_class(parser, tuple(DataClass), "never_leave keeps the request on the device")
    parser.add_argument(
        "--tier", action="append", metavar="NAME", help="allow only this tier; may be repeated"
    )
    parser.add_argument(
        "--prefer",
        choices=("device", "cloud"),
        default="device",
        help="cloud: ask the cluster at once, without a local attempt",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    limits.add_limit_options(parser)
    audits.add_audit_options(parser)
    learning.add_learning_options(parser)


def add_answering_options(parser: argparse.ArgumentParser) -> None:
    """Who answers, on the device and in the cluster, and how long it may take."""
    add_cluster_options(parser)
    parser.add_argument(
        "--bundle", metavar="NAME|DIR", help="device bundle (default: SmolLM2-135M)"
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="local threads (as bundle bench recommends, or 1)"
    )
    parser.add_argument(
        "--deadline", type=float, default=60.0, metavar="S", help="seconds for an answer (60)"
    )


def add_data_class(
    parser: argparse.ArgumentParser, classes: Sequence[DataClass], meaning: str
) -> None:
    """How sensitive the input is: one of ``classes``."""
    parser.add_argument(
        "--data-class",
        choices=[value.value for value in classes],
        default=DataClass.PERSONAL.value,
        help=f"{meaning} (default personal)",
    )


def add_length(parser: argparse.ArgumentParser) -> None:
    """How long free text may be."""
    parser.add_argument(
        "--max-tokens", type=int, default=256, metavar="N", help="longest free answer (256)"
    )


def add_cluster_options(parser: argparse.ArgumentParser) -> None:
    """How to reach the cluster; ``client_profile`` reads them."""
    parser.add_argument(
        "--cloud",
        nargs="?",
        const="",
        metavar="HOST:PORT",
        help="escalate to this cluster; without an address, to the local one (cascade cluster up)",
    )
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="FILE",
        help="client profile with certificate authority and key (default: the local cluster's)",
    )


def constraints(args: argparse.Namespace) -> Constraints:
    """The request's limits."""
    return Constraints(
        deadline_s=args.deadline,
        allowed_tiers=frozenset(args.tier) if args.tier else None,
        data_class=DataClass(args.data_class),
        max_cost_usd=args.max_cost,
        residency=args.residency,
        metered_ok=not args.unmetered,
        min_battery=args.min_battery,
        never_train=args.never_train,
    )


@contextmanager
def open_device(args: argparse.Namespace) -> Iterator[Device]:
    """The device that the options name, until the audit of its answer has ended."""
    with loading():
        from edge import Device

    profile, monitor = client_profile(args), audits.monitor(args)
    with Device.open(
        args.bundle,
        cloud=profile,
        monitor=monitor,
        threads=args.threads,
        egress=limits.egress(args, profile.address if profile else ""),
        checks=limits.checks(args),
        on_decision=limits.decision_log(args),
        learn=learning.learning(args),
    ) as device:
        yield device
        if monitor is not None:
            device.audited()


def client_profile(args: argparse.Namespace) -> ClientProfile | None:
    """How to reach the cluster, or ``None`` to stay offline.

    Raises:
        NotFound: no profile to take certificate authority and key from.
        InvalidInput: the address is not ``host:port``.
    """
    if args.cloud is None and args.profile is None:
        return None
    profile = ClientProfile.load(args.profile)
    if args.cloud:
        profile = dataclasses.replace(profile, address=args.cloud)
    key = os.environ.get("CASCADE_API_KEY")
    return dataclasses.replace(profile, api_key=key) if key else profile


def report(answer: Answer, *, as_json: bool) -> int:
    """Print who answered, how sure and why; the exit code."""
    if as_json:
        print(json.dumps(_as_json(answer)))
    else:
        for line in _lines(answer):
            print(line, file=sys.stderr)
    if answer.remote_error and answer.remote_status in _MISTAKES:
        return 8
    return 0


def _as_json(answer: Answer) -> dict[str, object]:
    fields = dataclasses.asdict(answer)
    fields["tokens_per_second"] = answer.tokens_per_second
    return fields


def _lines(answer: Answer) -> list[str]:
    where = "the device" if answer.source == DEVICE else answer.source
    rate = answer.tokens_per_second
    lines = [
        f"source      {where} · {answer.model}{'' if answer.verified else ' · unverified'}",
        f"confidence  {_confidence(answer)}",
        *([f"scored      {_scored(answer.bounds)}"] if answer.bounds else []),
        *(
            [f"gain        {_gain(answer.expected_gain)}"]
            if answer.expected_gain is not None
            else []
        ),
        f"because     {'; '.join(_explained(reason) for reason in answer.reasons)}",
        f"time        {answer.latency.total_s * 1e3:.0f} ms"
        + (f" · {rate:.1f} tokens/s" if rate else "")
        + (f" · cluster {answer.latency.remote_s * 1e3:.0f} ms" if answer.latency.remote_s else ""),
    ]
    if answer.local_tokens and (not answer.local or answer.local_tokens > answer.tokens):
        lines.append(f"device      {_spent(answer)}")
    if answer.draft_tokens:
        lines.append(f"draft       {_drafted(answer)}")
    if answer.bytes_up:
        lines.append(
            f"cost        ${answer.cost_usd:.7f} by the tier's price list · "
            f"{answer.bytes_up} bytes sent · "
            f"{answer.cloud_prompt_tokens + answer.cloud_completion_tokens} cloud tokens"
        )
    if answer.finish == "length":
        cut = (
            "where time ran out"
            if _out_of_time(answer)
            else "at its greatest length (--max-tokens)"
        )
        lines.append(f"warning     the answer is cut off {cut}")
    if answer.remote_error:
        lines.append(f"warning     {answer.remote_status}: {answer.remote_error}")
    return lines


def _confidence(answer: Answer) -> str:
    if answer.confidence is not None:
        return f"{answer.confidence:.2f}"
    if answer.device_confidence is not None:
        return (
            f"none for {answer.source}; the device's own answer had {answer.device_confidence:.2f}"
        )
    if answer.raw_score is not None and not answer.local:
        return (
            f"none for {answer.source}; the device's own answer had the raw score "
            f"{answer.raw_score:.2f}, not calibrated"
        )
    if answer.raw_score is not None:
        return f"none · raw score {answer.raw_score:.2f}, not calibrated"
    return "none"


def _gain(expected: float) -> str:
    return f"{expected:+.2f} expected from the next tier, in P(right)"


def _spent(answer: Answer) -> str:
    """Of what the device decoded and nobody reads."""
    text = f"{answer.local_tokens} tokens decoded"
    if answer.local_tokens_saved is not None:
        text += f" · about {answer.local_tokens_saved:.0f} saved by stopping early"
    return text


def _drafted(answer: Answer) -> str:
    """What became of the device's draft."""
    if answer.draft_kept is None:
        return f"{answer.draft_tokens} tokens sent · no tier looked at them"
    return f"{answer.draft_kept} of {answer.draft_tokens} tokens kept"


def _out_of_time(answer: Answer) -> bool:
    """Whether the device had to give back a part: only that has no score."""
    return answer.local and answer.raw_score is None


def _scored(bounds: ScoreBounds) -> str:
    nodes = f"{bounds.nodes_scored} of {bounds.nodes} nodes" if bounds.nodes else "every option"
    if bounds.mode == "exact":
        return f"exact · {bounds.lower:.2f} of the set · {nodes}"
    return (
        f"search · {bounds.lower:.2f} to {bounds.upper:.2f} of the set · {nodes} · the options not "
        f"scored have at most {bounds.unexplored:.2f}"
    )


def _explained(reason: str) -> str:
    kind, _, name = reason.partition(":")
    if kind == "veto":
        return f"{reason} (it failed the check {name})"
    if kind == "pii":
        return f"{reason} (personal data that may not leave)"
    why = _RUNGS.get(name) if name else _WHY.get(reason)
    return f"{reason} ({why})" if why else reason
