"""The decode graph up to the first layer that is trained: what enters it does not depend on what is
learned, so that it is computed once for each example and kept."""

from __future__ import annotations

from onnx import ModelProto, TensorProto, helper

from edge.build.architecture import Decoder
from edge.build.graph import value

_PAST = (3, 4)  # of GroupQueryAttention's inputs


def cut_trunk(decode: ModelProto, decoder: Decoder, layers: int) -> ModelProto:
    """The part of ``decode`` before its last ``layers`` layers, without a past.

    Activations are float32 between its matrices, whatever ``decode`` makes of them: over the many
    tokens of an example that costs no more, and learning gets what the weights say.

    Reads whole sequences: ``seqlens_k``, ``total_sequence_length``, ``position_ids`` and
    ``attention_bias`` are those of the decode graph. Gives ``hidden``, float32 [T, hidden].
    """
    first = decoder.layers - layers
    wanted = _entering(decode, first)
    needed, nodes = {wanted}, []
    for node in reversed(decode.graph.node):
        if needed.isdisjoint(node.output):
            continue
        own = type(node)()
        own.CopyFrom(node)
        if own.op_type == "GroupQueryAttention":
            for place in _PAST:
                own.input[place] = ""
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
            [given for given in decode.graph.input if given.name in needed],
            [value("hidden", TensorProto.FLOAT, "T", decoder.hidden)],
            [tensor for tensor in decode.graph.initializer if tensor.name in needed],
        ),
        opset_imports=decode.opset_import,
        ir_version=decode.ir_version,
        producer_name=decode.producer_name,
    )


def _entering(decode: ModelProto, layer: int) -> str:
    """The residual that enters ``layer``: what its first norm adds up or, of layer 0, reads."""
    name = f"blk.{layer}.attn_norm"
    for node in decode.graph.node:
        if node.op_type == "SimplifiedLayerNormalization" and layer == 0:
            return str(node.input[0])
    return f"{name}.residual"
