"""Certificates for each task, language or device class, all of which hold at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascade.binomial import check_level
from cascade.certificate import Certificate, GroupCertificate, Refusal
from cascade.certify.families import Family, FixedSequence
from cascade.certify.labels import rows_needed
from cascade.certify.search import certify_targets
from cascade.certify.targets import Target
from cascade.errors import InfeasibleTarget, InvalidInput
from cascade.rows import unit_floats


def certify_groups(
    confidence: ArrayLike,
    targets: Sequence[Target],
    groups: Sequence[str],
    *,
    delta: float,
    grids: Mapping[str, ArrayLike],
    split: Mapping[str, float] | None = None,
    family: Family | None = None,
) -> GroupCertificate:
    """A threshold for each group, such that all promises of all groups hold at once.

    Delta is divided among the groups (Bonferroni). A group so small that it could not pass even
    with perfect answers is set aside before that and takes no share; the decision rests on the
    number of its rows alone, not on a label, so it costs nothing. A group whose target is
    infeasible is refused with the labels that it would need, and everything of it escalates; the
    others keep their certificates.

    Arguments:
        confidence: confidences of the certify rows of all groups, in [0, 1], shape ``[rows]``.
        targets: as for ``certify_targets``, over all rows; each is applied to each group's rows.
        groups: the group of each row, ``[rows]`` strings.
        delta: tolerated probability that any promise of any group fails, in (0, 1).
        grids: thresholds in the order of test for every group that occurs, fixed before these rows
            were seen; the same for all or not. Groups without rows are refused.
        split: each group's delta, fixed before these rows were seen, summing to at most ``delta``;
            by default equal shares for the groups that are not too small.
        family: ``FixedSequence()`` by default.

    Raises:
        InvalidInput: bad shapes, NaN, numbers out of range, or a group without a grid or a share.
        CascadeError: scipy is not installed.
    """
    floats = unit_floats("confidence", confidence)
    check_level("delta", delta)
    tested = family if family is not None else FixedSequence()
    members = _members(groups, len(floats), grids)
    deltas = _split(split, members, targets, delta)
    certificates: dict[str, Certificate] = {}
    refused: dict[str, Refusal] = {}
    for name, rows in members.items():
        own = [target.take(rows) for target in targets]
        share = deltas.get(name)
        if share is None:
            refused[name] = _too_few(own, len(rows), delta)
            continue
        try:
            certificates[name] = certify_targets(
                floats[rows], own, delta=share, grid=grids[name], family=tested
            )
        except InfeasibleTarget as problem:
            refused[name] = Refusal(str(problem), problem.labels_needed)
    return GroupCertificate(float(delta), certificates, refused)


def _members(
    groups: Sequence[str], rows: int, grids: Mapping[str, ArrayLike]
) -> dict[str, NDArray[np.int64]]:
    """Row numbers of every group that has a grid, by name in alphabetical order."""
    names = np.asarray(groups, dtype=np.str_)
    if names.shape != (rows,):
        raise InvalidInput("groups", f"must hold {rows} names, one a row")
    for name in sorted(set(names.tolist()) - grids.keys()):
        raise InvalidInput("grids", f"has none for the group {name!r}")
    return {name: np.flatnonzero(names == name) for name in sorted(grids)}


def _split(
    split: Mapping[str, float] | None,
    members: Mapping[str, NDArray[np.int64]],
    targets: Sequence[Target],
    delta: float,
) -> dict[str, float]:
    """Each group's delta; a group that is not in here is too small."""
    large = {
        name
        for name, rows in members.items()
        if all((_fewest(target, delta) or 0) <= len(rows) for target in targets) and len(rows)
    }
    if split is None:
        return {name: delta / len(large) for name in large}
    if missing := members.keys() - split.keys():
        raise InvalidInput("split", f"has no share for the group {min(missing)!r}")
    for name, share in split.items():
        check_level(f"split[{name!r}]", share)
    if sum(split.values()) > delta * (1 + 1e-9):
        raise InvalidInput("split", f"sums to {sum(split.values()):g}, above delta = {delta:g}")
    return {name: float(split[name]) for name in large}


def _fewest(target: Target, delta: float) -> int | None:
    """Rows below which a target cannot pass, whatever is observed; None where that is not known."""
    if target.method == "betting":
        return None
    return rows_needed(target, 0.0, delta)


def _too_few(targets: Sequence[Target], rows: int, delta: float) -> Refusal:
    fewest = max((_fewest(target, delta) or 1) for target in targets)
    return Refusal(
        f"{rows} rows are too few: with fewer than {fewest} no outcome could certify this target",
        fewest,
    )
