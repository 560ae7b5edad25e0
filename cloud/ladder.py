"""Which tier answers: the lowest that satisfies every constraint of the request, and why.

Pure. Constraints are filters with reasons, looked at before anything is spent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cascade.draft import DraftProposal
from cascade.errors import InvalidInput
from cascade.request import DataClass
from cascade.wire import OpenRequest
from cloud.config import Input, TierConfig
from cloud.errors import NoTierAllowed
from cloud.served_adapters import ServedAdapters, TierAdapter

# A chat template adds a few tokens to each turn and to the whole.
_TEMPLATE_TOKENS: Final = 32
_TOKENS_PER_TURN: Final = 8
_NOTHING_KNOWN: Final = ServedAdapters()


@dataclass(frozen=True, slots=True)
class Choice:
    """The tier that answers.

    Arguments:
        reasons: fixed words in the order of the decision: for every lower tier that was passed
            over ``NAME:reads_text`` or ``NAME:reads_tensors`` (and nothing else),
            ``NAME:regex`` (keeps none), ``NAME:adapter`` (has it not), ``NAME:adapter_withheld``
            (has it, and must not serve it now), ``NAME:not_allowed``, ``NAME:data_class``,
            ``NAME:residency``, ``NAME:licence`` or ``NAME:cost``, then ``lowest_tier`` or
            ``lowest_allowed_tier``; ``NAME:draft_ignored`` behind it where the tier that answers
            scores no drafts, or the price of reading one is above what the request may cost.
    """

    tier: TierConfig
    reasons: tuple[str, ...]


def choose_tier(
    tiers: Sequence[TierConfig], request: OpenRequest, adapters: ServedAdapters = _NOTHING_KNOWN
) -> Choice:
    """The lowest tier that may answer.

    Arguments:
        tiers: from the lowest to the highest; at least one.
        adapters: what is known of theirs.

    Raises:
        InvalidInput: ``allowed_tiers`` names a tier that does not exist, or ``adapter`` an adapter
            that no tier has.
        NoTierAllowed: no tier satisfies the constraints; the message says which failed where.
    """
    limits = request.constraints
    if limits.data_class is DataClass.NEVER_LEAVE:
        raise NoTierAllowed("the data class never_leave forbids every tier; answer on the device")
    names = [tier.name for tier in tiers]
    unknown = sorted((limits.allowed_tiers or frozenset()).difference(names))
    if unknown:
        raise InvalidInput(
            "constraints.allowed_tiers",
            f"no tier is called {unknown[0]!r}; tiers: {', '.join(names)}",
        )
    _check_adapter(tiers, request.adapter)
    passed_over: list[str] = []
    for tier in tiers:
        obstacle = obstacle_to(tier, request, adapters)
        if obstacle is None:
            last = "lowest_allowed_tier" if passed_over else "lowest_tier"
            return Choice(tier, (*passed_over, last))
        passed_over.append(f"{tier.name}:{obstacle}")
    if all(tier.reads != _kind(request) for tier in tiers):
        there = ", ".join(f"{tier.name} reads {tier.reads}" for tier in tiers)
        raise NoTierAllowed(f"no tier of this cluster reads {_kind(request)}: {there}")
    raise NoTierAllowed(
        f"no tier satisfies the request's constraints ({', '.join(passed_over)})"
        f"{_reasons_why(tiers, passed_over, request, adapters)}; "
        "loosen one of them or answer on the device"
    )


def _check_adapter(tiers: Sequence[TierConfig], adapter: str) -> None:
    if not adapter or any(adapter in tier.adapters for tier in tiers):
        return
    there = [f"{tier.name}: {', '.join(tier.adapters)}" for tier in tiers if tier.adapters]
    raise InvalidInput(
        "adapter", f"no tier has {adapter!r}; adapters: {'; '.join(there) or 'none'}"
    )


def _reasons_why(
    tiers: Sequence[TierConfig],
    passed_over: Sequence[str],
    request: OpenRequest,
    adapters: ServedAdapters,
) -> str:
    """The licences in the way, by name where anybody knows them, and why adapters are withheld."""
    told = []
    for tier in tiers:
        adapter = adapters.find(tier.name, request.adapter)
        if adapter is not None and f"{tier.name}:adapter_withheld" in passed_over:
            told.append(adapter.problem)
        if f"{tier.name}:licence" in passed_over:
            told.append(_licence(tier, adapter))
    return "".join(f"; {each}" for each in told)


def _licence(tier: TierConfig, adapter: TierAdapter | None) -> str:
    if adapter is not None and adapter.commercial_use is False:
        return (
            f"{adapter.licence}, the licence of the adapter {adapter.name} of {tier.name}, does "
            "not allow commercial use"
        )
    if tier.catalogued is not None and not tier.catalogued.commercial_use:
        return f"{tier.model} is under {tier.catalogued.licence}"
    whose = "the adapters" if tier.files_of_adapters else tier.model_name
    return f"nobody has said that {whose} of {tier.name} may be used commercially"


def max_output_tokens(tier: TierConfig, request: OpenRequest) -> int:
    """The most tokens that an answer can have, ≥ 1: what was asked for within the tier's limit, or
    what the longest option can take. A classification counts as one token."""
    if request.tensors:
        return 1
    if request.options:
        # A token holds at least one byte; one more ends the answer.
        return max(len(option.encode()) for option in request.options) + 1
    return min(request.max_tokens or tier.max_output_tokens, tier.max_output_tokens)


def max_cost_usd(tier: TierConfig, request: OpenRequest) -> float:
    """An upper bound on the price: the answer is as long as it may be."""
    return tier.price.cost_usd(max_prompt_tokens(tier, request), max_output_tokens(tier, request))


def draft_cost_usd(tier: TierConfig, draft: DraftProposal | None) -> float:
    """An upper bound on the price of a draft: none of it is kept, and all of it was read."""
    return 0.0 if draft is None else tier.price.cost_usd(draft.most_tokens, 0)


def max_prompt_tokens(tier: TierConfig, request: OpenRequest) -> int:
    """An upper bound: a token holds at least one byte of the prompt. Tensors have no tokens."""
    if request.tensors:
        return 0
    prompt_bytes = sum(len(turn.content.encode()) for turn in request.messages)
    template = _TEMPLATE_TOKENS + _TOKENS_PER_TURN * len(request.messages)
    return min(prompt_bytes + template, tier.context_tokens)


def _kind(request: OpenRequest) -> Input:
    return "tensors" if request.tensors else "text"


def obstacle_to(
    tier: TierConfig,
    request: OpenRequest,
    adapters: ServedAdapters = _NOTHING_KNOWN,
    *,
    spent_usd: float = 0.0,
) -> str | None:
    """Why a tier may not answer a request: a word of ``Choice.reasons``; ``None`` where it may.

    Arguments:
        adapters: what is known of those of the tiers.
        spent_usd: what earlier calls for the same request have cost, or still may.
    """
    limits = request.constraints
    if tier.reads != _kind(request):
        return f"reads_{tier.reads}"
    if request.regex is not None and not tier.keeps_regex:
        return "regex"
    if request.adapter and request.adapter not in tier.adapters:
        return "adapter"
    adapter = adapters.find(tier.name, request.adapter)
    if adapter is not None and adapter.problem:
        return "adapter_withheld"
    if limits.allowed_tiers is not None and tier.name not in limits.allowed_tiers:
        return "not_allowed"
    if limits.data_class.value not in tier.data_classes:
        return "data_class"
    if limits.residency and tier.region != limits.residency:
        return "residency"
    if limits.commercial and not tier.allows_commercial_use:
        return "licence"
    if limits.commercial and adapter is not None and adapter.commercial_use is False:
        return "licence"
    most_usd = math.inf if limits.max_cost_usd is None else limits.max_cost_usd
    return "cost" if spent_usd + max_cost_usd(tier, request) > most_usd else None
