"""torch.ao's quantization of a whole model, as a peer to compare networks with: by FX, and training of LSTMs by its
parts. Deprecated by torch, and used nowhere else."""

import copy
import warnings
from collections.abc import Callable, Iterable
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


def in_training(model: nn.Module, example: torch.Tensor, *, bits: int, engine: str) -> nn.Module:
    """The model with torch.ao's fake quantization: weights of so many bits with a scale for each channel, activations
    of eight. Raises whatever torch.ao raises for models that it cannot do, and ValueError for GRUs and plain recurrent
    layers, which it trains in no way."""
    from torch.ao.quantization import (
        FakeQuantize,
        MovingAverageMinMaxObserver,
        MovingAveragePerChannelMinMaxObserver,
        QConfig,
        get_default_qat_qconfig_mapping,
    )
    from torch.ao.quantization.quantize_fx import prepare_qat_fx

    recurrent = {type(module) for module in model.modules() if isinstance(module, nn.RNNBase)}
    if recurrent - {nn.LSTM}:
        raise ValueError("torch.ao trains no recurrent layer of torch.nn but LSTMs")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that all of this is deprecated
        torch.backends.quantized.engine = engine
        activation = FakeQuantize.with_args(  # type: ignore[no-untyped-call]
            observer=MovingAverageMinMaxObserver, quant_min=0, quant_max=255, dtype=torch.quint8, reduce_range=False
        )
        weight = FakeQuantize.with_args(  # type: ignore[no-untyped-call]
            observer=MovingAveragePerChannelMinMaxObserver, quant_min=-(2 ** (bits - 1)), quant_max=2 ** (bits - 1) - 1,
            dtype=torch.qint8, qscheme=torch.per_channel_symmetric,
        )  # fmt: skip
        configuration = QConfig(activation=activation, weight=weight)  # type: ignore[no-untyped-call]
        model = copy.deepcopy(model).train()
        if recurrent:
            return with_lstms_in_training(model, configuration)
        mapping = get_default_qat_qconfig_mapping(engine).set_global(configuration)
        prepared: nn.Module = prepare_qat_fx(model, mapping, (example,))
        return prepared


def with_lstms_in_training(model: nn.Module, configuration: Any) -> nn.Module:
    """The model, changed in place, with fake quantization in its LSTMs too.

    Neither of torch.ao's functions for training does that: FX leaves LSTMs in float, and the eager one converts their
    parts before the first batch. So its parts are put together as that function would.
    """
    from torch.ao.nn import qat, quantizable
    from torch.ao.quantization import QuantWrapper, prepare, propagate_qconfig_

    replace(model, nn.LSTM, lambda layer: quantizable.LSTM.from_float(layer, configuration))  # type: ignore[no-untyped-call]
    wrapped = QuantWrapper(model)
    wrapped.qconfig = configuration
    propagate_qconfig_(wrapped)  # type: ignore[no-untyped-call]
    replace(wrapped, nn.Linear, qat.Linear.from_float)
    prepared: nn.Module = prepare(  # type: ignore[no-untyped-call]
        wrapped.train(), inplace=True, observer_non_leaf_module_list={qat.Linear}
    )
    return prepared


def replace(model: nn.Module, kind: type[nn.Module], by: Callable[[Any], nn.Module]) -> None:
    """Puts others in the places of the modules of a class, and of no class derived from it."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is kind:
                setattr(module, name, by(child))


def converted(prepared: Any, *, engine: str) -> tuple[nn.Module, float]:
    """What torch.ao makes of a network that it trained, and the scale of its output. The network's ranges stay from
    then on what they are: torch.ao's follow what they see in evaluation, too."""
    from torch.ao.quantization import QuantWrapper, convert, disable_observer
    from torch.ao.quantization.quantize_fx import convert_fx

    prepared.apply(disable_observer)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.backends.quantized.engine = engine
        trained = copy.deepcopy(prepared).eval()
        made: nn.Module = (convert if isinstance(prepared, QuantWrapper) else convert_fx)(trained)
    layers = [module for module in made.modules() if ".quantized" in type(module).__module__]
    scale: Any = next(module.scale for module in reversed(layers) if hasattr(module, "scale"))
    return made, float(scale)


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
