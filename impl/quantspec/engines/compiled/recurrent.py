"""Recurrent networks: all steps of a layer in one call (DYN-RECURRENT)."""

import threading
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from quantspec.engines import reference_dynamic
from quantspec.engines.tensors import address, array, float_address, maker
from quantspec.ir.held import codes_shape, held
from quantspec.ir.program import Cell, LinearDynamic, Recurrent
from quantspec.kernels import dynamic_gemm, recurrent_cell, recurrent_step
from quantspec.kernels.dynamic_gemm import DynamicProduct
from quantspec.kernels.frame import caller, frame_of
from quantspec.kernels.gemm import chunk_rows
from quantspec.kernels.grouped import give_buffers
from quantspec.kernels.memory import aligned, offset_table
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

CHUNK_BYTES, CHUNK_ROWS, MOST_STEPS = 2**17, 32, 32  # of gates that are computed at once
CODES = 2  # the slot
CELL = 512  # multiply-accumulates that take as long as what makes an output of one gate


class CompiledRecurrent:
    """A recurrent step, whose layers each run in one call.

    ``__call__(x, state)`` as ``reference_dynamic.recurrent``, or, where only its outputs are ``taken``, those alone.
    """

    def __init__(self, step: Recurrent, choices: Dialect, weights: Copying):
        self.step, self.name, self.choices, self.local = step, step.name, choices, threading.local()
        self.taken = False
        self.packed = {id(cell): self.pack(cell, weights) for cell in step.cells}
        # What a whole sequence has of features, where all is done by the only cell.
        self.features = codes_shape(step.cells[0], "input_weight")[1] if len(step.cells) == 1 and not step.single else 0

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
        if state is None and (result := self.from_nothing(x)) is not None:
            return result
        result = reference_dynamic.recurrent(self.step, x, state, self.choices, self.one_way)
        return result[0] if self.taken else result

    def take_outputs(self, name: str) -> None:
        """It gives its outputs alone from now on, by that name."""
        self.name, self.taken = name, True

    def from_nothing(self, x: Any) -> Any:
        """What most are called with, in less time: a batch of whole sequences, by the only cell, from a state of zeros.
        None for others, and for what the reference has to say."""
        if not (self.features and (start := float_address(x))):
            return None
        if x.ndim != 3 or x.shape[2] != self.features or not x.numel():
            return None
        (first, second, _), cell, by_sample = x.shape, self.step.cells[0], self.step.batch_first
        shape = Shape(second, first, True, False) if by_sample else Shape(first, second, False, False)
        frames = self.frames(cell, shape)
        outputs = frames.make()
        if not frames.run(start, None, address(outputs)):
            return None
        if by_sample:
            outputs = outputs.transpose(0, 1)
        if self.taken:
            return outputs
        state = frames.last().unsqueeze(1).unbind()
        return outputs, state if self.step.kind == "lstm" else state[0]

    def one_way(
        self, step: Recurrent, part: Cell, x: torch.Tensor, state: list[torch.Tensor] | None, backward: bool,
        choices: Dialect,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:  # fmt: skip
        """As ``reference_dynamic.one_way``, which also has the last word on what the kernels do not take."""
        count, batch, _ = x.shape
        size = codes_shape(part, "state_weight")[1]
        of_floats = all(t.dtype == torch.float32 and t.is_cpu for t in (x, *(state or ())))
        good = of_floats and all(t.shape == (batch, size) for t in state or ())
        if count * batch == 0 or not good:
            return reference_dynamic.one_way(step, part, x, state, backward, choices)
        # Samples may lie in order of the batch, of which torch has a transposed view; anything else is copied.
        start, of_samples = float_address(x), 0
        if not start:
            start = of_samples = float_address(x.transpose(0, 1))
        if not start:
            copied = np.ascontiguousarray(array(x, step.layer))
            start = int(copied.ctypes.data)
        shape = Shape(count, batch, bool(of_samples), backward)
        frames = self.frames(part, shape)
        outputs = frames.make()
        before = None if state is None else [array(value, step.layer) for value in state]
        if not frames.run(start, before, address(outputs)):
            return reference_dynamic.one_way(step, part, x, state, backward, choices)
        return outputs, frames.last().unbind()

    def frames(self, part: Cell, shape: "Shape") -> "Frames":
        """This thread's frames for inputs of a shape; one shape for each cell is kept."""
        existing: dict[int, Frames] = self.local.__dict__.setdefault("frames", {})
        key = shape, torch.get_num_threads(), pool.generation
        if id(part) not in existing or existing[id(part)].key != key:
            inputs, size = (codes_shape(part, name)[1] for name in ("input_weight", "state_weight"))
            existing[id(part)] = Frames(key, self.step, self.packed[id(part)], inputs, size)
        return existing[id(part)]


class Shape(NamedTuple):
    """So many ``steps`` of ``batch`` samples, whose inputs lie one sample behind the other where ``by_sample``, else
    step by step, as outputs always do: torch has them in that order, on which it depends what views of them there are.
    ``backward``: the last step is the first to be run."""

    steps: int
    batch: int
    by_sample: bool
    backward: bool

    def inputs_apart(self, nbytes: int) -> tuple[int, int]:
        """How many bytes lie between two steps and between two samples of inputs, of so many bytes each."""
        return (nbytes, self.steps * nbytes) if self.by_sample else self.outputs_apart(nbytes)

    def outputs_apart(self, nbytes: int) -> tuple[int, int]:
        """The same of outputs."""
        return self.batch * nbytes, nbytes

    def at_once(self, gates_bytes: int) -> int:
        """How many steps get the gates of their inputs, of so many bytes for a sample, from one product: as many as the
        cache holds, but enough for weights to be worth their way."""
        most = max(CHUNK_BYTES // (self.batch * gates_bytes), -(-CHUNK_ROWS // self.batch))
        return min(self.steps, most, MOST_STEPS)


class Part(NamedTuple):
    """Steps that are run in one go, ``shared`` among threads, and how many bytes behind the first the outputs and the
    codes of inputs are that come first."""

    shared: "Shared"
    outputs_ahead: int
    codes_ahead: int


class Frames:
    """What quantizes the inputs of all steps, and what runs the steps, with the memory they work in.

    ``key``: for what shape, by how many threads, of which process. ``state``: the states before the first step, and
    behind the last. ``make``: what makes a tensor for the outputs.
    """

    def __init__(
        self, key: tuple[Shape, int, int], step: Recurrent, packed: tuple[Packed, Packed], inputs: int, size: int
    ):
        self.key, (shape, self.threads, _), self.size = key, key, size
        count, batch = shape.steps, shape.batch
        self.kept: list[np.ndarray] = []
        gates_of_an_output = recurrent_cell.KINDS[step.kind].gates
        gates, qmax = gates_of_an_output * size, 127 if step.reduce_range else 255
        both = aligned(2 * batch * size, np.float32).reshape(2, batch, size)  # kernels pass on a second one in any case
        h, c = (part.ctypes.data for part in both)
        self.state = both if step.kind == "lstm" else both[:1]
        self.make = maker((count, batch, size))
        at_once, state_gates = shape.at_once(4 * gates), self.keep(aligned(batch * gates, np.float32))
        self.gates, self.gates_of_a_step = self.keep(aligned(at_once * batch * gates, np.float32)), batch * gates
        (quantize, self.product), of_state = (
            dynamic_gemm.layer(
                weights, rows, width, self.keep, self.room, qmax=qmax, per_row=False, relu=False, soon=True
            )
            for weights, rows, width in zip(packed, (count * batch, batch), (inputs, size))
        )
        self.inputs, self.work = inputs, batch * gates * (size + CELL)
        quantize.slot, of_state[0].source, of_state[1].product.y = 0, h, state_gates
        self.of_state = dynamic_gemm.QUANTIZE.bound(of_state[0]), dynamic_gemm.PRODUCT.bound(of_state[1])
        self.codes_apart, self.outputs_apart = shape.inputs_apart(quantize.target_pitch), shape.outputs_apart(4 * size)
        # What has both in one go, of one sample by one thread, and memory for its sums.
        alone = batch == 1 and batching.wanted_threads(self.threads, self.work, batching.PARALLEL_MACS) == 1
        self.together = recurrent_step.kernel_of(step.kind, size) if alone else None
        self.sums = self.keep(aligned(gates_of_an_output * recurrent_step.WIDTH, np.int32)) if self.together else 0
        self.cell = recurrent_cell.CELLS[step.kind].bound(recurrent_cell.Cell(
            rows=batch, size=size, gates=gates_of_an_output, state_gates=state_gates, h=h, c=c,
            output_pitch=self.outputs_apart[1],
        ))  # fmt: skip
        self.codes, self.quantize = quantize.target, frame_of(dynamic_gemm.QUANTIZE.bound(quantize), slots=1)
        whole, rest = count - count % at_once, count % at_once
        self.parts = [self.part(shape, 0, at_once, whole // at_once)]
        if rest:
            self.parts.append(self.part(shape, whole, rest, 1))
        frames = self.quantize, *(part.shared.first for part in self.parts)
        for frame, following in zip(frames, frames[1:]):
            frame.then = following.address
        self.start, self.input = self.quantize.address, self.quantize.addresses.data
        # Of each frame: the addresses that move with its slices, how far behind the first outputs it begins, its codes.
        self.moving = [
            (frame.addresses[1:3].data, part.outputs_ahead, self.codes + part.codes_ahead)
            for part in self.parts for frame in part.shared.frames
        ]  # fmt: skip

    def part(self, shape: Shape, first: int, steps: int, slices: int) -> Part:
        """What runs so many ``slices`` of so many ``steps`` from the ``first`` one on that is run."""
        product = self.product.copy()
        rows = (np.arange(n) * apart for n, apart in zip((steps, shape.batch), self.codes_apart))
        inner = product.product
        inner.rows, inner.x_offsets = steps * shape.batch, self.keep(offset_table(np.add.outer(*rows).ravel()))
        inner.chunk, inner.apart = chunk_rows(inner.rows, self.inputs), 0
        inner.y, product.x_slot, product.past = self.gates, CODES, False  # they are read at once
        sign = -1 if shape.backward else 1
        instructions: list[Instruction] = [dynamic_gemm.PRODUCT.bound(product)]
        for number in range(steps):
            cell = self.cell.copy()
            cell.gates_ahead = 4 * self.gates_of_a_step * (steps - 1 - number if shape.backward else number)
            cell.output_ahead = sign * number * self.outputs_apart[0]
            instructions += self.step(cell)
        products = (each.product for each in instructions if isinstance(each, DynamicProduct))
        give_buffers((product for product in products if not product.buffer), self.room)
        shared = Shared(instructions, self.threads, self.work, slices=slices)
        for frame in shared.frames:
            frame.addresses[0] = self.gates
            frame.strides[1:3] = sign * steps * self.outputs_apart[0], sign * steps * self.codes_apart[0]
        # The first step that is run, and that whose codes lie first.
        earliest, lowest = (shape.steps - 1 - first, shape.steps - first - steps) if shape.backward else (first, first)
        return Part(shared, earliest * self.outputs_apart[0], lowest * self.codes_apart[0])

    def step(self, cell: recurrent_cell.Cell) -> list[Instruction]:
        """One step: the product of the state and the cell behind it."""
        quantize, product = (instruction.copy() for instruction in self.of_state)
        if self.together is None:
            return [quantize, product, cell]
        step = recurrent_step.Step.on(product.entries)
        step.cell, step.product.buffer = cell, self.sums
        return [quantize, self.together.bound(step)]

    def run(self, x: int, before: list[np.ndarray] | None, outputs: int) -> bool:
        """All steps, from where the inputs are, and from the states ``before`` or zeros, to where the outputs go. False
        for what the reference has to say."""
        self.state[:] = 0 if before is None else before
        self.input[0] = x
        for addresses, ahead, codes in self.moving:
            addresses[0], addresses[1] = outputs + ahead, codes
        return caller()(self.start, 0, 0) == 0

    def last(self) -> torch.Tensor:
        """The states behind the last step, [parts, batch, state]."""
        return torch.from_numpy(self.state.copy())

    def room(self, nbytes: int) -> int:
        """The address of so many bytes that are the frames' own, as inputs and states have codes at once."""
        return self.keep(aligned(nbytes))

    def keep(self, array: np.ndarray) -> int:
        """The address of an array that lives as long as the frames."""
        self.kept.append(array)
        return int(array.ctypes.data)


class Shared:
    """Instructions that are run ``slices`` times, by torch's threads where each of them has enough to do each time.

    ``macs``: of one slice. ``first``: the frame that has it all done; ``frames``: all whose slots are to be filled in.
    """

    def __init__(self, instructions: list[Instruction], threads: int, macs: int, *, slices: int):
        whole = frame_of(*instructions, slices=slices, slots=3)
        self.frames, self.first = [whole], whole
        self.parallel: Parallel | None = None
        self.team: Team | None = None
        members, own = batching.wanted_threads(threads, macs, batching.PARALLEL_MACS), batching.torchs_threads()
        if members > 1 and own is not None:
            self.parallel = Parallel(Plan(whole, [], macs, 0, instructions), members)
            self.team = self.parallel.team(own, threads, direct=False)
            self.frames, self.first = [whole, *self.parallel.frames], self.team.frame
