"""``cascade examples`` on a store, in this process."""

from __future__ import annotations

import json
import time

import pytest

from cascade import home
from cascade.cli import main
from edge.examples import AesGcm, Consent, ExampleStore, Source
from tests.edge.examples.test_store import bytes_of


@pytest.fixture
def kept(empty_home, make):
    """The usual store, with four examples."""
    now = time.time()
    with ExampleStore() as store:
        store.grant()
        for number, (text, answer, source) in enumerate(
            [
                ("A lovely day", "good", Source.CLOUD),
                ("a lovely DAY", "bad", Source.CORRECTION),
                ("My neighbour shouts", "bad", Source.CLOUD),
                ("Rain again", "bad", Source.DEVICE),
            ]
        ):
            store.add(make(text, answer, source=source, request_id=f"r{number}", at_s=now))
        yield store


def run(capsys, *words: str) -> tuple[int, str, str]:
    code = main(["examples", *words])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_list_shows_a_line_for_each(kept, capsys):
    code, out, _ = run(capsys, "list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["r0", "r1", "r2", "r3"]
    assert "My neighbour shouts -> bad" in out
    _, out, _ = run(capsys, "list", "--last", "1", "--json")
    (example,) = json.loads(out)["examples"]
    assert example["messages"] == [{"role": "user", "content": "Rain again"}]
    assert run(capsys, "list", "--last", "0")[0] == 2
    assert run(capsys, "list", "--task", "none") == (0, "", run(capsys, "list", "--task", "x")[2])


def test_stats_tell_what_would_be_learned_and_why_the_rest_is_not(kept, capsys):
    code, out, _ = run(capsys, "stats", "--json")
    stats = json.loads(out)
    assert code == 0
    assert stats["examples"] == 4
    assert stats["learn"] + stats["held_out"] == 2
    assert stats["left_out"] == {"waiting": 1, "conflict": 1}
    assert stats["consent"] == json.loads(Consent().to_text())
    assert stats["bytes"] == kept.size()
    _, text, _ = run(capsys, "stats")
    assert "1 left out: the same was asked, and a better or newer source answers otherwise" in text
    kept.withdraw()
    _, text, _ = run(capsys, "stats")
    assert "learning is not agreed to" in text
    assert json.loads(run(capsys, "stats", "--json")[1])["left_out"] == {"no_consent": 4}


def test_judge_takes_a_users_word(kept, capsys):
    assert run(capsys, "judge", "r3", "--right")[0] == 0
    assert run(capsys, "judge", "r2", "--wrong")[0] == 0
    _, out, _ = run(capsys, "judge", "r0", "--correction", "bad", "--json")
    assert json.loads(out)["source"] == "correction"
    found = {each.request_id: each for each in kept.examples()}
    assert found["r3"].source is Source.CONFIRMATION
    assert found["r2"].rejected
    assert found["r0"].answer == "bad"
    code, _, err = run(capsys, "judge", "r0", "--correction", "ugly")
    assert (code, "none of the options" in err) == (2, True)
    assert run(capsys, "judge", "none", "--right")[0] == 3


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (["--request", "r0", "--request", "r3"], ["r1", "r2"]),
        (["--mentioning", "NEIGHBOUR"], ["r0", "r1", "r3"]),
        (["--task", "mood"], []),
        (["--all"], []),
    ],
)
def test_forget_removes_what_is_named(kept, capsys, words, left):
    code, out, _ = run(capsys, "forget", *words)
    assert (code, out) == (0, f"{4 - len(left)} forgotten\n")
    assert [each.request_id for each in kept.examples()] == left
    if "r2" not in left:
        assert b"neighbour" not in bytes_of(kept)


def test_forget_wants_to_know_what(kept, capsys):
    code, _, err = run(capsys, "forget", "--mentioning", " ")
    assert (code, "use --all" in err) == (2, True)
    assert len(kept.examples()) == 4


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["list", "--task", "\udcff"], "task"),
        (["stats", "--task", "\udcff"], "task"),
        (["export", "out", "--task", "\udcff"], "task"),
        (["export", "\udcff"], "out"),
        (["judge", "\udcff", "--right"], "request_id"),
        (["judge", "r0", "--correction", "\udcff"], "correction"),
        (["forget", "--request", "\udcff"], "request_id"),
        (["forget", "--mentioning", "\udcff"], "mentioning"),
        (["forget", "--task", "\udcff"], "task"),
    ],
)
def test_an_argument_that_is_not_utf_8_is_named(kept, capsys, words, named):
    code, _, err = run(capsys, *words)
    assert (code, f"{named}: is not valid Unicode" in err) == (2, True)
    assert len(kept.examples()) == 4


def test_export_writes_json_lines_for_the_owner_alone(kept, capsys, tmp_path):
    out = tmp_path / "examples.jsonl"
    assert run(capsys, "export", str(out))[0] == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["request_id"] for row in rows] == ["r0", "r1", "r2", "r3"]
    assert out.stat().st_mode & 0o777 == 0o600
    code, _, err = run(capsys, "export", str(out))
    assert (code, "is there already" in err) == (2, True)
    curated = tmp_path / "curated.jsonl"
    assert run(capsys, "export", str(curated), "--curated")[0] == 0
    rows = [json.loads(line) for line in curated.read_text().splitlines()]
    assert {row["request_id"] for row in rows} == {"r1", "r2"}


def test_consent_is_shown_withdrawn_and_given(kept, capsys):
    assert "withdrawn" not in run(capsys, "consent")[1]
    assert "withdrawn" in run(capsys, "consent", "--withdraw")[1]
    assert kept.consent() is None
    log = json.loads(run(capsys, "consent", "--give", "--json")[1])["consents"]
    assert [entry["terms"] is None for entry in log] == [False, True, False]
    assert kept.consent() == Consent()


def test_a_store_with_a_key_is_read_with_it_alone(empty_home, capsys, make, tmp_path):
    key = tmp_path / "key"
    with ExampleStore(cipher=AesGcm.from_file(key, create=True)) as store:
        store.grant()
        store.add(make("A lovely day", at_s=time.time()))
    assert "A lovely day" in run(capsys, "list", "--examples-key", str(key))[1]
    code, _, err = run(capsys, "list")
    assert (code, "aes-256-gcm" in err) == (2, True)
    assert run(capsys, "list", "--examples-key", str(tmp_path / "none"))[0] == 3
    assert run(capsys, "forget", "--all")[1] == "1 forgotten\n"


def test_a_damaged_store_says_what_to_do_and_that_helps(empty_home, capsys):
    empty_home.mkdir()
    home.examples_path().write_bytes(b"no database at all" * 100)
    code, out, err = run(capsys, "stats", "--json")
    assert (code, "forget --all removes it" in err) == (1, True)
    assert json.loads(out)["error"]["kind"] == "DamagedStore"
    assert run(capsys, "forget", "--all")[0] == 0
    assert run(capsys, "stats")[0] == 0
    assert run(capsys, "consent", "--withdraw")[0] == 3  # it went with the store


def test_another_file_is_neither_read_nor_removed(empty_home, capsys, tmp_path):
    notes = tmp_path / "notes.txt"
    notes.write_text("my notes " * 100)
    for words in (["stats"], ["forget", "--all"]):
        code, _, err = run(capsys, *words, "--examples", str(notes))
        assert (code, "notes.txt is no store of examples" in err) == (1, True)
    assert notes.read_text() == "my notes " * 100
    absent = tmp_path / "none.sqlite3"
    assert run(capsys, "judge", "r", "--wrong", "--examples", str(absent))[0] == 3
    assert not absent.exists()


def test_on_a_device_that_never_learned_nothing_is_made(empty_home, capsys):
    for words in (["list"], ["stats"], ["consent"], ["forget", "--all"]):
        assert run(capsys, *words)[0] == 0
    assert run(capsys, "consent", "--withdraw")[0] == 3
    assert not home.examples_path().exists()
