"""The page: one HTML file that needs nothing else, understood without having seen the run.

The words and figures are ``cascade.cli.demo.wording``'s, the picture ``cascade.cli.demo.chart``'s;
the frame is ``page.html``. Everything that comes from data is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files
from string import Template

from cascade.cli.demo import chart, wording
from cascade.cli.demo.results import DemoResult, Sample
from cascade.report.reading import duration, html, percent, printable


def html_page(result: DemoResult) -> str:
    """The whole page.

    Raises:
        CascadeError: matplotlib is not installed.
    """
    template = Template(files("cascade.cli.demo").joinpath("page.html").read_text("utf-8"))
    data, certificate = result.data, result.certificate
    return template.substitute(
        summary=html(_summary(result)),
        arms="".join(f'<th scope="col">{html(arm)}</th>' for arm in wording.ARMS),
        rows="".join(_row(row.name, row.cells) for row in wording.table_rows(result)),
        difference=html(_sentence(wording.difference(result))),
        prices=html(wording.prices(result)),
        picture=chart.svg(result),
        picture_text=html(_picture_text(result)),
        certified=html(_sentence(wording.certified(certificate))),
        observed=html(_sentence(wording.observed(certificate))),
        cloud_error=html(_sentence(wording.cloud_error(result))),
        ece=f"{result.calibration_ece:.3f}",
        meaning=html(_meaning(result)),
        samples="".join(map(_sample, result.samples)),
        test=f"{data.test:,}",
        develop=f"{data.develop:,}",
        certify=f"{data.certify:,}",
        source=html(data.source),
        dropped=html(_sentence(wording.dropped(result))),
        device_model=html(result.device_model),
        cloud_model=html(result.cloud_model),
        phases="".join(
            _row(phase.name, (duration(1000 * phase.seconds),)) for phase in result.phases
        ),
        total=duration(1000 * sum(phase.seconds for phase in result.phases)),
    )


def _summary(result: DemoResult) -> str:
    local = percent(result.cascade.local_share, 0)
    device, cascade, cloud = (
        percent(arm.accuracy) for arm in (result.device, result.cascade, result.cloud)
    )
    return (
        f"The cascade answered {local} of {result.cascade.n:,} sentences on the device and asked "
        f"the cloud about the rest. It was right on {cascade} of all; the device alone on "
        f"{device}, the cloud alone on {cloud}."
    )


def _meaning(result: DemoResult) -> str:
    certificate = result.certificate
    if not certificate.feasible:
        return (
            "No threshold could be shown to keep that promise, so the device answered nothing by "
            "itself. That is the intended behaviour: without evidence, escalate."
        )
    wrongly = round(100 * certificate.delta)
    return (
        "If the whole procedure were repeated with fresh sentences of the same kind, at most about "
        f"{wrongly} in 100 repetitions would choose a threshold whose true error is above "
        f"{percent(certificate.alpha, 0)}. The threshold was chosen on sentences that are "
        "not among those tested here, by exact binomial tests in an order fixed beforehand."
    )


def _picture_text(result: DemoResult) -> str:
    """What the picture shows, for those who cannot see it."""
    curve = result.curve
    none, half, every, sent, reached = map(
        percent,
        (
            float(curve.accuracy[0]),
            float(curve.accuracy[len(curve.accuracy) // 2]),
            float(curve.accuracy[-1]),
            1 - result.cascade.local_share,
            result.cascade.accuracy,
        ),
    )
    return (
        "Line chart of accuracy against the share of requests sent to the cloud, least confident "
        f"first: from {none} with none sent, through {half} with half of them sent, to {every} "
        f"with all sent. This run sent {sent} and reached {reached}."
    )


def _row(name: str, cells: Iterable[str]) -> str:
    shown = "".join(f"<td>{html(cell)}</td>" for cell in cells)
    return f'<tr><th scope="row">{html(name)}</th>{shown}</tr>\n'


def _sample(sample: Sample) -> str:
    verdict = "right" if sample.correct else "wrong"
    confidence = "–" if sample.confidence is None else f"{sample.confidence:.2f}"
    text = html(printable(sample.text))
    why = ", ".join(reason.replace("_", " ") for reason in sample.reasons)
    return (
        f'<tr><td class="input">{text}<span>{html(sample.domain)}</span></td>'
        f"<td>{html(sample.source)}</td><td>{html(sample.answer)}</td>"
        f'<td class="{verdict}">{verdict}</td><td class="number">{confidence}</td>'
        f"<td>{html(why)}</td></tr>\n"
    )


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."
