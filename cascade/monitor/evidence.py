"""The numbers that are logged with every step, and the steps that no label causes."""

from __future__ import annotations

from cascade.monitor.health import Health, Limits, score_threshold
from cascade.monitor.store import Entry, Evidence, Kept, Key, MonitorStore


def evidence(health: Health, limits: Limits) -> Evidence:
    """The numbers behind a state."""
    low, high = health.risk(limits)
    return {
        "alpha": limits.alpha,
        "tier_error": limits.tier_error,
        "audits": health.audits.labels,
        "errors": health.audits.errors,
        "lost": health.lost,
        "rate": health.audits.rate,
        "weighted_rate": health.weighted.rate,
        "risk_low": low,
        "risk_high": high,
        "level": limits.level,
        "wealth": health.detector.wealth,
        "wealth_to_demote": 1 / limits.false_alarm,
        "accepted": health.accepted.labels,
        "reported": health.accepted.errors,
        "confirmed": health.confirmed,
        "scores_seen": health.scores.seen,
        "scores_wealth": health.scores.wealth,
        "scores_wealth_to_watch": score_threshold(limits),
    }


def reset(store: MonitorStore, kept: Kept, why: str, *, now: float) -> None:
    """Begin the monitor of ``kept`` anew, as certified. The log keeps what it stood on.

    Raises:
        CascadeError: the file cannot be written.
    """

    def step(found: Health | None, _: Key | None) -> tuple[Health, list[Entry]]:
        before = found or kept.health
        health = Health(opened=now, since=now, generation=before.generation + 1)
        numbers = evidence(before, kept.limits)
        return health, [Entry(now, kept.key, "reset", health.state, why, numbers)]

    store.update(kept.key, kept.limits, step)


def opening(key: Key, before: Key | None, health: Health, limits: Limits) -> Entry:
    """The log's line for a new monitor, which may take the place of ``before``."""
    numbers = evidence(health, limits)
    if before is None:
        return Entry(health.opened, key, "opened", health.state, "first policy", numbers)
    numbers |= {"replaces": before.policy, "replaces_adapter": before.adapter}
    return Entry(health.opened, key, "recertified", health.state, "a new policy", numbers)
