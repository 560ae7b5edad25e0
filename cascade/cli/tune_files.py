"""What ``cascade tune`` reads and writes: parts of records, policies and their signatures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from cascade import home
from cascade.cli.records import shares
from cascade.errors import InvalidInput
from cascade.files import write_whole
from cascade.policy import Policy, PolicyStore
from cascade.records import Header, RecordSet, check_disjoint, load, split
from cascade.signing import SigningKey, TrustStore

PARTS: Final = ("develop", "certify", "test")
_PUBLISHER: Final = "local"


def read_parts(
    words: Sequence[str], split_by: str, seed: str, *, allow_leak: bool
) -> dict[str, RecordSet]:
    """The parts, from one file that is split or from files that are parts; test may be missing.

    Raises:
        NotFound: there is no such file.
        InvalidInput: words that name no parts, files that do not belong together, or leakage.
    """
    named = [word.partition("=") for word in words]
    if not all(equals and name in PARTS for name, equals, _ in named):
        if len(words) > 1:
            raise InvalidInput(
                "records", "give one file, or develop=FILE certify=FILE test=FILE by these names"
            )
        wanted = shares(split_by, field="split")
        _check_names("split", wanted)
        return split(load(Path(words[0])), wanted, seed=seed)
    _check_names("records", [name for name, _, _ in named])
    parts = {name: load(Path(file)) for name, _, file in named}
    for name, part in parts.items():
        _check_alike(parts["develop"].header, part.header, name)
    if not allow_leak:
        check_disjoint(parts)
    return parts


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


def _check_names(field: str, words: Iterable[str]) -> None:
    names = list(words)
    for name in names:
        if name not in PARTS:
            raise InvalidInput(field, f"names {name!r}; the parts are {', '.join(PARTS)}")
    if len(set(names)) < len(names):
        raise InvalidInput(field, "names a part twice")
    for name in ("develop", "certify"):
        if name not in names:
            raise InvalidInput(field, f"names no part {name}; it is needed")


def _check_alike(develop: Header, other: Header, name: str) -> None:
    for field in ("options", "wording", "max_tokens", "tiers"):
        if getattr(develop, field) != getattr(other, field):
            raise InvalidInput(
                "records", f"{name} has another {field} than develop; record both alike"
            )
