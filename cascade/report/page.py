"""The page: one HTML file that needs nothing else, with its data, style and script inside.

The frame is ``page.html``. Figures in sentences and tables are computed here, on all rows; the
charts are drawn by the page's script. Everything that comes from data is escaped.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator
from importlib.resources import files
from string import Template

from cascade.certificate import Promise
from cascade.records import TierInfo
from cascade.report.embed import MOST_ROWS, embedded, script_json
from cascade.report.evaluated import Evaluated
from cascade.report.figures import Confusion, Estimate, Figures, GroupFigures, Rate
from cascade.report.made_of import made_of
from cascade.report.notices import Notice, promise_sentence
from cascade.report.reading import html, interval, percent, printable, signed

SCRIPTS = ("statistics.js", "model.js", "chart.js", "page.js")

_PRICE_LABELS = {
    "recorded": "Price of the cloud",
    "tokens": "Price of the cloud (assumed)",
    "requests": "Price of the cloud (assumed)",
}
_WHO = {
    "both": "both right",
    "only_device": "only {device} right",
    "only_strong": "only {strong} right",
    "neither": "both wrong",
}
_POINTS = ("gain_device", "gain_strong")
_DEFERRAL = ("deferral_auc", "deferral_auc_by_gain")
_PLAIN = (
    *("auroc", "aurc", "ece", "brier"),
    *(f"{name}{scale}" for name in _DEFERRAL for scale in ("", "_normalised")),
)


def html_page(rows: Evaluated, figures: Figures, notices: Iterable[Notice]) -> str:
    """The whole page; the same bytes for the same records and policy."""
    script = '"use strict";\n(() => {\n' + "\n".join(map(_file, SCRIPTS)) + "})();\n"
    return Template(_file("page.html")).substitute(
        script_hash=_source_hash(script),
        style=_file("page.css"),
        script=script,
        data=script_json(embedded(rows, figures)),
        title=_text(title(rows)),
        summary=_text(summary(rows, figures)),
        notices="\n".join(
            f'<p class="notice {notice.kind}">{_text(notice.text)}</p>' for notice in notices
        ),
        price_label=_PRICE_LABELS[figures.basis],
        score_name=rows.score_name,
        sampled=_sampled(rows),
        confusion=_confusion(rows, figures.confusion),
        figures_caption=_text(f"On all {len(rows):,} rows"),
        estimates="".join(map(_estimate, figures.estimates)),
        groups=_groups(rows, figures),
        promises=_promises(rows),
        facts="".join(_row(name, (value,)) for name, value in _facts(rows)),
        left_out=_left_out(rows),
    )


def title(rows: Evaluated) -> str:
    """What the page is about."""
    task = rows.header.task_id or (rows.policy.task.task_id if rows.policy else "") or "Records"
    tiers = " and ".join(tier.info.name for tier in rows.tiers[: 2 if rows.strong else 1])
    return f"{task}: {tiers}"


def summary(rows: Evaluated, figures: Figures) -> str:
    """The main figures in two sentences."""
    device = rows.device.info.name
    alone = [f"{device} alone {percent(float(rows.device.right.mean()))}"]
    if rows.strong is not None:
        alone.append(f"{rows.strong.info.name} alone {percent(float(rows.strong.right.mean()))}")
    point = figures.point
    if point is None:
        return f"{len(rows):,} inputs. Right are: {', '.join(alone)}."
    text = f"Of {len(rows):,} inputs the policy keeps {percent(point.kept.value)} on {device}"
    if point.risk is not None:
        text += f"; {percent(point.risk.value)} of these are wrong"
    if point.accuracy is not None and rows.strong is not None:
        text += (
            f". With {rows.strong.info.name} answering the rest, "
            f"{percent(point.accuracy.value)} are right"
        )
    return f"{text}; {', '.join(alone)}."


def _sampled(rows: Evaluated) -> str:
    if len(rows) <= MOST_ROWS:
        return ""
    return (
        f'<p class="note">Sliders and charts use {MOST_ROWS:,} of the {len(rows):,} rows, drawn at '
        "random; sentences and tables, but for “Who was right”, use all.</p>"
    )


def _confusion(rows: Evaluated, confusion: Confusion | None) -> str:
    if confusion is None or rows.strong is None:
        return ""
    device, strong = _text(rows.device.info.name), _text(rows.strong.info.name)

    def cell(name: str) -> str:
        count: int = getattr(confusion, name)
        share = percent(count / len(rows))
        return f'<td id="who-{name}">{html(share)}<small>{count:,} rows</small></td>'

    return (
        "<h2>Who was right</h2>\n"
        '<div class="scroll" tabindex="0" role="region" aria-label="Who was right">\n'
        f'<table class="figures who"><caption>Of the rows chosen above; {device} and {strong} on '
        "the same inputs</caption>\n"
        f'<thead><tr><td></td><th scope="col">{strong} right</th>'
        f'<th scope="col">{strong} wrong</th></tr></thead>\n<tbody>\n'
        f'<tr><th scope="row">{device} right</th>{cell("both")}{cell("only_device")}</tr>\n'
        f'<tr><th scope="row">{device} wrong</th>{cell("only_strong")}{cell("neither")}</tr>\n'
        "</tbody></table></div>\n"
    )


def _estimate(estimate: Estimate) -> str:
    value, ends = "–", "–"
    if estimate.key in _POINTS:
        if estimate.value is not None:
            value = f"{signed(100 * estimate.value)} points"
        if estimate.interval is not None:
            ends = " to ".join(signed(100 * end) for end in estimate.interval)
    elif estimate.key in _PLAIN:
        if estimate.value is not None:
            value = f"{estimate.value:.3f}".replace("-", "−")
        if estimate.interval is not None:
            ends = " to ".join(f"{end:.3f}".replace("-", "−") for end in estimate.interval)
    else:
        value = "–" if estimate.value is None else percent(estimate.value)
        ends = "–" if estimate.interval is None else interval(estimate.interval)
    return (
        f'<tr><th scope="row">{_text(estimate.label)}</th><td>{html(value)}</td>'
        f'<td>{html(ends)}</td><td class="text">{_text(estimate.method)}</td></tr>\n'
    )


def _groups(rows: Evaluated, figures: Figures) -> str:
    if not figures.groups:
        return ""
    device = rows.device.info.name
    heads = ["rows", f"{device} right"]
    if rows.strong is not None:
        strong = rows.strong.info.name
        heads.append(f"{strong} right")
        heads += [_WHO[name].format(device=device, strong=strong) for name in list(_WHO)[1:3]]
    if figures.point is not None:
        heads += ["kept", "wrong among kept"]
        if rows.strong is not None:
            heads.append("cascade right")
    columns = "".join(f'<th scope="col">{_text(head)}</th>' for head in heads)
    return (
        "<h2>Group by group</h2>\n"
        '<div class="scroll" tabindex="0" role="region" aria-label="Figures by group">\n'
        '<table class="figures" id="groups"><caption>With 95&nbsp;% intervals. A certificate for '
        "all inputs together promises nothing about one group.</caption>\n"
        f"<thead><tr><td></td>{columns}</tr></thead>\n<tbody>\n"
        f"{''.join(map(_group, figures.groups))}</tbody></table></div>\n"
    )


def _group(group: GroupFigures) -> str:
    cells = [f"{group.n:,}", _rate(group.device)]
    if group.strong is not None and group.confusion is not None:
        only = (group.confusion.only_device, group.confusion.only_strong)
        cells += [_rate(group.strong), *(f"{count:,}" for count in only)]
    if group.point is not None:
        cells.append(html(percent(group.point.kept.value)))
        cells.append(_rate(group.point.risk))
        if group.point.accuracy is not None:
            cells.append(_rate(group.point.accuracy))
    name = _text(f"{group.group}: {group.value or '(none)'}")
    shown = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr><th scope="row">{name}</th>{shown}</tr>\n'


def _rate(rate: Rate | None) -> str:
    if rate is None:
        return "–"
    return f"{html(percent(rate.value))}<small>{html(interval(rate.interval))}</small>"


def _promises(rows: Evaluated) -> str:
    certificate = rows.policy.certificate if rows.policy else None
    if certificate is None:
        promised = "<p><strong>Promised:</strong> nothing.</p>"
    else:
        names = (rows.device.info.name, rows.strong.info.name if rows.strong else "the cluster")
        items = "".join(_promise(promise, names) for promise in certificate.promises)
        wrongly = percent(certificate.delta, 0)
        promised = (
            f"<p><strong>Promised,</strong> all at once:</p><ul>{items}</ul>"
            f"<p>It is a promise about the procedure: of many certify parts drawn alike, at most "
            f"{html(wrongly)} lead to a threshold at which it does not hold.</p>"
        )
    return (
        f"{promised}\n<p><strong>Not promised:</strong></p><ul>"
        "<li>Anything about a single answer, about inputs of another kind than those of the "
        "certify part, or about another model, adapter or wording.</li>"
        "<li>The figures of this page: they are what these rows show, and the next rows will show "
        "something else. The intervals say how much.</li>"
        "<li>The dashed bound on the error among kept answers at <em>another</em> threshold: it "
        "holds for one threshold that was fixed beforehand. Whoever picks the best-looking one on "
        "this page has looked at all of them.</li>"
        "<li>Groups, unless a group has a certificate of its own.</li>"
        "<li>Costs and latencies: they are those of the recording, or of the price that is set "
        "above. An escalated request waits for the device first.</li></ul>"
    )


def _promise(promise: Promise, names: tuple[str, str]) -> str:
    seen = (
        f"seen on the certify rows: {promise.observed:.4g}, bound {promise.upper:.4g}, "
        f"p = {promise.p_value:.2g}; {promise.method.replace('_', '-')}"
    )
    return f"<li>{_text(promise_sentence(promise, names))} ({_text(seen)}).</li>"


def _facts(rows: Evaluated) -> Iterator[tuple[str, str]]:
    header = rows.header
    yield "records", f"{rows.total:,}, of which {len(rows):,} are used"
    yield "created", header.created.strftime("%Y-%m-%d %H:%M:%S UTC")
    for name, value in (
        ("data", header.description),
        ("licence of the data", header.licence),
        ("sha256 of the data", header.data_sha256),
        ("task", header.task_id),
        ("graded by", header.grader),
    ):
        yield name, value or "not said"
    for tier in header.tiers:
        yield f"tier {tier.name}", _tier(tier)
    policy = rows.policy
    if policy is None:
        return
    yield (
        "policy",
        (
            f"task {policy.task.task_id or '(none)'}, base {policy.base_digest}, adapter "
            f"{policy.adapter_digest or '(none)'}; its signature was not checked here"
        ),
    )
    yield "confidence", made_of(policy.confidence)
    if policy.gain is not None:
        least = "" if policy.min_gain is None else f"; below {policy.min_gain:g} answers stay"
        yield "gain", f"P({_above(rows)} right) − P(device right), from the same{least}"
    if policy.early_stop is not None:
        rule = policy.early_stop
        looks = ", ".join(str(checkpoint.tokens) for checkpoint in rule.checkpoints) or "none"
        yield (
            "early stop",
            f"checkpoints after tokens {looks}"
            + ("" if rule.lowest_score is None else "; and by the bound on the raw score"),
        )
    if policy.certificate is not None:
        certificate = policy.certificate
        yield (
            "certificate",
            (
                f"{certificate.n:,} rows, δ = {certificate.delta:g}, "
                f"{certificate.family.replace('_', ' ')} over {certificate.grid_size:,} thresholds"
            ),
        )
        yield "digest of the certify rows", certificate.data_digest
        yield "digest of the grid", certificate.grid_digest


def _above(rows: Evaluated) -> str:
    return rows.strong.info.name if rows.strong else "the next tier"


def _tier(tier: TierInfo) -> str:
    parts = [tier.model or "unknown model", tier.kind]
    for name in ("bundle", "base", "adapter"):
        if digest := getattr(tier, f"{name}_digest"):
            parts.append(f"{name} {digest}")
    if tier.input_usd_per_million_tokens is not None:
        parts.append(f"${tier.input_usd_per_million_tokens:g} a million tokens read")
    if tier.output_usd_per_million_tokens is not None:
        parts.append(f"${tier.output_usd_per_million_tokens:g} written")
    return ", ".join(parts)


def _left_out(rows: Evaluated) -> str:
    if not rows.left_out:
        return ""
    items = "".join(f"<li>{count:,}: {_text(why)}</li>" for why, count in rows.left_out.items())
    return f"<p>Left out, each for the first reason that applies:</p><ul>{items}</ul>"


def _row(name: str, cells: Iterable[str]) -> str:
    shown = "".join(f"<td>{_text(cell)}</td>" for cell in cells)
    return f'<tr><th scope="row">{_text(name)}</th>{shown}</tr>\n'


def _text(text: str) -> str:
    return html(printable(text))


def _source_hash(script: str) -> str:
    """What the page's security policy allows to run: this script, and nothing else."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _file(name: str) -> str:
    return files("cascade.report").joinpath(name).read_text("utf-8")
