"""Sums of products of thin matrices, worked with through their factors alone.

Σ w_i A_i B_i is written P Q with all A_i side by side in P and all w_i B_i below each other in Q.
Its norm, its inner products and its singular values need QR of P and Qᵀ and one small matrix; the
full [inputs, outputs] matrix is never made.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

Doubles: TypeAlias = NDArray[np.float64]
Factor: TypeAlias = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class LowRank:
    """The matrix ``left @ right``.

    Arguments:
        left: float64, shape ``[inputs, width]``.
        right: float64, shape ``[width, outputs]``.
    """

    left: Doubles
    right: Doubles

    @classmethod
    def sum(cls, terms: Iterable[tuple[float, Factor, Factor]]) -> Self:
        """Σ weight · A B over terms (weight, A, B) of any ranks, at least one.

        Once the factors are twice as wide as the full matrix is narrow, they are made as narrow as
        it is, without loss: memory is bounded, however many terms there are.
        """
        left: list[Doubles] = []
        right: list[Doubles] = []
        width = 0
        for weight, a, b in terms:
            left.append(a.astype(np.float64))
            right.append(weight * b.astype(np.float64))
            width += a.shape[1]
            narrow = min(a.shape[0], b.shape[1])
            if width > 2 * narrow and len(left) > 1:
                short = cls(np.hstack(left), np.vstack(right)).truncated(narrow)
                left, right, width = [short.left], [short.right], narrow
        return cls(np.hstack(left), np.vstack(right))

    def norm(self) -> float:
        """Frobenius norm.

        By QR and not by the Gram matrices, whose squares would lose half of the digits where terms
        cancel out: this is used for differences.
        """
        return float(np.linalg.norm(self._core()))

    def inner(self, other: LowRank) -> float:
        """Frobenius inner product: Σ of the products of all elements."""
        return float(np.sum((self.left.T @ other.left) * (self.right @ other.right.T)))

    def truncated(self, rank: int) -> LowRank:
        """The nearest matrix of ``rank`` (Eckart and Young), as [inputs, rank] and [rank, outputs].

        Left has orthonormal columns, right carries the singular values, largest first: the leading
        columns and rows are the best matrix of each smaller rank. Where singular values are 0,
        left's columns go on, so that training can use them; there are never more columns than the
        factors have. Each column's largest element is positive, which makes the result unique.
        """
        inputs, outputs = self.left.shape[0], self.right.shape[1]
        basis, left = np.linalg.qr(self.left)
        other_basis, right = np.linalg.qr(self.right.T)
        u, singular, vt = np.linalg.svd(left @ right.T)
        kept = min(rank, len(singular), inputs, outputs)
        a = basis @ u[:, :kept]
        b = singular[:kept, None] * (vt[:kept] @ other_basis.T)
        sign = np.where(np.take_along_axis(a, np.abs(a).argmax(axis=0)[None], 0) < 0, -1.0, 1.0)
        return LowRank(a * sign, b * sign.T)

    def _core(self) -> Doubles:
        """A small matrix with the same singular values."""
        left, right = np.linalg.qr(self.left), np.linalg.qr(self.right.T)
        return np.asarray(left.R @ right.R.T, np.float64)
