"""The signed ladders that a cluster follows: read and checked once, found by a request's task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cascade.errors import CascadeError
from cascade.files import sha256_bytes
from cascade.ladder import Heard, LadderPolicy
from cascade.signing import TrustStore
from cascade.wire import OpenRequest
from cloud.config import ClusterConfig, TierConfig
from cloud.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Followed:
    """A ladder that a request climbs.

    Arguments:
        device: the tier that stands for the device, or ``None`` where no device takes part.
        said: what the device said; nothing where it followed another ladder or none, or where its
            answer is not to be compared.
    """

    policy: LadderPolicy
    device: str | None
    said: Heard


class Ladders:
    """The ladders of one cluster, by task.

    Raises:
        ConfigError: one does not fit the tiers, or two are for the same task.
    """

    def __init__(self, policies: Sequence[LadderPolicy], tiers: Sequence[TierConfig]) -> None:
        self._policies: dict[str, tuple[LadderPolicy, str]] = {}
        for policy in policies:
            _check_fits(policy, {tier.name: tier for tier in tiers})
            if policy.task_id in self._policies:
                raise ConfigError(f"ladders: two are for the task {policy.task_id}; keep one")
            self._policies[policy.task_id] = (policy, sha256_bytes(policy.to_bytes()))

    def find(self, request: OpenRequest) -> Followed | None:
        """The ladder that ``request`` climbs; ``None`` where there is none for its task, or where
        it asks about other answers than the ladder was tuned for, or for an adapter."""
        policy, digest = self._policies.get(request.task_id, (None, ""))
        if policy is None or request.adapter:
            return None
        options = policy.wording.options if policy.wording else ()
        if set(options) != set(request.options):
            return None
        device = _device(policy)
        report = request.report
        same = device is not None and report.ladder_digest == digest and report.answer_sha256
        said = Heard(report.answer_sha256, report.raw_score) if same else Heard()
        return Followed(policy, device, said)


def load_ladders(config: ClusterConfig, trust: TrustStore) -> tuple[LadderPolicy, ...]:
    """Read the files that ``config`` names.

    Raises:
        ConfigError: one is missing, altered, of a publisher that is not pinned, no ladder, or not
            for these tiers; it is named.
    """
    found = []
    for path in config.ladders:
        try:
            data = path.read_bytes()
            trust.verify(data, path.with_suffix(".sig").read_bytes(), what=str(path))
            found.append(LadderPolicy.from_bytes(data))
        except OSError as problem:
            raise ConfigError(f"ladders: {problem.filename or path} cannot be read") from None
        except CascadeError as problem:
            raise ConfigError(f"ladders: {path}: {problem}") from None
    Ladders(found, config.tiers)
    return tuple(found)


def _device(policy: LadderPolicy) -> str | None:
    first = policy.ladder.tiers[0]
    return next((t.name for t in policy.tiers if t.name == first and t.kind == "device"), None)


def _check_fits(policy: LadderPolicy, tiers: Mapping[str, TierConfig]) -> None:
    task = policy.task_id
    if not task:
        raise ConfigError("ladders: one is for no task; tune it with --task ID")
    asked = policy.ladder.tiers[0 if _device(policy) is None else 1 :]
    if not asked:
        raise ConfigError(f"ladders: the one for {task} asks no tier")
    for info in policy.tiers:
        if info.name not in asked:
            continue
        tier = tiers.get(info.name)
        if tier is None:
            raise ConfigError(
                f"ladders: the one for {task} asks {info.name}; tiers: {', '.join(tiers)}"
            )
        if tier.model_name != info.model:
            raise ConfigError(
                f"ladders: the one for {task} was tuned with {info.model} as {info.name}, "
                f"which is {tier.model_name} here; tune it again"
            )
