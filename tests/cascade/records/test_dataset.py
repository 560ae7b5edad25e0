"""Data sets: CSV and JSON lines, read strictly."""

from __future__ import annotations

from pathlib import Path

import pytest

from cascade.errors import InvalidInput, NotFound
from cascade.records.dataset import Item, read_dataset


def written(folder: Path, text: str, name: str = "data.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_csv_file_is_read_by_its_columns(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "\ufeffid,prompt,options,reference,document,domain,length,other\r\n"
        'a,"Two\nlines, and ""quotes""",yes | no,yes,d1,shop,3,x\r\n'
        "\r\n"
        "b,Plain,,,,,,\r\n",
    )
    data = read_dataset(path, groups=["domain"], features=["length"])
    one, two = data.items
    assert one == Item(
        id="a",
        prompt='Two\nlines, and "quotes"',
        document="d1",
        options=("yes", "no"),
        reference="yes",
        groups={"domain": "shop"},
        features={"length": 3.0},
        where="data.csv line 3",
    )
    assert (two.id, two.document, two.options, two.reference) == ("b", "b", (), None)
    assert (two.groups, two.features) == ({}, {})
    assert data.unused == ("other",)
    assert len(data.sha256) == 64


def test_a_jsonl_file_is_read_by_its_fields(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        '{"prompt": "One", "options": ["a", "b|c"], "reference": 42, "n": 1.5}\n\n'
        '{"prompt": "Two", "id": 7, "document": null, "other": {"x": 1}}\n',
        "data.jsonl",
    )
    data = read_dataset(path, features=["n"])
    one, two = data.items
    assert (one.id, one.options, one.reference, one.features) == (
        "1",
        ("a", "b|c"),
        "42",
        {"n": 1.5},
    )
    assert (two.id, two.document, two.where) == ("7", "7", "data.jsonl line 3")
    assert data.unused == ("other",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: names no column prompt"),
        ("id,text\n1,a\n", "line 1: names no column prompt"),
        ("prompt,prompt\na,b\n", "line 1: names a column twice"),
        ("prompt\n", "has no rows"),
        ("prompt,id\n,1\n", "line 2: prompt: is missing or empty"),
        ("prompt,id\na,1\nb,1\n", "line 3: id: '1' is also that of data.csv line 2"),
        ("prompt,id\na\n", "line 2: has 1 fields for 2 columns"),
        ('prompt\n"a\n', "is no CSV"),
        ("prompt,options\na,yes\n", "line 2: options: needs at least two"),
    ],
)
def test_a_bad_csv_file_is_refused_by_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        read_dataset(written(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        ("[1]", "line 1: is no JSON object"),
        ("{", "line 1: is no JSON object"),
        ('{"prompt": ["a"]}', "line 1: prompt: must be a text"),
        ('{"prompt": "\\ud800"}', "line 1: prompt: is not valid Unicode"),
        ('{"prompt": "a", "options": "b"}', "line 1: options: must be a list of texts"),
        ('{"prompt": "a", "reference": true}', "line 1: reference: must be a text or a number"),
        ('{"prompt": "a", "n": "many"}', "line 1: n: 'many' is no finite number"),
        ('{"prompt": "a", "n": NaN}', "line 1: n: nan is no finite number"),
    ],
)
def test_a_bad_jsonl_file_is_refused_by_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        read_dataset(written(tmp_path, text, "data.jsonl"), features=["n"])


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no file"):
        read_dataset(tmp_path / "nope.csv")
    with pytest.raises(InvalidInput, match=r"does not end with \.csv or \.jsonl"):
        read_dataset(written(tmp_path, "a", "data.txt"))
    (tmp_path / "latin.csv").write_bytes(b"prompt\ncaf\xe9\n")
    with pytest.raises(InvalidInput, match="is not UTF-8 text"):
        read_dataset(tmp_path / "latin.csv")
    path = written(tmp_path, "prompt,domain\na,b\n")
    with pytest.raises(InvalidInput, match="groups: no column 'colour'"):
        read_dataset(path, groups=["colour"])
    with pytest.raises(InvalidInput, match="groups: prompt cannot be a group"):
        read_dataset(path, groups=["prompt"])
