"""The coordinator: opens rounds, ends them, and has candidates judged. All state is the store's.

``tick`` does whatever is due and may be killed anywhere: what it had begun is found again in the
store, by the next tick of whoever comes next.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from cascade.errors import InvalidInput
from cascade.federation import (
    Shapes,
    Tensors,
    flatten,
    shapes_of,
    unflatten,
)
from cascade.federation.masked_plan import MaskedPlan
from cascade.federation.plan import RoundPlan
from cascade.federation.tensors import elements
from cascade.files import sha256_bytes
from cloud.federation import budget, leases, masked_rounds, rounds
from cloud.federation.account import Account, account, cost
from cloud.federation.adapters import Adapters, StartingAdapter
from cloud.federation.chosen import chosen_strategy, read_state, write_state
from cloud.federation.config import FederationConfig
from cloud.federation.contributions import contributions, stacked
from cloud.federation.database import Database, Transaction
from cloud.federation.masked_rounds import Said
from cloud.federation.phases import standing
from cloud.federation.privacy import PrivateMean
from cloud.federation.refusals import count
from cloud.federation.robust import WeightedMean
from cloud.federation.rounds import Noise, Round, Start
from cloud.federation.schema import migrate
from cloud.federation.seams import Gate
from cloud.federation.strategies import Aggregate, FfaLora, Strategy
from cloud.federation.unmasking import unmasked

_log = logging.getLogger("ray.serve")

_CLAIM_S: Final = 300.0
_REMEMBERED_S: Final = 30 * 86_400.0
_FORGET_EVERY_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class _Due:
    """What a tick finds: a round to aggregate, candidates to judge, no round that collects."""

    claimed: Round | None
    waiting: bool
    none_collects: bool


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What a round is computed from.

    Arguments:
        version: of the candidate.
        served: digest of what each version of the adapter was.
        said: by the devices of a round under masks.
        noise_seed: a secret of the round.
        account: of the rounds before it.
    """

    updates: list[rounds.StoredUpdate]
    optimiser: bytes
    version: int
    served: Mapping[int, str]
    said: Said | None
    noise_seed: str
    account: Account

    def noise(self) -> np.random.Generator:
        """Of this round and these updates: a coordinator that goes on after a crash must not tell
        the same sum again under other noise, nor another one under the same."""
        seed = self.noise_seed or secrets.token_hex(32)  # of a store that had none yet
        parts = [seed, *(sha256_bytes(each.payload) for each in self.updates)]
        return np.random.default_rng(int(sha256_bytes("".join(sorted(parts)).encode()), 16))


@dataclass(frozen=True, slots=True)
class _Ready:
    """What the next round would start from, the highest version that devices have seen, and the
    next one that nobody has."""

    begins: Start | None
    highest: int
    next_version: int


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What came of it."""

    result: Aggregate
    digest: str
    dropped: int


class Coordinator:
    """Leads the rounds of one federation. One of them works at a time; a second one finds nothing
    to do, or takes over after ``_CLAIM_S``.

    Arguments:
        adapters: with a key to sign candidates.
        gate: who lets it through.
        now: seconds since 1970.
        noise: of a round, where the configuration asks for any; by default from a secret that the
            system drew for it, as it must be wherever privacy is meant.
    """

    def __init__(
        self,
        database: Database,
        adapters: Adapters,
        config: FederationConfig,
        gate: Gate,
        *,
        now: Callable[[], float] = time.time,
        noise: Callable[[Round], np.random.Generator] | None = None,
    ) -> None:
        self._database = database
        self._adapters = adapters
        self._config = config
        self._gate = gate
        self._now = now
        self._noise = noise
        self._forgot_at = -math.inf
        self._token = secrets.token_hex(16)

    async def start(self, *, alone: bool = True) -> None:
        """Make the store ready.

        Arguments:
            alone: no other coordinator lives, so what one has claimed is taken over at once.

        Raises:
            CascadeError: the store is newer than this version.
            NotFound, InvalidInput: the adapter to start from is not there, or is none.
        """
        first = await asyncio.to_thread(self._adapters.read, self._config.adapter)
        await self._database.do(migrate)
        base, at = first.manifest.base_digest, self._now()
        await self._database.do(lambda tx: rounds.abandon_others(tx, base, at))
        await self._database.do(lambda tx: rounds.expect(tx, self._config.goal))
        if alone:
            await self._database.do(rounds.release_claims)
            await self._database.do(lambda tx: masked_rounds.prolong(tx, at))

    async def tick(self) -> bool:
        """Do what is due. Returns whether a round was over: the next may be, too."""
        config, now = self._config, self._now()
        synchronous = config.mode == "synchronous"
        forgetting = now - self._forgot_at >= _FORGET_EVERY_S
        if forgetting:
            self._forgot_at = now

        def due(tx: Transaction) -> _Due:
            leases.expire(tx, now)
            if forgetting:
                leases.forget(tx, now - _REMEMBERED_S)
                rounds.forget_moments(tx)
            if synchronous:
                rounds.drop_late(tx)
            else:
                rounds.drop_stale(tx, config.max_gap)
            claimed = rounds.take_over(tx, token=self._token, now=now, claim_s=_CLAIM_S)
            claimed = claimed or self._claim(tx, now)
            return _Due(
                claimed, bool(rounds.in_state(tx, "waiting")), rounds.collecting(tx) is None
            )

        found = await self._database.do(due)
        if found.claimed is not None:
            await self._aggregate(found.claimed)
        if found.waiting or found.claimed is not None:
            await self._judge()
        if found.none_collects:
            await self._open()
        return found.claimed is not None

    def _claim(self, tx: Transaction, now: float) -> Round | None:
        """The round that is over, if it is."""
        config, current = self._config, rounds.collecting(tx)
        if current is not None and standing(tx, current.number) is not None:
            return masked_rounds.claim(tx, current, token=self._token, now=now, claim_s=_CLAIM_S)
        return rounds.claim(
            tx,
            goal=config.goal,
            minimum=config.minimum,
            synchronous=config.mode == "synchronous",
            token=self._token,
            now=now,
            claim_s=_CLAIM_S,
        )

    async def _aggregate(self, claimed: Round) -> None:
        def inputs(tx: Transaction) -> _Inputs:
            return _Inputs(
                rounds.counted(tx, claimed.number),
                rounds.optimiser_state(tx, claimed.number),
                rounds.next_version(tx, 0),
                rounds.served(tx),
                masked_rounds.everything(tx, claimed.number),
                rounds.noise_seed(tx, claimed.number),
                account(tx),
            )

        given = await self._database.do(inputs)
        try:
            outcome = await asyncio.to_thread(self._compute, claimed, given)
        except InvalidInput as problem:
            why, now = f"cannot be aggregated: {problem}", self._now()
            await self._database.do(lambda tx: rounds.abandon(tx, claimed.number, why, now))
            _log.warning("round %d %s", claimed.number, why)
            return

        noise = await self._noise_now(given.account)

        def end(tx: Transaction) -> bool:
            ended = rounds.finish(
                tx,
                claimed.number,
                token=self._token,
                candidate_digest=outcome.digest,
                candidate_version=given.version,
                optimiser=write_state(outcome.result.state),
                aggregation_error=outcome.result.agg_rel_err,
                noise=noise,
                note="",
            )
            if ended and outcome.dropped:
                count(tx, "dropped", outcome.dropped)
            return ended

        ended = await self._database.do(end)
        _log.info(
            "round %d of %d updates %s",
            claimed.number,
            claimed.counted,
            "ended" if ended else "was ended by another coordinator",
        )

    def _compute(self, claimed: Round, given: _Inputs) -> _Outcome:
        """The round's candidate, published. The same inputs give the same artifact."""
        start = self._adapters.read(claimed.adapter_digest)
        plan = RoundPlan.from_bytes(claimed.plan.encode())
        noise = given.noise() if self._noise is None else self._noise(claimed)
        strategy = chosen_strategy(self._config, start.shapes, noise)
        if plan.masked is not None:
            result = _unmask(strategy, plan, plan.masked, start, given)
            return _Outcome(result, self._published(claimed, given, start, result), 0)
        # In an order of their own: the same updates give the same sum, however they came in.
        ordered = sorted(given.updates, key=lambda each: (each.device, each.payload))

        def begun(version: int) -> Tensors:
            digest = given.served.get(version)
            return (start if digest is None else self._adapters.read(digest)).tensors

        counted = contributions(
            plan,
            plan.updates(start.shapes),
            ordered,
            begun,
            untouched=_untouched(plan, start.shapes),
        )
        if len(counted) < self._config.minimum:
            raise InvalidInput(
                "updates", f"of this plan are {len(counted)}, {self._config.minimum} are needed"
            )
        if isinstance(strategy, FfaLora) and isinstance(strategy.rule, PrivateMean):
            # Of what is trained alone: noise on anything else would hide nothing.
            shapes = plan.shapes(start.shapes)
            rows = stacked(counted, shapes)
            mean = unflatten(strategy.rule.combine(rows, np.ones(len(rows))), shapes)
            result = _from_mean(strategy, plan, start, mean, given)
        else:
            result = strategy.aggregate(start.tensors, counted, read_state(given.optimiser))
        digest = self._published(claimed, given, start, result)
        return _Outcome(result, digest, len(given.updates) - len(counted))

    def _published(
        self, claimed: Round, given: _Inputs, start: StartingAdapter, result: Aggregate
    ) -> str:
        return self._adapters.publish(
            start, result.tensors, version=given.version, name=f"round-{claimed.number}"
        )

    async def _judge(self) -> None:
        for candidate in await self._database.do(lambda tx: rounds.in_state(tx, "waiting")):
            verdict, why = await self._gate.judge(candidate)
            if verdict == "undecided":
                if why != candidate.note:
                    await self._database.do(_remark(candidate.number, why))
                continue
            approved, now = verdict == "approved", self._now()
            await self._database.do(_decision(candidate.number, approved, why, now))
            if not approved:
                return  # others may have gone with it

    async def _open(self) -> None:
        config, now = self._config, self._now()
        synchronous = config.mode == "synchronous"
        first = await asyncio.to_thread(self._adapters.read, config.adapter)
        begins_first = Start(first.digest, first.manifest.version, b"")
        plan = config.plan_for(first.shapes).to_bytes().decode()
        unapproved = config.start_from == "candidate"

        base = first.manifest.base_digest

        def ready(tx: Transaction) -> _Ready:
            if rounds.under_way(tx):
                return _Ready(None, 0, 0)
            begins = rounds.start(tx, base, begins_first, unapproved=unapproved)
            return _Ready(begins, rounds.highest_served(tx), rounds.next_version(tx, 0))

        renewed = await self._renewed(await self._database.do(ready))
        if renewed is None:
            return
        begins = renewed

        history = await self._database.do(account)
        noise = await self._noise_now(history)
        after = None if noise.cost is None else noise.cost.after
        why = budget.exceeded(after, config.aggregation.most_epsilon)
        if why is not None:
            await self._stand_still(why)
            return
        if noise.cost is not None:
            _log.info(
                "ε is %.3g, and %.3g after the next round, at δ %g",
                noise.cost.before,
                noise.cost.after,
                noise.delta,
            )

        def opened(tx: Transaction) -> Round | None:
            if account(tx) != history:  # another coordinator's round has ended: its ε is not in it
                return None
            budget.note(tx, None)
            fresh = rounds.open_round(
                tx,
                base,
                begins,
                plan,
                now=now,
                closes_at=now + config.round_s if synchronous else None,
                goal=config.goal,
                noise=noise,
            )
            if fresh is not None:
                masked_rounds.begin(tx, fresh)
            return fresh

        fresh = await self._database.do(opened)
        if fresh is not None:
            _log.info("round %d is open", fresh.number)

    async def _stand_still(self, why: str) -> None:
        if await self._database.do(lambda tx: budget.note(tx, why)):
            _log.warning("no round is opened: %s", why)

    async def _noise_now(self, history: Account) -> Noise:
        """What a round has of noise by the configuration, and what it makes of ε."""
        how = self._config.aggregation
        spent = await asyncio.to_thread(cost, history, how.noise_multiplier, how.delta)
        return Noise(how.noise_multiplier, how.delta, spent)

    async def _renewed(self, ready: _Ready) -> Start | None:
        """Where devices have seen a higher version, which was withdrawn since, what went before it
        begins again under a version of its own: no device goes back to a lower one."""
        begins = ready.begins
        if begins is None or begins.adapter_version >= ready.highest:
            return begins
        adapter = await asyncio.to_thread(self._adapters.read, begins.adapter_digest)
        digest = await asyncio.to_thread(
            self._adapters.publish,
            adapter,
            {},
            version=ready.next_version,
            name=f"{adapter.manifest.name[:40]}-again",
        )
        return Start(digest, ready.next_version, begins.optimiser)


def _unmask(
    strategy: Strategy, plan: RoundPlan, masked: MaskedPlan, start: StartingAdapter, given: _Inputs
) -> Aggregate:
    """The next adapter from the sum alone."""
    if (
        given.said is None
        or not isinstance(strategy, FfaLora)
        or not isinstance(strategy.rule, WeightedMean | PrivateMean)
    ):
        raise InvalidInput("aggregation", "of this configuration cannot go by the sum of updates")
    shapes, fixed = plan.shapes(start.shapes), masked.fixed(plan.clip_norm)
    size = elements(shapes)
    vectors = {each.device: each.payload for each in given.updates}
    total = fixed.decode(unmasked(masked, fixed, given.said, vectors, size))
    devices = len(vectors)
    if isinstance(strategy.rule, PrivateMean):
        total = strategy.rule.noised(total, fixed.norm_after(plan.clip_norm, size))
        devices = 1  # it is a mean already
    return _from_mean(strategy, plan, start, unflatten(total / devices, shapes), given)


def _from_mean(
    strategy: FfaLora, plan: RoundPlan, start: StartingAdapter, mean: Tensors, given: _Inputs
) -> Aggregate:
    change = {**_untouched(plan, start.shapes), **mean}
    return strategy.from_mean(
        start.tensors, flatten(change), shapes_of(change), read_state(given.optimiser)
    )


def _untouched(plan: RoundPlan, adapter: Shapes) -> Tensors:
    """Zeros for what an update could have changed, had the plan said so."""
    return {
        name: np.zeros(shape, np.float32)
        for name, shape in adapter.items()
        if plan.trained == "both" or not name.endswith(".a")
    }


def _remark(number: int, why: str) -> Callable[[Transaction], None]:
    return lambda tx: rounds.remark(tx, number, why)


def _decision(number: int, approved: bool, why: str, now: float) -> Callable[[Transaction], None]:
    def decide(tx: Transaction) -> None:
        found = rounds.round_numbered(tx, number)
        if found is not None and found.state == "waiting":  # nobody else has decided meanwhile
            rounds.decide(tx, number, approved=approved, note=why, now=now)

    return decide
