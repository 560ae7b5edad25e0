"""The data sets of the shipped records: read from packages, and the same as when recorded."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.decision.datasets import DATASETS, dataset, matched, texts
from benchmarks.decision.datasets.__main__ import main
from benchmarks.decision.datasets.commands import INTENTS, sentences
from benchmarks.decision.datasets.commonsense import question
from benchmarks.decision.datasets.dataset import Row, fairly_ordered
from benchmarks.decision.datasets.sources import entry
from benchmarks.decision.shipped import NAMES, records
from cascade import download, home
from cascade.cli import parse
from cascade.cli.demo.setting import SENTENCES
from cascade.errors import InvalidInput, NotFound
from cascade.records.dataset import read_dataset


@pytest.fixture
def sources(model_path: Callable[[str], Path]) -> None:
    """The files that the data sets are read from, where ``pull`` finds them."""
    kept = model_path(SENTENCES)
    folder = home.models_dir()
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("home-assistant-intents-en", "commonsense-qa-validation"):
        download.pull(entry(name), directory=kept.parent)
    for path in (kept, *kept.parent.glob("*.json"), *kept.parent.glob("*.jsonl")):
        link = folder / path.name
        if not link.exists():
            link.symlink_to(path)


def test_the_data_sets_are_those_that_are_shipped() -> None:
    assert tuple(DATASETS) == NAMES
    with pytest.raises(NotFound, match="no data set is called 'other'; there are sentiment"):
        dataset("other")


@pytest.mark.models
@pytest.mark.parametrize("name", NAMES)
def test_the_texts_of_a_set_are_those_that_were_recorded(name: str, sources: None) -> None:
    found = texts(name)  # checks every hash
    assert list(found) == list(records(name).ids)
    assert all(found.values())


def test_another_text_than_the_recorded_one_is_refused() -> None:
    shipped = records("questions")
    rows = {row.id: row for row in dataset("questions").rows()}
    first = rows[shipped.ids[0]]
    changed = Row(first.id, first.document, f"{first.prompt} Please.", first.reference)
    with pytest.raises(InvalidInput, match=r"record 1: .* was recorded from another text"):
        matched(shipped, rows | {first.id: changed})
    with pytest.raises(InvalidInput, match=r"record 1: .* is not in the data set"):
        matched(shipped, {})


@pytest.mark.models
@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_can_be_recorded(
    name: str, sources: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, str(tmp_path)]) == 0
    program, *words = shlex.split(capsys.readouterr().out)
    assert program == "cascade"
    args = parse(words)
    data = read_dataset(args.dataset, groups=args.group)
    assert not data.unused
    assert data.sha256 == records(name).header.data_sha256
    assert {item.id for item in data.items} >= set(records(name).ids)
    if dataset(name).wording is not None:
        assert json.loads(args.wording.read_text())["task_id"] == args.task == name


def test_rows_come_documents_in_turn_and_each_input_once() -> None:
    rows = [
        Row(f"{document}{number}", document, f"{document} {number % 3}", "", groups={"kind": kind})
        for kind, documents in (("x", "abcd"), ("y", "ef"))
        for document in documents
        for number in range(4)
    ]
    ordered = fairly_ordered(rows, balance="kind")
    assert [row.groups["kind"] for row in ordered] == ["x", "y"] * 6
    assert {row.document for row in ordered[:4]} >= {"e", "f"}
    assert len({row.document for row in ordered[:8] if row.groups["kind"] == "x"}) == 4
    assert len({row.prompt for row in ordered}) == len(ordered)
    assert ordered == fairly_ordered(reversed(rows), balance="kind")


def test_a_command_is_drawn_from_its_template() -> None:
    content = {
        "language": "en",
        "intents": {
            name: {
                "data": [
                    {
                        "sentences": [f"(do|make) [the] <thing> {place} ({{area}};{{level}})"],
                        "requires_context": {"domain": ["lock"]},
                    },
                    {"sentences": [f"{place} {{name}} {{pct}}"]},
                ]
            }
            for place, name in enumerate(INTENTS)
        },
        "lists": {
            "level": {"values": [{"in": "(max|maximum)", "out": 100}]},
            "pct": {"range": {"from": 3, "to": 5}},
        },
        "expansion_rules": {"thing": "(job|task)"},
    }
    rows = list(sentences(content))
    assert rows == list(sentences(content))
    assert {row.document for row in rows} == {f"{name}/{i}" for name in INTENTS for i in (1, 2)}
    for row in rows:
        place = list(INTENTS).index(row.document.partition("/")[0])
        assert row.reference == row.groups["intent"] == INTENTS[row.document.partition("/")[0]][0]
        words = row.prompt.split()
        if row.document.endswith("/1"):
            assert words[0] in ("do", "make")
            assert str(place) in words
            assert {"max", "maximum"} & set(words)
        else:
            assert words[0] == str(place)
            assert words[-1] in ("3", "4", "5")
    assert len({row.prompt for row in rows}) > len(INTENTS) * 8


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ("\nA. one\nB. two\nC. one\nD. three\nE. four", "A. one"),
        ("\nC. one\nD. two\nE. three", "C. one"),
        ("\nA. one\nB. two\nC. five\nD. three\nE. four?", "E. four"),
    ],
)
def test_a_question_without_five_different_answers_is_left_out(options: str, answer: str) -> None:
    assert question(7, {"question": "Which?", "options": options, "answer": answer}) is None


def test_a_question_is_asked_with_its_answers() -> None:
    row = question(
        7,
        {
            "question": " Which? ",
            "options": ".\nA. one\nB. St. Paul \nC. five\nD. three\nE. four",
            "answer": "B. St. Paul",
        },
    )
    assert row is not None
    assert (row.id, row.reference) == ("validation/7", "B")
    assert row.prompt == "Which?\nA. one\nB. St. Paul\nC. five\nD. three\nE. four"
