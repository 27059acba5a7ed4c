"""What stays in float, in a file: functions by names from a fixed list, modules of torch.nn by class and arguments, no code.

Nothing that a file says is looked up elsewhere than here. What these lists allow only computes: no function of theirs reads a file, imports, runs what it is
given, or writes to anything but its result.
"""

import builtins
import copy
import importlib
import math
import operator
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from quantspec.capture import attention
from quantspec.errors import UnsupportedError
from quantspec.ir import float_graph, float_run
from quantspec.ir.program import Call, Ref
from quantspec.ir.rearrange import METHODS as MOVING
from quantspec.ir.rearrange import SHAPES
from quantspec.ir.traverse import replace_refs
from quantspec.torchvision_compat import import_torchvision

from .json_fields import Reader, Writer, expect, keys

FUNCTIONS = {
    "torch": """
        _assert abs absolute acos add addcmul addmm all amax amin any arange argmax argmin argsort asin atan atan2 baddbmm bmm broadcast_to cat ceil celu
        channel_shuffle chunk clamp clip concat concatenate conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d cos cosh cumprod cumsum
        diag diagonal diff div divide dot dropout einsum eq erf erfc exp expand_copy expm1 fill flatten flip floor floor_divide fmod frac full full_like gather
        ge gt hypot index_select isfinite isinf isnan layer_norm le lerp linspace log log10 log1p log2 log_softmax logical_and logical_not logical_or logical_xor
        logsumexp lt masked_fill matmul max max_pool1d max_pool2d max_pool3d maximum mean median meshgrid min minimum mm movedim mul multiply mv narrow ne neg
        negative norm numel ones ones_like outer permute pow prod reciprocal relu remainder repeat_interleave reshape rms_norm roll round rsqrt rsub scatter select
        selu sigmoid sign sin sinh softmax sort split sqrt square squeeze stack std sub subtract sum swapaxes swapdims t tan tanh tensor tensor_split tensordot tile
        topk transpose tril triu true_divide trunc unbind unflatten unsqueeze var vstack hstack where zeros zeros_like
    """,
    "torch.nn.functional": """
        adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d affine_grid alpha_dropout
        avg_pool1d avg_pool2d avg_pool3d batch_norm bilinear celu channel_shuffle conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d
        cosine_similarity dropout dropout1d dropout2d dropout3d elu embedding embedding_bag feature_alpha_dropout fold gelu glu grid_sample group_norm hardshrink
        hardsigmoid hardswish hardtanh instance_norm interpolate layer_norm leaky_relu linear local_response_norm log_softmax logsigmoid lp_pool1d lp_pool2d
        max_pool1d max_pool2d max_pool3d mish normalize one_hot pad pairwise_distance pixel_shuffle pixel_unshuffle prelu relu relu6 rms_norm
        scaled_dot_product_attention selu sigmoid silu softmax softmin softplus softshrink softsign tanh tanhshrink threshold unfold upsample
    """,
    "operator": "abs add and_ eq floordiv ge getitem gt invert is_ is_not le lt matmul mod mul ne neg not_ or_ pos pow sub truediv xor",
    "math": "ceil exp floor log log2 prod sqrt trunc",
    "builtins": "abs bool float getattr int len list max min round sum tuple",
    "quantspec.capture.attention": "attend linear_rows project",
    "torchvision.models.swin_transformer": "_get_relative_position_bias _patch_merging_pad shifted_window_attention",
    "torchvision.ops.stochastic_depth": "stochastic_depth",
}
FUNCTIONS = {place: frozenset(names.split()) for place, names in FUNCTIONS.items()}
PLACES = {"torch": torch, "torch.nn.functional": F, "operator": operator, "math": math, "builtins": builtins, "quantspec.capture.attention": attention}

METHODS = MOVING | SHAPES | frozenset(
    """
    abs add addmm all amax amin any argmax argmin argsort bmm bool ceil chunk clamp clip cos cumsum diff div double eq erf exp expm1 float floor
    floor_divide fmod gather ge gt half index_select int item le lerp log log1p log2 log_softmax logical_and logical_not logical_or logsumexp long lt masked_fill
    matmul max maximum mean min minimum mm mul multiply ne neg new_full new_ones new_zeros norm pow prod reciprocal relu remainder round rsqrt scatter
    sigmoid sign sin softmax sort sqrt square std sub subtract sum tan tanh tensor_split to topk tril triu true_divide trunc type_as unfold var where
    """.split()
)  # fmt: skip
ATTRIBUTES = frozenset({"shape", "ndim", "dtype", "device", "T", "mT", "is_cuda", "layout", "values", "indices"})

# Each with the arguments of its constructor. ``bias?`` is whether the module has a bias; other arguments are attributes of the same name.
MODULES = {
    "LayerNorm": "normalized_shape eps elementwise_affine bias?",
    "RMSNorm": "normalized_shape eps elementwise_affine",
    "GroupNorm": "num_groups num_channels eps affine",
    "LocalResponseNorm": "size alpha beta k",
    "Embedding": "num_embeddings embedding_dim padding_idx max_norm norm_type scale_grad_by_freq sparse",
    "EmbeddingBag": "num_embeddings embedding_dim max_norm norm_type scale_grad_by_freq mode sparse include_last_offset padding_idx",
    "Linear": "in_features out_features bias?",
    "Bilinear": "in1_features in2_features out_features bias?",
    "MultiheadAttention": "embed_dim num_heads dropout in_proj_bias? bias_k? add_zero_attn kdim vdim batch_first",
    "PReLU": "num_parameters init", "GELU": "approximate", "Softmax": "dim", "LogSoftmax": "dim", "Softmin": "dim", "GLU": "dim", "ELU": "alpha",
    "CELU": "alpha", "LeakyReLU": "negative_slope", "Hardtanh": "min_val max_val", "Threshold": "threshold value", "Softplus": "beta threshold",
    "Softshrink": "lambd", "Hardshrink": "lambd", "CosineSimilarity": "dim eps", "PairwiseDistance": "norm eps keepdim",
    "Flatten": "start_dim end_dim", "Unflatten": "dim unflattened_size", "Upsample": "size scale_factor mode align_corners recompute_scale_factor",
    "PixelShuffle": "upscale_factor", "PixelUnshuffle": "downscale_factor", "ChannelShuffle": "groups",
    "Fold": "output_size kernel_size dilation padding stride", "Unfold": "kernel_size dilation padding stride",
}  # fmt: skip
MODULES |= dict.fromkeys(
    "ReLU ReLU6 Sigmoid Tanh SiLU Mish Hardswish Hardsigmoid Softsign SELU LogSigmoid Tanhshrink Identity Softmax2d".split(), ""
)
MODULES |= dict.fromkeys(("LSTM", "GRU"), "input_size hidden_size num_layers bias batch_first dropout bidirectional")
MODULES["LSTM"] += " proj_size"
MODULES["RNN"] = "input_size hidden_size num_layers nonlinearity bias batch_first dropout bidirectional"
MODULES |= {"LSTMCell": "input_size hidden_size bias", "GRUCell": "input_size hidden_size bias", "RNNCell": "input_size hidden_size bias nonlinearity"}
for _n in ("1d", "2d", "3d"):
    _window = "in_channels out_channels kernel_size stride padding"
    MODULES |= {f"BatchNorm{_n}": "num_features eps momentum affine track_running_stats", f"InstanceNorm{_n}": "num_features eps momentum affine track_running_stats"}
    MODULES |= {f"Conv{_n}": f"{_window} dilation groups bias? padding_mode", f"ConvTranspose{_n}": f"{_window} output_padding groups bias? dilation padding_mode"}
    MODULES |= {f"MaxPool{_n}": "kernel_size stride padding dilation return_indices ceil_mode", f"AdaptiveAvgPool{_n}": "output_size"}
    MODULES |= {f"AdaptiveMaxPool{_n}": "output_size return_indices", f"LPPool{_n}": "norm_type kernel_size stride ceil_mode"}
    MODULES |= {f"AvgPool{_n}": "kernel_size stride padding ceil_mode count_include_pad" + (" divisor_override" if _n != "1d" else "")}
    MODULES |= {f"{kind}Pad{_n}": "padding" for kind in ("Zero", "Reflection", "Replication", "Circular")} | {f"ConstantPad{_n}": "padding value"}
    MODULES[f"Dropout{_n}"] = "p"
MODULES |= dict.fromkeys(("Dropout", "AlphaDropout", "FeatureAlphaDropout"), "p")
HAS = {"bias?": "bias", "in_proj_bias?": "bias", "bias_k?": "add_bias_kv"}
HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def function(name: str) -> Any:
    """The function of that name. ValueError for a name that is not on the list, or that this torch does not have."""
    place, _, leaf = name.rpartition(".")
    if leaf not in FUNCTIONS.get(place, ()):
        raise ValueError(f"a file may not name the function {name!r}")
    if place.startswith("torchvision."):
        import_torchvision()
        PLACES[place] = importlib.import_module(place)
    if not hasattr(PLACES[place], leaf):
        raise ValueError(f"this installation has no function {name!r}")
    return getattr(PLACES[place], leaf)


def listed(kind: str, name: str, what: Any) -> bool:
    """Whether that is a function which its name finds again."""
    place, _, leaf = name.rpartition(".")
    return kind == "function" and leaf in FUNCTIONS.get(place, ()) and function(name) is what


def check(step: Call) -> None:
    """ValueError for a call that a file may not hold."""
    where = f"step {step.name!r}"
    if step.kind == "method":
        if step.target not in METHODS:
            raise ValueError(f"{where}: a file may not name the method {step.target!r}")
        if not step.args or not isinstance(step.args[0], Ref):
            raise ValueError(f"{where}: a method belongs to a value")
    elif step.kind == "function":
        function(step.target)
        if step.target == "builtins.getattr" and (len(step.args) != 2 or step.kwargs or not isinstance(step.args[0], Ref) or step.args[1] not in ATTRIBUTES):
            raise ValueError(f"{where}: a file may not name the attribute {step.args[1:]!r}")
    elif step.kind not in ("module", "attribute"):
        raise ValueError(f"{where}: expected a module, a function, a method or an attribute, got {step.kind!r}")
    if not all(isinstance(key, str) for key in step.kwargs):
        raise ValueError(f"{where}: expected arguments by name")


def written(callables: Mapping[tuple[str, str], Any], writer: Writer) -> list[dict[str, Any]]:
    """What ``Call``s call, as JSON. Raises UnsupportedError naming what has no place in a file."""
    rows = []
    for (kind, target), what in callables.items():
        row: dict[str, Any] = {"kind": kind, "target": target}
        if kind == "function":
            try:
                same = function(target) is what
            except ValueError as error:
                raise UnsupportedError(f"function {target}: {error}") from error
            if not same:
                raise UnsupportedError(f"function {target} is another one than the file would name")
        elif kind == "attribute":
            row["value"] = writer.tree(what, target)
        else:
            row |= written_module(what, target, writer)
        rows.append(row)
    return rows


def written_module(module: nn.Module, path: str, writer: Writer) -> dict[str, Any]:
    """A layer after fusion, a plain module of torch.nn, or the state of another, which is to be given again when the file is loaded."""
    state = module.state_dict(keep_vars=True)
    if other := [name for name, value in state.items() if not isinstance(value, torch.Tensor)]:
        raise UnsupportedError(f"module {path!r}: its state {other[0]!r} is no tensor")
    stored = {name: writer.array(value, f"{path}.{name}") for name, value in state.items()}
    if type(module) is float_run.FloatLayer:
        return {"layer": type(module.node).__name__, "fields": writer.record(module.node, path, without=("weight", "bias")), "state": stored}
    if (arguments := plain_arguments(module)) is not None:
        return {"class": type(module).__name__, "arguments": writer.tree(arguments, path), "state": stored}
    return {"given": f"{type(module).__module__}.{type(module).__qualname__}", "state": stored}


def plain_arguments(module: nn.Module) -> dict[str, Any] | None:
    """The constructor arguments of a module of torch.nn that is nothing but what its class and they say; None for others."""
    name = type(module).__name__
    if name not in MODULES or type(module) is not getattr(nn, name) or any(getattr(module, hook) for hook in HOOKS):
        return None
    arguments = {}
    for argument in MODULES[name].split():
        attribute = argument.removesuffix("?")
        value = getattr(module, attribute, None)
        arguments[HAS.get(argument, attribute)] = value is not None if argument.endswith("?") else value
    try:
        twin = built(name, arguments, len(module.state_dict()))
        same = public(twin) == public(module)
    except Exception:  # what a user has put into a module may be refused, or not be comparable, in many ways
        return None
    return arguments if same else None


def public(module: nn.Module) -> dict[str, Any]:
    """What a module holds beside tensors and torch's own bookkeeping, its submodules' too."""
    return {f"{path}.{k}": v for path, m in module.named_modules() for k, v in vars(m).items() if not k.startswith("_") and k != "training"}


def built(name: str, arguments: dict[str, Any], tensors: int) -> nn.Module:
    """A module of torch.nn without memory for its parameters."""
    if arguments.get("num_layers", 1) > max(tensors, 1):
        raise ValueError(f"{arguments['num_layers']} layers with {tensors} tensors")
    with torch.device("meta"):
        return getattr(nn, name)(**arguments)


def read(rows: Any, reader: Reader, modules: Mapping[str, nn.Module]) -> dict[tuple[str, str], Any]:
    """What ``Call``s call, of JSON. ``modules``: those that are not in the file, by path. ValueError for what is not to be had."""
    callables: dict[tuple[str, str], Any] = {}
    for row in expect(rows, list, "callables"):
        kind, target = (expect(row.get(key) if type(row) is dict else None, str, f"callables: {key}") for key in ("kind", "target"))
        if (kind, target) in callables:
            raise ValueError(f"{kind} {target!r} is there twice")
        if kind == "function":
            keys(row, ("kind", "target"), target)
            made = function(target)
        elif kind == "attribute":
            keys(row, ("kind", "target", "value"), target)
            made = reader.tree(row["value"], target)
            replace_refs(made, lambda name, target=target: refuse(f"attribute {target!r} refers to {name!r}"))
        elif kind == "module":
            made = read_module(row, target, reader, modules)
        else:
            raise ValueError(f"callables: unknown kind {kind!r}")
        callables[kind, target] = made
    return callables


def refuse(message: str) -> None:
    raise ValueError(message)


def read_module(row: dict[str, Any], path: str, reader: Reader, modules: Mapping[str, nn.Module]) -> nn.Module:
    where = f"module {path!r}"
    named = row.get("state")
    if type(named) is not dict:
        raise ValueError(f"{where}: expected its state, got {named!r:.80}")
    state = {name: reader.tensor(key, f"{where}: {name}") for name, key in named.items()}
    if "layer" in row:
        keys(row, ("kind", "target", "layer", "fields", "state"), where)
        return float_layer(row, where, state, reader)
    if "given" in row:
        keys(row, ("kind", "target", "given", "state"), where)
        expect(row["given"], str, where)
        return given(row["given"], path, state, modules)
    keys(row, ("kind", "target", "class", "arguments", "state"), where)
    name, arguments = row["class"], reader.tree(row["arguments"], where)
    if type(name) is not str or name not in MODULES:
        raise ValueError(f"{where}: a file may not name the class {name!r}")
    keys(arguments, tuple(HAS.get(a, a) for a in MODULES[name].split()), where)
    try:
        module = built(name, arguments, len(state))
    except Exception as error:  # torch.nn refuses bad arguments in many ways
        raise ValueError(f"{where}: {name} does not take {arguments}: {error}") from error
    fits(module, state, where)
    module.load_state_dict(state, strict=True, assign=True)
    if any(tensor.is_meta for tensor in [*module.parameters(), *module.buffers()]):
        raise ValueError(f"{where}: a part of its state is missing")
    return module.eval()


def float_layer(row: dict[str, Any], where: str, state: dict[str, torch.Tensor], reader: Reader) -> float_run.FloatLayer:
    kinds = {"Linear": float_graph.Linear, "Conv": float_graph.Conv}
    if row["layer"] not in kinds or set(state) not in ({"weight"}, {"weight", "bias"}) or any(t.dtype != torch.float32 for t in state.values()):
        raise ValueError(f"{where}: expected a layer with a float32 weight, got {row['layer']!r} with {sorted(state)}")
    node = reader.record(kinds[row["layer"]], row["fields"], where, extra={"weight": None, "bias": None})
    weight, bias = state["weight"].numpy(), state["bias"].numpy() if "bias" in state else None
    check_layer(node, weight, bias, where)
    return float_run.FloatLayer(replace(node, weight=weight, bias=bias))


def check_layer(node: float_graph.Layer, weight: Any, bias: Any, where: str) -> None:
    """ValueError unless weight, bias and the places of a convolution belong together. ``node``: a layer of a float graph or of a Program."""
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{where}: expected a bias of shape {weight.shape[:1]}, got {bias.shape}")
    if not hasattr(node, "groups"):
        if weight.ndim != 2:
            raise ValueError(f"{where}: expected a weight [outputs, inputs], got shape {weight.shape}")
        return
    positions = weight.ndim - 2
    if not 1 <= positions <= 3 or any(len(p) != positions for p in (node.stride, node.padding, node.dilation, node.input_dilation)):
        raise ValueError(f"{where}: expected one to three axes of positions, and one place for each, got a weight of shape {weight.shape}")
    if min(*node.stride, *node.dilation, *node.input_dilation, node.groups, *weight.shape[2:]) < 1 or (weight.shape[0] % node.groups):
        raise ValueError(f"{where}: expected strides, dilations and kernels from 1 on, and groups that divide {weight.shape[0]} outputs")
    if max(abs(end) for pair in node.padding for end in pair) > 2**20 or max(*node.stride, *node.dilation, *node.input_dilation) > 2**20:
        raise ValueError(f"{where}: a place beyond 2^20")


def fits(module: nn.Module, state: dict[str, torch.Tensor], where: str) -> None:
    """ValueError unless ``state`` has exactly the names, shapes and types of the module's own."""
    own = module.state_dict()
    if set(own) != set(state):
        raise ValueError(f"{where}: {sorted(set(own) ^ set(state))[0]!r} is in only one of its state and the file")
    for name, tensor in state.items():
        if own[name].shape != tensor.shape or own[name].dtype != tensor.dtype:
            raise ValueError(f"{where}: expected {name!r} as {own[name].dtype}{list(own[name].shape)}, got {tensor.dtype}{list(tensor.shape)}")


class NotGiven(ValueError):
    """A module that the file does not hold was not given, or another one was."""


def given(kind: str, path: str, state: dict[str, torch.Tensor], modules: Mapping[str, nn.Module]) -> nn.Module:
    """A copy of the module that the caller gave, with the state of the file."""
    if path not in modules:
        raise NotGiven(f"modules: {path!r} is a {kind}, whose code no file holds; pass modules={{{path!r}: ...}}")
    module = modules[path]
    if not isinstance(module, nn.Module):
        raise NotGiven(f"modules: expected a module for {path!r}, got {type(module).__name__}")
    try:
        fits(module, state, f"modules: {path!r}")
    except ValueError as error:
        raise NotGiven(str(error)) from error
    module = copy.deepcopy(module)
    module.load_state_dict(state, strict=True)
    return module.eval()
