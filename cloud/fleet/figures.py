"""What a simulation found, round by round; all of it plain values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from cloud.fleet.device import TurnResult
from cloud.fleet.referee import Standing


@dataclass(frozen=True, slots=True)
class RoundFigures:
    """The fleet after a round; number 0 is before the first.

    Arguments:
        round: pass over the fleet.
        version, adapter: what devices run now, and its digest.
        verdict: on the round's candidate: ``approved``, ``rejected``, ``abandoned`` (too few
            updates, or not to be aggregated), ``collecting`` (none was made yet); empty for
            number 0.
        note: of the gate or the aggregation.
        escalation: share of the test part that is escalated at the certified threshold.
        coverage: share of the certify part that is kept at it.
        threshold: the certified one; ``None`` where none could be certified.
        accuracy: of all local answers on the test part.
        risk: what the plan's target bounds, on the test part, and its 95 % interval.
        ece: of the confidence on the test part.
        out_of_scope: share of the inputs out of scope that is escalated.
        end_to_end, teacher: see ``cloud.fleet.referee.Standing``.
        live: share of what devices saw in the round that they escalated.
        examples: in all stores together.
        outcomes: of the devices' steps, by name.
        lost: devices that were lost to the round, by how; see ``cloud.fleet.connection.Absence``.
        updates: that the coordinator took in the round.
        bytes_taken: of the payloads of these updates, and of the messages that masks take.
        bytes_up, bytes_down: of all devices in the round: payloads of updates, and of the messages
            that masks take; and adapters.
        refused: updates by the reason for which they did not count.
        aggregation_error: relative, of the last round that was aggregated; see
            ``cloud.federation.strategies``.
        epsilon, delta: what all rounds so far may tell about one device; ``None`` where no noise is
            added.
        seconds: that the round took. The only figure that another run of the same seed changes.
    """

    round: int
    version: int
    adapter: str
    verdict: str
    note: str
    escalation: float
    coverage: float
    threshold: float | None
    accuracy: float
    risk: tuple[float, float, float] | None
    ece: float
    out_of_scope: float | None
    end_to_end: float
    teacher: float | None
    live: float | None
    examples: int
    outcomes: Mapping[str, int]
    lost: Mapping[str, int]
    updates: int
    bytes_taken: int
    bytes_up: int
    bytes_down: int
    refused: Mapping[str, int]
    aggregation_error: float | None
    epsilon: float | None
    delta: float | None
    seconds: float

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read what ``asdict`` and JSON have made of one.

        Raises:
            TypeError, KeyError: it is not one of this version's.
        """
        risk = value["risk"]
        return cls(**{**value, "risk": None if risk is None else tuple(risk)})

    @property
    def bytes_up_each(self) -> float | None:
        """Mean of an update that was taken; ``None`` without any."""
        return self.bytes_taken / self.updates if self.updates else None


@dataclass(frozen=True, slots=True)
class FleetResult:
    """All rounds.

    Arguments:
        plan: as JSON has it.
        data: what the fleet was asked, for people.
        bundle: name and base digest of what devices run.
        parts: rows of each part.
        lasting: see ``cloud.fleet.rows.lasting``.
        rounds: number 0 first.
        complete: whether all rounds of the plan were done.
        ended: why the coordinator opened no further round before they were; else empty.
    """

    plan: Mapping[str, object]
    data: str
    bundle: tuple[str, str]
    parts: Mapping[str, int]
    lasting: tuple[int, int]
    rounds: Sequence[RoundFigures]
    complete: bool
    ended: str

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return asdict(self)


def figures(
    number: int,
    standing: Standing,
    *,
    served: tuple[int, str],
    verdict: str = "",
    note: str = "",
    turns: Sequence[TurnResult] = (),
    counted: Mapping[str, int] | None = None,
    aggregation_error: float | None = None,
    cost: tuple[float, float] | None = None,
    seconds: float = 0.0,
) -> RoundFigures:
    """A round's figures.

    Arguments:
        served: version and digest of the adapter that runs now.
        counted: what the coordinator counted in the round, by its counters' names.
        cost: ε and δ.
    """
    counts = counted or {}
    seen = sum(turn.seen for turn in turns)
    return RoundFigures(
        round=number,
        version=served[0],
        adapter=served[1],
        verdict=verdict,
        note=note,
        escalation=standing.escalation,
        coverage=standing.coverage,
        threshold=standing.policy.threshold,
        accuracy=standing.accuracy,
        risk=standing.risk,
        ece=standing.ece,
        out_of_scope=standing.out_of_scope,
        end_to_end=standing.end_to_end,
        teacher=standing.teacher,
        live=sum(turn.escalated for turn in turns) / seen if seen else None,
        examples=sum(turn.examples for turn in turns),
        outcomes=dict(sorted(Counter(turn.outcome for turn in turns).items())),
        lost=dict(sorted(Counter(turn.lost for turn in turns if turn.lost != "none").items())),
        updates=counts.get("committed", 0),
        bytes_taken=counts.get("committed_bytes", 0) + sum(turn.messages_up for turn in turns),
        bytes_up=sum(turn.bytes_up for turn in turns),
        bytes_down=sum(turn.bytes_down for turn in turns),
        refused={
            name.removeprefix("refused."): value
            for name, value in sorted(counts.items())
            if name.startswith("refused.") and value
        },
        aggregation_error=aggregation_error,
        epsilon=None if cost is None else cost[0],
        delta=None if cost is None else cost[1],
        seconds=seconds,
    )
