"""Weights of the user's model that are held as the codes of the networks that have them (STA-CODED): whatever reads one
gets the dequantized values, computed then."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from quantspec.errors import UnsupportedError
from quantspec.ir.float_run import transposed_weight
from quantspec.ir.held import changed, codes_shape
from quantspec.ir.held import held as held_codes
from quantspec.ir.program import Conv, Embedding, Linear, LinearDynamic, LinearWeight, Program, Recurrent
from quantspec.storage.model import CodedWeight

Key = tuple[int, str]  # a module by its id, and the name of a tensor of it


class Coded(torch.Tensor):
    """A float32 tensor without memory of its own, whose values are those of codes."""

    weight: CodedWeight

    @staticmethod
    def __new__(cls, weight: CodedWeight) -> "Coded":
        empty = formed(torch.empty(codes_shape(weight, "codes"), dtype=torch.int8, device="meta"), weight)
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, empty.shape, dtype=torch.float32, device=torch.device("cpu")
        )
        tensor.weight = weight
        assert isinstance(tensor, Coded)
        return tensor

    def __init__(self, weight: CodedWeight) -> None:
        super().__init__()

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        # Nothing is done here, but as there is one, torch's encoder layers call their modules: their fused form would
        # read the weights of these instead, and leave their networks out.
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch gives no types
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        for argument, value in zip(func._schema.arguments, args):
            if isinstance(value, Coded) and argument.alias_info is not None and argument.alias_info.is_write:
                raise UnsupportedError(f"{func._schema.name}: a weight that is kept as int8 codes cannot be written to")
        args, kwargs = tree_map_only(Coded, Coded.values, (args, kwargs))
        return func(*args, **kwargs)

    def values(self) -> torch.Tensor:
        """The dequantized values."""
        codes, scale = torch.tensor(self.weight.codes), torch.tensor(self.weight.scale)
        along = (-1, *[1] * (codes.ndim - 1)) if scale.ndim else ()
        return formed(codes.to(torch.float32) * scale.reshape(along), self.weight)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Coded":
        return Coded(self.weight)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Coded, (self.weight,)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]  # torch gives no types
        return f"Coded({list(self.shape)})"


def formed(tensor: torch.Tensor, weight: CodedWeight) -> torch.Tensor:
    """A tensor as a layer has it in the form that the module has."""
    if weight.form == "transposed":
        return tensor.t()
    return transposed_weight(tensor, weight.groups) if weight.form == "flipped" else tensor


def codes_in(program: Program) -> Iterator[tuple[str, CodedWeight]]:
    """The codes of weights in a network, by the layers' paths."""
    for step in program.steps:
        if isinstance(step, Linear | LinearDynamic | LinearWeight | Embedding):
            yield step.layer, coded_weight(step, "weight", step.w_qparams.scale, 1)
        elif isinstance(step, Conv):
            yield step.layer, coded_weight(step, "weight", step.w_qparams.scale, step.groups)
        elif isinstance(step, Recurrent):
            for cell in step.cells:
                yield step.layer, coded_weight(cell, "input_weight", cell.input_qparams.scale, 1)
                yield step.layer, coded_weight(cell, "state_weight", cell.state_qparams.scale, 1)


def biases_in(program: Program) -> Iterator[tuple[str, np.ndarray]]:
    """The float biases in a network, by the layers' paths."""
    for step in program.steps:
        if isinstance(step, Linear | LinearDynamic | LinearWeight | Conv) and step.bias is not None:
            yield step.layer, step.bias
        elif isinstance(step, Recurrent):
            found = (bias for cell in step.cells for bias in (cell.input_bias, cell.state_bias))
            yield from ((step.layer, bias) for bias in found if bias is not None)


def keep_biases(model: nn.Module, programs: Mapping[str, Iterable[Program]]) -> frozenset[str]:
    """Has a model of ours hold, in the place of biases that its networks have, those of the networks, as attributes:
    the names of them. A bias that a normalization was folded into is another."""
    found: dict[int, torch.Tensor] = {}
    for path, networks in programs.items():
        biases = [item for network in networks for item in biases_in(network)]
        for inner, module in model.get_submodule(path).named_modules(prefix=path):
            for tensor in module._parameters.values():
                if tensor is None or tensor.ndim != 1 or tensor.dtype != torch.float32 or id(tensor) in found:
                    continue
                near = (bias for layer, bias in biases if related(layer, inner) and bias.shape == tuple(tensor.shape))
                values = tensor.detach().numpy()
                if (same := next((bias for bias in near if np.array_equal(bias, values)), None)) is not None:
                    found[id(tensor)] = torch.from_numpy(same) if same.flags.writeable else tensor.detach()
    places = [(name, module, leaf, found[id(t)]) for name, module, leaf, t in held(model) if id(t) in found]
    attributes = {(id(module), leaf): bias for _, module, leaf, bias in places}
    put(model, attributes)
    return frozenset(name for name, *_ in places)


def coded_weight(owner: object, name: str, scale: np.ndarray, groups: int) -> CodedWeight:
    """The codes in a field, as they are held there."""
    return CodedWeight(cast(np.ndarray, held_codes(owner, name)), scale, "same", groups)  # or what stands for them


def held(model: nn.Module) -> list[tuple[str, nn.Module, str, torch.Tensor]]:
    """The tensors that the modules of a model hold as parameters, buffers or attributes: path, module, name, tensor."""
    return [
        (f"{path}.{name}" if path else name, module, name, value)
        for path, module in model.named_modules()
        for name, value in (*module._parameters.items(), *module._buffers.items(), *vars(module).items())
        if isinstance(value, torch.Tensor)
    ]


def keep_codes(model: nn.Module, programs: Mapping[str, Iterable[Program]]) -> None:
    """Puts codes in the place of the weights of a model of ours that the networks of its parts have as codes."""
    found: dict[int, tuple[torch.Tensor, CodedWeight]] = {}
    for path, networks in programs.items():
        candidates: dict[str, list[CodedWeight]] = {}
        for network in networks:
            for layer, weight in codes_in(network):
                candidates.setdefault(layer, []).append(weight)
        for inner, module in model.get_submodule(path).named_modules(prefix=path):
            for tensor in (*module._parameters.values(), *vars(module).values()):
                if not isinstance(tensor, torch.Tensor) or isinstance(tensor, Coded) or id(tensor) in found:
                    continue
                near = (layer for layer in candidates if related(layer, inner))
                weights = (weight for layer in near for weight in candidates[layer])
                said = (coded for weight in weights if (coded := as_coded(tensor, weight)) is not None)
                if (first := next(said, None)) is not None:
                    found[id(tensor)] = tensor, first
    as_codes = {key: Coded(weight) for key, (_, weight) in found.items()}
    put(model, {(id(module), name): as_codes[id(t)] for _, module, name, t in held(model) if id(t) in as_codes})


def related(layer: str, path: str) -> bool:
    """Whether a layer can have its weight from a module: it is the module, or one is in the other."""
    return layer == path or layer == path.rpartition(".")[0] or path == layer.rpartition(".")[0]


def as_coded(tensor: torch.Tensor, weight: CodedWeight) -> CodedWeight | None:
    """Codes that say a tensor's values to within one step in each channel, with the scale of it; None where they do
    not. A scale is the layer's own, or, where a normalization was folded into the layer, the nearest."""
    shape = codes_shape(weight, "codes")
    if tensor.dtype != torch.float32 or tensor.ndim < 2 or not 0 < math.prod(tensor.shape) == math.prod(shape):
        return None
    values = tensor.detach()
    for form in ("same", "transposed", "flipped"):
        if form == "transposed" and len(shape) != 2 or form == "flipped" and len(shape) < 3:
            continue
        turned = changed(weight, form=form)
        if formed(torch.empty(shape, device="meta"), turned).shape != tensor.shape:
            continue
        inverse = values.t() if form == "transposed" else values
        if form == "flipped":
            inverse = transposed_weight(values, weight.groups)
        wanted = inverse.numpy().reshape(shape[0], -1)
        codes = weight.codes.reshape(shape[0], -1).astype(np.float32)
        for scale in (weight.scale, nearest_scale(wanted, codes, weight.scale)):
            steps = scale.reshape(-1, 1)
            if (np.abs(codes * steps - wanted) <= np.abs(steps)).all():
                return changed(turned, scale=scale)
    return None


def nearest_scale(values: np.ndarray, codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """For each output the scale with which codes are nearest to its values; the layer's where all codes are zero."""
    squares = (codes * codes).sum(1)
    scales = (values * codes).sum(1) / np.where(squares, squares, 1)
    return np.where(squares, scales, np.broadcast_to(scale, squares.shape)).astype(np.float32)


class Parameters:
    """``named_parameters`` of a module of ours, for the model's own Python: with those that are attributes now.

    ``names``: those of the module itself, in the model's order.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module, self.names = module, tuple(module._parameters.keys())

    def __call__(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """As torch's own."""
        seen: set[int] = set()
        modules = self.module.named_modules(prefix=prefix, remove_duplicate=remove_duplicate)
        for path, module in modules if recurse else [(prefix, self.module)]:
            own = module.__dict__.get("named_parameters")
            for name in own.names if isinstance(own, Parameters) else module._parameters.keys():
                value = getattr(module, name, None)
                if value is not None and not (remove_duplicate and id(value) in seen):
                    seen.add(id(value))
                    yield f"{path}.{name}" if path else name, value


def state_of(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """``state_dict`` of a module of ours, for the model's own Python: with the parameters that are attributes now, in
    the model's order."""
    given = nn.Module.state_dict(module, *args, **kwargs)
    if args or kwargs.get("destination") is not None:  # asked by torch, or to add to what there is
        return given
    prefix, left = kwargs.get("prefix", ""), dict(given)
    given.clear()
    for path, inner in module.named_modules(remove_duplicate=False):
        own, before = inner.__dict__.get("named_parameters"), f"{prefix}{path}." if path else prefix
        for name in own.names if isinstance(own, Parameters) else ():
            if (value := getattr(inner, name, None)) is not None:
                value = value if kwargs.get("keep_vars") else value.detach()
                given[f"{before}{name}"] = left.pop(f"{before}{name}", value)
        for name in [name for name in left if name.rpartition(".")[0] == before.rpartition(".")[0]]:
            given[name] = left.pop(name)
    given.update(left)
    return given


def parameter_of(module: nn.Module, target: str) -> Any:
    """``get_parameter`` of a module of ours, for the model's own Python: also one that is an attribute now."""
    path, _, name = target.rpartition(".")
    owner = module.get_submodule(path)
    own = owner.__dict__.get("named_parameters")
    moved = isinstance(own, Parameters) and name in own.names and name not in owner._parameters
    return getattr(owner, name) if moved else nn.Module.get_parameter(module, target)


OWN: dict[str, Callable[..., Any]] = {
    "named_parameters": Parameters, "state_dict": partial(partial, state_of),
    "get_parameter": partial(partial, parameter_of),
}  # fmt: skip


def put(model: nn.Module, tensors: Mapping[Key, torch.Tensor]) -> None:
    """Puts tensors into modules, where they are attributes: no optimizer, and no state_dict, sees them."""
    names: dict[int, list[str]] = {}
    for key, name in tensors:
        names.setdefault(key, []).append(name)
    for module in model.modules():
        for name, method in OWN.items() if tensors else ():
            if getattr(type(module), name) is getattr(nn.Module, name):
                module.__dict__.setdefault(name, method(module))
        for name in names.get(id(module), ()):
            module._parameters.pop(name, None)
            module.__dict__[name] = tensors[id(module), name]
        if id(module) in names and isinstance(module, nn.RNNBase):
            module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]
