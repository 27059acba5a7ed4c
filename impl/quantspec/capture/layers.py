"""Layers with weights, modules and functions alike, as nodes of the float graph."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F

from quantspec.ir import float_graph, float_run
from quantspec.ir.program import Call, Ref

from . import attention
from .operators import Builder, each, is_value, public

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# What the kinds of each are derived from.
Conv = nn.modules.conv._ConvNd
Norm = nn.modules.batchnorm._BatchNorm
Pairs = tuple[tuple[int, int], ...]
CELLS: dict[type[nn.RNNCellBase], str] = {nn.LSTMCell: "lstm", nn.GRUCell: "gru", nn.RNNCell: "rnn"}


def module(builder: Builder, node: fx.Node, what: nn.Module) -> float_graph.Node | list[float_graph.Node] | None:
    """A module with weights as a node, or as two where it pads otherwise than with zeros. None for what is none of
    these."""
    if public(what, (nn.Linear,)):
        weight, bias = builder.array(what.weight), builder.optional(what.bias)
        return float_graph.Linear(node.name, builder.first(node), layer_name(node), weight, bias)
    for positions, kind in enumerate(CONVS, start=1):
        if public(what, (kind,)):
            return conv_module(builder, node, what, positions)
    # An output_size is a number of this call, not of the layer.
    if public(what, TRANSPOSED) and len(node.args) + len(node.kwargs) == 1:
        return transposed_module(builder, node, what)
    if public(what, NORMS) and what.track_running_stats:
        return batch_norm(builder, node, what)
    if public(what, (nn.Embedding,)) and what.max_norm is None:
        weight, padding_idx = builder.array(what.weight), what.padding_idx
        return float_graph.Embedding(
            node.name, builder.first(node), layer_name(node), weight, builder.call(node), padding_idx=padding_idx
        )
    if public(what, (nn.EmbeddingBag,)) and what.max_norm is None:
        return bag(builder, node, what)
    if public(what, (nn.LSTM, nn.GRU, nn.RNN)) and not getattr(what, "proj_size", 0):
        return recurrent(builder, node, what)
    for rnn, name in CELLS.items():
        if public(what, (rnn,)):
            return cell(builder, node, what, name)
    return None


def layer_name(node: fx.Node) -> str:
    """The path of the module that a node calls; the node's own name where that is the whole model."""
    return str(node.target) or node.name


def conv_module(builder: Builder, node: fx.Node, what: Conv, positions: int) -> list[float_graph.Node]:
    x = builder.first(node)
    before: list[float_graph.Node] = []
    reach = [d * (k - 1) for d, k in zip(what.dilation, what.kernel_size)]
    padding: Pairs
    if isinstance(what.padding, str) and what.padding == "same":
        padding = tuple((r // 2, r - r // 2) for r in reach)
    elif isinstance(what.padding, str):
        padding = ((0, 0),) * positions
    else:
        padding = tuple((p, p) for p in what.padding)
    if what.padding_mode != "zeros" and any(map(any, padding)):
        name = f"{node.name}_padded"
        widths = [end for pair in reversed(padding) for end in pair]
        builder.callables["function", "torch.nn.functional.pad"] = F.pad
        call = Call(name, "function", "torch.nn.functional.pad", (Ref(x), widths), {"mode": what.padding_mode}, "")
        before.append(float_graph.Move(name, x, call))
        x, padding = name, ((0, 0),) * positions
    ones = (1,) * positions
    conv = float_graph.Conv(
        node.name, x, layer_name(node), builder.array(what.weight), builder.optional(what.bias),
        tuple(what.stride), padding, tuple(what.dilation), ones, what.groups,
    )  # fmt: skip
    return [*before, conv]


def transposed_module(builder: Builder, node: fx.Node, what: Conv) -> float_graph.Conv:
    ones = (1,) * len(what.kernel_size)
    reach = [d * (k - 1) for d, k in zip(what.dilation, what.kernel_size)]
    sides = zip(reach, numbers(what.padding), what.output_padding)
    padding = tuple((r - p, r - p + o) for r, p, o in sides)
    weight = float_run.transposed_weight(what.weight.detach(), what.groups).numpy()
    layer = builder.first(node), layer_name(node), weight, builder.optional(what.bias)
    places = ones, padding, tuple(what.dilation), tuple(what.stride)
    return float_graph.Conv(node.name, *layer, *places, what.groups, transposed=True)


def numbers(padding: str | Sequence[int]) -> Sequence[int]:
    """Paddings by number: a transposed convolution has no others."""
    assert not isinstance(padding, str)
    return padding


def batch_norm(builder: Builder, node: fx.Node, what: Norm) -> float_graph.BatchNorm:
    ones = np.ones(what.num_features, np.float32)
    gamma, beta = builder.optional(what.weight), builder.optional(what.bias)
    gamma, beta = ones if gamma is None else gamma, ones * 0 if beta is None else beta
    assert what.running_mean is not None and what.running_var is not None
    statistics = builder.array(what.running_mean), builder.array(what.running_var)
    positions = 2 if type(what) is nn.BatchNorm2d else 3 if type(what) is nn.BatchNorm3d else None
    norm = gamma, beta, *statistics, what.eps
    return float_graph.BatchNorm(
        node.name, builder.first(node), *norm, builder.call(node), str(node.target), positions
    )


def bag(builder: Builder, node: fx.Node, what: nn.EmbeddingBag) -> float_graph.Embedding | None:
    given = dict(zip(("input", "offsets", "per_sample_weights"), node.args)) | node.kwargs
    offsets, weights = (
        builder.tree(given[key]).name if is_value(given.get(key)) else None for key in ("offsets", "per_sample_weights")
    )
    return float_graph.Embedding(
        node.name, builder.first(node), layer_name(node), builder.array(what.weight), builder.call(node),
        bag=what.mode, offsets=offsets, weights=weights,
        include_last_offset=what.include_last_offset, padding_idx=what.padding_idx,
    )  # fmt: skip


def recurrent(builder: Builder, node: fx.Node, what: nn.RNNBase) -> float_graph.Recurrent:
    kind = {"LSTM": "lstm", "GRU": "gru"}.get(what.mode, what.mode.lower())
    cells = []
    for layer in range(what.num_layers):
        for suffix in ("", "_reverse") if what.bidirectional else ("",):
            names = (f"{part}_l{layer}{suffix}" for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
            w, u, b, c = (getattr(what, name, None) for name in names)
            cells.append(float_cell(builder, w, u, b, c))
    place = node.name, builder.first(node), state(builder, node), layer_name(node)
    return float_graph.Recurrent(*place, kind, tuple(cells), what.bidirectional, what.batch_first, builder.call(node))


def cell(builder: Builder, node: fx.Node, what: nn.RNNCellBase, name: str) -> float_graph.Recurrent:
    kind = f"rnn_{what.nonlinearity}" if name == "rnn" else name
    cells = (float_cell(builder, what.weight_ih, what.weight_hh, what.bias_ih, what.bias_hh),)
    place = node.name, builder.first(node), state(builder, node), layer_name(node)
    return float_graph.Recurrent(*place, kind, cells, False, False, builder.call(node), single=True)


Tensor = torch.Tensor | None


def float_cell(builder: Builder, w: Any, u: Any, b: Tensor, c: Tensor) -> float_graph.FloatCell:
    """One direction of one layer, by the parameters that torch keeps: weights of the input and the state, biases."""
    weights = builder.array(w), builder.array(u)
    return float_graph.FloatCell(*weights, builder.optional(b), builder.optional(c))


def state(builder: Builder, node: fx.Node) -> Any:
    """The initial state that a call was given, as a tree, or None."""
    given = node.kwargs.get("hx", node.args[1] if len(node.args) > 1 else None)
    return builder.tree(given)


LINEAR = ("input", "weight", "bias")
CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
FUNCTIONS: dict[Callable[..., Any], int] = {
    F.conv1d: 1, F.conv2d: 2, F.conv3d: 3, torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3,
}  # fmt: skip


def function(builder: Builder, node: fx.Node) -> float_graph.Node | None:
    """A function of parameters of the model as a layer; None for other functions, and where the weights are computed.
    """
    target, given = node.target, arguments(node)
    if given is None or not is_parameter(given["weight"]):
        return None
    if given.get("bias") is not None and not is_parameter(given["bias"]):
        return None
    path = str(given["weight"].target)
    layer = path.rpartition(".")[0] or node.name
    if builder.weights.setdefault(layer, path) != path:
        layer = path  # one of several weights of a module
    w = builder.attribute(path)
    c = None if given.get("bias") is None else builder.attribute(str(given["bias"].target))
    if any(value is not None and value.dtype != torch.float32 for value in (w, c)):
        return None
    x = builder.tree(given["input"]).name
    if "start" in given:
        rows = slice(given["start"], given["stop"])
        layer = f"{layer}.{rows.start}"
        weight = (w if target is attention.project else w[rows]).detach().numpy().copy()
        bias = None if c is None else c[rows].detach().numpy().copy()
    else:
        weight, bias = builder.array(w), builder.optional(c)
    found: float_graph.Node | None
    if callable(target) and target in FUNCTIONS:
        found = functional_conv(node.name, given, layer, x, weight, bias, FUNCTIONS[target])
    else:
        found = float_graph.Linear(node.name, x, layer, weight, bias)
    if found is not None:
        builder.calls[layer] = builder.calls.get(layer, 0) + 1
    return found


def arguments(node: fx.Node) -> dict[str, Any] | None:
    """The arguments of a layer's function by name; None for other functions."""
    target = node.target
    if target is F.linear:
        return dict(zip(LINEAR, node.args)) | node.kwargs
    if target in (attention.linear_rows, attention.project):
        return dict(zip((*LINEAR, "start", "stop"), node.args))
    return dict(zip(CONV, node.args)) | node.kwargs if callable(target) and target in FUNCTIONS else None


def is_parameter(argument: Any) -> bool:
    """Whether an argument is a value that the model holds."""
    return isinstance(argument, fx.Node) and argument.op == "get_attr"


def functional_conv(
    name: str, given: dict[str, Any], layer: str, x: str, weight: np.ndarray, bias: np.ndarray | None, positions: int
) -> float_graph.Conv | None:
    stride, dilation = (each(given.get(key, 1), positions) for key in ("stride", "dilation"))
    padding, groups = given.get("padding", 0), given.get("groups", 1)
    reach = [d * (k - 1) for d, k in zip(dilation or (), weight.shape[2:])]
    pairs: Pairs | None
    if padding == "same":
        pairs = tuple((r // 2, r - r // 2) for r in reach)
    else:
        sides = (0,) * positions if padding == "valid" else each(padding, positions)
        pairs = None if sides is None else tuple((p, p) for p in sides)
    if stride is None or dilation is None or pairs is None or not isinstance(groups, int):
        return None
    return float_graph.Conv(name, x, layer, weight, bias, stride, pairs, dilation, (1,) * positions, groups)
