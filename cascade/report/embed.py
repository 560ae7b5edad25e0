"""The columns that the page computes with, as one JSON object.

Scores travel as float64, so that the page keeps exactly the rows that a device would; latencies and
costs as float32. Of more than ``MOST_ROWS`` rows a sample is embedded, and the page says so.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from cascade.report.evaluated import Evaluated
from cascade.report.figures import Figures, gain_order
from cascade.report.front import STEPS
from cascade.report.pricing import pricing
from cascade.rows import Bools, Floats

MOST_ROWS = 20_000
"""About 35 bytes of page a row and tier."""


def embedded(rows: Evaluated, figures: Figures) -> dict[str, object]:
    """What ``page.js`` reads; arrays are base64 of little-endian numbers, by falling score.

    ``score`` is float64; ``right`` uint8, one bit a tier, the device's lowest; ``latency``,
    ``unit_cost`` and ``device_usd`` float32, ``None`` where a number is missing; ``codes`` uint8.
    ``stays`` and ``blind`` are uint8: rows that stay unverified where they are not kept, and rows
    without a confidence; ``gain_order`` is float64, the largest gain first.
    """
    order = _shown(rows.score)
    costs = pricing(rows)
    bits = sum(
        (tier.right[order].astype(np.uint8) << place for place, tier in enumerate(rows.tiers)),
        np.zeros(len(order), np.uint8),
    )
    return {
        "total": len(rows),
        "score": _base64(rows.score[order], "<f8"),
        "score_name": rows.score_name,
        "right": _base64(bits, "u1"),
        "tiers": [
            {
                "name": tier.info.name,
                "latency": _floats(tier.latency_s[order]),
                "unit_cost": _floats(costs.unit_cost(tier)[order]),
            }
            for tier in rows.tiers
        ],
        # Nothing where no row is like this.
        "stays": _bits(rows.stays[order]),
        "blind": _bits(~rows.known[order]),
        "gain_order": None
        if (by_gain := gain_order(rows)) is None
        else _base64(by_gain[order], "<f8"),
        "compared": rows.strong is not None,
        "device_usd": _floats(costs.device_usd[order]),
        "groups": [
            {"name": name, **_codes(values, order)}
            for name, values in rows.groups.items()
            if name not in figures.groups_left_out
        ],
        "policy": rows.policy is not None,
        "threshold": rows.policy.threshold if rows.policy else None,
        "delta": figures.delta,
        "alpha": figures.alpha,
        "basis": costs.basis,
        "price": costs.price,
        "steps": STEPS,
    }


def script_json(value: Mapping[str, object]) -> str:
    """JSON that can stand inside a ``<script>`` element: no character of it can end that."""
    text = json.dumps(value, allow_nan=False, sort_keys=True, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _shown(score: Floats) -> NDArray[np.int64]:
    """Places of the rows that are embedded, by falling score; the same for equal rows."""
    places = np.arange(len(score))
    if len(score) > MOST_ROWS:
        places = np.random.default_rng(0).choice(len(score), MOST_ROWS, replace=False)
        places.sort()
    shown: NDArray[np.int64] = places[np.argsort(-score[places], kind="stable")]
    return shown


def _codes(values: tuple[str, ...], order: NDArray[np.int64]) -> dict[str, object]:
    names, codes = np.unique(np.array(values), return_inverse=True)
    return {"values": [str(name) for name in names], "codes": _base64(codes[order], "u1")}


def _bits(values: Bools) -> str | None:
    return _base64(values, "u1") if values.any() else None


def _floats(values: Floats) -> str | None:
    return None if np.isnan(values).any() else _base64(values, "<f4")


def _base64(values: NDArray[np.generic], dtype: str) -> str:
    return base64.b64encode(values.astype(dtype).tobytes()).decode()
