"""Exported bundles take PEFT's adapters as torch does, and give them up without a trace."""

from __future__ import annotations

import dataclasses
from itertools import product

import numpy as np
import onnx
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers.pytorch_utils import Conv1D

from cascade.errors import BundleError
from edge.adapter import Adapter, LoraPair, write_adapter
from edge.build.exported_slots import modules_by_output
from edge.bundle import Bundle, describe_files, seal
from edge.decoder import TreeNode
from edge.exported import ExportedDecoder
from edge.model import OnnxModel
from edge.peft import read_peft

from ..folders import IDS, load, logits
from .test_export import _round_as_stored

# One linear for q, k and v; its matrices the other way round (Conv1D); separate ones; others before
# and behind the layers.
TARGETS = {
    "gpt_neox": ["query_key_value", "dense_4h_to_h"],
    "gpt2": ["c_attn", "c_fc"],
    "phi": ["q_proj", "v_proj", "fc1"],
    "opt": ["project_in", "q_proj", "fc2", "project_out"],
}
PLAIN = "gpt_neox"  # for what does not depend on the family
CLOSE = {"rtol": 0, "atol": 2e-4}
OPTIONS = ("a", "b", "c")


@pytest.fixture(scope="module", params=TARGETS)
def folder(request, exports):
    return exports.folder(request.param)


@pytest.fixture(scope="module")
def bundles(folder, exports):
    """An opened bundle by quantisation, with float32 activations."""
    return {stored: exports.bundle(folder.name, stored) for stored in ("fp32", "int8")}


@pytest.fixture
def bundle(exports):
    return exports.bundle(PLAIN)


@pytest.fixture(scope="module")
def publisher(exports):
    return exports.key, exports.trust


@pytest.fixture(scope="module")
def all_linears(exports, publisher, tmp_path_factory):
    """An adapter of every linear, opened for the plain model's fp32 bundle."""
    home, model = tmp_path_factory.mktemp("all"), load(exports.folder(PLAIN))
    save_peft(model, home / "peft", seed=3, target_modules="all-linear", r=2, lora_alpha=2)
    return signed(home, exports.bundle(PLAIN), publisher)


@pytest.fixture(scope="module")
def attention(exports, publisher, tmp_path_factory):
    home, model = tmp_path_factory.mktemp("some"), load(exports.folder(PLAIN))
    targets = ["query_key_value"]
    save_peft(model, home / "peft", seed=4, target_modules=targets, r=4, lora_alpha=8)
    return signed(home, exports.bundle(PLAIN), publisher)


def save_peft(model, where, *, seed, **options):
    """Save a strong random adapter; the model's logits with it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LoraConfig(
            task_type="CAUSAL_LM", fan_in_fan_out=model.config.model_type == "gpt2", **options
        )
        adapted = get_peft_model(model, config).eval()
        for name, values in adapted.named_parameters():
            if "lora_B" in name:
                values.data.normal_(std=0.5)
    adapted.save_pretrained(where)
    return logits(adapted, IDS)


def signed(home, bundle, publisher):
    key, trust = publisher
    folder = write_adapter(
        home / "adapter",
        read_peft(home / "peft"),
        name=home.name,
        base_digest=bundle.manifest.base_digest,
        signing_key=key,
    )
    return Adapter.open(folder, trust)


def test_every_linear_but_the_head_is_a_slot(folder, bundles):
    model = load(folder)
    sizes = {
        path: tuple(module.weight.shape if isinstance(module, Conv1D) else module.weight.T.shape)
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
        and module is not model.get_output_embeddings()
    }
    for bundle in bundles.values():
        slots = bundle.manifest.adapter_slots
        found = {slot.modules: (slot.columns, slot.rows) for slot in slots}
        assert sorted(found.values()) == sorted(sizes.values())
        assert set(found) == {(_called(path),) for path in sizes}


def _called(path):
    llamas = path.startswith("model.layers.")  # OPT's layers are in a decoder
    short = llamas and path.endswith(("q_proj", "k_proj", "v_proj"))
    return path.removeprefix("model.").replace("self_attn.", "") if short else path


@pytest.mark.parametrize(
    "case", list(product(("fp32", "int8"), ("some linears", "all linears"))), ids=", ".join
)
def test_an_adapter_gives_the_logits_that_torch_gives(folder, bundles, publisher, tmp_path, case):
    quantisation, linears = case
    model = load(folder)
    if quantisation == "int8":
        _round_as_stored(model)
    base = logits(model, IDS)
    targets = "all-linear" if linears == "all linears" else TARGETS[folder.name]
    expected = save_peft(
        model, tmp_path / "peft", seed=1, target_modules=targets, r=8, lora_alpha=16
    )
    assert np.abs(expected - base).max() > 1  # strong enough to matter

    bundle = bundles[quantisation]
    adapter = signed(tmp_path, bundle, publisher)
    decoder = ExportedDecoder(bundle.path, bundle.manifest)
    idle = decoder.read(IDS)
    np.testing.assert_allclose(idle, base[-1], **CLOSE)
    decoder.use_adapter(adapter.digest, adapter.inputs(bundle.manifest))
    rows = [decoder.read(IDS[:1]), *(decoder.push(token) for token in IDS[1:])]
    np.testing.assert_allclose(rows, expected, **CLOSE)
    tree = decoder.read_tree(IDS[:-2], [TreeNode(-1, IDS[-2]), TreeNode(0, IDS[-1])])
    np.testing.assert_allclose(tree, expected[-2:], **CLOSE)
    decoder.use_adapter("", None)
    np.testing.assert_array_equal(decoder.read(IDS), idle)


@pytest.mark.parametrize("quantisation", ["fp32", "int8"])
def test_idle_slots_change_no_bit(bundles, publisher, tmp_path, quantisation):
    bundle = bundles[quantisation]
    before = without_slots(bundle, publisher, tmp_path / "before")
    assert before.manifest.base_digest == bundle.manifest.base_digest
    old, new = (ExportedDecoder(each.path, each.manifest) for each in (before, bundle))
    np.testing.assert_array_equal(old.read(IDS), new.read(IDS))
    np.testing.assert_array_equal(old.push(5), new.push(5))


def test_adapters_are_swapped_and_leave_nothing_behind(bundle, all_linears, attention):
    model = OnnxModel(bundle)

    def scores() -> np.ndarray:
        model.forget_prefix()  # what is read in other pieces is rounded otherwise
        return model.choose("ab ab", OPTIONS, prior_prompt="a").options.logprobs

    base, text = scores(), model.generate("ab ab", max_tokens=8).text
    digests = [model.load_adapter(adapter) for adapter in (all_linears, attention)]
    np.testing.assert_array_equal(scores(), base)  # loaded is not active
    seen = []
    for digest in (*digests, digests[0]):
        model.use_adapter(digest)
        assert model.info.adapter_digest == digest
        seen.append(scores())
    assert min(np.abs(a - b).max() for a, b in ((seen[0], base), (seen[1], base))) > 0.05
    assert np.abs(seen[0] - seen[1]).max() > 0.05
    np.testing.assert_array_equal(seen[2], seen[0])
    model.unload_adapter(digests[0])
    assert (model.info.adapter_digest, model.adapters) == ("", (digests[1],))
    np.testing.assert_array_equal(scores(), base)
    model.forget_prefix()
    assert model.generate("ab ab", max_tokens=8).text == text


def test_what_another_adapter_read_is_read_again(bundle, attention):
    decoder = ExportedDecoder(bundle.path, bundle.manifest)
    inputs = attention.inputs(bundle.manifest)
    decoder.use_adapter(attention.digest, inputs)
    alone = decoder.read(IDS)
    decoder.use_adapter("", None)
    assert decoder.free_tokens == bundle.manifest.context_tokens
    decoder.read(IDS[:-3])
    decoder.use_adapter(attention.digest, inputs)
    np.testing.assert_array_equal(decoder.read(IDS), alone)
    decoder.use_adapter(attention.digest, inputs)  # no swap: nothing is forgotten
    assert decoder.free_tokens == bundle.manifest.context_tokens - len(IDS)


class TestRefused:
    """Whatever is refused is refused on loading, and the model stays as it was."""

    @pytest.fixture
    def load(self, bundle, publisher, tmp_path):
        key, trust = publisher

        def load(pairs, base_digest=""):
            folder = write_adapter(
                tmp_path / "adapter",
                pairs,
                name="bad",
                base_digest=base_digest or bundle.manifest.base_digest,
                signing_key=key,
            )
            OnnxModel(bundle).load_adapter(Adapter.open(folder, trust))

        return load

    @pytest.fixture
    def slot(self, bundle):
        return bundle.manifest.adapter_slots[0]

    def test_of_a_wrong_shape(self, load, slot):
        for a, b in (((63, 2), (2, slot.rows)), ((slot.columns, 2), (2, slot.rows + 1))):
            with pytest.raises(BundleError, match=rf"{slot.name} has A .* needs A \(64, rank\)"):
                load({slot.name: LoraPair(np.ones(a, np.float32), np.ones(b, np.float32))})

    def test_of_another_base(self, load, slot):
        with pytest.raises(BundleError, match="was made for base 0000"):
            load({slot.name: pair(slot)}, base_digest="0" * 64)

    def test_with_nan(self, load, slot):
        bad = pair(slot)
        bad.a[3, 1] = np.nan
        with pytest.raises(BundleError, match="NaN"):
            load({slot.name: bad})

    def test_of_the_head(self, load, slot):
        with pytest.raises(BundleError, match="no linear 'lm_head'"):
            load({slot.name: pair(slot), "lm_head": pair(slot)})

    def test_by_a_bundle_from_before_there_were_slots(
        self, bundle, publisher, all_linears, tmp_path
    ):
        before = without_slots(bundle, publisher, tmp_path / "before")
        model = OnnxModel(before)
        said = model.generate("ab ab", max_tokens=4).text
        with pytest.raises(BundleError, match=r"has no adapter slots; build the bundle again"):
            model.load_adapter(all_linears)
        assert (model.adapters, model.generate("ab ab", max_tokens=4).text) == ((), said)

    def test_a_graph_whose_slots_are_not_those_of_its_manifest(self, bundle):
        first, *rest = bundle.manifest.adapter_slots
        fewer = dataclasses.replace(bundle.manifest, adapter_slots=tuple(rest))
        with pytest.raises(BundleError, match="with the adapter slots of its manifest"):
            ExportedDecoder(bundle.path, fewer)
        other = dataclasses.replace(first, columns=first.columns + 1)
        wider = dataclasses.replace(bundle.manifest, adapter_slots=(other, *rest))
        with pytest.raises(BundleError, match=f"input lora.{first.name}.a is not as"):
            ExportedDecoder(bundle.path, wider)


def pair(slot):
    return LoraPair(np.ones((slot.columns, 2), np.float32), np.ones((2, slot.rows), np.float32))


def without_slots(bundle, publisher, where):
    """The bundle as it was built before its graph had slots."""
    key, trust = publisher
    where.mkdir()
    for name in bundle.manifest.files:
        (where / name).write_bytes(bundle.file(name).read_bytes())
    model = onnx.load(where / "decode.onnx", load_external_data=False)
    graph, low = model.graph, set()
    kept = [value for value in graph.input if not value.name.startswith("lora.")]
    del graph.input[:]
    graph.input.extend(kept)
    nodes, same = [], {}
    for node in graph.node:
        names = [same.get(name, name) for name in node.input]
        del node.input[:]
        node.input.extend(names)
        if any(name.startswith("lora.") for name in names):
            if node.op_type == "Gemm":  # low, B, y
                same[node.output[0]] = names[2]
            else:
                low.add(node.output[0])
        elif node.op_type == "Add" and names[1] in low:  # y, low B
            same[node.output[0]] = names[0]
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    (where / "decode.onnx").write_bytes(model.SerializeToString())
    manifest = dataclasses.replace(
        bundle.manifest, adapter_slots=(), files=describe_files(where, tuple(bundle.manifest.files))
    )
    seal(where, manifest, key)
    return Bundle.open(where, trust)


def test_only_what_is_certain_is_a_slot():
    def node(name):
        return onnx.helper.make_node("MatMul", ["x", "w"], [name], name=name)

    linears = [
        (node("/decoder/layers.0/fc1/MatMul"), "w0"),  # the outermost module is missing
        (node("/decoder/layers.0/fc2/MatMul"), "w1"),
        (node("/decoder/layers.0/fc2_1/MatMul"), "w1"),  # the same matrix elsewhere
        (node("/decoder/layers.1/fc1/MatMul"), "w2"),  # called twice
        (node("/decoder/layers.1/fc1/MatMul_1"), "w2"),
        (node("/decoder/layers.1/fc2/MatMul"), "w3"),  # two matrices
        (node("/decoder/layers.1/fc2/MatMul_1"), "w4"),
        (node("/fc3/MatMul"), "w5"),  # in either layer
        (node(""), "w6"),
    ]
    paths = [f"model.decoder.layers.{i}.{name}" for i in (0, 1) for name in ("fc1", "fc2", "fc3")]
    assert modules_by_output(linears, paths) == {
        "/decoder/layers.0/fc1/MatMul": "model.decoder.layers.0.fc1",
        "/decoder/layers.1/fc1/MatMul": "model.decoder.layers.1.fc1",
        "/decoder/layers.1/fc1/MatMul_1": "model.decoder.layers.1.fc1",
    }
