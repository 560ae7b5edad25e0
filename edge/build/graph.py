"""The decoder as an ONNX graph, node by node, for ONNX Runtime's fused CPU kernels.

One call extends the sequence by T tokens and returns the logits at P of them. Attention reads and
writes one key-value buffer, which the caller binds as past and as present; a bias on its scores
lets the T tokens form a tree. Every linear takes a LoRA adapter as two more inputs, of rank 0 when
idle. The picture is in this folder's README. How a matrix is stored and multiplied is in
``matrices.py``; where its numbers come from is in ``checkpoint.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from edge.build.architecture import Decoder
from edge.build.blocks import Floats
from edge.build.checkpoint import Checkpoint
from edge.build.matrices import AccuracyLevel, Matrices, Matrix
from edge.build.nodes import Nodes
from edge.build.weight_file import WeightFile
from edge.bundle import HIDDEN_PREFIX, AdapterSlot


def write_decoder(
    checkpoint: Checkpoint, decoder: Decoder, weights: WeightFile, accuracy_level: AccuracyLevel
) -> ModelProto:
    """Write the weights of ``checkpoint`` to ``weights`` and return the graph that uses them.

    Arguments:
        accuracy_level: of ``MatMulNBits``. 4 quantises activations to int8 by blocks (fast); 0
            keeps them float32 (a reference, several times slower).

    Raises:
        InvalidInput: a tensor is missing or has another shape than ``decoder`` says.
    """
    nodes = Nodes(weights)
    graph = _DecoderGraph(checkpoint, decoder, nodes, Matrices(nodes, accuracy_level))
    graph.build()
    inputs = [
        value("input_ids", TensorProto.INT64, 1, "T"),
        value("seqlens_k", TensorProto.INT32, 1),
        value("total_sequence_length", TensorProto.INT32),
        value("logit_positions", TensorProto.INT64, "P"),
        value("position_ids", TensorProto.INT64, 1, "T"),
        value("attention_bias", TensorProto.FLOAT, 1, 1, "T", "W"),
        *_buffers("past_key_values", decoder),
        *adapter_inputs(adapter_slots(decoder)),
    ]
    hidden = residual_name(hidden_layer(decoder.layers), decoder.layers)
    outputs = [
        value("logits", TensorProto.FLOAT, "P", decoder.vocabulary),
        value(hidden, TensorProto.FLOAT, "T", decoder.hidden),
        *_buffers("present", decoder),
    ]
    return nodes.model("decoder", inputs, outputs)


def hidden_layer(layers: int) -> int:
    """Layers below the hidden states that the graph gives out for an adapter's head.

    Four fifths of all: of SmolLM2-135M's 30 the states behind 24 served a head better than those
    behind all (sentiment, mean and last token: .883 against .882 right with 100 labels, .922
    against .912 with 1,200), and adapters of the last layers do not change them.
    """
    return max(1, 4 * layers // 5)


def residual_name(layer: int, layers: int) -> str:
    """The value that enters ``layer``, 1 to ``layers``; with all of them, the last norm."""
    if layer == hidden_layer(layers):
        return f"{HIDDEN_PREFIX}{layer}"
    return f"blk.{layer}.attn_norm.residual" if layer < layers else "output_norm.residual"


def value(name: str, kind: int, *shape: int | str) -> ValueInfoProto:
    """An input or output; a string is a size that may be any."""
    return helper.make_tensor_value_info(name, kind, shape)


def _buffers(prefix: str, decoder: Decoder) -> list[ValueInfoProto]:
    shape = (1, decoder.kv_heads, "max_len", decoder.head_dim)
    return [
        value(f"{prefix}.{layer}.{half}", TensorProto.FLOAT, *shape)
        for layer in range(decoder.layers)
        for half in ("key", "value")
    ]


def adapter_slots(decoder: Decoder) -> tuple[AdapterSlot, ...]:
    """Where the graph takes adapters: the four packed linears of each layer."""
    width, kv_width = decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    hidden, wide = decoder.hidden, decoder.feed_forward
    packed = (
        ("qkv", hidden, {"q_proj": width, "k_proj": kv_width, "v_proj": kv_width}),
        ("o", width, {"o_proj": hidden}),
        ("gate_up", hidden, {"gate_proj": wide, "up_proj": wide}),
        ("down", wide, {"down_proj": hidden}),
    )
    return tuple(
        AdapterSlot(
            name=f"layers.{layer}.{name}",
            columns=columns,
            modules=tuple(f"layers.{layer}.{module}" for module in modules),
            widths=tuple(modules.values()),
        )
        for layer in range(decoder.layers)
        for name, columns, modules in packed
    )


def adapter_inputs(slots: Sequence[AdapterSlot]) -> list[ValueInfoProto]:
    """A and B of each slot, float32; the ranks are symbols of their own."""
    values = []
    for slot in slots:
        rank = f"{slot.name}.rank"
        values.append(value(slot.input_a, TensorProto.FLOAT, slot.columns, rank))
        values.append(value(slot.input_b, TensorProto.FLOAT, rank, slot.rows))
    return values


class _DecoderGraph:
    """Appends the decoder's nodes. Activations are [T, width] except around attention."""

    def __init__(
        self, checkpoint: Checkpoint, decoder: Decoder, nodes: Nodes, matrices: Matrices
    ) -> None:
        self._checkpoint = checkpoint
        self._decoder = decoder
        self._nodes = nodes
        self._matrices = matrices

    def build(self) -> None:
        nodes, matrices = self._nodes, self._matrices
        tied = not self._checkpoint.has("output.weight")
        vocabulary = (self._decoder.vocabulary, self._decoder.hidden)
        embedding = matrices.store(self._matrix("token_embd", *vocabulary), "embedding")
        ids = nodes.apply("Reshape", "input_ids", nodes.integers(-1))
        residual = matrices.rows_of(embedding, ids)
        x = nodes.apply(
            "SimplifiedLayerNormalization",
            residual,
            self._norm_weight("blk.0.attn_norm"),
            epsilon=self._decoder.norm_epsilon,
            axis=-1,
        )
        rotary, bias = self._rotary_table(), self._whole_bias()
        for layer in range(self._decoder.layers):
            x = self._attention(x, layer, rotary, bias)
            between = f"blk.{layer}.ffn_norm"
            x, residual = self._add_and_norm(x, residual, between, f"{between}.residual")
            x = self._feed_forward(x, layer)
            last = layer + 1 == self._decoder.layers
            following = "output_norm" if last else f"blk.{layer + 1}.attn_norm"
            entering = residual_name(layer + 1, self._decoder.layers)
            x, residual = self._add_and_norm(x, residual, following, entering)
        x = nodes.apply("Gather", x, "logit_positions", axis=0)
        head = embedding if tied else matrices.store(self._matrix("output", *vocabulary), "head")
        logits = matrices.multiply(x, head)
        nodes.add("Identity", [logits], ["logits"])
        matrices.finish()

    def _whole_bias(self) -> str:
        """The bias over all positions: 0 before the last W, of which the input speaks.

        So a single token's bias is the same at every length, and need not be bound for every step.
        """
        nodes = self._nodes
        total = nodes.apply("Cast", "total_sequence_length", to=TensorProto.INT64)
        given = nodes.apply("Shape", "attention_bias", start=3, end=4)
        before = nodes.apply("Sub", total, given)
        none = nodes.integers(0, 0, 0)
        pads = nodes.apply("Concat", none, before, none, nodes.integers(0), axis=0)
        return nodes.apply("Pad", "attention_bias", pads)

    def _attention(self, x: str, layer: int, rotary: tuple[str, str], scores_bias: str) -> str:
        decoder, nodes, block = self._decoder, self._nodes, f"blk.{layer}"
        width, kv_width = decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
        parts = [
            self._matrix(f"{block}.attn_q", width, decoder.hidden, heads=decoder.heads),
            self._matrix(f"{block}.attn_k", kv_width, decoder.hidden, heads=decoder.kv_heads),
            self._matrix(f"{block}.attn_v", kv_width, decoder.hidden),
        ]
        bias = self._bias(
            block,
            {"attn_q": width, "attn_k": kv_width, "attn_v": kv_width},
            heads={"attn_q": decoder.heads, "attn_k": decoder.kv_heads},
        )
        qkv = self._linear(x, parts, f"{block}.attn_qkv", f"layers.{layer}.qkv", bias)
        attended = f"{block}.attended"
        nodes.add(
            "GroupQueryAttention",
            [
                nodes.apply("Reshape", qkv, nodes.integers(1, -1, width + 2 * kv_width)),
                "",
                "",
                f"past_key_values.{layer}.key",
                f"past_key_values.{layer}.value",
                "seqlens_k",
                "total_sequence_length",
                *rotary,
                "position_ids",
                scores_bias,
            ],
            [attended, f"present.{layer}.key", f"present.{layer}.value"],
            num_heads=decoder.heads,
            kv_num_heads=decoder.kv_heads,
            do_rotary=1,
            rotary_interleaved=0,
        )
        flat = nodes.apply("Reshape", attended, nodes.integers(-1, width))
        output = self._matrix(f"{block}.attn_output", decoder.hidden, width)
        bias = self._bias(block, {"attn_output": decoder.hidden})
        return self._linear(flat, [output], f"{block}.attn_output", f"layers.{layer}.o", bias)

    def _feed_forward(self, x: str, layer: int) -> str:
        """down(silu(gate x) * up x); QuickGelu with alpha 1 is silu."""
        decoder, nodes, block = self._decoder, self._nodes, f"blk.{layer}"
        wide, narrow = decoder.feed_forward, decoder.hidden
        parts = [self._matrix(f"{block}.ffn_{part}", wide, narrow) for part in ("gate", "up")]
        bias = self._bias(block, {"ffn_gate": wide, "ffn_up": wide})
        both = self._linear(x, parts, f"{block}.ffn_gate_up", f"layers.{layer}.gate_up", bias)
        gate, up = f"{block}.gate", f"{block}.up"
        nodes.add("Split", [both], [gate, up], axis=1, num_outputs=2)
        product = nodes.apply("Mul", nodes.apply("QuickGelu", gate, alpha=1.0), up)
        down = self._matrix(f"{block}.ffn_down", narrow, wide)
        bias = self._bias(block, {"ffn_down": narrow})
        return self._linear(product, [down], f"{block}.ffn_down", f"layers.{layer}.down", bias)

    def _linear(
        self, x: str, parts: list[Matrix], name: str, slot: str, bias: Floats | None
    ) -> str:
        """The packed product plus its adapter's: Gemm adds (x A) B to it in one node."""
        y = self._matrices.multiply_all(x, parts, name, bias)
        low = self._nodes.apply("MatMul", x, f"lora.{slot}.a")
        return self._nodes.apply("Gemm", low, f"lora.{slot}.b", y)

    def _add_and_norm(self, x: str, residual: str, name: str, total: str) -> tuple[str, str]:
        """The normalised sum, and the sum itself under the name ``total``."""
        normed = f"{name}.normed"
        self._nodes.add(
            "SkipSimplifiedLayerNormalization",
            [x, residual, self._norm_weight(name)],
            [normed, "", "", total],
            epsilon=self._decoder.norm_epsilon,
        )
        return normed, total

    def _rotary_table(self) -> tuple[str, str]:
        """Cosines and sines, float32 [context, head_dim / 2]."""
        frequencies = np.array(self._decoder.rotary, np.float32)
        angles = np.outer(np.arange(self._decoder.context, dtype=np.float32), frequencies)
        cosine = self._nodes.floats("rotary.cosine", np.cos(angles))
        return cosine, self._nodes.floats("rotary.sine", np.sin(angles))

    def _norm_weight(self, name: str) -> str:
        return self._nodes.floats(f"{name}.weight", self._checkpoint.vector(f"{name}.weight"))

    def _bias(
        self, block: str, widths: dict[str, int], heads: dict[str, int] | None = None
    ) -> Floats | None:
        """The biases of linears that are computed side by side; zeros for one that has none.

        Arguments:
            heads: of the linears that are rotated by heads; see ``Checkpoint.matrix``.
        """
        names = {part: f"{block}.{part}.bias" for part in widths}
        if not any(self._checkpoint.has(name) for name in names.values()):
            return None
        return np.concatenate(
            [
                self._checkpoint.vector(names[part], heads=(heads or {}).get(part, 0))
                if self._checkpoint.has(names[part])
                else np.zeros(width, np.float32)
                for part, width in widths.items()
            ]
        )

    def _matrix(self, name: str, rows: int, columns: int, *, heads: int = 0) -> Matrix:
        return self._checkpoint.matrix(f"{name}.weight", rows, columns, heads=heads)
