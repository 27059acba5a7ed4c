"""Layers with weights, modules and functions alike, as nodes of the float graph."""

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
CELLS = {nn.LSTMCell: "lstm", nn.GRUCell: "gru", nn.RNNCell: "rnn"}


def layer_of(node: fx.Node) -> str:
    """What a layer that is a module is called: the module's path, and where that is the whole model, the node's name."""
    return str(node.target) or node.name


def module(builder: Builder, node: fx.Node, what: nn.Module) -> float_graph.Node | list[float_graph.Node] | None:
    """A module with weights as a node, or as two where it pads otherwise than with zeros. None for what is none of
    these."""
    if isinstance(what, nn.Linear) and public(what, (nn.Linear,)):
        arrays = builder.array(what.weight), builder.optional(what.bias)
        return float_graph.Linear(node.name, builder.first(node), layer_of(node), *arrays)
    if isinstance(what, CONVS) and public(what, CONVS):
        return conv_module(builder, node, what, what.weight.ndim - 2)
    if isinstance(what, TRANSPOSED) and public(what, TRANSPOSED):
        # An output_size is a number of this call, not of the layer.
        return transposed_module(builder, node, what) if len(node.args) + len(node.kwargs) == 1 else None
    if isinstance(what, NORMS) and type(what).forward is NORMS[0].forward and what.track_running_stats:
        return batch_norm(builder, node, what)
    if isinstance(what, nn.Embedding) and public(what, (nn.Embedding,)) and what.max_norm is None:
        return float_graph.Embedding(
            node.name, builder.first(node), layer_of(node), builder.array(what.weight), builder.call(node),
            padding_idx=what.padding_idx,
        )  # fmt: skip
    if isinstance(what, nn.EmbeddingBag) and public(what, (nn.EmbeddingBag,)) and what.max_norm is None:
        return bag(builder, node, what)
    if isinstance(what, nn.RNNBase) and public(what, (nn.LSTM, nn.GRU, nn.RNN)) and not what.proj_size:
        return recurrent(builder, node, what)
    if isinstance(what, nn.RNNCellBase):
        for kind, name in CELLS.items():
            if public(what, (kind,)):
                return cell(builder, node, what, name)
    return None


def conv_module(
    builder: Builder, node: fx.Node, what: nn.Conv1d | nn.Conv2d | nn.Conv3d, positions: int
) -> list[float_graph.Node]:
    layer, x = layer_of(node), builder.first(node)
    before: list[float_graph.Node] = []
    padding: tuple[tuple[int, int], ...]
    reach = [d * (k - 1) for d, k in zip(what.dilation, what.kernel_size)]
    if what.padding == "same":
        padding = tuple((r // 2, r - r // 2) for r in reach)
    elif what.padding == "valid":
        padding = ((0, 0),) * positions
    else:
        padding = tuple((int(p), int(p)) for p in what.padding)
    if what.padding_mode != "zeros" and any(map(any, padding)):
        name = f"{node.name}_padded"
        widths = [end for pair in reversed(padding) for end in pair]
        builder.callables["function", "torch.nn.functional.pad"] = F.pad
        call = Call(name, "function", "torch.nn.functional.pad", (Ref(x), widths), {"mode": what.padding_mode}, "")
        before, x, padding = [float_graph.Move(name, x, call)], name, ((0, 0),) * positions
    ones = (1,) * positions
    conv = float_graph.Conv(
        node.name, x, layer, builder.array(what.weight), builder.optional(what.bias),
        tuple(what.stride), padding, tuple(what.dilation), ones, what.groups,
    )  # fmt: skip
    return [*before, conv]


def transposed_module(
    builder: Builder, node: fx.Node, what: nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
) -> float_graph.Conv:
    ones = (1,) * len(what.kernel_size)
    reach = [d * (k - 1) for d, k in zip(what.dilation, what.kernel_size)]
    ends: Any = zip(reach, what.padding, what.output_padding)
    padding = tuple((r - p, r - p + o) for r, p, o in ends)
    weight = float_run.transposed_weight(what.weight.detach(), what.groups).numpy()
    return float_graph.Conv(
        node.name, builder.first(node), layer_of(node), weight, builder.optional(what.bias),
        ones, padding, tuple(what.dilation), tuple(what.stride), what.groups, True,
    )  # fmt: skip


def batch_norm(
    builder: Builder, node: fx.Node, what: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
) -> float_graph.BatchNorm:
    ones = np.ones(what.num_features, np.float32)
    assert what.running_mean is not None and what.running_var is not None
    gamma = ones if what.weight is None else builder.array(what.weight)
    beta = ones * 0 if what.bias is None else builder.array(what.bias)
    statistics = builder.array(what.running_mean), builder.array(what.running_var)
    positions = 2 if isinstance(what, nn.BatchNorm2d) else 3 if isinstance(what, nn.BatchNorm3d) else None
    return float_graph.BatchNorm(
        node.name, builder.first(node), gamma, beta, *statistics, what.eps, builder.call(node), str(node.target), positions
    )


def bag(builder: Builder, node: fx.Node, what: nn.EmbeddingBag) -> float_graph.Embedding | None:
    given: dict[str, Any] = dict(zip(("input", "offsets", "per_sample_weights"), node.args)) | dict(node.kwargs)
    others = ("offsets", "per_sample_weights")
    names = {key: builder.tree(given[key]).name if is_value(given.get(key)) else None for key in others}
    return float_graph.Embedding(
        node.name, builder.first(node), layer_of(node), builder.array(what.weight), builder.call(node), bag=what.mode,
        offsets=names["offsets"], weights=names["per_sample_weights"],
        include_last_offset=what.include_last_offset, padding_idx=what.padding_idx,
    )  # fmt: skip


def recurrent(builder: Builder, node: fx.Node, what: nn.RNNBase) -> float_graph.Recurrent | None:
    target: Any = getattr(node.args[0] if node.args else None, "target", None)
    if getattr(target, "__name__", "").startswith("pack_"):
        return None  # packed sequences have steps of different batch sizes
    kind = {"LSTM": "lstm", "GRU": "gru"}.get(what.mode, what.mode.lower())
    cells = []
    for layer in range(what.num_layers):
        for suffix in ("", "_reverse") if what.bidirectional else ("",):
            names = (f"{part}_l{layer}{suffix}" for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
            weights = builder.array(getattr(what, next(names))), builder.array(getattr(what, next(names)))
            biases = (builder.optional(getattr(what, name, None)) for name in names)
            cells.append(float_graph.FloatCell(*weights, *biases))
    place = node.name, builder.first(node), state(builder, node), layer_of(node)
    return float_graph.Recurrent(*place, kind, tuple(cells), what.bidirectional, what.batch_first, builder.call(node))


def cell(builder: Builder, node: fx.Node, what: nn.RNNCellBase, name: str) -> float_graph.Recurrent:
    kind = f"rnn_{what.nonlinearity}" if name == "rnn" else name
    weights = builder.array(what.weight_ih), builder.array(what.weight_hh)
    biases = builder.optional(what.bias_ih), builder.optional(what.bias_hh)
    place = node.name, builder.first(node), state(builder, node), layer_of(node)
    cells = (float_graph.FloatCell(*weights, *biases),)
    return float_graph.Recurrent(*place, kind, cells, False, False, builder.call(node), single=True)


def state(builder: Builder, node: fx.Node) -> Any:
    """The initial state that a call was given, as a tree, or None."""
    given: Any = node.kwargs.get("hx", node.args[1] if len(node.args) > 1 else None)
    return builder.tree(given)


LINEAR = ("input", "weight", "bias")
CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
FUNCTIONS = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3, torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}


def is_constant(argument: Any) -> bool:
    """Whether an argument is a parameter, or what was computed from some."""
    return isinstance(argument, fx.Node) and argument.op == "get_attr"


def function(builder: Builder, node: fx.Node) -> float_graph.Node | None:
    """A function of parameters of the model as a layer; None for other functions, and where the weights are computed."""
    target: Any = node.target
    given: dict[str, Any]
    if target is F.linear:
        given = dict(zip(LINEAR, node.args)) | dict(node.kwargs)
    elif target in (attention.linear_rows, attention.project):
        given = dict(zip((*LINEAR, "start", "stop"), node.args))
    elif target in FUNCTIONS:
        given = dict(zip(CONV, node.args)) | dict(node.kwargs)
    else:
        return None
    weight: Any = given["weight"]
    bias: Any = given.get("bias")
    if not is_constant(weight) or not (bias is None or is_constant(bias)):
        return None
    layer = weight.target.rpartition(".")[0] or node.name
    w: torch.Tensor = builder.attribute(weight.target)
    c: torch.Tensor | None = None if bias is None else builder.attribute(bias.target)
    x = builder.tree(given["input"]).name
    if "start" in given:
        rows = slice(given["start"], given["stop"])
        layer = f"{layer}.{rows.start}"
        cut = w if target is attention.project else w[rows]
        bias_cut = None if c is None else c[rows]
        builder.calls[layer] = builder.calls.get(layer, 0) + 1
        weight_rows = cut.detach().numpy().copy()
        bias_rows = None if bias_cut is None else bias_cut.detach().numpy().copy()
        return float_graph.Linear(node.name, x, layer, weight_rows, bias_rows)
    builder.calls[layer] = builder.calls.get(layer, 0) + 1
    if target is F.linear:
        return float_graph.Linear(node.name, x, layer, builder.array(w), builder.optional(c))
    return functional_conv(builder, node, given, layer, x, builder.array(w), builder.optional(c))


def functional_conv(
    builder: Builder, node: fx.Node, given: dict[str, Any], layer: str, x: str, weight: np.ndarray, bias: np.ndarray | None
) -> float_graph.Conv | None:
    positions = weight.ndim - 2
    pairs: tuple[tuple[int, int], ...] | None
    stride, dilation = (each(given.get(key, 1), positions) for key in ("stride", "dilation"))
    padding, groups = given.get("padding", 0), given.get("groups", 1)
    reach = [d * (k - 1) for d, k in zip(dilation or (), weight.shape[2:])]
    if padding == "same":
        pairs = tuple((r // 2, r - r // 2) for r in reach)
    else:
        sides = (0,) * positions if padding == "valid" else each(padding, positions)
        pairs = None if sides is None else tuple((p, p) for p in sides)
    if stride is None or dilation is None or pairs is None or not isinstance(groups, int):
        return None
    return float_graph.Conv(node.name, x, layer, weight, bias, stride, pairs, dilation, (1,) * positions, groups)
