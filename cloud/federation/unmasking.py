"""From what the devices of a masked round have said to what each of them is told, and to the sum:
pure functions on what the store has; see ``cascade.federation.masking`` for the protocol."""

from __future__ import annotations

from collections.abc import Mapping

from cascade.errors import InvalidInput
from cascade.federation.masked_plan import MaskedPlan
from cascade.federation.masking import Collector, Dealt, FixedPoint, Keys, Revealed, Words
from cascade.federation.masking.keys import agree
from cascade.federation.terms import Phase
from cloud.federation.masked_rounds import Said

_ANY_KEY = bytes(range(32))


def check_form(phase: Phase, payload: bytes) -> None:
    """Raise ``InvalidInput`` unless a message is one of its phase, whatever it says.

    A key that would make every secret agreed with it a known one is none: it would stop the round
    at the other devices.
    """
    match phase:
        case "advertise_keys":
            keys = Keys.from_bytes(payload)
            agree(_ANY_KEY, keys.cipher, "keys.cipher")
            agree(_ANY_KEY, keys.mask, "keys.mask")
        case "share_keys":
            Dealt.from_bytes(payload)
        case "survivors":
            if payload:
                raise InvalidInput("payload", "must be empty: the phase only asks")
        case "unmask":
            Revealed.from_bytes(payload)


def check_reveal(plan: MaskedPlan, fixed: FixedPoint, said: Said, device: str, data: bytes) -> None:
    """Raise ``InvalidInput`` unless a survivor reveals the shares that it was dealt, of the kinds
    that the list of survivors calls for, and no other: nobody's two secrets are ever both known."""
    collector = _at_reveals(plan, fixed, said, dict.fromkeys(said.senders, b""), 0)
    collector.add_reveal(_numbers(said)[device], Revealed.from_bytes(data))


def told(plan: MaskedPlan, fixed: FixedPoint, said: Said, phase: Phase) -> dict[str, bytes]:
    """What each device is told of a phase that is closed.

    Raises:
        InvalidInput: what was said makes no round; it cannot go on.
    """
    numbers = _numbers(said)
    if phase == "advertise_keys":
        roster = _with_keys(plan, fixed, said, 0).roster().to_bytes()
        return dict.fromkeys(numbers, roster)
    if phase == "share_keys":
        collector = _with_shares(plan, fixed, said, 0)
        return {device: collector.delivered(numbers[device]).to_bytes() for device in said.dealt}
    if phase == "survivors":
        vectors = dict.fromkeys(said.senders, b"")
        survivors = _at_reveals(plan, fixed, said, vectors, 0).survivors().to_bytes()
        return dict.fromkeys(said.senders, survivors)
    return {}


def unmasked(
    plan: MaskedPlan, fixed: FixedPoint, said: Said, vectors: Mapping[str, bytes], elements: int
) -> Words:
    """The sum of the survivors' updates, in words; no single one is ever formed.

    Arguments:
        vectors: what each survivor uploaded.

    Raises:
        InvalidInput: a dealer's shares are not of its secrets, or too few are there.
    """
    collector = _at_reveals(plan, fixed, said, vectors, elements)
    numbers = _numbers(said)
    for device, message in said.revealed.items():
        collector.add_reveal(numbers[device], Revealed.from_bytes(message))
    return collector.total()


def _numbers(said: Said) -> dict[str, int]:
    return {device: place + 1 for place, device in enumerate(sorted(said.keys))}


def _with_keys(plan: MaskedPlan, fixed: FixedPoint, said: Said, elements: int) -> Collector:
    collector = Collector(plan.threshold, fixed, elements, said.session)
    for device, number in _numbers(said).items():
        collector.add_keys(number, Keys.from_bytes(said.keys[device]))
    return collector


def _with_shares(plan: MaskedPlan, fixed: FixedPoint, said: Said, elements: int) -> Collector:
    collector, numbers = _with_keys(plan, fixed, said, elements), _numbers(said)
    collector.roster()
    for device, message in said.dealt.items():
        collector.add_shares(numbers[device], Dealt.from_bytes(message))
    return collector


def _at_reveals(
    plan: MaskedPlan, fixed: FixedPoint, said: Said, vectors: Mapping[str, bytes], elements: int
) -> Collector:
    collector, numbers = _with_shares(plan, fixed, said, elements), _numbers(said)
    collector.delivered(numbers[next(iter(said.dealt))])
    for device, vector in vectors.items():
        collector.add_vector(numbers[device], vector)
    collector.survivors()
    return collector
