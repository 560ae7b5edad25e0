"""What drafts are found to bring: near the truth, the configured numbers where nothing is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.draft import Drafting
from cascade.draft_book import DraftBook, DraftEstimate, DraftOutcome
from cascade.remote import Speed

PRIOR = Drafting(acceptance=0.8, write_s=0.1, read_s=0.02)
HOUR_S = 3_600.0


def outcomes(truth: Drafting, drafts: int, tokens: int, seed: int = 1) -> list[DraftOutcome]:
    """Drafts to a tier for which the model of ``Drafting`` is the truth: each token stands or falls
    by itself, and times scatter by half."""
    rng = np.random.default_rng(seed)
    agreed = rng.random((drafts, tokens)) < truth.acceptance
    kept = np.logical_and.accumulate(agreed, axis=1).sum(axis=1)
    slow = rng.uniform(0.5, 1.5, (drafts, 2))
    written = 12
    return [
        DraftOutcome(
            int(k),
            bool(k < tokens),
            Speed(tokens, tokens * truth.read_s * a, written, written * truth.write_s * b),
        )
        for k, (a, b) in zip(kept, slow, strict=True)
    ]


def estimate(found: list[DraftOutcome], every_s: float = 60.0) -> DraftEstimate:
    made = DraftEstimate()
    for place, outcome in enumerate(found):
        made = made.with_draft(outcome, place * every_s)
    return made


def test_nothing_known_leaves_what_was_configured() -> None:
    assert DraftEstimate().learned(PRIOR, 1e9) == PRIOR
    assert DraftBook().learned("c", PRIOR, None) == PRIOR


@pytest.mark.parametrize("acceptance", [0.3, 0.6, 0.95])
def test_the_numbers_come_near_the_simulated_truth(acceptance: float) -> None:
    """Over many simulated devices, each with forty drafts of eight tokens."""
    truth = replace(PRIOR, acceptance=acceptance, write_s=0.4, read_s=0.005)
    learned = [
        estimate(outcomes(truth, 40, 8, seed)).learned(PRIOR, 40 * 60.0) for seed in range(150)
    ]
    found = np.array([[each.acceptance, each.write_s, each.read_s] for each in learned])
    # Faded, some seventeen drafts count: so many judged tokens, beside twenty of the prior.
    judged = 17.5 * (1 - acceptance**8) / (1 - acceptance)
    pulled = (20 * PRIOR.acceptance + judged * acceptance) / (20 + judged)
    assert found[:, 0].mean() == pytest.approx(pulled, abs=0.02)
    assert found[:, 1].mean() == pytest.approx(0.4, rel=0.1)
    assert found[:, 2].mean() == pytest.approx(0.005, rel=0.5)
    assert abs(found[:, 0].mean() - acceptance) < 0.5 * abs(PRIOR.acceptance - acceptance)


@pytest.mark.parametrize(
    "truth",
    [
        Drafting(acceptance=0.3, write_s=0.05, read_s=0.04),  # no draft is worth it
        Drafting(acceptance=0.95, write_s=0.3, read_s=0.02),  # much longer ones are
    ],
)
def test_drafts_that_are_cut_by_it_save_nearly_what_the_truth_would(truth: Drafting) -> None:
    tokens = 60

    def saved(by: Drafting) -> float:
        return truth.saved_s(by.worth_sending(tokens))

    learned = [
        estimate(outcomes(truth, 40, 8, seed)).learned(PRIOR, 40 * 60.0) for seed in range(50)
    ]
    mean = float(np.mean([saved(each) for each in learned]))
    assert saved(PRIOR) < saved(truth) or saved(truth) == 0.0
    lost, lost_before = saved(truth) - mean, saved(truth) - saved(PRIOR)
    assert lost < 0.25 * lost_before


def test_a_draft_that_was_kept_whole_or_cut_short_judges_no_token_beyond() -> None:
    whole = DraftEstimate().with_draft(DraftOutcome(10, refused=False), 0.0)
    assert whole.learned(PRIOR, 0.0).acceptance == pytest.approx((16 + 10) / 30)
    broken = DraftEstimate().with_draft(DraftOutcome(10, refused=True), 0.0)
    assert broken.learned(PRIOR, 0.0).acceptance == pytest.approx((16 + 10) / 31)


def test_a_tier_that_tells_no_times_changes_none() -> None:
    seen = estimate([DraftOutcome(0, refused=True)] * 30)
    learned = seen.learned(PRIOR, 30 * 60.0)
    assert (learned.write_s, learned.read_s) == (PRIOR.write_s, PRIOR.read_s)
    assert learned.acceptance < 0.5


def test_it_fades_so_that_another_draft_goes_to_look() -> None:
    hopeless = replace(PRIOR, acceptance=0.05)
    seen = estimate(outcomes(hopeless, 60, 6))
    now_s = 60 * 60.0
    assert seen.learned(PRIOR, now_s).worth_sending(8) < PRIOR.worth_sending(8)
    assert seen.learned(PRIOR, now_s + 72 * HOUR_S).acceptance == pytest.approx(0.8, abs=0.01)
    # A clock that is set back makes nothing older or newer.
    assert seen.learned(PRIOR, 0.0) == seen.learned(PRIOR, now_s - 60.0)


def test_new_drafts_outweigh_old_ones() -> None:
    good, bad = replace(PRIOR, acceptance=0.95), replace(PRIOR, acceptance=0.2)
    turned = estimate([*outcomes(good, 200, 8), *outcomes(bad, 60, 8)])
    assert turned.learned(PRIOR, 260 * 60.0).acceptance < 0.6


@given(
    st.lists(
        st.builds(
            DraftOutcome,
            st.integers(0, 300),
            st.booleans(),
            st.one_of(
                st.none(),
                st.builds(
                    Speed,
                    st.integers(0, 300),
                    st.floats(0, 1e3),
                    st.integers(0, 300),
                    st.floats(0, 1e3),
                ),
            ),
        ),
        max_size=12,
    ),
    st.floats(0.0, 1e6),
)
def test_whatever_comes_the_numbers_stay_usable(found: list[DraftOutcome], gap_s: float) -> None:
    estimate(found, gap_s).learned(PRIOR, len(found) * gap_s).check()


def test_a_book_outlives_its_process_and_tells_tiers_and_tolerances_apart(tmp_path: Path) -> None:
    path, now_s = tmp_path / "drafts.json", [1e9]
    book, other = (DraftBook(path, now=lambda: now_s[0]) for _ in range(2))
    tolerant = Drafting("threshold", 0.3, acceptance=0.8)
    for _ in range(30):
        book.record("c", "tier1", PRIOR, DraftOutcome(0, refused=True))
        other.record("c", "tier1", tolerant, DraftOutcome(9, refused=False))
    assert book.learned("c", PRIOR, None).acceptance < 0.5
    assert book.learned("c", tolerant, None).acceptance > 0.9
    assert other.learned("c", PRIOR, None) == DraftBook(path, now=lambda: 1e9).learned(
        "c", PRIOR, None
    )
    assert book.learned("d", PRIOR, None) == PRIOR
    # Who looked at a draft last is who is expected, unless it may not answer.
    now_s[0] += 1.0
    book.record("c", "tier2", PRIOR, DraftOutcome(40, refused=False))
    assert book.learned("c", PRIOR, None).acceptance > 0.9
    assert book.learned("c", PRIOR, frozenset({"tier1"})).acceptance < 0.5
    assert book.learned("c", PRIOR, frozenset({"tier3"})) == PRIOR


def test_a_cluster_that_is_gone_leaves_the_file(tmp_path: Path) -> None:
    path, now_s = tmp_path / "drafts.json", [1e9]
    book = DraftBook(path, now=lambda: now_s[0])
    book.record("gone", "tier1", PRIOR, DraftOutcome(1, refused=True))
    now_s[0] += 8 * 24 * HOUR_S
    book.record("here", "tier1", PRIOR, DraftOutcome(1, refused=True))
    assert list(json.loads(path.read_text())["drafts"]) == ["here lossless 0 tier1"]


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", '{"format": 2, "drafts": {}}', '{"format": 1, "drafts": []}',
        json.dumps({"format": 1, "drafts": {"c lossless 0 t": {"kept": -1}}}),
        json.dumps({"format": 1, "drafts": {"c lossless 0 t": {"kept": 1e300, "at_s": 0}}}),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_counts_as_empty_and_is_replaced(
    tmp_path: Path, content: str
) -> None:
    path = tmp_path / "drafts.json"
    path.write_text(content)
    book = DraftBook(path)
    assert book.learned("c", PRIOR, None) == PRIOR
    book.record("c", "t", PRIOR, DraftOutcome(0, refused=True))
    assert DraftBook(path).learned("c", PRIOR, None) != PRIOR
