"""Matrix products by pairs of bytes, where a CPU has vectors of 256 bits and no dot products of bytes.

It multiplies 32 unsigned bytes by signed ones and adds two products in 16 bits, which silently saturate, then those
sums in 32 bits. Here the unsigned bytes are the magnitudes of weights, and the signed ones are codes less 128, their
bits turned where a weight is negative: no pair leaves 16 bits, whatever weights and codes are (STA-PAIRS).

A panel's weights are rewritten for all rows of a chunk, 64 bytes for eight outputs of a step: which bits are turned,
and the magnitudes. Behind them is minus what codes of zero give, with which sums begin. Rows are read where they lie:
four rows by sixteen outputs fill sixteen registers.
"""

from llvmlite import ir

from .emitter import I8, I16, I32, I64, Body, Emitter, Function, Value, function
from .product import PANEL, Product

GROUP = 24  # rows that are computed between two epilogues
ROWS = 4, 1  # of a function
CHUNK_BYTES = 2**19  # of rows, which are read again for each panel
LEAST_ROWS = 8  # from which on rewriting weights pays, as measured
EIGHT, SHORTS, CODES = ir.VectorType(I32, 8), ir.VectorType(I16, 16), ir.VectorType(I8, 32)


def allowed() -> bool:
    """Whether this process may multiply so."""
    return True


def fits(product: Product) -> bool:
    """Whether there are rows enough to rewrite weights for."""
    return product.rows >= LEAST_ROWS


def row_bytes(product: Product) -> int:
    """Bytes of a row's inputs."""
    return 4 * product.steps


def buffer_bytes(product: Product) -> int:
    """Bytes of a panel: 64 for eight outputs of a step, and 32 of sums to begin with."""
    return 2 * PANEL * (64 * product.steps + 32)


def begin(emit: Emitter) -> None:
    """Nothing has to be set up."""


def end(emit: Emitter) -> None:
    """Nor to be given back."""


def before_chunk(emit: Emitter, product: Value, start: Value, end: Value) -> None:
    """Nothing: rows are read where they lie."""


def before_panel(emit: Emitter, product: Value, panel: Value, blocks: int) -> None:
    """Weights as they are read, and what sums begin with."""
    emit.call(function(emit.module, f"quantspec_magnitudes_{blocks}", 2, rewrite(blocks)), [product, panel])


def rewrite(blocks: int) -> Body:
    """Writes the function that rewrites a panel's weights."""
    vectors = 2 * blocks

    def write(emit: Emitter, product: Value, panel: Value) -> None:
        steps, weights, buffer = emit.fields(product, Product.steps, Product.weight, Product.buffer)
        source = emit.add(weights, emit.mul(panel, emit.mul(steps, I64(64 * PANEL))))

        def step(k: Value, sums: list[Value]) -> list[Value]:
            near, far = (emit.add(base, emit.mul(k, I64(n * vectors))) for base, n in ((source, 32), (buffer, 64)))
            result = []
            for v, total in enumerate(sums):
                weight = emit.read(emit.add(near, I64(32 * v)), CODES, 32)
                negative = emit.icmp_signed("<", weight, ir.Constant(CODES, [0] * 32))
                magnitude = emit.select(negative, emit.neg(weight), weight)
                turned = emit.xor(emit.sext(negative, CODES), ir.Constant(CODES, [-128] * 32))
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


def compute(
    emit: Emitter, product: Value, blocks: int, panel: Value, row: Value, first: Value, count: Value, sums: Value
) -> None:
    """The sums of ``count`` rows."""
    done = I64(0)
    for rows in ROWS:
        own = function(emit.module, f"quantspec_magnitudes_{rows}_by_{blocks}", 3, by_rows(rows, blocks))
        times = emit.sdiv(emit.sub(count, done), I64(rows))

        def some(index: Value, rows: int = rows, own: Function = own, done: Value = done) -> None:
            at = emit.add(done, emit.mul(index, I64(rows)))
            emit.call(own, [product, emit.add(row, at), emit.add(sums, emit.mul(at, I64(64 * blocks)))])

        emit.each(times, some)
        done = emit.add(done, emit.mul(times, I64(rows)))


def by_rows(rows: int, blocks: int) -> Body:
    """Writes the function that computes the sums of some rows, sixteen outputs at a time."""

    def write(emit: Emitter, product: Value, row: Value, sums: Value) -> None:
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
                    fours = [emit.read(emit.add(base, emit.shl(k, I64(2))), I32) for base in bases]
                    codes = [emit.bitcast(emit.splat_to(four, EIGHT), CODES) for four in fours]
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
