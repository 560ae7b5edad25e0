"""Groups: all promises at once, small ones refused, the rest not made to pay for them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from cascade.certificate import GroupCertificate
from cascade.certify import certify, certify_groups, selective_risk
from cascade.errors import InvalidInput
from tests.cascade.certify.populations import Population, within_level

ALPHA, DELTA = 0.25, 0.1
GRID = np.linspace(0.6, 0, 13)
POPULATIONS = {
    "de": Population(0.5, 0.4),
    "en": Population(0.6, 0.2),
    # Always just above alpha: any certificate is wrong.
    "es": Population(0.745, 0.0),
    "fr": Population(0.745, 0.0),
    "it": Population(0.745, 0.0),
}


def draw(
    sizes: dict[str, int], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.bool_], list[str]]:
    parts = [POPULATIONS[name].draw(n, rng) for name, n in sizes.items()]
    names = [name for name, n in sizes.items() for _ in range(n)]
    return np.concatenate([c for c, _ in parts]), np.concatenate([r for _, r in parts]), names


def some_is_wrong(found: GroupCertificate) -> bool:
    return any(
        POPULATIONS[name].risk(certificate.threshold) > ALPHA
        for name, certificate in found.certificates.items()
    )


def test_some_group_is_certified_wrongly_at_most_as_often_as_delta() -> None:
    draws, any_wrong, alone_wrong = 200, 0, 0
    rng = np.random.default_rng(1)
    grids = dict.fromkeys(POPULATIONS, GRID[::6])
    for _ in range(draws):
        confidence, right, names = draw(dict.fromkeys(POPULATIONS, 300), rng)
        target = selective_risk(right, alpha=ALPHA)
        any_wrong += some_is_wrong(
            certify_groups(confidence, [target], names, delta=DELTA, grids=grids)
        )
        # Each group at the whole of delta, which forgets that there are five.
        alone = dict.fromkeys(grids, DELTA)
        alone_wrong += some_is_wrong(
            certify_groups(
                confidence, [target], names, delta=sum(alone.values()), grids=grids, split=alone
            )
        )
    assert within_level(any_wrong, draws, DELTA)
    assert not within_level(alone_wrong, draws, DELTA)


def test_a_group_too_small_to_pass_is_refused_and_takes_no_share() -> None:
    rng = np.random.default_rng(2)
    confidence, right, names = draw({"de": 2000, "en": 7}, rng)
    grids = {"de": GRID, "en": GRID, "nl": GRID}
    target = selective_risk(right, alpha=ALPHA)
    found = certify_groups(confidence, [target], names, delta=DELTA, grids=grids)
    alone = certify(confidence[:2000], right[:2000], alpha=ALPHA, delta=DELTA, grid=GRID)
    assert found.certificates == {"de": alone}
    # (1 - .25)^n ≤ .1 from n = 9 on.
    assert found.refused["en"].labels_needed == 9
    assert "7 rows are too few" in found.refused["en"].reason
    assert "0 rows are too few" in found.refused["nl"].reason
    assert found.threshold("en") is None


def test_an_infeasible_group_does_not_hold_back_the_others() -> None:
    confidence, right, names = draw({"de": 2000, "fr": 2000}, np.random.default_rng(3))
    right[2000:] = np.tile([True, False], 1000)
    found = certify_groups(
        confidence,
        [selective_risk(right, alpha=ALPHA)],
        names,
        delta=DELTA,
        grids={"de": GRID, "fr": GRID},
    )
    assert list(found.certificates) == ["de"]
    assert found.certificates["de"].delta == DELTA / 2
    assert found.refused["fr"].reason.startswith("cannot certify")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": ["de"]}, "groups: must hold 2 names"),
        ({"grids": {"en": GRID}}, "grids: has none for the group 'de'"),
        ({"split": {}}, "split: has no share for the group 'de'"),
        ({"split": {"de": 0.2}}, "split: sums to 0.2, above delta = 0.1"),
        ({"split": {"de": 0.0}}, r"split\['de'\]: 0.0 is not between"),
    ],
)
def test_unusable_groups_are_refused_by_field(change: dict[str, object], message: str) -> None:
    good: dict[str, object] = {
        "groups": ["de", "de"],
        "delta": DELTA,
        "grids": {"de": GRID},
    }
    target = selective_risk([1, 1], alpha=ALPHA)
    with pytest.raises(InvalidInput, match=message):
        certify_groups([0.5, 0.6], [target], **(good | change))  # type: ignore[arg-type]
