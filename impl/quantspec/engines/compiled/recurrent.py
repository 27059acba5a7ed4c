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
from quantspec.kernels.records import Instruction
from quantspec.kernels.team import Team
from quantspec.kernels.threads import pool
from quantspec.numerics.dialects.dialect import Dialect

from . import batching
from .holding import Copying
from .packing import only_product
from .parallel import Parallel
from .planner import Plan

CELL = 512  # multiply-accumulates that take as long as what makes an output of one gate


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
        if not (start := float_address(x)):  # memory that is there already, as new memory takes longer than the copy
            frames.inputs_in_order[:] = array(x, step.layer)
            start = int(frames.inputs_in_order.ctypes.data)
        last, row = count - 1 if backward else 0, 4 * batch * size
        gates_row, sign = row * frames.gates_of_an_output, -1 if backward else 1
        for frame in frames.inputs.frames:
            frame.addresses[0] = start
        for frame in frames.steps.frames:
            frame.addresses[:2] = frames.gates.ctypes.data + last * gates_row, address(outputs) + last * row
            frame.strides[:2] = sign * gates_row, sign * row
        run = caller()
        if run(frames.inputs.start, 0, 0) or run(frames.steps.start, 0, 0):
            return reference_dynamic.one_way(step, part, x, state, backward, choices)
        return outputs, tuple(torch.from_numpy(after.copy()) for after in frames.state[: len(state)])

    def frames(self, part: Cell, count: int, batch: int, inputs: int, size: int) -> "Frames":
        """This thread's frames for inputs of a shape; one shape for each cell is kept."""
        existing: dict[int, Frames] = self.local.__dict__.setdefault("frames", {})
        key = count, batch, torch.get_num_threads(), pool.generation
        if id(part) not in existing or existing[id(part)].key != key:
            existing[id(part)] = Frames(key, self.step, self.packed[id(part)], inputs, size)
        return existing[id(part)]


class Frames:
    """What runs the inputs' gates for all steps, and what runs each step, with the memory they work in.

    ``key``: how many steps, of how many samples, by how many threads, of which process.
    """

    def __init__(
        self, key: tuple[int, int, int, int], step: Recurrent, packed: tuple[Packed, Packed], inputs: int, size: int
    ):
        self.key = key
        count, batch, threads, _ = key
        self.kept: list[np.ndarray] = []
        self.gates_of_an_output = recurrent_cell.KINDS[step.kind].gates
        gates, qmax = self.gates_of_an_output * size, 127 if step.reduce_range else 255
        self.gates = aligned(count * batch * gates, np.float32)
        self.inputs_in_order = aligned(count * batch * inputs, np.float32).reshape(count, batch, inputs)
        self.state = [aligned(batch * size, np.float32).reshape(batch, size) for _ in range(2)]
        h, c = (part.ctypes.data for part in self.state)
        state_gates = self.keep(aligned(batch * gates, np.float32))
        cell = recurrent_cell.CELLS[step.kind].bound(
            recurrent_cell.Cell(
                rows=batch, size=size, gates=self.gates_of_an_output, state_gates=state_gates, h=h, c=c
            )
        )
        from_input, from_state = (
            dynamic_gemm.layer(weights, rows, width, self.keep, qmax=qmax, per_row=False, relu=False)
            for weights, rows, width in zip(packed, (count * batch, batch), (inputs, size))
        )
        give_buffers((product.product for _, product in (from_input, from_state)), self.keep)
        quantize, product = from_input
        quantize.slot, product.product.y = 0, self.gates.ctypes.data
        bound = dynamic_gemm.QUANTIZE.bound(quantize), dynamic_gemm.PRODUCT.bound(product)
        all_inputs, one_step = count * batch * inputs * gates, batch * gates * (size + CELL)
        # Threads that nothing else has woken are not worth waiting for.
        few = one_step < 2 * batching.PARALLEL_MACS and all_inputs < batching.PATIENT_MACS
        self.inputs = Shared(bound, 1 if few else threads, all_inputs, slices=1)
        quantize, product = from_state
        quantize.source, product.product.y = h, state_gates
        bound = dynamic_gemm.QUANTIZE.bound(quantize), dynamic_gemm.PRODUCT.bound(product)
        self.steps = Shared((*bound, cell), threads, one_step, slices=count)

    def keep(self, array: np.ndarray) -> int:
        """The address of an array that lives as long as the frames."""
        self.kept.append(array)
        return int(array.ctypes.data)


class Shared:
    """Instructions that are run ``slices`` times, by torch's threads where each of them has enough to do each time.

    ``macs``: of one slice. ``start``: the address of the frame that has it all done; ``frames``: all whose slots are to
    be filled in.
    """

    def __init__(self, instructions: tuple[Instruction, ...], threads: int, macs: int, *, slices: int):
        whole = frame_of(*instructions, slices=slices, slots=2)
        self.frames, self.start = [whole], whole.address
        self.parallel: Parallel | None = None
        self.team: Team | None = None
        members, own = batching.wanted_threads(threads, macs, batching.PARALLEL_MACS), batching.torchs_threads()
        if members > 1 and own is not None:
            self.parallel = Parallel(Plan(whole, [], macs, 0, list(instructions)), members)
            self.team = self.parallel.team(own, threads, direct=False)
            self.frames, self.start = [whole, *self.parallel.frames], self.team.address
