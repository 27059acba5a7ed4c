"""Matrix products of codes: the kernel of linear layers and convolutions.

A product has ``rows`` (samples of a batch, or positions of a convolution) and ``outputs``. The inputs of a row are one or more runs of bytes: the row's
address is ``X`` plus an entry of a table of offsets, that of a run a further offset which all rows share. So a convolution reads its windows where
they lie, and a linear layer is a convolution of one run.

Weights lie as [panel][step][block][output 16][input 4]: a step is four inputs, a panel up to four blocks of 16 outputs. A tile of up to 6 rows by 4 blocks
stays in registers over all steps: 24 accumulators, more than the latency of the dot product asks for. Accumulators begin with the bias, from
which input zero point times the sum of weights has been subtracted beforehand.
"""

from .simd import BYTES, F32, FLOATS, I32, I64, INTS, LANES, Emitter, function

# Entries of an instruction for a product. Addresses unless said; offsets are int32 arrays.
X, Y, W, BIAS, FACTOR, ROWS, OUTPUTS, BLOCKS, STEPS = range(1, 10)
RUNS, RUN_STEPS, RUN_OFFSETS, X_OFFSETS, Y_OFFSETS, CHUNK = range(10, 16)
LOWEST, HIGHEST, ZERO = range(16, 19)  # float32 in steps relative to the zero point, and the zero point as an integer
ADD, B, B_OFFSETS, RATIO, B_RATIO, START, ADD_LOWEST, ADD_HIGHEST = range(19, 27)
ROW_GRIDS, SUMS = 27, 28  # of dynamic layers

TILE_ROWS, PANEL = (1, 2, 4, 6), 4


def accumulate(emit: Emitter, op, row, panel, rows: int, blocks: int, start: list) -> list:
    """The accumulators, rows by blocks, of a tile, beginning with ``start``."""
    offsets = emit.add(emit.field(op, X_OFFSETS), emit.shl(row, I64(2)))
    x = emit.field(op, X)
    xs = [emit.add(x, emit.sext(emit.read(emit.add(offsets, I64(4 * i)), I32, 4), I64)) for i in range(rows)]
    steps, runs = emit.field(op, RUN_STEPS), emit.field(op, RUN_OFFSETS)
    w = emit.add(emit.field(op, W), emit.mul(panel, emit.mul(emit.field(op, STEPS), I64(64 * PANEL))))

    def run(index, carried):
        w, totals = carried[0], carried[1:]
        place = emit.sext(emit.read(emit.add(runs, emit.shl(index, I64(2))), I32, 4), I64)
        bases = [emit.add(pointer, place) for pointer in xs]

        def step(k, carried):
            w, totals = carried[0], carried[1:]
            weights = [emit.read(emit.add(w, I64(64 * j)), INTS, 64) for j in range(blocks)]
            inner = emit.shl(k, I64(2))
            result = []
            for i in range(rows):
                four = emit.splat(emit.read(emit.add(bases[i], inner), I32))
                result += [emit.dot(totals[i * blocks + j], four, weights[j]) for j in range(blocks)]
            return [emit.add(w, I64(64 * blocks)), *result]

        return emit.loop(steps, [w, *totals], step)

    return emit.loop(emit.field(op, RUNS), [w, *start], run)[1:]


def tile(rows: int, blocks: int):
    """Writes the function that computes a tile of codes."""

    def write(emit: Emitter, op, row, panel):
        first = emit.mul(panel, I64(LANES * PANEL))  # output
        bias = emit.add(emit.field(op, BIAS), emit.shl(first, I64(2)))
        start = [emit.read(emit.add(bias, I64(64 * j)), INTS, 64) for j in range(blocks)] * rows
        totals = accumulate(emit, op, row, panel, rows, blocks, start)
        factor = emit.add(emit.field(op, FACTOR), emit.shl(first, I64(2)))
        factors = [emit.read(emit.add(factor, I64(64 * j)), FLOATS, 64) for j in range(blocks)]
        lowest, highest = (emit.splat(emit.field(op, name, F32)) for name in (LOWEST, HIGHEST))
        zero = emit.splat(emit.trunc(emit.field(op, ZERO), I32))
        mask = emit.mask(emit.sub(emit.field(op, OUTPUTS), emit.add(first, I64(LANES * (blocks - 1)))))

        def code(i, j):
            steps = emit.fmul(emit.sitofp(totals[i * blocks + j], FLOATS), factors[j])
            return emit.add(emit.rounded(emit.minimum(emit.maximum(steps, lowest), highest)), zero)

        def addresses(base, offsets):
            start, offsets = emit.add(emit.field(op, base), first), emit.add(emit.field(op, offsets), emit.shl(row, I64(2)))
            return [emit.add(start, emit.sext(emit.read(emit.add(offsets, I64(4 * i)), I32, 4), I64)) for i in range(rows)]

        def put(value, address, j):
            address = emit.add(address, I64(LANES * j))
            if j < blocks - 1:
                emit.write(emit.trunc(value, BYTES), address)
            else:
                emit.write_some(emit.trunc(value, BYTES), address, mask)

        added = emit.field(op, ADD)
        ys = addresses(Y, Y_OFFSETS)
        with emit.if_else(emit.icmp_signed("==", added, I64(0))) as (plain, adding):
            with plain:
                for i in range(rows):
                    for j in range(blocks):
                        put(code(i, j), ys[i], j)
            with adding:
                add_rows(emit, op, added, code, addresses(B, B_OFFSETS), ys, mask, put, blocks)

    return write


def add_rows(emit: Emitter, op, added, code, others, ys, mask, put, blocks: int) -> None:
    """Adds another value in codes to those of the tile. ``added``: 1 when the tile's are the first operand, 2 when they are the second."""
    ratio, b_ratio, start, lowest, highest = (emit.splat(emit.field(op, name, F32)) for name in (RATIO, B_RATIO, START, ADD_LOWEST, ADD_HIGHEST))
    is_first = emit.splat(emit.icmp_signed("==", added, I64(1)))
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
    """Writes the kernel for products: chunks of rows, in them panels of outputs, in them tiles, each a function that ``make(rows, blocks)`` writes."""

    def write(emit: Emitter, op, frame):
        rows, blocks, chunk = (emit.field(op, name) for name in (ROWS, BLOCKS, CHUNK))

        def one_chunk(index, carried):
            start = emit.mul(index, chunk)
            end = emit.smaller(emit.add(start, chunk), rows)

            def one_panel(panel, carried):
                left = emit.sub(blocks, emit.shl(panel, I64(2)))
                done = emit.append_basic_block("done")
                switch = emit.switch(left, emit.append_basic_block("full"))
                for width in range(PANEL, 0, -1):
                    if width < PANEL:
                        case = emit.append_basic_block("part")
                        switch.add_case(I64(width), case)
                    emit.position_at_end(case if width < PANEL else switch.default)
                    row = start
                    for size in reversed(TILE_ROWS):
                        tile = function(emit.module, f"quantspec_{kind}_{size}_{width}", 3, make(size, width))
                        count = emit.sdiv(emit.sub(end, row), I64(size))
                        emit.loop(count, [], tiles(tile, op, row, panel, size))
                        row = emit.add(row, emit.mul(count, I64(size)))
                    emit.branch(done)
                emit.position_at_end(done)
                return []

            def tiles(tile, op, row, panel, size):
                def one(index, carried):
                    emit.call(tile, [op, emit.add(row, emit.mul(index, I64(size))), panel])
                    return []

                return one

            return emit.loop(emit.ashr(emit.add(blocks, I64(PANEL - 1)), I64(2)), [], one_panel)

        emit.loop(emit.sdiv(emit.add(rows, emit.sub(chunk, I64(1))), chunk), [], one_chunk)

    return write


write_product = product("codes", tile)
