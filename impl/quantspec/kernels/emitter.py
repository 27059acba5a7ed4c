"""Vectors of sixteen lanes as LLVM instructions, and memory by address: what the kernels are made of.

Addresses are int64 everywhere. An ``Emitter`` is LLVM's builder with the kernels' vocabulary. The body of a loop is a function from values before to values
after, so that what is carried from one round to the next stays in registers.
"""

import struct
from collections.abc import Callable

from llvmlite import ir

from . import cpu

LANES = 16
I1, I8, I16, I32, I64, F32, F64 = ir.IntType(1), ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.DoubleType()
BYTES, SHORTS, INTS, FLOATS, DOUBLES = (ir.VectorType(t, LANES) for t in (I8, I16, I32, F32, F64))
MAGIC, MAGIC_BITS = 12582912.0, 0x4B400000  # 1.5 * 2^23: adding it rounds to an integer, ties to even, which the low bits then hold


class Emitter(ir.IRBuilder):
    """LLVM's builder with the kernels' vocabulary. A ``vector`` has 16 lanes; ``splat`` fills one."""

    def at(self, address, kind):
        """The address as a pointer to ``kind``."""
        return self.inttoptr(address, kind.as_pointer())

    def read(self, address, kind, align: int = 1):
        value = self.load(self.at(address, kind))
        value.align = align
        return value

    def write(self, value, address, align: int = 1):
        stored = self.store(value, self.at(address, value.type))
        stored.align = align
        return stored

    def field(self, op, index: int, kind=I64):
        """Entry ``index`` of an instruction, whose entries are 8 bytes apart."""
        return self.read(self.add(op, I64(8 * index)), kind, 8)

    def splat(self, value, kind=None):
        """All lanes with a scalar value, or a Python number of ``kind``."""
        if not isinstance(value, ir.Value):
            return ir.Constant(kind, [value] * LANES)
        return self.splat_to(value, ir.VectorType(value.type, LANES))

    def splat_to(self, value, vector):
        """All lanes of a vector of any length with a scalar value."""
        first = self.insert_element(ir.Constant(vector, ir.Undefined), value, I32(0))
        return self.shuffle_vector(first, first, ir.Constant(ir.VectorType(I32, vector.count), [0] * vector.count))

    def any(self, mask):
        """Whether any lane is set."""
        bits = ir.IntType(mask.type.count)
        return self.icmp_unsigned("!=", self.bitcast(mask, bits), bits(0))

    def lower(self, vector):
        """The first half of the lanes."""
        return self.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(I32, LANES // 2), list(range(LANES // 2))))

    def widened(self, vector):
        """A vector of half the lanes with zeros behind them."""
        zeros = ir.Constant(vector.type, [0] * (LANES // 2))
        return self.shuffle_vector(vector, zeros, ir.Constant(INTS, list(range(LANES))))

    def native(self, name: str, kind, *args):
        """A call of an LLVM intrinsic or an external function."""
        known = self.module.globals.get(name)
        function = known or ir.Function(self.module, ir.FunctionType(kind, [a.type for a in args]), name)
        return self.call(function, args)

    def dot(self, total, x, w):
        """``total`` + the sum over four neighbouring bytes of unsigned ``x`` by signed ``w``, int32 lanes, exact (wraps). Half the lanes only if there are halves."""
        if total.type.count == LANES // 2:
            return self.native("llvm.x86.avx512.vpdpbusd.256", total.type, total, x, w)
        if cpu.target().dot_lanes == LANES:
            return self.native("llvm.x86.avx512.vpdpbusd.512", INTS, total, x, w)
        if cpu.target().dot_lanes == 8:
            halves = []
            for start in (0, 8):
                pick = ir.Constant(ir.VectorType(I32, 8), list(range(start, start + 8)))
                parts = [self.shuffle_vector(v, v, pick) for v in (total, x, w)]
                halves.append(self.native("llvm.x86.avx512.vpdpbusd.256", parts[0].type, *parts))
            return self.shuffle_vector(*halves, ir.Constant(INTS, list(range(LANES))))
        # Even and odd bytes as 16-bit pairs, whose products are added in 32 bits.
        short = ir.VectorType(I16, 2 * LANES)
        eight = ir.Constant(short, [8] * 2 * LANES)
        x, w = self.bitcast(x, short), self.bitcast(w, short)
        even = self.pairs(self.and_(x, ir.Constant(short, [255] * 2 * LANES)), self.ashr(self.shl(w, eight), eight))
        return self.add(total, self.add(even, self.pairs(self.lshr(x, eight), self.ashr(w, eight))))

    def pairs(self, a, b):
        """Sums of two neighbouring products of 16-bit lanes, in 32 bits. LLVM knows this form as one instruction where there is one."""
        wide = ir.VectorType(I32, 2 * LANES)
        products = self.mul(self.sext(a, wide), self.sext(b, wide))
        even, odd = (self.shuffle_vector(products, products, ir.Constant(INTS, list(range(i, 2 * LANES, 2)))) for i in (0, 1))
        return self.add(even, odd)

    def prefetch(self, address):
        """The line at an address to the second-level cache; any address will do."""
        self.native("llvm.prefetch.p0", ir.VoidType(), self.inttoptr(address, ir.PointerType(I8)), I32(0), I32(2), I32(1))

    def fma(self, a, b, c):
        """a * b + c, rounded once."""
        return self.native("llvm.fma.v16f32" if isinstance(a.type, ir.VectorType) else "llvm.fma.f32", a.type, a, b, c)

    def maximum(self, a, b):
        """The larger of two floats, lane by lane; ``b`` where ``a`` is NaN."""
        return self.select(self.fcmp_ordered(">", a, b), a, b)

    def minimum(self, a, b):
        """The smaller of two floats, lane by lane; ``b`` where ``a`` is NaN."""
        return self.select(self.fcmp_ordered("<", a, b), a, b)

    def rounded(self, steps):
        """Floats between -2^22 and 2^22 to the nearest int32, ties to even."""
        moved = self.fadd(steps, self.splat(MAGIC, FLOATS))
        return self.sub(self.bitcast(moved, INTS), self.splat(MAGIC_BITS, INTS))

    def to_int(self, value):
        """Floats to the nearest int32, ties to even, and -2^31 for what has none; where registers have 512 bits."""
        return self.native("llvm.x86.avx512.mask.cvtps2dq.512", INTS, value, self.splat(0, INTS), I16(-1), I32(4))

    def rounded_one(self, steps):
        """A float of at most 2^22 in size to the nearest int32, ties to even."""
        return self.sub(self.bitcast(self.fadd(steps, F32(MAGIC)), I32), I32(MAGIC_BITS))

    def mask(self, count):
        """The first ``count`` (int64) lanes."""
        return self.icmp_signed("<", ir.Constant(INTS, list(range(LANES))), self.splat(self.trunc(self.smaller(count, I64(LANES)), I32)))

    def smaller(self, a, b):
        """The smaller of two integers."""
        return self.select(self.icmp_signed("<", a, b), a, b)

    def write_some(self, value, address, mask):
        """The lanes of ``mask`` to memory."""
        suffix = {I8: "v16i8", I32: "v16i32", F32: "v16f32"}[value.type.element]
        pointer = self.at(address, value.type)
        kind = ir.VoidType()
        return self.native(f"llvm.masked.store.{suffix}.p0", kind, value, pointer, I32(1), mask)

    def read_some(self, address, kind, mask, other):
        """The lanes of ``mask`` from memory, those of ``other`` elsewhere."""
        suffix = {I8: "v16i8", I32: "v16i32", F32: "v16f32"}[kind.element]
        return self.native(f"llvm.masked.load.{suffix}.p0", kind, self.at(address, kind), I32(1), mask, other)

    def loop(self, count, carried: list, body: Callable) -> list:
        """``carried = body(i, carried)`` for i from 0 to ``count`` (int64); the last values. The body may not be run at all."""
        before = self.block
        head, inside, after = (self.append_basic_block(name) for name in ("head", "inside", "after"))
        self.branch(head)
        self.position_at_end(head)
        i = self.phi(I64)
        i.add_incoming(I64(0), before)
        values = [self.phi(v.type) for v in carried]
        for phi, value in zip(values, carried):
            phi.add_incoming(value, before)
        self.cbranch(self.icmp_signed("<", i, count), inside, after)
        self.position_at_end(inside)
        results = body(i, values)
        i.add_incoming(self.add(i, I64(1)), self.block)
        for phi, value in zip(values, results):
            phi.add_incoming(value, self.block)
        self.branch(head)
        self.position_at_end(after)
        return values


def function(module: ir.Module, name: str, arguments: int, write: Callable, *, public: bool = False) -> ir.Function:
    """The LLVM function ``name`` of int64 arguments, written by ``write(emit, *arguments)`` when the module has none of that name yet.

    Its value is what ``write`` gives, int64, or 0.
    """
    if known := module.globals.get(name):
        return known
    made = ir.Function(module, ir.FunctionType(I64, [I64] * arguments), name)
    made.linkage = "external" if public else "internal"
    made.attributes.add("noinline")
    emit = Emitter(made.append_basic_block("entry"))
    value = write(emit, *made.args)
    emit.ret(I64(0) if value is None else value)
    return made


def float_bits(value) -> int:
    """A float32 as the int64 entry of an instruction that holds its bits."""
    return struct.unpack("<i", struct.pack("<f", value))[0]
