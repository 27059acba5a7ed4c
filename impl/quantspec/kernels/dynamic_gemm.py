"""Dynamic linear layers: the range of the input, its grid, its codes, the product, and floats as output (chapter 6, dialect ``onnx``)."""

from collections.abc import Callable

import numpy as np
from llvmlite import ir

from . import gemm
from .emitter import F32, FLOATS, I32, I64, INTS, LANES, Emitter, float_bits, function
from .gemm import BIAS, FACTOR, OUTPUTS, PANEL, ROW_GRIDS, SUMS, Y_OFFSETS, Y, accumulate, product, put_floats
from .memory import SLACK, aligned, row_pitch
from .quantize import COUNT, HIGH, INVERSE, LOW, SAFE_SCALES, SCALE, SOURCE, SOURCE_PITCH, TARGET, TARGET_PITCH, WIDTH, ZERO, run_quantize, source_or_slot

# The instruction that quantizes: SOURCE and the like as ``codes`` has them, and
SLOT, GRIDS, GRID_STRIDE, PER_ROW, QMAX, SMALLEST, LARGEST = range(13, 20)
GRID_ENTRIES = 24  # int64 entries of a grid: those of ``codes.quantize_fields``
NORMAL, MOST, FINITE = 2.0**-126, 2.0**119, 3.4028234663852886e38


def run_range(emit: Emitter, op, source, count, grid):
    """The grid of ``count`` floats (DIA-QPARAMS, ``float32-bare``) to the entries at ``grid``; 1 for what has none."""
    infinite = float("inf")
    starts = [emit.splat(infinite, FLOATS), emit.splat(-infinite, FLOATS)] * 2

    def sixteen(at, mask, low, high):
        address = emit.add(source, emit.shl(at, I64(2)))
        x = emit.read(address, FLOATS) if mask is None else emit.read_some(address, FLOATS, mask, emit.splat(0.0, FLOATS))
        # A NaN among the operands is found by the sum below.
        return x, emit.select(emit.fcmp_ordered("<", x, low), x, low), emit.select(emit.fcmp_ordered(">", x, high), x, high)

    none = ir.Constant(ir.VectorType(ir.IntType(1), LANES), [0] * LANES)

    def many(i, carried):
        at = emit.shl(i, I64(5))
        x, low, high = sixteen(at, None, *carried[:2])
        y, low2, high2 = sixteen(emit.add(at, I64(LANES)), None, *carried[2:4])
        return [low, high, low2, high2, emit.or_(carried[4], emit.fcmp_unordered("uno", x, y))]

    whole = emit.ashr(count, I64(5))
    low, high, low2, high2, nan = emit.loop(whole, [*starts, none], many)
    low, high = emit.minimum(low, low2), emit.maximum(high, high2)

    def few(i, carried):
        at = emit.add(emit.shl(whole, I64(5)), emit.shl(i, I64(4)))
        x, low, high = sixteen(at, emit.mask(emit.sub(count, at)), *carried[:2])
        return [low, high, emit.or_(carried[2], emit.fcmp_unordered("uno", x, x))]

    left = emit.ashr(emit.add(emit.sub(count, emit.shl(whole, I64(5))), I64(LANES - 1)), I64(4))
    low, high, nan = emit.loop(left, [low, high, nan], few)
    low, high = (reduced(emit, v, pick) for v, pick in ((low, emit.minimum), (high, emit.maximum)))
    # The range holds zero, as lanes that are left over do.
    low, high = emit.minimum(low, F32(0)), emit.maximum(high, F32(0))
    qmax = emit.field(op, QMAX, F32)
    scale = emit.fdiv(emit.fsub(high, low), qmax)
    scale = emit.select(emit.fcmp_ordered("==", scale, F32(0)), F32(1), scale)
    zero = emit.rounded_one(emit.fneg(emit.fdiv(low, scale)))
    zero = emit.select(emit.icmp_signed("<", zero, I32(0)), I32(0), zero)
    most = emit.fptosi(qmax, I32)
    zero = emit.select(emit.icmp_signed(">", zero, most), most, zero)
    inverse = emit.fdiv(F32(1), scale)
    safe = emit.and_(emit.fcmp_ordered(">=", scale, F32(SAFE_SCALES[0])), emit.fcmp_ordered("<=", scale, F32(SAFE_SCALES[1])))
    steps = emit.sitofp(zero, F32)
    for entry, value in (
        (SCALE, scale), (LOW, emit.fmul(scale, emit.fneg(steps))), (HIGH, emit.fmul(scale, emit.fsub(qmax, steps))),
    ):  # fmt: skip
        emit.write(value, emit.add(grid, I64(8 * entry)))
    bits = emit.zext(emit.bitcast(inverse, I32), I64)
    emit.write(emit.select(safe, bits, I64(0)), emit.add(grid, I64(8 * INVERSE)))
    emit.write(emit.sext(zero, I64), emit.add(grid, I64(8 * ZERO)))
    # Finite values, a scale that is a grid's, and units of the accumulator that are normal numbers.
    smallest, largest = (emit.fmul(scale, emit.field(op, entry, F32)) for entry in (SMALLEST, LARGEST))
    good = emit.not_(emit.any(nan))
    limits = (">=", low, -FINITE), ("<=", high, FINITE), (">=", scale, NORMAL), ("<=", scale, MOST), (">=", smallest, NORMAL), ("<=", largest, FINITE)
    for relation, value, limit in limits:
        good = emit.and_(good, emit.fcmp_ordered(relation, value, F32(limit)))
    return emit.zext(emit.not_(good), I64)


def reduced(emit: Emitter, vector, pick):
    """One value of sixteen."""
    values = [emit.extract_element(vector, I32(i)) for i in range(LANES)]
    while len(values) > 1:
        values = [pick(a, b) for a, b in zip(values[::2], values[1::2])]
    return values[0]


def write_dynamic_quantize(emit: Emitter, op, frame):
    """Codes of rows on the grid of their range, which goes to GRIDS, and those codes to TARGET."""
    source = source_or_slot(emit, op, frame, SLOT, SOURCE)
    target, count, width, near, far, grids, stride = (
        emit.field(op, entry) for entry in (TARGET, COUNT, WIDTH, SOURCE_PITCH, TARGET_PITCH, GRIDS, GRID_STRIDE)
    )
    per_row = emit.icmp_signed("!=", emit.field(op, PER_ROW), I64(0))
    find = function(emit.module, "quantspec_range", 4, run_range)
    quantize = function(emit.module, "quantspec_quantize_run", 4, run_quantize)

    def one_range(i, carried):
        return [emit.or_(carried[0], emit.call(find, [op, emit.add(source, emit.mul(i, near)), length, emit.add(grids, emit.mul(i, stride))]))]

    # Rows lie after one another, so that the whole is one long row.
    length = emit.select(per_row, width, emit.mul(width, count))
    bad = emit.loop(emit.select(per_row, count, I64(1)), [I64(0)], one_range)[0]

    def row(i, carried):
        emit.call(quantize, [emit.add(grids, emit.mul(i, stride)), emit.add(source, emit.mul(i, near)), emit.add(target, emit.mul(i, far)), width])
        return []

    emit.loop(count, [], row)
    return bad


Y_AHEAD, Y_PITCH, RELU, Y_SLOT = 19, 24, 25, 26  # entries of a product that codes have for sums; Y_AHEAD: bytes from the start of the slot to the first row


def float_tile(rows: int, blocks: int, half: bool):
    """Writes the function that computes a tile of floats: accumulator times unit, plus bias, each rounded (DIA-DYNAMIC, ``multiply-add``)."""

    def write(emit: Emitter, op, row, panel):
        first = emit.mul(panel, I64(LANES * PANEL))
        totals = accumulate(emit, op, row, panel, rows, blocks, [emit.splat(0, INTS)] * (rows * blocks), half)
        lane = emit.shl(first, I64(2))
        sums, factors, biases = (
            [emit.read(emit.add(emit.add(emit.field(op, entry), lane), I64(64 * j)), kind, 64) for j in range(blocks)]
            for entry, kind in ((SUMS, INTS), (FACTOR, FLOATS), (BIAS, FLOATS))
        )
        mask = emit.mask(emit.sub(emit.field(op, OUTPUTS), emit.add(first, I64(LANES * (blocks - 1)))))
        relu = emit.splat(emit.select(emit.icmp_signed("!=", emit.field(op, RELU), I64(0)), F32(0), F32(float("-inf"))))
        pitch, target = emit.field(op, Y_PITCH), emit.add(emit.field(op, Y), lane)
        places = [emit.add(row, I64(i)) for i in range(rows)]

        def value(i, j):
            grid = emit.add(emit.field(op, ROW_GRIDS), emit.mul(places[i], emit.field(op, Y_OFFSETS)))
            scale, zero = emit.splat(emit.field(grid, SCALE, F32)), emit.splat(emit.trunc(emit.field(grid, ZERO), I32))
            centred = emit.sub(totals[i * blocks + j], emit.mul(zero, sums[j]))
            real = emit.fadd(emit.fmul(emit.sitofp(centred, FLOATS), emit.fmul(scale, factors[j])), biases[j])
            return emit.select(emit.fcmp_ordered("<", real, relu), relu, real)

        put_floats(emit, op, [emit.add(target, emit.mul(place, pitch)) for place in places], value, blocks, mask)

    return write


run_product = product("floats", float_tile)


def write_dynamic_product(emit: Emitter, op, frame):
    """A product of codes to floats. Y_OFFSETS is here the bytes from the grid of one row to that of the next; Y is set from the slot."""
    address = emit.add(source_or_slot(emit, op, frame, Y_SLOT, Y), emit.field(op, Y_AHEAD))
    inside = emit.icmp_signed("<", emit.field(op, Y_SLOT), I64(0))
    emit.write(emit.select(inside, emit.field(op, Y), address), emit.add(op, I64(8 * Y)))
    run_product(emit, op, frame)


def entries(packed, rows: int, inputs: int, keep: Callable[[np.ndarray], int], *, qmax: int, per_row: bool, relu: bool) -> tuple[dict[int, int], dict[int, int]]:
    """The entries of both instructions of a layer, but for where its input and output are. ``keep`` gives the address of an array that lives as long."""
    pitch, scale = row_pitch(inputs), packed.factor[: packed.outputs]
    quantized = keep(aligned(rows * pitch + SLACK))
    stride = 8 * GRID_ENTRIES if per_row else 0
    grids = keep(aligned(GRID_ENTRIES * (rows if per_row else 1), np.int64))
    first = {
        SLOT: -1, TARGET: quantized, COUNT: rows, WIDTH: inputs, SOURCE_PITCH: 4 * inputs, TARGET_PITCH: pitch, GRIDS: grids,
        GRID_STRIDE: stride, PER_ROW: int(per_row), QMAX: float_bits(qmax), SMALLEST: float_bits(scale.min()), LARGEST: float_bits(scale.max()),
    }  # fmt: skip
    second = {
        gemm.X: quantized, gemm.W: keep(packed.weight), gemm.BIAS: keep(packed.bias), gemm.FACTOR: keep(packed.factor), gemm.SUMS: keep(packed.sums),
        gemm.ROWS: rows, gemm.OUTPUTS: packed.outputs, gemm.BLOCKS: packed.blocks, gemm.STEPS: packed.run_steps, gemm.RUNS: 1,
        gemm.RUN_STEPS: packed.run_steps, gemm.RUN_OFFSETS: keep(np.zeros(1, np.int32)), gemm.X_OFFSETS: keep((np.arange(rows) * pitch).astype(np.int32)),
        gemm.Y_OFFSETS: stride, gemm.CHUNK: gemm.chunk_rows(rows, inputs), gemm.ROW_GRIDS: grids,
        gemm.PAST: gemm.goes_past(4 * rows * packed.outputs, packed.outputs), RELU: int(relu), Y_PITCH: 4 * packed.outputs, Y_SLOT: -1,
    }  # fmt: skip
    return first, second
