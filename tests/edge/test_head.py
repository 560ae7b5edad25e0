"""A head in an adapter: its file, its features against torch, and the answers it gives."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import onnx
import pytest

from cascade.errors import BundleError, Tampered
from cascade.task import Example, Task, generic
from edge.adapter import Adapter, LoraPair, write_adapter
from edge.bundle import Bundle, Manifest
from edge.head import Head, HeadSpec, pooled
from edge.model import OnnxModel

OPTIONS = ("red", "green", "blue")
TASK = Task(
    "colour",
    OPTIONS,
    "Text: {input}\nColour:",
    " ",
    "{input}",
    examples=(Example("the sky", "blue"),),
)


@pytest.fixture
def model(tiny) -> OnnxModel:
    return OnnxModel(tiny.bundle)


def head_for(model: OnnxModel, *, lm_weight: float = 0.0, task: Task = TASK) -> Head:
    rng = np.random.default_rng(3)
    features, _ = model.measured(task, "a house")
    width = len(features)
    return Head(
        HeadSpec(task, model.hidden_layer, lm_weight),
        rng.normal(size=(3, width)).astype(np.float32),
        rng.normal(size=3).astype(np.float32),
        rng.normal(size=width).astype(np.float32),
        rng.uniform(0.5, 2, width).astype(np.float32),
    )


def written(tiny, folder, head, pairs=None):
    return write_adapter(
        folder,
        pairs or {},
        name="colours",
        base_digest=tiny.bundle.manifest.base_digest,
        signing_key=tiny.key,
        head=head,
    )


def ask(model: OnnxModel, text: str, task: Task = TASK, **more):
    return model.choose(
        task.for_device(text),
        task.options,
        prior_prompt=task.prior_prompt(),
        option_prefix=task.option_prefix,
        **more,
    )


def some_pairs(tiny) -> dict[str, LoraPair]:
    slot = tiny.bundle.manifest.adapter_slots[0]
    rng = np.random.default_rng(8)
    return {
        slot.modules[0]: LoraPair(
            rng.normal(size=(slot.columns, 2)).astype(np.float32),
            rng.normal(size=(2, slot.widths[0])).astype(np.float32),
        )
    }


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


@pytest.mark.parametrize("mode", [None, "search"])
def test_a_head_answers_its_task_and_no_other(tiny, tmp_path, model, mode) -> None:
    head = head_for(model)
    digest = model.load_adapter(Adapter.open(written(tiny, tmp_path, head), tiny.trust))
    before = ask(model, "a small house")
    features, _ = model.measured(TASK, "a small house")
    model.use_adapter(digest)
    answer = ask(model, "a small house", mode=mode)
    expected = softmax(head.logits(features))
    assert answer.options.probabilities == pytest.approx(expected, abs=1e-6)
    assert answer.text == OPTIONS[int(expected.argmax())]
    assert answer.raw_score == pytest.approx(expected.max())
    assert answer.options.mode == "exact"
    assert answer.adapter_digest == digest
    assert np.exp(answer.signals.logprobs) == pytest.approx([expected.max()], abs=1e-6)
    others = (
        dataclasses.replace(TASK, device_prompt="Words: {input}\nColour:"),
        dataclasses.replace(TASK, options=("red", "green", "grey"), examples=()),
        dataclasses.replace(TASK, option_prefix=""),
        generic(OPTIONS),
    )
    for other in others:
        plain = ask(OnnxModel(tiny.bundle), "a small house", other)
        assert np.array_equal(
            ask(model, "a small house", other).options.probabilities, plain.options.probabilities
        )
    model.use_adapter("")
    after = ask(model, "a small house")
    assert np.array_equal(after.options.probabilities, before.options.probabilities)
    assert after.adapter_digest == ""


def test_the_model_s_own_scores_are_added_by_their_weight(tiny, tmp_path, model) -> None:
    head = head_for(model, lm_weight=1.5)
    model.use_adapter(model.load_adapter(Adapter.open(written(tiny, tmp_path, head), tiny.trust)))
    features, scores = model.measured(TASK, "last light")
    own = ask(OnnxModel(tiny.bundle), "last light").options
    assert scores == pytest.approx(own.logprobs - own.prior_logprobs, abs=1e-5)
    expected = softmax(head.logits(features) + 1.5 * scores)
    answer = ask(model, "last light")
    assert answer.options.probabilities == pytest.approx(expected, abs=1e-6)
    assert len(answer.signals) > 0
    assert answer.options.nodes > 0


def test_features_do_not_depend_on_what_was_read_before(tiny, model) -> None:
    text = "small water " * 70  # more than one chunk
    first, _ = model.measured(TASK, text)
    model.measured(TASK, text + "more")
    ask(model, text)
    again, _ = model.measured(TASK, text)
    fresh, _ = OnnxModel(tiny.bundle).measured(TASK, text)
    assert again == pytest.approx(first, abs=1e-4)
    assert fresh == pytest.approx(first, abs=1e-4)
    empty, _ = model.measured(TASK, "")
    assert np.isfinite(empty).all()


def test_the_head_s_file_keeps_everything(tiny, tmp_path, model) -> None:
    head, pairs = head_for(model, lm_weight=0.25), some_pairs(tiny)
    opened = Adapter.open(written(tiny, tmp_path / "both", head, pairs), tiny.trust)
    assert opened.head.spec == head.spec
    assert all(np.array_equal(opened.head.tensors()[n], t) for n, t in head.tensors().items())
    assert opened.pairs.keys() == pairs.keys()
    model.use_adapter(model.load_adapter(opened))
    features, scores = model.measured(TASK, "a river")
    expected = softmax(head.logits(features) + 0.25 * scores)
    assert ask(model, "a river").options.probabilities == pytest.approx(expected, abs=1e-6)
    base, _ = OnnxModel(tiny.bundle).measured(TASK, "a river")
    assert not np.allclose(features, base), "the pairs of layer 0 change what is seen"


def test_an_adapter_without_a_head_is_written_as_before(tiny, tmp_path) -> None:
    folder = written(tiny, tmp_path, None, some_pairs(tiny))
    fields = json.loads((folder / "adapter.json").read_bytes())
    assert fields["format_version"] == 1
    assert "head" not in fields
    assert Adapter.open(folder, tiny.trust).head is None


def changed(head: Head, **fields) -> Head:
    return dataclasses.replace(head, **fields)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda h: changed(h, weight=h.weight[:2]), "head.weight has the shape"),
        (lambda h: changed(h, weight=h.weight * np.float32(np.nan)), "head.weight holds NaN"),
        (lambda h: changed(h, bias=h.bias[None]), "head.bias has the shape"),
        (lambda h: changed(h, mean=h.mean[1:]), "head.mean has the shape"),
        (lambda h: changed(h, scale=0 * h.scale), "must be above 0"),
        (lambda h: changed(h, weight=np.zeros((3, 1 << 21), np.float32)), "at most"),
        (lambda h: changed(h, spec=dataclasses.replace(h.spec, lm_weight=1e9)), "lm_weight"),
        (lambda h: changed(h, spec=dataclasses.replace(h.spec, layer=0)), "layer"),
    ],
)
def test_a_head_that_cannot_be_is_refused(tiny, tmp_path, model, change, says) -> None:
    folder = written(tiny, tmp_path, change(head_for(model)))
    with pytest.raises(BundleError, match=says):
        Adapter.open(folder, tiny.trust)


def test_a_head_of_another_model_is_refused(tiny, tmp_path, model) -> None:
    head = head_for(model)
    wide = changed(
        head,
        weight=np.hstack([head.weight, head.weight]),
        mean=np.tile(head.mean, 2),
        scale=np.tile(head.scale, 2),
    )
    deep = changed(head, spec=dataclasses.replace(head.spec, layer=9))
    for number, each in enumerate((wide, deep)):
        folder = written(tiny, tmp_path / str(number), each)
        with pytest.raises(BundleError, match="its head takes"):
            model.load_adapter(Adapter.open(folder, tiny.trust))


def test_an_altered_head_is_noticed(tiny, tmp_path, model) -> None:
    folder = written(tiny, tmp_path, head_for(model))
    file = folder / "adapter.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(Tampered):
        Adapter.open(folder, tiny.trust)


def older(tiny, folder) -> Bundle:
    """The tiny bundle with the decode graph of earlier versions."""
    folder.mkdir()
    for file in tiny.bundle.path.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    graph = onnx.load(folder / "decode.onnx", load_external_data=False)
    hidden = [out for out in graph.graph.output if out.name.startswith("hidden.")]
    assert len(hidden) == 1
    graph.graph.output.remove(hidden[0])
    (folder / "decode.onnx").write_bytes(graph.SerializeToString())
    return dataclasses.replace(tiny.bundle, path=folder)


def test_a_bundle_without_hidden_states_works_but_for_heads(tiny, tmp_path, model) -> None:
    old = OnnxModel(older(tiny, tmp_path / "old"))
    now = ask(model, "a large river").options
    assert np.array_equal(ask(old, "a large river").options.logprobs, now.logprobs)
    adapter = Adapter.open(written(tiny, tmp_path / "a", head_for(model)), tiny.trust)
    with pytest.raises(BundleError, match="cascade bundle build --force"):
        old.load_adapter(adapter)
    lora = Adapter.open(written(tiny, tmp_path / "b", None, some_pairs(tiny)), tiny.trust)
    old.use_adapter(old.load_adapter(lora))


def test_the_base_digest_does_not_know_of_hidden_states(tiny) -> None:
    manifest = tiny.bundle.manifest
    files = dict(manifest.files)
    files["decode.onnx"] = dataclasses.replace(files["decode.onnx"], sha256="0" * 64)
    other: Manifest = dataclasses.replace(manifest, files=files)
    assert other.base_digest == manifest.base_digest


def test_pooling_is_the_mean_and_the_last() -> None:
    states = np.array([[1.0, 2.0], [3.0, 6.0], [5.0, 4.0]], np.float32)
    assert pooled(states).tolist() == [3.0, 4.0, 5.0, 4.0]
