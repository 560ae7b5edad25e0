"""Which tier answers, and why."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.errors import InvalidInput
from cascade.request import Constraints, DataClass, Message
from cascade.wire import OpenRequest
from cloud.config import PriceList, TierConfig
from cloud.errors import NoTierAllowed
from cloud.ladder import choose_tier, max_cost_usd, max_output_tokens

LOW = TierConfig(
    name="low",
    model="m",
    data_classes=("public",),
    max_output_tokens=100,
    price=PriceList(input_usd_per_million_tokens=1.0, output_usd_per_million_tokens=2.0),
)
HIGH = TierConfig(
    name="high",
    model="m",
    region="eu",
    commercial_use=True,
    price=PriceList(input_usd_per_million_tokens=1000.0, output_usd_per_million_tokens=1000.0),
)


def asking(prompt: str = "hello", max_tokens: int | None = None, **limits: object) -> OpenRequest:
    return OpenRequest(
        request_id="r",
        messages=(Message("user", prompt),),
        max_tokens=max_tokens,
        constraints=Constraints(**limits),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("request_", "tier", "reasons"),
    [
        (asking(data_class=DataClass.PUBLIC), "low", ("lowest_tier",)),
        (asking(), "high", ("low:data_class", "lowest_allowed_tier")),
        (
            asking(data_class=DataClass.PUBLIC, residency="eu"),
            "high",
            ("low:residency", "lowest_allowed_tier"),
        ),
        (
            asking(data_class=DataClass.PUBLIC, allowed_tiers=frozenset({"high"})),
            "high",
            ("low:not_allowed", "lowest_allowed_tier"),
        ),
        (asking(data_class=DataClass.PUBLIC, max_cost_usd=0.001), "low", ("lowest_tier",)),
        (
            asking(data_class=DataClass.PUBLIC, commercial=True),
            "high",
            ("low:licence", "lowest_allowed_tier"),
        ),
    ],
)
def test_the_lowest_tier_that_may_answer_is_chosen(
    request_: OpenRequest, tier: str, reasons: tuple[str, ...]
) -> None:
    choice = choose_tier((LOW, HIGH), request_)
    assert (choice.tier.name, choice.reasons) == (tier, reasons)


def test_a_refusal_says_what_stood_in_the_way_of_each_tier() -> None:
    with pytest.raises(NoTierAllowed, match="low:data_class, high:cost") as refused:
        choose_tier((LOW, HIGH), asking(max_cost_usd=0.0001))
    assert refused.value.status == "FAILED_PRECONDITION"


def test_commercial_use_of_research_models_alone_is_refused() -> None:
    with pytest.raises(NoTierAllowed, match="low:licence") as refused:
        choose_tier((LOW,), asking(data_class=DataClass.PUBLIC, commercial=True))
    assert refused.value.status == "FAILED_PRECONDITION"


def test_never_leave_reaches_no_tier() -> None:
    with pytest.raises(NoTierAllowed, match="never_leave"):
        choose_tier((LOW, HIGH), asking(data_class=DataClass.NEVER_LEAVE))


def test_an_unknown_tier_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match="no tier is called 'lov'; tiers: low, high") as refused:
        choose_tier((LOW, HIGH), asking(allowed_tiers=frozenset({"lov", "low"})))
    assert refused.value.field == "constraints.allowed_tiers"


def test_an_answer_is_as_long_as_asked_for_within_the_tiers_limit() -> None:
    assert max_output_tokens(LOW, asking()) == 100
    assert max_output_tokens(LOW, asking(max_tokens=7)) == 7
    assert max_output_tokens(LOW, asking(max_tokens=1000)) == 100


def test_an_option_always_fits() -> None:
    request = OpenRequest("r", (Message("user", "?"),), options=("yes", "é" * 300))
    assert max_output_tokens(LOW, request) == 601


@given(st.text(min_size=1, max_size=200), st.integers(1, 100))
def test_the_price_bound_holds_for_any_count_of_tokens(prompt: str, tokens: int) -> None:
    # No tokenizer makes more tokens of a text than it has bytes.
    prompt_bytes = len(prompt.encode("utf-8", "replace"))
    bound = max_cost_usd(LOW, asking(prompt.encode("utf-8", "replace").decode(), tokens))
    assert bound >= LOW.price.cost_usd(prompt_bytes, tokens)
