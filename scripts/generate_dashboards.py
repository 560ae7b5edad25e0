"""Write the dashboards of ``deploy/observability``, or with ``--check`` tell whether they are old.

Panels name metrics by the definitions in ``cloud.metrics`` and ``edge.metrics``: a metric that is
renamed or loses a label is renamed here too, or this does not run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cascade.instruments import Metric
from cloud import metrics as cluster
from edge import metrics as device

FOLDER: Final = (
    Path(__file__).resolve().parents[1] / "deploy" / "observability" / "grafana" / "dashboards"
)
_WIDTH: Final = 24
_HEIGHT: Final = 8
_DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.

    Arguments:
        unit: Grafana's name of it.
        queries: PromQL and the legend of its series.
        says: what it is good for.
        kind: Grafana's name of the kind of panel.
        width: of 24.
    """

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    says: str
    kind: str = "timeseries"
    width: int = 12


def rate(metric: Metric, *by: str, where: str = "", part: str = "") -> str:
    """The sum of a counter's rates, by labels of it."""
    labels = f" by ({', '.join(by)})" if by else ""
    return f"sum{labels} (rate({_series(metric, part, by)}{where}[$__rate_interval]))"


def quantile(share: float, metric: Metric, *by: str) -> str:
    """A quantile of a histogram, by labels of it."""
    return f"histogram_quantile({share}, {rate(metric, 'le', *by, part='_bucket')})"


def level(metric: Metric, *by: str, how: str = "sum", where: str = "") -> str:
    """A gauge over all that tell it, by labels of it."""
    labels = f" by ({', '.join(by)})" if by else ""
    return f"{how}{labels} ({_series(metric, '', by)}{where})"


def _series(metric: Metric, part: str, by: Sequence[str]) -> str:
    unknown = set(by) - {*metric.labels, "instance"} - ({"le"} if part == "_bucket" else set())
    name = f"{metric.name}{part}"
    if unknown or name not in metric.series:
        raise ValueError(f"{name} has no label {', '.join(sorted(unknown)) or part}")
    return name


def share(part: str, whole: str) -> str:
    """One rate over another."""
    return f"{part} / {whole}"


_FAILED: Final = '{code=~"UNAVAILABLE|INTERNAL|DEADLINE_EXCEEDED|UNKNOWN"}'
_TRIED: Final = rate(cluster.ESCALATIONS, "task", where='{judged!="untried"}')

CLUSTER: Final = (
    Panel(
        "Requests a second",
        "reqps",
        ((rate(cluster.REQUESTS, "code"), "{{code}}"),),
        "What devices ask of the gateways, by how it ended.",
    ),
    Panel(
        "Failed and refused requests",
        "percentunit",
        (
            (share(rate(cluster.REQUESTS, where=_FAILED), rate(cluster.REQUESTS)), "failed"),
            (
                share(
                    rate(cluster.REQUESTS, where='{code="RESOURCE_EXHAUSTED"}'),
                    rate(cluster.REQUESTS),
                ),
                "no room or quota",
            ),
        ),
        "Devices answer such requests unverified.",
    ),
    Panel(
        "Time to the whole answer",
        "s",
        tuple((quantile(q, cluster.REQUEST_SECONDS), f"p{q * 100:g}") for q in (0.5, 0.95, 0.99)),
        "At the gateway, from arrival to the end, however it ended.",
    ),
    Panel(
        "Under way",
        "short",
        (
            (level(cluster.UNDER_WAY), "under way"),
            (level(cluster.CAPACITY), "limit"),
        ),
        "Beyond the limit gateways refuse with RESOURCE_EXHAUSTED.",
    ),
    Panel(
        "Escalations by the device's judgement",
        "reqps",
        ((rate(cluster.ESCALATIONS, "judged"), "{{judged}}"),),
        "Uncertified: no valid policy. Untried: the device had no answer of its own.",
    ),
    Panel(
        "Escalation share",
        "percentunit",
        (
            (
                share(_TRIED, f"({rate(cluster.KEPT, 'task')} + {_TRIED})"),
                "{{task}}",
            ),
        ),
        "Of what devices tried themselves. They tell what they kept with the next request that "
        "they send: devices that never escalate are not in it.",
    ),
    Panel(
        "Confidence of what devices did not keep",
        "percentunit",
        ((rate(cluster.CONFIDENCE, "le", part="_bucket"), "{{le}}"),),
        "Mass near the top: thresholds that could be lower, or requests that ask for the cloud.",
        kind="heatmap",
    ),
    Panel(
        "Tiers: time to the first token, p95",
        "s",
        ((quantile(0.95, cluster.TIER_FIRST_TOKEN, "tier"), "{{tier}}"),),
        "The tier's queue included.",
    ),
    Panel(
        "Tiers: time to the whole answer, p95",
        "s",
        ((quantile(0.95, cluster.TIER_SECONDS, "tier"), "{{tier}}"),),
        "Whole answers alone.",
    ),
    Panel(
        "Tiers: calls now",
        "short",
        (
            (level(cluster.TIER_ANSWERING, "tier"), "{{tier}} answering"),
            (level(cluster.TIER_WAITING, "tier"), "{{tier}} queued"),
        ),
        "Queued: the tier has not begun to answer.",
    ),
    Panel(
        "Tiers: calls a second",
        "reqps",
        ((rate(cluster.TIER_CALLS, "tier", "code"), "{{tier}} {{code}}"),),
        "Climbs and hedges are calls of their own; a hedge that lost is CANCELLED.",
    ),
    Panel(
        "Tiers: tokens a second",
        "short",
        (
            (rate(cluster.TIER_COMPLETION, "tier"), "{{tier}} written"),
            (rate(cluster.TIER_PROMPT, "tier"), "{{tier}} read"),
            (rate(cluster.TIER_CACHED, "tier"), "{{tier}} read, cached"),
        ),
        "Also of answers that were broken off.",
    ),
    Panel(
        "Tiers: tokens of drafts kept",
        "percentunit",
        (
            (
                share(rate(cluster.TIER_DRAFT_KEPT, "tier"), rate(cluster.TIER_DRAFT_SENT, "tier")),
                "{{tier}}",
            ),
        ),
        "Of what devices proposed. What is not kept was read in vain, and is charged as prompt.",
    ),
    Panel(
        "Tiers: drafts a second",
        "reqps",
        ((rate(cluster.TIER_DRAFTS, "tier", "outcome"), "{{tier}} {{outcome}}"),),
        "Ignored: devices propose to a tier that makes no use of it.",
    ),
    Panel(
        "Tiers: money an hour",
        "currencyUSD",
        ((f"3600 * {rate(cluster.TIER_COST, 'tier')}", "{{tier}}"),),
        "By the price list in the cluster's configuration.",
    ),
    Panel(
        "Tiers: up",
        "short",
        ((level(cluster.TIER_UP, "tier", how="min"), "{{tier}}"),),
        "0: no replica runs, and the tier may not sleep.",
        kind="stat",
        width=6,
    ),
    Panel(
        "Tiers: replicas",
        "short",
        ((level(cluster.TIER_REPLICAS, "tier", how="max"), "{{tier}}"),),
        "That run.",
        width=6,
    ),
    Panel(
        "Served policies: certified risk and coverage",
        "percentunit",
        (
            (level(cluster.POLICY_RISK, "channel", "task", how="max"), "{{channel}} {{task}} risk"),
            (
                level(cluster.POLICY_COVERAGE, "channel", "task", how="min"),
                "{{channel}} {{task}} coverage",
            ),
            (
                level(cluster.POLICY_DELTA, "channel", "task", how="max"),
                "{{channel}} {{task}} delta",
            ),
        ),
        "What the registry's channels promise; the weakest where one serves several.",
    ),
    Panel(
        "Served policies by certificate",
        "short",
        ((level(cluster.POLICIES, "certified", how="max"), "certified {{certified}}"),),
        "Without a certified threshold a device escalates everything.",
        kind="stat",
        width=6,
    ),
    Panel(
        "Registry last read",
        "dateTimeFromNow",
        ((f"1000 * {level(cluster.REGISTRY_READ, how='max')}", "read"),),
        "Gateways read it once a minute.",
        kind="stat",
        width=6,
    ),
    Panel(
        "Federated rounds by state",
        "short",
        (
            (level(cluster.FEDERATION_ROUNDS, "state", how="max"), "{{state}}"),
            (level(cluster.FEDERATION_DEVICES, how="max"), "devices enrolled"),
        ),
        "Every gateway tells what the store of all of them says.",
    ),
    Panel(
        "Federated rounds: leases",
        "short",
        ((level(cluster.FEDERATION_LEASES, "state", how="max"), "{{state}}"),),
        "Of the last month. Many that expire: devices have too little time, or too much to do.",
    ),
    Panel(
        "Federated rounds: updates",
        "short",
        (
            (
                level(cluster.FEDERATION_UPDATES, "outcome", "reason", how="max"),
                "{{outcome}} {{reason}}",
            ),
        ),
        "So far, and why some of them do not count.",
    ),
    Panel(
        "Federated rounds: bytes of updates",
        "bytes",
        ((level(cluster.FEDERATION_BYTES, how="max"), "committed"),),
        "So far.",
        width=6,
    ),
    Panel(
        "Federated rounds: error of the last aggregation",
        "percentunit",
        ((level(cluster.FEDERATION_ERROR, how="max"), "relative"),),
        "Between the mean of what devices changed and what is served.",
        width=6,
    ),
    Panel(
        "Federated rounds: ε",
        "short",
        ((level(cluster.FEDERATION_EPSILON, "when", how="max"), "{{when}} the last round"),),
        "Of rounds with noise, at the configured δ.",
    ),
)

DEVICES: Final = (
    Panel(
        "Escalation share",
        "percentunit",
        (
            (
                share(
                    rate(device.DECISIONS, "task", where='{outcome="escalated"}'),
                    rate(device.DECISIONS, "task"),
                ),
                "{{task}}",
            ),
        ),
        "Share of the decisions that went to the cluster.",
    ),
    Panel(
        "Decisions a second",
        "reqps",
        ((rate(device.DECISIONS, "outcome"), "{{outcome}}"),),
        "Unverified: not kept, and not allowed or able to leave.",
    ),
    Panel(
        "Reasons",
        "reqps",
        ((rate(device.REASONS, "reason"), "{{reason}}"),),
        "One decision may have several.",
    ),
    Panel(
        "Confidence",
        "percentunit",
        ((rate(device.CONFIDENCE, "le", part="_bucket"), "{{le}}"),),
        "Calibrated, of the device's own answers, kept or not. A shift is a first sign of drift.",
        kind="heatmap",
    ),
    Panel(
        "Answers a second",
        "reqps",
        ((rate(device.ANSWERS, "source", "verified"), "{{source}} verified {{verified}}"),),
        "Who gave them.",
    ),
    Panel(
        "Failures a second",
        "reqps",
        (
            (rate(device.FAILURES, "code"), "no answer: {{code}}"),
            (rate(device.REMOTE_FAILURES, "code"), "fell back: {{code}}"),
        ),
        "Fell back: the cluster failed, and the device's answer stood unverified.",
    ),
    Panel(
        "Time to the answer, p95",
        "s",
        (
            (quantile(0.95, device.SECONDS, "source"), "{{source}}"),
            (quantile(0.95, device.LOCAL_SECONDS), "local part"),
            (quantile(0.95, device.REMOTE_SECONDS), "remote part"),
        ),
        "As the application sees it.",
    ),
    Panel(
        "Tokens a second",
        "short",
        (
            (rate(device.LOCAL_TOKENS), "written here"),
            (rate(device.CLOUD_TOKENS, "direction"), "cluster {{direction}}"),
        ),
        "Written here: kept or not.",
    ),
    Panel(
        "Network",
        "Bps",
        ((rate(device.BYTES, "direction"), "{{direction}}"),),
        "Messages, without HTTP/2 and TLS.",
    ),
    Panel(
        "Money an hour",
        "currencyUSD",
        ((f"3600 * {rate(device.COST)}", "cluster"),),
        "What the cluster charged.",
    ),
    Panel(
        "Policies by the monitor's state",
        "short",
        ((level(device.POLICY_STATE, "task", "state"), "{{task}} {{state}}"),),
        "Devices in each state; a demoted policy escalates everything.",
    ),
    Panel(
        "Audits: share wrong, beside the certified risk",
        "percentunit",
        (
            (
                share(
                    level(device.AUDITS, "task", where='{outcome="wrong"}'),
                    level(device.AUDITS, "task", where='{outcome=~"right|wrong"}'),
                ),
                "{{task}} wrong",
            ),
            (level(device.POLICY_RISK, "task", how="max"), "{{task}} certified"),
        ),
        "Plain shares of what was audited; whether they mean anything is what the monitor tests.",
    ),
)

BOARDS: Final = {
    "cascade-cluster": ("Cascade: cluster", CLUSTER),
    "cascade-devices": ("Cascade: devices", DEVICES),
}


def board(uid: str, title: str, panels: Sequence[Panel]) -> dict[str, object]:
    """One dashboard as Grafana's JSON."""
    placed, x, y = [], 0, 0
    for number, panel in enumerate(panels, start=1):
        if x + panel.width > _WIDTH:
            x, y = 0, y + _HEIGHT
        placed.append(_panel(number, panel, x, y))
        x += panel.width
    return {
        "uid": uid,
        "title": title,
        "tags": ["cascade"],
        "schemaVersion": 41,
        "version": 1,
        "editable": False,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "label": "Prometheus",
                    "type": "datasource",
                    "query": "prometheus",
                    "current": {},
                    "hide": 0,
                }
            ]
        },
        "annotations": {"list": []},
        "panels": placed,
    }


def _panel(number: int, panel: Panel, x: int, y: int) -> dict[str, object]:
    heatmap = panel.kind == "heatmap"
    value: dict[str, object] = {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.says,
        "datasource": _DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + place),
                "datasource": _DATASOURCE,
                "expr": query,
                "legendFormat": legend,
                "format": "heatmap" if heatmap else "time_series",
            }
            for place, (query, legend) in enumerate(panel.queries)
        ],
    }
    if heatmap:
        value["options"] = {"calculate": False, "yAxis": {"unit": panel.unit}}
    return value


def files() -> dict[Path, str]:
    """What belongs into the folder."""
    return {
        FOLDER / f"{uid}.json": json.dumps(board(uid, title, panels), indent=2) + "\n"
        for uid, (title, panels) in BOARDS.items()
    }


def main(arguments: list[str]) -> int:
    """Write the files, or check them."""
    stale = [
        path for path, text in files().items() if not path.exists() or path.read_text() != text
    ]
    if arguments == ["--check"]:
        for path in stale:
            print(f"{path.name} is not current; run python scripts/generate_dashboards.py")
        return 1 if stale else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path, text in files().items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
