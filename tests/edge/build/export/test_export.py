"""A model of any other family becomes a bundle that answers as transformers does."""

from __future__ import annotations

import errno
import os
import shutil

import numpy as np
import pytest
import torch

from cascade.errors import BundleError, Cancelled, CascadeError, InvalidInput
from cascade.local import CancelToken
from cascade.request import Message
from edge.bench import measure_here
from edge.build.export import trace
from edge.bundle import inspect
from edge.decoder import TreeNode
from edge.exported import ExportedDecoder
from edge.model import OnnxModel

from ..folders import CONTEXT, END, IDS, change_json, load, logits, round_weights, save_model
from ..tiny import TOKENS, VOCABULARY, Tiny

# GPT-NeoX rotates and multiplies plainly; GPT-2 learns its positions, ties its head, and keeps its
# matrices the other way round.
FAMILIES = ("gpt_neox", "gpt2")


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, exports):
    return exports.folder(request.param)


@pytest.fixture(scope="module")
def bundles(folder, exports):
    """An opened bundle by quantisation, with float32 activations."""
    return {stored: exports.bundle(folder.name, stored) for stored in ("fp32", "int8")}


@pytest.fixture
def decoder(bundles):
    return ExportedDecoder(bundles["fp32"].path, bundles["fp32"].manifest)


@pytest.fixture(scope="module")
def expected(folder):
    return logits(load(folder), IDS)


def test_the_manifest_says_which_runtime_it_needs(folder, bundles):
    manifest = bundles["int8"].manifest
    assert (manifest.graph, manifest.architecture) == ("exported", folder.name)
    assert manifest.quantisation == "int8 in blocks of 32"
    assert (manifest.vocab_size, manifest.context_tokens) == (VOCABULARY, CONTEXT)
    assert (manifest.layers, manifest.kv_heads, manifest.head_dim) == (2, 4, 16)
    assert END in manifest.stop_token_ids


def test_fp32_equals_torch_token_by_token(decoder, expected):
    assert expected.std() > 0.3  # the comparison below means something
    rows = [decoder.read(IDS[:1]), *(decoder.push(token) for token in IDS[1:])]
    assert np.abs(np.array(rows) - expected).max() < 1e-4


def test_int8_equals_torch_on_the_rounded_weights(folder, bundles, expected):
    model = load(folder)
    _round_as_stored(model)
    rounded = logits(model, IDS)
    assert np.abs(rounded - expected).max() > 1e-3
    decoder = ExportedDecoder(bundles["int8"].path, bundles["int8"].manifest)
    assert np.abs(decoder.read(IDS) - rounded[-1]).max() < 1e-4


def test_int8_is_smaller(bundles):
    sizes = {name: bundle.manifest.files["decode.data"].bytes for name, bundle in bundles.items()}
    assert sizes["int8"] < 0.4 * sizes["fp32"]


def test_a_shared_prefix_is_not_read_again(decoder, expected):
    turn = [*IDS[:6], 50, 60, 70]
    alone = decoder.read(turn)
    decoder.forget()
    decoder.read(IDS)
    runs = []
    decoder._session = Spy(decoder._session, runs)
    assert np.abs(decoder.read(turn) - alone).max() < 1e-5
    assert runs == [3]
    assert decoder.free_tokens == CONTEXT - len(turn)
    assert np.abs(decoder.read(IDS) - expected[-1]).max() < 1e-4
    assert np.abs(decoder.read(IDS) - expected[-1]).max() < 1e-4
    assert runs == [3, len(IDS) - 6, 1]


class Spy:
    """Notes how many tokens each run reads."""

    def __init__(self, session, runs):
        self._session, self._runs = session, runs

    def run_with_ort_values(self, outputs, feeds):
        self._runs.append(feeds["input_ids"].shape()[1])
        return self._session.run_with_ort_values(outputs, feeds)


def test_a_tree_gives_the_logits_of_every_path(decoder):
    paths = [[5], [5, 9], [8], [5, 9, 1], [8, 9]]
    nodes = [TreeNode(-1, 5), TreeNode(0, 9), TreeNode(-1, 8), TreeNode(1, 1), TreeNode(2, 9)]
    rows = decoder.read_tree(IDS, nodes)
    assert decoder.free_tokens == CONTEXT - len(IDS)
    for path, row in zip(paths, rows, strict=True):
        assert np.abs(decoder.read([*IDS, *path]) - row).max() < 1e-5
    assert decoder.read_tree(IDS, []).shape == (0, VOCABULARY)


def test_limits_are_errors_and_leave_it_usable(decoder, expected):
    for tokens, message in (
        ([], "is empty"),
        ([1] * (CONTEXT + 1), f"has {CONTEXT + 1} tokens; .* at most {CONTEXT}"),
        ([1, VOCABULARY], f"{VOCABULARY} is no token"),
        ([-1], "-1 is no token"),
    ):
        with pytest.raises(InvalidInput, match=message):
            decoder.read(tokens)
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(Cancelled):
        decoder.read(IDS, cancel)
    decoder.read([1] * CONTEXT)
    assert decoder.free_tokens == 0
    with pytest.raises(InvalidInput, match="tokens"):
        decoder.push(1)
    assert np.abs(decoder.read(IDS) - expected[-1]).max() < 1e-4


def test_it_is_measured_like_any_other(bundles, monkeypatch):
    bundle = bundles["int8"]
    monkeypatch.setattr("cascade.home.trust_dir", lambda: bundle.path.parent / "trust")
    point = measure_here(bundle.path, threads=1, quick=True)
    assert (point.bundle, point.quantisation) == ("tiny-int8", "int8 in blocks of 32")
    assert point.decode_tokens_per_s > 0


def test_it_generates_what_transformers_generates(folder, bundles):
    answer = OnnxModel(bundles["fp32"]).generate("ab ab", max_tokens=12)
    prompt = [TOKENS.index("ab"), TOKENS.index("Ġ"), TOKENS.index("ab")]
    with torch.no_grad():
        whole = load(folder).generate(
            torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=0
        )
    told = [token for token in whole[0, len(prompt) :].tolist() if token != END]
    assert answer.prompt_tokens == len(prompt)
    assert answer.tokens == len(told)
    logprobs = token_logprobs(load(folder), prompt, told)
    assert np.abs(answer.signals.logprobs - logprobs).max() < 1e-4


def test_it_chooses_by_the_probabilities_of_transformers(folder, bundles):
    options = ("a", "b", "ab c")
    chat = (Message("user", "ab"),)
    answer = OnnxModel(bundles["fp32"]).choose(chat, options)
    before = [1, TOKENS.index("ab"), END]
    model = load(folder)
    logprobs = [
        token_logprobs(model, before, [TOKENS.index(piece) for piece in pieces]).sum()
        for pieces in (["a"], ["b"], ["ab", "Ġ", "c"])
    ]
    assert answer.options is not None
    assert np.abs(np.array(logprobs) - answer.options.logprobs).max() < 1e-4
    assert answer.text == options[int(np.argmax(logprobs))]


def token_logprobs(model, before, after):
    rows = logits(model, [*before, *after])[len(before) - 1 : -1].astype(np.float64)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return rows[np.arange(len(after)), after]


def test_devices_run_it_with_int8_activations(folder, bundles, build_by_export, tmp_path):
    out = build_by_export(folder, tmp_path / "out", quantise="int8", context=32)
    manifest = inspect(out)
    assert manifest.context_tokens == 32
    exact = ExportedDecoder(bundles["int8"].path, bundles["int8"].manifest).read(IDS)
    found = ExportedDecoder(out, manifest).read(IDS)
    assert 0 < np.abs(found - exact).mean() < 0.05 * exact.std()


def test_a_llama_can_be_exported_too(build_by_export, tmp_path):
    """For variants that the builder of fused graphs refuses."""
    yarn = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}
    model = save_model(tmp_path / "model", "llama", num_key_value_heads=2, rope_scaling=yarn)
    out = build_by_export(tmp_path / "model", tmp_path / "out", quantise="fp32")
    row = ExportedDecoder(out, inspect(out)).read(IDS)
    assert np.abs(row - logits(model, IDS)[-1]).max() < 1e-4


@pytest.fixture
def neox(tmp_path, tmp_path_factory):
    saved = tmp_path_factory.getbasetemp() / "neox-to-spoil"
    if not saved.exists():
        save_model(saved, "gpt_neox")
    return shutil.copytree(saved, tmp_path / "model")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "elsewhere"}, "cannot be exported .*elsewhere"),
        ({"model_type": "t5"}, "cannot be exported"),
        (
            {"model_type": "own", "auto_map": {"AutoModelForCausalLM": "code.Model"}},
            "cannot be exported",
        ),
    ],
)
def test_a_model_that_cannot_be_exported_is_one_line(
    neox, build_by_export, tmp_path, fields, message
):
    (neox / "code.py").write_text("raise SystemExit('ran')")
    change_json(neox / "config.json", **fields)
    with pytest.raises(InvalidInput, match=message) as caught:
        build_by_export(neox, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_a_graph_that_computes_something_else_is_refused(
    neox, build_by_export, tmp_path, monkeypatch
):
    honest = trace.onnx_export_from_model

    def export_another(model, **options):
        model.gpt_neox.layers[0].mlp.dense_h_to_4h.weight.data *= 1.1
        honest(model=model, **options)
        model.gpt_neox.layers[0].mlp.dense_h_to_4h.weight.data /= 1.1

    monkeypatch.setattr(trace, "onnx_export_from_model", export_another)
    with pytest.raises(InvalidInput, match="away from the model's own logits"):
        build_by_export(neox, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_is_one_line_and_leaves_nothing(neox, build_by_export, tmp_path, monkeypatch):
    def full(**_options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(trace, "onnx_export_from_model", full)
    with pytest.raises(CascadeError, match="the disk is full"):
        build_by_export(neox, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_a_graph_of_another_kind_is_refused(tmp_path, build):
    fused = build(Tiny().write(tmp_path / "tiny.gguf"), tmp_path / "fused")
    with pytest.raises(BundleError, match="is no exported decoder"):
        ExportedDecoder(fused, inspect(fused))


def _round_as_stored(model):
    """What int8 blocks stand for. Learned positions stay as they are; GPT-2's own matrices lie the
    other way round."""
    named = dict(model.named_parameters())
    positions = [values for name, values in named.items() if "wpe" in name or "positions" in name]
    turned = [
        values
        for name, values in named.items()
        if model.config.model_type == "gpt2" and ".c_" in name and name.endswith("weight")
    ]
    kept = [values.detach().clone() for values in positions]
    for values in turned:
        values.data = values.data.T.contiguous()
    round_weights(model, 8)
    for values in turned:
        values.data = values.data.T.contiguous()
    for values, before in zip(positions, kept, strict=True):
        values.data = before
