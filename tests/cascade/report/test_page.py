"""The page as a file: it needs nothing else, holds the figures, and data cannot become markup."""

from __future__ import annotations

import json
import re
import struct
from html.parser import HTMLParser

import numpy as np
import pytest

from cascade.records import save
from cascade.report import report
from cascade.report.embed import MOST_ROWS
from tests.cascade.report.simulated import HOSTILE, hostile, moods, policy_of


class Parsed(HTMLParser):
    """Elements, visible text, and the content of scripts; checks that tags nest."""

    VOID = frozenset({"meta", "br", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "script" in self._open:
            self.scripts.append(data)
        elif "style" not in self._open:
            self.text += data.replace("\xa0", " ")


@pytest.fixture(scope="module")
def policy():
    return policy_of(moods(3000, 7))


@pytest.fixture(scope="module")
def html(policy):
    return report(moods(), policy).html()


def test_the_page_loads_nothing(html):
    page = Parsed(html)
    assert {tag for tag, _ in page.elements}.isdisjoint({"link", "iframe", "img", "object", "base"})
    for tag, attributes in page.elements:
        assert {"src", "href", "srcset", "action"}.isdisjoint(attributes), tag
        assert not any(name.startswith("on") for name in attributes), tag
    # The one address is the name of the SVG namespace, which nothing fetches.
    assert set(re.findall(r"\bhttps?://[^\s\"')]*", html)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest|WebSocket|import\(", html)
    (policy,) = (a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    assert "script-src 'sha256-" in policy


def test_the_same_input_gives_the_same_bytes(policy, html):
    assert report(moods(), policy).html() == html


def test_the_tables_hold_the_figures(policy, html):
    made, text = report(moods(), policy), re.sub(r"\s+", " ", Parsed(html).text)
    figures = made.figures
    assert made.summary in text
    for rate in (figures.point.kept, figures.point.risk, figures.point.accuracy):
        assert f"{100 * rate.value:.1f} %" in text
    for key in ("auroc", "ece", "deferral_auc"):
        (each,) = (each for each in figures.estimates if each.key == key)
        assert f"{each.value:.3f}" in text
    for group in figures.groups:
        assert f"domain: {group.value}" in text
    for fact in (
        "12" * 32,
        "ef" * 32,
        policy.certificate.data_digest,
        "CC0",
        "2026-01-31 12:00:05",
    ):
        assert fact in text
    assert "at most 15.0 % of the answers that device keeps are wrong" in text


def test_no_figure_is_nan(policy):
    for records in (moods(), moods(tier__device__correct=np.ones(600)), moods(40)):
        for chosen in (policy, None):
            page = Parsed(report(records, chosen).html())
            assert not re.search(r"\b(nan|inf|None|undefined)\b", page.text, re.IGNORECASE)
            json.loads(page.scripts[0], parse_constant=pytest.fail)


def test_data_cannot_become_markup(policy):
    page = Parsed(report(hostile(moods(60)), policy).html())
    assert len(page.scripts) == 2
    assert [tag for tag, _ in page.elements].count("script") == 2
    assert "b" not in {tag for tag, _ in page.elements}
    assert HOSTILE in page.text
    assert HOSTILE in json.dumps(json.loads(page.scripts[0]))


def test_tables_charts_and_controls_have_names(html):
    page = Parsed(html)
    heads = [attributes for tag, attributes in page.elements if tag == "th"]
    assert heads
    assert all(attributes.get("scope") in ("row", "col") for attributes in heads)
    labelled = {attributes["for"] for tag, attributes in page.elements if tag == "label"}
    controls = {a["id"] for tag, a in page.elements if tag in ("input", "select")}
    assert controls == labelled


def test_many_rows_are_sampled_and_the_page_says_so():
    made = report(moods(MOST_ROWS + 1))
    page = Parsed(made.html())
    assert "Sliders and charts use 20,000 of the 20,001 rows" in page.text
    assert f"On all {MOST_ROWS + 1:,} rows" in page.text
    assert made.html() == report(moods(MOST_ROWS + 1)).html()
    assert len(made.html()) < 2 * 2**20


def test_the_files_are_written_whole(policy, tmp_path):
    paths = report(moods(), policy).write(tmp_path / "out", png=True)
    assert [path.name for path in paths] == [
        "report.html",
        "risk-coverage.png",
        "reliability.png",
        "deferral.png",
        "front-cost.png",
        "front-latency.png",
    ]
    for path in paths[1:]:
        data = path.read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        assert struct.unpack(">II", data[16:24]) == (1500, 900)
    assert sorted(tmp_path.glob("out/*")) == sorted(paths)


# The command


@pytest.fixture
def files(tmp_path, policy, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "moods.parquet", moods())
    save(tmp_path / "moods.jsonl", moods())
    (tmp_path / "policy.json").write_bytes(policy.to_bytes())
    return tmp_path


def cascade(*words):
    from cascade.cli import main

    return main(["report", *words])


def test_the_command_writes_the_page_and_says_what_it_found(files, policy, capsys):
    assert cascade("moods.parquet", "--policy", "policy.json") == 0
    shown = capsys.readouterr()
    assert shown.out == report(moods(), policy).summary + "\n"
    assert "note: The 600 rows come from 300 documents." in shown.err
    assert shown.err.endswith("report/report.html\n")
    page = (files / "report" / "report.html").read_text("utf-8")
    assert page == report(moods(), policy).html()


def test_both_formats_give_the_same_page(files):
    assert cascade("moods.parquet", "--out", "one") == 0
    assert cascade("moods.jsonl", "--out", "two") == 0
    assert (files / "one/report.html").read_bytes() == (files / "two/report.html").read_bytes()


def test_json_is_one_object_with_the_figures(files, policy, capsys):
    assert cascade("moods.parquet", "--policy", "policy.json", "--json") == 0
    value = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    figures = report(moods(), policy).figures
    assert value["point"]["kept"]["count"] == figures.point.kept.count
    assert value["tiers"] == ["device", "tier1"]
    assert [notice["key"] for notice in value["notices"]] == ["certified", "documents"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("none.parquet",), 3, "none.parquet"),
        (("policy.json",), 2, "does not end with .jsonl or .parquet"),
        (("moods.parquet", "--policy", "none.json"), 3, "there is no policy at none.json"),
        (("moods.parquet", "--policy", "."), 2, "is a folder"),
        (("moods.parquet", "--policy", "moods.jsonl"), 2, "policy: is not JSON"),
        (("moods.parquet", "--tier", "phone"), 3, "no tier 'phone'; there are device, tier1"),
        (("moods.parquet", "--strong", "device"), 2, "strong: device is the tier"),
        (("moods.parquet", "--out", "moods.jsonl"), 1, "moods.jsonl"),
    ],
)
def test_a_mistake_is_one_line(files, capsys, words, code, message):
    assert cascade(*words) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert message in shown.err
