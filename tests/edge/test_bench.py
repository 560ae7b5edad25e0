"""``cascade bundle bench`` measures, keeps the profile, and shows it to people and programs."""

from __future__ import annotations

import json

import pytest

from cascade import home
from cascade.cli import main
from cascade.signing import SigningKey
from edge import Device
from edge.build import build_classifier
from edge.profile import Profile, profile_path
from tests.digits import LABELS, trained


@pytest.mark.models
def test_bench_measures_every_bundle_and_keeps_the_profile(
    default_bundle, monkeypatch, capsys, tmp_path
):
    profile = tmp_path / "profile"
    monkeypatch.setattr("cascade.home.profile_dir", lambda: profile)
    assert main(["bundle", "bench", "--quick", "--threads", "1,2", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [(point["bundle"], point["threads"]) for point in shown["points"]] == [
        (default_bundle.name, 1),
        (default_bundle.name, 2),
    ]
    kept = Profile.load()
    assert kept is not None
    assert kept.recommendation is not None
    assert kept.recommendation.threads == shown["recommendation"]["threads"]
    assert shown["profile"] == str(profile_path())
    picture = profile_path().with_suffix(".png")
    assert shown["chart"] == str(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    with Device.open() as device:  # takes the profile's threads
        assert device.info is not None


@pytest.mark.models
def test_the_table_names_what_is_recommended_and_why(default_bundle, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("cascade.home.profile_dir", lambda: tmp_path)
    words = ["bundle", "bench", default_bundle.name, "--quick", "--threads", "1"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert f"recommended: {default_bundle.name} (lossless Q4_1+Q8_0) with 1 thread" in out
    assert "█" in out


def test_classifiers_are_left_out_and_refused_by_name(empty_home, capsys):
    build_classifier(
        trained(8),
        home.bundles_dir() / "digits",
        labels=LABELS,
        signing_key=SigningKey.generate(),
    )
    assert main(["bundle", "bench", "--threads", "1"]) == 3
    assert "no language model" in capsys.readouterr().err
    assert main(["bundle", "bench", "digits", "--threads", "1"]) == 2
    assert "digits is a classifier" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--threads", "0"], 2, "--threads"),
        (["--threads", "1,1"], 2, "--threads"),
        (["--threads", "many"], 2, "--threads"),
        (["nope", "--memory", "-1"], 2, "--memory"),
        ([], 3, "cascade bundle build"),
        (["nope"], 3, "cascade bundle build"),
        (["--memory", "nan"], 2, "--memory"),
        (["--memory", "inf"], 2, "--memory"),
    ],
)
def test_a_mistake_is_one_line(empty_home, capsys, words, code, message):
    options = [] if "--threads" in words else ["--threads", "1"]
    assert main(["bundle", "bench", *words, *options]) == code
    said = capsys.readouterr().err.strip().splitlines()
    assert message in said[-1]
    assert not any("Traceback" in text for text in said)
    assert not profile_path().exists()
