"""Checked arrays of labelled rows: what every statistic here takes, refused early and by name.

A row is one answered input: a number between 0 and 1 that says how sure the model was, and whether
its answer was right. Only the checks live here; the statistics are in ``cascade.metrics``,
``cascade.calibrate`` and ``cascade.certify``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascade.errors import InvalidInput

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def unit_floats(field: str, values: ArrayLike) -> Floats:
    """``values`` as float64, shape ``[rows]``, every one in [0, 1].

    Raises:
        InvalidInput: not one-dimensional, empty, not numbers, NaN, or out of [0, 1].
    """
    array = numbers(field, values)
    if np.isnan(array).any():
        raise InvalidInput(field, "contains NaN; drop or repair those rows first")
    if array.min() < 0 or array.max() > 1:
        raise InvalidInput(field, "must lie between 0 and 1")
    return array


def outcomes(field: str, values: ArrayLike) -> Bools:
    """``values`` as bool, shape ``[rows]``; true means that the answer was right.

    Raises:
        InvalidInput: not one-dimensional, empty, or anything other than false/true or 0/1.
    """
    array = numbers(field, values)
    if not ((array == 0) | (array == 1)).all():
        raise InvalidInput(field, "must hold only false/true or 0/1")
    return array.astype(np.bool_)


def labelled(
    values: ArrayLike, correct: ArrayLike, *, field: str = "confidence"
) -> tuple[Floats, Bools]:
    """Both arrays checked and of one length, shapes ``[rows]``.

    Raises:
        InvalidInput: either array is unusable, or their lengths differ.
    """
    floats, right = unit_floats(field, values), outcomes("correct", correct)
    same_length(field, floats, "correct", right)
    return floats, right


def same_length(field: str, one: Floats | Bools, other_field: str, other: Floats | Bools) -> None:
    """Raise ``InvalidInput`` unless both arrays have the same number of rows."""
    if len(one) != len(other):
        raise InvalidInput(
            other_field, f"has {len(other)} rows but {field} has {len(one)}; give one for each"
        )


def numbers(field: str, values: ArrayLike) -> Floats:
    """``values`` as float64, shape ``[rows]``; NaN and infinities are let through.

    Raises:
        InvalidInput: not one-dimensional, empty, or not numbers.
    """
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InvalidInput(field, "must be a one-dimensional array of numbers") from None
    if array.ndim != 1:
        raise InvalidInput(field, f"must be one-dimensional, not of shape {array.shape}")
    if not len(array):
        raise InvalidInput(field, "is empty; give at least one row")
    return array
