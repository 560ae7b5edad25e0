"""A gateway's eye on the channels that adapters of tiers come from.

A request gets what its adapter's name stands for when it is handed to a tier, by digest, so that
all replicas mean the same and none has to look. What a channel's signed word no longer names is not
served; a word that cannot be had, or is not believed, changes nothing.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Final

from cascade.errors import CascadeError
from cascade.home import trust_dir
from cascade.signing import TrustStore
from cloud.adapter_source import in_registry
from cloud.attempt import TierStream
from cloud.channel_word import ChannelWord, read_word
from cloud.config import ClusterConfig, TierConfig
from cloud.engines import ChatRequest
from cloud.errors import NoTierAllowed
from cloud.registry import Registry
from cloud.served_adapters import ServedAdapters, TierAdapter
from cloud.tier import TierMessage
from cloud.tier_adapters import described, seen_revisions

LOOK_PERIOD_S: Final = 5.0
"""Between two looks."""

_log = logging.getLogger("ray.serve")


class AdapterWatch:
    """Keeps ``served`` as the channels say.

    Arguments:
        config: whose adapters they are.
        served: what they stood for when the cluster was built. Where this machine has seen a later
            revision of a channel since, its adapters are not served until the channel is read.
    """

    def __init__(self, config: ClusterConfig, served: ServedAdapters) -> None:
        self._config = config
        self._served = served
        self._words: dict[str, ChannelWord] = {}
        self._told: dict[str, str] = {}
        self._named: dict[str, list[tuple[TierConfig, str]]] = {}
        for tier in config.tiers if config.gateway.registry is not None else ():
            for name, source in tier.adapters.items():
                place = in_registry(source)
                if place is not None and place.channel and tier.local:
                    self._named.setdefault(place.channel, []).append((tier, name))
        self._withhold_what_is_old()

    @property
    def channels(self) -> tuple[str, ...]:
        """Those that it looks at."""
        return tuple(self._named)

    def look(self) -> None:
        """Read every channel, and take over what has changed. Blocks while the registry is read;
        raises nothing."""
        url = self._config.gateway.registry
        if url is None or not self._named:
            return
        seen = seen_revisions(url)
        for channel in self._named:
            try:
                registry, trust = Registry(url), TrustStore(trust_dir())
                word = read_word(registry, channel, trust, least=seen.least(channel))
                if word == self._words.get(channel):
                    continue
                self._take(word)
            except Exception as problem:  # an fsspec file system raises what its library does
                self._tell(channel, f"channel {channel} is left as it was: {problem}")
                continue
            seen.note(channel, word.revision)
            self._tell(channel, "")

    def _take(self, word: ChannelWord) -> None:
        whole = True
        for tier, name in self._named[word.channel]:
            try:
                adapter = described(self._config, tier, name, word)
            except CascadeError as problem:
                adapter = TierAdapter(
                    name, tier.adapters[name], revision=word.revision, problem=str(problem)
                )
                whole = False
            before = self._served.find(tier.name, name)
            self._served.change(tier.name, adapter)
            if before is None or (before.digest, before.problem) != (
                adapter.digest,
                adapter.problem,
            ):
                now = adapter.problem or f"{name} of {tier.name} is {adapter.digest}"
                level = logging.WARNING if adapter.problem else logging.INFO
                _log.log(level, "channel %s, revision %d: %s", word.channel, word.revision, now)
        # What is wrong may be mended without a new revision: a key pinned, a file put back.
        if whole:
            self._words[word.channel] = word
        else:
            self._words.pop(word.channel, None)

    def _tell(self, channel: str, problem: str) -> None:
        if problem and self._told.get(channel) != problem:
            _log.warning(problem)
        self._told[channel] = problem

    def _withhold_what_is_old(self) -> None:
        url = self._config.gateway.registry
        for channel, named in self._named.items():
            least = 0 if url is None else seen_revisions(url).least(channel)
            for tier, name in named:
                known = self._served.find(tier.name, name)
                if known is not None and known.revision < least:
                    problem = (
                        f"tier {tier.name}: adapter {name}: channel {channel} cannot be read, and "
                        "has changed since the cluster was built"
                    )
                    self._served.change(tier.name, dataclasses.replace(known, problem=problem))


def by_digest(streams: Mapping[str, TierStream], served: ServedAdapters) -> dict[str, TierStream]:
    """The same tiers, each request with the digest of its adapter."""
    return {tier: _ByDigest(tier, stream, served) for tier, stream in streams.items()}


class _ByDigest:
    """A ``TierStream`` that says what an adapter's name stands for at the moment of the call."""

    def __init__(self, tier: str, stream: TierStream, served: ServedAdapters) -> None:
        self._tier = tier
        self._stream = stream
        self._served = served

    async def __call__(self, request: ChatRequest) -> AsyncGenerator[TierMessage]:
        adapter = self._served.find(self._tier, request.adapter)
        if adapter is not None:
            if adapter.problem:  # since the tier was chosen
                raise NoTierAllowed(adapter.problem)
            if in_registry(adapter.source):
                request = dataclasses.replace(request, adapter_digest=adapter.digest)
        async with aclosing(self._stream(request)) as messages:
            async for message in messages:
                yield message
