"""The decoder over several caches, trees and adapters, against plain float64 numpy."""

from __future__ import annotations

import copy
import dataclasses
import shutil

import numpy as np
import onnx
import pytest
from gguf import GGMLQuantizationType as Type
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade.errors import BundleError, Cancelled, InvalidInput
from cascade.local import CancelToken
from cascade.signing import SigningKey, TrustStore
from edge.adapter import Adapter, LoraPair, write_adapter
from edge.build import build_from_gguf
from edge.bundle import Bundle, describe_files, seal
from edge.decoder import Decoder, TreeNode
from edge.model import OnnxModel

from .build.tiny import CONTEXT, HIDDEN, VOCABULARY, WIDE, Tiny

TINY = Tiny(types={"token_embd": Type.Q8_0})
CLOSE = {"rtol": 0, "atol": 2e-4}

ids = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def key():
    return SigningKey.generate()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, key):
    folder = tmp_path_factory.mktemp("tiny")
    trust = TrustStore(folder / "trust")
    trust.pin("tests", key.public)
    out = build_from_gguf(
        TINY.write(folder / "tiny.gguf"),
        folder / "bundle",
        name="tiny",
        base_model="tiny",
        licence="Apache-2.0",
        commercial_use=True,
        signing_key=key,
        accuracy_level=0,
    )
    return Bundle.open(out, trust), trust


@pytest.fixture(scope="module")
def decoder(tiny):
    bundle, _ = tiny
    return Decoder(bundle.path, bundle.manifest, caches=3)


@pytest.fixture(scope="module")
def adapters(tiny, key, tmp_path_factory):
    """Two adapters strong enough to matter: one of all linears, one of q and v in one layer."""
    bundle, trust = tiny
    rng = np.random.default_rng(3)
    outputs = {"q_proj": HIDDEN, "k_proj": 32, "v_proj": 32, "o_proj": HIDDEN, "gate_proj": WIDE,
               "up_proj": WIDE, "down_proj": HIDDEN}  # fmt: skip

    def pair(linear: str, rank: int) -> LoraPair:
        inputs = WIDE if linear == "down_proj" else HIDDEN
        a = rng.normal(size=(inputs, rank)) / np.sqrt(inputs)
        return LoraPair(
            a.astype(np.float32), rng.normal(size=(rank, outputs[linear])).astype(np.float32)
        )

    everywhere = {f"layers.{i}.{name}": pair(name, 2 + i) for i in (0, 1) for name in outputs}
    some = {f"layers.1.{name}": pair(name, 4) for name in ("q_proj", "v_proj")}
    return [
        Adapter.open(
            write_adapter(
                tmp_path_factory.mktemp(name),
                pairs,
                name=name,
                base_digest=bundle.manifest.base_digest,
                signing_key=key,
            ),
            trust,
        )
        for name, pairs in (("everywhere", everywhere), ("some", some))
    ]


def adapted(adapter: Adapter | None) -> Tiny:
    """The reference model with the adapter merged into its weights."""
    names = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
             "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}  # fmt: skip
    model = copy.copy(TINY)
    model.weights = dict(TINY.weights)
    for module, pair in (adapter.pairs if adapter else {}).items():
        _, layer, linear = module.split(".")
        name = f"blk.{layer}.{names[linear]}.weight"
        change = (pair.a.astype(np.float64) @ pair.b).T
        heads = {"q_proj": 4, "k_proj": 2}.get(linear)
        if heads:  # the file keeps these rows in another order
            change = change.reshape(heads, 2, -1, HIDDEN).swapaxes(1, 2).reshape(change.shape)
        model.weights[name] = model.weights[name] + change
    return model


trees = st.lists(
    st.tuples(st.integers(-1, 7), st.integers(0, VOCABULARY - 1)), min_size=1, max_size=8
).map(lambda raw: [TreeNode(min(parent, i - 1), token) for i, (parent, token) in enumerate(raw)])

actions = st.lists(
    st.one_of(
        st.tuples(st.just("read"), ids),
        st.tuples(st.just("read a continuation"), ids),
        st.tuples(st.just("push"), st.integers(0, VOCABULARY - 1)),
        st.tuples(st.just("tree"), trees),
        st.tuples(st.just("more of the tree"), trees),
        st.tuples(st.just("adapter"), st.sampled_from([None, 0, 1])),
        st.tuples(st.just("forget"), st.none()),
    ),
    min_size=2,
    max_size=10,
)


@settings(max_examples=40)
@given(actions=actions)
def test_whatever_came_before_the_logits_are_those_of_the_sequence(
    decoder, adapters, tiny, actions
):
    reference, sequence, tree = TINY, [5], []
    decoder.use_adapter("", None)
    decoder.read(sequence)
    for action, value in actions:
        if action == "adapter":
            adapter = None if value is None else adapters[value]
            inputs = adapter.inputs(tiny[0].manifest) if adapter else None
            decoder.use_adapter(adapter.digest if adapter else "", inputs)
            reference = adapted(adapter)
            decoder.read(sequence)
        elif action == "forget":
            decoder.forget()
            decoder.read(sequence)
        elif "tree" in action:
            # What is known of the tree may be the call before, or older than anything else.
            known = len(tree) if "more" in action else 0
            room = max(0, CONTEXT - len(sequence) - known)
            grown = [TreeNode(p + known if p >= 0 else p, token) for p, token in value[:room]]
            if not grown:
                continue
            tree = [*tree[:known], *grown]
            got = decoder.read_tree(sequence, tree, known=known)
            paths: list[list[int]] = []
            for node in tree:
                paths.append([*(paths[node.parent] if node.parent >= 0 else sequence), node.token])
            for row, path in zip(got, paths[known:], strict=True):
                np.testing.assert_allclose(row, reference.logits(path)[-1], **CLOSE)
            if len(value) % 2:
                decoder.read(sequence)
        elif action == "push":
            if decoder.free_tokens == 0:
                continue
            sequence = [*sequence, value]
            got = decoder.push(value)
            np.testing.assert_allclose(got, reference.logits(sequence)[-1], **CLOSE)
        else:
            sequence = (sequence + value if "continuation" in action else value)[:CONTEXT]
            got = decoder.read(sequence)
            np.testing.assert_allclose(got, reference.logits(sequence)[-1], **CLOSE)


def test_tasks_and_conversations_keep_their_beginnings(decoder, monkeypatch):
    read: list[int] = []
    extend = Decoder._extend

    def count(self, tokens, start, cancel):
        read.append(len(tokens) - start)
        extend(self, tokens, start, cancel)

    monkeypatch.setattr(Decoder, "_extend", count)
    decoder.forget()
    instruction, other = list(range(20)), list(range(100, 120))
    decoder.read([*instruction, 50, 51])
    decoder.read([*other, 60])
    read.clear()
    decoder.read([*instruction, 70, 71, 72])  # the task's next input: its instruction is known
    decoder.read([*other, 60, 61])  # the other conversation's next turn
    decoder.read([*instruction, 73])
    assert read == [3, 1, 1]
    # A conversation that shares only its first tokens with another takes nothing from it.
    decoder.read([*other[:5], 80])
    decoder.read([*other, 60, 61, 62])
    assert read[3:] == [1, 1]


def test_an_adapter_changes_much_and_leaves_nothing_behind(tiny, adapters):
    bundle, _ = tiny
    model = OnnxModel(bundle)
    prompt = "abcabc"

    def scores() -> np.ndarray:
        return model.choose(prompt, ("a", "b", "c")).options.logprobs

    base = scores()
    digests = [model.load_adapter(adapter) for adapter in adapters]
    np.testing.assert_allclose(scores(), base, **CLOSE)  # loaded is not active
    seen = []
    for digest in (*digests, digests[0]):
        model.use_adapter(digest)
        assert model.info.adapter_digest == digest
        seen.append(scores())
    assert np.abs(seen[0] - base).max() > 0.05
    assert np.abs(seen[1] - base).max() > 0.05
    np.testing.assert_allclose(seen[2], seen[0], **CLOSE)
    model.unload_adapter(digests[0])
    assert model.info.adapter_digest == ""
    assert model.adapters == (digests[1],)
    np.testing.assert_allclose(scores(), base, **CLOSE)


@pytest.mark.parametrize("tokens", [[], [0] * (CONTEXT + 1), [VOCABULARY], [-1]])
def test_sequences_that_cannot_be_read_are_refused_and_harm_nothing(decoder, tokens):
    decoder.use_adapter("", None)
    decoder.read([1, 2])
    with pytest.raises(InvalidInput):
        decoder.read(tokens)
    np.testing.assert_allclose(decoder.read([1, 2, 3]), TINY.logits([1, 2, 3])[-1], **CLOSE)


def test_the_context_can_be_filled_to_its_last_token(decoder):
    decoder.use_adapter("", None)
    full = [7] * CONTEXT
    np.testing.assert_allclose(decoder.read(full), TINY.logits(full)[-1], **CLOSE)
    assert decoder.free_tokens == 0
    with pytest.raises(InvalidInput, match="fills all"):
        decoder.push(1)
    with pytest.raises(InvalidInput, match="answers"):
        decoder.read_tree(full, [TreeNode(-1, 1)])


def test_a_cancelled_tree_is_not_run(decoder):
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(Cancelled):
        decoder.read_tree([1, 2], [TreeNode(-1, 3)], cancel)


class TestRefusedAdapters:
    """Each is refused when it is loaded, with what is wrong; the model stays as it was."""

    @pytest.fixture
    def load(self, tiny, key, tmp_path):
        bundle, trust = tiny

        def load(pairs: dict[str, LoraPair], base_digest: str = "") -> None:
            folder = write_adapter(
                tmp_path / "adapter",
                pairs,
                name="bad",
                base_digest=base_digest or bundle.manifest.base_digest,
                signing_key=key,
            )
            OnnxModel(bundle).load_adapter(Adapter.open(folder, trust))

        return load

    @staticmethod
    def pair(inputs: int = HIDDEN, rank: int = 2, outputs: int = HIDDEN) -> LoraPair:
        return LoraPair(np.ones((inputs, rank), np.float32), np.ones((rank, outputs), np.float32))

    def test_of_another_base(self, load):
        with pytest.raises(BundleError, match="was made for base 0000"):
            load({"layers.0.q_proj": self.pair()}, base_digest="0" * 64)

    def test_of_a_wrong_shape(self, load):
        with pytest.raises(BundleError, match=r"layers.0.q_proj has A \(63, 2\)"):
            load({"layers.0.q_proj": self.pair(inputs=63)})
        with pytest.raises(BundleError, match=r"needs A \(64, rank\) and B \(rank, 32\)"):
            load({"layers.0.k_proj": self.pair()})

    def test_of_a_linear_that_is_not_there(self, load):
        with pytest.raises(BundleError, match=r"no linear 'layers.2.q_proj'"):
            load({"layers.2.q_proj": self.pair()})

    def test_with_nan(self, load):
        bad = self.pair()
        bad.b[1, 3] = np.nan
        with pytest.raises(BundleError, match="NaN"):
            load({"layers.0.q_proj": bad})

    def test_altered_or_unsigned_or_foreign(self, tiny, key, tmp_path):
        bundle, trust = tiny
        folder = write_adapter(
            tmp_path / "adapter",
            {"layers.0.q_proj": self.pair()},
            name="good",
            base_digest=bundle.manifest.base_digest,
            signing_key=SigningKey.generate(),
        )
        with pytest.raises(BundleError, match="key"):
            Adapter.open(folder, trust)
        write_adapter(
            folder,
            {"layers.0.q_proj": self.pair()},
            name="good",
            base_digest=bundle.manifest.base_digest,
            signing_key=key,
        )
        weights = folder / "adapter.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
        with pytest.raises(BundleError, match="altered"):
            Adapter.open(folder, trust)


class TestForeignGraphs:
    """Signed, so that the files are as meant, and yet not what the manifest describes."""

    @pytest.fixture
    def open_with(self, tiny, key, tmp_path):
        bundle, trust = tiny

        def open_with(graph: bytes) -> Decoder:
            folder = tmp_path / "bundle"
            shutil.copytree(bundle.path, folder)
            (folder / "decode.onnx").write_bytes(graph)
            manifest = dataclasses.replace(bundle.manifest, files=describe_files(folder))
            seal(folder, manifest, key)
            return Decoder(folder, Bundle.open(folder, trust).manifest)

        return open_with

    def test_a_truncated_graph(self, tiny, open_with):
        whole = (tiny[0].path / "decode.onnx").read_bytes()
        with pytest.raises(BundleError, match="onnxruntime cannot load it"):
            open_with(whole[: len(whole) // 2])

    def test_no_graph_at_all(self, open_with):
        with pytest.raises(BundleError, match="onnxruntime cannot load it"):
            open_with(b"Not found")

    def test_a_graph_of_something_else(self, open_with):
        value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
        same = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
        node = onnx.helper.make_node("Identity", ["x"], ["y"])
        graph = onnx.helper.make_graph([node], "other", [value], [same])
        model = onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10
        )
        with pytest.raises(BundleError, match="input attention_bias is not as tiny's manifest"):
            open_with(model.SerializeToString())
