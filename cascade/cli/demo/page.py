"""The page: one HTML file that needs nothing else, understood without having seen the run.

The words and figures are ``cascade.cli.demo.wording``'s, the picture ``cascade.cli.demo.chart``'s;
the frame is ``page.html``. Everything that comes from data is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from importlib.resources import files
from string import Template

from cascade.cli.demo import chart, wording
from cascade.cli.demo.results import DemoResult, Sample


def html_page(result: DemoResult) -> str:
    """The whole page.

    Raises:
        CascadeError: matplotlib is not installed.
    """
    template = Template(files("cascade.cli.demo").joinpath("page.html").read_text("utf-8"))
    data, certificate = result.data, result.certificate
    return template.substitute(
        summary=_text(_summary(result)),
        arms="".join(f'<th scope="col">{_text(arm)}</th>' for arm in wording.ARMS),
        rows="".join(_row(row.name, row.cells) for row in wording.table_rows(result)),
        difference=_text(_sentence(wording.difference(result))),
        prices=_text(wording.prices(result)),
        picture=chart.svg(result),
        picture_text=_text(_picture_text(result)),
        certified=_text(_sentence(wording.certified(certificate))),
        observed=_text(_sentence(wording.observed(certificate))),
        cloud_error=_text(_sentence(wording.cloud_error(result))),
        ece=f"{result.calibration_ece:.3f}",
        meaning=_text(_meaning(result)),
        samples="".join(map(_sample, result.samples)),
        test=f"{data.test:,}",
        develop=f"{data.develop:,}",
        certify=f"{data.certify:,}",
        source=_text(data.source),
        dropped=_text(_sentence(wording.dropped(result))),
        device_model=_text(result.device_model),
        cloud_model=_text(result.cloud_model),
        phases="".join(
            _row(phase.name, (wording.duration(1000 * phase.seconds),)) for phase in result.phases
        ),
        total=wording.duration(1000 * sum(phase.seconds for phase in result.phases)),
    )


def _summary(result: DemoResult) -> str:
    local = wording.percent(result.cascade.local_share, 0)
    device, cascade, cloud = (
        wording.percent(arm.accuracy) for arm in (result.device, result.cascade, result.cloud)
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
        f"{wording.percent(certificate.alpha, 0)}. The threshold was chosen on sentences that are "
        "not among those tested here, by exact binomial tests in an order fixed beforehand."
    )


def _picture_text(result: DemoResult) -> str:
    """What the picture shows, for those who cannot see it."""
    curve = result.curve
    none, half, every, sent, reached = map(
        wording.percent,
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
    shown = "".join(f"<td>{_text(cell)}</td>" for cell in cells)
    return f'<tr><th scope="row">{_text(name)}</th>{shown}</tr>\n'


def _sample(sample: Sample) -> str:
    verdict = "right" if sample.correct else "wrong"
    confidence = "–" if sample.confidence is None else f"{sample.confidence:.2f}"
    text = _text(wording.printable(sample.text))
    why = ", ".join(reason.replace("_", " ") for reason in sample.reasons)
    return (
        f'<tr><td class="input">{text}<span>{_text(sample.domain)}</span></td>'
        f"<td>{_text(sample.source)}</td><td>{_text(sample.answer)}</td>"
        f'<td class="{verdict}">{verdict}</td><td class="number">{confidence}</td>'
        f"<td>{_text(why)}</td></tr>\n"
    )


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _text(text: str) -> str:
    """Escaped, and with no line break between a number and its unit."""
    return escape(text).replace(" %", "&nbsp;%").replace("n = ", "n&nbsp;=&nbsp;")
