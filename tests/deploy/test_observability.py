"""Dashboards and rules name what there is, in queries that Prometheus can read."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from cascade.instruments import Metric
from cloud.metrics import CLUSTER_METRICS
from edge.metrics import DEVICE_METRICS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "observability"
BOARDS = sorted((FOLDER / "grafana" / "dashboards").glob("*.json"))
RULES = FOLDER / "prometheus" / "rules.yaml"
METRICS: tuple[Metric, ...] = (*CLUSTER_METRICS, *DEVICE_METRICS)
SERIES = {name: metric for metric in METRICS for name in metric.series}
ADDED = {"instance", "job"}  # by Prometheus
SEVERITIES = {"critical", "warning", "info"}
# Those of Grafana's units that say what ours are.
UNITS = {
    "seconds": {"s", "dateTimeFromNow"},
    "usd": {"currencyUSD"},
    "ratio": {"percentunit"},
    "bytes": {"Bps", "bytes"},
}


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def recorded() -> dict[str, str]:
    return {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}


def panels(board: Path) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = json.loads(board.read_text())["panels"]
    return content


def queries() -> Iterator[tuple[str, str]]:
    """Every query of the folder, and where it stands."""
    for rule in rules():
        yield rule.get("alert") or rule["record"], rule["expr"]
    for board in BOARDS:
        for panel in panels(board):
            for target in panel["targets"]:
                yield f"{board.stem}: {panel['title']}", target["expr"]


def parsed(query: str) -> Any:
    return promql_parser.parse(query.replace("$__rate_interval", "5m"))


def selectors(node: Any) -> Iterator[Any]:
    """Every selector of a query."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for name in ("expr", "lhs", "rhs", "vs", "vector_selector", "param"):
        child = getattr(node, name, None)
        if child is not None and not isinstance(child, str):
            yield from selectors(child)
    for child in getattr(node, "args", ()) or ():
        yield from selectors(child)


def grouped(query: str) -> Iterator[str]:
    """The labels by which a query groups or matches."""
    for names in re.findall(r"\b(?:by|on) ?\(([^)]*)\)", query):
        yield from (name.strip() for name in names.split(","))


QUERIES = list(queries())


@pytest.mark.parametrize(("where", "query"), QUERIES, ids=[where for where, _ in QUERIES])
def test_a_query_is_promql_over_metrics_that_exist(where: str, query: str) -> None:
    found = list(selectors(parsed(query)))
    assert found, f"{where}: names no metric"
    # Each name of ours in the text was found as a selector: nothing escapes the walk above.
    named = set(re.findall(r"\bcascade[_:][a-z0-9_:]+", query))
    assert named == {selector.name for selector in found}
    labels = {"le", *ADDED}
    for selector in found:
        if selector.name in recorded():
            labels |= set(grouped(recorded()[selector.name]))
            continue
        assert selector.name in SERIES, f"{where}: there is no metric {selector.name}"
        metric = SERIES[selector.name]
        known = {*metric.labels, *ADDED} | ({"le"} if selector.name.endswith("_bucket") else set())
        used = {matcher.name for matcher in selector.matchers.matchers}
        assert used <= known, f"{where}: {selector.name} has no label {used - known}"
        labels |= known
    assert set(grouped(query)) <= labels, f"{where}: groups by a label that nothing has"


@pytest.mark.parametrize(("where", "query"), QUERIES, ids=[where for where, _ in QUERIES])
def test_counters_are_looked_at_as_rates_and_gauges_are_not(where: str, query: str) -> None:
    for name, metric in SERIES.items():
        for use in re.finditer(rf"(\w*\()?{name}\b(?:{{[^}}]*}})?(\[)?", query):
            counts = metric.kind != "gauge"
            assert bool(use[2]) == counts, f"{where}: {name} is a {metric.kind}"


def test_every_metric_is_on_a_dashboard() -> None:
    shown = " ".join(query for where, query in QUERIES if ": " in where)
    assert [metric.name for metric in METRICS if metric.name not in shown] == []


def test_recorded_names_and_alerts_are_unique_and_complete() -> None:
    names = [rule.get("alert") or rule["record"] for rule in rules()]
    assert len(set(names)) == len(names)
    for rule in rules():
        if "record" in rule:
            assert set(rule) == {"record", "expr"}
            assert re.fullmatch(r"cascade:[a-z0-9_]+:[a-z0-9_]+", rule["record"])
            continue
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}, rule["alert"]
        assert rule["labels"]["severity"] in SEVERITIES
        assert set(rule["annotations"]) == {"summary", "description"}
        assert re.fullmatch(r"\d+[mh]", rule["for"])
        assert rule["alert"].startswith("Cascade")
        labels = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
        available = set(grouped(rule["expr"])) | {"instance"}
        if "cascade:" in rule["expr"]:
            available |= {name for each in recorded().values() for name in grouped(each)}
        assert labels <= available, rule["alert"]


def test_alerts_are_explained() -> None:
    page = (ROOT / "docs" / "observability.md").read_text()
    assert [
        rule["alert"] for rule in rules() if "alert" in rule and rule["alert"] not in page
    ] == []
    assert [metric.name for metric in METRICS if metric.name not in page] == []


@pytest.mark.parametrize("board", BOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_what_grafana_takes(board: Path) -> None:
    content = json.loads(board.read_text())
    assert content["uid"] == board.stem
    assert content["schemaVersion"] >= 39
    (variable,) = content["templating"]["list"]
    assert (variable["name"], variable["type"], variable["query"]) == (
        "datasource",
        "datasource",
        "prometheus",
    )
    ids = [panel["id"] for panel in content["panels"]]
    assert len(set(ids)) == len(ids)
    titles = [panel["title"] for panel in content["panels"]]
    assert len(set(titles)) == len(titles)
    taken: set[tuple[int, int]] = set()
    for panel in content["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, f"{panel['title']} lies over another panel"
        taken |= cells
        assert panel["description"]
        for target in panel["targets"]:
            assert (
                target["datasource"]
                == panel["datasource"]
                == {
                    "type": "prometheus",
                    "uid": "${datasource}",
                }
            )
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


@pytest.mark.parametrize("board", BOARDS, ids=lambda path: path.stem)
def test_grafanas_own_types_know_every_field_of_a_dashboard(board: Path) -> None:
    plugins.register_default_plugins()
    content = json.loads(board.read_text())
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(content)))
    assert lost(content, read) == []


def lost(written: object, read: object, at: str = "") -> list[str]:
    """Where what was read is not what was written; what the types add does not matter."""
    if isinstance(written, dict) and isinstance(read, dict):
        return [
            place
            for key, value in written.items()
            for place in (lost(value, read[key], f"{at}.{key}") if key in read else [f"{at}.{key}"])
        ]
    if isinstance(written, list) and isinstance(read, list) and len(written) == len(read):
        pairs = enumerate(zip(written, read, strict=True))
        return [place for i, (one, other) in pairs for place in lost(one, other, f"{at}[{i}]")]
    return [] if written == read else [at]


@pytest.mark.parametrize("board", BOARDS, ids=lambda path: path.stem)
def test_panels_have_the_units_of_their_metrics(board: Path) -> None:
    for panel in panels(board):
        unit = panel["fieldConfig"]["defaults"]["unit"]
        for target in panel["targets"]:
            if "_count" in target["expr"] or " / " in target["expr"]:
                continue
            names = [selector.name for selector in selectors(parsed(target["expr"]))]
            words = {
                word
                for name in names
                for word in SERIES[name].name.removesuffix("_total").split("_")[-1:]
            }
            for word in words & set(UNITS):
                assert unit in UNITS[word], f"{panel['title']}: {word} is not {unit}"


def test_dashboards_are_current() -> None:
    program = ROOT / "scripts" / "generate_dashboards.py"
    done = subprocess.run(
        [sys.executable, str(program), "--check"],
        check=False,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_scraped_and_provisioned_is_there() -> None:
    config = yaml.safe_load((FOLDER / "prometheus" / "prometheus.yaml").read_text())
    for name in config["rule_files"]:
        assert (FOLDER / "prometheus" / name).exists()
    assert [job["job_name"] for job in config["scrape_configs"]] == ["cascade", "cascade-devices"]
    provisioning = FOLDER / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "cascade.yaml").read_text())[
        "datasources"
    ]
    assert source["type"] == "prometheus"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "cascade.yaml").read_text())[
        "providers"
    ]
    assert provider["type"] == "file"
