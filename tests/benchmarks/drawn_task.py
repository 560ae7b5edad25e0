"""A task whose truth is known: drawn records with texts, for the peers."""

from __future__ import annotations

import numpy as np

from benchmarks.decision.peers.parts import Parts, parts_of
from cascade.records import (
    Header,
    Outcome,
    Record,
    RecordSet,
    SignalSummary,
    TierInfo,
    input_sha256,
)
from cascade.signals import Signals
from cascade.task import generic

OPTIONS = ("positive", "negative")
_WORDS = ["lamp", "door", "film", "paper", "shop", "night", "river", "glass", "table", "queen"]


def drawn_records(rows: int, seed: int = 1) -> tuple[RecordSet, dict[str, str]]:
    """Records and their texts. The device is right on nine of ten "easy" texts and on one of three
    "hard" ones; tier1 always is. Signals know a little more than chance."""
    rng = np.random.default_rng(seed)
    records, texts = [], {}
    for place in range(rows):
        easy = rng.random() < 0.5
        right = bool(rng.random() < (0.9 if easy else 1 / 3))
        words = [*rng.choice(_WORDS, 4), "easy" if easy else "hard", str(place)]
        name, text = f"row-{place}", " ".join(words)
        lowest = -float(rng.gamma(2, 0.2 if right else 0.4))
        signals = Signals(
            *(np.array(each, np.float32) for each in ([lowest, 0.0], [0.5, 0.1], [0.5, 0.9]))
        )
        answer = OPTIONS[int(rng.integers(2))]
        texts[name] = text
        records.append(
            Record(
                id=name,
                document=f"document-{place // 2}",
                input_sha256=input_sha256(text),
                outcomes={
                    "device": Outcome(
                        answer=answer,
                        correct=float(right),
                        raw_score=float(np.exp(lowest)),
                        summary=SignalSummary.of(signals),
                        signals=signals,
                        finish="stop",
                    ),
                    "tier1": Outcome(answer=answer, correct=1.0),
                },
            )
        )
    header = Header(
        tiers=(TierInfo("device", "small", "device"), TierInfo("tier1", "large", "cloud")),
        options=OPTIONS,
        wording=generic(OPTIONS),
    )
    return RecordSet.of(header, records), texts


def drawn_parts(rows: int, seed: int = 1) -> Parts:
    """The same as parts."""
    records, texts = drawn_records(rows, seed)
    answers = dict(zip(records.ids, records.texts("device", "answer"), strict=True))
    return parts_of("drawn", records, texts, answers)
