"""Matrix products of codes: the kernel of linear layers and convolutions.

A product has ``rows`` (samples of a batch, or positions of a convolution) and ``outputs``. The inputs of a row are one or more runs of bytes: the row's
address is ``X`` plus an entry of a table of offsets, that of a run a further offset which all rows share. So a convolution reads its windows where
they lie, and a linear layer is a convolution of one run.

Weights lie as [panel][step][block][output 16][input 4]: a step is four inputs, a panel two blocks of 16 outputs, or one in the end. A tile of up to 14 rows by 2
blocks stays in registers over all steps: 28 accumulators, more than the latency of the dot product asks for, and a panel that is small enough to stay in the
first-level cache while rows pass. Tiles of few rows have several sets of accumulators for steps in turn. Accumulators begin with the bias, from which
input zero point times the sum of weights has been subtracted beforehand.
"""

from llvmlite import ir

from . import cpu
from .emitter import BYTES, F32, FLOATS, I32, I64, INTS, LANES, Emitter, function

# Entries of an instruction for a product. Addresses unless said; offsets are int32 arrays.
X, Y, W, BIAS, FACTOR, ROWS, OUTPUTS, BLOCKS, STEPS = range(1, 10)
RUNS, RUN_STEPS, RUN_OFFSETS, X_OFFSETS, Y_OFFSETS, CHUNK = range(10, 16)
LOWEST, HIGHEST, ZERO = range(16, 19)  # float32 in steps relative to the zero point, and the zero point as an integer
ADD, B, B_OFFSETS, RATIO, B_RATIO, START, ADD_LOWEST, ADD_HIGHEST = range(19, 27)
ROW_GRIDS, SUMS = 27, 28  # of dynamic layers
PAST = 20  # of products that give floats: whether whole lines of them go past the caches
AHEAD, ADVANCE = 29, 30  # set while running: where the next panel is to be fetched from, and how far that moves with each half step

TILE_ROWS, PANEL = (1, 2, 4, 7, 10, 14), 2
IN_FLIGHT = 8  # accumulators from which on the dot product's latency does not show
PAST_BYTES = 2**20  # floats from which on that is quicker: a line that is overwritten need not be read before, and the weights stay
CHUNK_BYTES = 2**18  # inputs of a chunk of rows, which stay in the second-level cache while weights pass


def chunk_rows(rows: int, inputs: int) -> int:
    """Rows of a chunk, in whole tiles: chunks of about the same size, as a small one in the end would have all weights pass for little."""
    tiles = max(1, -(-rows // TILE_ROWS[-1]))
    chunks = max(1, round(rows * inputs / CHUNK_BYTES))
    return max(4, -(-tiles // chunks)) * TILE_ROWS[-1]


def accumulate(emit: Emitter, op, row, panel, rows: int, blocks: int, start: list, half: bool = False) -> list:
    """The accumulators, rows by blocks, of a tile, beginning with ``start``; ``half``: of its only block the first eight outputs are all there are."""
    kind = ir.VectorType(I32, LANES // 2) if half else INTS
    start = [emit.lower(v) for v in start] if half else start
    xs = addresses(emit, op, X, X_OFFSETS, row, rows, I64(0))
    steps, runs = emit.field(op, RUN_STEPS), emit.field(op, RUN_OFFSETS)
    w = emit.add(emit.field(op, W), emit.mul(panel, emit.mul(emit.field(op, STEPS), I64(64 * PANEL))))
    sets = max(1, IN_FLIGHT // (rows * blocks))
    size = rows * blocks
    fetches = rows == TILE_ROWS[-1]
    ahead, advance = emit.field(op, AHEAD), emit.field(op, ADVANCE)

    def run(index, carried):
        place = emit.sext(emit.read(emit.add(runs, emit.shl(index, I64(2))), I32, 4), I64)
        bases = [emit.add(pointer, place) for pointer in xs]

        def step(w, k, totals):
            weights = [emit.read(emit.add(w, I64(64 * j)), kind, 64) for j in range(blocks)]
            fours = (emit.splat_to(emit.read(emit.add(base, emit.shl(k, I64(2))), I32), kind) for base in bases)
            return [emit.dot(totals[i * blocks + j], four, weights[j]) for i, four in enumerate(fours) for j in range(blocks)]

        def fetching(i, carried):
            for _ in range(2):
                emit.prefetch(carried[-1])
                carried = [*carried[:-1], emit.add(carried[-1], advance)]
            return [*several(i, carried[:-1]), carried[-1]]

        def several(i, carried):
            w, totals, k = carried[0], carried[1:], emit.mul(i, I64(sets))
            result = []
            for n in range(sets):
                result += step(emit.add(w, I64(64 * blocks * n)), emit.add(k, I64(n)), totals[n * size : (n + 1) * size])
            return [emit.add(w, I64(64 * blocks * sets)), *result]

        def one(i, carried):
            w, totals = carried[0], carried[1:]
            return [emit.add(w, I64(64 * blocks)), *step(w, emit.add(done, i), totals[:size]), *totals[size:]]

        if sets == 1:
            return emit.loop(steps, carried, fetching if fetches else several)
        count = emit.sdiv(steps, I64(sets))
        done = emit.mul(count, I64(sets))
        return emit.loop(emit.sub(steps, done), emit.loop(count, carried, several), one)

    zeros = [ir.Constant(kind, [0] * kind.count)] * (size * (sets - 1))
    totals = emit.loop(emit.field(op, RUNS), [w, *start, *zeros, *[ahead] * fetches], run)[1:]
    for n in range(1, sets):
        totals[:size] = [emit.add(a, b) for a, b in zip(totals[:size], totals[n * size : (n + 1) * size])]
    return [emit.widened(v) for v in totals[:size]] if half else totals[:size]


def goes_past(nbytes: int, outputs: int) -> int:
    """The entry PAST of a product with so many ``outputs``, of which it is whole panels, and bytes of floats in all."""
    return int(nbytes >= PAST_BYTES and outputs % (LANES * PANEL) == 0)


def put_floats(emit: Emitter, op, ys: list, value, blocks: int, mask) -> None:
    """Writes a tile of floats, ``value(row, block)``, to where its rows begin; of the last block the lanes of ``mask``."""

    def put(past: bool) -> None:
        for i, y in enumerate(ys):
            for j in range(blocks):
                real, address = value(i, j), emit.add(y, I64(64 * j))
                if past:
                    emit.write(real, address, 64).set_metadata("nontemporal", emit.module.add_metadata([I32(1)]))
                elif j < blocks - 1:
                    emit.write(real, address)
                else:
                    emit.write_some(real, address, mask)

    if len(ys) < TILE_ROWS[-1] or blocks < PANEL:
        put(False)
        return
    in_lines = emit.icmp_signed("==", emit.and_(ys[0], I64(63)), I64(0))
    with emit.if_else(emit.and_(in_lines, emit.icmp_signed("!=", emit.field(op, PAST), I64(0)))) as (past, through):
        with past:
            put(True)
        with through:
            put(False)


def addresses(emit: Emitter, op, base: int, offsets: int, row, rows: int, ahead) -> list:
    """Where the rows of a tile lie, ``ahead`` bytes from their start on, by the entries of their base and of their offsets."""
    start, table = emit.add(emit.field(op, base), ahead), emit.add(emit.field(op, offsets), emit.shl(row, I64(2)))
    return [emit.add(start, emit.sext(emit.read(emit.add(table, I64(4 * i)), I32, 4), I64)) for i in range(rows)]


def tile(adds: bool):
    """What makes a tile's function: codes, or the codes of their sum with another value."""

    def make(rows: int, blocks: int, half: bool):
        def write(emit: Emitter, op, row, panel):
            first = emit.mul(panel, I64(LANES * PANEL))  # output
            bias = emit.add(emit.field(op, BIAS), emit.shl(first, I64(2)))
            start = [emit.read(emit.add(bias, I64(64 * j)), INTS, 64) for j in range(blocks)] * rows
            totals = accumulate(emit, op, row, panel, rows, blocks, start, half)
            factor = emit.add(emit.field(op, FACTOR), emit.shl(first, I64(2)))
            factors = [emit.read(emit.add(factor, I64(64 * j)), FLOATS, 64) for j in range(blocks)]
            lowest, highest = (emit.splat(emit.field(op, name, F32)) for name in (LOWEST, HIGHEST))
            zero = emit.splat(emit.trunc(emit.field(op, ZERO), I32))
            mask = emit.mask(emit.sub(emit.field(op, OUTPUTS), emit.add(first, I64(LANES * (blocks - 1)))))

            def code(i, j):
                steps = emit.fmul(emit.sitofp(totals[i * blocks + j], FLOATS), factors[j])
                return emit.add(emit.rounded(emit.minimum(emit.maximum(steps, lowest), highest)), zero)

            def put(value, address, j):
                address = emit.add(address, I64(LANES * j))
                if j < blocks - 1:
                    emit.write(emit.trunc(value, BYTES), address)
                else:
                    emit.write_some(emit.trunc(value, BYTES), address, mask)

            ys = addresses(emit, op, Y, Y_OFFSETS, row, rows, first)
            if adds:
                add_rows(emit, op, code, addresses(emit, op, B, B_OFFSETS, row, rows, first), ys, mask, put, blocks)
            else:
                for i in range(rows):
                    for j in range(blocks):
                        put(code(i, j), ys[i], j)

        return write

    return make


def add_rows(emit: Emitter, op, code, others, ys, mask, put, blocks: int) -> None:
    """Adds another value in codes to those of the tile. ADD is 1 when the tile's are the first operand, 2 when they are the second."""
    ratio, b_ratio, start, lowest, highest = (emit.splat(emit.field(op, name, F32)) for name in (RATIO, B_RATIO, START, ADD_LOWEST, ADD_HIGHEST))
    is_first = emit.splat(emit.icmp_signed("==", emit.field(op, ADD), I64(1)))
    for i, (other, y) in enumerate(zip(others, ys)):
        for j in range(blocks):
            address = emit.add(other, I64(LANES * j))
            zeros = emit.splat(0, BYTES)
            theirs = emit.read(address, BYTES) if j < blocks - 1 else emit.read_some(address, BYTES, mask, zeros)
            theirs, ours = emit.uitofp(emit.zext(theirs, INTS), FLOATS), emit.sitofp(code(i, j), FLOATS)
            a, b = emit.select(is_first, ours, theirs), emit.select(is_first, theirs, ours)
            total = emit.fma(a, ratio, emit.fma(b, b_ratio, start))
            put(emit.rounded(emit.minimum(emit.maximum(total, lowest), highest)), y, j)


def product(kind: str, make):
    """Writes the kernel for products: chunks of rows, in them panels of outputs, in them tiles, each a function that ``make(rows, blocks, half)`` writes."""

    def write(emit: Emitter, op, frame):
        rows, blocks, chunk = (emit.field(op, name) for name in (ROWS, BLOCKS, CHUNK))

        def one_chunk(index, carried):
            start = emit.mul(index, chunk)
            end = emit.smaller(emit.add(start, chunk), rows)

            def one_panel(panel, carried):
                def cover(width: int, half: bool = False):
                    name = f"quantspec_{kind}_{{}}_{'half' if half else width}"
                    tiles(emit, op, [function(emit.module, name.format(size), 3, make(size, width, half)) for size in TILE_ROWS], start, end, panel)

                wide = emit.icmp_signed(">=", emit.sub(blocks, emit.mul(panel, I64(PANEL))), I64(PANEL))
                with emit.if_else(wide) as (full, part):
                    with full:
                        cover(PANEL)
                    with part:
                        few = emit.icmp_signed("<=", emit.sub(emit.field(op, OUTPUTS), emit.mul(emit.sub(blocks, I64(1)), I64(LANES))), I64(LANES // 2))
                        if not cpu.target().has_halves:
                            cover(1)
                        else:
                            with emit.if_else(few) as (eight, sixteen):
                                with eight:
                                    cover(1, half=True)
                                with sixteen:
                                    cover(1)
                return []

            return emit.loop(emit.sdiv(emit.add(blocks, I64(PANEL - 1)), I64(PANEL)), [], one_panel)

        emit.loop(emit.sdiv(emit.add(rows, emit.sub(chunk, I64(1))), chunk), [], one_chunk)

    return write


def tiles(emit: Emitter, op, functions: list, start, end, panel) -> None:
    """Covers rows from ``start`` to ``end`` by tiles. A last one may overlap the one before it, where it computes the same again."""
    largest = TILE_ROWS[-1]
    count = emit.sdiv(emit.sub(end, start), I64(largest))
    # The weights of the next panel, at the end the first one's, come from further away while those of this one are used, each tile fetching its share.
    steps, tiles = emit.field(op, STEPS), emit.select(emit.icmp_signed(">", count, I64(0)), count, I64(1))
    advance = emit.sdiv(emit.add(I64(32 * PANEL - 1), tiles), tiles)
    emit.write(advance, emit.add(op, I64(8 * ADVANCE)))
    after = emit.mul(emit.add(panel, I64(1)), I64(PANEL))
    after = emit.select(emit.icmp_signed("<", after, emit.field(op, BLOCKS)), after, I64(0))
    following = emit.add(emit.field(op, W), emit.mul(emit.shl(after, I64(6)), steps))
    share = emit.mul(emit.shl(advance, I64(1)), steps)

    def one(index, carried):
        place = emit.add(following, emit.mul(index, share))
        emit.write(place, emit.add(op, I64(8 * AHEAD)))
        emit.call(functions[-1], [op, emit.add(start, emit.mul(index, I64(largest))), panel])
        return []

    emit.loop(count, [], one)
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
        row = emit.sub(end, left)
        for rows, tile in reversed(list(zip(TILE_ROWS, functions))):
            count = emit.sdiv(emit.sub(end, row), I64(rows))

            def small(index, carried, tile=tile, row=row, rows=rows):
                emit.call(tile, [op, emit.add(row, emit.mul(index, I64(rows))), panel])
                return []

            emit.loop(count, [], small)
            row = emit.add(row, emit.mul(count, I64(rows)))
        emit.branch(done)
        emit.position_at_end(done)


write_product = product("codes", tile(False))
write_product_add = product("sums", tile(True))
