"""The rows of the group "peers": every ranking and every rule on every task, then the tally."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from benchmarks.decision.peers import keeping
from benchmarks.decision.peers.cascadeflow import ESTIMATORS, PEER, PREFIX, Cascadeflow, cascadeflow
from benchmarks.decision.peers.keeping import Kept
from benchmarks.decision.peers.paired import FIGURES, Paired, Verdict, compare
from benchmarks.decision.peers.parts import Parts
from benchmarks.decision.peers.ranking import (
    GAIN,
    OURS,
    Scores,
    bounds,
    of_signals,
    other_ours,
    ours,
)
from benchmarks.decision.peers.tasks import TASKS, parts_of_task
from benchmarks.decision.peers.text_gates import WINS, text_gates
from benchmarks.peers import PeerUnavailable
from benchmarks.rows import Row
from benchmarks.run import Run
from benchmarks.timing import Estimate
from cascade.replay import Interval
from cascade.rows import Bools

ALPHAS = (0.1, 0.2)
"""Risks that a rule is to keep to."""

CALL_SHARE = 0.5
"""Share of calls to the strong model that RouteLLM's rule is asked for."""

_REPLICATES, _REPLICATES_QUICK = 1000, 200
_BEST = PREFIX + "best estimator"
_VERDICTS: tuple[Verdict, ...] = ("win", "tie", "loss")
_PLURAL = {"win": "wins", "tie": "ties", "loss": "losses"}

Ask = Callable[[Parts, Callable[[str], None]], Cascadeflow]


@dataclass(slots=True)
class Tally:
    """What is counted over all tasks.

    Arguments:
        verdicts: by our ranking and the peer's.
        targets: how often each rule was to keep to a risk on the test part, and did.
        absent: why cascadeflow could not be asked; empty where it was.
    """

    verdicts: dict[tuple[str, str], Counter[Verdict]] = field(default_factory=dict)
    targets: dict[str, list[bool]] = field(default_factory=dict)
    absent: str = ""

    def judge(self, side: str, peer: str, verdict: Verdict) -> None:
        """Count a verdict of one of our rankings against one of theirs."""
        self.verdicts.setdefault((side, peer), Counter())[verdict] += 1


def rows(subject: None, run: Run) -> Iterator[Row]:
    """Every task, then the tally; ``subject`` is not looked at. A quick run takes the first task
    alone, and leaves out cascadeflow, which has to be installed."""
    tally = Tally()
    for name in TASKS[:1] if run.quick else TASKS:
        run.say(name)
        yield from of_task(parts_of_task(name), run, tally, _left_out if run.quick else cascadeflow)
    yield from of_tally(tally, run)


def of_task(parts: Parts, run: Run, tally: Tally, ask: Ask) -> Iterator[Row]:
    """The rows of one task; ``tally`` is added to.

    Arguments:
        ask: asks cascadeflow.
    """
    theirs: Cascadeflow | None = None
    try:
        theirs = ask(parts, run.say)
    except PeerUnavailable as problem:
        tally.absent = str(problem)
    rankings = {
        OURS: ours(parts),
        **other_ours(parts),
        **of_signals(parts),
        **text_gates(parts),
        **(theirs.scores if theirs else {}),
        **bounds(parts),
    }
    yield from _ranked(parts, rankings, run, tally)
    yield from _kept(parts, rankings, theirs, run, tally)


def of_tally(tally: Tally, run: Run) -> Iterator[Row]:
    """Wins, ties and losses against each peer; how often each rule kept to its target."""
    how = (
        "a win or a loss is a paired 95 % interval of the difference that excludes 0, a tie one "
        "that does not; on every task AUROC and normalised deferral AUC of the confidence count, "
        "and the latter of the expected gain"
    )
    for (side, peer), counts in tally.verdicts.items():
        n = sum(counts.values())
        for verdict in _VERDICTS:
            yield run.row(
                f"{_PLURAL[verdict]} of {side} against {peer}",
                Estimate(counts[verdict], n),
                f"of {n}",
                how,
                reach=0 if verdict == "loss" and peer.startswith(PREFIX) else None,
                sense="<=" if verdict == "loss" else ">=",
                peer=_peer(peer),
            )
    if tally.absent:
        yield run.row(
            f"losses of {OURS} against {_BEST}", None, "", tally.absent, reach=0, peer=PEER
        )
    for rule, kept in tally.targets.items():
        yield run.row(
            f"risk targets kept on the test part, {rule}",
            Estimate(sum(kept), len(kept)),
            f"of {len(kept)}",
            "test risk at most alpha, for each task and alpha; one part of a few hundred rows may "
            "break a target that holds for all draws: 'violations' are those over many draws",
            sense=">=",
            peer=_rule_peer(rule),
        )


def _ranked(parts: Parts, rankings: dict[str, Scores], run: Run, tally: Tally) -> Iterator[Row]:
    replicates = _REPLICATES_QUICK if run.quick else _REPLICATES
    held = parts.held.rows
    scores = {name: each.held for name, each in rankings.items()}
    found = compare(held, scores, OURS, replicates=replicates)
    n, documents = len(held), int(held.documents().max()) + 1
    how = (
        f"{n} rows of {documents} documents; what is fitted is fitted on {len(parts.develop.rows)} "
        f"others; {held.cloud} is the strong side; 95 % interval by {replicates} resamples of "
        "documents"
    )
    for figure in FIGURES:
        for name in rankings:
            yield run.row(
                f"{figure}, {parts.name}, {name}",
                _estimate(found[figure, name].value, n),
                "",
                how,
                sense=">=",
                peer=_peer(name),
            )
    # The confidence is judged by both figures. The expected gain is made for one of them.
    by_gain = compare(held, scores, GAIN, replicates=replicates)
    for figure, side, beside in (
        ("AUROC", OURS, found),
        ("deferral AUC", OURS, found),
        ("deferral AUC", GAIN, by_gain),
    ):
        for name in rankings:
            if name == side or name.startswith("oracle"):
                continue
            each = beside[figure, name]
            if _peer(name) is not None:
                tally.judge(side, name, each.verdict)
            yield run.row(
                f"{figure}, {parts.name}, {side} minus {name}",
                _estimate(each.difference, n),
                "",
                f"{how}, the same ones for both",
                sense=">=",
                peer=_peer(name),
            )
        if best := _best(figure, beside):
            tally.judge(side, _BEST, beside[figure, best].verdict)


def _best(figure: str, found: dict[tuple[str, str], Paired]) -> str | None:
    """cascadeflow's estimator that does best on the very rows that are compared: its best case."""
    names = [PREFIX + name for name in ESTIMATORS if (figure, PREFIX + name) in found]
    return max(names, key=lambda name: found[figure, name].value.value, default=None)


def _kept(
    parts: Parts,
    rankings: dict[str, Scores],
    theirs: Cascadeflow | None,
    run: Run,
    tally: Tally,
) -> Iterator[Row]:
    where = (
        f"threshold chosen on {len(parts.certify.rows)} rows, exact 95 % interval of the rows that "
        "are kept"
    )
    for alpha in ALPHAS:
        for rule, kept in (
            ("certified threshold", keeping.certified(parts, rankings[OURS], alpha)),
            ("naive threshold", keeping.naive(parts, rankings[OURS], alpha)),
        ):
            yield from _rule(parts, f"{rule}, α = {alpha:g}", kept, where, run)
            tally.targets.setdefault(rule, []).append(Kept.of(kept, parts.test).keeps(alpha))
    fixed: dict[str, tuple[Bools, str]] = {
        f"call share {CALL_SHARE:g}, {name}": (
            keeping.by_call_share(rankings[name], CALL_SHARE),
            "RouteLLM's rule on the named score: the threshold at the quantile of the certify "
            "part's scores; it aims at a share of calls and at no risk",
        )
        for name in (WINS, OURS)
    }
    if theirs:
        direct = float(theirs.direct.mean())
        fixed[f"{PREFIX}accept or reject"] = (
            theirs.accepted,
            "its whole agent at its defaults on replayed drafts, after it has seen the certify "
            f"part; {direct:.0%} of the questions of {parts.name} went to the strong model without "
            "a draft",
        )
    for rule, (accepted, how) in fixed.items():
        yield from _rule(parts, rule, accepted, how, run)
        for alpha in ALPHAS:
            tally.targets.setdefault(rule, []).append(Kept.of(accepted, parts.test).keeps(alpha))


def _rule(parts: Parts, rule: str, accepted: Bools, how: str, run: Run) -> Iterator[Row]:
    kept = Kept.of(accepted, parts.test)
    yield run.row(
        f"coverage, {parts.name}, {rule}",
        Estimate(kept.coverage, kept.n, kept.coverage_interval),
        "share",
        how,
        sense=">=",
        peer=_rule_peer(rule),
    )
    if kept.risk is not None:  # of nothing there is none
        yield run.row(
            f"selective risk, {parts.name}, {rule}",
            Estimate(kept.risk, kept.accepted, kept.risk_interval),
            "share",
            how,
            peer=_rule_peer(rule),
        )


def _estimate(interval: Interval, n: int) -> Estimate:
    if interval.low is None or interval.high is None:
        return Estimate(interval.value, n)
    return Estimate(interval.value, n, (interval.low, interval.high))


def _peer(ranking: str) -> str | None:
    """Whose ranking it is; ``None`` for ours, all three of them."""
    if ranking.startswith(OURS):
        return None
    return PEER if ranking.startswith(PREFIX) else ranking


def _rule_peer(rule: str) -> str | None:
    if rule.startswith("certified"):
        return None
    if rule.startswith(PREFIX):
        return PEER
    return "naive threshold" if rule.startswith("naive") else "RouteLLM's threshold rule"


def _left_out(parts: Parts, say: Callable[[str], None]) -> Cascadeflow:
    raise PeerUnavailable("left out of quick runs: it has to be installed")
