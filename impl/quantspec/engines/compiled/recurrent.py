"""Recurrent networks: all steps of a layer in one call (DYN-RECURRENT).

Gates need exp in float64, whose result is rounded to float32 (``dynamic_steps.near``). Here it is a polynomial on |r| <= ln(2) / 2, off by less than 2^-56 of
r, and a power of two; sigmoid and tanh come out within a few 2^-53, so that another float32 than the nearest is a matter of one in 2^26.
"""

import math
import threading

import numpy as np
import torch
from llvmlite import ir

from quantspec.engines import reference_dynamic
from quantspec.ir.program import Cell, LinearDynamic, Recurrent
from quantspec.kernels import cpu, dynamic_gemm, gemm
from quantspec.kernels.emitter import DOUBLES, FLOATS, I1, I64, LANES, Emitter
from quantspec.kernels.jit import ADDRESSES, BEGIN, COUNT, RELEASE, SLICES, SLOTS, STRIDES, WIDTH, caller, kernel
from quantspec.kernels.memory import aligned
from quantspec.kernels.quantize import SOURCE
from quantspec.numerics.dialects.dialect import Dialect

from .packing import pack_dynamic

LONGS = ir.VectorType(I64, LANES)
ROWS, SIZE, STATE_GATES, H, C = range(1, 6)  # entries; the inputs' gates and the outputs are slots 0 and 1
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
LN2_HIGH, LN2_LOW = 0.6931471803691238, 1.9082149292705877e-10  # Cody and Waite: k * LN2_HIGH is exact for small k
TERMS = 14


def exp_less_one(emit: Emitter, y):
    """exp(y) - 1 of float64 vectors, |y| at most 300."""
    known = emit.splat(6755399441055744.0, DOUBLES)  # 1.5 * 2^52 rounds to an integer
    moved = emit.fadd(emit.fmul(y, emit.splat(1 / math.log(2), DOUBLES)), known)
    k = emit.fsub(moved, known)

    def more(a, b, c):
        """a * b + c, in one rounding where that is one instruction: either is exact enough."""
        return emit.native("llvm.fma.v16f64", DOUBLES, a, b, c) if cpu.target().has_fma else emit.fadd(emit.fmul(a, b), c)

    r = emit.fsub(emit.fsub(y, emit.fmul(k, emit.splat(LN2_HIGH, DOUBLES))), emit.fmul(k, emit.splat(LN2_LOW, DOUBLES)))
    total = emit.splat(1 / math.factorial(TERMS), DOUBLES)
    for n in range(TERMS - 1, 0, -1):
        total = more(total, r, emit.splat(1 / math.factorial(n), DOUBLES))
    less_one = emit.fmul(total, r)
    power = emit.bitcast(emit.shl(emit.add(emit.bitcast(moved, LONGS), ir.Constant(LONGS, [1023] * LANES)), ir.Constant(LONGS, [52] * LANES)), DOUBLES)
    return emit.fadd(emit.fmul(power, less_one), emit.fsub(power, emit.splat(1.0, DOUBLES)))


def limited(emit: Emitter, x, limit: float):
    """A float32 vector as float64, at most ``limit`` in size."""
    return emit.fpext(emit.minimum(emit.maximum(x, emit.splat(-limit, FLOATS)), emit.splat(limit, FLOATS)), DOUBLES)


def sigmoid(emit: Emitter, x):
    power = exp_less_one(emit, emit.fneg(limited(emit, x, 150.0)))
    return emit.fptrunc(emit.fdiv(emit.splat(1.0, DOUBLES), emit.fadd(power, emit.splat(2.0, DOUBLES))), FLOATS)


def tanh(emit: Emitter, x):
    double = limited(emit, x, 30.0)
    power = exp_less_one(emit, emit.fadd(double, double))
    return emit.fptrunc(emit.fdiv(power, emit.fadd(power, emit.splat(2.0, DOUBLES))), FLOATS)


def lstm(emit: Emitter, x: list, h: list, before, c):
    i, f, g, o = (emit.fadd(a, b) for a, b in zip(x, h))
    c = emit.fadd(emit.fmul(sigmoid(emit, f), c), emit.fmul(sigmoid(emit, i), tanh(emit, g)))
    return emit.fmul(sigmoid(emit, o), tanh(emit, c)), c


def gru(emit: Emitter, x: list, h: list, before, c):
    r, z = (sigmoid(emit, emit.fadd(x[n], h[n])) for n in (0, 1))
    n = tanh(emit, emit.fadd(x[2], emit.fmul(r, h[2])))
    return emit.fadd(n, emit.fmul(z, emit.fsub(before, n))), c


def rnn_tanh(emit: Emitter, x: list, h: list, before, c):
    return tanh(emit, emit.fadd(x[0], h[0])), c


def rnn_relu(emit: Emitter, x: list, h: list, before, c):
    total = emit.fadd(x[0], h[0])
    return emit.maximum(total, emit.splat(0.0, FLOATS)), c


KINDS = {"lstm": lstm, "gru": gru, "rnn_tanh": rnn_tanh, "rnn_relu": rnn_relu}


def cell(kind: str):
    """Writes the kernel for one step of a kind of network: 1 when a gate is no finite number."""

    def write(emit: Emitter, op, frame):
        rows, size, state_gates, h, c = (emit.field(op, entry) for entry in (ROWS, SIZE, STATE_GATES, H, C))
        gates, output = emit.field(frame, ADDRESSES), emit.field(frame, ADDRESSES + 1)
        count, zeros = GATES[kind], emit.splat(0.0, FLOATS)
        nothing = ir.Constant(ir.VectorType(I1, LANES), [0] * LANES)

        def row(b, carried):
            line = emit.mul(emit.shl(size, I64(2)), b)

            def block(n, carried):
                at, mask = emit.shl(n, I64(6)), emit.mask(emit.sub(size, emit.shl(n, I64(4))))

                def gate(base, index):
                    place = emit.add(emit.mul(line, I64(count)), emit.add(emit.mul(size, I64(4 * index)), at))
                    return emit.read_some(emit.add(base, place), FLOATS, mask, zeros)

                def state(base):
                    return emit.add(base, emit.add(line, at))

                xs, hs = ([gate(base, index) for index in range(count)] for base in (gates, state_gates))
                bad = carried[0]
                for a, b in zip(xs, hs):
                    total = emit.fadd(a, b)
                    bad = emit.or_(bad, emit.fcmp_unordered("uno", emit.fsub(total, total), zeros))  # infinity less itself is NaN
                before, old = (emit.read_some(state(base), FLOATS, mask, zeros) for base in (h, c))
                after, new = KINDS[kind](emit, xs, hs, before, old)
                for base, value in ((h, after), (c, new), (output, after)):
                    emit.write_some(value, state(base), mask)
                return [bad]

            return emit.loop(emit.ashr(emit.add(size, I64(LANES - 1)), I64(4)), carried, block)

        bad = emit.loop(rows, [nothing], row)[0]
        some = emit.any(bad)
        return emit.zext(some, I64)

    return write


class Recurring:
    """A recurrent step, whose layers each run in one call. ``__call__(x, state)`` as ``dynamic_steps.recurrent``."""

    def __init__(self, step: Recurrent, choices: Dialect):
        self.step, self.name, self.choices, self.local = step, step.name, choices, threading.local()
        self.packed = {
            id(part): tuple(
                pack_dynamic(LinearDynamic("", "", step.layer, weight, bias, grid, step.reduce_range))
                for weight, bias, grid in (
                    (part.input_weight, part.input_bias, part.input_qparams), (part.state_weight, part.state_bias, part.state_qparams)
                )
            )
            for part in step.cells
        }  # fmt: skip

    def __call__(self, x: torch.Tensor, state):
        return reference_dynamic.recurrent(self.step, x, state, self.choices, self.one_way)

    def one_way(self, step: Recurrent, part: Cell, x: torch.Tensor, state: list[torch.Tensor], backward: bool, choices: Dialect) -> tuple[torch.Tensor, tuple]:
        """As ``dynamic_steps.one_way``, which also has the last word on what the kernels do not take."""
        count, batch, inputs = x.shape
        size = part.state_weight.shape[1]
        good = all(t.dtype == torch.float32 and t.is_cpu for t in (x, *state)) and all(t.shape == (batch, size) for t in state)
        if count * batch == 0 or not good:
            return reference_dynamic.one_way(step, part, x, state, backward, choices)
        frames = self.frames(part, count, batch, inputs, size)
        source, outputs = x.contiguous(), torch.empty(count, batch, size)
        for keep, value in zip(frames.state, state):
            keep[:] = value.numpy()
        first, second = frames.first, frames.second
        first[ADDRESSES] = source.data_ptr()
        last, row = count - 1 if backward else 0, 4 * batch * size
        gates = frames.gates.ctypes.data
        second[ADDRESSES], second[ADDRESSES + 1] = gates + last * row * GATES[step.kind], outputs.data_ptr() + last * row
        second[STRIDES], second[STRIDES + 1] = (sign := -1 if backward else 1) * row * GATES[step.kind], sign * row
        run = caller()
        if run(first.ctypes.data, 0, 0) or run(second.ctypes.data, 0, 0):
            return reference_dynamic.one_way(step, part, x, state, backward, choices)
        return outputs, tuple(torch.from_numpy(keep.copy()) for keep in frames.state[: len(state)])

    def frames(self, part: Cell, count: int, batch: int, inputs: int, size: int) -> "Frames":
        """This thread's frames for inputs of a shape; one shape for each cell is kept."""
        known = self.local.__dict__.setdefault("frames", {})
        key = count, batch
        if id(part) not in known or known[id(part)].key != key:
            known[id(part)] = Frames(key, self.step, self.packed[id(part)], count, batch, inputs, size)
        return known[id(part)]


class Frames:
    """The frame of the inputs' gates for all steps, and that of a step, with the memory they work in."""

    def __init__(self, key, step: Recurrent, packed: tuple, count: int, batch: int, inputs: int, size: int):
        self.key, self.kept = key, []
        gates, qmax = GATES[step.kind] * size, 127 if step.reduce_range else 255
        self.gates = aligned(count * batch * gates, np.float32)
        self.state = [aligned(batch * size, np.float32).reshape(batch, size) for _ in range(2)]
        state_gates = aligned(batch * gates, np.float32)
        self.kept.append(state_gates)
        options = {"qmax": qmax, "per_row": False, "relu": False}
        quantize, product = dynamic_gemm.entries(packed[0], count * batch, inputs, self.keep, **options)
        self.first = frame([("dynamic_quantize", quantize | {dynamic_gemm.SLOT: 0}), ("dynamic_product", product | {gemm.Y: self.gates.ctypes.data})], 1)
        quantize, product = dynamic_gemm.entries(packed[1], batch, size, self.keep, **options)
        h, c = (part.ctypes.data for part in self.state)
        cell_entries = {ROWS: batch, SIZE: size, STATE_GATES: state_gates.ctypes.data, H: h, C: c}
        self.second = frame([
            ("dynamic_quantize", quantize | {SOURCE: h}), ("dynamic_product", product | {gemm.Y: state_gates.ctypes.data}), (step.kind, cell_entries),
        ], count)  # fmt: skip

    def keep(self, array: np.ndarray) -> int:
        self.kept.append(array)
        return array.ctypes.data


WRITERS = {"dynamic_quantize": dynamic_gemm.write_dynamic_quantize, "dynamic_product": dynamic_gemm.write_dynamic_product} | {kind: cell(kind) for kind in KINDS}


def frame(instructions: list[tuple[str, dict[int, int]]], slices: int) -> np.ndarray:
    """A frame of instructions, each with two slots, that is run so many times."""
    made = aligned(BEGIN + WIDTH * len(instructions), np.int64)
    made[COUNT], made[SLICES], made[SLOTS], made[RELEASE] = len(instructions), slices, 2, 1
    for index, (name, entries) in enumerate(instructions):
        op = made[BEGIN + WIDTH * index :][:WIDTH]
        op[0] = kernel(name, WRITERS[name])
        for entry, value in entries.items():
            op[entry] = value
    return made

