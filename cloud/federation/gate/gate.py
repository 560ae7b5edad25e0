"""The gate that looks at behaviour: candidates are examined in a process of their own, and what
came of it is written down with their policies, signed.

A crash, a time-out or data that cannot be used says nothing of a candidate: it stays undecided with
the reason, and is never let through.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from cascade.errors import CascadeError
from cascade.files import sha256_bytes, write_whole
from cascade.policy import Policy
from cascade.signing import SigningKey, TrustStore
from cloud.federation.database import Database
from cloud.federation.gate import judgements
from cloud.federation.gate.config import GateConfig
from cloud.federation.gate.evaluation import Examination, Findings, examine
from cloud.federation.gate.judgements import Judgement
from cloud.federation.rounds import Round
from cloud.federation.seams import Verdict
from cloud.registry import Registry

_log = logging.getLogger("ray.serve")

_PAUSE_S: Final = 60.0
_PUBLISHER: Final = "coordinator"

Examiner = Callable[[Examination], Awaitable[Findings]]
"""Carries an examination out elsewhere. Whatever it raises leaves the candidate undecided."""


class BehaviourGate:
    """Judges by examination; see ``cloud.federation.seams.Gate``.

    Arguments:
        first: digest of the adapter that the first round started from.
        key: signs policies.
        folder: where bundles and records are kept between examinations.
        trust: folder of the keys that may have signed the bundle.
        examiner: by default a Ray task on this node.
        now: a clock that only goes forward, seconds.
    """

    def __init__(
        self,
        config: GateConfig,
        database: Database,
        registry: Registry,
        key: SigningKey,
        *,
        first: str,
        folder: Path,
        trust: Path,
        examiner: Examiner | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._database = database
        self._registry = registry
        self._key = key
        self._first = first
        self._folder = folder
        self._trust = trust
        self._examiner = examiner or RayExaminer()
        self._now = now
        self._under_way: dict[str, asyncio.Task[Findings]] = {}
        self._failures: dict[str, _Failed] = {}

    async def judge(self, candidate: Round) -> tuple[Verdict, str]:
        """See ``Gate``. Never waits for an examination: asked again, it tells what came of it."""
        digest = candidate.candidate_digest
        if digest is None:
            return "undecided", "there is no candidate"
        known = await self._database.do(lambda tx: judgements.of(tx, digest))
        if known is not None:
            return known.verdict, known.findings.why
        task = self._under_way.get(digest)
        if task is None:
            failed = self._failures.get(digest)
            if failed is not None and not failed.again(self._config.attempts, self._now()):
                return "undecided", failed.told(self._config.attempts)
            self._under_way[digest] = asyncio.create_task(self._examined(candidate, digest))
            return "undecided", "is being examined"
        if not task.done():
            return "undecided", "is being examined"
        del self._under_way[digest]
        try:
            findings = task.result()
        except (Exception, asyncio.CancelledError) as problem:
            return "undecided", self._failed(digest, problem)
        self._failures.pop(digest, None)
        judgement = await asyncio.to_thread(self._judgement, candidate, digest, findings)
        await self._database.do(lambda tx: judgements.put(tx, judgement))
        return judgement.verdict, findings.why

    async def close(self) -> None:
        """End what is under way; it goes on with the next coordinator."""
        tasks, self._under_way = list(self._under_way.values()), {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _examined(self, candidate: Round, digest: str) -> Findings:
        examination = Examination(
            self._config,
            digest,
            tuple(dict.fromkeys((candidate.adapter_digest, self._first))),
            self._registry.url,
            self._folder,
            self._trust,
        )
        async with asyncio.timeout(self._config.timeout_s):
            return await self._examiner(examination)

    def _failed(self, digest: str, problem: BaseException) -> str:
        before = self._failures.get(digest)
        count = 1 if before is None else before.count + 1
        failed = self._failures[digest] = _Failed(
            count, self._now() + _PAUSE_S * count, self._reason(problem)
        )
        told = failed.told(self._config.attempts)
        _log.warning("the candidate %s… %s", digest[:12], told)
        return told

    def _reason(self, problem: BaseException) -> str:
        if isinstance(problem, TimeoutError):
            return f"took longer than {self._config.timeout_s:g} s"
        if isinstance(problem, CascadeError):
            return str(problem)
        said = str(problem).splitlines()
        return f"crashed: {type(problem).__name__}" + (f": {said[0]}" if said else "")

    def _judgement(self, candidate: Round, digest: str, findings: Findings) -> Judgement:
        verdict: Verdict = "approved" if findings.passed else "rejected"
        policies: tuple[str, ...] = ()
        if findings.passed:
            policies = tuple(
                publish_policy(self._registry, self._key, data) for data in findings.policies
            )
        return Judgement(candidate.number, digest, verdict, policies, findings)


def publish_policy(registry: Registry, key: SigningKey, data: bytes) -> str:
    """Sign a policy and put it into the registry, in no channel; returns its digest.

    Raises:
        InvalidInput: it is no policy.
        ClusterError: the registry cannot be written.
    """
    task = Policy.from_bytes(data).task.task_id
    with tempfile.TemporaryDirectory(prefix="cascade-policy-") as folder:
        trust = TrustStore(Path(folder) / "trust")
        trust.pin(_PUBLISHER, key.public)
        path = Path(folder) / f"{task}.json"
        write_whole(path, data)
        write_whole(path.with_suffix(".sig"), key.sign(data))
        registry.publish(path, trust)
    return sha256_bytes(data)


class RayExaminer:
    """Examines in a Ray task on this node, where the files of the configuration are. The gateway
    and the coordinator stay responsive whatever becomes of it."""

    async def __call__(self, examination: Examination) -> Findings:
        """Examine; a cancelled call kills the process."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(
            node_id=ray.get_runtime_context().get_node_id(), soft=False
        )
        # No reservation: on a node whose tiers hold every CPU it would never start.
        task = ray.remote(num_cpus=0, max_retries=0, max_calls=1)(_examine)
        reference = task.options(scheduling_strategy=here).remote(examination)
        try:
            told = await reference
        except BaseException:
            ray.cancel(reference, force=True)
            raise
        if isinstance(told, str):
            raise CascadeError(told)
        return Findings.from_bytes(told)


def _examine(examination: Examination) -> bytes | str:
    """In the process of the task: the findings, or in a line why there are none. Ray's own way with
    errors would lose the line among its traceback."""
    try:
        return examine(examination).to_bytes()
    except (CascadeError, OSError) as problem:
        return str(problem)
    except Exception as problem:
        _log.exception("the examination crashed")
        return f"crashed: {type(problem).__name__}: {problem}"


class _Failed:
    """Examinations of a candidate that came to nothing."""

    def __init__(self, count: int, next_at: float, reason: str) -> None:
        self.count = count
        self._next_at = next_at
        self._reason = reason

    def again(self, attempts: int, now: float) -> bool:
        return self.count < attempts and now >= self._next_at

    def told(self, attempts: int) -> str:
        then = "will be again" if self.count < attempts else "an operator has to decide"
        return f"could not be examined ({self.count} of {attempts}): {self._reason}; {then}"
