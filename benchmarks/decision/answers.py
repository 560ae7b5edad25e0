"""What the device answered, as text. Records keep free answers as hashes alone; peers that judge an
answer by its words need the words.

They are our own model's outputs, and lie beside the records in ``NAME.answers.json``; ``python -m
benchmarks.decision.answers RECORDS FILE`` writes that from a run of ``cascade record --text
keep`` over the same rows. Each is held against the hash that the record has.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from cascade.errors import CascadeError, InvalidInput
from cascade.files import sha256_bytes, write_whole
from cascade.records import RecordSet, load


def device_answers(records: RecordSet, free: Mapping[str, str]) -> dict[str, str]:
    """The answer of each record's lowest tier, by id.

    Arguments:
        free: answers that the records keep as hashes, by id.

    Raises:
        InvalidInput: one is missing, or is another one than was recorded.
    """
    device = records.tiers[0]
    kept, hashes = records.texts(device, "answer"), records.texts(device, "answer_sha256")
    answers = {}
    for name, text, sha256 in zip(records.ids, kept, hashes, strict=True):
        answers[name] = free.get(name, "") if sha256 else text
        if sha256 and sha256_bytes(answers[name].encode()) != sha256:
            raise InvalidInput("answers", f"has none, or another than was recorded, for {name!r}")
    return answers


def free_answers(path: Path) -> dict[str, str]:
    """Free answers by id, as written by this module; none where there is no such file."""
    if not path.exists():
        return {}
    answers: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return answers


def write_answers(records: RecordSet, path: Path) -> None:
    """Write the answers of the lowest tier, by id, one a line."""
    answers = records.texts(records.tiers[0], "answer")
    content = json.dumps(dict(zip(records.ids, answers, strict=True)), ensure_ascii=False, indent=0)
    write_whole(path, f"{content}\n".encode())


def main(arguments: list[str] | None = None) -> int:
    """Write the answers of a record file; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decision.answers")
    parser.add_argument("records", type=Path, metavar="RECORDS")
    parser.add_argument("file", type=Path, metavar="FILE")
    args = parser.parse_args(arguments)
    try:
        write_answers(load(args.records), args.file)
    except CascadeError as problem:
        print(f"answers: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
