"""Which operations of torch have an integer form: modules, functions and methods as nodes of the float graph.

A recognizer gets the builder, the fx node and the arguments by name, and gives a node of ours, or None where these
arguments have no integer form.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeGuard, TypeVar

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F

from quantspec.ir import float_graph
from quantspec.ir.program import Call
from quantspec.ir.rearrange import MOVES, SHAPES


class Builder(Protocol):
    """What a recognizer gets to work with: the model, and names for the values of the graph that is made of it."""

    modules: dict[str, nn.Module]
    callables: dict[tuple[str, str], Any]
    calls: dict[str, int]
    weights: dict[str, str]

    def first(self, node: fx.Node) -> str:
        """The name of the value that a node with one input reads."""
        ...

    def tree(self, args: Any) -> Any:
        """Arguments of a node with references in the places of values."""
        ...

    def call(self, node: fx.Node) -> Call:
        """What a node does, in float."""
        ...

    def array(self, tensor: torch.Tensor) -> np.ndarray:
        """The values of a tensor; a shared tensor is one array."""
        ...

    def moved(self, target: str, method: str) -> np.ndarray:
        """What a method of a tensor without arguments gives for a constant, as a vector."""
        ...

    def optional(self, tensor: torch.Tensor | None) -> np.ndarray | None:
        """The values of a tensor that may be None."""
        ...

    def attribute(self, target: str) -> Any:
        """What a path of the model holds, or a constant of that name."""
        ...

    def path(self, node: fx.Node) -> str:
        """The path of the module that a node was made in."""
        ...


Kind = TypeVar("Kind", bound=nn.Module)
Recognizer = Callable[[Builder, fx.Node, dict[str, Any]], float_graph.Node | None]


@dataclass(frozen=True)
class Signature:
    """The names of an operation's arguments, in order, and the values of those that may be left out."""

    names: tuple[str, ...]
    defaults: dict[str, Any]

    def bind(self, node: fx.Node) -> dict[str, Any] | None:
        """The arguments by name; None where there are others than those named here."""
        if len(node.args) > len(self.names) or any(key not in self.names for key in node.kwargs):
            return None
        return self.defaults | dict(zip(self.names, node.args)) | dict(node.kwargs)


def signature(text: str, **defaults: Any) -> Signature:
    return Signature(tuple(text.split()), defaults)


FUNCTIONS: dict[Any, tuple[Signature, Recognizer]] = {}
MODULES: dict[type[nn.Module], Recognizer] = {}


def function(sign: Signature, *targets: Any) -> Callable[[Recognizer], Recognizer]:
    """Registers a recognizer for functions, and for methods by their names."""

    def register(recognizer: Recognizer) -> Recognizer:
        for target in targets:
            FUNCTIONS[target] = (sign, recognizer)
        return recognizer

    return register


def each(value: Any, count: int) -> tuple[int, ...] | None:
    """One integer for each axis of positions; None for what is no integer or not as many."""
    values = (value,) * count if isinstance(value, int) else tuple(value) if isinstance(value, (tuple, list)) else ()
    if len(values) == 1:
        values *= count
    return values if len(values) == count and all(isinstance(v, int) for v in values) else None


def is_value(argument: Any) -> bool:
    """Whether an argument is a value of the graph, and not a constant."""
    return isinstance(argument, fx.Node)


def constants(*arguments: Any) -> bool:
    """Whether no argument holds a value of the graph."""
    found: list[fx.Node] = []
    fx.node.map_arg(arguments, found.append)
    return not found


# --- element by element

ALONE = {
    "relu6": (F.relu6, nn.ReLU6, "relu6"),
    "hardtanh": (F.hardtanh, nn.Hardtanh, "hardtanh"),
    "leaky_relu": (F.leaky_relu, nn.LeakyReLU, "leaky_relu"),
    "hardswish": (F.hardswish, nn.Hardswish, "hardswish"),
    "hardsigmoid": (F.hardsigmoid, nn.Hardsigmoid, "hardsigmoid"),
    "sigmoid": (torch.sigmoid, F.sigmoid, nn.Sigmoid, "sigmoid", "sigmoid_"),
    "tanh": (torch.tanh, F.tanh, nn.Tanh, "tanh", "tanh_"),
    "silu": (F.silu, nn.SiLU),
    "gelu": (F.gelu, nn.GELU),
    "elu": (F.elu, nn.ELU),
    "selu": (F.selu, nn.SELU),
    "celu": (F.celu, nn.CELU),
    "softplus": (F.softplus, nn.Softplus),
    "mish": (F.mish, nn.Mish),
    "softsign": (F.softsign, nn.Softsign),
    "logsigmoid": (F.logsigmoid, nn.LogSigmoid),
    "threshold": (F.threshold, nn.Threshold),
    "prelu": (nn.PReLU,),
    "clamp": (torch.clamp, "clamp", "clamp_", torch.clip, "clip"),
    "neg": (torch.neg, operator.neg, "neg"),
    "abs": (torch.abs, operator.abs, "abs"),
}
NUMBER = (int, float)


def elementwise(
    name: str, module: bool, builder: Builder, node: fx.Node, given: dict[str, Any]
) -> float_graph.Node | None:
    """A function of one value whose other arguments are numbers."""
    _, *others = [*node.args, *node.kwargs.values()]
    if not constants(others):  # among which a value would be if it were not the first
        return None
    channels = None
    if module:
        what: Any = builder.modules[str(node.target)]
        if isinstance(what, nn.PReLU) and what.num_parameters != 1:
            channels = what.num_parameters
        ceiling = 6.0 if name == "relu6" else what.max_val if name == "hardtanh" and what.min_val == 0 else None
    else:
        named = {key.removesuffix("_val"): value for key, value in node.kwargs.items()}
        ends = dict(zip(("min", "max"), others)) | named
        if any(not isinstance(v, (*NUMBER, str, type(None))) for v in others):
            return None
        largest: Any = ends.get("max")
        low_zero = name in ("hardtanh", "clamp") and ends.get("min") == 0 and isinstance(largest, NUMBER)
        ceiling = 6.0 if name == "relu6" else float(largest) if low_zero else None
    ceiling = ceiling if ceiling is None or ceiling > 0 else None
    return float_graph.Elementwise(node.name, builder.first(node), name, builder.call(node), ceiling, channels)


for _name, _targets in ALONE.items():
    for _target in _targets:
        if isinstance(_target, type):
            MODULES[_target] = partial(elementwise, _name, True)
        else:
            FUNCTIONS[_target] = (Signature((), {}), partial(elementwise, _name, False))


@function(signature("input inplace", inplace=False), torch.relu, F.relu, torch.relu_, F.relu_, "relu", "relu_")
def relu(builder: Builder, node: fx.Node, given: dict[str, Any]) -> float_graph.Node:
    return float_graph.Relu(node.name, builder.first(node), builder.call(node))


MODULES[nn.ReLU] = relu

# --- two values

ARITHMETIC = {
    "add": (torch.add, operator.add, "add", "add_", "__add__"),
    "mul": (torch.mul, torch.multiply, operator.mul, "mul", "mul_", "multiply"),
    "sub": (torch.sub, operator.sub, "sub", "sub_"),
    "div": (torch.div, operator.truediv, "div", "div_"),
}


def arithmetic(name: str, builder: Builder, node: fx.Node, given: dict[str, Any]) -> float_graph.Node | None:
    if given.get("alpha", 1) != 1 or given.get("rounding_mode") is not None:
        return None
    left, right = given["input"], given["other"]
    if is_value(left) and is_value(right):
        node_class = {"add": float_graph.Add, "mul": float_graph.Mul}.get(name)
        pair = builder.tree(left).name, builder.tree(right).name
        return node_class(node.name, *pair, builder.call(node)) if node_class else None
    value = left if is_value(left) else right
    number = right if is_value(left) else left
    if not isinstance(number, NUMBER) or (name == "div" and value is right):
        return None
    # A number beside a value of the graph that is a size, and no tensor, is told apart when the graph runs: only
    # what is in codes becomes a table.
    return float_graph.Elementwise(node.name, builder.tree(value).name, f"{name} {number:g}", builder.call(node))


for _name, _targets in ARITHMETIC.items():
    function(signature("input other alpha rounding_mode"), *_targets)(partial(arithmetic, _name))


@function(signature("tensors dim", dim=0), torch.cat, torch.concat, torch.concatenate)
def concat(builder: Builder, node: fx.Node, given: dict[str, Any]) -> float_graph.Node | None:
    parts = given["tensors"]
    if not isinstance(parts, (tuple, list)) or not parts or not all(map(is_value, parts)):
        return None
    if not isinstance(given["dim"], int):
        return None
    names = tuple(builder.tree(part).name for part in parts)
    return float_graph.Concat(node.name, names, given["dim"], builder.call(node))


# --- windows


def max_pool(positions: int, builder: Builder, node: fx.Node, given: dict[str, Any]) -> float_graph.Node | None:
    if given["return_indices"] or not constants([v for k, v in given.items() if k != "input"]):
        return None
    kernel = each(given["kernel_size"], positions)
    stride = kernel if given["stride"] in (None, [], ()) else each(given["stride"], positions)
    padding, dilation = each(given["padding"], positions), each(given["dilation"], positions)
    if kernel is None or stride is None or padding is None or dilation is None:
        return None
    places = kernel, stride, padding, dilation, bool(given["ceil_mode"])
    return float_graph.MaxPool(node.name, builder.first(node), *places, builder.call(node))


def avg_pool(positions: int, builder: Builder, node: fx.Node, given: dict[str, Any]) -> float_graph.Node | None:
    if given.get("divisor_override") is not None or not constants([v for k, v in given.items() if k != "input"]):
        return None
    kernel = each(given["kernel_size"], positions)
    stride = kernel if given["stride"] in (None, [], ()) else each(given["stride"], positions)
    padding = each(given["padding"], positions)
    if kernel is None or stride is None or padding is None:
        return None
    places = kernel, stride, padding, bool(given["ceil_mode"]), bool(given["count_include_pad"])
    return float_graph.AvgPool(node.name, builder.first(node), *places, builder.call(node))


def adaptive_pool(positions: int, builder: Builder, node: fx.Node, given: dict[str, Any]) -> float_graph.Node | None:
    size = given["output_size"]
    if not constants(size):
        return None
    sizes = (size,) * positions if isinstance(size, int) or size is None else tuple(size)
    if len(sizes) != positions:
        return None
    return float_graph.AdaptiveAvgPool(node.name, builder.first(node), sizes, builder.call(node))


MAX_ARGUMENTS = signature(
    "input kernel_size stride padding dilation ceil_mode return_indices",
    stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False,
)
AVG_ARGUMENTS = signature(
    "input kernel_size stride padding ceil_mode count_include_pad divisor_override",
    stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None,
)  # fmt: skip
for _n, _max, _avg, _adaptive, _modules in (
    (
        1, (F.max_pool1d, torch.max_pool1d), (F.avg_pool1d,), (F.adaptive_avg_pool1d,),
        (nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d),
    ),
    (
        2, (F.max_pool2d, torch.max_pool2d), (F.avg_pool2d,), (F.adaptive_avg_pool2d,),
        (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
    ),
    (
        3, (F.max_pool3d, torch.max_pool3d), (F.avg_pool3d,), (F.adaptive_avg_pool3d,),
        (nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveAvgPool3d),
    ),
):
    for _sign, _functions, _recognizer, _module in (
        (MAX_ARGUMENTS, _max, partial(max_pool, _n), _modules[0]),
        (AVG_ARGUMENTS, _avg, partial(avg_pool, _n), _modules[1]),
        (signature("input output_size"), _adaptive, partial(adaptive_pool, _n), _modules[2]),
    ):
        function(_sign, *_functions)(_recognizer)
        MODULES[_module] = _recognizer
# torch.max_pool2d and its like have no return_indices; theirs is another operation.


@function(signature("input dim keepdim dtype", keepdim=False, dtype=None), torch.mean, "mean")
def mean(builder: Builder, node: fx.Node, given: dict[str, Any]) -> float_graph.Node | None:
    axes = given.get("dim")
    axes = (axes,) if isinstance(axes, int) else axes
    if given["dtype"] is not None or not axes or not constants(axes) or not isinstance(given["keepdim"], bool):
        return None
    return float_graph.Mean(node.name, builder.first(node), tuple(axes), given["keepdim"], builder.call(node))


# --- what moves values

def move(builder: Builder, node: fx.Node) -> float_graph.Move | float_graph.Shape | None:
    """A node that rearranges, reads the shape, or takes an item of something that was split."""
    if node.op == "call_method" and node.target in SHAPES:
        return float_graph.Shape(node.name, builder.first(node), builder.call(node))
    if node.target is getattr and node.args[1] in ("shape", "ndim", "dtype", "device"):
        return float_graph.Shape(node.name, builder.first(node), builder.call(node))
    if node.target == "view" and any(isinstance(given, torch.dtype) for given in (*node.args, *node.kwargs.values())):
        return None  # the same bits as another type's
    if node.target in MOVES or (node.target is operator.getitem and is_value(node.args[0])):
        return float_graph.Move(node.name, builder.first(node), builder.call(node))
    value = node.kwargs.get("value", node.args[3] if len(node.args) > 3 else None)
    if node.target is F.pad and value in (None, 0):
        return float_graph.Move(node.name, builder.first(node), builder.call(node))
    if node.target is F.interpolate:
        mode = node.kwargs.get("mode", node.args[3] if len(node.args) > 3 else "nearest")
        if mode not in ("nearest", "nearest-exact"):
            return None
        return float_graph.Move(node.name, builder.first(node), builder.call(node))
    return None


def moving(module: nn.Module) -> tuple[Any, tuple[Any, ...], dict[str, Any]] | None:
    """A module that rearranges as (function or method, further arguments, keyword arguments)."""
    if isinstance(module, nn.Flatten):
        return torch.flatten, (module.start_dim, module.end_dim), {}
    if isinstance(module, nn.Unflatten) and isinstance(module.dim, int):
        return "unflatten", (module.dim, tuple(module.unflattened_size)), {}
    if isinstance(module, (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)):
        return F.pad, (list(module.padding),), {}
    kinds = (
        ((nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d), "reflect"),
        ((nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d), "replicate"),
    )
    for types, mode in (*kinds, ((nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d), "circular")):
        if isinstance(module, types):
            return F.pad, (list(module.padding),), {"mode": mode}
    if isinstance(module, nn.Upsample) and module.mode in ("nearest", "nearest-exact"):
        named = {"size": module.size, "scale_factor": module.scale_factor, "mode": module.mode}
        return F.interpolate, (), named | ({"recompute_scale_factor": True} if module.recompute_scale_factor else {})
    if isinstance(module, nn.PixelShuffle):
        return F.pixel_shuffle, (module.upscale_factor,), {}
    if isinstance(module, nn.PixelUnshuffle):
        return F.pixel_unshuffle, (module.downscale_factor,), {}
    if isinstance(module, nn.ChannelShuffle):
        return F.channel_shuffle, (module.groups,), {}
    return None


def public(module: nn.Module, kinds: tuple[type[Kind], ...]) -> TypeGuard[Kind]:
    """Whether a module is of one of these kinds and computes as they do, though it may be of a class derived from them.
    """
    own = type(module).forward
    return any(isinstance(module, kind) and own is kind.forward for kind in kinds)

