"""Recurrent networks: all steps of a layer in one call (DYN-RECURRENT)."""

import threading
from typing import Any, cast

import numpy as np
import torch

from quantspec.engines import reference_dynamic
from quantspec.engines.tensors import address, array, float_address, new
from quantspec.ir.held import codes_shape, held
from quantspec.ir.program import Cell, LinearDynamic, Recurrent
from quantspec.kernels import dynamic_gemm, recurrent_cell
from quantspec.kernels.frame import caller, frame_of
from quantspec.kernels.grouped import give_buffers
from quantspec.kernels.memory import aligned
from quantspec.kernels.packed import Packed
from quantspec.numerics.dialects.dialect import Dialect

from .holding import Copying
from .packing import only_product


class CompiledRecurrent:
    """A recurrent step, whose layers each run in one call.

    ``__call__(x, state)`` as ``reference_dynamic.recurrent``.
    """

    def __init__(self, step: Recurrent, choices: Dialect, weights: Copying):
        self.step, self.name, self.choices, self.local = step, step.name, choices, threading.local()
        self.packed = {id(cell): self.pack(cell, weights) for cell in step.cells}

    def pack(self, cell: Cell, weights: Copying) -> tuple[Packed, Packed]:
        """The weights of a cell's inputs and of its state."""
        products = (
            ("input_weight", cell.input_bias, cell.input_qparams), ("state_weight", cell.state_bias, cell.state_qparams)
        )  # fmt: skip
        packed = []
        for name, bias, grid in products:
            codes = cast(np.ndarray, held(cell, name))  # or what stands for them
            layer = LinearDynamic("", "", self.step.layer, codes, bias, grid, self.step.reduce_range)
            packed.append(only_product(weights.pack(layer, cell, name)))
        return packed[0], packed[1]

    def __call__(self, x: torch.Tensor, state: Any) -> Any:
        return reference_dynamic.recurrent(self.step, x, state, self.choices, self.one_way)

    def one_way(
        self, step: Recurrent, part: Cell, x: torch.Tensor, state: list[torch.Tensor], backward: bool, choices: Dialect
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """As ``reference_dynamic.one_way``, which also has the last word on what the kernels do not take."""
        count, batch, inputs = x.shape
        size = codes_shape(part, "state_weight")[1]
        of_floats = all(t.dtype == torch.float32 and t.is_cpu for t in (x, *state))
        good = of_floats and all(t.shape == (batch, size) for t in state)
        if count * batch == 0 or not good:
            return reference_dynamic.one_way(step, part, x, state, backward, choices)
        frames = self.frames(part, count, batch, inputs, size)
        outputs = new((count, batch, size))
        for before, value in zip(frames.state, state):
            before[:] = array(value, step.layer)
        inputs_frame, steps_frame = frames.inputs, frames.steps
        if not (start := float_address(x)):  # memory that is there already, as new memory takes longer than the copy
            frames.inputs_in_order[:] = array(x, step.layer)
            start = int(frames.inputs_in_order.ctypes.data)
        inputs_frame.addresses[0] = start
        last, row = count - 1 if backward else 0, 4 * batch * size
        gates_row, sign = row * frames.gates_of_an_output, -1 if backward else 1
        steps_frame.addresses[:2] = frames.gates.ctypes.data + last * gates_row, address(outputs) + last * row
        steps_frame.strides[:2] = sign * gates_row, sign * row
        run = caller()
        if run(inputs_frame.address, 0, 0) or run(steps_frame.address, 0, 0):
            return reference_dynamic.one_way(step, part, x, state, backward, choices)
        return outputs, tuple(torch.from_numpy(after.copy()) for after in frames.state[: len(state)])

    def frames(self, part: Cell, count: int, batch: int, inputs: int, size: int) -> "Frames":
        """This thread's frames for inputs of a shape; one shape for each cell is kept."""
        existing: dict[int, Frames] = self.local.__dict__.setdefault("frames", {})
        key = count, batch
        if id(part) not in existing or existing[id(part)].key != key:
            existing[id(part)] = Frames(key, self.step, self.packed[id(part)], inputs, size)
        return existing[id(part)]


class Frames:
    """The frame of the inputs' gates for all steps, and that of a step, with the memory they work in.

    ``key``: how many steps, of how many samples.
    """

    def __init__(self, key: tuple[int, int], step: Recurrent, packed: tuple[Packed, Packed], inputs: int, size: int):
        count, batch = self.key = key
        self.kept: list[np.ndarray] = []
        self.gates_of_an_output = recurrent_cell.KINDS[step.kind].gates
        gates, qmax = self.gates_of_an_output * size, 127 if step.reduce_range else 255
        self.gates = aligned(count * batch * gates, np.float32)
        self.inputs_in_order = aligned(count * batch * inputs, np.float32).reshape(count, batch, inputs)
        self.state = [aligned(batch * size, np.float32).reshape(batch, size) for _ in range(2)]
        h, c = (part.ctypes.data for part in self.state)
        state_gates = self.keep(aligned(batch * gates, np.float32))
        cell = recurrent_cell.CELLS[step.kind].bound(
            recurrent_cell.Cell(rows=batch, size=size, state_gates=state_gates, h=h, c=c)
        )
        from_input, from_state = (
            dynamic_gemm.layer(weights, rows, width, self.keep, qmax=qmax, per_row=False, relu=False)
            for weights, rows, width in zip(packed, (count * batch, batch), (inputs, size))
        )
        give_buffers((product.product for _, product in (from_input, from_state)), self.keep)
        quantize, product = from_input
        quantize.slot, product.product.y = 0, self.gates.ctypes.data
        self.inputs = frame_of(dynamic_gemm.QUANTIZE.bound(quantize), dynamic_gemm.PRODUCT.bound(product), slots=2)
        quantize, product = from_state
        quantize.source, product.product.y = h, state_gates
        self.steps = frame_of(
            dynamic_gemm.QUANTIZE.bound(quantize), dynamic_gemm.PRODUCT.bound(product), cell, slices=count, slots=2
        )

    def keep(self, array: np.ndarray) -> int:
        """The address of an array that lives as long as the frames."""
        self.kept.append(array)
        return int(array.ctypes.data)
