"""The tiny bundle is a real bundle, the same everywhere, and says what it is told to be sure of."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import gguf
import pytest

from cascade.errors import InvalidInput, UnknownPublisher
from cascade.events import Final
from cascade.policy import Reason
from cascade.signing import TrustStore
from cascade.testing import TinyBundle, tiny_bundle
from cascade.testing.random_model import write_random_model
from edge import Device
from edge.bundle import DECODE_WEIGHTS, MANIFEST, SIGNATURE, TOKENIZER

MOODS = ("good", "bad")


def contents(tiny: TinyBundle) -> dict[str, str]:
    files = tiny.path.iterdir()
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_the_same_seed_gives_the_same_bytes_signature_included(
    tiny: TinyBundle, tmp_path: Path
) -> None:
    again = tiny_bundle(tmp_path)
    assert {MANIFEST, SIGNATURE} <= set(contents(again))
    assert contents(again) == contents(tiny)


def test_another_seed_is_another_model_with_the_same_tokenizer(
    tiny: TinyBundle, tmp_path: Path
) -> None:
    ours, theirs = contents(tiny), contents(tiny_bundle(tmp_path, seed=1))
    assert ours[TOKENIZER] == theirs[TOKENIZER]
    assert ours[DECODE_WEIGHTS] != theirs[DECODE_WEIGHTS]


def test_the_weights_are_these_on_every_machine(tmp_path: Path) -> None:
    write_random_model(tmp_path / "m.gguf", seed=0, family="llama", context_tokens=512)
    digest = hashlib.sha256((tmp_path / "m.gguf").read_bytes()).hexdigest()
    assert digest == "6e46581024a5fa72b31edee047ab9fa94c6d84734edd3def3eb5bd5ac2669994"


def test_the_model_file_is_read_by_the_formats_own_reader(tmp_path: Path) -> None:
    write_random_model(tmp_path / "m.gguf", seed=0, family="qwen2", context_tokens=64)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert reader.fields["general.architecture"].contents() == "qwen2"
    assert reader.fields["qwen2.context_length"].contents() == 64
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["blk.1.ffn_down.weight"] == "Q4_1"
    assert kinds["output.weight"] == "Q8_0"


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_it_answers_like_any_other(tmp_path: Path, family: Literal["llama", "qwen2"]) -> None:
    tiny = tiny_bundle(tmp_path, family=family)
    with Device.open(tiny.path, trust=tiny.trust) as device:
        *_, final = device.ask("Hello?", max_tokens=20)
        assert isinstance(final, Final)
        assert len(final.answer.text.split()) == final.answer.tokens == 20
        answers = {device.choose("so " * n, MOODS).text for n in range(1, 20)}
    assert answers == set(MOODS)


def test_its_key_is_pinned_nowhere_else(tiny: TinyBundle, tmp_path: Path) -> None:
    with pytest.raises(UnknownPublisher):
        Device.open(tiny.path, trust=TrustStore(tmp_path))


@pytest.mark.parametrize(
    ("threshold", "verified", "reasons"),
    [
        (0.0, True, (Reason.CONFIDENT,)),
        (1.0, False, (Reason.UNSURE, Reason.NO_CLUSTER)),
        (None, False, (Reason.TARGET_INFEASIBLE, Reason.NO_CLUSTER)),
    ],
)
def test_a_made_up_policy_decides_how_sure_it_is(
    tmp_path: Path, threshold: float | None, verified: bool, reasons: tuple[Reason, ...]
) -> None:
    tiny = tiny_bundle(tmp_path)
    tiny.install_policy("mood", MOODS, threshold=threshold)
    with Device.open(tiny.path, trust=tiny.trust, policies=tiny.policies) as device:
        answer = device.choose("What a day.", MOODS, task="mood")
    assert (answer.verified, answer.reasons) == (verified, reasons)
    assert answer.confidence == pytest.approx(answer.raw_score)


@pytest.mark.parametrize(
    ("wrong", "field"), [({"seed": -1}, "seed"), ({"context_tokens": 0}, "context_tokens")]
)
def test_a_number_out_of_range_is_named(tmp_path: Path, wrong, field: str) -> None:
    with pytest.raises(InvalidInput, match=field):
        tiny_bundle(tmp_path, **wrong)


def test_a_threshold_out_of_range_is_refused(tiny: TinyBundle) -> None:
    with pytest.raises(InvalidInput, match="threshold"):
        tiny.install_policy("mood", MOODS, threshold=1.5)
