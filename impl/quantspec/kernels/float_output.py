"""Layers of codes that give floats (STA-DIRECT): accumulator times unit, plus bias, each rounded (DIA-DYNAMIC,
``multiply-add``).

Their rows lie in an output of the program: those of a convolution position by position, each with all its channels.
"""

from functools import partial

from llvmlite import ir

from . import depthwise, gemm
from .emitter import F32, FLOATS, I32, I64, INTS, LANES, Body, Emitter, Value
from .frame import slot_address
from .jit import Kernel
from .product import PANEL, Product, ProductToFloats
from .records import Address, Entry, Integer, Slot


class ProductFloats(ProductToFloats):
    """Accumulators begin with ``bias``, the code of zero taken off; ``float_bias`` is added to the floats, which begin
    ``y_ahead`` bytes behind the start of the output.
    """

    y_offsets: Address
    float_bias: Address
    y_ahead: Integer = Integer()


class ProductSum(ProductFloats):
    """To them other floats are added, which lie as the outputs do, from ``b``, which is set from ``b_slot``, on."""

    b_slot: Slot
    b: Address = Address()


class DepthwiseFloats(depthwise.DepthwiseInstruction):
    """The same, every channel on its own."""

    float_bias: Address
    taps: Address
    relu: Integer
    slot: Slot


class ToFloat:
    """Makes floats of accumulators."""

    def __init__(self, emit: Emitter, op: Value, relu: Entry):
        self.emit = emit
        self.least = emit.splat(emit.select(emit.flag(op, relu), F32(0), F32(float("-inf"))))

    def __call__(self, total: Value, factor: Value, bias: Value) -> Value:
        emit = self.emit
        value = emit.fadd(emit.fmul(emit.sitofp(total, FLOATS), factor), bias)
        return emit.select(emit.fcmp_ordered("<", value, self.least), self.least, value)


def float_tile(rows: int, blocks: int, half: bool, *, adds: bool = False) -> Body:
    """Writes the function that computes a tile; ``adds``: of a ``ProductSum``."""

    def write(emit: Emitter, op: Value, row: Value, panel: Value, sums: Value | None = None) -> None:
        product = emit.place(op, ProductFloats.product)
        first, offsets = emit.mul(panel, I64(4 * LANES * PANEL)), emit.field(op, ProductFloats.y_offsets)
        ys = gemm.addresses(emit, emit.add(emit.field(product, Product.y), first), offsets, row, rows)
        others = gemm.addresses(emit, emit.add(emit.field(op, ProductSum.b), first), offsets, row, rows) if adds else []
        if sums is None:
            with emit.if_then(emit.not_(emit.flag(op, ProductFloats.past))):
                gemm.fetch(emit, ys, blocks)
            gemm.fetch(emit, others, blocks)
        starts = gemm.by_lanes(emit, product, Product.bias, panel, blocks, INTS)
        factors = gemm.by_lanes(emit, product, Product.factor, panel, blocks, FLOATS)
        biases = gemm.by_lanes(emit, op, ProductFloats.float_bias, panel, blocks, FLOATS)
        totals = gemm.accumulate(emit, product, row, panel, rows, blocks, starts * rows, half, sums)
        to_float, mask = ToFloat(emit, op, ProductFloats.relu), gemm.last_mask(emit, product, panel, blocks)
        zeros = emit.splat(0.0, FLOATS)

        def value(i: int, j: int) -> Value:
            own = to_float(totals[i * blocks + j], factors[j], biases[j])
            if not adds:
                return own
            address = emit.add(others[i], I64(64 * j))
            last = j == blocks - 1
            return emit.fadd(own, emit.read_some(address, FLOATS, mask, zeros) if last else emit.read(address, FLOATS))

        gemm.put_floats(emit, op, ys, value, blocks, mask)

    return write


run_product = gemm.product("floats", float_tile)
run_sum = gemm.product("floats_sum", partial(float_tile, adds=True))


def write_product(emit: Emitter, op: Value, frame: Value) -> None:
    """A product of codes to floats.

    ``y`` is set from the slot; where a group's columns begin, the offsets of rows tell.
    """
    set_outputs(emit, op, frame)
    run_product(emit, op, frame)


def set_outputs(emit: Emitter, op: Value, frame: Value) -> None:
    """Where the outputs begin."""
    product, slot = emit.place(op, ProductFloats.product), emit.field(op, ProductFloats.slot)
    y = emit.add(slot_address(emit, frame, slot), emit.field(op, ProductFloats.y_ahead))
    emit.put_field(product, Product.y, y)


def write_sum(emit: Emitter, op: Value, frame: Value) -> None:
    """A product of codes to floats, and others added to them."""
    set_outputs(emit, op, frame)
    slot, ahead = emit.fields(op, ProductSum.b_slot, ProductSum.y_ahead)
    emit.put_field(op, ProductSum.b, emit.add(slot_address(emit, frame, slot), ahead))
    run_sum(emit, op, frame)


class ToFloats:
    """What makes floats of a block of channels that are each on their own (``depthwise.Epilogue``)."""

    def __init__(self, emit: Emitter, op: Value):
        self.emit, self.to_float = emit, ToFloat(emit, op, DepthwiseFloats.relu)
        layer = emit.place(op, DepthwiseFloats.layer)
        self.bias, self.factor = emit.fields(layer, depthwise.Depthwise.bias, depthwise.Depthwise.factor)
        self.float_bias = emit.field(op, DepthwiseFloats.float_bias)

    def block(self, index: Value, left: Value) -> list[Value]:
        tables = (self.bias, INTS), (self.factor, FLOATS), (self.float_bias, FLOATS)
        starts, self.factors, self.biases = (
            depthwise.by_lanes(self.emit, table, index, kind) for table, kind in tables
        )
        self.left = left
        return starts

    def put(self, totals: list[Value], address: Value) -> None:
        emit = self.emit
        values = [self.to_float(*parts) for parts in zip(totals, self.factors, self.biases)]
        for block, value in enumerate(in_order(emit, values)):
            mask = emit.mask(emit.sub(self.left, I64(LANES * block)))
            emit.write_some(value, emit.add(address, I64(64 * block)), mask)


def in_order(emit: Emitter, vectors: list[Value]) -> list[Value]:
    """Four vectors with channels as in ``depthwise.ORDER``, sixteen channels after sixteen: fours of lanes change
    places with vectors.
    """

    def picked(a: Value, b: Value, lanes: list[int]) -> Value:
        return emit.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))

    result = []
    for block in range(4):
        lanes = [4 * block + i for i in range(4)]
        both = lanes + [LANES + lane for lane in lanes]
        low, high = (picked(a, b, both) for a, b in zip(vectors[::2], vectors[1::2]))
        result.append(picked(low, high, list(range(LANES))))
    return result


run_depthwise = depthwise.depthwise(None, DepthwiseFloats.taps, ToFloats, 4)


def write_depthwise(emit: Emitter, op: Value, frame: Value) -> None:
    """A depthwise convolution of codes to floats. ``y`` is set from the slot."""
    layer = emit.place(op, DepthwiseFloats.layer)
    emit.put_field(layer, depthwise.Depthwise.y, slot_address(emit, frame, emit.field(op, DepthwiseFloats.slot)))
    run_depthwise(emit, op, frame)


PRODUCT = Kernel("product_floats", ProductFloats, write_product)
SUM = Kernel("product_floats_sum", ProductSum, write_sum)
DEPTHWISE = Kernel("depthwise_floats", DepthwiseFloats, write_depthwise)
