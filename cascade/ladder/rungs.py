"""What follows an answer: the one rule that the search, the replay, devices and gateways go by.

``Ladder.after`` is that rule, on arrays of rows; ``Ladder.follow`` repeats it over records, and
``cascade.ladder.step`` over one request. numpy alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from cascade.errors import InvalidInput
from cascade.rows import Bools, Floats
from cascade.strict import Fields

if TYPE_CHECKING:
    from cascade.ladder.rows import LadderRows

NEVER: Final = 2.0
"""A threshold that no confidence reaches."""

Way = Literal["climb", "vote", "best"]
"""What follows a first answer that is not sure enough. ``"climb"``: the next tier answers, by its
own threshold. ``"vote"``: the second tier answers, and where both agree that is it; else the last
tier answers, or the surer of the two where there is no third. ``"best"``: the surer of the two."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of each row.

    Arguments:
        place: index of the tier whose answer was taken, shape ``[rows]``.
        asked: which tiers were asked, shape ``[tiers, rows]``; one after the other.
    """

    place: NDArray[np.int64]
    asked: Bools

    def correct(self, rows: LadderRows) -> Bools:
        """Whether the answers that were taken are right."""
        return rows.correct[self.place, np.arange(len(rows))]

    def latency_s(self, rows: LadderRows) -> Floats:
        """Of all tiers that were asked, together; NaN where one was not measured."""
        return _sum(rows.latency_s, self.asked)

    def cost_usd(self, rows: LadderRows) -> Floats:
        """Of all tiers that were asked, together; NaN where one was not measured."""
        return _sum(rows.cost_usd, self.asked)

    def left(self, rows: LadderRows) -> Bools:
        """Whether the input left the device."""
        away: Bools = np.logical_or.reduce(self.asked[rows.remote], axis=0)
        return away


@dataclass(frozen=True, slots=True)
class Ladder:
    """Tiers in order, and when an answer is sure enough.

    Arguments:
        tiers: who may be asked, in this order; the last one's answer is always taken.
        way: see ``Way``; ``"vote"`` and ``"best"`` need two tiers, and at most three and two.
        thresholds: confidences from which an answer is taken, of every tier but the last for
            ``"climb"``, of the first for the others. Above 1: never.
        skip_below: a first answer less sure than this goes to the last tier at once; 0 for none.
    """

    tiers: tuple[str, ...]
    way: Way = "climb"
    thresholds: tuple[float, ...] = ()
    skip_below: float = 0.0

    def __post_init__(self) -> None:
        wanted = len(self.tiers) - 1 if self.way == "climb" else 1
        if not self.tiers or len(self.thresholds) != wanted:
            raise InvalidInput("thresholds", f"are {len(self.thresholds)}, not {wanted}")
        most = {"climb": len(self.tiers), "vote": 3, "best": 2}[self.way]
        if self.way != "climb" and not 2 <= len(self.tiers) <= most:
            raise InvalidInput("tiers", f"{len(self.tiers)} cannot {self.way}; 2 to {most} can")

    def after(self, position: int, confidence: Sequence[Floats], agreed: Bools) -> NDArray[np.int8]:
        """What follows the answer of the tier at ``position``, shape ``[rows]``: a position above
        it is asked next, any other one's answer is taken.

        Arguments:
            position: of a tier that was asked, in ``tiers``.
            confidence: in the answers so far, by position, shape ``[rows]`` each; NaN where there
                is no answer or nobody can tell. Such a one is never sure enough; of two of which
                one cannot be told, the second counts as the surer.
            agreed: whether the first two answers are known to be the same, shape ``[rows]``.
        """
        last, here = len(self.tiers) - 1, confidence[position]
        following = np.full(len(here), last, np.int8)
        if position == last and (self.way == "climb" or position == 2):
            return following
        if position == 0 or self.way == "climb":
            skips = position == 0 and self.way == "climb" and self.skip_below > 0
            stays = ~(here < self.skip_below) if skips else True
            np.copyto(following, position + 1, where=stays)
            np.copyto(following, position, where=here >= self.thresholds[position])
            return following
        if self.way == "best" or last == 1:
            np.copyto(following, 0, where=confidence[0] >= here)
        if self.way == "vote":
            np.copyto(following, 0, where=agreed)
        return following

    def follow(self, rows: LadderRows, confidence: Mapping[str, Floats]) -> Taken:
        """Where each row ends.

        Arguments:
            confidence: of each tier's answers, by name, shape ``[rows]``, NaN where nobody can
                tell; a tier's may be missing where nothing is decided by it.
        """
        places = [rows.tiers.index(tier) for tier in self.tiers]
        unknown = np.full(len(rows), np.nan)
        sure = [confidence.get(tier, unknown) for tier in self.tiers]
        agreed = np.zeros(len(rows), np.bool_)
        if len(places) > 1:
            first, second = rows.answer[places[0]], rows.answer[places[1]]
            agreed = (first == second) & (first >= 0)
        asked = np.zeros((len(rows.tiers), len(rows)), np.bool_)
        asked[places[0]] = True
        taken = np.full(len(rows), places[-1], np.int8)
        for position, place in enumerate(places):
            following, here = self.after(position, sure, agreed), asked[place]
            for other in range(len(places)):
                goes = here & (following == other)
                if other > position:
                    asked[places[other]] |= goes
                elif other < len(places) - 1:
                    np.copyto(taken, places[other], where=goes)
        return Taken(taken.astype(np.int64), asked)

    def to_json(self) -> dict[str, object]:
        """A plain dict."""
        return {
            "tiers": list(self.tiers),
            "way": self.way,
            "thresholds": list(self.thresholds),
            "skip_below": self.skip_below,
        }

    @classmethod
    def from_json(cls, value: object, where: str) -> Self:
        """Read what ``to_json`` wrote.

        Raises:
            InvalidInput: a field is missing, unknown or unusable; it is named.
        """
        fields = Fields(value, where)
        way = fields.choice("way", get_args(Way))
        ladder = cls(
            tiers=fields.texts("tiers"),
            way="vote" if way == "vote" else "best" if way == "best" else "climb",
            thresholds=fields.numbers("thresholds", 0, NEVER),
            skip_below=fields.number("skip_below", 0, 1),
        )
        fields.end()
        return ladder


def _sum(each: Floats, asked: Bools) -> Floats:
    total: Floats = np.where(asked, each, 0.0).sum(axis=0)
    return total
