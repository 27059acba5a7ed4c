"""Calls that stay in float as ONNX operators: softmax, normalizations, attention, element by element.

Their last bits are those of the runtime's kernels, not of torch's.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from torch import nn

from quantspec.errors import UnsupportedError
from quantspec.ir import float_graph, rearrange
from quantspec.ir.float_run import FloatLayer
from quantspec.ir.program import Call, Callables
from quantspec.ir.traverse import replace_refs

from . import float_layers
from .builder import ARITHMETIC, Graph, Size, Tensor, broadcast, dim_of, named, shape_of, tensor_of, total
from .rearrange import MOVES, flatten, lengths, moved, reshape, transpose, unsqueeze

Operator = Callable[..., Any]  # from the graph and a call's arguments to what the call gives

READING = ("shape", "ndim", "size", "dim", "ndimension")
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
TYPE_OF = object()  # stands for the type of a value


def unary(
    operator: str, g: Graph, x: Tensor, *, inplace: bool = False, attributes: Mapping[str, float] = {}
) -> Tensor:  # fmt: skip
    return Tensor(g.node(operator, [x.name], **attributes), x.shape)


def binary(operator: str, g: Graph, a: Any, b: Any) -> Tensor:
    """Of two tensors; comparisons of a tensor of indices and a length, too."""
    return Tensor(g.node(operator, [named(g, a), named(g, b)]), broadcast(shape_of(a), shape_of(b)))


def differ(g: Graph, a: Any, b: Any) -> Tensor:
    return unary("Not", g, binary("Equal", g, a, b))


def rsqrt(g: Graph, x: Tensor) -> Tensor:
    return unary("Reciprocal", g, unary("Sqrt", g, x))


def arange(g: Graph, end: Any) -> Tensor:
    """Indices from 0, int64, as many as a length says."""
    return Tensor(g.numbers(g.int_name(end)), (dim_of(end),))


def silu(g: Graph, x: Tensor, inplace: bool = False) -> Tensor:
    return binary("Mul", g, x, unary("Sigmoid", g, x))


def gelu(g: Graph, x: Tensor, approximate: str = "none") -> Tensor:
    return Tensor(g.node("Gelu", [x.name], approximate=approximate), x.shape)


def clamp(g: Graph, x: Any, min: Any = None, max: Any = None) -> Tensor:
    if all(end is None or isinstance(end, (int, float)) for end in (min, max)):
        ends = ["" if end is None else g.constant(end, np.float32) for end in (min, max)]
        return Tensor(g.node("Clip", [named(g, x), *ends]), shape_of(x))
    for operator, end in (("Max", min), ("Min", max)):  # tensors, which Clip does not take
        x = x if end is None else binary(operator, g, x, end)
    clamped: Tensor = x
    return clamped


def hardtanh(g: Graph, x: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    return clamp(g, x, min_val, max_val)


def softmax(g: Graph, x: Tensor, dim: Any = None, _stacklevel: Any = None, dtype: Any = None) -> Tensor:
    return Tensor(g.node("Softmax", [x.name], axis=given_axis(dim)), x.shape)


def log_softmax(g: Graph, x: Tensor, dim: Any = None, _stacklevel: Any = None, dtype: Any = None) -> Tensor:
    return Tensor(g.node("LogSoftmax", [x.name], axis=given_axis(dim)), x.shape)


def given_axis(dim: int | None) -> int:
    if dim is None:
        raise UnsupportedError("a softmax that chooses its axis itself")
    return dim


def layer_norm(
    g: Graph, x: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Tensor:
    gain = named(g, weight) if weight is not None else g.constant(np.ones(tuple(normalized_shape)), np.float32)
    inputs = [named(g, x), gain, *([] if bias is None else [named(g, bias)])]
    return Tensor(g.node("LayerNormalization", inputs, axis=-len(normalized_shape), epsilon=eps), shape_of(x))


def batch_norm(g: Graph, x: Any, running_mean: Any, running_var: Any, weight: Any, bias: Any, eps: float) -> Tensor:
    ones = torch.ones_like(running_mean)
    inputs = [x, ones if weight is None else weight, ones * 0 if bias is None else bias, running_mean, running_var]
    return Tensor(g.node("BatchNormalization", [named(g, value) for value in inputs], epsilon=eps), shape_of(x))


def cat(g: Graph, tensors: Any, dim: int = 0) -> Tensor:
    shapes = [shape_of(tensor) for tensor in tensors]
    axis, first = dim % len(shapes[0]), shapes[0]
    shape = (*first[:axis], total([other[axis] for other in shapes]), *first[axis + 1 :])
    return Tensor(g.node("Concat", [named(g, t) for t in tensors], axis=dim), shape)


def stack(g: Graph, tensors: Any, dim: int = 0) -> Tensor:
    return cat(g, [unsqueeze(g, tensor_of(g, t), dim) for t in tensors], dim)


def reduced(operator: str, g: Graph, x: Tensor, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Tensor:
    axes = [x.axis(d) for d in ((dim,) if isinstance(dim, int) else dim or range(x.rank))]
    shape = tuple(1 if i in axes else d for i, d in enumerate(x.shape) if keepdim or i not in axes)
    return Tensor(g.node(operator, [x.name, g.ints(*axes)], keepdims=int(keepdim)), shape)


def adaptive_avg_pool(positions: int, g: Graph, x: Tensor, output_size: Any) -> Tensor:
    sizes = (output_size,) * positions if isinstance(output_size, int) else tuple(output_size)
    if sizes != (1,) * positions:
        raise UnsupportedError(f"adaptive average pooling in float to {sizes}")
    shape = (*x.shape[:-positions], *sizes)
    return Tensor(g.node("ReduceMean", [x.name, g.ints(*range(-positions, 0))]), shape)


def linear(g: Graph, x: Any, weight: Any, bias: Any = None) -> Tensor:
    if not isinstance(weight, torch.Tensor):
        raise UnsupportedError("a linear layer whose weight is computed")
    y = g.node("MatMul", [named(g, x), g.constant(weight.detach().numpy().T, np.float32, "weight")])
    if bias is not None:
        y = g.node("Add", [y, named(g, bias)])
    shape = shape_of(x)
    return Tensor(y, (*shape[:-1], weight.shape[0]))


def matmul(g: Graph, a: Any, b: Any) -> Tensor:
    left, right = shape_of(a), shape_of(b)
    shape = (*broadcast(left[:-2], right[:-2]), *left[-2:-1], *right[-2:][1:])  # a vector has no rows, or no columns
    return Tensor(g.node("MatMul", [named(g, a), named(g, b)]), shape)


def scaled_dot_product_attention(
    g: Graph, query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, products: "Products | None" = None,
) -> Tensor:  # fmt: skip
    if is_causal or dropout_p:
        raise UnsupportedError("attention with a causal mask of its own, or dropout")
    q, k, v = (tensor_of(g, t) for t in (query, key, value))
    scale = 1 / math.sqrt(features(q)) if scale is None else scale
    return (products or attention)(g, q, k, v, attn_mask, scale)[0]


def attention(g: Graph, q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: float) -> tuple[Tensor, Tensor]:
    """Joined values [..., length, features], and weights."""
    half = math.sqrt(abs(scale))
    q = Tensor(g.node("Mul", [q.name, g.constant(math.copysign(half, scale), np.float32)]), q.shape)
    k = transpose(g, Tensor(g.node("Mul", [k.name, g.constant(half, np.float32)]), k.shape), -2, -1)
    scores = matmul(g, q, k)
    if mask is not None:
        if isinstance(mask, Tensor) or mask.dtype == torch.bool:
            raise UnsupportedError("a mask that is computed, or of truth values")
        scores = binary("Add", g, scores, mask)
    weights = softmax(g, scores, -1)
    return matmul(g, weights, v), weights


def features(x: Tensor) -> int:
    """The length of the last axis. Raises UnsupportedError where it is not known."""
    length = x.shape[-1]
    if not isinstance(length, int):
        raise UnsupportedError("attention to features whose number is unknown before the network runs")
    return length


def attend(
    g: Graph, query: Any, key: Any, value: Any, heads: int, batch_first: bool, attn_mask: Any = None,
    key_padding_mask: Any = None, need_weights: bool = False, average: bool = True,
    products: "Products | None" = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """``capture.attention.attend``: MatMul, Softmax, MatMul."""
    if key_padding_mask is not None or (attn_mask is not None and len(shape_of(attn_mask)) != 2):
        raise UnsupportedError("attention with a mask for each sequence")
    q, k, v = (tensor_of(g, t) for t in (query, key, value))
    if q.rank != 3:
        raise UnsupportedError("attention without a batch axis")
    q, k, v = (t if batch_first else transpose(g, t, 0, 1) for t in (q, k, v))

    def split(t: Tensor) -> Tensor:
        return transpose(g, reshape(g, t, g.size(t, 0), g.size(t, 1), heads, features(t) // heads), 1, 2)

    q_heads, scale = split(q), (features(q) // heads) ** -0.5
    joined, weights = (products or attention)(g, q_heads, split(k), split(v), attn_mask, scale)
    joined = reshape(g, transpose(g, joined, 1, 2), g.size(q, 0), g.size(q, 1), features(v))
    joined = joined if batch_first else transpose(g, joined, 0, 1)
    if not need_weights or weights is None:
        return joined, None
    return joined, reduced("ReduceMean", g, weights, 1) if average else weights


# What makes joined values and weights, or None, of queries, keys, values by head, a mask and a scale.
Products = Callable[[Graph, Tensor, Tensor, Tensor, Any, float], tuple[Tensor, Tensor | None]]


def relu6(g: Graph, x: Tensor, inplace: bool = False) -> Tensor:
    return clamp(g, x, 0.0, 6.0)


def to_float(g: Graph, x: Tensor) -> Tensor:
    return Tensor(g.node("Cast", [x.name], to=TensorProto.FLOAT), x.shape)


def where(g: Graph, condition: Any, a: Any, b: Any) -> Tensor:
    names = [named(g, value) for value in (condition, a, b)]
    return Tensor(g.node("Where", names), broadcast(*map(shape_of, (condition, a, b))))


# The operators of functions of one tensor, of two, and along axes.
UNARY = {
    "relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "neg": "Neg", "abs": "Abs", "exp": "Exp", "sqrt": "Sqrt",
    "log": "Log", "erf": "Erf", "hardswish": "HardSwish", "mish": "Mish", "softsign": "Softsign",
    "softplus": "Softplus", "sin": "Sin", "cos": "Cos",
}  # fmt: skip
BINARY = {
    "add": "Add", "sub": "Sub", "mul": "Mul", "multiply": "Mul", "truediv": "Div", "div": "Div", "pow": "Pow",
    "maximum": "Max", "minimum": "Min", "eq": "Equal", "lt": "Less", "le": "LessOrEqual", "gt": "Greater",
    "ge": "GreaterOrEqual",
}  # fmt: skip
REDUCED = {"mean": "ReduceMean", "sum": "ReduceSum", "amax": "ReduceMax", "amin": "ReduceMin"}
# By the names of torch's and Python's functions, without their module.
FUNCTIONS: dict[str, Operator] = {
    **{name: partial(unary, operator) for name, operator in UNARY.items()},
    **{name: partial(binary, operator) for name, operator in BINARY.items()},
    **{name: partial(reduced, operator) for name, operator in REDUCED.items()},
    **{f"adaptive_avg_pool{positions}d": partial(adaptive_avg_pool, positions) for positions in (1, 2, 3)},
    "hardsigmoid": partial(unary, "HardSigmoid", attributes={"alpha": 1 / 6, "beta": 0.5}),
    "silu": silu, "relu6": relu6, "rsqrt": rsqrt, "gelu": gelu, "clamp": clamp, "clip": clamp, "hardtanh": hardtanh,
    "float": to_float, "ne": differ, "matmul": matmul, "bmm": matmul, "softmax": softmax, "log_softmax": log_softmax,
    "layer_norm": layer_norm, "cat": cat, "concat": cat, "stack": stack, "linear": linear, "attend": attend,
    "arange": arange, "where": where, "scaled_dot_product_attention": scaled_dot_product_attention,
    **float_layers.FUNCTIONS,
}  # fmt: skip
# Modules without parameters that are the function of that name.
PLAIN = {
    nn.ReLU: "relu", nn.ReLU6: "relu6", nn.Sigmoid: "sigmoid", nn.Tanh: "tanh", nn.SiLU: "silu",
    nn.Hardswish: "hardswish", nn.Hardsigmoid: "hardsigmoid", nn.Mish: "mish", nn.Softsign: "softsign",
}  # fmt: skip


def norm_module(g: Graph, module: Any, x: Any) -> Tensor:
    if not module.track_running_stats:
        raise UnsupportedError(f"{type(module).__name__}, which has no ONNX form")
    return batch_norm(g, x, module.running_mean, module.running_var, module.weight, module.bias, module.eps)


def layer(g: Graph, module: FloatLayer, x: Tensor) -> Tensor:
    """A layer that stayed in float."""
    node = module.node
    if isinstance(node, float_graph.Linear):
        return linear(g, x, module.weight, module.bias)
    if any(d > 1 for d in node.input_dilation) or any(end < 0 for pair in node.padding for end in pair):
        raise UnsupportedError("a transposed convolution in float")
    if x.rank != module.weight.ndim:
        raise UnsupportedError("a convolution without a batch axis")
    inputs = [named(g, value) for value in (x, module.weight, module.bias) if value is not None]
    pads = [before for before, _ in node.padding] + [after for _, after in node.padding]
    y = g.node("Conv", inputs, strides=node.stride, pads=pads, dilations=node.dilation, group=node.groups)
    shape = (x.shape[0], len(module.weight), *((y, i) for i in range(len(node.stride))))
    return Tensor(y, shape)


def plain(function: str, g: Graph, module: Any, x: Any) -> Tensor:
    y: Tensor = FUNCTIONS[function](g, x)
    return y


def adaptive_avg_pool_module(positions: int, g: Graph, module: Any, x: Any) -> Tensor:
    return adaptive_avg_pool(positions, g, x, module.output_size)


# Modules of torch.nn that are one of the functions above with their own parameters, by their exact class.
MODULES: dict[type[nn.Module], Operator] = {
    FloatLayer: layer,
    nn.LayerNorm: lambda g, module, x: layer_norm(
        g, x, module.normalized_shape, module.weight, module.bias, module.eps
    ),
    nn.Linear: lambda g, module, x: linear(g, x, module.weight, module.bias),
    nn.GELU: lambda g, module, x: gelu(g, x, module.approximate),
    nn.Hardtanh: lambda g, module, x: hardtanh(g, x, module.min_val, module.max_val),
    nn.LeakyReLU: lambda g, module, x: unary("LeakyRelu", g, x, attributes={"alpha": module.negative_slope}),
    nn.ELU: lambda g, module, x: unary("Elu", g, x, attributes={"alpha": module.alpha}),
    nn.Flatten: lambda g, module, x: flatten(g, x, module.start_dim, module.end_dim),
    nn.AdaptiveAvgPool1d: partial(adaptive_avg_pool_module, 1),
    nn.AdaptiveAvgPool2d: partial(adaptive_avg_pool_module, 2),
    nn.AdaptiveAvgPool3d: partial(adaptive_avg_pool_module, 3),
    nn.Identity: lambda g, module, x: x,
    nn.Softmax: lambda g, module, x: softmax(g, x, module.dim),
    nn.LogSoftmax: lambda g, module, x: log_softmax(g, x, module.dim),
    nn.Softmax2d: lambda g, module, x: softmax(g, x, -3),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), norm_module),
    **{kind: partial(plain, function) for kind, function in PLAIN.items()},
    **float_layers.MODULES,
}


def call(g: Graph, step: Call, values: dict[str, Any], callables: Callables) -> Any:
    """What a call gives: a tensor of the graph, a length, a constant, or a tuple of these.

    Raises UnsupportedError for what ONNX has no operator for.
    """
    args, kwargs = replace_refs(step.args, values.__getitem__), replace_refs(step.kwargs, values.__getitem__)
    if step.kind == "attribute":
        return callables["attribute", step.target]
    if step.kind == "module":
        if len(args) != 1 or kwargs:
            raise UnsupportedError("a module with more than one input")
        module = callables["module", step.target]
        if isinstance(args[0], torch.Tensor):  # a constant: computed now
            with torch.no_grad():
                return module(args[0])
        if type(module) not in MODULES:
            raise UnsupportedError(f"{type(module).__name__}, which has no ONNX form")
        return MODULES[type(module)](g, module, args[0])
    target = step.target.rpartition(".")[2]
    if target == "_assert":
        return None
    if target == "getattr" and args[1:] == ("dtype",) and isinstance(args[0], Tensor):
        return TYPE_OF
    if TYPE_OF in args or TYPE_OF in kwargs.values():
        if target in COMPARISONS:
            return None  # for an assertion about types, of which an exported network's inputs have one each
        raise UnsupportedError(f"{step.target} of the type of a value")
    dynamic = found(args) + found(list(kwargs.values()))
    if not dynamic:  # constants alone: computed now
        with torch.no_grad():
            if step.kind == "method":
                return getattr(args[0], step.target)(*args[1:], **kwargs)
            return callables["function", step.target](*args, **kwargs)
    if target == "getattr":
        target, args = args[1], args[:1]
    if any(isinstance(value, Tensor) and value.grid is not None for value in dynamic) and target not in READING:
        raise UnsupportedError("a call on codes")
    if target in READING and isinstance(args[0], Tensor):
        return lengths(g, target, *args, *kwargs.values())
    if target == "getitem" and isinstance(args[0], (tuple, list)):
        return args[0][args[1]]
    if all(isinstance(value, Size) for value in dynamic):
        if target in ARITHMETIC:
            return g.compute(target, *args)
        if target in COMPARISONS:
            return None  # for an assertion about lengths, which the runtime makes of its own
    moves = target in rearrange.METHODS if step.kind == "method" else rearrange.known("function", step.target)
    if moves and target in MOVES:
        if args:
            args = (tensor_of(g, args[0]), *args[1:])
        return moved(g, target, args, kwargs)
    if target not in FUNCTIONS or step.target.startswith("torchvision"):
        raise UnsupportedError(f"{step.target}, which has no ONNX form")
    if any(isinstance(value, Size) for value in dynamic) and target not in (*COMPARISONS, "arange"):
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
