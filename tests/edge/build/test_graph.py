"""The graph computes what the architecture says, for every family and mix of block types."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from cascade.errors import InvalidInput

from .running import Graph
from .tiny import HIDDEN, VOCABULARY, Tiny

IDS = [1, 77, 30, 259, 4, 200, 131, 77, 2, 58, 99, 12]

MODELS = {
    "as SmolLM2": Tiny(types={"token_embd": Type.Q8_0}),
    "as Qwen2.5": Tiny(
        "qwen2",
        {"attn_v": Type.Q8_0, "ffn_down": Type.Q6_K, "token_embd": Type.Q5_0, "output": Type.Q8_0},
        Type.Q5_0,
        tied=False,
    ),
    "Q4_0": Tiny(default=Type.Q4_0),
    "minima in the embedding": Tiny(types={"ffn_down": Type.Q4_K}),
    "formulas that do not stack": Tiny("qwen2", {"attn_v": Type.Q8_0, "ffn_up": Type.F16}),
    "rotation slowed pair by pair": Tiny(rope_factors=True),
    "llama with biases": Tiny(biases=True),
    "F16": Tiny(default=Type.F16),
    "F32": Tiny(default=Type.F32, tied=False),
}


@pytest.fixture(params=MODELS, ids=str)
def model(request):
    return MODELS[request.param]


def test_exact_graph_equals_plain_numpy(model, build, tmp_path):
    bundle = build(model.write(tmp_path / "tiny.gguf"), tmp_path / "out", accuracy_level=0)
    expected = model.logits(IDS)
    assert expected.std() > 0.3  # the comparison below means something
    assert np.abs(Graph(bundle).extend(IDS) - expected).max() < 1e-4


def test_device_graph_stays_close(model, build, tmp_path):
    bundle = build(model.write(tmp_path / "tiny.gguf"), tmp_path / "out")
    expected = model.logits(IDS)
    assert np.abs(Graph(bundle).extend(IDS) - expected).mean() < 0.03 * expected.std()


def test_fp32_reference_equals_plain_numpy(model, build, tmp_path):
    bundle = build(model.write(tmp_path / "tiny.gguf"), tmp_path / "out", quantise="fp32")
    assert np.abs(Graph(bundle).extend(IDS) - model.logits(IDS)).max() < 1e-4


def test_a_gguf_file_is_not_quantised_again(build, tmp_path):
    path = Tiny().write(tmp_path / "tiny.gguf")
    with pytest.raises(InvalidInput, match="quantise: int8: a GGUF file is quantised already"):
        build(path, tmp_path / "out", quantise="int8")


def test_chunks_and_steps_equal_one_shot(model, build, tmp_path):
    bundle = build(model.write(tmp_path / "tiny.gguf"), tmp_path / "out", accuracy_level=0)
    graph = Graph(bundle)
    whole = graph.extend(IDS)
    for chunks in ([IDS[:5], IDS[5:]], [IDS[:1], IDS[1:4], IDS[4:]], [[token] for token in IDS]):
        assert np.abs(graph.extend_in(chunks) - whole).max() < 1e-5


def test_logits_come_for_the_positions_asked_for_only(build, tmp_path):
    graph = Graph(build(MODELS["as SmolLM2"].write(tmp_path / "tiny.gguf"), tmp_path / "out"))
    whole = graph.extend(IDS)
    graph.restart()
    assert np.array_equal(graph.extend(IDS, [11, 3]), whole[[11, 3]])
    graph.restart()
    assert graph.extend(IDS, []).shape == (0, VOCABULARY)


def test_a_sequence_can_go_back_and_take_another_turn(build, tmp_path):
    graph = Graph(build(MODELS["as SmolLM2"].write(tmp_path / "tiny.gguf"), tmp_path / "out"))
    expected = graph.extend([*IDS[:5], 60, 61], [6])
    graph.restart()
    graph.extend(IDS)
    graph.go_back(5)
    assert np.array_equal(graph.extend([60, 61], [1]), expected)


def test_a_shared_embedding_is_stored_once(build, tmp_path):
    tied, own = Tiny(), Tiny(tied=False)
    sizes = [
        (build(model.write(tmp_path / f"{name}.gguf"), tmp_path / name) / "decode.data")
        .stat()
        .st_size
        for name, model in (("tied", tied), ("own", own))
    ]
    # Its codes; scales and minima stand beside others' and may use up what was padding.
    assert sizes[1] - sizes[0] >= VOCABULARY * HIDDEN // 2


def test_another_architecture_is_refused_with_those_that_work(build, tmp_path):
    path = Tiny().write(tmp_path / "tiny.gguf", general__architecture="gemma3")
    with pytest.raises(
        InvalidInput, match=r"'gemma3' model; supported architectures: llama, qwen2"
    ):
        build(path, tmp_path / "out")


@pytest.mark.parametrize("name", ["blk.1.ffn_up.weight", "output_norm.weight"])
def test_a_missing_tensor_is_named(build, tmp_path, name):
    path = Tiny().write(tmp_path / "tiny.gguf", without=(name,))
    with pytest.raises(InvalidInput, match=name):
        build(path, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny.gguf"]
