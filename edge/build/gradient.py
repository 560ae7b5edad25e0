"""Loss and LoRA gradients of the last layers as one plain graph, node by node.

Forward and backward are written out by hand, so that stock onnxruntime trains: there is no autograd
on a device. The graph begins with the activations that enter the first trained layer, which no
adapter of these layers changes (``trunk.py`` gives them), and shares every weight with the decode
graph (``frozen.py``). Several sequences are one run: they lie behind each other, and a bias on the
attention scores says who sees whom, so that a tree of answers is a sequence like any other.

The formulas are in this folder's README. Products with an adapter are y = x W^T + (x A) B.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from edge.build.architecture import Decoder
from edge.build.frozen import Frozen, FrozenMatrices
from edge.build.graph import adapter_inputs, adapter_slots, value
from edge.build.loss import add_loss, add_scores
from edge.build.nodes import Nodes
from edge.build.weight_file import WeightFile
from edge.bundle import AdapterSlot


def write_gradient(decoder: Decoder, weights: WeightFile, layers: int) -> ModelProto:
    """The graph that trains adapters of the last ``layers`` layers.

    Arguments:
        weights: where ``write_decoder`` wrote the decode graph's; nothing is added to it.
        layers: 1 to the decoder's.
    """
    nodes = Nodes(weights)
    _GradientGraph(decoder, nodes, FrozenMatrices(nodes, weights.tensors), layers).build()
    real = TensorProto.FLOAT
    outputs = [
        value("loss", real),
        value("target_logprobs", real, "P"),
        value("answer_logprobs", real, "O"),
        *(
            helper.make_tensor_value_info(f"gradient.{each.name}", real, _shape(each))
            for each in adapter_inputs(_slots(decoder, layers))
        ),
    ]
    return _model("gradient", decoder, nodes, layers, outputs)


def write_scores(decoder: Decoder, weights: WeightFile, layers: int) -> ModelProto:
    """Of that graph what ``answer_logprobs`` needs: nothing of the way back. Inputs are the same
    but for the weights of targets and answers. See ``write_gradient``."""
    nodes = Nodes(weights)
    frozen = FrozenMatrices(nodes, weights.tensors)
    _GradientGraph(decoder, nodes, frozen, layers).build(back=False)
    outputs = [value("answer_logprobs", TensorProto.FLOAT, "O")]
    return _model("scores", decoder, nodes, layers, outputs)


def _slots(decoder: Decoder, layers: int) -> tuple[AdapterSlot, ...]:
    return adapter_slots(decoder)[-4 * layers :]


def _model(
    name: str, decoder: Decoder, nodes: Nodes, layers: int, outputs: list[ValueInfoProto]
) -> ModelProto:
    """A graph of ``nodes``, with those of the inputs that they use."""
    integer, real = TensorProto.INT64, TensorProto.FLOAT
    used = {name for node in nodes.nodes for name in node.input}
    inputs = [
        value("hidden", real, "T", decoder.hidden),
        value("positions", integer, 1, "T"),
        value("attention_bias", real, "T", "T"),
        value("logit_rows", integer, "R"),
        value("target_rows", integer, "P"),
        value("target_ids", integer, "P"),
        value("target_weights", real, "P"),
        value("end_targets", real, "E", "P"),
        value("answer_targets", real, "O", "P"),
        value("answer_ends", real, "O", "E"),
        value("answer_groups", real, "G", "O"),
        value("answer_weights", real, "O"),
        *adapter_inputs(_slots(decoder, layers)),
    ]
    inputs = [given for given in inputs if given.name in used]
    return nodes.model(name, inputs, outputs)


def _shape(tensor: ValueInfoProto) -> list[int | str]:
    return [size.dim_param or size.dim_value for size in tensor.type.tensor_type.shape.dim]


@dataclass(frozen=True, slots=True)
class _Linear:
    """A packed linear with its adapter, and what its way back needs of its way there."""

    parts: list[Frozen]
    slot: str
    x: str
    low: str


@dataclass(frozen=True, slots=True)
class _Norm:
    """x = n w with n = r / rms(r): ``scaled`` is n, ``inverse`` is 1 / rms(r)."""

    weight: str
    scaled: str
    inverse: str


@dataclass(frozen=True, slots=True)
class _Layer:
    """What a layer's way back needs of its way there. ``q`` and ``probabilities`` are those of the
    rows that attend: [kv_heads, group · rows, …]."""

    rows: str
    norms: tuple[_Norm, _Norm]
    qkv: _Linear
    o: _Linear
    gate_up: _Linear
    down: _Linear
    q: str
    k: str
    v: str
    attended: str
    probabilities: str
    gate: str
    up: str
    sigmoid: str


class _GradientGraph:
    """Appends the nodes. Activations are [T, width], in the last layer [R, width] behind the
    attention: of it only the rows whose logits are wanted matter."""

    def __init__(self, decoder: Decoder, nodes: Nodes, frozen: FrozenMatrices, layers: int) -> None:
        self._decoder, self._nodes, self._frozen = decoder, nodes, frozen
        self._layers = range(decoder.layers - layers, decoder.layers)
        self._group = decoder.heads // decoder.kv_heads
        self._width = decoder.heads * decoder.head_dim
        self._kv_width = decoder.kv_heads * decoder.head_dim
        self._biases: dict[str, str] = {}

    def build(self, *, back: bool = True) -> None:
        nodes, frozen, hidden = self._nodes, self._frozen, self._decoder.hidden
        cosine, sine = frozen.floats("rotary.cosine"), frozen.floats("rotary.sine")
        self._there, self._back = (cosine, sine), (cosine, nodes.apply("Neg", sine))
        residual, layers = "hidden", []
        for layer in self._layers:
            rows = "logit_rows" if layer == self._layers[-1] else ""
            residual, memory = self._layer(residual, layer, rows)
            layers.append(memory)
        x, norm = self._norm(residual, "output_norm")
        (head,) = frozen.linear("head", hidden) or frozen.linear("embedding", hidden)
        if not back:
            add_scores(nodes, frozen, x, head)
            return
        gradient = self._norm_back(add_loss(nodes, frozen, x, head), norm)
        for layer, memory in zip(reversed(self._layers), reversed(layers), strict=True):
            gradient = self._layer_back(gradient, memory, first=layer == self._layers[0])

    def _layer(self, residual: str, layer: int, rows: str) -> tuple[str, _Layer]:
        """The residual behind a layer; of ``rows`` alone where that names some."""
        nodes, block, name = self._nodes, f"blk.{layer}", f"layers.{layer}"
        decoder = self._decoder
        x, first = self._norm(residual, f"{block}.attn_norm")
        qkv, qkv_memory = self._linear(x, f"{block}.attn_qkv", f"{name}.qkv", decoder.hidden)
        qk, v = f"{block}.qk", f"{block}.v"
        width = nodes.integers(self._width + self._kv_width, self._kv_width)
        nodes.add("Split", [qkv, width], [qk, v], axis=1)
        q, k = f"{block}.q", f"{block}.k"
        width = nodes.integers(self._width, self._kv_width)
        nodes.add("Split", [self._rotate(qk, self._there), width], [q, k], axis=1)
        if rows:
            q, residual = (nodes.apply("Gather", each, rows, axis=0) for each in (q, residual))
        q, k, v = self._by_heads(q, self._group), self._by_heads(k), self._by_heads(v)
        scores = nodes.apply("MatMul", q, nodes.apply("Transpose", k, perm=[0, 2, 1]))
        scores = nodes.apply("Mul", scores, nodes.number(decoder.head_dim**-0.5))
        probabilities = nodes.apply("Softmax", nodes.apply("Add", scores, self._bias(rows)), axis=2)
        attended = nodes.apply("MatMul", probabilities, v)
        flat = self._by_tokens(attended, self._group)
        out, o_memory = self._linear(flat, f"{block}.attn_output", f"{name}.o", self._width)
        residual = nodes.apply("Add", residual, out)
        x, second = self._norm(residual, f"{block}.ffn_norm")
        both, gate_up = self._linear(x, f"{block}.ffn_gate_up", f"{name}.gate_up", decoder.hidden)
        gate, up = f"{block}.gate", f"{block}.up"
        nodes.add("Split", [both], [gate, up], axis=1, num_outputs=2)
        sigmoid = nodes.apply("Sigmoid", gate)
        product = nodes.apply("Mul", nodes.apply("Mul", gate, sigmoid), up)
        out, down = self._linear(product, f"{block}.ffn_down", f"{name}.down", decoder.feed_forward)
        memory = _Layer(
            rows,
            (first, second),
            qkv_memory,
            o_memory,
            gate_up,
            down,
            q,
            k,
            v,
            attended,
            probabilities,
            gate,
            up,
            sigmoid,
        )
        return nodes.apply("Add", residual, out), memory

    def _layer_back(self, gradient: str, layer: _Layer, *, first: bool) -> str:
        """d loss / d residual before the layer, from that behind it; "" for the first one trained,
        of which nobody asks it."""
        nodes = self._nodes
        product = self._linear_back(gradient, layer.down)
        passed = nodes.apply("Mul", product, layer.sigmoid)
        # d (g s(g)) / d g = s + g s (1 − s)
        turned = nodes.apply("Sub", nodes.number(1.0), layer.sigmoid)
        turned = nodes.apply("Add", nodes.number(1.0), nodes.apply("Mul", layer.gate, turned))
        gate = nodes.apply("Mul", nodes.apply("Mul", passed, layer.up), turned)
        up = nodes.apply("Mul", passed, layer.gate)
        x = self._linear_back(nodes.apply("Concat", gate, up, axis=1), layer.gate_up)
        gradient = nodes.apply("Add", gradient, self._norm_back(x, layer.norms[1]))
        out = self._by_heads(self._linear_back(gradient, layer.o), self._group)
        q, k, v = self._attention_back(out, layer)
        if layer.rows:
            q = self._scattered(q, layer.rows, self._width)
        qk = self._rotate(nodes.apply("Concat", q, k, axis=1), self._back)
        qkv = nodes.apply("Concat", qk, v, axis=1)
        x = self._linear_back(qkv, layer.qkv, adapter_only=first)
        if first:
            return ""
        if layer.rows:
            gradient = self._scattered(gradient, layer.rows, self._decoder.hidden)
        return nodes.apply("Add", gradient, self._norm_back(x, layer.norms[0]))

    def _attention_back(self, out: str, layer: _Layer) -> tuple[str, str, str]:
        """Gradients of q [rows, …], k and v [T, …], rotated as they were, from that of what was
        attended: [kv_heads, group · rows, head_dim]."""
        nodes, p = self._nodes, layer.probabilities
        v = nodes.apply("MatMul", nodes.apply("Transpose", p, perm=[0, 2, 1]), out)
        chances = nodes.apply("MatMul", out, nodes.apply("Transpose", layer.v, perm=[0, 2, 1]))
        # Softmax: p (g − Σ p g), and Σ p g = Σ out · attended.
        mean = nodes.apply("ReduceSum", nodes.apply("Mul", out, layer.attended), nodes.integers(2))
        scores = nodes.apply("Mul", p, nodes.apply("Sub", chances, mean))
        scores = nodes.apply("Mul", scores, nodes.number(self._decoder.head_dim**-0.5))
        q = nodes.apply("MatMul", scores, layer.k)
        k = nodes.apply("MatMul", nodes.apply("Transpose", scores, perm=[0, 2, 1]), layer.q)
        return self._by_tokens(q, self._group), self._by_tokens(k), self._by_tokens(v)

    def _linear(self, x: str, name: str, slot: str, columns: int) -> tuple[str, _Linear]:
        nodes, parts = self._nodes, self._frozen.linear(name, columns)
        y = self._frozen.product(x, parts)
        if self._frozen.has(f"{name}.bias"):
            y = nodes.apply("Add", y, self._frozen.floats(f"{name}.bias"))
        low = nodes.apply("MatMul", x, f"lora.{slot}.a")
        return nodes.apply("Gemm", low, f"lora.{slot}.b", y), _Linear(parts, slot, x, low)

    def _linear_back(self, gradient: str, linear: _Linear, *, adapter_only: bool = False) -> str:
        """d loss / d x, and as outputs of the graph those of A and B."""
        nodes, a, b = self._nodes, f"lora.{linear.slot}.a", f"lora.{linear.slot}.b"
        low = nodes.apply("Gemm", gradient, b, transB=1)
        nodes.add("Gemm", [linear.x, low], [f"gradient.{a}"], transA=1)
        nodes.add("Gemm", [linear.low, gradient], [f"gradient.{b}"], transA=1)
        if adapter_only:
            return ""
        x = self._frozen.product_back(gradient, linear.parts)
        return nodes.apply("Gemm", low, a, x, transB=1)

    def _norm(self, residual: str, name: str) -> tuple[str, _Norm]:
        nodes, weight = self._nodes, self._frozen.floats(f"{name}.weight")
        square = nodes.apply("Mul", residual, residual)
        mean = nodes.apply("ReduceMean", square, nodes.integers(1))
        mean = nodes.apply("Add", mean, nodes.number(self._decoder.norm_epsilon))
        inverse = nodes.apply("Reciprocal", nodes.apply("Sqrt", mean))
        scaled = nodes.apply("Mul", residual, inverse)
        return nodes.apply("Mul", scaled, weight), _Norm(weight, scaled, inverse)

    def _norm_back(self, gradient: str, norm: _Norm) -> str:
        """(g w − n mean(g w n)) / rms."""
        nodes = self._nodes
        weighted = nodes.apply("Mul", gradient, norm.weight)
        along = nodes.apply("Mul", weighted, norm.scaled)
        mean = nodes.apply("ReduceMean", along, nodes.integers(1))
        across = nodes.apply("Sub", weighted, nodes.apply("Mul", norm.scaled, mean))
        return nodes.apply("Mul", across, norm.inverse)

    def _rotate(self, qk: str, table: tuple[str, str]) -> str:
        """Rotary embedding of all heads of [T, width]; turned back by the negative sine."""
        nodes = self._nodes
        batch = nodes.apply("Unsqueeze", qk, nodes.integers(0))
        turned = nodes.apply("RotaryEmbedding", batch, "positions", *table)
        return nodes.apply("Squeeze", turned, nodes.integers(0))

    def _by_heads(self, x: str, group: int = 1) -> str:
        """[T, heads · head_dim] -> [kv_heads, group · T, head_dim]."""
        nodes, decoder = self._nodes, self._decoder
        shape = nodes.integers(-1, decoder.kv_heads, group, decoder.head_dim)
        x = nodes.apply("Transpose", nodes.apply("Reshape", x, shape), perm=[1, 2, 0, 3])
        return nodes.apply("Reshape", x, nodes.integers(decoder.kv_heads, -1, decoder.head_dim))

    def _by_tokens(self, x: str, group: int = 1) -> str:
        """The way back of ``_by_heads``."""
        nodes, decoder = self._nodes, self._decoder
        shape = nodes.integers(decoder.kv_heads, group, -1, decoder.head_dim)
        x = nodes.apply("Transpose", nodes.apply("Reshape", x, shape), perm=[2, 0, 1, 3])
        width = decoder.kv_heads * group * decoder.head_dim
        return nodes.apply("Reshape", x, nodes.integers(-1, width))

    def _bias(self, rows: str) -> str:
        """[1, group · rows, T]: every head of a group has the same."""
        key = rows or "all"
        if key not in self._biases:
            nodes = self._nodes
            own = (
                nodes.apply("Gather", "attention_bias", rows, axis=0) if rows else "attention_bias"
            )
            tiled = nodes.apply("Tile", own, nodes.integers(self._group, 1))
            self._biases[key] = nodes.apply("Unsqueeze", tiled, nodes.integers(0))
        return self._biases[key]

    def _scattered(self, x: str, rows: str, width: int) -> str:
        """[R, width] -> [T, width], zeros elsewhere."""
        nodes = self._nodes
        indices = nodes.apply("Unsqueeze", rows, nodes.integers(1))
        shape = nodes.apply(
            "Concat", nodes.apply("Shape", "hidden", start=0, end=1), nodes.integers(width), axis=0
        )
        zeros = nodes.apply("ConstantOfShape", shape)
        return nodes.apply("ScatterND", zeros, indices, x)
