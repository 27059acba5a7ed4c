"""torch.ao's FX quantization of a whole model, as a peer to compare networks with. Deprecated by torch, and used
nowhere else."""

import copy
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .rows import call


def quantized(model: nn.Module, calibration: Iterable[Any], *, engine: str = "x86") -> nn.Module:
    """The model quantized statically by torch.ao: min-max observers, unsigned activations of eight bits, signed
    symmetric weights with a scale for each channel.

    ``calibration``: batches, each a tensor, a tuple of inputs or a dict of named ones; the first is the example to
    trace with. Raises whatever torch.ao raises for models that it cannot do.
    """
    from torch.ao.quantization import MinMaxObserver, PerChannelMinMaxObserver, QConfig, get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # that all of this is deprecated
        torch.backends.quantized.engine = engine
        activation = MinMaxObserver.with_args(dtype=torch.quint8, qscheme=torch.per_tensor_affine, reduce_range=False)
        weight = PerChannelMinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_channel_symmetric)
        configuration = QConfig(activation=activation, weight=weight)  # type: ignore[no-untyped-call]  # torch's own
        mapping = get_default_qconfig_mapping(engine).set_global(configuration)
        batches = list(calibration)
        prepared = prepare_fx(copy.deepcopy(model), mapping, inputs(batches[0]))
        for batch in batches:
            call(prepared, batch)
        converted = convert_fx(prepared)
        call(converted, batches[0])  # some kernels refuse their arguments only when they run
        return converted


def inputs(batch: Any) -> tuple[Any, ...]:
    """The inputs of a batch, in order."""
    if isinstance(batch, dict):
        return tuple(batch.values())
    return batch if isinstance(batch, tuple) else (batch,)


def int8_layers(quantized_model: nn.Module) -> set[str]:
    """The paths of the modules that became int8 layers with weights."""
    return {
        path for path, module in quantized_model.named_modules()
        if ".quantized" in type(module).__module__ and callable(getattr(module, "weight", None))
    }  # fmt: skip
