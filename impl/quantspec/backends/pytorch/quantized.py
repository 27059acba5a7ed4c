"""PyTorch's own quantized engines: its eager-mode workflow and kernels, with NumPy arrays out.

``torch.ao.quantization`` and the quantized dtypes are deprecated and being removed, which is why nothing outside this
folder may depend on them, and why their warnings are silenced here: who compares with them knows.
"""

import contextlib
import copy
import functools
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from quantspec.backends.protocol import rounds_as, sums_exactly
from quantspec.numerics.affine import QParams

ENGINES = {
    "x86": ("fbgemm",),
    "fbgemm": ("fbgemm",),
    "onednn": ("onednn", "onednn-product"),  # DIA-EITHER
    "qnnpack": ("qnnpack",),
}


@dataclass(frozen=True, eq=False)
class TorchLayer:
    """One linear layer of a torch network: its parameters, and what it took and gave for the test inputs.

    ``weight``: int8 codes [outputs, inputs]; ``w_scale``, ``w_zero_point``: () or (outputs,); ``bias``: float32
    (outputs,). ``bias_codes``: int64 (outputs,), torch's qint32 codes in units of input scale times weight scale, or
    None when dynamic. ``scale``, ``zero_point`` of the output are None when dynamic; ``inputs`` and ``outputs`` [rows,
    ...] are codes, or float32 when dynamic.
    """

    name: str
    weight: np.ndarray
    w_scale: np.ndarray
    w_zero_point: np.ndarray
    bias: np.ndarray
    bias_codes: np.ndarray | None
    scale: float | None
    zero_point: int | None
    inputs: np.ndarray
    outputs: np.ndarray


@dataclass(frozen=True, eq=False)
class TorchNetwork:
    """A network quantized by torch; ``input_scale``, ``input_zero_point`` and ``input_codes`` are None when dynamic."""

    layers: tuple[TorchLayer, ...]
    input_scale: float | None
    input_zero_point: int | None
    input_codes: np.ndarray | None


def why_not_offered(engine: str) -> str:
    """Why this build of torch cannot run an engine; empty when it can."""
    if engine in torch.backends.quantized.supported_engines:
        return ""
    return f"this build of torch offers {', '.join(torch.backends.quantized.supported_engines)}"


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Without torch's deprecation warnings inside."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def selected(engine: str) -> Iterator[None]:
    """torch computes with this engine inside, without its deprecation warnings; afterwards as before."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = engine
    try:
        with silent(), torch.no_grad():
            yield
    finally:
        torch.backends.quantized.engine = before


def dialects_here(engine: str) -> tuple[str, ...]:
    """The dialects that an engine may speak on this machine. It is asked, as CPUs differ (DIA-ACCUMULATE)."""
    if engine == "qnnpack" and quantizing_here(engine) == "torch-quantize-outside":
        return ("qnnpack-outside",)  # its dynamic layers quantize as tensors are quantized
    layer = functools.partial(linear, relu=False, engine=engine)
    suffix, names = "" if sums_exactly(layer) else "-int16", ENGINES[engine]
    if engine == "onednn" and rounds_as(layer, "onednn-divided"):  # as in torch 2.15
        names = tuple("onednn-divided" if name == "onednn" else name for name in names)
    if "fbgemm" in names and quantizes_outside(engine):
        names = ("fbgemm-outside",)
    return tuple(name + suffix for name in names)


def quantizes_outside(engine: str) -> bool:
    """Whether an engine's dynamic layers add the zero point of their input after rounding, as x86 and fbgemm do from
    torch 2.14 on."""
    with selected(engine):
        weight = torch._make_per_tensor_quantized_tensor(torch.tensor([[0, 0, 1]], dtype=torch.int8), 1.0, 0)
        packed = torch.ops.quantized.linear_prepack(weight, None)
        half_a_step = torch.tensor([[-1.0, 254.0, 0.5]])  # with the zero point 1
        return bool(torch.ops.quantized.linear_dynamic(half_a_step, packed, False).item() == 0)


def quantizing_here(engine: str) -> str:
    """The dialect that tensors are quantized in: ``torch-quantize`` in torch 2.13, in versions before and after it the
    one that adds the zero point after rounding (AFF-ORDER)."""
    with selected(engine):
        half_a_step = torch.quantize_per_tensor(torch.tensor([0.5]), 1.0, 1, torch.quint8).int_repr().item()
    return "torch-quantize" if half_a_step == 2 else "torch-quantize-outside"


def dialects_by_operation(engine: str) -> dict[str, frozenset[str]]:
    """The dialects of each operation of an engine in this build of torch and on this CPU, of which each output follows
    one."""
    here = quantizing_here(engine)
    tensors, tail = frozenset({here}), f"{here}-tail"
    layers = frozenset(dialects_here(engine))
    # The last few elements of a tensor take other steps than those that fill a vector; qnnpack has kernels for unsigned
    # codes only.
    own = layers if engine == "qnnpack" else frozenset()
    averages = tensors | own | averages_of_one_here(engine)
    sums = tensors | own | {tail} | signed_sums_here(engine)
    # Means of images whose channels are last, as one channel counts, take other steps than those of others.
    means = averages | {tail}
    exact = frozenset({"exact"})
    return {
        "quantize": tensors, "dequantize": exact, "qparams": tensors, "linear": layers,
        "linear_dynamic": layers, "conv2d": convolutions_here(engine, layers), "add": sums,
        "mul": tensors, "concat": tensors, "max_pool2d": exact,
        "avg_pool2d": averages, "adaptive_avg_pool2d": means, "fold_batch_norm": tensors,
    }  # fmt: skip


def averages_of_one_here(engine: str) -> frozenset[str]:
    """``torch-quantize-outside-one`` where averages over one channel add the zero point after rounding, as tensors then
    do; else nothing."""
    if quantizing_here(engine) == "torch-quantize":
        return frozenset()
    with selected(engine):
        codes = torch.tensor([[[[1, 2], [2, 1]]]], dtype=torch.uint8)
        half_a_step = torch._make_per_tensor_quantized_tensor(codes, 1.0, 1)
        average = torch.nn.functional.avg_pool2d(half_a_step, 2).int_repr().item()
    return frozenset({"torch-quantize-outside-one"}) if average == 1 else frozenset()


def signed_sums_here(engine: str) -> frozenset[str]:
    """``xnnpack`` where signed codes are added by XNNPACK, as qnnpack does in torch 2.6 to 2.11; else nothing."""
    with selected(engine):
        codes = torch.full((64,), 1, dtype=torch.int8)
        a = torch._make_per_tensor_quantized_tensor(codes, 0.5, 0)
        b = torch._make_per_tensor_quantized_tensor(torch.zeros_like(codes), 0.5, 0)
        total = torch.ops.quantized.add(a, b, 1.0, 1).int_repr()  # half a step: XNNPACK rounds it up, others to even
    return frozenset({"xnnpack"}) if bool((total == 2).all()) else frozenset()


def convolutions_here(engine: str, layers: frozenset[str]) -> frozenset[str]:
    """The dialects of an engine's convolutions: those of its linear layers, except that x86 hands convolutions to
    oneDNN on CPUs with VNNI.

    torch asks the CPU itself for that, whatever instructions oneDNN has been told to use.
    """
    if engine == "x86" and torch.cpu._is_vnni_supported():
        return frozenset(dialects_here("onednn"))
    return layers


def static_network(
    model: nn.Module,
    calibration: Iterable[torch.Tensor],
    test: Iterable[torch.Tensor],
    *,
    engine: str,
    fuse: list[list[str]],
    per_channel: bool,
    reduce_range: bool,
) -> TorchNetwork:
    """``model`` through torch's eager-mode static workflow with min-max observers, run over the test batches.

    ``fuse`` lists the groups of modules to fuse, by path, as ``torch.ao.quantization.fuse_modules`` takes them.
    """
    quantization: Any = torch.ao.quantization  # its functions have no types
    weights = quantization.PerChannelMinMaxObserver if per_channel else quantization.MinMaxObserver
    scheme = torch.per_channel_symmetric if per_channel else torch.per_tensor_symmetric
    activations = quantization.MinMaxObserver.with_args(dtype=torch.quint8, reduce_range=reduce_range)
    with selected(engine):
        network: Any = nn.Sequential(quantization.QuantStub(), copy.deepcopy(model).eval(), quantization.DeQuantStub())
        if fuse:
            quantization.fuse_modules(network[1], fuse, inplace=True)
        network.qconfig = quantization.QConfig(activations, weights.with_args(dtype=torch.qint8, qscheme=scheme))
        quantization.prepare(network, inplace=True)
        for batch in calibration:
            network(batch)
        quantization.convert(network, inplace=True)
        stub = network[0]
        kinds = torch.ao.nn.quantized.Linear, torch.ao.nn.intrinsic.quantized.LinearReLU
        modules = {path: module for path, module in network[1].named_modules() if isinstance(module, kinds)}
        seen = record(network, {"": stub} | modules, test)
        layers = []
        for path, module in modules.items():
            inputs, outputs = seen[path]
            scale, zero_point = float(module.scale), int(module.zero_point)
            layers.append(layer(path, module, scale, zero_point, codes(inputs), codes(outputs), inputs[0].q_scale()))
        input_codes = codes(seen[""][1])
        return TorchNetwork(tuple(layers), float(stub.scale), int(stub.zero_point), input_codes)


def linear(
    x_q: np.ndarray, x: QParams, w_q: np.ndarray, w: QParams, bias: np.ndarray | None, y: QParams, *,
    relu: bool, engine: str,
) -> np.ndarray:  # fmt: skip
    """Output codes [rows, outputs] of torch's kernel for a linear layer, given input codes [rows, inputs]."""
    with selected(engine):
        x_tensor = torch._make_per_tensor_quantized_tensor(torch.from_numpy(x_q), float(x.scale), int(x.zero_point))
        codes = torch.from_numpy(w_q)
        if w.axis is None:
            weight = torch._make_per_tensor_quantized_tensor(codes, float(w.scale), int(w.zero_point))
        else:
            points = np.broadcast_to(w.zero_point, w.scale.shape).astype(np.int64)
            scales = torch.from_numpy(w.scale.astype(np.float64))
            weight = torch._make_per_channel_quantized_tensor(codes, scales, torch.from_numpy(points), w.axis)
        packed = torch.ops.quantized.linear_prepack(weight, None if bias is None else torch.from_numpy(bias))
        kernel = torch.ops.quantized.linear_relu if relu else torch.ops.quantized.linear
        return cast(np.ndarray, kernel(x_tensor, packed, float(y.scale), int(y.zero_point)).int_repr().numpy())


def reduces_range(engine: str) -> bool:
    """Whether torch's dynamic layers use seven bits: they always ask for it, and qnnpack ignores that."""
    return engine != "qnnpack"


def dynamic_network(model: nn.Module, test: Iterable[torch.Tensor], *, engine: str) -> TorchNetwork:
    """``model`` through torch's dynamic workflow, with one weight scale a layer, run over the test batches."""
    with selected(engine):
        quantization: Any = torch.ao.quantization  # its functions have no types
        network = quantization.quantize_dynamic(copy.deepcopy(model).eval(), {nn.Linear}, dtype=torch.qint8)
        kind: Any = torch.ao.nn.quantized.dynamic.Linear
        modules = {path: module for path, module in network.named_modules() if isinstance(module, kind)}
        if not reduces_range(engine):
            for module in modules.values():
                # Layers of that age do not ask for seven bits; asked in vain, qnnpack prints a warning.
                module.version = 3
        seen = record(network, modules, test)
        layers = [
            layer(path, module, None, None, torch.cat(inputs).numpy(), torch.cat(outputs).numpy(), None)
            for (path, module), (inputs, outputs) in zip(modules.items(), seen.values())
        ]
        return TorchNetwork(tuple(layers), None, None, None)


def record(
    network: nn.Module, modules: Mapping[str, nn.Module], test: Iterable[torch.Tensor]
) -> dict[str, tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """What each of the modules took and gave while the network ran over the test batches."""
    seen: dict[str, tuple[list[torch.Tensor], list[torch.Tensor]]] = {path: ([], []) for path in modules}

    def keep(path: str, module: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        inputs, outputs = seen[path]
        inputs.append(arguments[0])
        outputs.append(output)

    hooks = [module.register_forward_hook(functools.partial(keep, path)) for path, module in modules.items()]
    for batch in test:
        network(batch)
    for hook in hooks:
        hook.remove()
    return seen


def layer(
    path: str, module: Any, scale: float | None, zero_point: int | None, inputs: np.ndarray, outputs: np.ndarray,
    x_scale: float | None,
) -> TorchLayer:  # fmt: skip
    """The parameters of a quantized linear module, whose class has no types, as arrays."""
    weight, bias = module.weight(), module.bias().detach()
    if weight.qscheme() == torch.per_tensor_affine:
        w_scale = np.asarray(weight.q_scale(), np.float32)
        w_zero_point = np.asarray(weight.q_zero_point(), np.int32)
    else:
        w_scale = weight.q_per_channel_scales().numpy().astype(np.float32)
        w_zero_point = weight.q_per_channel_zero_points().numpy().astype(np.int32)
    bias_codes = None
    if x_scale is not None:
        units = np.broadcast_to(np.float32(x_scale) * w_scale, len(bias))
        columns = [torch.quantize_per_tensor(b, float(u), 0, torch.qint32) for b, u in zip(bias, units)]
        bias_codes = np.array([int(column.int_repr()) for column in columns], dtype=np.int64)
    return TorchLayer(
        path, weight.int_repr().numpy(), w_scale, w_zero_point, bias.numpy(), bias_codes,
        scale, zero_point, inputs, outputs,
    )  # fmt: skip


def codes(tensors: list[torch.Tensor]) -> np.ndarray:
    """The codes of quantized tensors, one after the other."""
    return np.concatenate([tensor.int_repr().numpy() for tensor in tensors])
