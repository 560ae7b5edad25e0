"""The demo from beginning to end: set up, develop, certify, three arms on the test part, report.

Every number comes from a real answer of a real model; what is fixed beforehand is in ``setting``.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from cascade import home, metrics
from cascade.calibrate import fit_platt
from cascade.certify import certify, plan_grid
from cascade.cli.bundle import build_bundle
from cascade.cli.cluster import prepare_config
from cascade.cli.demo.arms import ARMS, Arm, Outcome, run_arm
from cascade.cli.demo.data import NEUTRAL_BELOW, Corpus, load_sentences
from cascade.cli.demo.device_rows import DeviceRow, answer_part
from cascade.cli.demo.parts import Parts, split
from cascade.cli.demo.results import (
    ArmResult,
    CertificateResult,
    Data,
    DemoResult,
    Phase,
    Price,
    Prices,
    Sample,
)
from cascade.cli.demo.setting import ALPHA, DELTA, DEVICE_MODEL, SENTENCES, SIZES, TASK
from cascade.cli.models import pull_with_progress
from cascade.cli.progress import ProgressLine
from cascade.errors import BundleError, InfeasibleTarget, NotFound
from cascade.policy import Policy, PolicyStore
from cascade.score_reference import ScoreReference
from cascade.signing import SigningKey, TrustStore
from cascade.wire import ClientProfile

if TYPE_CHECKING:
    from cloud import ClusterConfig
    from edge import Bundle

_SAMPLES = 8


def run_demo() -> DemoResult:
    """Run everything and return what was found. The cluster is stopped however this ends, unless
    it was running before."""
    clock = _Clock()
    with clock.phase("models"):
        config = prepare_config(None)
        pull_with_progress(DEVICE_MODEL)
        corpus = load_sentences(pull_with_progress(SENTENCES))
        parts = split(corpus.sentences, SIZES)
    with clock.phase("bundle"):
        bundle = _bundle()
    with _cluster(config, clock) as profile:
        with clock.phase("develop"):
            develop = _answer("develop", parts, bundle)
        with clock.phase("certify"):
            rows = _answer("certify", parts, bundle)
            policy, certificate = _certify(develop, rows, bundle)
            trust = TrustStore(home.trust_dir())
            policies = PolicyStore(home.policies_dir(), trust)
            policies.install(policy, _publisher())
        outcomes = _test(parts, bundle, policies, profile, clock)
    return _result(
        outcomes,
        certificate=certificate,
        config=config,
        corpus=corpus,
        parts=parts,
        bundle=bundle,
        clock=clock,
    )


@dataclass(slots=True)
class _Clock:
    phases: list[Phase] = field(default_factory=list)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.phases.append(Phase(name, time.perf_counter() - started))


def _bundle() -> Bundle:
    """The default bundle; built anew where it is missing or does not verify."""
    from edge import DEFAULT_BUNDLE, Bundle

    trust = TrustStore(home.trust_dir())
    path = home.bundles_dir() / DEFAULT_BUNDLE
    try:
        return Bundle.open(path, trust)
    except (NotFound, BundleError):
        build_bundle(DEVICE_MODEL, force=True)
        return Bundle.open(path, trust)


@contextmanager
def _cluster(config: ClusterConfig, clock: _Clock) -> Iterator[ClientProfile]:
    """A local cluster for the time of the demo, or the one that runs already."""
    import cloud

    if cloud.status().running:
        yield ClientProfile.load()
        return
    line = ProgressLine("cluster")
    try:
        with clock.phase("cluster up"):
            cloud.up_detached(config, on_progress=line.note)
    except BaseException:
        line.abandon()
        raise
    profile = ClientProfile.load()
    line.done(f"ready at {profile.address}")
    try:
        yield profile
    finally:
        line = ProgressLine("cluster")
        line.note("stopping")
        with clock.phase("cluster down"):
            cloud.down()
        line.done("stopped")


def _answer(
    name: Literal["develop", "certify"], parts: Parts, bundle: Bundle
) -> tuple[DeviceRow, ...]:
    sentences = getattr(parts, name)
    line = ProgressLine(f"{name}: device answers", len(sentences))
    try:
        rows = answer_part(name, sentences, TASK, bundle, line.update)
    except BaseException:
        line.abandon()
        raise
    line.done(f"{np.mean([row.correct for row in rows]):.1%} of {len(rows)} right")
    return rows


def _certify(
    develop: Sequence[DeviceRow], rows: Sequence[DeviceRow], bundle: Bundle
) -> tuple[Policy, CertificateResult]:
    """Calibrate and plan on develop, certify on certify; an infeasible target escalates all."""
    scores, correct = _arrays(develop)
    confidence = fit_platt(scores, correct)
    grid = plan_grid(confidence.batch(scores), correct, rows=len(rows), alpha=ALPHA, delta=DELTA)
    certify_scores, certify_correct = _arrays(rows)
    try:
        certificate = certify(
            confidence.batch(certify_scores), certify_correct, alpha=ALPHA, delta=DELTA, grid=grid
        )
    except InfeasibleTarget as problem:
        certificate, labels_needed = None, problem.labels_needed
    else:
        labels_needed = None
    policy = Policy(
        task=TASK,
        base_digest=bundle.manifest.base_digest,
        adapter_digest="",
        confidence=confidence,
        threshold=certificate.threshold if certificate else None,
        certificate=certificate,
        scores=ScoreReference.of(certify_scores),
    )
    return policy, CertificateResult(
        alpha=ALPHA,
        delta=DELTA,
        n=len(rows),
        feasible=certificate is not None,
        coverage=certificate.coverage if certificate else 0.0,
        threshold=policy.threshold,
        labels_needed=labels_needed,
        test_risk=None,
        test_risk_ci=None,
        test_accepted=0,
    )


def _test(
    parts: Parts,
    bundle: Bundle,
    policies: PolicyStore,
    profile: ClientProfile,
    clock: _Clock,
) -> dict[Arm, tuple[Outcome, ...]]:
    from edge import OnnxModel

    model = OnnxModel(bundle)
    outcomes: dict[Arm, tuple[Outcome, ...]] = {}
    for arm in ARMS:
        line = ProgressLine(
            f"test: {arm} only" if arm != "cascade" else "test: cascade", len(parts.test)
        )
        with clock.phase(f"test: {arm}"):
            try:
                outcomes[arm] = run_arm(
                    arm,
                    parts.test,
                    task=TASK,
                    model=model,
                    policies=policies,
                    profile=profile,
                    on_done=line.update,
                )
            except BaseException:
                line.abandon()
                raise
        line.done()
    return outcomes


def _result(
    outcomes: dict[Arm, tuple[Outcome, ...]],
    *,
    certificate: CertificateResult,
    config: ClusterConfig,
    corpus: Corpus,
    parts: Parts,
    bundle: Bundle,
    clock: _Clock,
) -> DemoResult:
    right = {arm: np.array([o.correct for o in rows]) for arm, rows in outcomes.items()}
    confidences = np.array([o.answer.device_confidence for o in outcomes["device"]], np.float64)
    wrong_cloud = int(np.sum(~right["cloud"]))
    return DemoResult(
        device=_arm(outcomes["device"]),
        cascade=_arm(outcomes["cascade"]),
        cloud=_arm(outcomes["cloud"]),
        difference=metrics.paired_difference(right["cascade"], right["device"]),
        certificate=_tested(certificate, outcomes["cascade"]),
        cloud_error=wrong_cloud / len(parts.test),
        cloud_error_ci=metrics.wilson_interval(wrong_cloud, len(parts.test)),
        curve=metrics.deferral_curve(confidences, right["device"], right["cloud"]),
        calibration_ece=metrics.ece(confidences, right["device"]),
        device_model=bundle.manifest.name,
        cloud_model=outcomes["cloud"][0].answer.model,
        data=Data(
            source="vaderSentiment 3.3.2",
            develop=len(parts.develop),
            certify=len(parts.certify),
            test=len(parts.test),
            neutral_dropped=corpus.neutral,
            neutral_below=NEUTRAL_BELOW,
        ),
        prices=Prices(
            label=config.tiers[0].price.label,
            tiers=tuple(
                Price(
                    tier.name,
                    tier.price.input_usd_per_million_tokens,
                    tier.price.output_usd_per_million_tokens,
                )
                for tier in config.tiers
            ),
        ),
        samples=_samples(outcomes["cascade"]),
        phases=tuple(clock.phases),
    )


def _arm(rows: Sequence[Outcome]) -> ArmResult:
    answers = [row.answer for row in rows]
    right = sum(row.correct for row in rows)
    milliseconds = [answer.latency.total_s * 1e3 for answer in answers]
    tokens = [a.cloud_prompt_tokens + a.cloud_completion_tokens for a in answers]
    return ArmResult(
        accuracy=right / len(rows),
        accuracy_ci=metrics.wilson_interval(right, len(rows)),
        local_share=float(np.mean([answer.local for answer in answers])),
        p50_ms=metrics.percentile(milliseconds, 50),
        p95_ms=metrics.percentile(milliseconds, 95),
        bytes_up=float(np.mean([answer.bytes_up for answer in answers])),
        cloud_tokens=float(np.mean(tokens)),
        cost_usd=float(np.mean([answer.cost_usd for answer in answers])),
        n=len(rows),
    )


def _tested(certificate: CertificateResult, cascade: Sequence[Outcome]) -> CertificateResult:
    """The certificate beside what the test part shows of it."""
    local = [row for row in cascade if row.answer.local]
    if not local:
        return certificate
    wrong = sum(not row.correct for row in local)
    return dataclasses.replace(
        certificate,
        test_risk=wrong / len(local),
        test_risk_ci=metrics.wilson_interval(wrong, len(local)),
        test_accepted=len(local),
    )


def _samples(cascade: Sequence[Outcome]) -> tuple[Sample, ...]:
    """The first rows of the test part, as many answered by the device as by the cluster if there
    are; not picked by whether they came out right."""
    local = [row for row in cascade if row.answer.local]
    remote = [row for row in cascade if not row.answer.local]
    shown = {id(row) for row in (*local[: _SAMPLES // 2], *remote[: _SAMPLES // 2])}
    return tuple(
        Sample(
            text=row.sentence.text,
            domain=row.sentence.domain,
            label=row.sentence.label,
            answer=row.answer.text,
            source=row.answer.source,
            confidence=row.answer.device_confidence,
            reasons=row.answer.reasons,
        )
        for row in cascade
        if id(row) in shown
    )


def _arrays(rows: Sequence[DeviceRow]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    return (
        np.array([row.score for row in rows], np.float64),
        np.array([row.correct for row in rows], np.bool_),
    )


def _publisher() -> SigningKey:
    return SigningKey.load(home.keys_dir() / "publisher.key")
