"""Examples from the command line: asked of a real cluster, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cascade import home, testing
from cascade.signing import TrustStore
from cascade.testing import Script, TinyBundle

pytestmark = pytest.mark.processes

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def cascade(tiny: TinyBundle, empty_home: Path) -> Iterator[Run]:
    """Runs the command line on a device that trusts the tiny bundle, beside a cluster."""
    TrustStore(home.trust_dir()).pin("tests", tiny.key.public)
    with testing.cluster({"tier1": Script("bad")}) as cluster:
        profile = empty_home / "profile.json"
        cluster.profile.save(profile)

        def run(*words: str) -> subprocess.CompletedProcess[str]:
            asks = words[0] in ("choose", "ask")
            device = ("--bundle", tiny.path, "--profile", profile) if asks else ()
            return subprocess.run(
                [sys.executable, "-W", "error", "-m", "cascade.cli", *words, *device],
                check=False,
                capture_output=True,
                text=True,
                timeout=240,
                env=os.environ | {"CASCADE_HOME": str(empty_home)},
            )

        yield run


def test_an_escalated_request_leaves_an_example_and_one_that_must_not_does_not(
    cascade: Run, empty_home: Path
) -> None:
    words = ("--options", "good,bad", "--task", "mood", "--json")
    answers = []
    for text, more in (
        ("What a day.", ("--learn",)),
        ("My own secret.", ("--learn", "--never-train")),
        ("Another secret.", ("--learn", "--data-class", "never_leave")),
        ("Nobody asked.", ()),
    ):
        done = cascade("choose", text, *words, *more)
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(done.stdout))
    assert [each["source"] for each in answers] == ["tier1", "tier1", "device", "tier1"]
    listed = json.loads(cascade("examples", "list", "--json").stdout)["examples"]
    assert [each["request_id"] for each in listed] == [answers[0]["request_id"]]
    assert (listed[0]["answer"], listed[0]["source"]) == ("bad", "cloud")
    written = b"".join(path.read_bytes() for path in empty_home.glob("examples*"))
    assert b"secret" not in written
    assert b"Nobody asked" not in written
    judged = cascade("examples", "judge", answers[0]["request_id"], "--correction", "good")
    assert judged.returncode == 0, judged.stderr
    stats = json.loads(cascade("examples", "stats", "--json").stdout)
    assert (stats["examples"], stats["sources"]) == (1, {"correction": 1})
    cascade("examples", "consent", "--withdraw")
    refused = cascade("choose", "One more.", *words, "--learn")
    assert refused.returncode == 2
    assert "consent --give" in refused.stderr
