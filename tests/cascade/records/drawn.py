"""Records of every shape, drawn by hypothesis."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
from hypothesis import strategies as st

from cascade.records import Header, Outcome, Record, Scores, SignalSummary, TierInfo
from cascade.records.outcome import MOST
from cascade.signals import Signals
from cascade.task import generic

OPTIONS = ("yes", "no", "maybe")
TIERS = ("device", "tier1")

texts = st.text(st.characters(codec="utf-8"), max_size=20)
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
numbers = st.floats(allow_nan=False, allow_infinity=False)
units = st.floats(0, 1)
counts = st.integers(0, MOST)
digests = st.text("0123456789abcdef", min_size=64, max_size=64)


def float32s(low: float, high: float, size: int) -> st.SearchStrategy[np.ndarray]:
    values = st.floats(low, high, width=32)
    return st.lists(values, min_size=size, max_size=size).map(lambda x: np.array(x, np.float32))


@st.composite
def signals(draw: st.DrawFn) -> Signals:
    size = draw(st.integers(1, 4))
    return Signals(
        draw(float32s(-(2.0**60), 0, size)),
        draw(float32s(0, 2.0**60, size)),
        draw(float32s(0, 1, size)),
    )


scores = st.builds(
    Scores,
    logprobs=float32s(-(2.0**60), 2.0**60, len(OPTIONS)),
    priors=float32s(-(2.0**60), 2.0**60, len(OPTIONS)),
    probabilities=float32s(0, 1, len(OPTIONS)),
    mode=st.sampled_from(["exact", "search"]),
    unexplored=units,
)
answers = st.builds(
    Outcome,
    answer=st.none() | texts,
    answer_sha256=st.none() | digests,
    correct=st.none() | units,
    raw_score=st.none() | units,
    self_verification=st.none() | units,
    agreement=st.none() | units,
    summary=st.none() | signals().map(SignalSummary.of),
    signals=st.none() | signals(),
    scores=st.none() | scores,
    finish=st.sampled_from([None, "stop", "length"]),
    latency_s=st.none() | st.floats(0, 1e300),
    prompt_tokens=st.none() | counts,
    completion_tokens=st.none() | counts,
    bytes_up=st.none() | counts,
    bytes_down=st.none() | counts,
    cost_usd=st.none() | st.floats(0, 1e300),
)
failures = st.builds(
    Outcome,
    status=st.sampled_from(["UNAVAILABLE", "DEADLINE_EXCEEDED"]),
    latency_s=st.none() | st.floats(0, 1e9),
)


def header(*tiers: str) -> Header:
    return Header(
        tiers=tuple(
            TierInfo(
                name, "a model", "device" if name == "device" else "cloud", bundle_digest="0f" * 32
            )
            for name in tiers or TIERS
        ),
        options=OPTIONS,
        wording=generic(OPTIONS),
        created=datetime(2026, 1, 31, 12, 0, 5, tzinfo=UTC),
        description="drawn",
    )


records = st.lists(
    st.builds(
        Record,
        id=names,
        document=names,
        input_sha256=digests,
        outcomes=st.dictionaries(st.sampled_from(TIERS), answers | failures),
        groups=st.dictionaries(names, texts, max_size=3),
        features=st.dictionaries(names, numbers, max_size=3),
        options=st.sampled_from([(), ("a", "b", "c")]),
        text=st.none() | texts,
        reference=st.none() | texts,
    ),
    min_size=1,
    max_size=5,
    unique_by=lambda record: record.id,
)
