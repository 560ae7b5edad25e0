"""The store, on SQLite and on a real PostgreSQL server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cascade.errors import CascadeError, InvalidInput, NotFound, RemoteError
from cascade.federation.terms import MetricsReport
from cloud.federation import leases, rounds
from cloud.federation.database import Database, Transaction
from cloud.federation.refusals import Reason, Refused, count, counters
from cloud.federation.rounds import Start
from cloud.federation.schema import VERSION, identity, migrate

START = Start("a" * 64, 1, b"")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "folder" / "rounds.sqlite3")
    return str(request.getfixturevalue("postgresql_url"))


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    made = Database(url)
    made.do_now(migrate)
    yield made
    made.close()


async def test_steps_share_a_commit_and_none_spoils_another(database: Database) -> None:
    def good(tx: Transaction) -> str:
        count(tx, "good")
        return "done"

    def refused(tx: Transaction) -> None:
        count(tx, "refused.late")
        raise Refused(Reason.LATE)

    def bad(tx: Transaction) -> None:
        count(tx, "bad")
        raise InvalidInput("field", "is wrong")

    steps = [good, refused, bad] * 20
    outcomes = await asyncio.gather(
        *(database.do(step) for step in steps),  # type: ignore[arg-type]
        return_exceptions=True,
    )
    assert outcomes[::3] == ["done"] * 20
    assert all(isinstance(each, Refused) for each in outcomes[1::3])
    assert all(isinstance(each, InvalidInput) for each in outcomes[2::3])
    # A refusal is counted; what a defect or bad input did is undone.
    assert database.do_now(counters) == {"good": 20, "refused.late": 20}


def test_two_writers_lose_nothing(url: str, database: Database) -> None:
    other = Database(url)

    def add(to: Database) -> None:
        for _ in range(100):
            to.do_now(lambda tx: count(tx, "n"))

    threads = [threading.Thread(target=add, args=(each,)) for each in (database, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    assert database.do_now(counters) == {"n": 200}


def test_a_store_is_made_once_and_keeps_its_identity(url: str, database: Database) -> None:
    mine = database.do_now(identity)
    other = Database(url)
    other.do_now(migrate)
    assert other.do_now(identity) == mine
    assert len(mine[0]) == 16
    assert len(mine[1]) == 32
    other.close()


def test_a_store_of_a_newer_version_is_refused(database: Database) -> None:
    database.do_now(lambda tx: tx.run("INSERT INTO schema_version VALUES (?)", VERSION + 1))
    with pytest.raises(CascadeError, match="upgrade cascade"):
        database.do_now(migrate)


def test_a_closed_store_says_so(database: Database) -> None:
    database.close()
    with pytest.raises(RemoteError, match="UNAVAILABLE"):
        database.do_now(counters)


def test_a_lost_connection_is_made_again(postgresql_url: str) -> None:
    database, other = Database(postgresql_url), Database(postgresql_url)
    database.do_now(migrate)
    other.do_now(
        lambda tx: tx.all(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    )
    with pytest.raises(RemoteError, match="UNAVAILABLE"):
        database.do_now(counters)
    database.do_now(lambda tx: count(tx, "again"))
    assert database.do_now(counters) == {"again": 1}
    database.close()
    other.close()


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    database = Database(tmp_path / "file" / "rounds.sqlite3")
    with pytest.raises(RemoteError, match="UNAVAILABLE"):
        database.do_now(migrate)
    database.close()


def opened(database: Database, number_of_updates: int) -> None:
    def step(tx: Transaction) -> None:
        rounds.open_round(tx, "b" * 64, START, "{}", now=1.0, closes_at=None)
        for place in range(number_of_updates):
            tx.run(
                "INSERT INTO updates VALUES (?, ?, 'device', 1, 1, 1, 'sha', 3, 1.0, NULL, ?)",
                f"lease-{place}",
                place + 1,
                b"abc",
            )

    database.do_now(step)


def claimed(database: Database, token: str, now: float) -> rounds.Round | None:
    return database.do_now(
        lambda tx: rounds.claim(
            tx, goal=2, minimum=2, synchronous=False, token=token, now=now, claim_s=10.0
        )
    )


def finished(database: Database, token: str) -> bool:
    return database.do_now(
        lambda tx: rounds.finish(
            tx,
            1,
            token=token,
            candidate_digest="c" * 64,
            candidate_version=2,
            optimiser=b"state",
            aggregation_error=0.5,
            note="",
        )
    )


def test_a_claim_that_was_taken_over_ends_nothing(database: Database) -> None:
    opened(database, 3)
    assert claimed(database, "one", 1.0) is not None
    assert claimed(database, "two", 2.0) is None

    def take_over(now: float) -> rounds.Round | None:
        return database.do_now(lambda tx: rounds.take_over(tx, token="two", now=now, claim_s=10.0))

    assert take_over(5.0) is None  # the first one may still be at it
    found = take_over(12.0)
    assert found is not None
    assert found.counted == 2
    assert not finished(database, "one")
    updates = database.do_now(lambda tx: rounds.counted(tx, 1))
    assert [each.lease_id for each in updates] == ["lease-0", "lease-1"]
    assert finished(database, "two")
    assert not finished(database, "two")
    # The third update waits for the next round.
    assert database.do_now(lambda tx: tx.all("SELECT lease FROM updates WHERE counted_in IS NULL"))[
        0
    ][0] == ("lease-2")


def test_what_the_gate_has_said_stays_said(database: Database) -> None:
    opened(database, 2)
    with pytest.raises(NotFound):
        database.do_now(lambda tx: rounds.decide(tx, 7, approved=True))
    with pytest.raises(InvalidInput, match="collecting"):
        database.do_now(lambda tx: rounds.decide(tx, 1, approved=True))
    claimed(database, "one", 1.0)
    finished(database, "one")
    assert database.do_now(lambda tx: rounds.start(tx, "b" * 64, START, unapproved=False)) is None
    begins = database.do_now(lambda tx: rounds.start(tx, "b" * 64, START, unapproved=True))
    assert begins == Start("c" * 64, 2, b"state")
    assert database.do_now(lambda tx: rounds.decide(tx, 1, approved=True)).state == "approved"
    assert database.do_now(lambda tx: rounds.decide(tx, 1, approved=True)).state == "approved"
    with pytest.raises(InvalidInput, match="approved"):
        database.do_now(lambda tx: rounds.decide(tx, 1, approved=False))
    assert database.do_now(lambda tx: rounds.start(tx, "b" * 64, START, unapproved=False)) == begins


def test_moments_of_the_optimiser_are_kept_where_a_round_may_start_from_them(
    database: Database,
) -> None:
    opened(database, 0)
    states = ["approved"] * 6 + ["rejected", "abandoned"] + ["approved"] * 6 + ["waiting"]

    def filled(tx: Transaction) -> None:
        tx.run("DELETE FROM rounds")
        for place, state in enumerate(states):
            tx.run(
                "INSERT INTO rounds (number, state, base_digest, adapter_digest, adapter_version, "
                "plan, opened_at, optimiser) VALUES (?, ?, ?, 'a', 1, '{}', 0, ?)",
                place + 1,
                state,
                ("b" if place else "d") * 64,
                b"moments",
            )

    database.do_now(filled)
    database.do_now(rounds.forget_moments)
    kept = database.do_now(
        lambda tx: tx.all("SELECT number FROM rounds WHERE optimiser = ?", b"moments")
    )
    # Eight approved rounds of each base, and what may still be approved.
    assert sorted(int(row[0]) for row in kept) == [1, 5, 6, *range(9, 16)]


def test_a_device_s_own_names_do_not_fill_the_store(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_MOST_REPORTED", 4)

    def report(number: int, *names: str) -> None:
        counts = tuple((name, 1) for name in names)
        made = MetricsReport("device", bytes([number]) * 16, counts, (), b"")
        database.do_now(lambda tx: leases.add_report(tx, made, 1.0))

    report(1, "answers", "escalated")
    report(2, "one", "answers", "two", "three")
    report(3, "four", "answers", "escalated")
    assert database.do_now(leases.reported) == {
        "answers": {"": 3},
        "escalated": {"": 2},
        "one": {"": 1},
        "two": {"": 1},
    }
