"""What ``cascade tune`` reads and writes: parts of records, policies and their signatures."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from cascade import home
from cascade.cli.records import shares
from cascade.errors import InvalidInput
from cascade.files import write_whole
from cascade.pair import Pair, pair
from cascade.policy import Policy, PolicyStore
from cascade.records import Header, RecordSet, check_disjoint, load, split
from cascade.signing import SigningKey, TrustStore

PARTS: Final = ("develop", "certify", "test")
STOP: Final = "stop"  # the part of an early stop
_PUBLISHER: Final = "local"


def read_parts(
    words: Sequence[str],
    split_by: str,
    seed: str,
    *,
    allow_leak: bool,
    parts: tuple[str, ...] = PARTS,
    needed: tuple[str, ...] = ("develop", "certify"),
) -> dict[str, RecordSet]:
    """The parts, from one file that is split or from files that are parts.

    Arguments:
        parts: names that there may be; ``needed``: those that there must be.

    Raises:
        NotFound: there is no such file.
        InvalidInput: words that name no parts, files that do not belong together, or leakage.
    """
    named = [word.partition("=") for word in words]
    if not all(equals and name in (*PARTS, STOP) for name, equals, _ in named):
        if len(words) > 1:
            raise InvalidInput(
                "records", "give one file, or develop=FILE certify=FILE test=FILE by these names"
            )
        wanted = shares(split_by, field="split")
        _check_names("split", wanted, parts, needed)
        return split(load(Path(words[0])), wanted, seed=seed)
    _check_names("records", [name for name, _, _ in named], parts, needed)
    read = {name: load(Path(file)) for name, _, file in named}
    for name, part in read.items():
        _check_alike(read["develop"].header, part.header, name)
    if not allow_leak:
        check_disjoint(read)
    return read


def part_pair(name: str, part: RecordSet, args: argparse.Namespace, *, alone: bool) -> Pair:
    """The two tiers of a part; what is wrong with it is said with its name.

    Raises:
        NotFound, InvalidInput: as ``cascade.pair.pair``.
    """
    try:
        return pair(part, local=args.tier, cloud=args.cloud_tier, alone=alone)
    except InvalidInput as problem:
        raise InvalidInput(f"{name}.{problem.field}", problem.problem) from None


def sign(policy: bytes, out: Path, key: Path | None) -> str:
    """Write a policy and, beside it, its signature; who signed, as the start of the key's id."""
    signer = signing_key(key)
    write_whole(out, policy)
    write_whole(out.with_suffix(".sig"), signer.sign(policy))
    return signer.public.key_id[:16]


def install(policy: Policy, key: Path | None) -> Path:
    """Sign a policy, or a ladder's device rung, and put it where this machine's devices look.

    Raises:
        UnknownPublisher: by that key; no device would take it.
    """
    trust, signer = TrustStore(home.trust_dir()), signing_key(key)
    data = policy.to_bytes()
    trust.verify(data, signer.sign(data), what=f"policy {policy.task.task_id}")
    return PolicyStore(home.policies_dir(), trust).install(policy, signer)


def signing_key(key: Path | None) -> SigningKey:
    """The key of a file, or this machine's own: made where there is none, and pinned here."""
    if key is not None:
        return SigningKey.load(key)
    signer = SigningKey.load_or_create(home.keys_dir() / "publisher.key")
    TrustStore(home.trust_dir()).pin(_PUBLISHER, signer.public)
    return signer


def refuse_existing(out: Path | None, *, force: bool) -> None:
    """Raise ``InvalidInput`` where a file is there that is not to be replaced."""
    if out is not None and out.exists() and not force:
        raise InvalidInput("out", f"{out} is there already; --force replaces it")


def _check_names(
    field: str, words: Iterable[str], parts: tuple[str, ...], needed: tuple[str, ...]
) -> None:
    names = list(words)
    for name in names:
        if name == STOP and STOP not in parts:
            raise InvalidInput(field, "names a part stop, which is for --early-stop alone")
        if name not in parts:
            raise InvalidInput(field, f"names {name!r}; the parts are {', '.join(parts)}")
    if len(set(names)) < len(names):
        raise InvalidInput(field, "names a part twice")
    for name in needed:
        if name not in names:
            raise InvalidInput(field, f"names no part {name}; it is needed")


def _check_alike(develop: Header, other: Header, name: str) -> None:
    for field in ("options", "wording", "max_tokens", "tiers"):
        if getattr(develop, field) != getattr(other, field):
            raise InvalidInput(
                "records", f"{name} has another {field} than develop; record both alike"
            )
