"""Matrix products by pairs of bytes, where a CPU has vectors of 256 bits and no dot products of bytes.

It multiplies 32 unsigned bytes by signed ones and adds two products in 16 bits, which silently saturate, then those
sums in 32 bits. Here the unsigned bytes are the magnitudes of one operand, and the signed ones the other operand, its
bits turned where the first is negative; codes are taken less 128. No pair leaves 16 bits, whatever weights and codes
are (STA-PAIRS).

Of many rows, a panel's weights are rewritten for all rows of a chunk, 64 bytes for eight outputs of a step: which bits
are turned, and the magnitudes; behind them minus what codes of zero give, with which sums begin. Rows are read where
they lie: four rows by sixteen outputs fill sixteen registers.

Of few rows, the codes are: of a row two planes, magnitudes and what turns bits, and a number to begin with. Weights are
read where they lie: two rows by thirty-two outputs.
"""

from collections.abc import Callable

from llvmlite import ir

from .emitter import I8, I16, I32, I64, LANES, Body, Emitter, Value, function
from .gathered import gather
from .memory import row_pitch
from .product import PANEL, Product

GROUP = 24  # rows that are computed between two epilogues
ROWS, FEW_ROWS = (4, 1), (2, 1)  # of a function
CHUNK_BYTES = 2**19  # of rows, which are read again for each panel
MANY = 64  # rows from which on rewriting weights is quicker, as measured
AHEAD = 2048  # bytes from weights to those fetched beforehand
BESIDE = 64  # bytes behind the planes of a row
EIGHT, SHORTS, CODES = ir.VectorType(I32, 8), ir.VectorType(I16, 16), ir.VectorType(I8, 32)


def allowed() -> bool:
    """Whether this process may multiply so."""
    return True


def fits(product: Product) -> bool:
    """Whether it is quicker than products of 16-bit numbers: always."""
    return True


def row_bytes(product: Product) -> int:
    """Bytes of a row's inputs."""
    return 4 * product.steps


def prepare(product: Product) -> int:
    """Decides which operand is rewritten. Gives the bytes that takes: of a panel 64 for eight outputs of a step, and
    32 of sums to begin with; or those of a chunk's rows.
    """
    # A plane, and a vector behind it, twice.
    product.pitch = 2 * row_pitch(4 * product.steps + 32) + BESIDE if product.rows < MANY else 0
    return int(product.chunk * product.pitch) or 2 * PANEL * (64 * product.steps + 32)


def begin(emit: Emitter, product: Value) -> None:
    """Nothing has to be set up."""


def end(emit: Emitter) -> None:
    """Nor to be given back."""


def before_chunk(emit: Emitter, product: Value, start: Value, end: Value) -> None:
    """Codes as they are read, where rows are few."""
    with emit.if_then(emit.flag(product, Product.pitch)):
        emit.call(function(emit.module, "quantspec_magnitudes_of_codes", 3, rewrite_rows), [product, start, end])


def before_panel(emit: Emitter, product: Value, panel: Value, blocks: int) -> None:
    """Weights as they are read, and what sums begin with, where rows are many."""
    own = function(emit.module, f"quantspec_magnitudes_{blocks}", 2, rewrite_weights(blocks))
    with emit.if_then(emit.not_(emit.flag(product, Product.pitch))):
        emit.call(own, [product, panel])


def plane(emit: Emitter, product: Value) -> Value:
    """Bytes from one plane of a row to the other."""
    return emit.ashr(emit.sub(emit.field(product, Product.pitch), I64(BESIDE)), I64(1))


def rewrite_rows(emit: Emitter, product: Value, start: Value, end: Value) -> None:
    """Writes the planes of the rows of a chunk, and behind them what their products lack."""
    row_end, to_other = emit.shl(emit.field(product, Product.steps), I64(2)), plane(emit, product)

    def in_vectors(count: Value) -> Value:
        return emit.ashr(emit.add(count, I64(31)), I64(5))

    def run(near: Value, far: Value, nbytes: Value) -> None:
        def vector(n: Value) -> None:
            at = emit.shl(n, I64(5))
            code = emit.xor(emit.read(emit.add(near, at), CODES), ir.Constant(CODES, [-128] * 32))
            magnitude, turned = split(emit, code)
            goal = emit.add(far, at)
            emit.write(magnitude, goal)
            emit.write(turned, emit.add(goal, to_other))

        emit.each(in_vectors(nbytes), vector)

    def behind(row: Value) -> None:
        emit.write(ir.Constant(CODES, [0] * 32), emit.add(row, row_end))  # of which nothing is lacking

        def lacking(n: Value, carried: list[Value]) -> list[Value]:
            at = emit.add(row, emit.shl(n, I64(5)))
            turned = emit.read(emit.add(at, to_other), CODES, 32)
            return [emit.sub(carried[0], products(emit, emit.read(at, CODES, 32), turned))]

        total = emit.loop(in_vectors(row_end), [ir.Constant(EIGHT, [0] * 8)], lacking)[0]
        parts = [emit.extract_element(total, I32(i)) for i in range(8)]
        while len(parts) > 1:
            parts = [emit.add(a, b) for a, b in zip(parts[::2], parts[1::2])]
        emit.write(parts[0], emit.add(row, emit.shl(to_other, I64(1))), 4)

    gather(emit, product, start, end, run, behind)


def split(emit: Emitter, values: Value) -> tuple[Value, Value]:
    """Magnitudes of signed bytes, and the bits that negative ones turn."""
    negative = emit.icmp_signed("<", values, ir.Constant(CODES, [0] * 32))
    return emit.select(negative, emit.neg(values), values), emit.sext(negative, CODES)


def operands(emit: Emitter, weights: Value) -> tuple[Value, Value]:
    """Magnitudes of weights, and which bits of codes are turned that they multiply; codes less 128."""
    magnitude, turned = split(emit, weights)
    return magnitude, emit.xor(turned, ir.Constant(CODES, [-128] * 32))


def rewrite_weights(blocks: int) -> Body:
    """Writes the function that rewrites a panel's weights."""
    vectors = 2 * blocks

    def write(emit: Emitter, product: Value, panel: Value) -> None:
        steps, weights, buffer = emit.fields(product, Product.steps, Product.weight, Product.buffer)
        source = emit.add(weights, emit.mul(panel, emit.mul(steps, I64(64 * PANEL))))

        def step(k: Value, sums: list[Value]) -> list[Value]:
            near, far = (emit.add(base, emit.mul(k, I64(n * vectors))) for base, n in ((source, 32), (buffer, 64)))
            result = []
            for v, total in enumerate(sums):
                magnitude, turned = operands(emit, emit.read(emit.add(near, I64(32 * v)), CODES, 32))
                emit.write(turned, emit.add(far, I64(64 * v)), 64)
                emit.write(magnitude, emit.add(far, I64(64 * v + 32)), 32)
                result.append(emit.sub(total, products(emit, magnitude, turned)))
            return result

        sums = emit.loop(steps, [ir.Constant(EIGHT, [0] * 8)] * vectors, step)
        behind = emit.add(buffer, emit.mul(steps, I64(64 * vectors)))
        for v, total in enumerate(sums):
            emit.write(total, emit.add(behind, I64(32 * v)), 32)

    return write


def products(emit: Emitter, magnitudes: Value, codes: Value) -> Value:
    """Sums of four products each."""
    pairs = emit.native("llvm.x86.avx2.pmadd.ub.sw", SHORTS, magnitudes, codes)
    return emit.native("llvm.x86.avx2.pmadd.wd", EIGHT, pairs, ir.Constant(SHORTS, [1] * 16))


def four(emit: Emitter, address: Value) -> Value:
    """Four bytes, eight times."""
    return emit.bitcast(emit.splat_to(emit.read(address, I32), EIGHT), CODES)


def parts(emit: Emitter, product: Value) -> Value:
    """A panel is passed as a whole."""
    return I64(1)


def bundle(emit: Emitter, product: Value) -> Value:
    """One panel, whose weights may be written anew."""
    return I64(1)


def compute(
    emit: Emitter, product: Value, blocks: int, panel: Value, row: Value, first: Value, count: Value, part: Value
) -> Value:
    """The sums of ``count`` rows."""
    sums = emit.stack(ir.ArrayType(I32, GROUP * LANES * blocks), align=64)

    def cover(sizes: tuple[int, ...], kind: str, write: Callable[[int, int], Body], start: Value) -> None:
        def some(rows: int, at: Value) -> None:
            own = function(emit.module, f"quantspec_magnitudes_{kind}_{rows}_by_{blocks}", 4, write(rows, blocks))
            goal = emit.add(sums, emit.mul(at, I64(64 * blocks)))
            emit.call(own, [product, panel, emit.add(start, at), goal])

        emit.in_sizes(count, sizes, some)

    with emit.if_else(emit.flag(product, Product.pitch)) as (few, many):
        with few:
            cover(FEW_ROWS, "codes", of_planes, first)
        with many:
            cover(ROWS, "weights", of_weights, row)
    return sums


def of_planes(rows: int, blocks: int) -> Body:
    """Writes the function that computes the sums of some rows in planes, those from ``first`` of the chunk on."""
    vectors = 2 * blocks

    def write(emit: Emitter, product: Value, panel: Value, first: Value, sums: Value) -> None:
        steps, weights, buffer = emit.fields(product, Product.steps, Product.weight, Product.buffer)
        source = emit.add(weights, emit.mul(panel, emit.mul(steps, I64(64 * PANEL))))
        to_other, pitch = plane(emit, product), emit.field(product, Product.pitch)
        codes = [emit.add(buffer, emit.mul(emit.add(first, I64(i)), pitch)) for i in range(rows)]
        table = emit.add(emit.field(product, Product.sums), emit.mul(panel, I64(4 * LANES * PANEL)))
        begin = [emit.shl(emit.read(emit.add(table, I64(32 * v)), EIGHT, 32), emit.splat_to(I32(7), EIGHT))
                 for v in range(vectors)]  # fmt: skip
        totals = []
        for code in codes:
            lost = emit.splat_to(emit.read(emit.add(code, emit.shl(to_other, I64(1))), I32, 4), EIGHT)
            totals += [emit.add(start, lost) for start in begin]

        def step(k: Value, carried: list[Value]) -> list[Value]:
            w, totals = carried[0], list(carried[1:])
            places = [emit.add(code, emit.shl(k, I64(2))) for code in codes]
            operands = [(four(emit, place), four(emit, emit.add(place, to_other))) for place in places]
            for n in range(blocks):
                emit.prefetch(emit.add(w, I64(AHEAD + 64 * n)), near=True)
            for v in range(vectors):
                weight = emit.read(emit.add(w, I64(32 * v)), CODES, 32)
                for i, (magnitude, turned) in enumerate(operands):
                    found = products(emit, magnitude, emit.xor(weight, turned))
                    totals[vectors * i + v] = emit.add(totals[vectors * i + v], found)
            return [emit.add(w, I64(32 * vectors)), *totals]

        for n, total in enumerate(emit.loop(steps, [source, *totals], step)[1:]):
            emit.write(total, emit.add(sums, I64(32 * n)), 32)

    return write


def of_weights(rows: int, blocks: int) -> Body:
    """Writes the function that computes the sums of some rows by rewritten weights, sixteen outputs at a time."""

    def write(emit: Emitter, product: Value, panel: Value, row: Value, sums: Value) -> None:
        x, offsets, steps, run_steps, runs, run_offsets, buffer = emit.fields(
            product, Product.x, Product.x_offsets, Product.steps, Product.run_steps, Product.runs,
            Product.run_offsets, Product.buffer,
        )  # fmt: skip
        behind = emit.add(buffer, emit.mul(steps, I64(128 * blocks)))
        starts = [emit.add(x, emit.int_at(offsets, emit.add(row, I64(i)), 4)) for i in range(rows)]

        def block(j: Value) -> None:
            def run(index: Value, carried: list[Value]) -> list[Value]:
                offset = emit.int_at(run_offsets, index, 4)
                bases = [emit.add(start, offset) for start in starts]

                def step(k: Value, carried: list[Value]) -> list[Value]:
                    w, totals = carried[0], list(carried[1:])
                    codes = [four(emit, emit.add(base, emit.shl(k, I64(2)))) for base in bases]
                    for v in range(2):
                        turned = emit.read(emit.add(w, I64(64 * v)), CODES, 64)
                        magnitude = emit.read(emit.add(w, I64(64 * v + 32)), CODES, 32)
                        for i, code in enumerate(codes):
                            found = products(emit, magnitude, emit.xor(code, turned))
                            totals[2 * i + v] = emit.add(totals[2 * i + v], found)
                    return [emit.add(w, I64(128 * blocks)), *totals]

                return emit.loop(run_steps, carried, step)

            at = emit.shl(j, I64(6))
            begin = [emit.read(emit.add(behind, emit.add(at, I64(32 * v))), EIGHT, 32) for v in range(2)] * rows
            totals = emit.loop(runs, [emit.add(buffer, emit.shl(j, I64(7))), *begin], run)[1:]
            for i in range(rows):
                for v in range(2):
                    goal = emit.add(sums, emit.add(at, I64(64 * blocks * i + 32 * v)))
                    emit.write(totals[2 * i + v], goal, 32)

        emit.each(I64(blocks), block)

    return write
