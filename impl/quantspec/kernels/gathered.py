"""Matrix products whose rows of inputs are gathered first, for instructions that want them at equal distances.

A chunk of rows is gathered into a buffer for all panels, in whatever form the CPU's unit multiplies: ``tiles`` or
``pairs``. Weights stay as every product reads them. A unit sums a group of rows by a panel up, to a buffer of the
group's function, which the epilogues of the other products read.
"""

from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np
from llvmlite import ir

from . import cpu, pairs, tiles
from .emitter import I32, I64, LANES, Body, Emitter, Function, Value, Vector, function
from .memory import aligned
from .product import PANEL, Product, ProductInstruction

AFTER = 8, 1  # rows of the epilogues' functions


class Unit(Protocol):
    """What multiplies.

    ``GROUP``: rows that it sums up at a time; ``CHUNK_BYTES``: of a chunk of gathered rows; ``VECTOR``: in which bytes
    are copied.
    """

    @property
    def GROUP(self) -> int: ...
    @property
    def CHUNK_BYTES(self) -> int: ...
    @property
    def VECTOR(self) -> Vector: ...

    def allowed(self) -> bool:
        """Whether this process may use it."""

    def fits(self, product: Product) -> bool:
        """Whether it is quicker for a product than what takes inputs where they lie."""

    def pitch_of(self, product: Product) -> int:
        """Bytes from one gathered row to the next."""

    def pitch(self, emit: Emitter, product: Value) -> Value:
        """The same where it runs."""

    def begin(self, emit: Emitter) -> None:
        """Sets it up for a thread."""

    def end(self, emit: Emitter) -> None:
        """Gives it back."""

    def finish(self, emit: Emitter, product: Value, target: Value, steps: Value) -> None:
        """What comes behind the last run of a row."""

    def compute(
        self, emit: Emitter, product: Value, blocks: int, panel: Value, source: Value, count: Value, sums: Value
    ) -> None:
        """The sums of ``count`` gathered rows by a panel of ``blocks``, int32 [row][block][16]."""


def unit() -> Unit | None:
    """The unit of the CPU to compile for, if it has one."""
    target = cpu.target()
    if target.has_tiles:
        return tiles
    return pairs if target.has_pairs else None


def group() -> int:
    """Rows that are computed at a time where rows are gathered."""
    own = unit()
    return own.GROUP if own is not None else 1


def give_buffers(products: Iterable[Product], keep: Callable[[np.ndarray], int]) -> None:
    """Has those of a frame's products that are quicker so gather their rows, in a buffer that they share, whose
    address ``keep`` gives.
    """
    products, own = list(products), unit()
    for product in products:
        product.buffer = 0
    if own is None or not own.allowed():
        return
    those = [product for product in products if product.rows > 0 and own.fits(product)]
    if not those:
        return
    for product in those:
        product.chunk = chunk_rows(own, product)
    buffer = keep(aligned(max(product.chunk * own.pitch_of(product) for product in those) + 64))
    for product in those:
        product.buffer = buffer


def chunk_rows(own: Unit, product: Product) -> int:
    """Rows of a chunk, in whole groups, chunks of about the same size."""
    groups = -(-product.rows // own.GROUP)
    most = max(1, own.CHUNK_BYTES // (own.GROUP * own.pitch_of(product)))
    return -(-groups // -(-groups // most)) * own.GROUP


def copy(emit: Emitter, kind: Vector, source: Value, target: Value, count: Value) -> None:
    """Bytes, in whole vectors: some behind the last one, too."""
    size = kind.count * (kind.element.width // 8)
    shift = size.bit_length() - 1

    def vector(n: Value) -> None:
        at = emit.shl(n, I64(shift))
        emit.write(emit.read(emit.add(source, at), kind), emit.add(target, at))

    emit.each(emit.ashr(emit.add(count, I64(size - 1)), I64(shift)), vector)


def gather(emit: Emitter, own: Unit, product: Value, start: Value, end: Value) -> None:
    """Rows from ``start`` to ``end`` to the buffer: their runs after one another."""
    buffer, x, offsets, run_offsets, runs, run_steps, steps = emit.fields(
        product, Product.buffer, Product.x, Product.x_offsets, Product.run_offsets, Product.runs, Product.run_steps,
        Product.steps,
    )  # fmt: skip
    pitch, run_bytes = own.pitch(emit, product), emit.shl(run_steps, I64(2))

    def row(index: Value) -> None:
        source = emit.add(x, emit.int_at(offsets, emit.add(start, index), 4))
        target = emit.add(buffer, emit.mul(index, pitch))

        def run(number: Value) -> None:
            near = emit.add(source, emit.int_at(run_offsets, number, 4))
            copy(emit, own.VECTOR, near, emit.add(target, emit.mul(number, run_bytes)), run_bytes)

        emit.each(runs, run)
        own.finish(emit, product, target, steps)

    emit.each(emit.sub(end, start), row)


def group_function(own: Unit, blocks: int, epilogues: list[Function]) -> Body:
    """Writes the function that computes a group of rows of a panel: those from ``row`` on, which are gathered from
    ``first`` on.
    """

    def write(emit: Emitter, op: Value, row: Value, first: Value, count: Value, panel: Value) -> None:
        product = emit.place(op, ProductInstruction.product)
        sums = emit.stack(ir.ArrayType(I32, own.GROUP * LANES * blocks), align=64)
        source = emit.add(emit.field(product, Product.buffer), emit.mul(first, own.pitch(emit, product)))
        own.compute(emit, product, blocks, panel, source, count, sums)
        done = I64(0)
        for rows, epilogue in zip(AFTER, epilogues):
            times = emit.sdiv(emit.sub(count, done), I64(rows))

            def some(index: Value, rows: int = rows, epilogue: Function = epilogue, done: Value = done) -> None:
                at = emit.add(done, emit.mul(index, I64(rows)))
                emit.call(epilogue, [op, emit.add(row, at), panel, emit.add(sums, emit.mul(at, I64(64 * blocks)))])

            emit.each(times, some)
            done = emit.add(done, emit.mul(times, I64(rows)))

    return write


def in_groups(emit: Emitter, own: Unit, op: Value, kind: str, epilogues: Callable[[int], list[Function]]) -> None:
    """All chunks of a product. ``epilogues(blocks)`` are the functions, of as many rows as ``AFTER`` says, that make
    outputs of sums.
    """
    product = emit.place(op, ProductInstruction.product)
    rows, blocks, chunk = emit.fields(product, Product.rows, Product.blocks, Product.chunk)
    functions = {
        n: function(emit.module, f"quantspec_{kind}_group_{n}", 5, group_function(own, n, epilogues(n)))
        for n in range(1, PANEL + 1)
    }
    own.begin(emit)

    def one_chunk(index: Value) -> None:
        start = emit.mul(index, chunk)
        end = emit.smaller(emit.add(start, chunk), rows)
        gather(emit, own, product, start, end)
        groups = emit.sdiv(emit.add(emit.sub(end, start), I64(own.GROUP - 1)), I64(own.GROUP))

        def one_panel(panel: Value) -> None:
            def cover(width: int) -> None:
                def group(number: Value) -> None:
                    first = emit.mul(number, I64(own.GROUP))
                    row = emit.add(start, first)
                    count = emit.smaller(emit.sub(end, row), I64(own.GROUP))
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
    own.end(emit)
