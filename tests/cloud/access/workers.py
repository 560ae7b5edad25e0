"""What other processes do at the same time. Imports little: each of them starts anew."""

from __future__ import annotations

from pathlib import Path

from cloud.audit import AuditFile


def write_many(path: str, who: int) -> None:
    """Fifty lines, into files of which each holds a few."""
    file = AuditFile(Path(path), max_bytes=2000, keep_files=100)
    for number in range(50):
        file.write({"who": who, "number": number})


def take_money(file: str, tries: int) -> int:
    """How many of so many calls at $0.10 are let through, of $1.00 a day."""
    from cloud.access_config import Quota, Quotas
    from cloud.errors import QuotaExceeded
    from cloud.quotas import QuotaBook

    quotas = QuotaBook(Quotas(default=Quota(usd_per_day=1.0)), Path(file))
    taken = 0
    for _ in range(tries):
        try:
            quotas.reserve("a", tokens=1, usd=0.1)
        except QuotaExceeded:
            continue
        taken += 1
    return taken
