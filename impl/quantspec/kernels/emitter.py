"""Vectors of sixteen lanes as LLVM instructions, and memory by address: what the kernels are made of.

Addresses are int64 everywhere. An ``Emitter`` is LLVM's builder with the kernels' vocabulary. The body of a loop is a
function from values before to values after, so that what is carried from one round to the next stays in registers.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from llvmlite import ir

from . import cpu
from .records import Entry, Float

# llvmlite has no types of its own: to a type checker these are Any, to a reader what they say.
Value: TypeAlias = ir.Value
Block: TypeAlias = ir.Block
Type: TypeAlias = ir.Type
Vector: TypeAlias = ir.VectorType
Function: TypeAlias = ir.Function
Body: TypeAlias = Callable[..., Value | None]  # what writes a function: of an emitter and the function's arguments

LANES = 16
I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F32, F64 = ir.FloatType(), ir.DoubleType()
BYTES, SHORTS, INTS, FLOATS, DOUBLES = (ir.VectorType(kind, LANES) for kind in (I8, I16, I32, F32, F64))
NO_LANES = ir.Constant(ir.VectorType(I1, LANES), [0] * LANES)  # a mask
# 1.5 * 2^23: adding it rounds to an integer, ties to even, which the low bits then hold.
MAGIC, MAGIC_BITS = 12582912.0, 0x4B400000


class Emitter(ir.IRBuilder):  # type: ignore[misc]  # llvmlite has no types
    """LLVM's builder with the kernels' vocabulary. A ``vector`` has 16 lanes; ``splat`` fills one.

    Memory is read and written through ``at`` and ``lines``, and nowhere else but on the stack and in Python's own
    objects: the tests compile kernels with an emitter that checks there what is touched.
    """

    def at(self, address: Value, kind: Type, *, mask: Value | None = None, writes: bool = False) -> Value:
        """The address as a pointer to a ``kind`` that is about to be read, or written to as well; of a vector's lanes
        only those of the mask."""
        return self.inttoptr(address, kind.as_pointer())

    def lines(self, address: Value, stride: Value, count: int, *, writes: bool = False) -> Value:
        """The address as a pointer to the first of ``count`` lines of 64 bytes, ``stride`` bytes apart."""
        return self.inttoptr(address, ir.PointerType(I8))

    def alloca(self, kind: Type, *args: Any, **kwargs: Any) -> Value:
        """A pointer to memory until the function ends, which is taken once, also where the place in the code is passed
        many times."""
        with self.goto_entry_block():
            return super().alloca(kind, *args, **kwargs)

    def stack(self, kind: Type, align: int | None = None) -> Value:
        """The address of memory for a ``kind`` until the function ends."""
        memory = self.alloca(kind)
        memory.align = align
        return self.ptrtoint(memory, I64)

    def read(self, address: Value, kind: Type, align: int = 1) -> Value:
        value = self.load(self.at(address, kind))
        value.align = align
        return value

    def write(self, value: Value, address: Value, align: int = 1) -> Value:
        stored = self.store(value, self.at(address, value.type, writes=True))
        stored.align = align
        return stored

    def place(self, record: Value, entry: Entry) -> Value:
        """Where an entry of the record at an address lies."""
        return self.add(record, I64(8 * entry.index))

    def field(self, record: Value, entry: Entry) -> Value:
        """An entry of the record at an address: int64, or float32 where it is a ``Float``."""
        return self.read(self.place(record, entry), F32 if isinstance(entry, Float) else I64, 8)

    def fields(self, record: Value, *entries: Entry) -> list[Value]:
        """Several entries of a record."""
        return [self.field(record, entry) for entry in entries]

    def put_field(self, record: Value, entry: Entry, value: Value) -> None:
        """Writes an entry of the record at an address."""
        self.write(value, self.place(record, entry))

    def flag(self, record: Value, entry: Entry) -> Value:
        """Whether an entry is not 0."""
        return self.icmp_signed("!=", self.read(self.place(record, entry), I64, 8), I64(0))

    def splat_fields(self, record: Value, *entries: Entry) -> list[Value]:
        """Vectors of entries, int32 or float32."""
        fields = zip(entries, self.fields(record, *entries))
        return [self.splat(value if isinstance(entry, Float) else self.trunc(value, I32)) for entry, value in fields]

    def item(self, address: Value, index: Value) -> Value:
        """An int64 of an array, by its number."""
        return self.read(self.add(address, self.shl(index, I64(3))), I64, 8)

    def int_at(self, table: Value, index: Value, align: int = 1) -> Value:
        """An int32 of a table, by its number, as int64."""
        return self.sext(self.read(self.add(table, self.shl(index, I64(2))), I32, align), I64)

    def splat(self, value: Value, kind: Type | None = None) -> Value:
        """All lanes with a scalar value, or a Python number of ``kind``."""
        if not isinstance(value, ir.Value):
            return ir.Constant(kind, [value] * LANES)
        return self.splat_to(value, ir.VectorType(value.type, LANES))

    def splat_to(self, value: Value, vector: Vector) -> Value:
        """All lanes of a vector of any length with a scalar value."""
        first = self.insert_element(ir.Constant(vector, ir.Undefined), value, I32(0))
        return self.shuffle_vector(first, first, ir.Constant(ir.VectorType(I32, vector.count), [0] * vector.count))

    def any(self, mask: Value) -> Value:
        """Whether any lane is set."""
        bits = ir.IntType(mask.type.count)
        return self.icmp_unsigned("!=", self.bitcast(mask, bits), bits(0))

    def lower(self, vector: Value) -> Value:
        """The first half of the lanes."""
        return self.parts(vector)[0]

    def parts(self, vector: Value) -> tuple[Value, Value]:
        """The first and the second half of the lanes."""
        half = vector.type.count // 2
        orders = (ir.Constant(ir.VectorType(I32, half), list(range(start, start + half))) for start in (0, half))
        first, second = (self.shuffle_vector(vector, vector, order) for order in orders)
        return first, second

    def joined(self, first: Value, second: Value) -> Value:
        """A vector of all lanes of two."""
        count = 2 * first.type.count
        return self.shuffle_vector(first, second, ir.Constant(ir.VectorType(I32, count), list(range(count))))

    def widened(self, vector: Value) -> Value:
        """A vector of half the lanes with zeros behind them."""
        return self.joined(vector, ir.Constant(vector.type, [0] * (LANES // 2)))

    def packed(self, a: Value, b: Value) -> Value:
        """The lanes of two vectors, the first 128 bits of ``a``, those of ``b``, the second of ``a`` and so on, in half
        their width: int32 as int16, int16 as uint8 that saturate, where the CPU packs such lanes.
        """
        width = a.type.element.width
        if a.type.count * width == 512 and cpu.target().packed_lanes != LANES:
            return self.joined(*map(self.packed, self.parts(a), self.parts(b)))
        name, kind = {32: "packssdw", 16: "packuswb"}[width], ir.VectorType(ir.IntType(width // 2), 2 * a.type.count)
        wide = a.type.count * width == 512
        return self.native(f"llvm.x86.avx512.{name}.512" if wide else f"llvm.x86.avx2.{name}", kind, a, b)

    def native(self, name: str, kind: Type, *args: Value) -> Value:
        """A call of an LLVM intrinsic or an external function."""
        existing = self.module.globals.get(name)
        function = existing or ir.Function(self.module, ir.FunctionType(kind, [a.type for a in args]), name)
        return self.call(function, args)

    def at_address(self, address: Value, kind: Type, *args: Value) -> Value:
        """A call of an external function of that result, by its address."""
        function = ir.FunctionType(kind, [a.type for a in args])
        return self.call(self.inttoptr(address, function.as_pointer()), args)

    def dot(self, total: Value, x: Value, w: Value) -> Value:
        """``total`` + the sum over four neighbouring bytes of unsigned ``x`` by signed ``w``, int32 lanes, exact
        (wraps).

        Vectors have half the lanes only on a CPU that has such halves.
        """
        if total.type.count == LANES // 2:
            return self.native("llvm.x86.avx512.vpdpbusd.256", total.type, total, x, w)
        if cpu.target().dot_lanes == LANES:
            return self.native("llvm.x86.avx512.vpdpbusd.512", INTS, total, x, w)
        if cpu.target().dot_lanes == 8:
            halves = zip(*(self.parts(v) for v in (total, x, w)))
            return self.joined(*(self.native("llvm.x86.avx512.vpdpbusd.256", v[0].type, *v) for v in halves))
        # Even and odd bytes as 16-bit pairs, whose products are added in 32 bits.
        short = ir.VectorType(I16, 2 * LANES)
        eight = ir.Constant(short, [8] * 2 * LANES)
        x, w = self.bitcast(x, short), self.bitcast(w, short)
        even = self.pairs(self.and_(x, ir.Constant(short, [255] * 2 * LANES)), self.ashr(self.shl(w, eight), eight))
        return self.add(total, self.add(even, self.pairs(self.lshr(x, eight), self.ashr(w, eight))))

    def pairs(self, a: Value, b: Value) -> Value:
        """Sums of two neighbouring products of 16-bit lanes, in 32 bits: where the CPU has an instruction for it,
        LLVM sees it in this form.
        """
        wide = ir.VectorType(I32, 2 * LANES)
        products = self.mul(self.sext(a, wide), self.sext(b, wide))
        orders = (ir.Constant(INTS, list(range(start, 2 * LANES, 2))) for start in (0, 1))
        even, odd = (self.shuffle_vector(products, products, order) for order in orders)
        return self.add(even, odd)

    def constant(self, name: str, content: bytes, start: Value) -> Value:
        """A pointer to the byte ``start`` (int64) of bytes that are part of the code, on a cache line."""
        held = self.module.globals.get(name)
        if held is None:
            held = ir.GlobalVariable(self.module, ir.ArrayType(I8, len(content)), name)
            held.linkage, held.global_constant, held.align = "internal", True, 64
            held.initializer = ir.Constant(held.value_type, bytearray(content))
        return self.gep(held, [I64(0), start])

    def prefetch(self, address: Value, *, near: bool = False) -> None:
        """The line at an address to the second-level cache, or to the first; any address will do."""
        pointer = self.inttoptr(address, ir.PointerType(I8))
        self.native("llvm.prefetch.p0", ir.VoidType(), pointer, I32(0), I32(3 if near else 2), I32(1))

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """a * b + c, rounded once."""
        name = "llvm.fma.v16f32" if isinstance(a.type, ir.VectorType) else "llvm.fma.f32"
        return self.native(name, a.type, a, b, c)

    def maximum(self, a: Value, b: Value) -> Value:
        """The larger of two floats, lane by lane; ``b`` where ``a`` is NaN."""
        return self.select(self.fcmp_ordered(">", a, b), a, b)

    def minimum(self, a: Value, b: Value) -> Value:
        """The smaller of two floats, lane by lane; ``b`` where ``a`` is NaN."""
        return self.select(self.fcmp_ordered("<", a, b), a, b)

    def magnitude(self, x: Value) -> Value:
        """A vector of floats without their signs."""
        name = "llvm.fabs.v16f64" if x.type == DOUBLES else "llvm.fabs.v16f32"
        return self.native(name, x.type, x)

    def integral(self, x: Value) -> Value:
        """A vector of floats, each the nearest integer, ties to even."""
        name = "llvm.rint.v16f64" if x.type == DOUBLES else "llvm.rint.v16f32"
        return self.native(name, x.type, x)

    def folded(self, vector: Value, pick: Callable[[Value, Value], Value]) -> Value:
        """One value of all lanes, made of two by ``pick``."""
        lanes = LANES
        while lanes > 1:
            lanes //= 2
            other = ir.Constant(INTS, [(i + lanes) % LANES for i in range(LANES)])
            vector = pick(self.shuffle_vector(vector, vector, other), vector)
        return self.extract_element(vector, I32(0))

    def largest_size(self, count: Value, floats: Callable[[Value], Value]) -> Value:
        """For each lane the bits of the largest magnitude among ``floats(n)``, n from 0 to ``count`` (int64): as
        integers they are in the order of magnitudes, NaN last.
        """
        magnitude = self.splat(0x7FFFFFFF, INTS)

        def larger(n: Value, carried: list[Value]) -> list[Value]:
            size = self.and_(self.bitcast(floats(n), INTS), magnitude)
            return [self.select(self.icmp_signed(">", size, carried[0]), size, carried[0])]

        return self.loop(count, [self.splat(0, INTS)], larger)[0]

    def with_nearest(self, steps: Value) -> Value:
        """Floats between -2^22 and 2^22 as others whose bits end with those of the nearest int32, ties to even, of
        which that is how far they are from ``MAGIC``.
        """
        return self.fadd(steps, self.splat(MAGIC, FLOATS))

    def rounded(self, steps: Value) -> Value:
        """Floats between -2^22 and 2^22 to the nearest int32, ties to even."""
        return self.sub(self.bitcast(self.with_nearest(steps), INTS), self.splat(MAGIC_BITS, INTS))

    def to_int(self, value: Value) -> Value:
        """Floats to the nearest int32, ties to even, and -2^31 for what has none, where the CPU packs such lanes."""
        if cpu.target().packed_lanes == LANES:
            return self.native("llvm.x86.avx512.mask.cvtps2dq.512", INTS, value, self.splat(0, INTS), I16(-1), I32(4))
        half = ir.VectorType(I32, LANES // 2)
        return self.joined(*(self.native("llvm.x86.avx.cvt.ps2dq.256", half, part) for part in self.parts(value)))

    def rounded_one(self, steps: Value) -> Value:
        """A float of at most 2^22 in size to the nearest int32, ties to even."""
        return self.sub(self.bitcast(self.fadd(steps, F32(MAGIC)), I32), I32(MAGIC_BITS))

    def mask(self, count: Value) -> Value:
        """The first ``count`` (int64) lanes."""
        limit = self.splat(self.trunc(self.smaller(count, I64(LANES)), I32))
        return self.icmp_signed("<", ir.Constant(INTS, list(range(LANES))), limit)

    def vectors_of(self, count: Value) -> Value:
        """How many vectors hold so many (int64) lanes."""
        return self.ashr(self.add(count, I64(LANES - 1)), I64(4))

    def smaller(self, a: Value, b: Value) -> Value:
        """The smaller of two integers."""
        return self.select(self.icmp_signed("<", a, b), a, b)

    def write_some(self, value: Value, address: Value, mask: Value | None) -> None:
        """The lanes of ``mask`` to memory, None for all."""
        if mask is None:
            self.write(value, address)
            return
        suffix = {I8: "v16i8", I32: "v16i32", F32: "v16f32"}[value.type.element]

        def masked() -> None:
            pointer = self.at(address, value.type, mask=mask, writes=True)
            self.native(f"llvm.masked.store.{suffix}.p0", ir.VoidType(), value, pointer, I32(1), mask)

        self.whole_or(mask, masked, lambda: self.write(value, address))

    def whole_or(self, mask: Value, some: Callable[[], object], every: Callable[[], object]) -> None:
        """``every()`` where all lanes of a mask are set, otherwise ``some()``, which is right in both cases.

        No instruction of a CPU with vectors of 256 bits at most writes some bytes: each is then written by itself, if
        its lane is set. Some such CPUs take tens of operations to write some floats.
        """
        if not cpu.target().has_pairs:
            some()
            return
        with self.if_else(self.any(self.not_(mask))) as (part, whole):
            with part:
                some()
            with whole:
                every()

    def read_some(self, address: Value, kind: Vector, mask: Value | None, other: Value) -> Value:
        """The lanes of ``mask`` from memory, None for all; those of ``other`` elsewhere."""
        if mask is None:
            return self.read(address, kind)
        suffix = {I8: "v16i8", I32: "v16i32", F32: "v16f32"}[kind.element]
        pointer = self.at(address, kind, mask=mask)
        return self.native(f"llvm.masked.load.{suffix}.p0", kind, pointer, I32(1), mask, other)

    def write_past(self, value: Value, address: Value) -> None:
        """A whole cache line past the caches."""
        self.write(value, address, 64).set_metadata("nontemporal", self.module.add_metadata([I32(1)]))

    def loop(
        self, count: Value, carried: Sequence[Value], body: Callable[[Value, list[Value]], Sequence[Value]]
    ) -> list[Value]:
        """``carried = body(i, carried)`` for i from 0 to ``count`` (int64); the last values.

        The body may not be run at all.
        """
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

    def each(self, count: Value, body: Callable[[Value], None]) -> None:
        """``body(i)`` for i from 0 to ``count`` (int64)."""

        def carrying_nothing(i: Value, carried: list[Value]) -> list[Value]:
            body(i)
            return carried

        self.loop(count, [], carrying_nothing)

    def in_sizes(self, count: Value, sizes: Sequence[int], body: Callable[[int, Value], None]) -> None:
        """Covers ``count`` (int64) by ``body(size, start)``, as many of each size as fit, one after the other."""
        done: Value = I64(0)
        for size in sizes:
            times = self.sdiv(self.sub(count, done), I64(size))

            def one(i: Value, size: int = size, done: Value = done) -> None:
                body(size, self.add(done, self.mul(i, I64(size))))

            self.each(times, one)
            done = self.add(done, self.mul(times, I64(size)))

    def any_of(self, count: Value, body: Callable[[Value], Value]) -> Value:
        """The bits of ``body(i)`` (int64) for i from 0 to ``count``, all of them together."""
        return self.loop(count, [I64(0)], lambda i, carried: [self.or_(carried[0], body(i))])[0]

    def if_any(self, condition: Value, body: Callable[[], Value], *, likely: bool | None = None) -> Value:
        """``body()`` (int64) where a condition holds, otherwise 0."""
        before = self.block
        with self.if_then(condition, likely=likely):
            found, inside = body(), self.block
        result = self.phi(I64)
        result.add_incoming(I64(0), before)
        result.add_incoming(found, inside)
        return result


class Module(ir.Module):  # type: ignore[misc]  # llvmlite has no types
    """A module whose functions are written by an ``emitter``."""

    def __init__(self, name: str, emitter: type[Emitter] = Emitter):
        super().__init__(name)
        self.emitter = emitter


def function(module: Module, name: str, arguments: int, write: Body, *, public: bool = False) -> Function:
    """The LLVM function ``name`` of int64 arguments, written by ``write(emit, *arguments)`` when the module has none
    of that name yet.

    Its value is what ``write`` gives, int64, or 0.
    """
    if existing := module.globals.get(name):
        return existing
    written = ir.Function(module, ir.FunctionType(I64, [I64] * arguments), name)
    written.linkage = "external" if public else "internal"
    written.attributes.add("noinline")
    emit = module.emitter(written.append_basic_block("entry"))
    value = write(emit, *written.args)
    emit.ret(I64(0) if value is None else value)
    return written
