"""Products in whole numbers: against numpy on the same codes, and against the exact trunk."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto

from cascade.signing import SigningKey, TrustStore
from edge.build import build_from_folder, coarse
from edge.build.architecture import Decoder
from edge.build.blocks import BlockWeights
from edge.build.graph import value
from edge.build.matrices import Matrices
from edge.build.nodes import Nodes
from edge.build.quantise import quantise
from edge.build.weight_file import WeightFile
from edge.bundle import COARSE_GRAPH, DECODE_WEIGHTS, Bundle
from edge.session import open_session
from edge.training import GradientSession, text_lesson
from edge.training.trunk import coarse_weights
from tests.edge.training.reference import flat, random_pairs

from .folders import IDS, save_model

COLUMNS, ROWS = 128, 48
DECODER = Decoder(
    family="llama",
    layers=4,
    hidden=COLUMNS,
    feed_forward=256,
    heads=4,
    kv_heads=2,
    head_dim=32,
    vocabulary=64,
    context=64,
    norm_epsilon=1e-5,
    rotary=(1.0,) * 16,
)


def with_minima(rng: np.random.Generator, rows: int = ROWS) -> BlockWeights:
    shape = (rows, COLUMNS // 32)
    return BlockWeights(
        bits=4,
        codes=rng.integers(0, 16, (rows, COLUMNS), dtype=np.uint8),
        scale=rng.uniform(0.01, 0.02, shape).astype(np.float16),
        minimum=-rng.uniform(0.05, 0.2, shape).astype(np.float16),
    )


def without(rng: np.random.Generator, rows: int = ROWS) -> BlockWeights:
    return quantise(rng.normal(size=(rows, COLUMNS)).astype(np.float32), 8)


def coarse_product(
    folder: Path, parts: list[BlockWeights], bias: np.ndarray | None, x: np.ndarray
) -> np.ndarray:
    """x W^T + bias, computed by a decode graph of this one linear, made coarse."""
    with (folder / DECODE_WEIGHTS).open("wb") as file:
        weights = WeightFile(file, DECODE_WEIGHTS)
        nodes = Nodes(weights)
        matrices = Matrices(nodes, 4)
        y = matrices.multiply_all("x", list(parts), "blk.2.ffn_gate_up", bias)
        nodes.add("Identity", [y], ["y"])
        matrices.finish()
        found = coarse.coarse_matrices(DECODER, weights, 1)
        assert sum(each.rows for each in found) == sum(part.rows for part in parts)
        rows = sum(part.rows for part in parts)
        decode = nodes.model(
            "one",
            [value("x", TensorProto.FLOAT, "T", COLUMNS)],
            [value("y", TensorProto.FLOAT, "T", rows)],
        )
        made = coarse.with_coarse(decode, found)
        maker = coarse.write_coarse(weights, found)
    assert not [node for node in made.graph.node if node.op_type == "MatMulNBits"]
    for name, graph in (("one.onnx", made), (COARSE_GRAPH, maker)):
        (folder / name).write_bytes(graph.SerializeToString())
    weights_of = coarse_weights(folder / COARSE_GRAPH, threads=1)
    session = open_session(folder / "one.onnx", threads=1, weights=weights_of)
    product: np.ndarray = session.run(None, {"x": x})[0]
    return product


def turned(x: np.ndarray) -> np.ndarray:
    """x H, in blocks of 64: by Sylvester's rule, that of bits in common."""
    places = np.arange(64)
    common = np.array([[(int(i) & int(j)).bit_count() for j in places] for i in places])
    h = np.where(common % 2, -1.0, 1.0) / 8
    return (x.reshape(len(x), -1, 64).astype(np.float64) @ h).reshape(x.shape)


def expected(weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The product of rounded numbers, in integers and float64."""
    w, t = turned(weights), turned(x)
    w_scale = np.abs(w).max(1, keepdims=True) / 90
    t_scale = np.abs(t).max(1, keepdims=True) / 90
    codes = np.round(t / t_scale).astype(np.int64) @ np.round(w / w_scale).astype(np.int64).T
    return codes * t_scale * w_scale.T


@pytest.mark.parametrize("kinds", ["minima", "symmetric", "both", "minima with bias"])
def test_a_product_is_that_of_its_codes(tmp_path, kinds) -> None:
    rng = np.random.default_rng(5)
    parts = {
        "minima": [with_minima(rng), with_minima(rng, 32)],
        "symmetric": [without(rng)],
        "both": [with_minima(rng), without(rng, 32)],
        "minima with bias": [with_minima(rng)],
    }[kinds]
    dense = np.concatenate([part.dequantise() for part in parts])
    bias = rng.normal(size=len(dense)).astype(np.float32) if "bias" in kinds else None
    x = rng.normal(size=(7, COLUMNS)).astype(np.float32)
    x[:, 3] *= 40  # a channel that would take all codes, were it not spread
    found = coarse_product(tmp_path, parts, bias, x)
    exact = x.astype(np.float64) @ dense.T.astype(np.float64)
    rounded = expected(dense, x)
    if bias is not None:
        exact, rounded = exact + bias, rounded + bias
    # A code may fall on the other side of a half, in float32.
    assert np.abs(found - rounded).max() < 2e-3 * np.abs(exact).max()
    assert np.abs(found - exact).max() < 0.03 * np.abs(exact).max()
    assert np.abs(found - exact).max() > 1e-4


def test_the_largest_sums_do_not_overflow_and_zeros_stay_zeros(tmp_path) -> None:
    """All codes as large as they can be: 16 bits hold two products of 180 and 90, no more."""
    blocks = np.zeros((ROWS, COLUMNS), np.float32)
    blocks[:, ::64] = 1.0  # turned, all are 1/8
    weights = quantise(blocks, 8)
    x = np.zeros((2, COLUMNS), np.float32)
    x[0, ::64] = 3.0
    found = coarse_product(tmp_path, [weights], None, x)
    np.testing.assert_allclose(found[0], x[0] @ weights.dequantise().T, rtol=1e-5)
    assert not found[1].any()


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """Builds bundles of five layers, the last of which is trained."""
    root = tmp_path_factory.mktemp("deep")
    key = SigningKey.generate()
    trust = TrustStore(root / "trust")
    trust.pin("tests", key.public)

    @functools.cache
    def build(quantised: str, level: int, wide: int = 128) -> Bundle:
        folder = root / f"{quantised}-{level}-{wide}"
        save_model(
            folder, "llama", num_hidden_layers=5, intermediate_size=wide, initializer_range=0.1
        )
        path = build_from_folder(
            folder,
            folder / "bundle",
            name="deep",
            base_model="random weights",
            licence="Apache-2.0",
            commercial_use=True,
            signing_key=key,
            quantise=quantised,
            accuracy_level=level,
            gradient_layers=1,
        )
        return Bundle.open(path, trust)

    return build


def outputs(session: ort.InferenceSession) -> list[str]:
    return [output.name for output in session.get_outputs()]


def test_gradients_behind_a_coarse_trunk_are_those_of_the_exact_one(deep) -> None:
    lessons = [text_lesson(IDS[:9], IDS[9:13]), text_lesson(IDS[4:8], IDS[13:15])]
    gradients, hidden = [], []
    for level in (4, 0):
        bundle = deep("int8", level)
        assert (COARSE_GRAPH in bundle.manifest.files) == (level == 4)
        session = GradientSession(bundle, keep="nothing")
        gradients.append(flat(session.run(lessons, random_pairs(session)).gradients))
        hidden.append(session.activations.get(lessons[0].segments[0]))
    cosine = gradients[0] @ gradients[1] / np.prod([np.linalg.norm(each) for each in gradients])
    assert cosine > 0.99
    error = np.linalg.norm(hidden[0] - hidden[1]) / np.linalg.norm(hidden[1])
    assert 1e-4 < error < 0.05


@pytest.mark.parametrize(("quantised", "wide", "names"), [("fp32", 128, 0), ("int8", 96, 2)])
def test_floats_and_odd_widths_stay_as_they_are(deep, quantised, wide, names) -> None:
    bundle = deep(quantised, 4, wide)
    session = GradientSession(bundle, keep="nothing")
    assert np.isfinite(session.run([text_lesson(IDS[:6], IDS[6:9])], {}).loss)
    if not names:
        assert COARSE_GRAPH not in bundle.manifest.files
        return
    maker = ort.InferenceSession(str(bundle.path / COARSE_GRAPH))
    made = {name.split(".")[2] for name in outputs(maker)}
    assert made == {"attn_output", "ffn_gate_up"}


def test_the_first_layers_stay_as_they_are_and_more_of_ffn_down(deep) -> None:
    maker = ort.InferenceSession(str(deep("int8", 4).path / COARSE_GRAPH))
    made = {(name.split(".")[2], int(name.split(".")[1])) for name in outputs(maker)}
    assert made == {
        *(("attn_output", layer) for layer in (1, 2, 3)),
        *(("ffn_gate_up", layer) for layer in (1, 2, 3)),
        *(("ffn_down", layer) for layer in (2, 3)),
    }


def test_where_room_is_short_the_last_layers_have_it(deep, monkeypatch) -> None:
    monkeypatch.setattr(coarse, "_MOST", 2 * (64 * 64 + 256 * 64 + 128 * 64))
    bundle = deep("int4", 4)
    maker = ort.InferenceSession(str(bundle.path / COARSE_GRAPH))
    assert {name.split(".")[1] for name in outputs(maker)} == {"2", "3"}
