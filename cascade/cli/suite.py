"""``cascade suite``: record many data sets, as they are and perturbed, and print the matrix."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cascade.cli import record as record_verb
from cascade.errors import CascadeError, InvalidInput, NotFound
from cascade.files import sha256_bytes
from cascade.records import RecordSet
from cascade.records.dataset import Dataset, read_dataset
from cascade.records.matrix import CLEAN, CascadeCell, Cell, cascade_cell, cells
from cascade.records.perturb import perturbation
from cascade.records.summary import TierSummary
from cascade.strict import Fields

_COLUMN = "column:"
_SEED = "cascade-suite-1"


@dataclass(frozen=True, slots=True)
class Scenario:
    """One data set of a suite and how it is asked about; the words are those of ``cascade record``.

    Arguments:
        name: names the files of records.
        data: the file; relative to that of the suite.
        variants: perturbations, or ``column:NAME`` for a column with paraphrases.
    """

    name: str
    data: Path
    options: tuple[str, ...] = ()
    task: str = ""
    wording: Path | None = None
    grader: str = ""
    variants: tuple[str, ...] = ()
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Suite:
    """A suite's file."""

    tiers: tuple[str, ...]
    scenarios: tuple[Scenario, ...]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("suite", type=Path, metavar="FILE", help="a suite in YAML")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="where the records go"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N rows of each")
    record_verb.add_run_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Record what is not recorded yet, and print the matrix."""
    suite = read_suite(args.suite)
    rows: list[Cell] = []
    cascades: list[CascadeCell] = []
    for scenario in suite.scenarios:
        clean: RecordSet | None = None
        for variant in (CLEAN, *scenario.variants):
            print(f"suite: {scenario.name}, {variant}", file=sys.stderr)
            records = _recorded(args, suite, scenario, variant)
            clean = clean or records
            rows += cells(scenario.name, variant, records, clean)
            cell = cascade_cell(scenario.name, variant, records)
            cascades += [cell] if cell else []
    if args.json:
        content = {
            "tiers": [dataclasses.asdict(row) for row in rows],
            "cascade": [dataclasses.asdict(cell) for cell in cascades],
        }
        print(json.dumps(content))
    else:
        for line in (*_table(rows), *_cascade_table(cascades)):
            print(line)
    return 0


def read_suite(path: Path) -> Suite:
    """Read a suite strictly.

    Raises:
        NotFound: there is no such file.
        InvalidInput: it is no YAML, or a field is missing, unknown or unusable; it is named.
        CascadeError: PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError:
        raise CascadeError("suites need PyYAML: pip install 'edge-cloud-cascade[tune]'") from None
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise NotFound(f"there is no file {path}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise InvalidInput(path.name, f"is no YAML ({str(problem).splitlines()[0]})") from None
    read = Fields(content, path.name)
    tiers = read.texts("tiers")
    listed = read.take("scenarios")
    read.end()
    if not isinstance(listed, list) or not listed:
        raise InvalidInput(read.path("scenarios"), "must be a list of at least one scenario")
    scenarios = tuple(
        _scenario(item, f"{read.path('scenarios')}[{i}]", path.parent)
        for i, item in enumerate(listed)
    )
    names = [scenario.name for scenario in scenarios]
    for name in names:
        if names.count(name) > 1:
            raise InvalidInput(read.path("scenarios"), f"two are called {name!r}")
    return Suite(tiers, scenarios)


def _scenario(value: object, where: str, folder: Path) -> Scenario:
    read = Fields(value, where)
    name = read.text("name")
    if not name.replace("-", "").replace("_", "").isalnum():
        raise InvalidInput(read.path("name"), "must be letters, digits, - and _: it names files")
    scenario = Scenario(
        name=name,
        data=folder / read.text("data"),
        options=read.texts("options") if read.given("options") else (),
        task=read.text("task") if read.given("task") else "",
        wording=folder / read.text("wording") if read.given("wording") else None,
        grader=read.text("grader") if read.given("grader") else "",
        variants=read.texts("variants") if read.given("variants") else (),
        limit=read.integer("limit", 1, 1 << 31) if read.given("limit") else None,
    )
    read.end()
    for variant in scenario.variants:
        if not variant.startswith(_COLUMN):
            perturbation(variant)
        if scenario.variants.count(variant) > 1:
            raise InvalidInput(read.path("variants"), f"names {variant} twice")
    if any("," in option for option in scenario.options):
        raise InvalidInput(read.path("options"), "have a comma; use a file of a wording instead")
    return scenario


def _recorded(
    args: argparse.Namespace, suite: Suite, scenario: Scenario, variant: str
) -> RecordSet:
    """The records of one variant; what an earlier run left is gone on with."""
    column = variant.removeprefix(_COLUMN) if variant.startswith(_COLUMN) else "prompt"
    data = read_dataset(scenario.data, prompt=column)
    if variant != CLEAN and column == "prompt":
        data = _perturbed(data, variant)
    stem = scenario.name if variant == CLEAN else f"{scenario.name}+{_plain(variant)}"
    limits = [limit for limit in (scenario.limit, args.limit) if limit is not None]
    one = argparse.Namespace(**vars(args))
    one.dataset, one.out = scenario.data, args.out / f"{stem}.jsonl"
    one.tiers, one.options = ",".join(suite.tiers), ",".join(scenario.options)
    one.task, one.wording, one.grader = scenario.task, scenario.wording, scenario.grader or None
    one.limit = min(limits) if limits else None
    one.group, one.feature = [], []
    one.description, one.licence = f"{scenario.name}, {variant}", ""
    return record_verb.record(one, data)


def _plain(variant: str) -> str:
    """A part of a file's name."""
    return "".join(char if char.isalnum() else "-" for char in variant)


def _perturbed(data: Dataset, variant: str) -> Dataset:
    change = perturbation(variant)
    items = tuple(
        dataclasses.replace(item, prompt=change(item.prompt, _SEED)) for item in data.items
    )
    return dataclasses.replace(
        data, items=items, sha256=sha256_bytes(f"{data.sha256} {variant} {_SEED}".encode())
    )


def _table(rows: Sequence[Cell]) -> list[str]:
    lines = [
        f"{'scenario':<16}{'variant':<16}{'tier':<10}{'n':>6}  {'right':<22}{'change':<26}"
        f"{'AUROC':>6}{'ECE':>6}{'ms':>8}{'tokens':>8}{'$':>11}"
    ]
    for row in rows:
        tier = row.summary
        lines.append(
            f"{row.scenario:<16}{row.variant:<16}{tier.name:<10}{tier.answered:>6}  "
            f"{_accuracy(tier):<22}{_change(row):<26}{_short(row.auroc):>6}{_short(row.ece):>6}"
            f"{_milliseconds(tier):>8}{_tokens(tier):>8}{tier.cost_usd or 0:>11.6f}"
        )
    return [*lines, "AUROC and ECE are of raw scores, which are not confidences."]


def _cascade_table(rows: Sequence[CascadeCell]) -> list[str]:
    return [
        f"cascade  {row.scenario}, {row.variant}: {row.weak} backed by {row.strong} · deferral "
        f"{_short(row.normalised_auc)} of oracle over chance · at best {row.best_accuracy:.3f} "
        f"with {row.best_share:.0%} escalated (in hindsight) · n = {row.n}"
        for row in rows
    ]


def _accuracy(tier: TierSummary) -> str:
    if tier.accuracy is None:
        return "–"
    low, high = tier.accuracy_ci or (None, None)
    return f"{tier.accuracy:.3f}" + (f" [{low:.3f}, {high:.3f}]" if low is not None else "")


def _change(row: Cell) -> str:
    if row.change is None:
        return ""
    low, high = row.change.interval
    return f"{row.change.difference:+.3f} [{low:+.3f}, {high:+.3f}]"


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}".replace("0.", ".", 1)


def _milliseconds(tier: TierSummary) -> str:
    return "–" if tier.mean_latency_s is None else f"{tier.mean_latency_s * 1e3:.0f}"


def _tokens(tier: TierSummary) -> str:
    if tier.mean_prompt_tokens is None:
        return "–"
    return f"{tier.mean_prompt_tokens + (tier.mean_completion_tokens or 0.0):.1f}"
