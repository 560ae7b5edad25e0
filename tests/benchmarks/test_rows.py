"""The rows' format, and the page that is made of them."""

from __future__ import annotations

import dataclasses
import json

import pytest

from benchmarks import report
from benchmarks.rows import Row, read_rows, to_json

ROW = Row(
    figure="decode against a peer",
    value=1.25,
    unit="×",
    reach=1.4,
    sense=">=",
    peer="a peer 1.0 (AVX2)",
    n=9,
    ci=(1.2, 1.3),
    quick=False,
    hardware="a machine",
    how="in turn",
)


def test_rows_survive_a_file(tmp_path):
    rows = [ROW, dataclasses.replace(ROW, value=None, ci=None, n=0, how="no compiler")]
    file = tmp_path / "rows.json"
    file.write_bytes(to_json(rows))
    assert read_rows(file) == rows
    assert list(json.loads(file.read_text())[0]) == (
        ["figure", "value", "unit", "reach", "sense", "peer", "n", "ci", "quick", "hardware", "how"]
    )


def test_numbers_must_be_finite():
    with pytest.raises(ValueError, match="not finite"):
        dataclasses.replace(ROW, value=float("nan"))


@pytest.mark.parametrize(
    ("changes", "reached"),
    [
        ({}, False),
        ({"value": 1.4}, True),
        ({"sense": "<="}, True),
        ({"value": None}, None),
        ({"reach": None}, None),
    ],
)
def test_reached(changes, reached):
    assert dataclasses.replace(ROW, **changes).reached is reached


def test_the_page_says_what_was_missed_and_how_it_was_measured():
    absent = dataclasses.replace(ROW, figure="prefill", value=None, ci=None, n=0, how="no compiler")
    page = report.page([ROW, absent])
    assert "| decode against a peer | 1.25 × | 1.2 … 1.3 | ≥ 1.4: **missed** | 9 |" in page
    assert "- decode against a peer: 1.25 ×, 11% off." in page
    assert "- prefill: not measured (no compiler)." in page
    assert "Machine: a machine." in page
    assert "a peer 1.0 (AVX2)" in page


def test_quick_rows_are_not_published(tmp_path, capsys):
    file = tmp_path / "rows.json"
    file.write_bytes(to_json([dataclasses.replace(ROW, quick=True)]))
    assert report.main([str(file)]) == 1
    assert "quick rows are not published" in capsys.readouterr().err


def test_a_foreign_file_is_one_line(tmp_path, capsys):
    file = tmp_path / "other.json"
    file.write_text('[{"name": "x"}]')
    assert report.main([str(file)]) == 1
    assert "does not hold benchmark rows" in capsys.readouterr().err
