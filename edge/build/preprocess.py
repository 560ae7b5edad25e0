"""The preprocessor that most classifiers need, as an ONNX graph: scale, shift, reshape.

Any other one is a graph of its own, made with whatever makes ONNX graphs; ``build_classifier``
takes both alike.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper

from cascade.errors import InvalidInput
from cascade.tensor import DTYPES

_OPSET = 18
_IR_VERSION = 9  # of that operator set; every onnxruntime that we run with reads it


def rescaling(
    name: str,
    dtype: str,
    shape: tuple[int, ...],
    *,
    scale: ArrayLike = 1.0,
    offset: ArrayLike = 0.0,
    reshape: tuple[int, ...] | None = None,
) -> onnx.ModelProto:
    """A graph that computes ``reshape(float32(x) · scale + offset)``.

    To standardise by mean and deviation, give ``scale=1/deviation`` and
    ``offset=-mean/deviation``.

    Arguments:
        name: the input's name, which requests use.
        dtype: the input's type as the sensor gives it, e.g. ``"uint8"``; see ``cascade.tensor``.
        shape: of one example, without the batch.
        scale, offset: finite numbers that broadcast against ``shape``, e.g. one for each channel.
        reshape: what the model takes, without the batch; by default ``shape``.

    Raises:
        InvalidInput: an argument is unusable; it is named.
    """
    if dtype not in DTYPES:
        raise InvalidInput("dtype", f"{dtype!r} is not one of {', '.join(DTYPES)}")
    target = shape if reshape is None else reshape
    if not shape:
        raise InvalidInput("shape", "is empty; give [1] for a single number")
    if min((*shape, *target)) < 1 or math.prod(shape) != math.prod(target):
        raise InvalidInput("reshape", f"{list(target)} does not hold what {list(shape)} holds")
    # Named after the input, so that none of them can be called like it.
    floats, scaled, shifted = (f"{name}.{step}" for step in ("float", "scaled", "shifted"))
    by, plus, to, features = (f"{name}.{part}" for part in ("scale", "offset", "shape", "features"))
    nodes = [
        helper.make_node("Cast", [name], [floats], to=TensorProto.FLOAT),
        helper.make_node("Mul", [floats, by], [scaled]),
        helper.make_node("Add", [scaled, plus], [shifted]),
        helper.make_node("Reshape", [shifted, to], [features]),
    ]
    constants = [
        numpy_helper.from_array(_factor("scale", scale, shape), by),
        numpy_helper.from_array(_factor("offset", offset, shape), plus),
        numpy_helper.from_array(np.array([-1, *target], np.int64), to),
    ]
    graph = helper.make_graph(
        nodes,
        "rescaling",
        [helper.make_tensor_value_info(name, _onnx_type(dtype), ["batch", *shape])],
        [helper.make_tensor_value_info(features, TensorProto.FLOAT, ["batch", *target])],
        constants,
    )
    opset = helper.make_opsetid("", _OPSET)
    return helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION)


def _factor(field: str, value: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float32]:
    factor = np.asarray(value, np.float32)
    if not np.isfinite(factor).all():
        raise InvalidInput(field, "holds NaN or an infinite value")
    ends = shape[len(shape) - factor.ndim :]
    if factor.ndim > len(shape) or any(
        a not in (1, b) for a, b in zip(factor.shape, ends, strict=True)
    ):
        raise InvalidInput(field, f"of shape {list(factor.shape)} does not fit {list(shape)}")
    return factor


def _onnx_type(dtype: str) -> int:
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
