"""How the tokens of a free answer are drawn: the parameters, checked. Greedy unless said otherwise.

The same values travel to the cluster. Their order, on the device and in llama.cpp alike: repetition
penalty, then top-k, top-p and min-p, each among what the one before left, and temperature last, so
that a filter keeps the same tokens at every temperature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cascade.errors import InvalidInput

MAX_TEMPERATURE: Final = 2.0
# Below it 1/temperature would overflow the logits' float32.
_LEAST_TEMPERATURE: Final = 1e-5
MAX_TOP_K: Final = 2**31 - 1
MAX_PENALTY: Final = 2.0
# llama.cpp keeps 2^32 − 1 for "draw a seed".
MAX_SEED: Final = 2**32 - 2


@dataclass(frozen=True, slots=True)
class Sampling:
    """How each token is chosen.

    Arguments:
        temperature: the kept probabilities are raised to 1/temperature; 0, like anything below
            10⁻⁵, is greedy whatever the filters say; up to 2.
        top_p: the fewest most probable tokens that together have at least this share of the
            probability are kept (nucleus sampling, arXiv 1904.09751), in (0, 1]; 1 keeps all.
        top_k: this many most probable tokens are kept; 0 keeps all.
        min_p: tokens are kept whose probability is at least this share of the largest one
            (arXiv 2407.01082), in [0, 1]; 0 keeps all.
        repetition_penalty: logits of tokens that the prompt or the answer holds already are divided
            by this where positive, multiplied where negative (CTRL, arXiv 1909.05858), in (0, 2];
            1 changes nothing. It applies to greedy answers too.
        seed: fixes the draws, 0 to 2^32 − 2; ``None`` draws differently every time.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature < _LEAST_TEMPERATURE

    @property
    def keeps_all(self) -> bool:
        """Whether no filter is set."""
        return self.top_k == 0 and self.top_p == 1 and self.min_p == 0

    def check(self, prefix: str = "") -> None:
        """Raise ``InvalidInput`` naming the first field, behind ``prefix``, that is out of range.

        The comparisons are written so that NaN fails each of them.
        """
        if not 0 <= self.temperature <= MAX_TEMPERATURE:
            raise InvalidInput(f"{prefix}temperature", f"{self.temperature:g} is not in 0 … 2")
        if not 0 < self.top_p <= 1:
            raise InvalidInput(
                f"{prefix}top_p", f"{self.top_p:g} is not above 0 and at most 1; 1 keeps all tokens"
            )
        if not 0 <= self.top_k <= MAX_TOP_K:
            raise InvalidInput(
                f"{prefix}top_k", f"{self.top_k} is not in 0 … {MAX_TOP_K}; 0 keeps all tokens"
            )
        if not 0 <= self.min_p <= 1:
            raise InvalidInput(f"{prefix}min_p", f"{self.min_p:g} is not in 0 … 1")
        if not 0 < self.repetition_penalty <= MAX_PENALTY:
            raise InvalidInput(
                f"{prefix}repetition_penalty",
                f"{self.repetition_penalty:g} is not above 0 and at most 2; 1 changes nothing",
            )
        if self.seed is not None and not 0 <= self.seed <= MAX_SEED:
            raise InvalidInput(f"{prefix}seed", f"{self.seed} is not in 0 … {MAX_SEED}")


GREEDY: Final = Sampling()
"""The most probable token, always."""
