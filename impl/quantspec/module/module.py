"""A Program as an ordinary ``nn.Module``: what ``quantize`` and ``quantize_dynamic`` return."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from quantspec.engines import engine as find_engine
from quantspec.ir.program import Call, Program, arrays, with_arrays
from quantspec.storage.callables import function, listed

from . import size, summary


class QuantizedModule(nn.Module):
    """A quantized network. Calling it takes and gives what the float model took and gave, for any batch and image size.

    ``program`` is the network as plain data; ``callables`` has what its ``Call`` steps call. Training mode is refused. It can be copied, pickled and called
    from several threads at once. ``parameters()`` are those of what stays in float; ``state_dict()`` has the codes, scales and biases too.
    """

    def __init__(self, program: Program, callables: dict[tuple[str, str], Any], engine: str = "auto"):
        super().__init__()
        used = {(step.kind, step.target) for step in program.steps if isinstance(step, Call)}
        self.program = program
        # A copy of its own, so that networks made from one calibration share nothing that could be changed.
        self.callables = {key: copy.deepcopy(what) for key, what in callables.items() if key in used}
        # Registered, so that parameters() and state_dict() have what stays in float.
        self.float_parts = nn.ModuleDict(
            {key[1].replace(".", "_") or "model": what for key, what in self.callables.items() if key[0] == "module"}
        )
        self.asked_engine = engine
        self.compiled = find_engine(engine)(program, self.callables)
        super().train(False)

    @property
    def engine(self) -> str:
        """The name of the engine that runs it."""
        return getattr(self.compiled, "name", self.asked_engine)

    @property
    def engines(self) -> dict[str, str]:
        """By which engine each layer is run, by the layer's path: several where that depends on the sizes, and has been measured for some."""
        known = getattr(self.compiled, "engines", {})
        layers = [step for step in self.program.steps if hasattr(step, "layer")]
        return {step.layer: known.get(step.name, self.engine) for step in layers}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's output, float32. Inputs are float32 tensors as the model takes them; they are not written to."""
        if len(args) == 1 and not kwargs and getattr(self.compiled, "input_name", None) is not None:
            return self.compiled.single(args[0])
        return self.compiled({**dict(zip(self.program.inputs, args, strict=False)), **kwargs})

    def run_on(self, engine: str) -> "QuantizedModule":
        """The same network on another engine; ValueError when there is none of that name, UnsupportedError when it cannot run this network."""
        return QuantizedModule(self.program, self.callables, engine)

    def save(self, path: Any) -> None:
        """Writes one ``.safetensors`` file, which ``quantspec.load`` reads; see ``storage.save``."""
        from quantspec.storage import file

        file.save(self, path)

    def train(self, mode: bool = True) -> "QuantizedModule":
        """Only ``train(False)``: a ValueError otherwise, since int8 weights have no gradient."""
        if mode:
            raise ValueError("mode: a quantized network cannot be trained; train the float model and quantize it again")
        return self

    @property
    def nbytes(self) -> int:
        """Bytes that the network takes when stored: weights, biases, scales, zero points, and what stays in float."""
        constants = sum(what.nbytes for key, what in self.callables.items() if key[0] == "attribute" and isinstance(what, torch.Tensor))
        return size.program_bytes(self.program, self.float_parts) + constants

    def __repr__(self) -> str:
        return summary.layer_table(self)

    def get_extra_state(self) -> dict[str, torch.Tensor]:
        """The steps' arrays by ``step.field``, for ``state_dict``: codes, biases, scales, zero points, tables."""
        return {f"{step.name}.{path}": torch.tensor(array) for step in self.program.steps for path, array in arrays(step)}

    def set_extra_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes the steps' arrays from ``load_state_dict``. Raises ValueError for other names, shapes or types than this network's."""
        have = self.get_extra_state()
        if set(have) != set(state):
            raise ValueError(f"state_dict: expected the arrays of this network, {sorted(set(have) ^ set(state))[0]!r} is in only one of them")
        for name, tensor in state.items():
            if tensor.shape != have[name].shape or tensor.dtype != have[name].dtype:
                raise ValueError(f"state_dict: {name!r} is {tensor.dtype}{list(tensor.shape)}, expected {have[name].dtype}{list(have[name].shape)}")
        self.program = with_arrays(self.program, {name: tensor.numpy().copy() for name, tensor in state.items()})
        self.compiled = find_engine(self.asked_engine)(self.program, self.callables)

    def __getstate__(self) -> dict[str, Any]:
        # A compiled network holds memory of this process; it is made again from the Program. Some of torch's functions are made when it is imported,
        # and pickle cannot name them.
        state = {key: value for key, value in self.__dict__.items() if key != "compiled"}
        return state | {"callables": {key: None if listed(*key, what) else what for key, what in self.callables.items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        callables = {key: function(key[1]) if what is None and key[0] == "function" else what for key, what in state["callables"].items()}
        super().__setstate__(state | {"callables": callables})
        self.compiled = find_engine(self.asked_engine)(self.program, self.callables)

    def __deepcopy__(self, memo: dict) -> "QuantizedModule":
        return QuantizedModule(self.program, self.callables, self.asked_engine)
