"""Matrix products whose rows are computed in groups, for a unit of the CPU that reads operands in a form of its own.

A chunk of rows passes panel by panel. ``tiles`` gathers a chunk's rows first, ``magnitudes`` rewrites them or a panel's
weights; what they write lies in a buffer. Weights stay as every product reads them. A unit sums a group of rows by a
panel up, to memory of the group's function, which the epilogues of the other products read.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np

from . import cpu, magnitudes, tiles
from .emitter import I64, Body, Emitter, Function, Value, function
from .memory import SLACK, offset_table
from .product import PANEL, Product, ProductInstruction

AFTER = 8, 1  # rows of the epilogues' functions


class Unit(Protocol):
    """What multiplies. ``GROUP``: rows that it sums up at a time; ``CHUNK_BYTES``: of the rows of a chunk."""

    @property
    def GROUP(self) -> int: ...
    @property
    def CHUNK_BYTES(self) -> int: ...

    def allowed(self) -> bool:
        """Whether this process may use it."""

    def fits(self, product: Product) -> bool:
        """Whether it is quicker for a product than dot products."""

    def row_bytes(self, product: Product) -> int:
        """Bytes that a row of a chunk takes."""

    def prepare(self, product: Product) -> int:
        """Decides how it computes a product whose chunks are known; the bytes that it writes to."""

    def begin(self, emit: Emitter, product: Value) -> None:
        """Sets it up for a thread and a product."""

    def end(self, emit: Emitter) -> None:
        """Gives it back."""

    def before_chunk(self, emit: Emitter, product: Value, start: Value, end: Value) -> None:
        """What comes before the panels of a chunk."""

    def before_panel(self, emit: Emitter, product: Value, panel: Value, blocks: int) -> None:
        """What comes before the groups of a panel."""

    def parts(self, emit: Emitter, product: Value) -> Value:
        """In how many parts, which are of its steps, a chunk's groups pass a panel one after the other."""

    def bundle(self, emit: Emitter, product: Value) -> Value:
        """How many panels a group passes before the next one comes, so that its outputs are whole lines."""

    def compute(
        self, emit: Emitter, product: Value, blocks: int, panel: Value, row: Value, first: Value, count: Value,
        part: Value,
    ) -> Value:  # fmt: skip
        """Where the sums of ``count`` rows from ``row`` on lie, ``first`` in their chunk, by a panel of ``blocks``, up
        to the end of a ``part``, those before it computed: int32 [row][block][16].
        """


def unit() -> Unit | None:
    """The unit of the CPU to compile for, if it has one."""
    target = cpu.target()
    if target.has_tiles:
        return tiles
    return magnitudes if target.has_pairs else None


def group() -> int:
    """Rows that are computed at a time where they are computed in groups."""
    own = unit()
    return own.GROUP if own is not None else 1


def tile_steps(steps: int, run_steps: int, blocks: int) -> int:
    """Steps of the tiles by which products with so many are quicker where sixteen rows are at equal distances, and
    read there; or 0.
    """
    own = unit()
    if own is not tiles or not own.allowed() or steps * blocks < tiles.LEAST_THERE:
        return 0
    return tiles.tile_steps(run_steps)


def tile_offsets(run_offsets: Sequence[int], run_steps: int, of_tile: int) -> np.ndarray:
    """Where runs begin in a row, int32, and behind that where their tiles do."""
    inside = 4 * np.arange(0, run_steps if of_tile else 0, of_tile or 1)
    return offset_table(np.concatenate([run_offsets, np.add.outer(run_offsets, inside).ravel()]))


def sixteens_bytes(rows: int, pitch: int) -> int:
    """Bytes of rows that lie ``pitch`` apart, with room to read whole sixteens of them."""
    return -(-rows // tiles.ROWS) * tiles.ROWS * pitch + SLACK


def rows_apart(keep: Callable[[np.ndarray], int], rows: int, pitch: int, steps: int, blocks: int) -> dict[str, int]:
    """Where the rows of a product of one run are that lie ``pitch`` bytes apart, in ``sixteens_bytes``.

    ``keep`` gives the address of an array that lives as long.
    """
    of_tile = tile_steps(steps, steps, blocks)
    return dict(
        rows=rows, runs=1, run_steps=steps, run_offsets=keep(tile_offsets([0], steps, of_tile)),
        x_offsets=keep(offset_table(np.arange(rows) * pitch)), apart=pitch if of_tile else 0, tile_steps=of_tile,
    )


def give_buffers(products: Iterable[Product], room: Callable[[int], int]) -> None:
    """Has those of a frame's products that are quicker so computed in groups, with a buffer that they share: ``room``
    gives the address of so many bytes.
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
    buffer = room(max([own.prepare(product) for product in those]))
    for product in those:
        product.buffer = buffer


def chunk_rows(own: Unit, product: Product) -> int:
    """Rows of a chunk, in whole groups, chunks of about the same size."""
    groups = -(-product.rows // own.GROUP)
    most = max(1, own.CHUNK_BYTES // (own.GROUP * own.row_bytes(product)))
    return -(-groups // -(-groups // most)) * own.GROUP


def by_width(emit: Emitter, blocks: Value, panel: Value, act: Callable[[int], object]) -> None:
    """``act(width)`` for the blocks of a panel, of which the last one may have fewer."""
    wide = emit.icmp_signed(">=", emit.sub(blocks, emit.mul(panel, I64(PANEL))), I64(PANEL))
    with emit.if_else(wide) as (full, part):
        with full:
            act(PANEL)
        with part:
            act(1)


def group_function(own: Unit, blocks: int, epilogues: list[Function]) -> Body:
    """Writes the function that computes a ``part`` of a group of rows of a panel: those from ``row`` on, which are the
    chunk's from ``first`` on. The ``last`` one makes outputs of the sums.
    """

    def write(
        emit: Emitter, op: Value, row: Value, first: Value, count: Value, panel: Value, part: Value, last: Value
    ) -> None:
        product = emit.place(op, ProductInstruction.product)
        sums = own.compute(emit, product, blocks, panel, row, first, count, part)
        of_size = dict(zip(AFTER, epilogues))

        def some(rows: int, at: Value) -> None:
            place = emit.add(sums, emit.mul(at, I64(64 * blocks)))
            emit.call(of_size[rows], [op, emit.add(row, at), panel, place])

        with emit.if_then(emit.icmp_signed("==", part, last)):
            emit.in_sizes(count, AFTER, some)

    return write


# What writes what comes behind a panel of so many blocks, once for each panel.
Behind = Callable[[Emitter, Value, Value, int], object]


def behind_panel(emit: Emitter, op: Value, chunk: Value, panel: Value, behind: Behind) -> None:
    """``behind`` for a panel of the first chunk, and nothing in others."""
    blocks = emit.field(emit.place(op, ProductInstruction.product), Product.blocks)
    with emit.if_then(emit.icmp_signed("==", chunk, I64(0))):
        by_width(emit, blocks, panel, lambda width: behind(emit, op, panel, width))


def in_groups(
    emit: Emitter, own: Unit, op: Value, kind: str, epilogues: Callable[[int], list[Function]],
    behind: Behind | None,
) -> None:  # fmt: skip
    """All chunks of a product. ``epilogues(blocks)`` are the functions, of as many rows as ``AFTER`` says, that make
    outputs of sums; ``behind`` as for products.
    """
    product = emit.place(op, ProductInstruction.product)
    rows, blocks, chunk = emit.fields(product, Product.rows, Product.blocks, Product.chunk)
    functions = {
        n: function(emit.module, f"quantspec_{kind}_group_{n}", 7, group_function(own, n, epilogues(n)))
        for n in range(1, PANEL + 1)
    }
    own.begin(emit, product)
    parts, bundle = own.parts(emit, product), own.bundle(emit, product)
    panels = emit.sdiv(emit.add(blocks, I64(PANEL - 1)), I64(PANEL))

    def one_chunk(index: Value) -> None:
        start = emit.mul(index, chunk)
        end = emit.smaller(emit.add(start, chunk), rows)
        own.before_chunk(emit, product, start, end)
        groups = emit.sdiv(emit.add(emit.sub(end, start), I64(own.GROUP - 1)), I64(own.GROUP))

        def one_bundle(number: Value) -> None:
            begin = emit.mul(number, bundle)
            count = emit.smaller(bundle, emit.sub(panels, begin))

            def ready(n: Value) -> None:
                panel = emit.add(begin, n)
                by_width(emit, blocks, panel, lambda width: own.before_panel(emit, product, panel, width))

            def group(number: Value, part: Value) -> None:
                first = emit.mul(number, I64(own.GROUP))
                row = emit.add(start, first)
                left = emit.smaller(emit.sub(end, row), I64(own.GROUP))

                def one_panel(n: Value) -> None:
                    panel = emit.add(begin, n)
                    told = [op, row, first, left, panel, part, emit.sub(parts, I64(1))]
                    by_width(emit, blocks, panel, lambda width: emit.call(functions[width], told))

                emit.each(count, one_panel)

            emit.each(count, ready)
            emit.each(parts, lambda part: emit.each(groups, lambda number: group(number, part)))
            if behind is not None:
                emit.each(count, lambda n: behind_panel(emit, op, index, emit.add(begin, n), behind))

        emit.each(emit.sdiv(emit.add(panels, emit.sub(bundle, I64(1))), bundle), one_bundle)

    emit.each(emit.sdiv(emit.add(rows, emit.sub(chunk, I64(1))), chunk), one_chunk)
    own.end(emit)
