"""A classifier bundle answers about the raw tensors of one example, and refuses others by name."""

from __future__ import annotations

import dataclasses
import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from cascade.errors import BundleError, Cancelled, InvalidInput, NotFound, Tampered
from cascade.local import CancelToken
from cascade.policy import PolicyStore, Reason
from cascade.request import Constraints, DataClass, Message, Request
from cascade.signing import SigningKey
from cascade.tensor import Tensor, pack
from edge import Bundle, Device, InputSpec, OnnxClassifier, OnnxModel
from edge.build import build_classifier, rescaling
from edge.bundle import (
    CLASSIFIER_GRAPH,
    MANIFEST,
    PREPROCESS_GRAPH,
    describe_files,
    inspect,
    seal,
)
from tests.digits import LABELS, digits, model_of, perceptron, quantised, trained

PREPROCESSOR = rescaling("pixels", "uint8", (8, 8), scale=1 / 16, reshape=(64,))
TWO = perceptron([(np.eye(2), np.zeros(2))], softmax=False)


@pytest.fixture(scope="module")
def small(tmp_path_factory, publisher):
    return build_classifier(
        quantised(trained(8)),
        tmp_path_factory.mktemp("bundles") / "digits-small",
        labels=LABELS,
        preprocessor=PREPROCESSOR,
        signing_key=publisher,
    )


@pytest.fixture(scope="module")
def classifier(small, trust):
    return OnnxClassifier(Bundle.open(small, trust))


@pytest.fixture
def built(tmp_path, publisher, trust):
    """Builds a bundle of a graph and opens it."""

    def build(model, labels, **options):
        folder = build_classifier(
            model, tmp_path / "bundle", labels=labels, signing_key=publisher, **options
        )
        return OnnxClassifier(Bundle.open(folder, trust))

    return build


@pytest.fixture
def copied(tmp_path, small, publisher, trust):
    """Signs a copy of the small bundle, its manifest changed, and opens it."""

    def copied(source=small, **changes):
        folder = shutil.copytree(source, tmp_path / "copy", dirs_exist_ok=True)
        seal(folder, dataclasses.replace(inspect(source), **changes), publisher)
        return Bundle.open(folder, trust)

    return copied


def reference(model, images):
    """What the float graph says about prepared features, by ONNX's own evaluator."""
    from onnx.reference import ReferenceEvaluator

    features = images.reshape(-1, 64).astype(np.float32) / 16
    return ReferenceEvaluator(model).run(None, {"x": features})[0]


def test_labels_and_probabilities_are_the_graphs_own(built):
    data = digits()
    exact = built(trained(8), LABELS, preprocessor=PREPROCESSOR)
    rows = data.test[:50]
    wanted = reference(trained(8), data.images[rows])
    for row, probabilities in zip(rows, wanted, strict=True):
        answer = exact.classify(pack({"pixels": data.images[row]}))
        assert answer.text == LABELS[int(probabilities.argmax())]
        assert answer.options is not None
        np.testing.assert_allclose(answer.options.probabilities, probabilities, atol=1e-5)
        assert answer.raw_score == pytest.approx(float(probabilities.max()), abs=1e-5)
        assert len(answer.signals) == answer.tokens == 1


def test_the_small_quantised_model_is_worth_something(classifier, small):
    data = digits()
    answers = [classifier.classify(pack({"pixels": data.images[row]})) for row in data.test]
    right = [a.text == data.labels[row] for a, row in zip(answers, data.test, strict=True)]
    assert np.mean(right) > 0.8
    assert (small / CLASSIFIER_GRAPH).stat().st_size < trained(8).ByteSize() / 2


def test_the_manifest_says_what_goes_in_and_comes_out(small, trust):
    manifest = Bundle.open(small, trust).manifest
    assert (manifest.kind, manifest.quantisation) == ("classifier", "int8")
    assert set(manifest.files) == {CLASSIFIER_GRAPH, PREPROCESS_GRAPH}
    spec = manifest.classifier_spec()
    assert [str(each) for each in spec.inputs] == ["pixels (uint8, shape [8, 8])"]
    assert (spec.output, spec.scores, spec.labels) == ("probabilities", "probabilities", LABELS)
    assert inspect(small) == manifest


def test_a_batch_axis_of_one_may_be_given_or_left_out(classifier):
    image = digits().images[0]
    alone = classifier.classify(pack({"pixels": image}))
    batched = classifier.classify(pack({"pixels": image[np.newaxis]}))
    assert alone.options is not None
    assert batched.options is not None
    assert (alone.options.probabilities == batched.options.probabilities).all()


def test_scores_come_in_the_callers_order(classifier):
    image = pack({"pixels": digits().images[0]})
    ours = classifier.classify(image)
    theirs = classifier.classify(image, options=LABELS[::-1])
    assert ours.text == theirs.text
    assert (ours.options.probabilities == theirs.options.probabilities[::-1]).all()


def test_any_byte_order_and_memory_layout_will_do(built):
    two = built(TWO, ["low", "high"], scores="logits")
    for values in (
        np.array([1, 9], ">f4"),
        np.array([[1, 0], [9, 0]], np.float32)[:, 0],
        np.asfortranarray(np.array([[1, 9]], np.float32)),
    ):
        answer = two.classify(pack({"x": values}))
        assert answer.raw_score == pytest.approx(1 / (1 + np.exp(-8)))
        assert answer.text == "high"


GOOD = np.zeros((8, 8), np.uint8)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "tensors: is empty"),
        ({"image": GOOD}, r"tensors: lack 'pixels'; digits-small takes pixels \(uint8, shape \[8"),
        ({"pixels": GOOD, "more": GOOD}, "tensors: hold 'more', which is no input"),
        (
            {"pixels": GOOD.astype(float)},
            r'pixels: is float64; .* takes uint8: .*astype\("uint8"\)',
        ),
        ({"pixels": [[1.0] * 8] * 8}, "pixels: is float64"),
        ({"pixels": GOOD[:, :7]}, r"pixels: has the shape \[8, 7\]; digits-small takes \[8, 8\]"),
        ({"pixels": GOOD[0]}, r"has the shape \[8\]"),
        ({"pixels": np.zeros((5, 8, 8), np.uint8)}, "holds 5 examples; one request asks about one"),
        ({"pixels": np.zeros((0, 8, 8), np.uint8)}, "pixels: is empty"),
        ({"pixels": [[1], [1, 2]]}, "pixels: its rows differ in length"),
        ({"pixels": np.array([["a"]])}, "pixels: has the type <U1; use one of float32"),
    ],
)
def test_what_does_not_fit_is_named_and_the_next_one_answered(classifier, tensors, message):
    with pytest.raises(InvalidInput, match=message) as refused:
        classifier.classify(pack(tensors))
    assert "\n" not in str(refused.value)
    assert classifier.classify(pack({"pixels": GOOD})).text in LABELS


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_broken_reading_is_refused(built, value):
    two = built(TWO, ["low", "high"], scores="logits")
    with pytest.raises(InvalidInput, match=r"tensors\.x: holds NaN or an infinite value"):
        two.classify(pack({"x": np.array([value, 0], np.float32)}))
    assert two.classify(pack({"x": np.array([0, 1], np.float32)})).text == "high"


def test_other_options_than_the_labels_are_refused(classifier):
    for options in (("0", "1"), (*LABELS[:9], "ten"), (*LABELS, "ten")):
        with pytest.raises(InvalidInput, match="options: must be the labels of digits-small: 0, 1"):
            classifier.classify(pack({"pixels": GOOD}), options=options)


def test_logits_become_probabilities(built):
    two = built(TWO, ["low", "high"], scores="logits")
    answer = two.classify(pack({"x": np.array([1000.0, 999.0], np.float32)}))
    assert answer.options is not None
    np.testing.assert_allclose(answer.options.probabilities, [0.7310586, 0.2689414], atol=1e-6)


def test_scores_that_are_no_probabilities_are_refused(built):
    # The sample that the builder tries happens to sum to 1.
    two = built(TWO, ["low", "high"], scores="probabilities")
    with pytest.raises(BundleError, match=r"no probabilities .*scores=logits"):
        two.classify(pack({"x": np.array([3, 4], np.float32)}))
    assert two.classify(pack({"x": np.array([0.25, 0.75], np.float32)})).raw_score == 0.75


def test_several_inputs_of_any_length_are_prepared_by_a_graph_of_the_bundle(built):
    """A window of sound of any length and a switch: loudness against a threshold."""
    preprocessor = model_of(
        [
            helper.make_node("Cast", ["sound"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("ReduceL2", ["floats", "axis"], ["loud"], keepdims=1),
            helper.make_node("Cast", ["switch"], ["on"], to=TensorProto.FLOAT),
            helper.make_node("Concat", ["loud", "on"], ["x"], axis=1),
        ],
        [
            helper.make_tensor_value_info("sound", TensorProto.INT16, ["batch", "samples"]),
            helper.make_tensor_value_info("switch", TensorProto.BOOL, ["batch", 1]),
        ],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor("axis", TensorProto.INT64, [1], [1])],
    )
    model = perceptron([(np.array([[0.01, 0], [0, 1]]), np.zeros(2))], softmax=False)
    noise = built(model, ["loud", "quiet"], preprocessor=preprocessor, scores="logits")
    assert str(noise.spec.inputs[0]) == "sound (int16, shape [samples])"
    for samples, label in ((np.full(9, 300), "loud"), (np.full(20, 1), "quiet")):
        tensors = {"sound": samples.astype(np.int16), "switch": np.array([True])}
        assert noise.classify(pack(tensors)).text == label


def test_a_length_that_the_graph_cannot_take_is_refused(built):
    pairs = model_of(
        [
            helper.make_node("Reshape", ["sound", "shape"], ["pairs"]),
            helper.make_node("ReduceSum", ["pairs", "axis"], ["logits"], keepdims=0),
        ],
        [helper.make_tensor_value_info("sound", TensorProto.FLOAT, ["batch", "samples"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [
            helper.make_tensor("shape", TensorProto.INT64, [3], [1, -1, 2]),
            helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
        ],
    )
    sums = built(pairs, ["left", "right"], scores="logits")
    with pytest.raises(InvalidInput, match="tensors: cannot be computed on") as refused:
        sums.classify(pack({"sound": np.ones(3, np.float32)}))
    assert "\n" not in str(refused.value)
    assert sums.classify(pack({"sound": np.array([0, 1, 0, 1], np.float32)})).text == "right"


def test_threads_may_share_a_classifier(classifier):
    rows = digits().test[:64]
    tensors = [pack({"pixels": digits().images[row]}) for row in rows]
    one_by_one = [classifier.classify(each).text for each in tensors]
    with ThreadPoolExecutor(8) as pool:
        assert [a.text for a in pool.map(classifier.classify, tensors)] == one_by_one


def test_a_cancelled_request_is_not_classified(classifier):
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(Cancelled):
        classifier.classify(pack({"pixels": GOOD}), cancel=cancel)


def test_a_preprocessor_that_nobody_signed_is_not_run(tmp_path, publisher, trust):
    folder = build_classifier(
        perceptron([(np.eye(2), np.zeros(2))]),
        tmp_path / "two",
        labels=["low", "high"],
        signing_key=publisher,
    )
    swapping = model_of(
        [helper.make_node("Neg", ["x"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
    )
    onnx.save(swapping, folder / PREPROCESS_GRAPH)
    two = OnnxClassifier(Bundle.open(folder, trust))
    assert two.classify(pack({"x": np.array([0, 1], np.float32)})).text == "high"


def test_an_altered_graph_is_refused(tmp_path, publisher, trust):
    folder = build_classifier(
        perceptron([(np.eye(2), np.zeros(2))]),
        tmp_path / "two",
        labels=["low", "high"],
        signing_key=publisher,
    )
    (folder / CLASSIFIER_GRAPH).write_bytes(b"x")
    with pytest.raises(Tampered, match=r"classifier\.onnx"):
        Bundle.open(folder, trust)


@pytest.mark.parametrize(
    ("classifier", "message"),
    [
        ({"labels": LABELS[:9]}, "probabilities has 10 scores for 9 labels"),
        ({"output": "label"}, "has no output 'label' of floats; its outputs of floats: probabil"),
        ({"inputs": (InputSpec("pixels", "float32", ("batch", 8, 8)),)}, "but the manifest says"),
    ],
)
def test_a_manifest_that_its_graphs_do_not_fit_is_refused(small, copied, classifier, message):
    spec = dataclasses.replace(inspect(small).classifier_spec(), **classifier)
    with pytest.raises(BundleError, match=message):
        OnnxClassifier(copied(classifier=spec))


def test_a_signed_file_that_is_no_graph_is_refused(tmp_path, small, copied):
    folder = shutil.copytree(small, tmp_path / "broken")
    whole = (folder / CLASSIFIER_GRAPH).read_bytes()
    for content in (whole[: len(whole) // 2], b"no graph", b""):
        (folder / CLASSIFIER_GRAPH).write_bytes(content)
        files = describe_files(folder, list(inspect(small).files))
        with pytest.raises(BundleError, match=r"classifier\.onnx: onnxruntime cannot load it"):
            OnnxClassifier(copied(folder, files=files))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "oracle"}, "kind is 'oracle'"),
        ({"kind": "decoder"}, "classifier must be there exactly for that kind"),
        ({"classifier": None}, "classifier must be there exactly for that kind"),
        ({"files": {}}, r"files lacks classifier\.onnx"),
        ({"classifier": {"labels": ["a", "b"]}}, r"classifier\.inputs: is missing"),
    ],
)
def test_an_unusable_manifest_is_refused(small, change, message):
    from edge import Manifest

    value = json.loads((small / MANIFEST).read_text()) | change
    with pytest.raises(BundleError, match=message):
        Manifest.from_bytes(json.dumps(value).encode())


def test_another_order_of_labels_is_another_model(tmp_path, publisher, trust):
    """A policy that was certified for one of them must not be found for the other."""
    folders = [
        build_classifier(
            TWO, tmp_path / "-".join(labels), labels=labels, signing_key=publisher, scores="logits"
        )
        for labels in (("low", "high"), ("high", "low"))
    ]
    one, other = (Bundle.open(folder, trust).manifest.base_digest for folder in folders)
    assert one != other


def test_a_classifier_bundle_is_no_decoder_and_the_other_way_round(small, trust, bundle):
    with pytest.raises(BundleError, match="digits-small is a classifier bundle: it reads no text"):
        OnnxModel(Bundle.open(small, trust))
    with pytest.raises(BundleError, match="is a decoder bundle: it reads text"):
        OnnxClassifier(bundle)


def test_a_device_classifies_and_refuses_text(small, trust, tmp_path):
    store = PolicyStore(tmp_path, trust)
    with Device.open(small, trust=trust, policies=store) as device:
        answer = device.classify({"pixels": digits().images[0]})
        assert (answer.text, answer.source, answer.model) == ("0", "device", "digits-small")
        assert answer.reasons == (Reason.UNCERTIFIED_TASK, Reason.NO_CLUSTER)
        assert answer.confidence is None
        assert answer.raw_score is not None
        private = Constraints(data_class=DataClass.NEVER_LEAVE)
        answer = device.classify({"pixels": digits().images[0]}, constraints=private)
        assert answer.reasons == (Reason.UNCERTIFIED_TASK, Reason.NEVER_LEAVE, Reason.NO_CLUSTER)
        with pytest.raises(InvalidInput, match="reads tensors alone; call classify"):
            device.choose("What a lovely day.", ["good", "bad"])
        with pytest.raises(NotFound, match="digits-small is a classifier, which takes no adapter"):
            device.use_adapter("")
        with pytest.raises(InvalidInput, match="tensors: is empty"):
            device.classify({})
        assert device.labels == LABELS


def test_a_device_with_a_decoder_refuses_tensors(bundle, trust, tmp_path):
    with Device.with_model(OnnxModel(bundle), policies=PolicyStore(tmp_path, trust)) as device:
        with pytest.raises(InvalidInput, match="options: are missing"):
            device.classify({"pixels": GOOD})
        with pytest.raises(InvalidInput, match=r"tensors: .* reads text alone"):
            device.classify({"pixels": GOOD}, labels=LABELS)
        assert device.labels == ()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            Request((Message("user", "?"),), options=LABELS, tensors=pack({"x": GOOD})),
            "messages: must be empty",
        ),
        (Request((), tensors=pack({"x": GOOD})), "options: are missing"),
        (
            Request((), options=LABELS, tensors=(Tensor.of("x", GOOD), Tensor.of("x", GOOD))),
            "tensors: names 'x' twice",
        ),
        (Request((), options=LABELS, tensors=(Tensor("x", "uint8", (3,), b"ab"),)), "has 2 bytes"),
        (
            Request((), options=LABELS, tensors=(Tensor("x", "text", (1,), b"a"),)),
            "the type 'text'",
        ),
    ],
)
def test_a_request_is_checked_before_anybody_answers(request_, message):
    with pytest.raises(InvalidInput, match=message):
        request_.check()


def test_a_signing_key_of_nobody_is_refused(tmp_path, trust):
    from cascade.errors import UnknownPublisher

    folder = build_classifier(
        TWO, tmp_path / "two", labels=["a", "b"], scores="logits", signing_key=SigningKey.generate()
    )
    with pytest.raises(UnknownPublisher):
        Bundle.open(folder, trust)
