"""What a run shows: the agreed JSON, a table that fits, a picture, a page that needs nothing."""

from __future__ import annotations

import json
import re
import struct
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from cascade.cli.demo import chart
from cascade.cli.demo.page import html_page
from cascade.cli.demo.report import terminal_report, write_json, write_report
from cascade.cli.demo.results import DemoResult, to_json
from cascade.metrics import deferral_curve

ARM_KEYS = {
    "accuracy",
    "local_share",
    "p50_ms",
    "p95_ms",
    "bytes_up",
    "cloud_tokens",
    "cost_usd",
    "n",
}


class Page(HTMLParser):
    """Collects the elements and the visible text of a page, and checks that its tags nest."""

    VOID = frozenset({"meta", "br", "use", "path"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data.replace("\xa0", " ")


# JSON


def test_the_json_object_has_the_agreed_fields(demo_result: DemoResult) -> None:
    data = json.loads(json.dumps(to_json(demo_result), allow_nan=False))
    for arm in ("device", "cascade", "cloud"):
        assert data[arm].keys() >= ARM_KEYS
    assert data["certificate"].keys() >= {
        "alpha",
        "delta",
        "n",
        "coverage",
        "test_risk",
        "test_risk_ci",
    }
    assert data["cascade"]["local_share"] == pytest.approx(0.45)
    assert data["difference"]["difference"] == pytest.approx(
        data["cascade"]["accuracy"] - data["device"]["accuracy"]
    )
    assert len(data["deferral"]["accuracy"]) == demo_result.device.n + 1
    assert [row["correct"] for row in data["samples"]] == [True, False, True]


def test_without_local_answers_the_risk_is_null(infeasible_result: DemoResult) -> None:
    data = json.loads(json.dumps(to_json(infeasible_result), allow_nan=False))
    assert data["certificate"]["test_risk"] is None
    assert data["certificate"]["labels_needed"] == 5400


# Terminal


def test_the_table_holds_the_figures_and_fits_a_terminal(demo_result: DemoResult) -> None:
    report = terminal_report(demo_result)
    assert max(map(len, report.splitlines())) <= 88
    table = {line[:27].strip(): line[27:].split("  ") for line in report.splitlines()}
    shown = [cell.strip() for cell in table["accuracy"] if cell.strip()]
    assert shown == ["77.5 %", "80.6 %", "83.8 %"]
    assert "answered on the device                  100.0 %              45.0 %" in report
    assert re.search(r"cascade − device: \+3\.1 points .* −3\.9 to \+10\.2", report)
    assert "left out: 7,854 sentences" in re.sub(r"\s+", " ", report)
    assert "certified on 1,200 labelled" in re.sub(r"\s+", " ", report)


def test_a_sentence_cannot_command_the_terminal(demo_result: DemoResult) -> None:
    assert "\x1b" not in terminal_report(demo_result)


def test_an_infeasible_target_is_said_with_the_labels_needed(infeasible_result: DemoResult) -> None:
    report = re.sub(r"\s+", " ", terminal_report(infeasible_result))
    assert "not feasible on 1,200 labelled sentences, so everything was escalated" in report
    assert "about 5,400 labels" in report
    assert "no test sentence was answered on the device" in report


def test_a_hopeless_target_says_that_labels_do_not_help(infeasible_result: DemoResult) -> None:
    hopeless = replace(
        infeasible_result, certificate=replace(infeasible_result.certificate, labels_needed=None)
    )
    assert "more labels would not help" in re.sub(r"\s+", " ", terminal_report(hopeless))


# Picture


def test_the_picture_is_a_png_of_the_stated_size(demo_result: DemoResult) -> None:
    data = chart.png(demo_result)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (1500, 900)


def test_the_vector_picture_leaves_colours_to_the_page(demo_result: DemoResult) -> None:
    svg = chart.svg(demo_result)
    for name in ("curve", "oracle", "point", "muted", "ink", "frame"):
        assert f"var(--{name})" in svg
    assert not re.search(r"#[0-9a-f]{6}\b", svg)
    assert svg == chart.svg(demo_result)


def test_flat_curves_can_be_drawn(demo_result: DemoResult) -> None:
    """Both models right on everything: every line is one line."""
    right = np.ones(8)
    flat = replace(
        demo_result,
        curve=deferral_curve(np.full(8, 0.9), right, right),
        cascade=replace(demo_result.cascade, accuracy=1.0, accuracy_ci=(1.0, 1.0), local_share=1.0),
    )
    assert chart.png(flat).startswith(b"\x89PNG")


# Page


def test_the_page_loads_nothing_from_elsewhere(demo_result: DemoResult) -> None:
    page = Page(html_page(demo_result))
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "link", "iframe", "img"})
    for _, attributes in page.elements:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")
    assert "@import" not in html_page(demo_result)


def test_data_cannot_become_markup_or_placeholders(demo_result: DemoResult) -> None:
    html = html_page(demo_result)
    assert "<script" not in html
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;" in html
    page = Page(html)
    assert "<script>alert('x')</script> & \"quotes\"  [31mred ${certified} $" in page.text


def test_the_page_tells_what_the_terminal_tells(demo_result: DemoResult) -> None:
    text = re.sub(r"\s+", " ", Page(html_page(demo_result)).text)
    for figure in ("77.5 %", "80.6 %", "83.8 %", "+3.1 points", "7,854 sentences", "0.743"):
        assert figure in text
    assert "at most about 10 in 100 repetitions" in text
    assert "What it does not say." in text
    assert "fetch models" in text


def test_an_infeasible_page_claims_no_threshold(infeasible_result: DemoResult) -> None:
    text = re.sub(r"\s+", " ", Page(html_page(infeasible_result)).text)
    assert "No threshold could be shown to keep that promise" in text
    assert "in 100 repetitions" not in text


def test_tables_and_picture_can_be_read_aloud(demo_result: DemoResult) -> None:
    page = Page(html_page(demo_result))
    headers = [attributes for tag, attributes in page.elements if tag == "th"]
    assert headers
    assert all(attributes.get("scope") in ("row", "col") for attributes in headers)
    pictures = [a for tag, a in page.elements if tag == "div" and a.get("role") == "img"]
    assert "reached 80.6 %" in (pictures[0]["aria-label"] or "").replace("\xa0", " ")
    assert any(tag == "html" and a.get("lang") == "en" for tag, a in page.elements)


# Files


def test_the_report_is_written_whole(demo_result: DemoResult, tmp_path: Path) -> None:
    files = write_report(demo_result, tmp_path / "report")
    assert files.page.read_text("utf-8").startswith("<!doctype html>")
    assert files.picture.read_bytes().startswith(b"\x89PNG")
    assert json.loads(files.json.read_text("utf-8"))["cascade"]["n"] == 160
    assert len(list((tmp_path / "report").iterdir())) == 3


def test_json_is_written_where_asked(demo_result: DemoResult, tmp_path: Path) -> None:
    write_json(demo_result, tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text("utf-8"))["device"]["n"] == 160
