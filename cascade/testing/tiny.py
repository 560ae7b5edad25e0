"""A bundle of 150 kilobytes, built in a fraction of a second, that behaves like a real one.

Its weights are random: what it says has no meaning, but is the same on every machine. It is written
as a GGUF file and made into a bundle by ``edge.build``, as every bundle is. Needs the extra
``bundle``.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cascade.certificate import Certificate, Promise
from cascade.confidence import ConfidenceModel, Platt
from cascade.errors import InvalidInput
from cascade.policy import Policy, PolicyStore
from cascade.signing import SigningKey, TrustStore
from cascade.task import Task, generic
from cascade.testing.random_model import write_random_model
from edge.bundle import Bundle

PUBLISHER = "cascade.testing"


@dataclass(frozen=True, slots=True)
class TinyBundle:
    """A tiny bundle and what a device needs to open it.

    Arguments:
        bundle: verified.
        key: signed it. Made from the seed, so it protects nothing: pin it in tests only.
        trust: pins ``key``, and no other.
        policies: empty until ``install_policy``.
    """

    bundle: Bundle
    key: SigningKey
    trust: TrustStore
    policies: PolicyStore

    @property
    def path(self) -> Path:
        """The bundle's folder."""
        return self.bundle.path

    def install_policy(
        self, task_id: str, options: tuple[str, ...], *, threshold: float | None
    ) -> Policy:
        """Put a made-up policy into ``policies``: the confidence of an answer is its raw score.

        Nothing was certified. It makes a test's device keep answers (``threshold=0.0``), doubt them
        all (``1.0``), or escalate because nothing could be certified (``None``).

        Arguments:
            options: the task's answers.
            threshold: the lowest confidence that is kept, in [0, 1].

        Raises:
            InvalidInput: ``threshold`` is out of range, or ``task_id`` is not plain.
        """
        if threshold is not None and not 0 <= threshold <= 1:
            raise InvalidInput("threshold", f"{threshold} is not between 0 and 1")
        wording = generic(options)
        policy = Policy(
            task=Task(
                task_id,
                options,
                wording.device_prompt,
                wording.option_prefix,
                wording.cloud_prompt,
            ),
            base_digest=self.bundle.manifest.base_digest,
            adapter_digest="",
            confidence=ConfidenceModel(Platt(a=1.0, b=0.0)),
            threshold=threshold,
            certificate=None if threshold is None else _made_up(threshold),
        )
        self.policies.install(policy, self.key)
        return policy


def tiny_bundle(
    folder: Path,
    *,
    seed: int = 0,
    family: Literal["llama", "qwen2"] = "llama",
    context_tokens: int = 512,
) -> TinyBundle:
    """Build a tiny bundle under ``folder``.

    The same arguments give the same bytes, signature included. Greedy answers are made of words and
    never end by themselves: they go on to a stop string or to their full length.

    Arguments:
        folder: made if need be; must not hold a tiny bundle already.
        seed: of the weights, ≥ 0; another seed is another model with the same tokenizer.
        family: architecture of the graph.
        context_tokens: longest sequence, ≥ 1.

    Raises:
        InvalidInput: ``folder`` holds a bundle, or a number is out of range.
        CascadeError: the extra ``bundle`` is not installed.
    """
    from edge.build import build_from_gguf

    key = SigningKey(
        Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"tiny {seed}".encode()).digest())
    )
    trust = TrustStore(folder / "trust")
    trust.pin(PUBLISHER, key.public)
    with tempfile.TemporaryDirectory(prefix="cascade-tiny-") as scratch:
        gguf = Path(scratch) / "tiny.gguf"
        write_random_model(gguf, seed=seed, family=family, context_tokens=context_tokens)
        path = build_from_gguf(
            gguf,
            folder / "tiny",
            name="tiny",
            base_model=f"random weights, seed {seed}",
            licence="Apache-2.0",
            commercial_use=True,
            signing_key=key,
        )
    policies = PolicyStore(folder / "policies", trust)
    return TinyBundle(Bundle.open(path, trust), key, trust, policies)


def _made_up(threshold: float) -> Certificate:
    promise = Promise("selective_risk", 0.5, 0.0, 1.0, "clopper_pearson", 2, 0.0, 0.3, 0.25)
    return Certificate(
        promises=(promise,),
        delta=0.5,
        n=2,
        n_accepted=2,
        threshold=threshold,
        family="fixed_sequence",
        starts=(0,),
        data_digest="0" * 64,
        grid_digest="0" * 64,
        grid_size=1,
    )
