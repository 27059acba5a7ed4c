"""A Program as an ordinary ``nn.Module``: what ``quantize`` and ``quantize_dynamic`` return."""

import copy
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from quantspec.engines.registry import Engine
from quantspec.engines.registry import engine as find_engine
from quantspec.errors import shown
from quantspec.ir.held import Held
from quantspec.ir.program import Call, Callables, Program, Recurrent, Step
from quantspec.ir.traverse import arrays, held_arrays, with_arrays
from quantspec.storage import file
from quantspec.storage.allowed import function, is_listed
from quantspec.surroundings import usual

from . import size, summary
from .report import Report
from .state import Form, check_forms


def part_names(paths: Iterable[str]) -> list[str]:
    """A name for each path that an ``nn.ModuleDict`` takes, and no name for two."""
    names: list[str] = []
    for path in paths:
        name = path.replace(".", "_") or "model"
        while name in names or hasattr(nn.ModuleDict, name):
            name += "_"
        names.append(name)
    return names


class QuantizedModule(nn.Module):
    """A quantized network. It is called like the float model, with any batch and image size.

    It can be copied, pickled, and called from several threads at once. Training mode is refused. ``parameters()`` are
    those of layers that stayed in float; ``state_dict()`` also has codes, scales and biases. Unpickling executes code
    that the pickle names; loading a file of ``save`` does not.

    Attributes:
        program: the network as plain data.
        report: how much of the work is in int8, and where the rest is.
    """

    program: Program
    compiled: Engine
    report: Report | None  # where the work is computed (SIZ-REPORT); None for what was made without a model

    def __init__(
        self, program: Program, engine: str = "auto", report: Report | None = None, *, own: bool = False
    ):
        """``own``: nobody else has the program, nor the arrays of its codes, whose memory is used."""
        super().__init__()
        self.report = report
        # Copies of its own, so that networks made from one calibration share nothing that could be changed.
        steps = program.steps if own else tuple(map(own_step, program.steps))
        self.program = replace(program, steps=steps, callables=used_callables(program))
        # Registered, so that parameters() and state_dict() have what stays in float.
        modules = {path: what for (kind, path), what in self.callables.items() if kind == "module"}
        self.float_parts = nn.ModuleDict(dict(zip(part_names(modules), modules.values(), strict=True)))
        self.asked_engine = engine
        self.compiled = find_engine(engine)(self.program, weights="taken" if own else "held")
        super().train(False)

    @property
    def callables(self) -> Callables:
        """The modules and functions that float steps of the program call."""
        return self.program.callables

    @property
    def engine(self) -> str:
        """The name of the engine that runs the network."""
        return self.compiled.name

    @property
    def engines(self) -> dict[str, str]:
        """The engine of each layer, by the layer's path; several where it depends on the input size."""
        by_step = self.compiled.engines
        return {step.layer: by_step.get(step.name, self.engine) for step in self.program.layers}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's output, float32. Inputs are float32 tensors in the model's order; they are not modified.

        Outputs that depend on a NaN are NaN (STA-NAN), which a warning says once.
        """
        if len(args) == 1 and not kwargs and self.compiled.input_name is not None:
            return self.compiled.single(args[0])
        inputs = self.program.inputs
        if twice := kwargs.keys() & {*(*inputs, *dict(self.program.fixed))[: len(args)]}:
            raise TypeError(f"{sorted(twice)[0]}: given by its place and by its name")
        if self.program.fixed or len(args) > len(inputs):
            args, kwargs = self.without_fixed(args, kwargs)
        return self.compiled({**dict(zip(inputs, args, strict=False)), **kwargs})

    def without_fixed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments that are inputs. Raises TypeError for one that the network does not take, and for one that it
        takes with another value only."""
        inputs, fixed = self.program.inputs, dict(self.program.fixed)
        more = args[len(inputs) :]
        if len(more) > len(fixed):
            expected = f"expected at most {len(inputs) + len(fixed)} arguments"
            raise TypeError(f"{expected}, {', '.join((*inputs, *fixed))}, got {len(args)}")
        for name, value in [*zip(fixed, more), *((name, kwargs[name]) for name in fixed if name in kwargs)]:
            if type(value) is not type(fixed[name]) or value != fixed[name]:
                expected = f"the network was made for {name}={shown(fixed[name])}"
                raise TypeError(f"{name}: {expected}, got {shown(value)}; quantize the model with that argument")
        return args[: len(inputs)], {name: value for name, value in kwargs.items() if name not in fixed}

    def run_on(self, engine: str) -> "QuantizedModule":
        """The same network on another engine.

        Raises:
            ValueError: for an unknown engine.
            UnsupportedError: for an engine that cannot run this network.
        """
        return QuantizedModule(self.program, engine, self.report)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the network to a ``.safetensors`` file, which ``quantspec.load`` reads. The file is written as a whole
        or not at all.
        """
        file.save(self.program, path, None if self.report is None else self.report.as_tuples())

    def train(self, mode: bool = True) -> "QuantizedModule":
        """Accepts ``train(False)`` only: int8 weights have no gradient."""
        if mode:
            raise ValueError(
                "mode: a quantized network cannot be trained; train the float model, or the result of prepare_qat"
            )
        return self

    @property
    def nbytes(self) -> int:
        """Size of the stored network in bytes: weights, biases, scales, zero points, and what stays in float."""
        attributes = (what for (kind, _), what in self.callables.items() if kind == "attribute")
        constants = sum(what.nbytes for what in attributes if isinstance(what, torch.Tensor))
        return size.program_bytes(self.program, self.float_parts) + constants

    @property
    def resident_nbytes(self) -> int:
        """Size of the network in memory in bytes (SIZ-HELD), without buffers for activations."""
        return self.nbytes + size.held_bytes(self.program)

    def __repr__(self) -> str:
        return self.table()

    def table(self, *, wide: bool = False) -> str:
        """The table that ``print`` shows, at most 79 columns wide.

        Args:
            wide: whether to add the scales and zero points of weights, at any width.
        """
        title = f"int8 network: dialect {self.program.dialect}, engine {self.engine}"
        parts = [summary.Part("", self.program, self.engine, self.engines)]
        return summary.network_table(title, parts, [], self.nbytes, self.resident_nbytes, wide=wide)

    @usual
    def get_extra_state(self) -> dict[str, torch.Tensor]:
        """The steps' arrays by ``step.field``, for ``state_dict``: codes, biases, scales, zero points, tables."""
        steps = self.program.steps
        return {f"{step.name}.{path}": torch.tensor(array) for step in steps for path, array in arrays(step)}

    @usual
    def set_extra_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes the steps' arrays from ``load_state_dict``.

        Raises ValueError for other names, shapes or types than this network's.
        """
        self.check_arrays(state)
        self.program = with_arrays(self.program, {name: tensor.numpy().copy() for name, tensor in state.items()})
        self.compiled = find_engine(self.asked_engine)(self.program, weights="held")

    def check_arrays(self, state: object) -> None:
        """ValueError for what is no ``get_extra_state`` of a network of this structure."""
        steps = self.program.steps
        have = {f"{step.name}.{path}": form_of(array) for step in steps for path, array in held_arrays(step)}
        check_forms(state, have, "arrays of this network")

    def __getstate__(self) -> dict[str, Any]:
        # A compiled network holds memory of this process; it is made again from the Program. Some of torch's functions
        # are made when it is imported, and pickle cannot name them.
        state = {key: value for key, value in self.__dict__.items() if key != "compiled"}
        named = {key: None if is_listed(*key, what) else what for key, what in self.callables.items()}
        return state | {"program": replace(self.program, callables=named)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        program: Program = state["program"]
        found = {
            key: function(key[1]) if what is None and key[0] == "function" else what
            for key, what in program.callables.items()
        }
        state = state | {"program": replace(program, callables=found)}
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch has no types there
        self.compiled = find_engine(self.asked_engine)(self.program, weights="held")

    def __deepcopy__(self, memo: dict[int, Any]) -> "QuantizedModule":
        twin = memo[id(self)] = QuantizedModule(self.program, self.asked_engine, self.report)
        # What others have put into it, such as hooks, may refer to the parts.
        memo |= {id(own): part for own, part in zip(self.float_parts.modules(), twin.float_parts.modules())}
        made = "program", "compiled", "report"
        others = {name: value for name, value in self.__dict__.items() if name not in made}
        twin.__dict__ |= copy.deepcopy(others, memo)
        return twin


def form_of(array: np.ndarray | Held) -> Form:
    """The type and the shape of an array as a tensor."""
    return torch.int8 if isinstance(array, Held) else torch.tensor(array.ravel()[:0]).dtype, array.shape


def own_step(step: Step) -> Step:
    """A step whose codes may be held in another way without anybody else's being so."""
    twin = copy.copy(step)
    return replace(twin, cells=tuple(map(copy.copy, twin.cells))) if isinstance(twin, Recurrent) else twin


def used_callables(program: Program) -> Callables:
    """Copies of what the steps of a program call, without what none of them calls."""
    called = {(step.kind, step.target) for step in program.steps if isinstance(step, Call)}
    return {key: copy.deepcopy(what) for key, what in program.callables.items() if key in called}
