"""The decode graph up to the first layer that is trained: what enters it does not depend on what is
learned, so that it is computed once for each example and kept.

Of sequences without a past, onnxruntime's attention rotates every token by its place in the row and
not by its position id, which are not the same in a tree. So there is a past: one for all layers, of
a token that the bias hides.
"""

from __future__ import annotations

from onnx import ModelProto, TensorProto, helper

from edge.build.architecture import Decoder
from edge.build.graph import residual_name, value

PAST = "past"
_PAST_PLACES = (3, 4)  # of GroupQueryAttention's inputs


def cut_trunk(decode: ModelProto, decoder: Decoder, layers: int) -> ModelProto:
    """The part of ``decode`` before its last ``layers`` layers.

    No activations are rounded by blocks, as ``decode`` does it for a single token: over the many
    tokens of an example that costs as much as floats. What is cheaper there is ``coarse.py``.

    Inputs are those of the decode graph, but that all layers have the same ``past``, float32
    [1, kv_heads, P, head_dim], as keys and values. Gives ``hidden``, float32 [T, hidden].
    """
    first = decoder.layers - layers
    wanted = _entering(decode, first, decoder.layers)
    needed, nodes = {wanted}, []
    for node in reversed(decode.graph.node):
        if needed.isdisjoint(node.output):
            continue
        own = type(node)()
        own.CopyFrom(node)
        if own.op_type == "GroupQueryAttention":
            for place in _PAST_PLACES:
                own.input[place] = PAST
        for attribute in own.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 0
        needed.update(own.input)
        nodes.append(own)
    nodes.reverse()
    nodes.append(helper.make_node("Identity", [wanted], ["hidden"], name="Identity.hidden"))
    return helper.make_model(
        helper.make_graph(
            nodes,
            "trunk",
            [
                *(given for given in decode.graph.input if given.name in needed),
                value(PAST, TensorProto.FLOAT, 1, decoder.kv_heads, "P", decoder.head_dim),
            ],
            [value("hidden", TensorProto.FLOAT, "T", decoder.hidden)],
            [tensor for tensor in decode.graph.initializer if tensor.name in needed],
        ),
        opset_imports=decode.opset_import,
        ir_version=decode.ir_version,
        producer_name=decode.producer_name,
    )


def _entering(decode: ModelProto, layer: int, layers: int) -> str:
    """The residual that enters ``layer``: what its first norm adds up or, of layer 0, reads."""
    for node in decode.graph.node:
        if node.op_type == "SimplifiedLayerNormalization" and layer == 0:
            return str(node.input[0])
    return residual_name(layer, layers)
