"""Who may be with a tier now, who waits, and who is refused: counted in the gateway itself.

Ray Serve queues too, but it asks a full replica again after pauses that double, so that places stay
empty while calls wait, and each of its refusals costs as much as an answer. Here a place that is
given up goes to the next call in the same turn of the event loop, and a refusal is a comparison.

Time that a newcomer would wait, by Little's law: (calls ahead + itself) · mean stay / places.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Final

from cloud.attempt import TierStream
from cloud.config import ClusterConfig, TierConfig
from cloud.engines import ChatRequest
from cloud.errors import Overloaded
from cloud.tier import TierMessage

_NEWEST: Final = 0.1
"""Weight of the newest stay in their mean."""
_LEAST_RETRY_S: Final = 1.0
_MOST_RETRY_S: Final = 60.0


class WaitingRoom:
    """The places of one tier and the queue for them, first come, first served. Use it on one event
    loop.

    Arguments:
        tier: its name, for messages.
        places: calls that may be with the tier at one time, ≥ 1.
        chairs: calls that may wait beside them, ≥ 0.
    """

    def __init__(self, tier: str, places: int, chairs: int) -> None:
        self._tier = tier
        self._places = places
        self._chairs = chairs
        self._taken = 0
        self._queue: deque[asyncio.Future[None]] = deque()
        self._stay_s: float | None = None

    @property
    def under_way(self) -> int:
        """Calls that have a place."""
        return self._taken

    @property
    def waiting(self) -> int:
        """Calls that wait for one."""
        return len(self._queue)

    def refusal(self, deadline_s: float = math.inf) -> Overloaded | None:
        """Why a call would be refused now; ``None`` where it would not.

        Arguments:
            deadline_s: seconds that it has. Who would have to wait longer for a place, as long as
                calls take here, is refused at once instead of in vain later.
        """
        if self._taken < self._places:
            return None
        if len(self._queue) >= self._chairs:
            return Overloaded(f"{self._tier} has no room in its queue", self._retry_after_s())
        if self._wait_s() > deadline_s:
            return Overloaded(
                f"{self._tier} would not begin within the deadline", self._retry_after_s()
            )
        return None

    @property
    def free(self) -> bool:
        """Whether there is a place at once."""
        return self._taken < self._places

    async def enter(self) -> None:
        """Take a place, or wait for one.

        Raises:
            Overloaded: there is no room to wait in.
        """
        if self._taken < self._places:
            self._taken += 1
            return
        refusal = self.refusal()
        if refusal is not None:
            raise refusal
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it had just been given a place
                self._hand_on()
            else:
                self._queue.remove(turn)
            raise

    def leave(self, stay_s: float | None) -> None:
        """Give a place up, after so many seconds on it; ``None`` where they say nothing of others'
        stays."""
        mean = self._stay_s
        if stay_s is not None:
            self._stay_s = stay_s if mean is None else mean + _NEWEST * (stay_s - mean)
        self._hand_on()

    def _hand_on(self) -> None:
        """Whoever waits longest gets the place. Its count does not change then."""
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._taken -= 1

    def _wait_s(self) -> float:
        return (len(self._queue) + 1) * (self._stay_s or 0.0) / self._places

    def _retry_after_s(self) -> float:
        """When those who wait now will have been served: in whole seconds, which are few values, so
        that a refusal is mostly one that was made before."""
        return min(max(_LEAST_RETRY_S, float(math.ceil(self._wait_s()))), _MOST_RETRY_S)


class WaitingRooms:
    """The waiting rooms of one gateway, one a tier.

    Arguments:
        config: ``handed_requests`` and ``max_queued_requests`` of each tier; each of
            ``gateway.replicas`` gateways has its share of the queue, and may fill all places.
    """

    def __init__(self, config: ClusterConfig) -> None:
        gateways = config.gateway.replicas
        self._rooms = {tier.name: _room(tier, gateways) for tier in config.tiers}

    def streams(self, tiers: Mapping[str, TierStream]) -> dict[str, TierStream]:
        """``tiers``, each behind its waiting room."""
        return {name: _Seated(self._rooms[name], stream) for name, stream in tiers.items()}

    def refusal(self, deadline_s: float) -> Overloaded | None:
        """Why a call that nobody has read yet can only be refused: no tier takes any. ``None``
        where one of them does, which need not be one that the call may go to."""
        refusal: Overloaded | None = None
        for room in self._rooms.values():
            found = room.refusal(deadline_s)
            if found is None:
                return None
            refusal = refusal or found
        return refusal


class _Seated:
    """A ``TierStream`` behind a waiting room."""

    def __init__(self, room: WaitingRoom, stream: TierStream) -> None:
        self._room = room
        self._stream = stream

    async def __call__(self, request: ChatRequest) -> AsyncGenerator[TierMessage]:
        if request.prefill and not self._room.free:
            return  # nothing waits for it, and it is in nobody's way
        await self._room.enter()
        began = time.monotonic()
        try:
            async with aclosing(self._stream(request)) as messages:
                async for message in messages:
                    yield message
        finally:
            self._room.leave(None if request.prefill else time.monotonic() - began)


def places(tier: TierConfig, gateways: int) -> int:
    """Calls that one of ``gateways`` may hand all replicas of a tier together, also while fewer run
    than may: what Ray Serve holds for those that are still to come is what makes it start them.

    Any gateway may fill an engine that has a queue, so that a tier is used to the full whichever
    gateway devices are connected to; of others, each gateway has its share of the slots.
    """
    scaling = tier.autoscaling
    each = tier.handed_requests
    if scaling.min_replicas < scaling.max_replicas:
        each = max(each, math.ceil(scaling.target_ongoing_requests))
    most = each * scaling.max_replicas
    return most if tier.local else math.ceil(most / gateways)


def ongoing_at_replica(tier: TierConfig, gateways: int) -> int:
    """Calls that a replica takes from all gateways together. Those beyond its slots wait in its
    engine, where the gateways' calls are first come, first served."""
    return tier.handed_requests * (gateways if tier.local else 1)


def _room(tier: TierConfig, gateways: int) -> WaitingRoom:
    chairs = math.ceil(tier.max_queued_requests / gateways)
    return WaitingRoom(tier.name, places(tier, gateways), chairs)
