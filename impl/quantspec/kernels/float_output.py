"""Layers of codes that give floats (STA-DIRECT): accumulator times unit, plus bias, each rounded (DIA-DYNAMIC, ``multiply-add``).

Their rows lie in an output of the program: those of a convolution position by position, each with all its channels.
"""

from llvmlite import ir

from . import depthwise, gemm, quantize
from .emitter import F32, FLOATS, I32, I64, INTS, LANES, Emitter

# Entries that products and depthwise kernels of codes have for sums and clamping.
REAL_BIAS, RELU, Y_SLOT = 19, 25, 26


class Real:
    """Makes floats of accumulators."""

    def __init__(self, emit: Emitter, op):
        self.emit = emit
        self.relu = emit.splat(emit.select(emit.icmp_signed("!=", emit.field(op, RELU), I64(0)), F32(0), F32(float("-inf"))))

    def __call__(self, total, factor, bias):
        emit = self.emit
        value = emit.fadd(emit.fmul(emit.sitofp(total, FLOATS), factor), bias)
        return emit.select(emit.fcmp_ordered("<", value, self.relu), self.relu, value)


def real_tile(rows: int, blocks: int, half: bool):
    """Writes the function that computes a tile."""

    def write(emit: Emitter, op, row, panel):
        first = emit.mul(panel, I64(LANES * gemm.PANEL))
        starts, factors, biases = (
            [emit.read(emit.add(emit.add(emit.field(op, entry), emit.shl(first, I64(2))), I64(64 * j)), kind, 64) for j in range(blocks)]
            for entry, kind in ((gemm.BIAS, INTS), (gemm.FACTOR, FLOATS), (REAL_BIAS, FLOATS))
        )
        totals = gemm.accumulate(emit, op, row, panel, rows, blocks, starts * rows, half)
        real, mask = Real(emit, op), emit.mask(emit.sub(emit.field(op, gemm.OUTPUTS), emit.add(first, I64(LANES * (blocks - 1)))))
        ys = gemm.addresses(emit, op, gemm.Y, gemm.Y_OFFSETS, row, rows, emit.shl(first, I64(2)))
        gemm.put_floats(emit, op, ys, lambda i, j: real(totals[i * blocks + j], factors[j], biases[j]), blocks, mask)

    return write


run_product = gemm.product("reals", real_tile)


def write_product_real(emit: Emitter, op, frame):
    """A product of codes to floats. Y is set from the slot; where a group's columns begin, the offsets of rows tell."""
    emit.write(quantize.slot(emit, op, frame, Y_SLOT), emit.add(op, I64(8 * gemm.Y)))
    run_product(emit, op, frame)


class Epilogue:
    """As ``depthwise.Epilogue``, for floats."""

    def __init__(self, emit: Emitter, op):
        self.emit, self.tables, self.real = emit, [emit.field(op, entry) for entry in (depthwise.BIAS, depthwise.FACTOR, REAL_BIAS)], Real(emit, op)

    def block(self, index, left) -> list:
        lanes = self.emit.mul(index, I64(4 * depthwise.WIDE))
        starts, self.factors, self.biases = (
            [self.emit.read(self.emit.add(base, self.emit.add(lanes, I64(64 * j))), kind) for j in range(4)]
            for base, kind in zip(self.tables, (INTS, FLOATS, FLOATS))
        )
        self.left = left
        return starts

    def put(self, totals: list, address) -> None:
        emit = self.emit
        values = [self.real(*parts) for parts in zip(totals, self.factors, self.biases)]
        for block, value in enumerate(in_order(emit, values)):
            emit.write_some(value, emit.add(address, I64(64 * block)), emit.mask(emit.sub(self.left, I64(LANES * block))))


def in_order(emit: Emitter, vectors: list) -> list:
    """Four vectors with channels as in ``depthwise.ORDER``, sixteen channels after sixteen: fours of lanes change places with vectors."""

    def picked(a, b, lanes: list[int]):
        return emit.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))

    result = []
    for block in range(4):
        lanes = [4 * block + i for i in range(4)]
        pairs = [picked(a, b, lanes + [LANES + lane for lane in lanes]) for a, b in zip(vectors[::2], vectors[1::2])]
        result.append(picked(*pairs, list(range(LANES))))
    return result


def write_depthwise_real(emit: Emitter, op, frame):
    """A depthwise convolution of codes to floats. Y is set from the slot."""
    emit.write(quantize.slot(emit, op, frame, Y_SLOT), emit.add(op, I64(8 * depthwise.Y)))
    depthwise.depthwise(None, Epilogue, 4)(emit, op, frame)
