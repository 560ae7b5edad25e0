"""What a device's signatures cover, to the byte, wherever it is not an update (``signed``).

Every statement begins with its own name, so that a signature under one cannot be shown as another,
and its parts are split by a zero byte, which none of them can hold.
"""

from __future__ import annotations

import json
from typing import Final

from cascade.federation.terms import Histogram, Phase
from cascade.files import sha256_bytes

_PREFIX: Final = b"cascade.federation."
PHASE_NUMBERS: Final[dict[Phase, int]] = {
    "advertise_keys": 1,
    "share_keys": 2,
    "unmask": 3,
    "survivors": 4,
}


def enrolment(challenge: bytes) -> bytes:
    """What proves at enrolment that the device holds its key."""
    return _PREFIX + b"enrol\0" + challenge


def check_in(device_id: str, request_id: bytes, base_digest: str, adapter_digest: str) -> bytes:
    """What a check-in's signature covers."""
    return _statement("checkin", device_id, request_id.hex(), base_digest, adapter_digest)


def abort(device_id: str, lease_id: str) -> bytes:
    """What giving back a lease covers."""
    return _statement("abort", device_id, lease_id)


def metrics(
    device_id: str,
    report_id: bytes,
    counters: tuple[tuple[str, int], ...],
    histograms: tuple[tuple[str, Histogram], ...],
) -> bytes:
    """What a report's signature covers."""
    report = report_bytes(report_id, counters, histograms)
    return _statement("metrics", device_id, sha256_bytes(report))


def report_bytes(
    report_id: bytes,
    counters: tuple[tuple[str, int], ...],
    histograms: tuple[tuple[str, Histogram], ...],
) -> bytes:
    """A report as JSON without spaces: its id in hex, its counters and its histograms in order."""
    told = [[name, list(each.bounds), list(each.counts)] for name, each in histograms]
    value = [report_id.hex(), [list(each) for each in counters], told]
    return json.dumps(value, separators=(",", ":")).encode()


def exchange(device_id: str, lease_id: str, phase: Phase, payload: bytes) -> bytes:
    """What a message of secure aggregation covers."""
    number = str(PHASE_NUMBERS[phase])
    return _statement("exchange", device_id, lease_id, number, sha256_bytes(payload))


def _statement(name: str, *parts: str) -> bytes:
    return _PREFIX + b"\0".join([name.encode(), *(part.encode() for part in parts)])
