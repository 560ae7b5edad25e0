"""A bundle of the registry, run here with adapters of rounds; and what each made of each row, kept.

Records are kept by what they are of (bundle, adapter, rows, wording), so that an adapter is never
asked twice: a parent was a candidate once, and an examination that was killed goes on by file.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from cascade.errors import InvalidInput, NotFound, Tampered
from cascade.files import sha256_file, write_whole
from cascade.graders import grader
from cascade.records import Header, Record, RecordSet
from cascade.records.ask import DeviceTier
from cascade.records.dataset import Dataset, Item
from cascade.records.journal import Journal
from cascade.records.run import Plan, run
from cascade.signing import TrustStore
from cascade.task import Task
from cloud.federation.adapters import StartingAdapter, parts_of
from cloud.registry import Registry
from edge import Adapter, Bundle, OnnxModel
from edge.bundle import MANIFEST, SIGNATURE


def fetched(registry: Registry, digest: str, folder: Path, trust: TrustStore) -> Bundle:
    """A bundle of the registry, as files under ``folder``.

    Raises:
        NotFound: the registry does not have it.
        InvalidInput: it is no bundle.
        UnknownPublisher, Tampered, BundleError: it must not or cannot be used.
    """
    final = folder / digest
    if not (final / SIGNATURE).is_file():
        published = registry.artifact(digest)
        if published.artifact.kind != "bundle":
            raise InvalidInput("bundle", f"{digest[:12]}… is a {published.artifact.kind}")
        aside = folder / f".{digest}.{secrets.token_hex(4)}"
        try:
            for name, (sha256, _) in published.files.items():
                path = aside / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as file:
                    for chunk in registry.chunks(sha256, 0):
                        file.write(chunk)
                if sha256_file(path) != sha256:
                    raise Tampered(name, "is not the file that its publisher signed")
            write_whole(aside / MANIFEST, published.manifest)
            write_whole(aside / SIGNATURE, published.signature)
            if not final.exists():
                os.replace(aside, final)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return Bundle.open(final, trust)


class Subject:
    """The loaded bundle, with one adapter at a time.

    Arguments:
        kept: folder of records.
    """

    def __init__(self, bundle: Bundle, kept: Path, *, threads: int) -> None:
        self.model = OnnxModel(bundle, threads=threads)
        self._kept = kept

    def wear(self, adapter: StartingAdapter) -> None:
        """Apply an adapter; another one is let go.

        Raises:
            BundleError: it does not fit.
        """
        if self.model.info.adapter_digest == adapter.digest:
            return
        for digest in self.model.adapters:
            self.model.unload_adapter(digest)
        self.model.use_adapter(self.model.load_adapter(loadable(adapter)))

    async def records(
        self, adapter: StartingAdapter, rows: Dataset, task: Task, *, grade: str, max_tokens: int
    ) -> RecordSet:
        """What an adapter makes of rows.

        Arguments:
            task: its wording; one without options asks for free text.
            grade: a grader's spec; empty for rows without references.

        Raises:
            InvalidInput: a row cannot be graded, or a tier would have to judge.
        """
        self.wear(adapter)
        closed = task if task.options else None
        tier = DeviceTier(self.model, signals=False)
        plan = Plan(
            tiers=(tier,),
            task=closed,
            grader=grader(grade) if grade else None,
            max_tokens=max_tokens,
        )
        if plan.grader is not None and plan.grader.judge:
            raise InvalidInput("grader", f"{grade} asks a tier, and here none may be asked")
        _check(plan, rows.items)
        header = Header(
            tiers=(tier.info,),
            task_id=task.task_id,
            options=task.options,
            wording=closed,
            max_tokens=None if closed else max_tokens,
            grader=grade,
            data_sha256=rows.sha256,
        )
        with Journal(self._kept / f"{_key(header)}.jsonl", header) as journal:
            fresh: list[Record] = []
            await run(plan, rows.items, done=journal.done, jobs=1, on_record=fresh.append)
            # A row takes milliseconds; forcing each to the disk would take longer.
            journal.done |= {record.id: record for record in fresh}
            written = journal.finish([item.id for item in rows.items], {})
        if written is None:
            raise NotFound("there are no rows")
        return written


def loadable(adapter: StartingAdapter) -> Adapter:
    """An adapter of the registry, whose signature was checked when it was published."""
    pairs, head = parts_of(adapter.tensors, adapter.manifest.head)
    return Adapter(adapter.manifest, adapter.digest, pairs, head)


def _check(plan: Plan, items: Sequence[Item]) -> None:
    for item in items:
        if item.options and plan.task is not None:
            raise InvalidInput(f"{item.where}: options", "are those of the wording; leave them out")
        plan.check(item)


def _key(header: Header) -> str:
    """What the records are of, but for when they were made."""
    value = header.to_json()
    del value["created"]
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
