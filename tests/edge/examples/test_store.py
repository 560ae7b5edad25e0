"""The file: who may write, what stays, what is gone, and what happens when it breaks."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from cascade.errors import CascadeError, InvalidInput, NotFound
from cascade.request import DataClass
from edge.examples import (
    AesGcm,
    Consent,
    DamagedStore,
    ExampleStore,
    NotAStore,
    Retention,
    Source,
    curate,
)

ROOT = Path(__file__).parents[3]
SECRET = "the gardener did it"


def bytes_of(store: ExampleStore) -> bytes:
    """All that lies beside and in the file."""
    return b"".join(path.read_bytes() for path in sorted(store.path.parent.glob("examples*")))


def damage_pages(path: Path) -> None:
    """Overwrite all of a closed file but its beginning."""
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))


def test_nothing_is_created_by_reading(tmp_path):
    store = ExampleStore(tmp_path / "deep" / "examples.sqlite3")
    assert (store.examples(), store.consents(), store.consent(), store.size()) == ([], [], None, 0)
    assert (store.forget(task="mood"), store.forget_all()) == (0, 0)
    with pytest.raises(NotFound, match="nothing is kept of request r"):
        store.judge("r", correct=False)
    assert not (tmp_path / "deep").exists()


def test_without_consent_nothing_is_kept(tmp_path, make):
    store = ExampleStore(tmp_path / "examples.sqlite3", clock=lambda: 100.0)
    assert store.add(make(SECRET)) == "no_consent"
    assert store.examples() == []
    store.grant()
    assert store.add(make(SECRET)) is None
    store.withdraw()
    assert store.add(make("more")) == "no_consent"
    assert [entry.terms is None for entry in store.consents()] == [False, True]
    store.grant()
    assert store.consent() is None  # a withdrawal stands until somebody gives terms again
    store.grant(Consent())
    assert store.add(make("more")) is None
    store.close()


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"data_class": DataClass.NEVER_LEAVE}, "data_class"),
        ({"task_id": "diary"}, "task"),
        ({"never_train": True}, "never_train"),
    ],
)
def test_nothing_of_what_is_never_trained_on_reaches_the_file(store, make, fields, why):
    store.grant(Consent.to(never_train_tasks=["diary"]))
    store.add(make("something else"))
    assert store.add(make(SECRET, **fields)) == why
    assert SECRET.encode() not in bytes_of(store)
    assert len(store.examples()) == 1


def test_terms_may_name_the_only_tasks(store, make):
    store.grant(Consent.to(tasks=["mood"], never_train=[]))
    assert store.add(make("a", task_id="other")) == "task"
    assert store.add(make("a", data_class=DataClass.NEVER_LEAVE)) is None


def test_terms_that_changed_hold_for_a_word_on_an_older_answer(store, make):
    store.add(make("a", source=Source.DEVICE, request_id="r"))
    store.grant(Consent.to(never_train_tasks=["mood"]))
    with pytest.raises(NotFound, match="may be kept any more"):
        store.judge("r", correct=False, correction="bad")
    assert store.examples()[0].source is Source.DEVICE


def test_examples_come_back_as_they_were_oldest_first(store, make):
    written = [make("b", "bad", confidence=0.25, weight=0.5), make("a", task_id="other")]
    for each in reversed(written):
        assert store.add(each) is None
    assert store.examples() == written
    assert store.examples(task="other") == written[1:]
    assert store.size() == sum(len(each.texts_to_bytes()) for each in written)


def test_another_process_finds_what_was_written(store, make, tmp_path):
    example = make("a")
    store.add(example)
    store.close()
    with ExampleStore(store.path, clock=lambda: 100.0) as again:
        assert again.examples() == [example]
    assert store.path.stat().st_mode & 0o777 == 0o600


def test_a_users_word(store, make):
    for name in ("right", "wrong", "mended"):
        store.add(make(name, request_id=name, source=Source.DEVICE))
    store.judge("right", correct=True)
    store.judge("wrong", correct=False)
    store.judge("mended", correct=False, correction="bad")
    found = {each.request_id: each for each in store.examples()}
    assert (found["right"].source, found["right"].answer) == (Source.CONFIRMATION, "good")
    assert found["wrong"].rejected
    assert (found["mended"].source, found["mended"].answer) == (Source.CORRECTION, "bad")
    assert found["mended"].at_s == 1000.0
    assert not store.judge("wrong", correct=True).rejected  # the last word counts


def test_a_word_speaks_of_the_answer_that_was_given(store, make):
    store.add(make("text", "good", source=Source.DEVICE, request_id="r"))
    store.judge("r", correct=False, correction="bad")
    store.judge("r", correct=False)  # a grader, say: the device's answer was wrong
    (example,) = store.examples()
    assert (example.answer, example.given, example.rejected) == ("bad", "good", False)
    assert example.source is Source.CORRECTION
    assert store.judge("r", correct=False, correction="bad").given == "good"
    store.judge("r", correct=True)
    (example,) = store.examples()
    assert (example.answer, example.given, example.source) == ("good", "", Source.CONFIRMATION)


def test_a_correction_of_before_the_given_answer_was_kept_stands(store, make):
    example = make("text", "bad", source=Source.CORRECTION, request_id="r")
    store.add(example)
    texts = json.loads(example.texts_to_bytes())
    del texts["given"]
    store._file._opened().execute("UPDATE example SET texts = ?", (json.dumps(texts).encode(),))
    for correct in (False, True):
        store.judge("r", correct=correct)
        (kept,) = store.examples()
        assert (kept.answer, kept.source, kept.rejected) == ("bad", Source.CORRECTION, False)


def test_a_request_that_is_asked_again_does_not_undo_a_users_word(store, make):
    for name in ("open", "mended", "wrong"):
        store.add(make(name, request_id=name))
    store.judge("mended", correct=False, correction="bad")
    store.judge("wrong", correct=False)
    refused = [store.add(make("again", request_id=name)) for name in ("open", "mended", "wrong")]
    assert refused == [None, "judged", "judged"]
    found = {each.request_id: each for each in store.examples()}
    assert (found["mended"].answer, found["wrong"].rejected) == ("bad", True)
    assert found["open"].messages[0].content == "again"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ({"correct": True, "correction": "bad"}, "leave it out"),
        ({"correct": False, "correction": " "}, "is empty"),
        ({"correct": False, "correction": "ugly"}, "none of the options"),
    ],
)
def test_a_word_that_makes_no_sense_is_refused(store, make, word, message):
    store.add(make("a", request_id="r"))
    with pytest.raises(InvalidInput, match=message):
        store.judge("r", **word)
    with pytest.raises(NotFound, match="nothing is kept of request x"):
        store.judge("x", correct=True)


def test_in_a_full_store_an_answer_that_was_called_wrong_goes(tmp_path, make):
    with ExampleStore(tmp_path / "s", retention=Retention(count=50), clock=lambda: 200.0) as store:
        store.grant()
        for number in range(50):
            store.add(make(f"text {number}"))
        assert len(store.examples()) == 50
        name = next(f"own {n}" for n in range(99) if not make(f"own {n}").held_out)
        store.add(make(name, source=Source.DEVICE, request_id="own"))
        assert curate(store.examples(), store.consent()).rehearsal
        with pytest.raises(NotFound, match=r"nothing may be kept any more \(retention\)"):
            store.judge("own", correct=False)
        assert curate(store.examples(), store.consent()).rehearsal == ()
        with pytest.raises(NotFound, match="nothing is kept of request own"):
            store.judge("own", correct=True)


def test_limits_are_kept_with_every_write(tmp_path, make):
    with ExampleStore(tmp_path / "s", retention=Retention(count=3), clock=lambda: 100.0) as store:
        store.grant()
        for number in range(10):
            store.add(make(f"text {number}", request_id=f"r{number}"))
        assert [each.request_id for each in store.examples()] == ["r7", "r8", "r9"]
        assert store.add(make("old", at_s=0.5)) == "retention"


def test_limits_hold_for_whoever_opens_the_file_next(tmp_path, make):
    with ExampleStore(tmp_path / "s", retention=Retention(count=3), clock=lambda: 100.0) as store:
        store.grant()
        store.add(make("text"))
    with ExampleStore(tmp_path / "s", clock=lambda: 100.0) as store:
        for number in range(10):
            store.add(make(f"text {number}"))
        assert len(store.examples()) == 3
    with ExampleStore(tmp_path / "s", retention=Retention(count=4), clock=lambda: 100.0) as store:
        for number in range(10):
            store.add(make(f"text {number}"))
        assert len(store.examples()) == 4


def test_a_quiet_store_lets_go_what_has_grown_too_old(tmp_path, make):
    now = [100.0]
    limits = Retention(age_s=50, waiting_age_s=50)
    with ExampleStore(tmp_path / "s", retention=limits, clock=lambda: now[0]) as store:
        store.grant()
        store.add(make(SECRET, request_id="old", at_s=60.0))
        store.add(make("text", request_id="new", at_s=90.0))
        assert len(store.examples()) == 2
    now[0] = 120.0
    with ExampleStore(tmp_path / "s", clock=lambda: now[0]) as store:
        assert [each.request_id for each in store.examples()] == ["new"]
        assert store.size() == sum(len(each.texts_to_bytes()) for each in store.examples())
    assert SECRET.encode() not in bytes_of(store)


YEAR = 365 * 86_400.0


def test_what_was_kept_under_a_clock_that_was_ahead_grows_old_once_that_is_noticed(tmp_path, make):
    now = [70 * YEAR]
    with ExampleStore(tmp_path / "s", clock=lambda: now[0]) as store:
        store.grant()
        store.add(make("text", at_s=now[0]))
        now[0] = right = 57 * YEAR
        assert [each.at_s for each in store.examples()] == [right]
        store.add(make("another", at_s=60 * YEAR))
        now[0] += 80 * 86_400.0
        assert [each.at_s for each in store.examples()] == [right, right]
        now[0] += 20 * 86_400.0
        assert store.examples() == []


def test_a_clock_that_was_not_set_yet_lets_none_go(tmp_path, make):
    now = [57 * YEAR]
    with ExampleStore(tmp_path / "s", clock=lambda: now[0]) as store:
        store.grant()
        store.add(make("text", at_s=now[0]))
        now[0] = 60.0  # since 1970: a device without a battery for its clock
        assert len(store.examples()) == 1
        now[0] = 57 * YEAR + 86_400.0
        assert [each.at_s for each in store.examples()] == [57 * YEAR]


def test_who_forgets_is_told_where_a_reader_keeps_old_bytes(store, make, monkeypatch):
    monkeypatch.setattr("edge.examples.file._BUSY_S", 0.2)
    store.close()
    store.add(make(SECRET, request_id="secret"))
    reader = sqlite3.connect(store.path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT COUNT(*) FROM example").fetchone()
    with pytest.raises(CascadeError, match="forget them again"):
        store.forget(request_ids=["secret"])
    assert store.examples() == []
    reader.execute("COMMIT")
    reader.close()
    assert store.forget(request_ids=["secret"]) == 0
    assert SECRET.encode() not in bytes_of(store)


@pytest.mark.parametrize(
    "which",
    [
        {"request_ids": ["secret", "no such"]},
        {"mentioning": "GARDENER"},
        {"task": "garden"},
        None,
    ],
)
def test_what_is_forgotten_is_gone_from_the_file(store, make, which):
    for number in range(20):
        store.add(make(f"text {number}", request_id=f"r{number}"))
    store.add(make(SECRET, request_id="secret", task_id="garden"))
    store.judge("r3", correct=False, correction="bad")
    assert SECRET.encode() in bytes_of(store)
    before = store.forgotten()
    assert store.forget(request_ids=["unknown"]) == 0
    assert store.forgotten() == before
    count = store.forget_all() if which is None else store.forget(**which)
    word = store.forgotten()
    assert word != before
    assert (store.forget(request_ids=["secret"]), store.forgotten()) == (0, word)
    assert count == (21 if which is None else 1)
    assert SECRET.encode() not in bytes_of(store)
    assert len(store.examples()) == 21 - count
    assert store.consent() is not None


def test_what_retention_lets_go_is_gone_once_the_store_is_closed(tmp_path, make):
    store = ExampleStore(tmp_path / "examples", retention=Retention(count=1), clock=lambda: 100.0)
    store.grant()
    store.add(make(SECRET))
    store.add(make("another"))
    store.close()
    assert SECRET.encode() not in bytes_of(store)


def test_encrypted_texts_are_nowhere_in_clear(tmp_path, make):
    path, key = tmp_path / "examples.sqlite3", bytes(32)
    example = make(SECRET, "an answer of its own", options=(), device_answer="another one")
    with ExampleStore(path, cipher=AesGcm(key), clock=lambda: 100.0) as store:
        store.grant()
        store.add(example)
        for text in (SECRET, "answer of its own", "another one"):
            assert text.encode() not in bytes_of(store)
        assert store.examples() == [example]
    for cipher, message in ((AesGcm(bytes(31) + b"x"), "another key"), (None, "aes-256-gcm")):
        other = ExampleStore(path, cipher=cipher)
        for call in (other.examples, lambda o=other: o.add(example), lambda o=other: o.grant()):
            with pytest.raises(InvalidInput, match=message):
                call()
        other.close()
    with ExampleStore(path, clock=lambda: 100.0) as keyless:  # to forget needs no key
        assert keyless.forget_all() == 1
        keyless.add(make("in clear from here"))
        assert len(keyless.examples()) == 1


def test_texts_cannot_be_exchanged(tmp_path, make):
    with ExampleStore(tmp_path / "s", cipher=AesGcm(bytes(32)), clock=lambda: 100.0) as store:
        store.grant()
        store.add(make("one", request_id="one"))
        store.add(make("two", request_id="two"))
        file = store._file._opened()
        file.execute("UPDATE example SET texts = (SELECT texts FROM example WHERE request = 'one')")
        with pytest.raises(DamagedStore, match="was changed"):
            store.examples()


DAMAGE = {
    "a name in the schema": (b"TABLE retention", b"TABLE r\xdatention"),
    "a table": (b"TABLE example", b"TABLE exomple"),
    "a column": (b"weight REAL", b"weeght REAL"),
    "a column of the cipher": (b"proof BLOB", b"proaf BLOB"),
    "a source": (b"cloud", b"clout"),
    "a word": (b"mood", b"m\xdaod"),
    "a text": (b"text 1", b"t\xdaxt 1"),
    "an answer": (b'"answer":"good"', b'"answer":"gold"'),
    "terms": (b'"never_train"', b'"never_tra\xdan"'),
    "a data class": (b"never_leave", b"never_leeve"),
    "limits": (b'"age_s"', b'"ago_s"'),
    "the proof of the cipher": (b"cascade examples", b"cascade exomples"),
    "the kind of file": (b"SQLite format 3", b"SQLite formot 3"),
}


@pytest.mark.parametrize("damage", ["pages", *DAMAGE])
def test_a_damaged_file_is_named_and_can_be_removed(tmp_path, make, damage):
    path = tmp_path / "examples.sqlite3"
    with ExampleStore(path, clock=lambda: 100.0, retention=Retention()) as store:
        store.grant()
        for number in range(30):
            store.add(make(f"text {number} " + "x" * 200))
        store.forget(task="none")  # all of it in the file itself
    data = path.read_bytes()
    damage_pages(path)
    if damage in DAMAGE:
        right, wrong = DAMAGE[damage]
        assert right in data
        path.write_bytes(data.replace(right, wrong, 1))
    store = ExampleStore(path, clock=lambda: 100.0)
    with pytest.raises(DamagedStore, match="cascade examples forget --all"):
        store.examples() and store.consents()
    store.forget_all()
    store.grant(Consent())
    assert store.add(make("anew")) is None
    assert len(store.examples()) == 1
    store.close()


@pytest.mark.parametrize(
    "change",
    [
        "at = 'x'",
        "at = 1e300",
        "weight = 7",
        "confidence = x'00'",
        "texts = 'x'",
        "texts = 5",
        "texts = CAST('{}' AS BLOB)",
        "rejected = 9",
        "data_class = 5",
        "tier = x'00'",
    ],
)
@pytest.mark.parametrize("cipher", [None, AesGcm(bytes(32))])
def test_a_row_of_impossible_values_is_damage(tmp_path, make, change, cipher):
    with ExampleStore(tmp_path / "s", clock=lambda: 100.0, cipher=cipher) as store:
        store.grant()
        store.add(make("text"))
        store._file._opened().execute(f"UPDATE example SET {change}")
        with pytest.raises(DamagedStore):
            store.examples()
        store.forget_all()
        assert store.examples() == []


def test_a_file_that_is_no_store_is_left_as_it_is(tmp_path, make):
    path = tmp_path / "notes.txt"
    path.write_text("my notes " * 100)
    store = ExampleStore(path)
    for call in (store.examples, store.grant, store.forget_all, lambda: store.add(make("a"))):
        with pytest.raises(NotAStore, match=r"notes.txt is no store .* remove it by hand"):
            call()
    assert path.read_text() == "my notes " * 100
    assert [each.name for each in tmp_path.iterdir()] == ["notes.txt"]


def test_another_programs_database_is_left_as_it_is(tmp_path, make):
    path = tmp_path / "app.db"
    with closing(sqlite3.connect(path)) as file:
        file.execute("CREATE TABLE mine (x)")
    before = path.read_bytes()
    store = ExampleStore(path)
    for call in (store.examples, store.grant, store.forget_all, lambda: store.add(make("a"))):
        with pytest.raises(InvalidInput, match="another program; choose another file"):
            call()
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["app.db"]


def test_a_file_of_before_is_known_by_its_tables_and_changed_by_writing_alone(tmp_path, make):
    path = tmp_path / "examples.sqlite3"
    with ExampleStore(path, clock=lambda: 100.0) as store:
        store.grant()
        store.add(make("text"))
    with closing(sqlite3.connect(path)) as file:
        file.executescript("PRAGMA application_id = 0; DROP TABLE forgotten; DROP TABLE retention;")
    before = path.read_bytes()
    with ExampleStore(path, clock=lambda: 100.0) as store:
        assert (len(store.examples()), store.consent()) == (1, Consent())
        assert store.forgotten()
    assert path.read_bytes() == before
    with ExampleStore(path, clock=lambda: 100.0) as store:
        store.add(make("another"))
    with closing(sqlite3.connect(path)) as file:
        assert file.execute("PRAGMA application_id").fetchone() != (0,)


def test_a_file_of_a_newer_format_is_left_alone(store):
    store._file._opened().execute("PRAGMA user_version = 9")
    store.close()
    with pytest.raises(InvalidInput, match="format 9"):
        store.examples()


def test_a_folder_that_cannot_be_made_is_named(tmp_path, make):
    (tmp_path / "file").write_text("")
    store = ExampleStore(tmp_path / "file" / "examples")
    with pytest.raises(CascadeError, match="cannot be read or written"):
        store.grant()


_FULL = """
import resource, sys, time
from pathlib import Path
from cascade.errors import CascadeError
from cascade.request import Message
from edge.examples import Example, ExampleStore, Source
store = ExampleStore(Path(sys.argv[1]))
store.grant()
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
kept = 0
try:
    while True:
        text = (Message("user", f"text {kept} " + "x" * 2000),)
        assert store.add(Example(f"r{kept}", text, "a", Source.CLOUD, time.time())) is None
        kept += 1
except CascadeError as problem:
    print(problem, file=sys.stderr)
print(kept, len(store.examples()))
"""


def test_a_full_disk_is_an_error_and_costs_nothing_that_was_kept(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _FULL, tmp_path / "s"],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    kept, found = map(int, done.stdout.split())
    assert kept == found > 5
    assert "cannot be read or written" in done.stderr


_WRITER = """
import sys, time
from pathlib import Path
from cascade.request import Message
from edge.examples import Example, ExampleStore, Source
store = ExampleStore(Path(sys.argv[1]))
store.grant()
for number in range(int(sys.argv[3])):
    name = f"{sys.argv[2]}-{number}"
    text = (Message("user", name),)
    assert store.add(Example(name, text, "a", Source.CLOUD, time.time())) is None
    print(name, flush=True)
"""


def writer(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _WRITER, path, name, str(count)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def test_a_killed_process_loses_nothing_that_it_was_told_is_kept(tmp_path):
    process = writer(tmp_path / "s", "w", 1_000_000)
    said = [process.stdout.readline() for _ in range(60)]
    os.kill(process.pid, signal.SIGKILL)
    said += process.stdout.read().splitlines(keepends=True)
    process.wait()
    process.stdout.close()
    promised = {line.strip() for line in said if line.endswith("\n")}
    with ExampleStore(tmp_path / "s") as store:
        found = {each.request_id for each in store.examples()}
        assert promised <= found
        assert len(found) <= len(promised) + 1
        assert store.forget_all() == len(found)


def test_two_processes_share_a_store_from_its_first_moment(tmp_path):
    processes = [writer(tmp_path / "s", name, 60) for name in ("a", "b")]
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    with ExampleStore(tmp_path / "s") as store:
        assert len(store.examples()) == 120
        assert len(store.consents()) == 1


def test_a_store_of_before_there_were_marks_can_forget(make, tmp_path):
    path = tmp_path / "examples.sqlite3"
    with ExampleStore(path, clock=lambda: 100.0) as store:
        store.grant()
        store.add(make("text", request_id="one"))
    with closing(sqlite3.connect(path)) as file:
        file.execute("DROP TABLE forgotten")
    with ExampleStore(path, clock=lambda: 100.0) as store:
        before = store.forgotten()
        assert store.forget(request_ids=["one"]) == 1
        assert store.forgotten() != before


def test_what_was_learned_before_a_damaged_store_was_removed_has_another_word(tmp_path, make):
    path = tmp_path / "examples.sqlite3"
    with ExampleStore(path, clock=lambda: 100.0) as store:
        assert store.forgotten() == ""
        store.grant()
        store.add(make("text"))
        learned = store.forgotten()
    damage_pages(path)
    with ExampleStore(path) as store:
        assert store.forget_all() == 0
        emptied = store.forgotten()
        assert (store.consent(), store.examples()) == (None, [])
    with ExampleStore(path) as store:
        store.grant()
        assert len({"", learned, emptied, store.forgotten()}) == 4


def test_a_store_that_is_made_anew_has_another_word(tmp_path):
    words = set()
    for _ in range(2):
        with ExampleStore(tmp_path / "examples.sqlite3") as store:
            store.grant()
            words.add(store.forgotten())
        store.path.unlink()
    assert len(words) == 2


def test_other_terms_are_another_word(store):
    usual = store.forgotten()
    store.grant(Consent())  # what stands already
    assert store.forgotten() == usual
    store.grant(Consent.to(never_train_tasks=["diary"]))
    stricter = store.forgotten()
    store.withdraw()
    assert len({usual, stricter, store.forgotten()}) == 3


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"weight": 2.0}, "weight"),
        ({"weight": 0.0}, "weight"),
        ({"confidence": 1.0000002}, "confidence"),
        ({"messages": ()}, "messages"),
        ({"device_answer": "\ud800"}, "example"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(make, tmp_path, change, named) -> None:
    kept = make("a text")
    with ExampleStore(tmp_path / "examples.sqlite3", clock=lambda: kept.at_s) as store:
        store.grant()
        assert store.add(kept) is None
        with pytest.raises(InvalidInput, match=named):
            store.add(dataclasses.replace(make("another"), **change))
        assert len(store.examples()) == 1
