"""Matrix products of codes: the kernel of linear layers and convolutions.

A product has ``rows`` (samples of a batch, or positions of a convolution) and ``outputs``. The inputs of a row are
one or more runs of bytes: the row's address is ``X`` plus an entry of a table of offsets, that of a run a further
offset which all rows share. So a convolution reads its windows where they lie, and a linear layer is a convolution of
one run.

Weights lie as [panel][step][block][output 16][input 4]: a step is four inputs, a panel two blocks of 16 outputs, or one
in the end. A tile of up to 12 rows by 2 blocks stays in registers over all steps: 24 accumulators, more than the
latency of the dot product asks for, and a panel that is small enough to stay in the first-level cache while rows pass.
With more there are not registers enough for what makes outputs of them. Tiles of few rows have several sets of
accumulators for steps in turn. Accumulators begin with the bias, from which input zero point times the sum of weights
has been subtracted beforehand.
"""

from collections.abc import Callable

from llvmlite import ir

from . import cpu, grouped
from .emitter import BYTES, FLOATS, I32, I64, INTS, LANES, MAGIC, Body, Emitter, Function, Type, Value, function
from .jit import Kernel
from .product import PANEL, Product, ProductAdd, ProductCodes, ProductInstruction, ProductToFloats
from .records import Clamp, Entry

TILE_ROWS = 1, 2, 4, 8, 10, 12
IN_FLIGHT = 8  # accumulators from which on the dot product's latency does not show
# Tiles of which one often passes all weights, in less time than these take from memory, and how many bytes ahead they
# are fetched. Tiles of one row or two wait for memory alone, which what a CPU fetches by itself keeps busy.
FETCHING_ROWS, AHEAD = (4, 8, 10), 8192
# Floats from which on that is quicker: a line that is overwritten need not be read before, and the weights stay. What a
# network's next step reads is better found in a cache, as long as it fits one.
PAST_BYTES, SOON_BYTES = 2**20, 2**22
CHUNK_BYTES = 2**18  # inputs of a chunk of rows, which stay in the second-level cache while weights pass


def chunk_rows(rows: int, inputs: int) -> int:
    """Rows of a chunk, in whole tiles: chunks of about the same size, as a small one in the end would have all
    weights pass for little.
    """
    tiles = max(1, -(-rows // TILE_ROWS[-1]))
    chunks = max(1, round(rows * inputs / CHUNK_BYTES))
    return max(4, -(-tiles // chunks)) * TILE_ROWS[-1]


def accumulate(
    emit: Emitter, product: Value, row: Value, panel: Value, rows: int, blocks: int, start: list[Value],
    half: bool = False, sums: Value | None = None,
) -> list[Value]:
    """The accumulators, rows by blocks, of a tile, beginning with ``start``; ``half``: of its only block the first
    eight outputs are all there are; ``sums``: where the products are summed up already.
    """
    if sums is not None:
        return [emit.add(v, emit.read(emit.add(sums, I64(64 * n)), INTS, 64)) for n, v in enumerate(start)]
    kind = ir.VectorType(I32, LANES // 2) if half else INTS
    start = [emit.lower(v) for v in start] if half else start
    xs = addresses(emit, emit.field(product, Product.x), emit.field(product, Product.x_offsets), row, rows)
    steps, runs = emit.fields(product, Product.run_steps, Product.run_offsets)
    all_steps = emit.field(product, Product.steps)
    w = emit.add(emit.field(product, Product.weight), emit.mul(panel, emit.mul(all_steps, I64(64 * PANEL))))
    sets = max(1, IN_FLIGHT // (rows * blocks))
    size = rows * blocks
    fetches = rows == TILE_ROWS[-1]
    ahead, advance = emit.fields(product, Product.ahead, Product.advance)

    def run(index: Value, carried: list[Value]) -> list[Value]:
        offset = emit.int_at(runs, index, 4)
        bases = [emit.add(pointer, offset) for pointer in xs]

        def step(w: Value, k: Value, totals: list[Value]) -> list[Value]:
            weights = [emit.read(emit.add(w, I64(64 * j)), kind, 64) for j in range(blocks)]
            for j in range(blocks if rows in FETCHING_ROWS else 0):
                emit.prefetch(emit.add(w, I64(AHEAD + 64 * j)), near=True)
            fours = (emit.splat_to(emit.read(emit.add(base, emit.shl(k, I64(2))), I32), kind) for base in bases)
            return [
                emit.dot(totals[i * blocks + j], four, weights[j])
                for i, four in enumerate(fours)
                for j in range(blocks)
            ]

        def fetching(i: Value, carried: list[Value]) -> list[Value]:
            for _ in range(2):
                emit.prefetch(carried[-1])
                carried = [*carried[:-1], emit.add(carried[-1], advance)]
            return [*several(i, carried[:-1]), carried[-1]]

        def several(i: Value, carried: list[Value]) -> list[Value]:
            w, totals, k = carried[0], carried[1:], emit.mul(i, I64(sets))
            result = []
            for n in range(sets):
                own = totals[n * size : (n + 1) * size]
                result += step(emit.add(w, I64(64 * blocks * n)), emit.add(k, I64(n)), own)
            return [emit.add(w, I64(64 * blocks * sets)), *result]

        def single(i: Value, carried: list[Value]) -> list[Value]:
            w, totals = carried[0], carried[1:]
            return [emit.add(w, I64(64 * blocks)), *step(w, emit.add(done, i), totals[:size]), *totals[size:]]

        if sets == 1:
            return emit.loop(steps, carried, fetching if fetches else several)
        count = emit.sdiv(steps, I64(sets))
        done = emit.mul(count, I64(sets))
        return emit.loop(emit.sub(steps, done), emit.loop(count, carried, several), single)

    zeros = [ir.Constant(kind, [0] * kind.count)] * (size * (sets - 1))
    totals = emit.loop(emit.field(product, Product.runs), [w, *start, *zeros, *[ahead] * fetches], run)[1:]
    for n in range(1, sets):
        totals[:size] = [emit.add(a, b) for a, b in zip(totals[:size], totals[n * size : (n + 1) * size])]
    return [emit.widened(v) for v in totals[:size]] if half else totals[:size]


def goes_past(nbytes: int, outputs: int, *, soon: bool) -> bool:
    """Whether a product with so many ``outputs``, of which it is whole panels, and bytes of floats in all goes past
    the caches; ``soon``: they are read by what comes next.
    """
    return nbytes >= (SOON_BYTES if soon else PAST_BYTES) and outputs % (LANES * PANEL) == 0


def fetch(emit: Emitter, starts: list[Value], blocks: int) -> None:
    """Has the floats that a tile writes, or adds to what it writes, come near while its products are summed up: there
    is no time for it where they are already, or rows are few.
    """
    for start in starts if len(starts) >= grouped.AFTER[0] else ():
        for j in range(blocks):
            emit.prefetch(emit.add(start, I64(64 * j)), near=True)


def put_floats(
    emit: Emitter, op: Value, ys: list[Value], value: Callable[[int, int], Value], blocks: int, mask: Value
) -> None:
    """Writes a tile of floats, ``value(row, block)``, to where its rows begin; of the last block the lanes of
    ``mask``.
    """

    def put(past: bool) -> None:
        for i, y in enumerate(ys):
            for j in range(blocks):
                floats, address = value(i, j), emit.add(y, I64(64 * j))
                if past:
                    emit.write_past(floats, address)
                elif j < blocks - 1:
                    emit.write(floats, address)
                else:
                    emit.write_some(floats, address, mask)

    if len(ys) < grouped.AFTER[0] or blocks < PANEL:
        put(False)
        return
    in_lines = emit.icmp_signed("==", emit.and_(ys[0], I64(63)), I64(0))
    with emit.if_else(emit.and_(in_lines, emit.flag(op, ProductToFloats.past))) as (past, through):
        with past:
            put(True)
        with through:
            put(False)


def addresses(emit: Emitter, base: Value, offsets: Value, row: Value, rows: int) -> list[Value]:
    """Where the rows of a tile lie, by their base and by the table of their offsets."""
    table = emit.add(offsets, emit.shl(row, I64(2)))
    return [emit.add(base, emit.sext(emit.read(emit.add(table, I64(4 * i)), I32, 4), I64)) for i in range(rows)]


def by_lanes(emit: Emitter, product: Value, entry: Entry, panel: Value, blocks: int, kind: Type) -> list[Value]:
    """A table with an entry of four bytes for each lane: those of a panel, block by block."""
    base = emit.add(emit.field(product, entry), emit.mul(panel, I64(4 * LANES * PANEL)))
    return [emit.read(emit.add(base, I64(64 * j)), kind, 64) for j in range(blocks)]


def last_mask(emit: Emitter, product: Value, panel: Value, blocks: int) -> Value:
    """Which lanes of a panel's last block are outputs."""
    first = emit.mul(panel, I64(LANES * PANEL))
    return emit.mask(emit.sub(emit.field(product, Product.outputs), emit.add(first, I64(LANES * (blocks - 1)))))


# What writes the function of a tile of rows by blocks, of which there may be half of one.
Tile = Callable[[int, int, bool], Body]


def code_tile(adds: bool) -> Tile:
    """What makes a tile's function: codes, or the codes of their sum with another value."""

    def tile(rows: int, blocks: int, half: bool) -> Body:
        def write(emit: Emitter, op: Value, row: Value, panel: Value, sums: Value | None = None) -> None:
            product, first = emit.place(op, ProductInstruction.product), emit.mul(panel, I64(LANES * PANEL))
            start = by_lanes(emit, product, Product.bias, panel, blocks, INTS) * rows
            totals = accumulate(emit, product, row, panel, rows, blocks, start, half, sums)
            factors = by_lanes(emit, product, Product.factor, panel, blocks, FLOATS)
            clamp = emit.place(op, ProductCodes.clamp)
            lowest, highest, zero = emit.splat_fields(clamp, Clamp.lowest, Clamp.highest, Clamp.zero)
            mask = last_mask(emit, product, panel, blocks)

            def steps(i: int, j: int) -> Value:
                """How many steps an output is from the zero point, in the last bits of a float."""
                exact = emit.fmul(emit.sitofp(totals[i * blocks + j], FLOATS), factors[j])
                return emit.with_nearest(emit.minimum(emit.maximum(exact, lowest), highest))

            def put(codes: Value, address: Value, j: int) -> None:
                address = emit.add(address, I64(LANES * j))
                if j < blocks - 1:
                    emit.write(codes, address)
                else:
                    emit.write_some(codes, address, mask)

            y = emit.add(emit.field(product, Product.y), first)
            ys = addresses(emit, y, emit.field(op, ProductCodes.y_offsets), row, rows)
            if adds:
                b, b_offsets = emit.fields(op, ProductAdd.b, ProductAdd.b_offsets)
                others = addresses(emit, emit.add(b, first), b_offsets, row, rows)
                origin = emit.fsub(emit.splat(MAGIC, FLOATS), emit.sitofp(zero, FLOATS))

                def code(i: int, j: int) -> Value:
                    return emit.fsub(steps(i, j), origin)

                add_rows(emit, op, code, others, ys, mask, put, blocks)
            else:
                point = emit.trunc(zero, BYTES)
                for i in range(rows):
                    for j in range(blocks):
                        put(emit.add(last_bytes(emit, steps(i, j)), point), ys[i], j)

        return write

    return tile


def last_bytes(emit: Emitter, floats: Value) -> Value:
    """The last byte of each float's bits."""
    return emit.trunc(emit.bitcast(floats, INTS), BYTES)


def add_rows(
    emit: Emitter, op: Value, code: Callable[[int, int], Value], others: list[Value], ys: list[Value], mask: Value,
    put: Callable[[Value, Value, int], None], blocks: int,
) -> None:  # fmt: skip
    """Adds another value in codes to those of the tile, which ``code`` gives as floats."""
    ratio, b_ratio, start, lowest, highest = emit.splat_fields(
        op, ProductAdd.ratio, ProductAdd.b_ratio, ProductAdd.start, ProductAdd.lowest, ProductAdd.highest
    )
    zeros = emit.splat(0, BYTES)

    def in_order(ours_first: bool) -> None:
        for i, (other, y) in enumerate(zip(others, ys)):
            for j in range(blocks):
                address = emit.add(other, I64(LANES * j))
                theirs = emit.read(address, BYTES) if j < blocks - 1 else emit.read_some(address, BYTES, mask, zeros)
                theirs, ours = emit.uitofp(emit.zext(theirs, INTS), FLOATS), code(i, j)
                a, b = (ours, theirs) if ours_first else (theirs, ours)
                total = emit.fma(a, ratio, emit.fma(b, b_ratio, start))
                total = emit.with_nearest(emit.minimum(emit.maximum(total, lowest), highest))
                put(last_bytes(emit, total), y, j)

    with emit.if_else(emit.flag(op, ProductAdd.is_first)) as (first, second):
        with first:
            in_order(True)
        with second:
            in_order(False)


def product(kind: str, tile: Tile, behind: grouped.Behind | None = None) -> Callable[[Emitter, Value, Value], None]:
    """Writes the kernel for products: chunks of rows, in them panels of outputs, in them tiles, each a function that
    ``tile(rows, blocks, half)`` writes. What ``behind`` writes comes once behind each panel, in the first chunk.
    """

    def tile_functions(emit: Emitter, blocks: int, half: bool) -> list[Function]:
        name = f"quantspec_{kind}_{{}}_{'half' if half else blocks}"
        return [function(emit.module, name.format(rows), 3, tile(rows, blocks, half)) for rows in TILE_ROWS]

    def epilogues(emit: Emitter, blocks: int) -> list[Function]:
        name = f"quantspec_{kind}_after_{{}}_{blocks}"
        return [function(emit.module, name.format(rows), 4, tile(rows, blocks, False)) for rows in grouped.AFTER]

    def write(emit: Emitter, op: Value, frame: Value) -> None:
        unit = grouped.unit()
        if unit is None:
            in_dot_products(emit, op)
            return
        product = emit.place(op, ProductInstruction.product)
        with emit.if_else(emit.flag(product, Product.buffer)) as (in_unit, where_they_lie):
            with in_unit:
                grouped.in_groups(emit, unit, op, kind, lambda blocks: epilogues(emit, blocks), behind)
            with where_they_lie:
                in_dot_products(emit, op)

    def in_dot_products(emit: Emitter, op: Value) -> None:
        product = emit.place(op, ProductInstruction.product)
        rows, blocks, chunk = emit.fields(product, Product.rows, Product.blocks, Product.chunk)

        def one_chunk(index: Value) -> None:
            start = emit.mul(index, chunk)
            end = emit.smaller(emit.add(start, chunk), rows)

            def one_panel(panel: Value) -> None:
                def cover(width: int, half: bool = False) -> None:
                    cover_rows(emit, op, tile_functions(emit, width, half), start, end, panel)

                wide = emit.icmp_signed(">=", emit.sub(blocks, emit.mul(panel, I64(PANEL))), I64(PANEL))
                with emit.if_else(wide) as (full, part):
                    with full:
                        cover(PANEL)
                    with part:
                        before = emit.mul(emit.sub(blocks, I64(1)), I64(LANES))
                        outputs = emit.sub(emit.field(product, Product.outputs), before)
                        if not cpu.target().has_halves:
                            cover(1)
                        else:
                            with emit.if_else(emit.icmp_signed("<=", outputs, I64(LANES // 2))) as (eight, sixteen):
                                with eight:
                                    cover(1, half=True)
                                with sixteen:
                                    cover(1)
                if behind is not None:
                    grouped.behind_panel(emit, op, index, panel, behind)

            emit.each(emit.sdiv(emit.add(blocks, I64(PANEL - 1)), I64(PANEL)), one_panel)

        emit.each(emit.sdiv(emit.add(rows, emit.sub(chunk, I64(1))), chunk), one_chunk)

    return write


def cover_rows(emit: Emitter, op: Value, functions: list[Function], start: Value, end: Value, panel: Value) -> None:
    """Covers rows from ``start`` to ``end`` by tiles.

    A last one may overlap the one before it, where it computes the same again.
    """
    product = emit.place(op, ProductInstruction.product)
    largest = TILE_ROWS[-1]
    count = emit.sdiv(emit.sub(end, start), I64(largest))
    # The weights of the next panel, at the end the first one's, come from further away while those of this one are
    # used, each tile fetching its share.
    steps, tiles = emit.field(product, Product.steps), emit.select(emit.icmp_signed(">", count, I64(0)), count, I64(1))
    advance = emit.sdiv(emit.add(I64(32 * PANEL - 1), tiles), tiles)
    emit.put_field(product, Product.advance, advance)
    after = emit.mul(emit.add(panel, I64(1)), I64(PANEL))
    after = emit.select(emit.icmp_signed("<", after, emit.field(product, Product.blocks)), after, I64(0))
    following = emit.add(emit.field(product, Product.weight), emit.mul(emit.shl(after, I64(6)), steps))
    share = emit.mul(emit.shl(advance, I64(1)), steps)

    def whole_tile(index: Value) -> None:
        emit.put_field(product, Product.ahead, emit.add(following, emit.mul(index, share)))
        emit.call(functions[-1], [op, emit.add(start, emit.mul(index, I64(largest))), panel])

    emit.each(count, whole_tile)
    left = emit.sub(emit.sub(end, start), emit.mul(count, I64(largest)))
    with emit.if_then(emit.icmp_signed(">", left, I64(0))):
        done = emit.append_basic_block("done")
        # The smallest tile that holds what is left, if there are rows enough before it to overlap.
        for rows, tile in zip(TILE_ROWS, functions):
            fits = emit.and_(emit.icmp_signed("<=", left, I64(rows)), emit.icmp_signed(">=", end, I64(rows)))
            with emit.if_then(fits):
                emit.call(tile, [op, emit.sub(end, I64(rows)), panel])
                emit.branch(done)
                emit.position_at_end(emit.append_basic_block("unreached"))
        # Few rows in all: one tile after the other.
        of_size, first = dict(zip(TILE_ROWS, functions)), emit.sub(end, left)
        emit.in_sizes(
            left, TILE_ROWS[::-1], lambda rows, at: emit.call(of_size[rows], [op, emit.add(first, at), panel])
        )
        emit.branch(done)
        emit.position_at_end(done)


PRODUCT = Kernel("product", ProductCodes, product("codes", code_tile(adds=False)))
PRODUCT_ADD = Kernel("product_add", ProductAdd, product("sums", code_tile(adds=True)))
