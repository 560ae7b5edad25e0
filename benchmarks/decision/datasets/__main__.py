"""``python -m benchmarks.decision.datasets NAME FOLDER``: write a data set for ``cascade record``.

Two files come into FOLDER: ``NAME.jsonl`` with the rows, and for a closed set
``NAME.task.json`` with its wording. The command that records them is printed. FOLDER should not be
in a repository: the rows are other people's texts.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

from benchmarks.decision.datasets import DATASETS, dataset
from benchmarks.decision.datasets.dataset import Dataset, Row
from cascade.errors import CascadeError
from cascade.files import write_whole


def main(arguments: list[str] | None = None) -> int:
    """Write, and say what to do next; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decision.datasets")
    parser.add_argument("name", choices=list(DATASETS))
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    args = parser.parse_args(arguments)
    try:
        print(shlex.join(write(dataset(args.name), args.folder)))
    except CascadeError as problem:
        print(f"datasets: {problem}", file=sys.stderr)
        return 1
    return 0


def write(data: Dataset, folder: Path) -> list[str]:
    """Write the files of a data set. Returns the command that records it."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = folder / f"{data.name}.jsonl"
    write_whole(rows, "".join(f"{_line(row)}\n" for row in data.rows()).encode())
    command = ["cascade", "record", str(rows), "--tiers", "device,tier1", "--cloud"]
    command += ["--out", str(folder / f"{data.name}.parquet"), "--task", data.name]
    if data.wording is not None:
        wording = folder / f"{data.name}.task.json"
        content = json.dumps(data.wording.to_json(), ensure_ascii=False, indent=1)
        write_whole(wording, f"{content}\n".encode())
        command += ["--wording", str(wording)]
    if data.group:
        command += ["--group", data.group]
    command += ["--grader", data.grader, "--max-tokens", str(data.max_tokens)]
    return [*command, "--description", data.description, "--licence", data.licence]


def _line(row: Row) -> str:
    content = {"id": row.id, "document": row.document, "prompt": row.prompt}
    return json.dumps(content | {"reference": row.reference} | dict(row.groups), ensure_ascii=False)


if __name__ == "__main__":
    sys.exit(main())
