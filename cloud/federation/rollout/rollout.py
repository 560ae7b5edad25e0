"""Who rolls out: one step at a time, on state that is the store's and the channel's alone."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from cascade.errors import InvalidInput, NotFound
from cascade.signing import SigningKey
from cloud.federation import rounds
from cloud.federation.database import Database, Transaction
from cloud.federation.rollout import counts, rollouts, serving
from cloud.federation.rollout.config import RolloutConfig
from cloud.federation.rollout.deciding import Standing, decide
from cloud.federation.rollout.rollouts import RolloutState, StoredRollout
from cloud.registry import Registry

_log = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class Told:
    """A rollout with what devices say of it; ``standing`` is ``None`` where it is over."""

    rollout: StoredRollout
    devices: int
    standing: Standing | None


def look(tx: Transaction, config: RolloutConfig, rollout: StoredRollout, now: float) -> Told:
    """Where a rollout stands."""
    reported = counts.devices(tx, rollout.candidate_digest)
    if rollout.state != "canary":
        return Told(rollout, reported, None)
    standing = decide(
        counts.of(tx, rollout.candidate_digest),
        counts.of(tx, rollout.parent_digest),
        config.margins,
        delta=config.delta,
        devices=reported,
        minimum_devices=config.minimum_devices,
        age_s=now - rollout.started_at,
        minimum_s=config.minimum_s,
        most_s=config.most_s,
    )
    return Told(rollout, reported, standing)


class Rollout:
    """Rolls out what was approved.

    Arguments:
        base_digest: of the federation.
        key: signs releases; its publisher must be pinned where devices are to take them.
        now: seconds since 1970.
    """

    def __init__(
        self,
        config: RolloutConfig,
        database: Database,
        registry: Registry,
        key: SigningKey,
        *,
        base_digest: str,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._database = database
        self._registry = registry
        self._key = key
        self._base_digest = base_digest
        self._now = now

    async def tick(self) -> None:
        """Do what is due.

        Raises:
            RemoteError: the store is away.
            ClusterError: the channel was changed by somebody else in between. Both: tick again.
        """
        current = await self._database.do(rollouts.active) or await self._begin()
        if current is None:
            return
        if current.state == "starting":
            await self._start(current)
        elif current.state == "canary":
            await self._watch(current)
        elif current.state == "promoting":
            await self._end(current, serving.promote, "promoted")
        else:
            back = functools.partial(serving.roll_back, now=self._now())
            await self._end(current, back, "rolled_back")

    async def _begin(self) -> StoredRollout | None:
        config, now = self._config, self._now()
        if not await self._database.do(lambda tx: rounds.in_state(tx, "approved")):
            return None
        channel = await asyncio.to_thread(self._registry.channel, config.channel)
        parent = await asyncio.to_thread(
            serving.served_adapter, self._registry, channel, self._base_digest
        )
        return await self._database.do(
            lambda tx: rollouts.begin(
                tx, channel=config.channel, parent_digest=parent, percent=config.percent, now=now
            )
        )

    async def _start(self, current: StoredRollout) -> None:
        try:
            revision = await asyncio.to_thread(
                serving.begin,
                self._registry,
                self._key,
                current.channel,
                current.candidate_digest,
                policies=current.policies,
                percent=current.percent,
            )
        except (InvalidInput, NotFound) as problem:
            await self._move(current, "failed", str(problem))
            return
        await self._move(current, "canary", "is served to canaries", revision)

    async def _watch(self, current: StoredRollout) -> None:
        now = self._now()
        told = await self._database.do(lambda tx: look(tx, self._config, current, now))
        if told.standing is None:
            return
        why = told.standing.why
        if told.standing.move == "wait":
            if why != current.note:
                await self._database.do(lambda tx: rollouts.remark(tx, current.round, why))
            return
        going: RolloutState = "promoting" if told.standing.move == "promote" else "returning"
        await self._move(current, going, why)
        await self.tick()

    async def _end(
        self,
        current: StoredRollout,
        change: Callable[[Registry, SigningKey, str, str], int],
        state: RolloutState,
    ) -> None:
        try:
            revision = await asyncio.to_thread(
                change, self._registry, self._key, current.channel, current.candidate_digest
            )
        except serving.Superseded as problem:
            await self._move(current, "superseded", str(problem))
            return
        except NotFound as problem:
            await self._move(current, "failed", str(problem))
            return
        await self._move(current, state, current.note, revision)

    async def _move(
        self, current: StoredRollout, state: RolloutState, note: str, revision: int | None = None
    ) -> None:
        now = self._now()

        def step(tx: Transaction) -> None:
            rollouts.move(tx, current.round, state, note=note, now=now, revision=revision)
            if state == "rolled_back":
                rounds.withdraw(tx, current.candidate_digest, f"rolled back: {note}", now)

        await self._database.do(step)
        _log.info("the rollout of round %d is %s: %s", current.round, state, note)
