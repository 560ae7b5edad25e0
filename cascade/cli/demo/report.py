"""Shows what a run of the demo found: a table for the terminal, a picture, a page, and JSON.

Nothing is measured here; the figures come as a ``DemoResult``.
"""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass
from pathlib import Path

from cascade.cli.demo import chart, page, wording
from cascade.cli.demo.results import DemoResult, Sample, to_json
from cascade.files import write_whole
from cascade.report.reading import printable

_WIDTH = 88
_NAME_WIDTH, _CELL_WIDTH = 27, 20


@dataclass(frozen=True, slots=True)
class ReportFiles:
    """Where ``write_report`` put things."""

    page: Path
    picture: Path
    json: Path


def write_report(result: DemoResult, folder: Path) -> ReportFiles:
    """Write ``report.html``, ``deferral.png`` and ``results.json`` into ``folder``, each whole.

    Raises:
        CascadeError: matplotlib is not installed.
    """
    files = ReportFiles(folder / "report.html", folder / "deferral.png", folder / "results.json")
    write_whole(files.page, page.html_page(result).encode())
    write_whole(files.picture, chart.png(result))
    write_json(result, files.json)
    return files


def write_json(result: DemoResult, path: Path) -> None:
    """Write the result as a JSON object."""
    text = json.dumps(to_json(result), indent=2, allow_nan=False, ensure_ascii=False)
    write_whole(path, (text + "\n").encode())


def terminal_report(result: DemoResult) -> str:
    """Table, certificate and sample rows as plain text of at most 88 columns."""
    data, lines = result.data, ["".ljust(_NAME_WIDTH) + _cells(wording.ARMS)]
    lines.append("─" * (_NAME_WIDTH + 3 * _CELL_WIDTH))
    lines += [row.name.ljust(_NAME_WIDTH) + _cells(row.cells) for row in wording.table_rows(result)]
    lines.append("")
    notes = (
        wording.difference(result),
        f"* {wording.prices(result)}",
        f"{data.test} test sentences of {data.source}, one request at a time, over loopback; "
        f"{wording.dropped(result)}",
        f"device: {result.device_model}; cloud: {result.cloud_model}",
    )
    lines += [line for note in notes for line in _wrap(note)]
    lines += ["", "Certificate"]
    for sentence in (
        wording.certified(result.certificate),
        wording.observed(result.certificate),
        wording.cloud_error(result),
        f"calibration error of the device's confidence on the test part (ECE): "
        f"{result.calibration_ece:.3f}",
    ):
        lines += _wrap(sentence, "  ")
    lines += ["", "Sample rows"]
    for sample in result.samples:
        lines += _sample(sample)
    return "\n".join(lines) + "\n"


def _cells(cells: tuple[str, str, str]) -> str:
    return "".join(cell.rjust(_CELL_WIDTH) for cell in cells)


def _wrap(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent + "  ")


def _sample(sample: Sample) -> list[str]:
    shown = textwrap.shorten(printable(sample.text), _WIDTH - 4, placeholder=" …")
    verdict = "right" if sample.correct else f"wrong, people say {sample.label}"
    confidence = "–" if sample.confidence is None else f"{sample.confidence:.2f}"
    why = ", ".join(sample.reasons)
    return [
        f"  “{shown}”",
        f"    {sample.answer} by {sample.source} ({verdict}) · confidence {confidence} · {why}",
    ]
