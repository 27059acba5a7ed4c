"""Matrix products in tiles (AMX): sixteen rows of 64 bytes times 64 by sixteen weights in one instruction, exact in
int32 as dot products of bytes are.

Weights lie as every product reads them: of a panel, sixteen steps are a tile, or two beside each other. Rows of inputs
are gathered into a buffer first, a chunk of them for all panels, as tiles ask for equal distances and for whole tiles:
what is behind a row's last input is zero there, so that weights of another panel, which are read there, add nothing.
Accumulators go from tiles to a buffer of one tile function, which the epilogues of the other products read.

A process asks its system once for leave to use tiles.
"""

import ctypes
import functools
import os
import warnings
from collections.abc import Callable, Iterable

import numpy as np
from llvmlite import ir

from . import cpu
from .emitter import I8, I32, I64, INTS, LANES, Body, Emitter, Function, Value, function
from .memory import aligned, row_pitch
from .product import PANEL, Product, ProductInstruction

ROWS, STEPS = 16, 16  # of a tile: rows of inputs, steps of four
GROUP = 2 * ROWS  # rows that a tile function computes
AFTER = 8, 1  # rows of the epilogues' functions
CHUNK_BYTES = 2**19  # of gathered rows, which share the second-level cache with a panel
# From which on tiles are quicker, as measured: rows, and dot products of a row, of which gathering costs as many.
LEAST_ROWS, LEAST_DOTS, DOTS_OF_COPY = 4, 48, 8
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


def give_tiles(products: Iterable[Product], keep: Callable[[np.ndarray], int]) -> None:
    """Has those of a frame's products that are quicker so work in tiles, in a buffer that they share, whose address
    ``keep`` gives.
    """
    products = list(products)
    those = [product for product in products if allowed() and fits(product)]
    for product in products:
        product.tiles = 0
    for product in those:
        product.chunk = chunk_rows(product)
    if those:
        buffer = keep(aligned(max(product.chunk * pitch_of(product) for product in those) + 64))
        for product in those:
            product.tiles = buffer


def fits(product: Product) -> bool:
    """Whether a product is large enough for tiles."""
    copies = product.runs * -(-product.run_steps // STEPS)  # of 64 bytes
    return product.rows >= LEAST_ROWS and product.steps * product.blocks >= LEAST_DOTS + DOTS_OF_COPY * copies


def pitch_of(product: Product) -> int:
    """Bytes from one gathered row to the next."""
    return row_pitch(4 * product.steps)


def chunk_rows(product: Product) -> int:
    """Rows of a chunk, in whole groups, chunks of about the same size."""
    groups = -(-product.rows // GROUP)
    most = max(1, CHUNK_BYTES // (GROUP * pitch_of(product)))
    return -(-groups // -(-groups // most)) * GROUP


def configuration() -> ir.Constant:
    """All eight tiles whole: palette 1, 64 bytes a row, sixteen rows."""
    content = bytes([1, *[0] * 15]) + b"\x40\x00" * 8 + bytes(16) + bytes([ROWS] * 8 + [0] * 8)
    return ir.Constant(ir.ArrayType(I8, 64), bytearray(content))


def configure(emit: Emitter) -> None:
    """Tiles are this thread's from here on."""
    name = "quantspec_tile_configuration"
    held = emit.module.globals.get(name)
    if held is None:
        held = ir.GlobalVariable(emit.module, ir.ArrayType(I8, 64), name)
        held.linkage, held.global_constant, held.initializer, held.align = "internal", True, configuration(), 64
    emit.native("llvm.x86.ldtilecfg", ir.VoidType(), emit.bitcast(held, ir.PointerType(I8)))


def gather(emit: Emitter, product: Value, start: Value, end: Value) -> None:
    """Rows from ``start`` to ``end`` to the buffer: their runs after one another, and zeros to a whole tile."""
    buffer, x, offsets, run_offsets, runs, run_steps, steps = emit.fields(
        product, Product.tiles, Product.x, Product.x_offsets, Product.run_offsets, Product.runs, Product.run_steps,
        Product.steps,
    )  # fmt: skip
    pitch, run_bytes = row_pitch_of(emit, steps), emit.shl(run_steps, I64(2))
    vectors = emit.ashr(emit.add(run_bytes, I64(63)), I64(6))
    last = emit.shl(emit.ashr(emit.sub(steps, I64(1)), I64(4)), I64(4))  # the first step of the last tile
    mask, zeros = emit.mask(emit.sub(steps, last)), emit.splat(0, INTS)

    def row(index: Value) -> None:
        source = emit.add(x, emit.int_at(offsets, emit.add(start, index), 4))
        target = emit.add(buffer, emit.mul(index, pitch))

        def run(number: Value) -> None:
            near, far = emit.add(source, emit.int_at(run_offsets, number, 4)), emit.mul(number, run_bytes)
            far = emit.add(target, far)

            def vector(n: Value) -> None:
                at = emit.shl(n, I64(6))
                emit.write(emit.read(emit.add(near, at), INTS), emit.add(far, at))

            emit.each(vectors, vector)

        emit.each(runs, run)
        end_of_row = emit.add(target, emit.shl(last, I64(2)))
        emit.write(emit.select(mask, emit.read(end_of_row, INTS), zeros), end_of_row)

    emit.each(emit.sub(end, start), row)


def row_pitch_of(emit: Emitter, steps: Value) -> Value:
    """``pitch_of``."""
    whole = emit.shl(emit.ashr(emit.add(steps, I64(STEPS - 1)), I64(4)), I64(6))
    even = emit.icmp_signed("==", emit.and_(whole, I64(511)), I64(0))
    return emit.add(whole, emit.select(even, I64(64), I64(0)))


def tile_function(blocks: int, epilogues: list[Function]) -> Body:
    """Writes the function that computes up to 32 rows of a panel: those from ``row`` on, which are gathered from
    ``first`` on.
    """

    def write(emit: Emitter, op: Value, row: Value, first: Value, count: Value, panel: Value) -> None:
        product = emit.place(op, ProductInstruction.product)
        sums = emit.stack(ir.ArrayType(I32, GROUP * LANES * 2), align=64)
        steps, weight, buffer = emit.fields(product, Product.steps, Product.weight, Product.tiles)
        pitch, tiles = row_pitch_of(emit, steps), emit.ashr(emit.add(steps, I64(STEPS - 1)), I64(4))
        weight = emit.add(weight, emit.mul(panel, emit.mul(steps, I64(64 * PANEL))))
        source = emit.add(buffer, emit.mul(first, pitch))

        def compute(high: int) -> None:
            """``high`` tiles of rows by ``blocks``: accumulators are the tiles 0 to 3, rows 4 and 5, weights 6 and
            7.
            """
            nothing, line = ir.VoidType(), I64(64 * blocks)
            for number in range(high * blocks):
                emit.native("llvm.x86.tilezero", nothing, I8(number))

            def tile(k: Value) -> None:
                w = emit.add(weight, emit.mul(k, I64(64 * STEPS * blocks)))
                for j in range(blocks):
                    at = emit.lines(emit.add(w, I64(64 * j)), line, ROWS)
                    emit.native("llvm.x86.tileloadd64", nothing, I8(6 + j), at, line)
                for i in range(high):
                    x = emit.add(emit.add(source, emit.mul(pitch, I64(ROWS * i))), emit.shl(k, I64(6)))
                    emit.native("llvm.x86.tileloadd64", nothing, I8(4 + i), emit.lines(x, pitch, ROWS), pitch)
                    for j in range(blocks):
                        emit.native("llvm.x86.tdpbusd", nothing, I8(i * blocks + j), I8(4 + i), I8(6 + j))

            emit.each(tiles, tile)
            for i in range(high):
                for j in range(blocks):
                    at = emit.add(sums, I64(64 * (ROWS * blocks * i + j)))
                    at = emit.lines(at, line, ROWS, writes=True)
                    emit.native("llvm.x86.tilestored64", nothing, I8(i * blocks + j), at, line)

        with emit.if_else(emit.icmp_signed(">", count, I64(ROWS))) as (two, one):
            with two:
                compute(2)
            with one:
                compute(1)
        done = I64(0)
        for rows, epilogue in zip(AFTER, epilogues):
            times = emit.sdiv(emit.sub(count, done), I64(rows))

            def some(index: Value, rows: int = rows, epilogue: Function = epilogue, done: Value = done) -> None:
                at = emit.add(done, emit.mul(index, I64(rows)))
                emit.call(epilogue, [op, emit.add(row, at), panel, emit.add(sums, emit.mul(at, I64(64 * blocks)))])

            emit.each(times, some)
            done = emit.add(done, emit.mul(times, I64(rows)))

    return write


def in_tiles(emit: Emitter, op: Value, kind: str, epilogues: Callable[[int], list[Function]]) -> None:
    """All chunks of a product in tiles. ``epilogues(blocks)`` are the functions, of as many rows as ``AFTER`` says,
    that make outputs of accumulators.
    """
    product = emit.place(op, ProductInstruction.product)
    rows, blocks, chunk = emit.fields(product, Product.rows, Product.blocks, Product.chunk)
    functions = {
        n: function(emit.module, f"quantspec_{kind}_tiles_{n}", 5, tile_function(n, epilogues(n)))
        for n in range(1, PANEL + 1)
    }
    configure(emit)

    def one_chunk(index: Value) -> None:
        start = emit.mul(index, chunk)
        end = emit.smaller(emit.add(start, chunk), rows)
        gather(emit, product, start, end)
        groups = emit.sdiv(emit.add(emit.sub(end, start), I64(GROUP - 1)), I64(GROUP))

        def one_panel(panel: Value) -> None:
            def cover(width: int) -> None:
                def group(number: Value) -> None:
                    first = emit.mul(number, I64(GROUP))
                    row = emit.add(start, first)
                    count = emit.smaller(emit.sub(end, row), I64(GROUP))
                    emit.call(functions[width], [op, row, first, count, panel])

                emit.each(groups, group)

            wide = emit.icmp_signed(">=", emit.sub(blocks, emit.mul(panel, I64(PANEL))), I64(PANEL))
            with emit.if_else(wide) as (full, part):
                with full:
                    cover(PANEL)
                with part:
                    cover(1)

        emit.each(emit.sdiv(emit.add(blocks, I64(PANEL - 1)), I64(PANEL)), one_panel)

    emit.each(emit.sdiv(emit.add(rows, emit.sub(chunk, I64(1))), chunk), one_chunk)
    emit.native("llvm.x86.tilerelease", ir.VoidType())
