"""Attention in codes (DYN-ATTENTION) as ONNX operators, each of which rounds as it does.

Values are taken to be finite and at most 2^50 in size, and no query's keys to be all hidden, as a graph has no other
way for them. Bytes are unsigned, since what multiplies others saturates on some CPUs (DIA-ACCUMULATE, `pairs`).
"""

from typing import Any

import numpy as np
import torch
from onnx import TensorProto

from quantspec.errors import UnsupportedError
from quantspec.ir.attention import OURS, WRITTEN, arguments
from quantspec.ir.program import Attention
from quantspec.ir.traverse import replace_refs
from quantspec.numerics.attention import CODES, FARTHEST, LOG2_E, POWER, SMALLEST, WEIGHTS

from . import float_ops
from .builder import Graph, Tensor, shape_of, tensor_of
from .rearrange import transpose

MIDDLE = 128  # the zero point of signed codes as bytes


def attention(g: Graph, step: Attention, values: dict[str, Any]) -> Any:
    """What a step gives: the joined values, or a tuple of them and None."""
    args, kwargs = (replace_refs(tree, values.__getitem__) for tree in (step.args, step.kwargs))
    given = arguments(step, args, kwargs)
    if step.target == WRITTEN:
        mask, factor = given["mask"], given["factor"]
        if given["hidden"] is not None:
            condition = mask.name if isinstance(mask, Tensor) else g.constant(mask.detach().numpy())
            ends = (g.constant(end, np.float32) for end in (-np.inf, 0))
            mask = Tensor(g.node("Where", [condition, *ends]), shape_of(mask))
        scale = 1 / factor if given["divides"] else factor
        q, k, v = (tensor_of(g, given[name]) for name in ("query", "keys", "value"))
        return in_codes(g, q, transpose(g, k, -2, -1), v, mask, scale)[0]
    mask = given["attn_mask"]
    if isinstance(mask, Tensor) or (isinstance(mask, torch.Tensor) and not mask.is_floating_point()):
        raise UnsupportedError("a mask that is computed, or of truth values")
    if given.pop("enable_gqa", False):
        raise UnsupportedError("attention whose heads share keys")
    if step.target == OURS:
        del given["dropout"]
        return float_ops.attend(g, **given | {"need_weights": False, "products": in_codes})  # nobody reads them
    return float_ops.scaled_dot_product_attention(g, **given, products=in_codes)


def in_codes(g: Graph, q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: float) -> tuple[Tensor, None]:
    """Joined values [..., length, features]."""

    def number(value: Any, dtype: Any = np.float32) -> str:
        return g.constant(value, dtype)

    def own_codes(x: str, axis: int) -> tuple[str, str]:
        """Bytes around ``MIDDLE``, and scales."""
        largest = g.node("ReduceMax", [g.node("Abs", [x]), g.ints(axis)])
        held, nothing = g.node("GreaterOrEqual", [largest, number(SMALLEST)]), number(0)
        inverse = g.node("Where", [held, g.node("Div", [number(CODES), largest]), nothing])
        steps = g.node("Round", [g.node("Mul", [x, inverse])])
        codes = g.node("Cast", [g.node("Add", [steps, number(MIDDLE)])], to=TensorProto.UINT8)
        return codes, g.node("Where", [held, g.node("Div", [largest, number(CODES)]), nothing])

    def sums(a: str, a_middle: int, b: str) -> str:
        """Exact sums of products, in float64."""
        middles = number(a_middle, np.uint8), number(MIDDLE, np.uint8)
        return g.node("Cast", [g.node("MatMulInteger", [a, b, *middles])], to=TensorProto.DOUBLE)

    def to_float(x: str) -> str:
        return g.node("Cast", [x], to=TensorProto.FLOAT)

    (queries, q_scale), (values, v_scale) = own_codes(q.name, -1), own_codes(v.name, -2)
    keys, k_scale = own_codes(transpose(g, k, -2, -1).name, -2)
    units = g.node("Mul", [q_scale, number(scale * LOG2_E)])
    scores = g.node("Mul", [g.node("Mul", [to_float(sums(queries, MIDDLE, keys)), units]), k_scale])
    if mask is not None:
        if isinstance(mask, Tensor):
            steps = g.node("Mul", [mask.name, number(LOG2_E)])
        else:
            steps = number(mask.detach().numpy() * np.float32(LOG2_E))
        scores = g.node("Add", [scores, steps])
    distance = g.node("Sub", [g.node("ReduceMax", [scores, g.ints(-1)]), scores])
    distance = g.node("Min", [distance, number(FARTHEST)])
    whole = g.node("Round", [distance])
    rest, power = g.node("Sub", [whole, distance]), number(float(POWER[-1]))
    for term in (*map(float, POWER[-2::-1]), 1.0):
        power = g.node("Add", [g.node("Mul", [power, rest]), number(term)])
    halved = number(np.ldexp(np.float32(WEIGHTS), -np.arange(FARTHEST + 1)))
    number_of = g.node("Cast", [whole], to=TensorProto.INT64)
    weights = g.node("Round", [g.node("Mul", [power, g.node("Gather", [halved, number_of])])])
    high = g.node("Floor", [g.node("Mul", [weights, number(1 / 256)])])
    low = g.node("Sub", [weights, g.node("Mul", [high, number(256)])])
    first, second = (sums(g.node("Cast", [x], to=TensorProto.UINT8), 0, values) for x in (high, low))
    joined = to_float(g.node("Add", [first, g.node("Mul", [second, number(1 / 256, np.float64)])]))
    total = g.node("ReduceSum", [g.node("Cast", [weights], to=TensorProto.DOUBLE), g.ints(-1)])
    # Of the sums' 256th: ONNX Runtime would divide by what 1 is divided by, instead of multiplying.
    share = g.node("Div", [number(256), to_float(total)])
    result = g.node("Mul", [g.node("Mul", [joined, share]), v_scale])
    shape = (*q.shape[:-1], v.shape[-1])
    return Tensor(result, shape), None
