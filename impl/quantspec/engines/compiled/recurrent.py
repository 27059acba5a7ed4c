"""Recurrent networks: all steps of a layer in one call (DYN-RECURRENT)."""

import itertools
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from quantspec.engines import reference_dynamic
from quantspec.engines.tensors import address, array, float_address, maker, new
from quantspec.ir.held import codes_shape, held
from quantspec.ir.program import Cell, LinearDynamic, Recurrent
from quantspec.kernels import dynamic_gemm, recurrent_cell, recurrent_step
from quantspec.kernels.dynamic_gemm import DynamicProduct, DynamicQuantize
from quantspec.kernels.frame import Frame, caller, frame_of
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
MOST_KEPT = 1024  # steps that instructions are kept for, of one cell
GROWTH = 1.5  # where lengths vary, memory for more than what is asked is soon enough for all
CODES = 2  # the slot
# Entries of a frame, whose first slot has the gates.
SLICES, OUTPUTS, INPUTS = Frame.slices.index, Frame.addresses.index + 1, Frame.addresses.index + CODES
CELL = 512  # multiply-accumulates that take as long as what makes an output of one gate


class CompiledRecurrent:
    """A recurrent step, whose layers each run in one call.

    ``__call__(x, state)`` as ``reference_dynamic.recurrent``, or, where only its outputs are ``taken``, those alone.
    """

    def __init__(self, step: Recurrent, choices: Dialect, weights: Copying):
        self.step, self.name, self.choices, self.local = step, step.name, choices, threading.local()
        self.taken, self.ways = False, reference_dynamic.Ways(self.one_way, self.packed_way)
        self.packed = {id(cell): self.pack(cell, weights) for cell in step.cells}
        # What an input and a state have of features, where all is done by the only cell.
        inputs, size = (codes_shape(step.cells[0], name)[1] for name in ("input_weight", "state_weight"))
        self.features, self.size = inputs if len(step.cells) == 1 else 0, size

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
        if (result := self.directly(x, state)) is not None:
            return result
        result = reference_dynamic.recurrent(self.step, x, state, self.choices, self.ways)
        return result[0] if self.taken else result

    def take_outputs(self, name: str) -> None:
        """It gives its outputs alone from now on, by that name."""
        self.name, self.taken = name, True

    def directly(self, x: Any, state: Any) -> Any:
        """What most are called with, in less time: a batch of whole sequences, or of single steps, by the only cell.
        None for others, and for what the reference has to say."""
        if not (self.features and (start := float_address(x))):
            return None
        step, cell, by_sample = self.step, self.step.cells[0], self.step.batch_first
        if x.ndim != 3 - step.single or x.shape[-1] != self.features or not x.numel():
            return None
        first, second = (1, x.shape[0]) if step.single else x.shape[:2]
        shape = Shape(second, first, True) if by_sample else Shape(first, second, False)
        before = None
        if state is not None:
            parts, count = reference_dynamic.parts_of(step, state), 2 if step.kind == "lstm" else 1
            expected = (1, shape.batch, self.size)[step.single :]
            if len(parts) != count or not all(float_address(part) and part.shape == expected for part in parts):
                return None
            before = [part.detach().numpy() for part in parts]
        frames = self.frames(cell, shape.batch, shape.steps * shape.batch, False)
        outputs = frames.whole(shape)
        if not frames.run(start, before, address(outputs)):
            return None
        last = frames.last()
        if step.single:
            return tuple(last.unbind()) if step.kind == "lstm" else last[0]
        outputs = outputs.transpose(0, 1) if by_sample else outputs
        if self.taken:
            return outputs
        after = last.unsqueeze(1).unbind()
        return outputs, after if step.kind == "lstm" else after[0]

    def one_way(
        self, step: Recurrent, part: Cell, x: torch.Tensor, state: list[torch.Tensor] | None, backward: bool,
        choices: Dialect,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:  # fmt: skip
        """As ``reference_dynamic.one_way``, which also has the last word on what the kernels do not take."""
        count, batch, _ = x.shape
        if count * batch == 0 or not self.takes(x, state, batch):
            return reference_dynamic.one_way(step, part, x, state, backward, choices)
        # Samples may lie in order of the batch, of which torch has a transposed view; anything else is copied.
        start, of_samples = float_address(x), 0
        if not start:
            start = of_samples = float_address(x.transpose(0, 1))
        if not start:
            copied = np.ascontiguousarray(array(x, step.layer))
            start = int(copied.ctypes.data)
        frames = self.frames(part, batch, count * batch, backward)
        outputs = frames.whole(Shape(count, batch, bool(of_samples)))
        before = None if state is None else [array(value, step.layer) for value in state]
        if not frames.run(start, before, address(outputs)):
            return reference_dynamic.one_way(step, part, x, state, backward, choices)
        return outputs, frames.last().unbind()

    def packed_way(
        self, step: Recurrent, part: Cell, x: torch.Tensor, counts: list[int], state: tuple[torch.Tensor, ...],
        backward: bool, choices: Dialect,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:  # fmt: skip
        """As ``reference_dynamic.packed_way``, which also has the last word on what the kernels do not take."""
        batch, start = counts[0], float_address(x)
        # Whoever made the sequence may have named rows that there are not.
        good = start and sum(counts) == len(x) and all(a >= b > 0 for a, b in itertools.pairwise([batch, *counts]))
        if good and self.takes(x, state, batch):
            frames = self.frames(part, batch, len(x), backward)
            outputs, before = frames.packed(counts), [array(value, step.layer) for value in state]
            if frames.run(start, before, address(outputs)):
                return outputs, frames.last().unbind()
        return reference_dynamic.packed_way(step, part, x, counts, state, backward, choices)

    def takes(self, x: torch.Tensor, state: Sequence[torch.Tensor] | None, batch: int) -> bool:
        """Whether inputs, and states of so many samples, are what the kernels read."""
        of_floats = all(t.dtype == torch.float32 and t.is_cpu for t in (x, *(state or ())))
        return of_floats and all(t.shape == (batch, self.size) for t in state or ())

    def frames(self, part: Cell, batch: int, rows: int, backward: bool) -> "Frames":
        """This thread's frames for a cell, with memory for so many samples and rows of inputs."""
        existing: dict[int, Frames] = self.local.__dict__.setdefault("frames", {})
        key = torch.get_num_threads(), pool.generation
        frames = existing.get(id(part))
        if frames is None or frames.key != key or batch > frames.batch or rows > frames.rows:
            if frames is not None:  # lengths vary
                batch, rows = grown(batch, frames.batch), grown(rows, frames.rows)
            inputs = codes_shape(part, "input_weight")[1]
            frames = Frames(key, self.step, self.packed[id(part)], inputs, self.size, batch, rows, backward)
            existing[id(part)] = frames
        return frames


def grown(wanted: int, before: int) -> int:
    """For how many there should be memory next."""
    return before if wanted <= before else max(wanted, int(GROWTH * before))


class Shape(NamedTuple):
    """So many ``steps`` of ``batch`` samples, whose inputs lie one sample behind the other where ``by_sample``, else
    step by step, as outputs always do: torch has them in that order, on which it depends what views of them there
    are."""

    steps: int
    batch: int
    by_sample: bool

    def inputs_apart(self, nbytes: int) -> tuple[int, int]:
        """How many bytes lie between two steps and between two samples of inputs, of so many bytes each."""
        return (nbytes, self.steps * nbytes) if self.by_sample else (self.batch * nbytes, nbytes)


class Part(NamedTuple):
    """So many ``steps`` that are run in one go, any number of times, ``shared`` among threads. ``offsets``: of the
    inputs, where those lie by sample; ``kept``: memory that lives as long."""

    steps: int
    shared: "Shared"
    offsets: np.ndarray | None
    kept: list[np.ndarray]


class Turn(NamedTuple):
    """A part that is run ``slices`` times, how many bytes behind the first the outputs come that it gives first, and
    where the codes of inputs are that it reads first."""

    part: Part
    slices: int
    outputs_ahead: int
    codes: int


class Frames:
    """What quantizes the inputs of all steps, and what runs the steps of a cell, with the memory they work in.

    ``key``: by how many threads, of which process. ``batch``: the most samples; ``rows``: of inputs, in all.
    ``backward``: the last step is the first to be run.
    """

    def __init__(
        self, key: tuple[int, int], step: Recurrent, packed: tuple[Packed, Packed], inputs: int, size: int,
        batch: int, rows: int, backward: bool,
    ):  # fmt: skip
        self.key, self.batch, self.rows, self.backward = key, batch, rows, backward
        self.threads, self.inputs, self.size = key[0], inputs, size
        self.kept: list[np.ndarray] = []
        kind, qmax = recurrent_cell.KINDS[step.kind], 127 if step.reduce_range else 255
        self.gates_of_a_sample = kind.gates * size
        both = aligned(2 * batch * size, np.float32).reshape(2, batch, size)  # kernels pass on a second one in any case
        h, c = (part.ctypes.data for part in both)
        self.state = self.present = both if step.kind == "lstm" else both[:1]  # those of all samples, and of some
        most = max(CHUNK_BYTES // (4 * self.gates_of_a_sample), CHUNK_ROWS + batch)  # of any number of samples
        state_gates = self.keep(aligned(batch * self.gates_of_a_sample, np.float32))
        self.gates = self.keep(aligned(min(rows, most) * self.gates_of_a_sample, np.float32))
        (quantize, self.product), self.of_state = (
            dynamic_gemm.layer(
                weights, most_rows, width, self.keep, self.room, qmax=qmax, per_row=False, relu=False, soon=True
            )
            for weights, most_rows, width in zip(packed, (rows, batch), (inputs, size))
        )
        quantize.slot, self.of_state[0].source, self.of_state[1].product.y = 0, h, state_gates
        # What has both in one go, of one sample by one thread, and memory for its sums.
        alone = batching.wanted_threads(self.threads, self.work(1), batching.PARALLEL_MACS) == 1
        self.together = recurrent_step.kernel_of(step.kind, size) if alone else None
        self.sums = self.keep(aligned(kind.gates * recurrent_step.WIDTH, np.int32)) if self.together else 0
        self.cell = recurrent_cell.CELLS[step.kind].bound(recurrent_cell.Cell(
            rows=batch, size=size, gates=kind.gates, state_gates=state_gates, h=h, c=c,
            output_pitch=4 * size,
        ))  # fmt: skip
        self.codes, self.pitch = quantize.target, quantize.target_pitch
        self.quantize = frame_of(dynamic_gemm.QUANTIZE.bound(quantize), slots=1)
        self.quantized = DynamicQuantize.on(self.quantize.instructions[0])
        self.parts: dict[tuple[int, int, bool], Part] = {}
        self.turns: list[Turn] = []
        self.start, self.input = self.quantize.address, self.quantize.addresses.data
        self.starts: list[int] = []
        self.make = maker((0, batch, size))
        self.ready: Shape | None = None  # for whole sequences, whose frames are chained

    def work(self, batch: int) -> int:
        """The multiply-accumulates of a step, and what takes as long as them."""
        return batch * self.gates_of_a_sample * (self.size + CELL)

    def at_once(self, batch: int, steps: int) -> int:
        """How many steps get the gates of their inputs from one product: as many as the cache holds, but enough for
        weights to be worth their way."""
        most = max(CHUNK_BYTES // (batch * 4 * self.gates_of_a_sample), -(-CHUNK_ROWS // batch))
        return min(steps, most, MOST_STEPS)

    def part(self, batch: int, steps: int, by_sample: bool) -> Part:
        """What runs so many steps of so many samples."""
        key = batch, steps, by_sample
        if key not in self.parts:
            if sum(part.steps for part in self.parts.values()) >= MOST_KEPT:
                self.parts.clear()
            self.parts[key] = self.made(*key)
        return self.parts[key]

    def made(self, batch: int, steps: int, by_sample: bool) -> Part:
        """The same, made."""
        product, offsets, lasting = self.product.copy(), None, len(self.kept)
        inner = product.product
        inner.rows, inner.chunk, inner.apart = steps * batch, chunk_rows(steps * batch, self.inputs), 0
        inner.y, product.x_slot, product.past = self.gates, CODES, False  # they are read at once
        if by_sample:
            offsets = np.zeros(steps * batch, np.int32)
            inner.x_offsets = self.keep(offsets)
        instructions: list[Instruction] = [dynamic_gemm.PRODUCT.bound(product)]
        sign, between = (-1 if self.backward else 1), self.pitch if by_sample else batch * self.pitch
        for number in range(steps):
            cell = self.cell.copy()
            cell.rows, cell.output_ahead = batch, sign * number * batch * cell.output_pitch
            cell.gates_ahead = 4 * batch * self.gates_of_a_sample * (steps - 1 - number if self.backward else number)
            instructions += self.step(cell)
        products = (each.product for each in instructions if isinstance(each, DynamicProduct))
        give_buffers((product for product in products if not product.buffer), self.room)
        shared = Shared(instructions, self.threads, self.work(batch))
        for frame in shared.frames:
            frame.addresses[0] = self.gates
            frame.strides[1:3] = sign * steps * batch * 4 * self.size, sign * steps * between
        kept = self.kept[lasting:]
        del self.kept[lasting:]
        return Part(steps, shared, offsets, kept)

    def step(self, cell: recurrent_cell.Cell) -> list[Instruction]:
        """One step: the product of the state and the cell behind it."""
        quantize, product = self.of_state[0].copy(), self.of_state[1].copy()
        quantize.count = product.product.rows = cell.rows
        product.product.chunk = chunk_rows(cell.rows, self.size)
        if self.together is None or cell.rows > 1:
            return [dynamic_gemm.QUANTIZE.bound(quantize), dynamic_gemm.PRODUCT.bound(product), cell]
        step = recurrent_step.Step.on(product.entries)
        step.cell, step.product.buffer = cell, self.sums
        return [dynamic_gemm.QUANTIZE.bound(quantize), self.together.bound(step)]

    def whole(self, shape: Shape) -> torch.Tensor:
        """Makes ready for whole sequences; a tensor for their outputs [steps, batch, state]."""
        if shape == self.ready:
            return self.make()
        (steps, batch, by_sample), apart, done = shape, shape.inputs_apart(self.pitch), 0
        at_once = self.at_once(batch, steps)
        parts = [(self.part(batch, at_once, by_sample), steps // at_once)]
        if rest := steps % at_once:
            parts.append((self.part(batch, rest, by_sample), 1))
        self.turns = []
        for part, slices in parts:
            if part.offsets is not None:
                rows = (np.arange(n) * each for n, each in zip((part.steps, batch), apart))
                part.offsets[:] = offset_table(np.add.outer(*rows).ravel())
            # The first step that is run, and that whose codes lie first.
            earliest, lowest = (steps - 1 - done, steps - done - part.steps) if self.backward else (done, done)
            self.turns.append(Turn(part, slices, 4 * self.size * batch * earliest, self.codes + lowest * apart[0]))
            done += slices * part.steps
        frames = self.quantize, *(part.shared.first for part, _ in parts)
        for frame, following in itertools.zip_longest(frames, frames[1:]):
            frame.then = following.address if following else 0
        self.ready, self.present, self.quantized.count = shape, self.state[:, :batch], steps * batch
        self.starts, self.make = [self.start], maker((steps, batch, self.size))
        return self.make()

    def packed(self, counts: list[int]) -> torch.Tensor:
        """Makes ready for a packed sequence, of whose steps each has so many rows; a tensor for its outputs [rows,
        state]."""
        for frame in (self.quantize, *(turn.part.shared.first for turn in self.turns if self.ready)):
            frame.then = 0
        self.turns, self.ready, self.present, row = [], None, self.state[:, : counts[0]], 0
        for batch, steps in itertools.groupby(counts):
            slices = len(list(steps))
            first = row + (slices - 1) * batch if self.backward else row
            part = self.part(batch, 1, False)
            self.turns.append(Turn(part, slices, 4 * self.size * first, self.codes + self.pitch * first))
            row += slices * batch
        if self.backward:
            self.turns.reverse()
        self.quantized.count, self.starts = row, [self.start, *(turn.part.shared.start for turn in self.turns)]
        return new((row, self.size))

    def run(self, x: int, before: list[np.ndarray] | None, outputs: int) -> bool:
        """All steps, from where the inputs are, and from the states ``before`` or zeros, to where the outputs go. False
        for what the reference has to say."""
        for part, values in zip(self.present, before or itertools.repeat(0)):
            part[:] = values
        self.input[0] = x
        for part, slices, ahead, codes in self.turns:
            for entries in part.shared.entries:
                entries[SLICES], entries[OUTPUTS], entries[INPUTS] = slices, outputs + ahead, codes
        call = caller()
        for start in self.starts:
            if call(start, 0, 0):
                return False
        return True

    def last(self) -> torch.Tensor:
        """The states behind the last step, [parts, batch, state]."""
        return torch.from_numpy(self.present.copy())

    def room(self, nbytes: int) -> int:
        """The address of so many bytes that are the frames' own, as inputs and states have codes at once."""
        return self.keep(aligned(nbytes))

    def keep(self, array: np.ndarray) -> int:
        """The address of an array that lives as long as the frames."""
        self.kept.append(array)
        return int(array.ctypes.data)


class Shared:
    """Instructions that are run by torch's threads, where each of them has enough to do each time.

    ``macs``: of one time. ``first``: the frame that has it all done; ``frames``: all whose slots and ``slices`` are to
    be filled in, ``entries``: of those.
    """

    def __init__(self, instructions: list[Instruction], threads: int, macs: int):
        whole = frame_of(*instructions, slots=3)
        self.frames, self.first = [whole], whole
        self.parallel: Parallel | None = None
        self.team: Team | None = None
        members, own = batching.wanted_threads(threads, macs, batching.PARALLEL_MACS), batching.torchs_threads()
        if members > 1 and own is not None:
            self.parallel = Parallel(Plan(whole, [], macs, 0, instructions), members)
            self.team = self.parallel.team(own, threads, direct=False)
            self.frames, self.first = [whole, *self.parallel.frames], self.team.frame
        self.entries, self.start = [frame.entries.data for frame in self.frames], self.first.address
