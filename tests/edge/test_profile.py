"""The profile: what is recommended, what a file may hold, and what a device makes of it."""

from __future__ import annotations

import dataclasses
import json
import mmap

import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.errors import BundleError, InvalidInput
from edge.bench import measure_apart
from edge.memory import memory
from edge.profile import Point, Profile, machine, recommend, recommended_threads

POINT = Point(
    bundle="small-int4",
    quantisation="lossless Q4_1",
    threads=1,
    load_s=0.5,
    first_token_s=0.1,
    prefill_tokens_per_s=120.0,
    decode_tokens_per_s=40.0,
    cpu_s_per_token=0.025,
    peak_bytes=200_000_000,
    anonymous_bytes=120_000_000,
)


def point(**changes):
    return dataclasses.replace(POINT, **changes)


def test_fewest_threads_within_five_percent_of_the_fastest():
    points = [
        point(threads=1, decode_tokens_per_s=40),
        point(threads=2, decode_tokens_per_s=66),
        point(threads=4, decode_tokens_per_s=69),
    ]
    chosen = recommend(points, None)
    assert (chosen.bundle, chosen.threads) == ("small-int4", 2)


def test_a_bundle_above_the_memory_budget_is_not_recommended():
    fast = point(bundle="fast-int8", decode_tokens_per_s=80, peak_bytes=400_000_000)
    assert recommend([POINT, fast], None).bundle == "fast-int8"
    assert recommend([POINT, fast], 250_000_000).bundle == "small-int4"
    assert recommend([POINT, fast], 100_000_000) is None


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 64), st.floats(0.1, 1e4)), min_size=1)
)
def test_the_recommendation_is_never_far_from_the_fastest(measured):
    points = [
        point(bundle=bundle, threads=threads, decode_tokens_per_s=speed)
        for bundle, threads, speed in measured
    ]
    chosen = recommend(points, None)
    speeds = [
        each.decode_tokens_per_s
        for each in points
        if (each.bundle, each.threads) == (chosen.bundle, chosen.threads)
    ]
    assert max(speeds) >= 0.95 * max(each.decode_tokens_per_s for each in points)


def test_a_profile_survives_its_file(empty_home):
    profile = Profile.of([POINT, point(threads=2)], memory_budget_bytes=300_000_000)
    path = profile.save()
    assert path.is_relative_to(empty_home)
    assert Profile.load() == profile
    assert profile.machine == machine()


def test_without_a_profile_there_is_one_thread(empty_home):
    assert Profile.load() is None
    assert recommended_threads("small-int4") == 1


def test_threads_come_from_this_machines_profile_for_this_bundle(empty_home):
    points = [POINT, point(threads=2, decode_tokens_per_s=70)]
    Profile.of(points).save()
    assert recommended_threads("small-int4") == 2
    assert recommended_threads("another") == 1
    dataclasses.replace(Profile.of(points), machine="another machine").save()
    assert recommended_threads("small-int4") == 1


@pytest.mark.parametrize(
    ("damage", "field"),
    [
        (lambda fields: fields.pop("points"), "profile.points"),
        (lambda fields: fields["points"][0].update(threads=0), r"profile.points\[0\].threads"),
        (lambda fields: fields.update(format_version=2), "profile.format_version"),
        (lambda fields: fields.update(extra=1), "profile.extra"),
    ],
)
def test_a_damaged_profile_names_the_field_and_stops_no_device(empty_home, damage, field):
    path = Profile.of([POINT]).save()
    fields = json.loads(path.read_text())
    damage(fields)
    path.write_text(json.dumps(fields))
    with pytest.raises(InvalidInput, match=field):
        Profile.load()
    assert recommended_threads("small-int4") == 1


def test_memory_counts_what_this_process_takes():
    size = 64 << 20
    before = memory()
    # From the system itself: an array may get memory that the process has had all along.
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        block.write(b"\1" * size)
        after = memory()
    assert after.anonymous - before.anonymous >= 0.9 * size
    assert after.peak >= after.resident >= after.anonymous > 0


@pytest.mark.models
def test_a_point_is_measured_in_a_process_of_its_own(default_bundle):
    measured = measure_apart(default_bundle, threads=2, quick=True)
    assert (measured.bundle, measured.threads) == (default_bundle.name, 2)
    assert measured.decode_tokens_per_s > 0
    assert measured.peak_bytes > measured.anonymous_bytes > 50_000_000


@pytest.mark.models
def test_a_point_that_cannot_be_measured_says_why(default_bundle, tmp_path):
    with pytest.raises(BundleError, match="there is no bundle at"):
        measure_apart(tmp_path / "nothing", threads=1)


@pytest.mark.models
def test_threads_never_spin(default_bundle, monkeypatch):
    from cascade import home
    from cascade.signing import TrustStore
    from edge import Bundle
    from edge.decoder import Decoder

    seen = []

    class Watched(onnxruntime.InferenceSession):
        def __init__(self, path, options, **keywords):
            seen.append(
                (
                    options.intra_op_num_threads,
                    options.get_session_config_entry("session.intra_op.allow_spinning"),
                )
            )
            super().__init__(path, options, **keywords)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Watched)
    bundle = Bundle.open(default_bundle, TrustStore(home.trust_dir()))
    Decoder(bundle.path, bundle.manifest, threads=2)
    assert seen == [(2, "0")]
