"""Matrix products in pairs of bytes, where a CPU has vectors of 256 bits and no dot products of bytes.

It multiplies 32 bytes and adds two products in 16 bits, and those sums in pairs in 32 bits: three operations with the
last addition, where exact products of 16-bit numbers take four. Sums of two products that do not fit into 16 bits are
cut off without notice: weights are such that none is (``pairing``). Rows are gathered in the planes that these ask for.

A block of twelve rows by eight outputs fills sixteen registers. It goes over as many steps as the first-level cache
holds inputs of, for all outputs of a panel, before it goes on.
"""

from collections.abc import Callable

from llvmlite import ir

from .emitter import I8, I16, I32, I64, INTS, LANES, Body, Emitter, Value, function
from .product import PANEL, PairsRecord, Product

GROUP = 24  # rows that are computed between two epilogues
ROWS = 1, 2, 4, 8, 12  # of a block
STEPS = 128  # that a block goes over at a time
CHUNK_BYTES = 2**20  # of gathered rows, of which a part at a time is read for all outputs of a panel
EIGHT, SHORTS, CODES = ir.VectorType(I32, 8), ir.VectorType(I16, 16), ir.VectorType(I8, 32)
VECTOR = CODES


def allowed() -> bool:
    """Whether this process may multiply so."""
    return True


def fits(product: Product) -> bool:
    """Whether a product's weights are paired."""
    return bool(product.pairs)


def pitch_of(product: Product) -> int:
    """Bytes from one gathered row to the next."""
    return PairsRecord.at(product.pairs).pitch


def pitch(emit: Emitter, product: Value) -> Value:
    """``pitch_of``."""
    return emit.field(emit.field(product, Product.pairs), PairsRecord.pitch)


def begin(emit: Emitter) -> None:
    """Nothing has to be set up."""


def end(emit: Emitter) -> None:
    """Nor to be given back."""


def finish(emit: Emitter, product: Value, target: Value, steps: Value) -> None:
    """The other planes of a row, by the first."""
    record = emit.field(product, Product.pairs)
    planes, offsets = emit.field(record, PairsRecord.planes), emit.place(record, PairsRecord.offsets)
    tables, vectors = emit.field(record, PairsRecord.forms), emit.ashr(emit.add(steps, I64(7)), I64(3))

    def element(index: Value) -> None:
        form = emit.add(index, I64(1))
        table = emit.add(tables, emit.shl(form, I64(6)))
        order, bits = emit.read(table, CODES, 32), emit.read(emit.add(table, I64(32)), CODES, 32)
        goal = emit.add(target, emit.item(offsets, form))

        def vector(n: Value) -> None:
            at = emit.shl(n, I64(5))
            codes = emit.native("llvm.x86.avx2.pshuf.b", CODES, emit.read(emit.add(target, at), CODES), order)
            emit.write(emit.xor(codes, bits), emit.add(goal, at))

        emit.each(vectors, vector)

    emit.each(emit.sub(planes, I64(1)), element)


def compute(
    emit: Emitter, product: Value, blocks: int, panel: Value, source: Value, count: Value, sums: Value
) -> None:
    """The sums of ``count`` rows by ``blocks``."""
    line, most = I64(64 * blocks), ROWS[-1]
    record = emit.field(product, Product.pairs)
    steps, outputs = emit.fields(product, Product.steps, Product.outputs)
    which, starts, own_steps, residues, pitch = emit.fields(
        record, PairsRecord.which, PairsRecord.starts, PairsRecord.steps, PairsRecord.residues, PairsRecord.pitch
    )
    offsets = emit.place(record, PairsRecord.offsets)
    weight = emit.add(emit.field(product, Product.weight), emit.mul(panel, emit.mul(steps, I64(64 * PANEL))))
    before = emit.mul(emit.add(panel, emit.field(product, Product.panel)), I64(2 * PANEL))
    which, starts = emit.add(which, emit.mul(before, steps)), emit.add(starts, emit.shl(before, I64(2)))
    left = emit.sub(outputs, emit.mul(panel, I64(LANES * PANEL)))
    eights = emit.smaller(emit.ashr(emit.add(left, I64(7)), I64(3)), I64(2 * blocks))
    main = {n: function(emit.module, f"quantspec_pairs_{n}", 9, by_steps(n)) for n in ROWS}
    more = {n: function(emit.module, f"quantspec_residues_{n}", 10, by_list(n)) for n in ROWS}
    zeros = emit.splat(0, INTS)

    def clear(n: Value) -> None:
        emit.write(zeros, emit.add(sums, emit.shl(n, I64(6))), 64)

    emit.each(emit.mul(count, I64(blocks)), clear)

    def over_rows(run: Callable[[int, Value, Value], None]) -> None:
        """``run(rows, x, sums)`` for blocks of rows; those behind the last are there, and nobody reads their sums."""

        def some(row: Value, rows: int) -> None:
            run(rows, emit.add(source, emit.mul(row, pitch)), emit.add(sums, emit.mul(row, line)))

        whole = emit.sdiv(count, I64(most))
        emit.each(whole, lambda i: some(emit.mul(i, I64(most)), most))
        done = emit.mul(whole, I64(most))
        rest = emit.sub(count, done)
        for less, rows in zip((0, *ROWS), ROWS):
            fitting = emit.and_(emit.icmp_signed(">", rest, I64(less)), emit.icmp_signed("<=", rest, I64(rows)))
            with emit.if_then(fitting):
                some(done, rows)

    def part(index: Value) -> None:
        first = emit.mul(index, I64(STEPS))
        number = emit.smaller(emit.sub(steps, first), I64(STEPS))
        weights = emit.add(weight, emit.mul(first, line))
        planes = emit.add(which, emit.mul(first, I64(2 * blocks)))

        def rows_of(rows: int, x: Value, target: Value) -> None:
            here = emit.add(x, emit.shl(first, I64(2)))

            def eight(e: Value) -> None:
                at = emit.shl(e, I64(5))
                arguments = [emit.add(weights, at), line, emit.add(planes, e), here, pitch, offsets, number]
                emit.call(main[rows], [*arguments, emit.add(target, at), I64(2 * blocks)])

            emit.each(eights, eight)

        over_rows(rows_of)

    emit.each(emit.sdiv(emit.add(steps, I64(STEPS - 1)), I64(STEPS)), part)

    def residue(e: Value) -> None:
        entry = emit.add(starts, emit.shl(e, I64(2)))
        first, last = (emit.sext(emit.read(emit.add(entry, I64(4 * i)), I32, 4), I64) for i in range(2))
        number = emit.sub(last, first)
        with emit.if_then(emit.icmp_signed(">", number, I64(0))):
            weights, listed = emit.add(residues, emit.shl(first, I64(5))), emit.add(own_steps, emit.shl(first, I64(2)))

            def rows_of(rows: int, x: Value, target: Value) -> None:
                arguments = [weights, line, emit.add(which, e), x, pitch, offsets, number]
                goal = emit.add(target, emit.shl(e, I64(5)))
                emit.call(more[rows], [*arguments, goal, I64(2 * blocks), listed])

            over_rows(rows_of)

    emit.each(eights, residue)


def by_steps(rows: int) -> Body:
    """Writes the function that adds to the sums of ``rows`` rows by eight outputs: of ``count`` steps, whose weights
    and rows of sums are ``line`` bytes apart, and whose planes ``stride``.

    Where planes begin is read: a multiplication would take a port of the three that the products need.
    """

    def write(
        emit: Emitter, weight: Value, line: Value, which: Value, x: Value, pitch: Value, offsets: Value, count: Value,
        sums: Value, stride: Value,
    ) -> None:  # fmt: skip
        def step(k: Value, carried: list[Value]) -> list[Value]:
            w, form = carried[:2]
            at = emit.add(x, emit.add(emit.shl(k, I64(2)), emit.item(offsets, emit.zext(emit.read(form, I8), I64))))
            totals = multiplied(emit, carried[2:], emit.read(w, CODES, 32), at, pitch)
            return [emit.add(w, line), emit.add(form, stride), *totals]

        totals = read_sums(emit, rows, sums, line)
        write_sums(emit, emit.loop(count, [weight, which, *totals], step)[2:], sums, line)

    return write


def by_list(rows: int) -> Body:
    """The same of weights after one another, for the steps of a list."""

    def write(
        emit: Emitter, weight: Value, line: Value, which: Value, x: Value, pitch: Value, offsets: Value, count: Value,
        sums: Value, stride: Value, listed: Value,
    ) -> None:  # fmt: skip
        def step(n: Value, totals: list[Value]) -> list[Value]:
            k = emit.int_at(listed, n, 4)
            form = emit.zext(emit.read(emit.add(which, emit.mul(k, stride)), I8), I64)
            at = emit.add(x, emit.add(emit.shl(k, I64(2)), emit.item(offsets, form)))
            return multiplied(emit, totals, emit.read(emit.add(weight, emit.shl(n, I64(5))), CODES, 32), at, pitch)

        write_sums(emit, emit.loop(count, read_sums(emit, rows, sums, line), step), sums, line)

    return write


def multiplied(emit: Emitter, totals: list[Value], weights: Value, x: Value, pitch: Value) -> list[Value]:
    """Sums of rows, of which the inputs of a step are ``pitch`` bytes apart from ``x`` on, with that step's products.

    In assembly: LLVM would read the inputs of all rows first, for which there are no registers. Each of its reads is
    one of ``at``, whose pointer is left out, as three rows share an address.
    """
    ones, result = ir.Constant(SHORTS, [1] * 16), []
    kind = ir.FunctionType(EIGHT, [EIGHT, CODES, SHORTS, I64, I64])
    for i, total in enumerate(totals):
        if i % 3 == 0:
            base = emit.add(x, emit.mul(pitch, I64(i)))
        emit.at(emit.add(x, emit.mul(pitch, I64(i))), I32)
        place = ("($4)", "($4,$5)", "($4,$5,2)")[i % 3]
        text = (
            f"vpbroadcastd {place}, %ymm15; vpmaddubsw $2, %ymm15, %ymm15; "
            "vpmaddwd $3, %ymm15, %ymm15; vpaddd %ymm15, $0, $0"
        )
        constraints = "=x,0,x,x,r,r,~{ymm15},~{memory}"
        result.append(emit.asm(kind, text, constraints, [total, weights, ones, base, pitch], True))
    return result


def read_sums(emit: Emitter, rows: int, sums: Value, line: Value) -> list[Value]:
    return [emit.read(emit.add(sums, emit.mul(line, I64(i))), EIGHT, 32) for i in range(rows)]


def write_sums(emit: Emitter, totals: list[Value], sums: Value, line: Value) -> None:
    for i, total in enumerate(totals):
        emit.write(total, emit.add(sums, emit.mul(line, I64(i))), 32)
