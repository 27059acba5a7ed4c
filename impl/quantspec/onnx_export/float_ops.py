"""Calls that stay in float as ONNX operators of the same meaning. Their last bits are those of the runtime's kernels, not of torch's."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from torch import nn

from quantspec.errors import UnsupportedError
from quantspec.ir import float_graph, float_run, rearrange
from quantspec.ir.program import Call
from quantspec.ir.traverse import replace_refs

from .builder import Dim, Graph, Size, Tensor, broadcast
from .rearrange import MOVES, NUMBERS, flatten, lengths, number, reshape, transpose, unsqueeze

READING = ("shape", "ndim", "size", "dim", "ndimension")


def named(g: Graph, value: Any) -> str:
    """A tensor's name; numbers and constant tensors as constants."""
    if isinstance(value, Tensor):
        return value.name
    if isinstance(value, torch.Tensor):
        return g.constant(value.detach().numpy())
    if isinstance(value, (int, float)):
        return g.constant(value, np.float32)
    raise UnsupportedError(f"a {type(value).__name__} where a tensor is expected")


def shape_of(value: Any) -> tuple[Dim, ...] | None:
    return value.shape if isinstance(value, Tensor) else tuple(value.shape) if isinstance(value, torch.Tensor) else ()


def unary(*operators: str, **attributes: Any) -> Callable:
    """Operators of one tensor, one after the other; attributes are the last one's."""

    def make(g: Graph, x: Any, *, inplace: bool = False) -> Tensor:
        name = named(g, x)
        for operator in operators:
            name = g.node(operator, [name], **(attributes if operator == operators[-1] else {}))
        return Tensor(name, shape_of(x))

    return make


def binary(operator: str) -> Callable:
    def make(g: Graph, a: Any, b: Any) -> Tensor:
        return Tensor(g.node(operator, [named(g, a), named(g, b)]), broadcast(shape_of(a), shape_of(b)))

    return make


def silu(g: Graph, x: Any, inplace: bool = False) -> Tensor:
    return Tensor(g.node("Mul", [named(g, x), g.node("Sigmoid", [named(g, x)])]), shape_of(x))


def gelu(g: Graph, x: Any, approximate: str = "none") -> Tensor:
    return Tensor(g.node("Gelu", [named(g, x)], approximate=approximate), shape_of(x))


def clamp(g: Graph, x: Any, min: Any = None, max: Any = None) -> Tensor:
    ends = ["" if end is None else g.constant(end, np.float32) for end in (min, max)]
    return Tensor(g.node("Clip", [named(g, x), *ends]), shape_of(x))


def hardtanh(g: Graph, x: Any, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    return clamp(g, x, min_val, max_val)


def softmax(g: Graph, x: Any, dim: int = -1, _stacklevel: int = 3, dtype: Any = None) -> Tensor:
    return Tensor(g.node("Softmax", [named(g, x)], axis=dim), shape_of(x))


def log_softmax(g: Graph, x: Any, dim: int = -1, _stacklevel: int = 3, dtype: Any = None) -> Tensor:
    return Tensor(g.node("LogSoftmax", [named(g, x)], axis=dim), shape_of(x))


def layer_norm(g: Graph, x: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
    gain = named(g, weight) if weight is not None else g.constant(np.ones(tuple(normalized_shape)), np.float32)
    inputs = [named(g, x), gain, *([] if bias is None else [named(g, bias)])]
    return Tensor(g.node("LayerNormalization", inputs, axis=-len(normalized_shape), epsilon=eps), shape_of(x))


def batch_norm(g: Graph, x: Any, running_mean: Any, running_var: Any, weight: Any, bias: Any, eps: float) -> Tensor:
    ones = torch.ones_like(running_mean)
    inputs = [x, ones if weight is None else weight, ones * 0 if bias is None else bias, running_mean, running_var]
    return Tensor(g.node("BatchNormalization", [named(g, value) for value in inputs], epsilon=eps), shape_of(x))


def cat(g: Graph, tensors: Any, dim: int = 0) -> Tensor:
    shapes = [shape_of(t) for t in tensors]
    shape = None
    if all(s is not None for s in shapes):
        axis = dim % len(shapes[0])
        along = [s[axis] for s in shapes]
        shape = (*shapes[0][:axis], sum(along) if all(isinstance(n, int) for n in along) else ("sum", *along), *shapes[0][axis + 1 :])
    return Tensor(g.node("Concat", [named(g, t) for t in tensors], axis=dim), shape)


def stack(g: Graph, tensors: Any, dim: int = 0) -> Tensor:
    return cat(g, [unsqueeze(g, Tensor(named(g, t), shape_of(t)), dim) for t in tensors], dim)


def reduced(operator: str) -> Callable:
    def make(g: Graph, x: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Tensor:
        x = Tensor(named(g, x), shape_of(x))
        axes = [x.axis(d) for d in ((dim,) if isinstance(dim, int) else dim if dim is not None else range(x.rank))]
        shape = tuple(1 if i in axes else d for i, d in enumerate(x.shape) if keepdim or i not in axes)
        return Tensor(g.node(operator, [x.name, g.ints(*axes)], keepdims=int(keepdim)), shape)

    return make


def adaptive_avg_pool(positions: int) -> Callable:
    def make(g: Graph, x: Any, output_size: Any) -> Tensor:
        sizes = (output_size,) * positions if isinstance(output_size, int) else tuple(output_size)
        if sizes != (1,) * positions:
            raise UnsupportedError(f"adaptive average pooling in float to {sizes}")
        return Tensor(g.node("ReduceMean", [named(g, x), g.ints(*range(-positions, 0))]), None if x.shape is None else (*x.shape[:-positions], *sizes))

    return make


def linear(g: Graph, x: Any, weight: Any, bias: Any = None) -> Tensor:
    if not isinstance(weight, torch.Tensor):
        raise UnsupportedError("a linear layer whose weight is computed")
    made = g.node("MatMul", [named(g, x), g.constant(weight.detach().numpy().T, np.float32, "weight")])
    made = made if bias is None else g.node("Add", [made, named(g, bias)])
    return Tensor(made, None if shape_of(x) is None else (*shape_of(x)[:-1], weight.shape[0]))


def matmul(g: Graph, a: Any, b: Any) -> Tensor:
    left, right = shape_of(a), shape_of(b)
    known = left is not None and right is not None and min(len(left), len(right)) >= 2
    return Tensor(g.node("MatMul", [named(g, a), named(g, b)]), (*broadcast(left[:-2], right[:-2]), left[-2], right[-1]) if known else None)


def scaled_dot_product_attention(
    g: Graph, query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None
) -> Tensor:
    if is_causal or dropout_p:
        raise UnsupportedError("attention with a causal mask of its own, or dropout")
    return attention(g, query, key, value, attn_mask, scale)[0]


def attention(g: Graph, q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """Joined values [..., length, features], and weights."""
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    half = g.constant(math.sqrt(scale), np.float32)
    q = Tensor(g.node("Mul", [q.name, half]), q.shape)
    k = transpose(g, Tensor(g.node("Mul", [k.name, half]), k.shape), -2, -1)
    scores = matmul(g, q, k)
    if mask is not None:
        if isinstance(mask, Tensor) or mask.dtype == torch.bool:
            raise UnsupportedError("a mask that is computed, or of truth values")
        scores = binary("Add")(g, scores, mask)
    weights = softmax(g, scores)
    return matmul(g, weights, v), weights


def attend(
    g: Graph, query: Any, key: Any, value: Any, heads: int, batch_first: bool, attn_mask: Any = None, key_padding_mask: Any = None, need_weights: bool = False,
    average: bool = True,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """``attention.attend``: MatMul, Softmax, MatMul."""
    if key_padding_mask is not None or (attn_mask is not None and attn_mask.ndim != 2):
        raise UnsupportedError("attention with a mask for each sequence")
    if query.rank != 3:
        raise UnsupportedError("attention without a batch axis")
    q, k, v = (t if batch_first else transpose(g, t, 0, 1) for t in (query, key, value))

    def split(t: Tensor) -> Tensor:
        return transpose(g, reshape(g, t, g.size(t, 0), g.size(t, 1), heads, t.shape[-1] // heads), 1, 2)

    joined, weights = attention(g, split(q), split(k), split(v), attn_mask)
    features = v.shape[-1]
    joined = reshape(g, transpose(g, joined, 1, 2), g.size(q, 0), g.size(q, 1), features)
    joined = joined if batch_first else transpose(g, joined, 0, 1)
    if not need_weights:
        return joined, None
    return joined, reduced("ReduceMean")(g, weights, 1) if average else weights


FUNCTIONS: dict[str, Callable] = {
    "relu": unary("Relu"), "sigmoid": unary("Sigmoid"), "tanh": unary("Tanh"), "neg": unary("Neg"), "abs": unary("Abs"), "exp": unary("Exp"), "sqrt": unary("Sqrt"),
    "log": unary("Log"), "erf": unary("Erf"), "hardswish": unary("HardSwish"), "mish": unary("Mish"), "softsign": unary("Softsign"), "softplus": unary("Softplus"),
    "hardsigmoid": unary("HardSigmoid", alpha=1 / 6, beta=0.5), "silu": silu, "gelu": gelu, "clamp": clamp, "clip": clamp, "hardtanh": hardtanh,
    "relu6": lambda g, x, inplace=False: clamp(g, x, 0.0, 6.0), "add": binary("Add"), "sub": binary("Sub"), "mul": binary("Mul"), "multiply": binary("Mul"),
    "truediv": binary("Div"), "div": binary("Div"), "pow": binary("Pow"), "maximum": binary("Max"), "minimum": binary("Min"), "matmul": matmul, "bmm": matmul,
    "softmax": softmax, "log_softmax": log_softmax, "layer_norm": layer_norm, "cat": cat, "concat": cat, "stack": stack, "mean": reduced("ReduceMean"),
    "sum": reduced("ReduceSum"), "amax": reduced("ReduceMax"), "amin": reduced("ReduceMin"), "linear": linear, "attend": attend,
    "scaled_dot_product_attention": scaled_dot_product_attention, "adaptive_avg_pool1d": adaptive_avg_pool(1), "adaptive_avg_pool2d": adaptive_avg_pool(2),
    "adaptive_avg_pool3d": adaptive_avg_pool(3), "float": lambda g, x: Tensor(g.node("Cast", [x.name], to=TensorProto.FLOAT), x.shape),
}  # fmt: skip


def module(g: Graph, what: nn.Module, x: Any) -> Any:
    """A module of torch.nn that is one of the functions above with its own parameters."""
    kind = type(what)
    if kind is float_run.FloatLayer:
        return layer(g, what, x)
    if kind is nn.LayerNorm:
        return layer_norm(g, x, what.normalized_shape, what.weight, what.bias, what.eps)
    if kind in (nn.Linear,):
        return linear(g, x, what.weight, what.bias)
    if kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d) and what.track_running_stats:
        return batch_norm(g, x, what.running_mean, what.running_var, what.weight, what.bias, what.eps)
    if kind in (nn.Softmax, nn.LogSoftmax) and what.dim is not None:
        return (softmax if kind is nn.Softmax else log_softmax)(g, x, what.dim)
    if kind is nn.GELU:
        return gelu(g, x, what.approximate)
    if kind is nn.Hardtanh:
        return hardtanh(g, x, what.min_val, what.max_val)
    if kind in (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d):
        return FUNCTIONS[f"adaptive_avg_pool{kind.__name__[-2:]}"](g, x, what.output_size)
    if kind is nn.LeakyReLU:
        return Tensor(g.node("LeakyRelu", [named(g, x)], alpha=what.negative_slope), shape_of(x))
    if kind is nn.Flatten:
        return flatten(g, x, what.start_dim, what.end_dim)
    if kind is nn.Identity:
        return x
    plain = {nn.ReLU: "relu", nn.ReLU6: "relu6", nn.Sigmoid: "sigmoid", nn.Tanh: "tanh", nn.SiLU: "silu", nn.Hardswish: "hardswish", nn.Hardsigmoid: "hardsigmoid"}
    if kind in plain:
        return FUNCTIONS[plain[kind]](g, x)
    raise UnsupportedError(f"{kind.__name__}, for which there is no ONNX operator here")


def layer(g: Graph, what: float_run.FloatLayer, x: Tensor) -> Tensor:
    """A layer that stayed in float."""
    node = what.node
    if isinstance(node, float_graph.Linear):
        return linear(g, x, what.weight, what.bias)
    if any(d > 1 for d in node.input_dilation) or any(end < 0 for pair in node.padding for end in pair):
        raise UnsupportedError("a transposed convolution in float")
    inputs = [named(g, value) for value in (x, what.weight, what.bias) if value is not None]
    pads = [before for before, _ in node.padding] + [after for _, after in node.padding]
    made = g.node("Conv", inputs, strides=node.stride, pads=pads, dilations=node.dilation, group=node.groups)
    return Tensor(made, None if x.shape is None else (x.shape[0], len(what.weight), *((made, i) for i in range(len(node.stride)))))


def call(g: Graph, step: Call, values: dict[str, Any], callables: dict[tuple[str, str], Any]) -> Any:
    """What a call gives: a tensor of the graph, a length, a constant, or a tuple of these. Raises UnsupportedError for what ONNX has no operator for."""
    from . import windows  # which builds on the functions here

    args, kwargs = replace_refs(step.args, values.__getitem__), replace_refs(step.kwargs, values.__getitem__)
    what = callables.get((step.kind, step.target))
    if step.kind == "attribute":
        return what
    target = step.target.rpartition(".")[2]
    if target == "_assert":
        return None
    if target == "getattr":
        target, args = args[1], args[:1]
    dynamic = found(args) + found(list(kwargs.values()))
    if step.kind == "module":
        if len(args) != 1 or kwargs:
            raise UnsupportedError("a module with more than one input")
        return module(g, what, args[0])
    if not dynamic and not any(isinstance(a, torch.device) for a in args):  # constants alone: computed now
        with torch.no_grad():
            return getattr(args[0], step.target)(*args[1:], **kwargs) if step.kind == "method" else what(*args, **kwargs)
    if any(isinstance(value, Tensor) and value.grid is not None for value in dynamic) and target not in READING:
        raise UnsupportedError("a call on codes")
    if target in READING and isinstance(args[0], Tensor):
        return lengths(g, target, *args)
    if target == "getitem" and isinstance(args[0], (tuple, list)):
        return args[0][args[1]]
    if all(isinstance(value, Size) for value in dynamic) and target in NUMBERS:
        return number(g, target, *args)
    if all(isinstance(value, Size) for value in dynamic) and target in ("eq", "ne", "lt", "le", "gt", "ge"):
        return None  # for an assertion about lengths, which the runtime makes of its own
    known = target in rearrange.METHODS if step.kind == "method" else rearrange.known("function", step.target)
    if known and target in MOVES:
        args = (args[0] if isinstance(args[0], Tensor) else Tensor(named(g, args[0]), shape_of(args[0])), *args[1:])
        return MOVES[target](g, *args, **kwargs)
    if step.target in windows.FUNCTIONS:
        return windows.FUNCTIONS[step.target](g, *args, **kwargs)
    if target not in FUNCTIONS or step.target.startswith("torchvision"):
        raise UnsupportedError(f"{step.target}, for which there is no ONNX operator here")
    if any(isinstance(value, Size) for value in dynamic):
        raise UnsupportedError(f"{step.target} of a length")
    try:
        return FUNCTIONS[target](g, *args, **kwargs)
    except TypeError as error:
        raise UnsupportedError(f"{step.target} with these arguments: {error}") from error


def found(tree: Any) -> list[Tensor | Size]:
    """The values of the graph in a tree of arguments."""
    if isinstance(tree, (tuple, list)):
        return [value for item in tree for value in found(item)]
    if isinstance(tree, slice):
        return found((tree.start, tree.stop, tree.step))
    return [tree] if isinstance(tree, (Tensor, Size)) else []
