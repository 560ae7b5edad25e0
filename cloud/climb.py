"""One request's way up a ladder: ask, hear, step (``cascade.ladder``), within the request's limits.

Text is held back while another answer may still take its place, and streams where none can.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from cascade.errors import CascadeError, InvalidInput, RemoteError
from cascade.events import DEVICE
from cascade.files import sha256_bytes
from cascade.ladder import Heard, Step, confidence_in, next_step
from cascade.remote import Accepted, Chunk, EventsAtOnce, Finished, RemoteEvent, Verified
from cloud.asking import Asking
from cloud.attempt import Attempt
from cloud.config import TierConfig
from cloud.engines import EngineEvent, Piece, Started
from cloud.errors import NoTierAllowed
from cloud.ladders import Followed


class Climb:
    """The way of one request.

    Arguments:
        asking: makes the calls, and knows who may be asked.
        followed: the ladder.
    """

    def __init__(self, asking: Asking, followed: Followed) -> None:
        self._asking = asking
        self._policy = followed.policy
        self._device = followed.device
        self._heard: dict[str, Heard] = {}
        if followed.device is not None:
            said = {followed.device: followed.said}
            # It asks because it is not sure. That it is can only be a defect of one of the two.
            sure = not next_step(followed.policy, said).ask
            self._heard = {followed.device: Heard()} if sure else said
        self._answers: dict[str, Attempt] = {}
        self._reasons: list[str] = []
        self._words = 0
        self._problem: CascadeError | None = None
        self._shown = ""  # the tier that the caller was told of last
        self._live: Attempt | None = None  # whose text the caller has

    @property
    def possible(self) -> bool:
        """Whether any tier of the ladder may be asked."""
        asked = (tier for tier in self._policy.ladder.tiers if tier != self._device)
        return any(self._asking.obstacle(self._asking.tier(tier)) is None for tier in asked)

    async def events(self) -> AsyncGenerator[EventsAtOnce]:
        """Events of the request, ``Finished`` last.

        Raises:
            InvalidInput, RemoteError: no tier answered.
        """
        while (step := self._step()).ask:
            tier = self._asking.tier(step.tier)
            obstacle = self._asking.obstacle(tier)
            if obstacle is not None:
                self._pass_over(tier.name, obstacle)
                continue
            async with aclosing(self._ask(tier)) as events:
                async for together in events:
                    yield together
        yield tuple(self._take(step))

    def _step(self) -> Step:
        step = next_step(self._policy, self._heard)
        # What the device itself says already is not said again.
        own = {f"{self._device}:{word}" for word in ("confident", "unsure", "no_score")}
        self._reasons += [word for word in step.reasons[self._words :] if word not in own]
        self._words = len(step.reasons)
        return step

    async def _ask(self, tier: TierConfig) -> AsyncGenerator[EventsAtOnce]:
        """Ask one tier, and hear what it says; its text is yielded where nothing can replace it."""
        above = self._still_above(tier.name)
        live = not above and not self._contested(tier.name)
        if self._asking.attempts:
            # From here on the device must not retry: the calls that are left are counted here.
            yield (self._accepted(tier),)
        winner: Attempt | None = None
        hedge = self._hedge(tier)
        try:
            calls = self._asking.ask(
                tier,
                score=self._needs_score(tier, hedge),
                within_s=self._share_s(len(above)),
                hedge_with=hedge,
            )
            async with aclosing(calls) as batches:
                async for attempt, batch in batches:
                    if not batch:
                        yield (self._accepted(attempt.tier),)
                    winner = attempt if batch else winner
                    if told := self._told(attempt, batch, live=live):
                        yield tuple(told)
        except (InvalidInput, RemoteError) as problem:
            self._problem = problem
            self._pass_over(tier.name, _word(problem))
            return
        if winner is None:
            return
        name = winner.tier.name
        if name != tier.name:
            self._pass_over(tier.name, "slow")
        done = winner.done
        self._answers[name] = winner
        self._heard[name] = Heard(
            sha256_bytes(winner.text.encode()), done.raw_score if done else None
        )

    def _told(self, attempt: Attempt, batch: list[EngineEvent], *, live: bool) -> list[RemoteEvent]:
        events: list[RemoteEvent] = []
        for event in batch:
            if isinstance(event, Started) and self._shown != attempt.tier.name:
                events.append(self._accepted(attempt.tier))
            elif isinstance(event, Piece) and live:
                events.append(Chunk(event.text, event.count))
            elif isinstance(event, Verified) and live:
                events.append(event)
        if live and any(isinstance(event, Chunk) for event in events):
            self._live = attempt
        return events

    def _take(self, step: Step) -> list[RemoteEvent]:
        """The last events: the answer that the ladder takes, or the best that there is."""
        name = step.tier
        if name == self._device and self._answers:
            return [self._finished(None, DEVICE, name)]
        if name not in self._answers:
            if not self._answers:
                why = ", ".join(self._reasons)
                raise self._problem or NoTierAllowed(f"no tier of the ladder may answer ({why})")
            name = max(self._answers, key=self._sureness)
            self._reasons.append(f"{name}:best_there_is")
        attempt = self._answers[name]
        finished = self._finished(attempt, name, name)
        if self._live is attempt:
            return [finished]
        told = [] if self._shown == name else [self._accepted(attempt.tier)]
        kept = [] if attempt.verified is None else [attempt.verified]
        return [*told, *kept, Chunk(attempt.text, attempt.written), finished]

    def _finished(self, attempt: Attempt | None, source: str, name: str) -> Finished:
        if attempt is not None and attempt.ignores_draft:
            self._reasons.append(f"{name}:draft_ignored")
        return self._asking.finished(
            attempt,
            reasons=tuple(self._reasons),
            tier=source,
            model=attempt.tier.model_name if attempt else "",
            confidence=confidence_in(self._policy, name, self._heard[name]),
        )

    def _accepted(self, tier: TierConfig) -> Accepted:
        self._shown = tier.name
        return Accepted(tier.name, tier.model_name)

    def _pass_over(self, name: str, word: str) -> None:
        self._heard[name] = Heard()
        self._reasons.append(f"{name}:{word}")

    def _sureness(self, name: str) -> tuple[float, int]:
        """Where nobody can tell, the higher tier is taken to be."""
        sure = confidence_in(self._policy, name, self._heard[name])
        place = self._policy.ladder.tiers.index(name)
        return (1.0 if sure is None else sure, place)

    def _still_above(self, name: str) -> list[str]:
        """Tiers above this one that might be asked after it."""
        ladder = self._policy.ladder
        above = [
            tier
            for tier in ladder.tiers[ladder.tiers.index(name) + 1 :]
            if self._asking.obstacle(self._asking.tier(tier)) is None
        ]
        return above[: max(0, self._asking.calls_left - 1)]

    def _contested(self, name: str) -> bool:
        """Whether the answer of this tier may be weighed against the first one's."""
        ladder = self._policy.ladder
        first = self._heard.get(ladder.tiers[0], Heard())
        return ladder.way != "climb" and name == ladder.tiers[1] and first.answer is not None

    def _share_s(self, above: int) -> float | None:
        """What a tier may take of the deadline: an equal part, so that those above it have theirs;
        all but a margin where an answer is at hand; ``None`` where it is the only hope."""
        if above:
            return self._asking.remaining_s / (above + 1)
        if not self._answers:
            return None
        return max(0.0, self._asking.remaining_s - self._asking.margin_s)

    def _hedge(self, tier: TierConfig) -> TierConfig | None:
        """Who is asked too where ``tier`` is slow: of the ladder, and not below it."""
        tiers = self._policy.ladder.tiers
        if tier.hedge is None or tier.hedge.to not in tiers[tiers.index(tier.name) :]:
            return None
        return self._asking.tier(tier.hedge.to)

    def _needs_score(self, *tiers: TierConfig | None) -> bool:
        names = {tier.name for tier in tiers if tier is not None}
        return self._asking.request.score or bool(names & self._policy.confidence.keys())


def _word(problem: CascadeError) -> str:
    return problem.status.lower() if isinstance(problem, RemoteError) else "invalid_argument"
