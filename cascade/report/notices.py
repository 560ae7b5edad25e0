"""What a reader must know before believing the figures: what is certified, and what is not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from cascade.certificate import Certificate, Promise
from cascade.certify import (
    Target,
    data_digest,
    escalation_share,
    excess_error,
    net_error,
    selective_risk,
)
from cascade.report.evaluated import Evaluated
from cascade.report.figures import Figures
from cascade.report.reading import percent, threshold
from cascade.tune import settled

_FEW_ROWS = 200
_MANY_LEFT_OUT = 0.01


@dataclass(frozen=True, slots=True)
class Notice:
    """One thing to know.

    Arguments:
        kind: ``"certified"`` what holds; ``"warning"`` what weakens the figures.
        key: its name in JSON.
        text: whole sentences.
    """

    kind: Literal["certified", "warning"]
    key: str
    text: str


def notices_about(rows: Evaluated, figures: Figures) -> tuple[Notice, ...]:
    """All that apply, the most important first.

    Raises:
        CascadeError: scipy is not installed.
    """
    return (
        *_about_the_policy(rows),
        *_about_the_verdicts(rows),
        *_about_the_rows(rows, figures),
    )


def promise_sentence(promise: Promise, names: tuple[str, str]) -> str:
    """What is promised, in words.

    Arguments:
        names: of the device's tier and of the one that is asked instead.
    """
    device, strong = names
    limit = percent(promise.alpha)
    return {
        "selective_risk": f"at most {limit} of the answers that {device} keeps are wrong",
        "excess_error": (
            f"on at most {limit} of all requests the answer of {device} stands, is wrong, and "
            f"{strong} would have been right"
        ),
        "net_error": f"the cascade's error is at most {limit} above that of {strong} alone",
        "escalation_share": f"at most {limit} of all requests are escalated",
        "cost_usd": f"a request costs at most ${promise.alpha:g} on average",
        "deadline_misses": f"at most {limit} of all answers come after their deadline",
    }[promise.kind]


def certified_on_these(rows: Evaluated, certificate: Certificate) -> bool | None:
    """Whether these very rows are those of the certificate, by its data digest; ``None`` where that
    cannot be told: a target of money or deadlines has more in it than the records say.

    Raises:
        CascadeError: scipy is not installed.
    """
    if certificate.n != len(rows):
        return False
    targets = [_target(rows, promise) for promise in certificate.promises]
    if None in targets:
        return None
    known = [settled(target, rows.stays) for target in targets if target is not None]
    return data_digest(rows.score, known) == certificate.data_digest


def _target(rows: Evaluated, promise: Promise) -> Target | None:
    """What the promise is about, on these rows."""
    alpha, method = promise.alpha, promise.method
    if promise.kind == "selective_risk":
        return selective_risk(rows.device.right, alpha=alpha, method=method)
    if promise.kind == "escalation_share":
        return escalation_share(len(rows), alpha=alpha)
    if rows.strong is not None and promise.kind in ("excess_error", "net_error"):
        target = excess_error if promise.kind == "excess_error" else net_error
        return target(rows.device.right, rows.strong.right, alpha=alpha, method=method)
    return None


def _about_the_policy(rows: Evaluated) -> Iterator[Notice]:
    policy = rows.policy
    if policy is None:
        yield Notice(
            "warning",
            "no_policy",
            "No policy was given, so nothing is certified. Rows are ranked by the raw score, which "
            "is not a confidence. A threshold that is picked by eye promises nothing; let one be "
            "certified on rows of its own.",
        )
        return
    certificate = policy.certificate
    if certificate is None:
        yield Notice(
            "warning",
            "infeasible",
            "No threshold could be certified for this policy: it keeps nothing, everything is "
            "escalated. That is the intended behaviour: without evidence, escalate.",
        )
    else:
        names = (rows.device.info.name, rows.strong.info.name if rows.strong else "the cluster")
        promised = "; ".join(promise_sentence(each, names) for each in certificate.promises)
        yield Notice(
            "certified",
            "certified",
            f"Certified with {percent(1 - certificate.delta, 0)} confidence, at a confidence of at "
            f"least {threshold(certificate.threshold)}: {promised}. Shown on {certificate.n:,} "
            f"labelled rows, of which {percent(certificate.coverage)} were kept.",
        )
        same = certified_on_these(rows, certificate)
        if same:
            yield Notice(
                "warning",
                "same_rows",
                "These are the very rows on which the threshold was certified: their digest is the "
                "certificate's. What they show at that threshold was looked at when it was chosen, "
                "so it is no independent test; the promise itself holds. Report on rows that had "
                "no part in it.",
            )
        elif same is None:
            yield Notice(
                "warning",
                "rows_unknown",
                "Whether the threshold was certified on these very rows cannot be told from the "
                "records. If it was, what is shown at it is no independent test.",
            )
    if not rows.device.info.base_digest:
        yield Notice(
            "warning",
            "model_unknown",
            f"The records do not say which model answered as {rows.device.info.name}, so nothing "
            "shows that it is the one for which the policy is valid.",
        )


def _about_the_verdicts(rows: Evaluated) -> Iterator[Notice]:
    policy, seen = rows.policy, rows.verdicts
    if policy is None or seen is None:
        return
    if missing := int(seen.unmeasured.sum()):
        yield Notice(
            "warning",
            "unmeasured",
            f"On {missing:,} rows something was not measured that the confidence needs. They have "
            "none, so the device does not keep them; here they count as the least confident.",
        )
    if policy.min_gain is not None:
        yield Notice(
            "warning",
            "little_gain",
            f"{percent(float(seen.unverified.mean()))} of the rows stay on {rows.device.info.name} "
            f"unverified, for escalating them is expected to gain less than {policy.min_gain:g}. "
            "They count neither as kept nor as escalated; their answers are the device's.",
        )
    if rows.saved is not None:
        yield Notice(
            "warning",
            "early_stop",
            f"{rows.saved.stopped:,} answers are stopped early and escalated; "
            f"{rows.saved.wrongly:,} of them would have been kept. That saves "
            f"{percent(rows.saved.saved)} of the local tokens of escalated answers. Latencies are "
            "those of whole answers.",
        )


def _about_the_rows(rows: Evaluated, figures: Figures) -> Iterator[Notice]:
    missing = sum(rows.left_out.values())
    if missing > _MANY_LEFT_OUT * rows.total:
        yield Notice(
            "warning",
            "left_out",
            f"{missing:,} of {rows.total:,} records are not in the figures: "
            f"{'; '.join(f'{count:,} × {reason}' for reason, count in rows.left_out.items())}. If "
            "these are not like the others, the figures are off.",
        )
    if len(rows) < _FEW_ROWS:
        yield Notice(
            "warning",
            "few_rows",
            f"These are {len(rows):,} rows. Look at the intervals before comparing anything.",
        )
    if rows.documents < len(rows):
        yield Notice(
            "warning",
            "documents",
            f"The {len(rows):,} rows come from {rows.documents:,} documents. Intervals and bounds "
            "take rows to be independent; where rows of one document resemble each other, they are "
            "too narrow.",
        )
    if rows.header.grader.startswith("judge:"):
        yield Notice(
            "warning",
            "judge",
            f"Who is right was decided by a model ({rows.header.grader}): the figures show what it "
            "thinks, not what is true.",
        )
    if figures.groups_left_out:
        yield Notice(
            "warning",
            "groups",
            f"Not broken down, for their many values: {', '.join(figures.groups_left_out)}.",
        )
