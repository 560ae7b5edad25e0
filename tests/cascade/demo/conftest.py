"""A result as a run could have found it, and an archive shaped like the real one."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cascade.cli.demo.data import Domain
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
from cascade.metrics import deferral_curve, ece, paired_difference, wilson_interval

HOSTILE = "<script>alert('x')</script> & \"quotes\" \x1b[31mred ${certified} $"

FILES = {
    Domain.PRODUCT: "amazonReviewSnippets_GroundTruth.txt",
    Domain.MOVIE: "movieReviewSnippets_GroundTruth.txt",
    Domain.EDITORIAL: "nytEditorialSnippets_GroundTruth.txt",
    Domain.TWEET: "tweets_GroundTruth.txt",
}


@pytest.fixture(scope="session")
def demo_result() -> DemoResult:
    """160 rows; the cascade keeps the 45 % most confident."""
    rng = np.random.default_rng(5)
    n = 160
    confidence = rng.uniform(0.5, 0.95, n)
    device = rng.random(n) < confidence
    cloud = rng.random(n) < 0.84
    local = confidence >= np.quantile(confidence, 0.55)
    cascade = np.where(local, device, cloud)

    def arm(right: np.ndarray, kept: float, p50_ms: float, p95_ms: float) -> ArmResult:
        share = 1 - kept
        return ArmResult(
            accuracy=float(right.mean()),
            accuracy_ci=wilson_interval(int(right.sum()), n),
            local_share=kept,
            p50_ms=p50_ms,
            p95_ms=p95_ms,
            bytes_up=612 * share,
            cloud_tokens=71.4 * share,
            cost_usd=0.0000143 * share,
            n=n,
        )

    wrong, kept = int((~device & local).sum()), int(local.sum())
    return DemoResult(
        device=arm(device, 1.0, 41.2, 66.0),
        cascade=arm(cascade, float(local.mean()), 402.0, 731.0),
        cloud=arm(cloud, 0.0, 361.0, 702.0),
        difference=paired_difference(cascade, device),
        certificate=CertificateResult(
            alpha=0.25,
            delta=0.1,
            n=1200,
            feasible=True,
            coverage=0.4625,
            threshold=0.7431,
            labels_needed=None,
            test_risk=wrong / kept,
            test_risk_ci=wilson_interval(wrong, kept),
            test_accepted=kept,
        ),
        cloud_error=float(1 - cloud.mean()),
        cloud_error_ci=wilson_interval(int((~cloud).sum()), n),
        curve=deferral_curve(confidence, device, cloud),
        calibration_ece=ece(confidence, device),
        device_model="Small-135M (int4)",
        cloud_model="Large-0.5B",
        data=Data("rated sentences 1.0", 400, 1200, n, 7854, 1.0),
        prices=Prices("illustrative prices", (Price("large", 0.2, 0.4),)),
        samples=(
            Sample(
                "The remote is a joy to use.",
                "product review",
                "positive",
                "positive",
                "device",
                0.91,
                ("confident",),
            ),
            Sample(
                "It has a certain charm, though one would be hard put to say where it went in the "
                "long hours between the second act and whatever it was that came after it.",
                "movie review",
                "negative",
                "positive",
                "large",
                0.58,
                ("unsure",),
            ),
            Sample(HOSTILE, "tweet", "negative", "negative", "large", None, ("uncertified_task",)),
        ),
        phases=(Phase("fetch models", 41.3), Phase("calibrate", 92.8), Phase("test", 140.2)),
    )


@pytest.fixture(scope="session")
def infeasible_result(demo_result: DemoResult) -> DemoResult:
    """The same run where no threshold passed: everything is escalated."""
    from dataclasses import replace

    return replace(
        demo_result,
        cascade=replace(demo_result.cloud, p50_ms=402.0),
        certificate=CertificateResult(
            alpha=0.05,
            delta=0.1,
            n=1200,
            feasible=False,
            coverage=0.0,
            threshold=None,
            labels_needed=5400,
            test_risk=None,
            test_risk_ci=None,
            test_accepted=0,
        ),
    )


@pytest.fixture
def make_sdist(tmp_path: Path) -> Callable[[dict[Domain, bytes]], Path]:
    """Writes a sdist with the given ground-truth files inside its inner archive."""

    def make(content: dict[Domain, bytes]) -> Path:
        inner = archive(
            {f"hutto_ICWSM_2014/{FILES[domain]}": content[domain] for domain in content}
        )
        path = tmp_path / "vaderSentiment-3.3.2.tar.gz"
        name = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
        path.write_bytes(
            archive({"vaderSentiment-3.3.2/setup.py": b"raise SystemExit", name: inner})
        )
        return path

    return make


def archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()
