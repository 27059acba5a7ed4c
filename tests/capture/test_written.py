"""Random models of every kind, written as source: what is captured is the model, the model is untouched, none is
refused.

Two networks answer for int8. In float, what was captured has to give what the model does (STA-SAME). In int8, the error
is held to that of the model itself when each function of it rounds what it is given and what it gives at random to one
of 256 values: a network that rounds fewer values, and to the nearest, stays below that.
"""

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import torch
import written
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

import quantspec as qs
from evidence import clause
from quantspec.capture import parts

Call = tuple[torch.Tensor, dict[str, Any]]
# Random rounding is measured on few draws of few values: this many times as much is not wrong yet.
SLACK = 4.0
DRAWS = 2
# The layers that become int8 in each way.
KINDS: dict[str, Callable[[nn.Module], bool]] = {
    "static": lambda module: isinstance(module, (nn.Linear, nn.Conv2d)),
    "dynamic": lambda module: isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward,
    "by example": lambda module: isinstance(module, nn.Linear),
}
FILLED = {"empty_like", "zeros_like", "ones_like", "rand_like", "copy_", "fill_", "zero_", "clone", "detach"}
PRODUCTS = {"linear", "conv2d", "addmm", "matmul", "__matmul__", "__rmatmul__", "einsum"}


class Rounding(TorchFunctionMode):
    """Every function rounds what it gives to 8 bits at random, and those that multiply matrices what they are given
    too.

    ``ranges``: those of each function in each module, which it rounds by however often the module is called. One run
    finds them.
    """

    def __init__(self, seed: int, model: nn.Module, ranges: dict[tuple[str, str], float]):
        super().__init__()
        self.generator, self.ranges = torch.Generator().manual_seed(seed), ranges
        self.stack, paths = [""], {module: path for path, module in model.named_modules()}
        for module in paths:
            module.register_forward_pre_hook(lambda module, inputs: self.stack.append(paths[module]))
            module.register_forward_hook(self.leave, always_call=True)

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.stack.pop()

    def noise(self, value: torch.Tensor, name: str, steps: float = 1.0) -> torch.Tensor:
        """Errors of at most half a step of a grid of 256 values."""
        key, own = (self.stack[-1], name), max(0.0, float(value.max())) - min(0.0, float(value.min()))
        self.ranges[key] = max(own, self.ranges.get(key, 0.0))
        uniform = torch.rand(value.shape, generator=self.generator) - 0.5
        return uniform * (steps * self.ranges[key] / 255)

    def rounded(self, value: torch.Tensor, name: str = "inputs") -> torch.Tensor:
        kept = value.dtype != torch.float32 or isinstance(value, nn.Parameter) or not value.numel()
        return value if kept else value + self.noise(value, name)

    def rounded_weight(self, value: torch.Tensor) -> torch.Tensor:
        return value + self.noise(value, f"weight {value.shape}") if isinstance(value, nn.Parameter) else value

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in PRODUCTS:
            for rounded in (self.rounded_weight, self.rounded):
                args, kwargs = tree_map_only(torch.Tensor, rounded, (args, kwargs))
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)}
        output = func(*args, **kwargs)
        in_place = (name.endswith("_") and not name.endswith("__")) or name.startswith("__i")
        if name in FILLED or not given:
            return output
        for leaf in tree_leaves(output):
            if torch.is_tensor(leaf) and leaf.dtype == torch.float32 and leaf.numel():
                if in_place or leaf.untyped_storage().data_ptr() not in given:
                    # Attention is several products.
                    leaf += self.noise(leaf, name, 4.0 if name == "multi_head_attention_forward" else 1.0)
        return output


def outputs(model: Callable, calls: list[Call]) -> list[Any]:
    """What a model gives for some calls, one after the other."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a call is computed in float, and remarks of torch
        return [cloned(model(x=x.clone(), **kwargs) if kwargs else model(x.clone())) for x, kwargs in calls]


def cloned(value: Any) -> Any:
    """A result that later calls cannot change."""
    return copy.deepcopy(tree_map_only(torch.Tensor, lambda t: t.detach().clone(), value))


def flat(value: Any) -> tuple[Any, list[torch.Tensor]]:
    """The structure of a result with its constants, and its tensors."""
    if isinstance(value, torch.Tensor):
        return (value.dtype, tuple(value.shape)), [value.detach()]
    if is_dataclass(value):
        items = [(f.name, getattr(value, f.name)) for f in fields(value)]
    elif isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, (tuple, list)):
        items = list(enumerate(value))
    else:
        return value, []
    made = [(name, *flat(item)) for name, item in items]
    return (type(value), [(name, form) for name, form, _ in made]), [t for _, _, tensors in made for t in tensors]


def rms(value: torch.Tensor) -> float:
    return float(value.double().square().mean().sqrt()) if value.numel() else 0.0


def held_to(bound: float, limits: list[list[float]] | None, expected: list[Any], got: list[Any], what: str) -> None:
    """Holds results to a model's: their structure, and each value to ``bound`` of the largest one, or each tensor's
    error to its limit."""
    for number, (want, have) in enumerate(zip(expected, got, strict=True)):
        form, tensors = flat(want)
        other, values = flat(have)
        assert other == form, f"{what}, call {number}: {other}, the model gives {form}"
        for index, (a, b) in enumerate(zip(tensors, values, strict=True)):
            largest = float(a.abs().max()) if a.numel() else 0.0
            error = float((a - b).abs().max()) if a.numel() and limits is None else rms(a - b)
            limit = bound * largest + (0.0 if limits is None else limits[number][index])
            place = f"{what}, call {number}, tensor {index}"
            assert error <= limit, f"{place}: off by {error:.3g}, at most {limit:.3g} allowed, largest {largest:.3g}"


def rounding_limits(build: Callable[[], nn.Module], calls: list[Call], expected: list[Any]) -> list[list[float]]:
    """For each call and tensor, the error that is not wrong yet."""
    squares: list[list[list[float]]] = [[[] for _ in flat(result)[1]] for result in expected]
    ranges: dict[tuple[str, str], float] = {}
    for draw in range(1 + DRAWS):
        model = build()
        rounding = Rounding(draw, model, ranges)

        def rounded(x: torch.Tensor, model: nn.Module = model, mode: Rounding = rounding, **kwargs: Any) -> Any:
            with mode:
                return model(x=mode.rounded(x), **kwargs) if kwargs else model(mode.rounded(x))

        found = outputs(rounded, calls)
        for sums, want, have in zip(squares, expected, found if draw else [], strict=bool(draw)):
            for total, a, b in zip(sums, flat(want)[1], flat(have)[1], strict=True):
                total.append(rms(a - b) ** 2)
    own = [[math.sqrt(sum(total) / DRAWS) for total in sums] for sums in squares]
    # Ranges are those of all calls, so that a call of small values has the steps of the others.
    most = [max((call[index] for call in own if index < len(call)), default=0.0) for index in range(max(map(len, own)))]
    return [[SLACK * most[index] for index in range(len(call))] for call in own]


def snapshot(model: nn.Module) -> dict[tuple[str, str], Any]:
    """What a model holds: tensors by value, collections by content, everything else by what it is."""
    def by(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return id(value), value.detach().clone().numpy().tobytes(), value.requires_grad
        if isinstance(value, dict):
            return id(value), [(key, by(item)) for key, item in value.items()]
        if isinstance(value, (list, set)):
            return id(value), [by(item) for item in value]
        return id(value)

    return {(path, name): by(value) for path, module in model.named_modules() for name, value in vars(module).items()}


def layers_run(build: Callable[[], nn.Module], call: Call, is_layer: Callable[[nn.Module], bool]) -> set[str]:
    """The paths of layers that a model calls."""
    model, found = build(), set()
    paths = {module: path for path, module in model.named_modules()}

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        if is_layer(module):
            found.add(paths[module])

    with torch.nn.modules.module.register_module_forward_hook(note):
        outputs(model, [call])
    return found


def matters(build: Callable[[], nn.Module], call: Call, path: str) -> bool:
    """Whether what a layer gives decides over what the model gives."""
    model = build()
    model.get_submodule(path).register_forward_hook(lambda module, inputs, output: output + 1.0)
    (before,), (after,) = outputs(build(), [call]), outputs(model, [call])
    return not all(map(torch.equal, flat(before)[1], flat(after)[1]))


def int8_layers(q: Any) -> set[str]:
    networks = q.networks() if hasattr(q, "networks") else [("", q)]
    # A function that is called again with another weight is told apart by a number behind its module's path.
    return {step.layer.partition("@")[0] for _, network in networks for step in network.program.layers}


def batch_of(x: torch.Tensor, **kwargs: Any) -> Any:
    """A call as calibration data has it."""
    return {"x": x, **kwargs} if kwargs else x


@clause("STA-SAME", "STA-PARTS", "STA-WAYS", "DYN-LAYERS", "DYN-EXAMPLE")
@settings(max_examples=settings().max_examples * 5 // 2)
@given(written.models(), st.booleans())
def test_a_random_model_is_quantized_as_it_is(drawn, fuse):
    build, first = drawn.builder(), drawn.calls[0]
    calls = [(drawn.inputs(6, 1), first), (drawn.inputs(9, 2), first), (drawn.inputs(1, 3), first)]
    calls += [(drawn.inputs(6, 4), kwargs) for kwargs in drawn.calls[1:]]
    try:
        expected = outputs(build(), calls)
    except Exception:  # a model that does not run
        assume(False)
    assume(all(torch.isfinite(t).all() for result in expected for t in flat(result)[1]))

    model = build()
    before, random = snapshot(model), torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where there is no layer, nothing is quantized
        # The ranges observed are those of all calls, so that int8 clips nothing.
        prepared = qs.prepare(model, fuse=fuse)
        in_float = outputs(lambda *args, **kwargs: prepared.observe(batch_of(*args, **kwargs)), calls)
        networks = {
            "static": qs.convert(prepared), "dynamic": qs.quantize_dynamic(model),
            "by example": qs.quantize_dynamic(model, example=batch_of(calls[0][0], **first)),
        }  # fmt: skip
    held_to(parts.FUSED if fuse else parts.BOUND, None, expected, in_float, "what was captured")
    limits = rounding_limits(build, calls, expected)
    for name, q in networks.items():
        held_to(parts.BOUND, limits, expected, outputs(q, calls), name)
        lost = layers_run(build, calls[0], KINDS[name]) - int8_layers(q)
        lost = {path for path in lost if matters(build, calls[0], path)}
        assert not lost, f"{name}: {lost} stayed in float"
    after = snapshot(model)
    changed = [place for place in before.keys() | after.keys() if before.get(place) != after.get(place)]
    assert not changed, f"the model is another one at {changed}"
    assert torch.equal(random, torch.get_rng_state()), "the random state is another one"
