"""Matrix products in tiles (AMX): sixteen rows of 64 bytes times 64 by sixteen weights in one instruction, exact in
int32 as dot products of bytes are.

Weights lie as every product reads them: of a panel, sixteen steps are a tile, or two beside each other. Rows are read
where they lie if sixteen each are at equal distances and their runs are of whole tiles, which may have fewer steps.
Others are gathered: what is behind a row's last input is zero there, so that weights of another panel, which are read
there, add nothing.

A few groups of a chunk pass a panel in parts, so that its weights come from the first-level cache for all but the first
of them, and from memory while others are computed: each group fetches its share of those that are some parts away. Sums
of a part lie behind the rows until the next one. Of many groups weights are a small part of what passes.

A process asks its system once for leave to use tiles.
"""

import ctypes
import functools
import os
import struct
import warnings
from collections.abc import Callable
from functools import partial

from llvmlite import ir

from . import cpu
from .emitter import I8, I64, INTS, LANES, Emitter, Value
from .gathered import gather
from .memory import row_pitch
from .product import PANEL, Product

ROWS, STEPS = 16, 16  # of a tile: rows of inputs, steps of four at most
LEAST_STEPS = 6  # of tiles of rows where they lie: with fewer, gathered ones are quicker
GROUP = 2 * ROWS  # rows that are computed between two epilogues
PART, FEW = 8, 8  # tiles of steps, which are 16 KiB of weights; groups, from two on
AHEAD = 2**16  # bytes of weights from those that are computed with to those that are fetched
BUNDLE_BYTES = 2**14  # of the weights of panels that a group passes before the next one comes
CHUNK_BYTES = 2**19  # of gathered rows, which share the second-level cache with a panel
# From which on tiles are quicker, as measured: rows, and dot products of a row, where it lies or gathered, which costs
# as many for 64 bytes.
LEAST_ROWS, LEAST_THERE, LEAST_DOTS, DOTS_OF_COPY = 4, 8, 48, 8
ARCH_PRCTL, REQUEST, TILE_DATA = 158, 0x1023, 18  # Linux: leave to use a feature of the processor


@functools.cache
def allowed() -> bool:
    """Whether this process may use tiles: the CPU has them, and the system saves them where it switches threads. One
    warning tells where it does not (STA-TILES).
    """
    if not cpu.target().has_tiles:
        return False
    refused = ask()
    if refused:
        why = f"the operating system denies this process the AMX tiles of the CPU ({os.strerror(refused)})"
        warnings.warn(f"{why}: matrix products use VNNI instead", RuntimeWarning, stacklevel=2)
    return not refused


def ask() -> int:
    """Asks the system for tiles; the number of the error where it refuses them, else 0."""
    library = ctypes.CDLL(None, use_errno=True)
    return ctypes.get_errno() if library.syscall(ARCH_PRCTL, REQUEST, TILE_DATA) else 0


def fits(product: Product) -> bool:
    """Whether a product is large enough for tiles."""
    copies = product.runs * -(-product.run_steps // STEPS)  # of 64 bytes
    least = LEAST_THERE if product.apart else LEAST_DOTS + DOTS_OF_COPY * copies
    return product.rows >= LEAST_ROWS and product.steps * product.blocks >= least


def tile_steps(run_steps: int) -> int:
    """Steps of the largest tiles that make whole runs; 0 where they are too small."""
    return next((steps for steps in range(STEPS, LEAST_STEPS - 1, -1) if run_steps % steps == 0), 0)


def configuration(steps: int) -> bytes:
    """Eight tiles of so many steps: palette 1, bytes of a row and rows of each. Those of sums are whole, a row of
    inputs has a step in four bytes, and weights one in a row.
    """
    row_bytes = [64] * 4 + [4 * steps] * 2 + [64] * 2
    rows = [ROWS] * 6 + [steps] * 2
    return struct.pack("<B15x8H16x8B8x", 1, *row_bytes, *rows)


def row_bytes(product: Product) -> int:
    """Bytes from one gathered row to the next, or from one to the next where they lie."""
    return product.apart or row_pitch(4 * product.steps)


def prepare(product: Product) -> int:
    """Bytes of a chunk of gathered rows, of what a copy in whole vectors writes behind them, and of sums."""
    product.pitch = 0 if product.apart else row_bytes(product)
    product.tile_steps = product.tile_steps if product.apart else STEPS
    return product.chunk * product.pitch + 64 + 4 * LANES * PANEL * min(product.chunk, FEW * GROUP)


def groups(emit: Emitter, product: Value) -> Value:
    """How many groups pass a panel in parts, or 0."""
    chunk = emit.field(product, Product.chunk)
    few = emit.and_(emit.icmp_signed(">", chunk, I64(GROUP)), emit.icmp_signed("<=", chunk, I64(FEW * GROUP)))
    return emit.select(few, emit.sdiv(chunk, I64(GROUP)), I64(0))


def parts(emit: Emitter, product: Value) -> Value:
    """How many parts of a panel there are."""
    several = emit.sdiv(emit.add(tiles_of(emit, product), I64(PART - 1)), I64(PART))
    return emit.select(emit.icmp_signed(">", groups(emit, product), I64(0)), several, I64(1))


def tiles_of(emit: Emitter, product: Value) -> Value:
    """How many tiles a row has."""
    steps, of_tile = emit.fields(product, Product.steps, Product.tile_steps)
    return emit.sdiv(emit.add(steps, emit.sub(of_tile, I64(1))), of_tile)


def bundle(emit: Emitter, product: Value) -> Value:
    """As many panels as lie in the first-level cache beside a group's rows, where no panel passes in parts."""
    steps = emit.field(product, Product.steps)
    fitting = emit.sdiv(I64(BUNDLE_BYTES), emit.shl(steps, I64(7)))
    one = emit.or_(emit.icmp_signed(">", parts(emit, product), I64(1)), emit.icmp_signed("<", fitting, I64(1)))
    return emit.select(one, I64(1), fitting)


def begin(emit: Emitter, product: Value) -> None:
    """Tiles are this thread's from here on, as the product's."""
    load(emit, emit.field(product, Product.tile_steps))


def load(emit: Emitter, steps: Value) -> None:
    """Sets tiles up that have so many steps."""
    table = b"".join(map(configuration, range(1, STEPS + 1)))
    own = emit.constant("quantspec_tile_configurations", table, emit.shl(emit.sub(steps, I64(1)), I64(6)))
    emit.native("llvm.x86.ldtilecfg", ir.VoidType(), own)


def end(emit: Emitter) -> None:
    """Nobody's, so that the system need not save them."""
    emit.native("llvm.x86.tilerelease", ir.VoidType())


def before_chunk(emit: Emitter, product: Value, start: Value, end: Value) -> None:
    """Rows from ``start`` to ``end`` to the buffer, unless they are read where they lie."""
    steps, pitch = emit.fields(product, Product.steps, Product.pitch)
    with emit.if_then(emit.icmp_signed(">", pitch, I64(0))):
        gather(emit, product, start, end, partial(copy, emit), lambda row: finish(emit, row, steps))


def copy(emit: Emitter, source: Value, target: Value, count: Value) -> None:
    """Bytes, in whole vectors: some behind the last one, too."""

    def vector(n: Value) -> None:
        at = emit.shl(n, I64(6))
        emit.write(emit.read(emit.add(source, at), INTS), emit.add(target, at))

    emit.each(emit.ashr(emit.add(count, I64(63)), I64(6)), vector)


def before_panel(emit: Emitter, product: Value, panel: Value, blocks: int) -> None:
    """Nothing: weights lie as tiles are read."""


def finish(emit: Emitter, target: Value, steps: Value) -> None:
    """Zeros to a whole tile."""
    last = emit.shl(emit.ashr(emit.sub(steps, I64(1)), I64(4)), I64(4))  # the first step of the last tile
    end_of_row = emit.add(target, emit.shl(last, I64(2)))
    held = emit.read(end_of_row, INTS)
    emit.write(emit.select(emit.mask(emit.sub(steps, last)), held, emit.splat(0, INTS)), end_of_row)


def compute(
    emit: Emitter, product: Value, blocks: int, panel: Value, row: Value, first: Value, count: Value, part: Value
) -> Value:
    """The sums of up to 32 rows."""
    steps, pitch, chunk, apart = emit.fields(product, Product.steps, Product.pitch, Product.chunk, Product.apart)
    buffer, begin = emit.field(product, Product.buffer), emit.mul(part, I64(PART))
    gathered = emit.icmp_signed(">", pitch, I64(0))
    distance = emit.select(gathered, pitch, apart)
    x, offsets, run_offsets, runs = emit.fields(
        product, Product.x, Product.x_offsets, Product.run_offsets, Product.runs
    )
    # Of rows where they lie, where each tile is; of gathered ones some place that may be read.
    tile_places = emit.select(gathered, run_offsets, emit.add(run_offsets, emit.shl(runs, I64(2))))
    weight = emit.add(emit.field(product, Product.weight), emit.mul(panel, emit.mul(steps, I64(64 * PANEL))))
    of_tile = emit.field(product, Product.tile_steps)
    tile_bytes = emit.mul(of_tile, I64(64 * blocks))  # of weights
    weight = emit.add(weight, emit.mul(begin, tile_bytes))
    tiles = emit.sub(tiles_of(emit, product), begin)
    few = groups(emit, product)
    several = emit.icmp_signed(">", few, I64(0))
    # Each group's own, or where those of the group before were, which is in the cache.
    own = emit.select(several, emit.mul(first, I64(64 * blocks)), I64(0))
    sums = emit.add(emit.add(buffer, emit.add(emit.mul(chunk, pitch), I64(64))), own)
    tiles = emit.select(several, emit.smaller(tiles, I64(PART)), tiles)
    lines = emit.sdiv(emit.select(several, emit.mul(of_tile, I64(blocks)), I64(0)), emit.select(several, few, I64(1)))
    share = emit.mul(emit.mul(emit.sdiv(first, I64(GROUP)), tiles), lines)
    ahead = emit.add(emit.add(weight, I64(AHEAD)), emit.shl(share, I64(6)))

    def rows(high: int) -> None:
        """``high`` tiles of rows by ``blocks``: accumulators are the tiles 0 to 3, rows 4 and 5, weights 6 and 7."""
        nothing, line = ir.VoidType(), I64(64 * blocks)

        def begins(i: int) -> Value:
            """Where the first row of a tile does."""
            near = emit.add(buffer, emit.mul(emit.add(first, I64(ROWS * i)), pitch))
            return emit.select(gathered, near, emit.add(x, emit.int_at(offsets, emit.add(row, I64(ROWS * i)), 4)))

        sources = [begins(i) for i in range(high)]

        def each(act: Callable[[int, Value], None]) -> None:
            for i in range(high):
                for j in range(blocks):
                    act(i * blocks + j, emit.add(sums, I64(64 * (ROWS * blocks * i + j))))

        def from_zero(number: int, at: Value) -> None:
            emit.native("llvm.x86.tilezero", nothing, I8(number))

        def go_on(number: int, at: Value) -> None:
            emit.native("llvm.x86.tileloadd64", nothing, I8(number), emit.lines(at, line, ROWS), line)

        def put(number: int, at: Value) -> None:
            at = emit.lines(at, line, ROWS, writes=True)
            emit.native("llvm.x86.tilestored64", nothing, I8(number), at, line)

        with emit.if_else(emit.icmp_signed("==", part, I64(0))) as (start, more):
            with start:
                each(from_zero)
            with more:
                each(go_on)

        def tile(k: Value) -> None:
            fetched = emit.add(ahead, emit.shl(emit.mul(k, lines), I64(6)))
            emit.each(lines, lambda n: emit.prefetch(emit.add(fetched, emit.shl(n, I64(6)))))
            w = emit.add(weight, emit.mul(k, tile_bytes))
            for j in range(blocks):
                at = emit.lines(emit.add(w, I64(64 * j)), line, ROWS)
                emit.native("llvm.x86.tileloadd64", nothing, I8(6 + j), at, line)
            number = emit.add(begin, k)
            told = emit.int_at(tile_places, emit.select(gathered, I64(0), number), 4)
            along = emit.select(gathered, emit.shl(number, I64(6)), told)
            for i in range(high):
                lies = emit.lines(emit.add(sources[i], along), distance, ROWS)
                emit.native("llvm.x86.tileloadd64", nothing, I8(4 + i), lies, distance)
                for j in range(blocks):
                    emit.native("llvm.x86.tdpbusd", nothing, I8(i * blocks + j), I8(4 + i), I8(6 + j))

        emit.each(tiles, tile)
        each(put)

    with emit.if_else(emit.icmp_signed(">", count, I64(ROWS))) as (full, half):
        with full:
            rows(2)
        with half:
            rows(1)
    return sums
