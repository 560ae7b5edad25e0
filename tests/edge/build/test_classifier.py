"""A bundle is made of a classifier only when it can answer; else one line says what to change."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cascade.errors import BundleError, InvalidInput, NotFound
from cascade.signing import SigningKey
from edge.build import build_classifier, rescaling
from edge.bundle import CLASSIFIER_GRAPH, inspect
from tests.digits import model_of, perceptron

KEY = SigningKey.generate()
SOFTMAX = perceptron([(np.eye(3), np.zeros(3))])
LOGITS = perceptron([(np.eye(3), np.zeros(3))], softmax=False)
ABC = ["a", "b", "c"]


def floats(name, *shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


@pytest.fixture
def build(tmp_path):
    def build(model, labels=ABC, **options):
        return build_classifier(
            model, tmp_path / "bundle", labels=labels, signing_key=KEY, **options
        )

    return build


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (SOFTMAX, {"labels": ["a", "b"]}, "labels: are 2, but probabilities has 3 scores"),
        (SOFTMAX, {"labels": ["a", "a", "b"]}, "labels: names 'a' twice"),
        (SOFTMAX, {"labels": ["a"]}, "labels: needs at least two"),
        (SOFTMAX, {"labels": ["a", " ", "b"]}, "labels: contains an empty"),
        (SOFTMAX, {"output": "label"}, "output: 'label' is none of .*: probabilities"),
        (LOGITS, {}, "scores: say whether logits holds probabilities or logits"),
    ],
)
def test_a_wrong_argument_is_named(build, tmp_path, model, options, message):
    with pytest.raises(InvalidInput, match=message):
        build(model, **options)
    assert list(tmp_path.iterdir()) == []


def test_what_a_softmax_gives_is_known(build):
    assert inspect(build(SOFTMAX)).classifier_spec().scores == "probabilities"


def test_the_scores_are_looked_for_among_outputs_of_floats(build):
    """As scikit-learn's converter makes them: the label beside its probabilities."""
    graph = onnx.ModelProto()
    graph.CopyFrom(SOFTMAX)
    graph.graph.node.append(helper.make_node("ArgMax", ["probabilities"], ["label"], axis=1))
    graph.graph.output.insert(0, helper.make_tensor_value_info("label", TensorProto.INT64, None))
    assert inspect(build(graph)).classifier_spec().output == "probabilities"


def test_of_several_outputs_one_must_be_named(build, tmp_path):
    graph = onnx.ModelProto()
    graph.CopyFrom(SOFTMAX)
    graph.graph.output.append(floats("a0", "batch", 3))
    with pytest.raises(InvalidInput, match=r"output: must name the one .*: probabilities, a0"):
        build(graph)
    spec = inspect(build(graph, output="a0", scores="logits")).classifier_spec()
    assert (spec.output, spec.scores) == ("a0", "logits")


def test_without_an_output_of_floats_there_is_no_classifier(build):
    graph = model_of(
        [helper.make_node("ArgMax", ["x"], ["label"], axis=1)],
        [floats("x", "batch", 3)],
        [helper.make_tensor_value_info("label", TensorProto.INT64, ["batch", 1])],
    )
    with pytest.raises(InvalidInput, match=r"outputs of floats: none \(export without ZipMap\)"):
        build(graph)


def test_texts_are_no_input(build):
    graph = model_of(
        [helper.make_node("Cast", ["words"], ["y"], to=TensorProto.FLOAT)],
        [helper.make_tensor_value_info("words", TensorProto.STRING, ["batch", 3])],
        [floats("y", "batch", 3)],
    )
    with pytest.raises(BundleError, match=r"its input words is tensor\(string\)"):
        build(graph)


def test_more_scores_than_labels_are_found_where_the_graph_does_not_say(build):
    graph = model_of(
        [
            helper.make_node("Greater", ["x", "never"], ["all"]),
            helper.make_node("Flatten", ["all"], ["flat"], axis=0),
            helper.make_node("Squeeze", ["flat"], ["kept"]),
            helper.make_node("Compress", ["x", "kept"], ["y"]),
        ],
        [floats("x", "batch", 3)],
        [floats("y", "classes")],
        [helper.make_tensor("never", TensorProto.FLOAT, [], [-1.0])],
    )
    with pytest.raises(BundleError, match="y has 3 scores for 2 labels"):
        build(graph, labels=["a", "b"], scores="logits")


def test_a_graph_that_cannot_run_is_refused(build):
    graph = model_of(
        [
            helper.make_node("Reshape", ["x", "shape"], ["pairs"]),
            helper.make_node("ReduceSum", ["pairs", "axis"], ["y"], keepdims=0),
        ],
        [floats("x", "batch", 3)],
        [floats("y", "batch", 2)],
        [
            helper.make_tensor("shape", TensorProto.INT64, [3], [1, -1, 2]),
            helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
        ],
    )
    with pytest.raises(BundleError, match="the graphs do not run: cannot be computed on"):
        build(graph, labels=["a", "b"], scores="logits")


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 64, b"GIF89a, no graph at all", SOFTMAX.SerializeToString()[:-40]],
    ids=["empty", "zeros", "foreign", "truncated"],
)
def test_a_file_that_is_no_whole_onnx_is_refused(build, tmp_path, content):
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    with pytest.raises(
        InvalidInput, match=r"model: .*model\.onnx is no whole ONNX file"
    ) as refused:
        build(file)
    assert "\n" not in str(refused.value)
    with pytest.raises(InvalidInput, match=r"preprocessor: .*no whole ONNX file"):
        build(SOFTMAX, preprocessor=file)


def test_a_missing_file_is_named(build, tmp_path):
    with pytest.raises(NotFound, match=r"model: there is no file .*nothing\.onnx"):
        build(tmp_path / "nothing.onnx")


@pytest.mark.parametrize("part", ["classifier", "preprocess"])
def test_an_operator_that_onnxruntime_does_not_know_is_refused(build, part):
    graph = onnx.ModelProto()
    graph.CopyFrom(SOFTMAX)
    graph.graph.node[0].domain = "com.example"
    graph.opset_import.append(helper.make_opsetid("com.example", 1))
    graphs = {"classifier": (graph, None), "preprocess": (SOFTMAX, graph)}
    model, preprocessor = graphs[part]
    with pytest.raises(BundleError, match=rf"{part}\.onnx: onnxruntime cannot load it") as refused:
        build(model, preprocessor=preprocessor)
    assert "\n" not in str(refused.value)


def test_a_preprocessor_must_give_what_the_model_takes(build):
    doubles = model_of(
        [helper.make_node("Cast", ["raw"], ["x"], to=TensorProto.DOUBLE)],
        [floats("raw", "batch", 3)],
        [helper.make_tensor_value_info("x", TensorProto.DOUBLE, ["batch", 3])],
    )
    with pytest.raises(BundleError, match=r"gives tensor\(double\) where .* takes x as float32"):
        build(SOFTMAX, preprocessor=doubles)
    two = model_of(
        [helper.make_node("Split", ["raw"], ["x", "rest"], axis=1, num_outputs=2)],
        [floats("raw", "batch", 6)],
        [floats("x", "batch", 3), floats("rest", "batch", 3)],
    )
    with pytest.raises(BundleError, match=r"gives x, rest, but .* takes x; name them alike"):
        build(SOFTMAX, preprocessor=two)


def test_weights_in_files_of_their_own_are_taken_in(build, tmp_path):
    weights = np.random.default_rng(0).normal(size=(512, 3)).astype(np.float32)
    graph = perceptron([(weights, np.zeros(3))])
    file = tmp_path / "model.onnx"
    onnx.save(graph, file, save_as_external_data=True, location="model.data", size_threshold=0)
    assert (tmp_path / "model.data").is_file()
    stored = onnx.load(build(file) / CLASSIFIER_GRAPH, load_external_data=False)
    (matrix,) = (t for t in stored.graph.initializer if t.name == "w0")
    np.testing.assert_array_equal(numpy_helper.to_array(matrix), weights)


def test_a_missing_weights_file_is_refused(build, tmp_path):
    file = tmp_path / "model.onnx"
    graph = onnx.ModelProto()
    graph.CopyFrom(SOFTMAX)
    onnx.save(graph, file, save_as_external_data=True, location="model.data", size_threshold=0)
    (tmp_path / "model.data").unlink()
    with pytest.raises(InvalidInput, match=r"model: .*is no whole ONNX file"):
        build(file)


def test_a_bundle_is_replaced_only_when_asked_to(build):
    build(SOFTMAX)
    with pytest.raises(InvalidInput, match="allow overwriting"):
        build(LOGITS, scores="logits")
    assert (
        inspect(build(LOGITS, scores="logits", overwrite=True)).classifier_spec().scores == "logits"
    )


def test_rescaling_scales_shifts_and_reshapes():
    from onnx.reference import ReferenceEvaluator

    mean, deviation = np.array([1.0, 2.0]), np.array([2.0, 4.0])
    graph = rescaling(
        "scale", "int16", (3, 2), scale=1 / deviation, offset=-mean / deviation, reshape=(6,)
    )
    values = np.arange(6, dtype=np.int16).reshape(1, 3, 2)
    (prepared,) = ReferenceEvaluator(graph).run(None, {"scale": values})
    np.testing.assert_allclose(prepared, ((values - mean) / deviation).reshape(1, 6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "text"}, "dtype: 'text' is not one of"),
        ({"shape": ()}, "shape: is empty"),
        ({"reshape": (7,)}, r"reshape: \[7\] does not hold what \[3, 2\] holds"),
        ({"scale": [1.0, 2.0, 3.0]}, r"scale: of shape \[3\] does not fit \[3, 2\]"),
        ({"offset": np.nan}, "offset: holds NaN"),
    ],
)
def test_rescaling_refuses_what_does_not_fit(options, message):
    with pytest.raises(InvalidInput, match=message):
        rescaling(**({"name": "x", "dtype": "uint8", "shape": (3, 2)} | options))
