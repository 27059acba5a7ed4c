"""Codes from the order that kernels have them in to that of an array, and back; floats in the order of an array."""

from functools import partial

from llvmlite import ir

from .emitter import BYTES, FLOATS, I32, I64, LANES, Emitter, Value, Vector
from .frame import run_alone, slot_or
from .images import Operands, OverBytes, by_sixteen, over_bytes
from .jit import Kernel
from .records import Address, Instruction, Integer, Slot


class Copy(OverBytes):
    """Runs of bytes. Either side may be an input or output of the program, from ``begin`` on."""

    source_slot: Slot
    target_slot: Slot
    begin: Integer


class Transpose(Instruction):
    """The ``columns`` codes of each of the ``rows`` of a source as ``rows`` codes of each of the ``columns`` of a
    target, in each line of each plane; or as many floats.

    All distances are in bytes. Either side may be an input or output of the program, from ``begin`` on.
    """

    source: Address
    target: Address
    source_slot: Slot
    target_slot: Slot
    begin: Integer
    planes: Integer
    lines: Integer
    rows: Integer
    columns: Integer
    source_plane: Integer
    source_line: Integer
    source_row: Integer
    target_plane: Integer
    target_line: Integer
    target_column: Integer


def side(emit: Emitter, frame: Value, slot: Value, inside: Value, begin: Value) -> Value:
    """Where one side begins: ``inside``, or ``begin`` behind the start of an input or output."""
    return emit.add(slot_or(emit, frame, slot, inside), emit.select(emit.icmp_signed("<", slot, I64(0)), I64(0), begin))


def write_copy(emit: Emitter, op: Value, frame: Value) -> None:
    """Runs of bytes as they are."""
    operands, begin = emit.place(op, Copy.operands), emit.field(op, Copy.begin)
    for slot, address in ((Copy.source_slot, Operands.a), (Copy.target_slot, Operands.target)):
        start = side(emit, frame, emit.field(op, slot), emit.field(operands, address), begin)
        emit.put_field(operands, address, start)

    def run(a: Value, b: Value, target: Value, count: Value) -> None:
        def sixteen(at: Value, mask: Value | None) -> None:
            nothing = ir.Constant(BYTES, [0] * LANES)
            source = emit.add(a, at)
            codes = emit.read_some(source, BYTES, mask, nothing)
            emit.write_some(codes, emit.add(target, at), mask)

        by_sixteen(emit, count, sixteen)

    over_bytes(emit, op, run)


def transposed(emit: Emitter, rows: list[Value]) -> list[Value]:
    """Sixteen vectors of sixteen lanes as their columns: what interleaves the first eight with the last eight moves
    each bit of a lane's place by one, so that doing it four times has rows and columns change places."""
    halves = [[place // 2 + 8 * high + LANES * (place % 2) for place in range(LANES)] for high in (0, 1)]
    orders = [ir.Constant(ir.VectorType(I32, LANES), order) for order in halves]
    for _ in range(4):
        pairs = zip(rows[:8], rows[8:])
        rows = [emit.shuffle_vector(a, b, order) for a, b in pairs for order in orders]
    return rows


def write_transpose(emit: Emitter, op: Value, frame: Value, kind: Vector = BYTES) -> None:
    """Blocks of sixteen rows and columns of a ``kind``; what is behind the last of them is neither read nor written."""
    size = I64(4 if kind is FLOATS else 1)
    source, target = (
        side(emit, frame, *emit.fields(op, slot, inside, Transpose.begin))
        for slot, inside in (
            (Transpose.source_slot, Transpose.source), (Transpose.target_slot, Transpose.target)
        )
    )  # fmt: skip
    planes, lines, rows, columns, from_row, to_column = emit.fields(
        op, Transpose.planes, Transpose.lines, Transpose.rows, Transpose.columns, Transpose.source_row,
        Transpose.target_column,
    )  # fmt: skip
    distances = (
        (Transpose.source_plane, Transpose.source_line), (Transpose.target_plane, Transpose.target_line)
    )  # fmt: skip
    nothing = ir.Constant(kind, [0] * LANES)

    def block(near: Value, far: Value, height: Value | None, width: Value | None) -> None:
        """A block from ``near`` to ``far``, of so many rows and columns where there are not sixteen of each."""

        def at(start: Value, i: int, count: Value | None, distance: Value) -> Value:
            number = I64(i) if count is None else emit.smaller(I64(i), emit.sub(count, I64(1)))
            return emit.add(start, emit.mul(number, distance))

        reads = [at(near, i, height, from_row) for i in range(LANES)]
        if height is None or width is None:
            found = [emit.read(address, kind) for address in reads]
        else:
            mask = emit.mask(width)
            found = [emit.read_some(address, kind, mask, nothing) for address in reads]
        # The last one first: what columns there are not is written to the last there is, and overwritten by that.
        for i, column in reversed([*enumerate(transposed(emit, found))]):
            address = at(far, i, width, to_column)
            if height is None or width is None:
                emit.write(column, address)
            else:
                emit.write_some(column, address, emit.mask(height))

    def line(near: Value, far: Value) -> None:
        def of_rows(r: Value) -> None:
            first_row = emit.shl(r, I64(4))
            height = emit.sub(rows, first_row)
            start, end = emit.add(near, emit.mul(first_row, from_row)), emit.add(far, emit.mul(first_row, size))

            def of_columns(c: Value) -> None:
                first = emit.shl(c, I64(4))
                width = emit.sub(columns, first)
                here, there = emit.add(start, emit.mul(first, size)), emit.add(end, emit.mul(first, to_column))
                whole = emit.icmp_signed(">=", emit.smaller(height, width), I64(LANES))
                with emit.if_else(whole) as (all_of_it, a_part):
                    with all_of_it:
                        block(here, there, None, None)
                    with a_part:
                        block(here, there, height, width)

            emit.each(emit.vectors_of(columns), of_columns)

        emit.each(emit.vectors_of(rows), of_rows)

    def plane(p: Value) -> None:
        starts = [
            emit.add(start, emit.mul(p, emit.field(op, distance)))
            for start, (distance, _) in zip((source, target), distances)
        ]

        def of_lines(n: Value) -> None:
            line(*(
                emit.add(start, emit.mul(n, emit.field(op, distance)))
                for start, (_, distance) in zip(starts, distances)
            ))  # fmt: skip

        emit.each(lines, of_lines)

    emit.each(planes, plane)


COPY = Kernel("copy", Copy, write_copy)
TRANSPOSE = Kernel("transpose", Transpose, write_transpose)
TRANSPOSE_FLOATS = Kernel("transpose_floats", Transpose, partial(write_transpose, kind=FLOATS))


def transpose_floats(source: int, target: int, *, planes: int, rows: int, columns: int) -> None:
    """Matrices of float32 one behind the other, [planes, rows, columns], as [planes, columns, rows]."""
    plane = 4 * rows * columns
    run_alone(TRANSPOSE_FLOATS, Transpose(
        source=source, target=target, source_slot=-1, target_slot=-1, begin=0, planes=planes, lines=1, rows=rows,
        columns=columns, source_plane=plane, source_line=0, source_row=4 * columns, target_plane=plane, target_line=0,
        target_column=4 * rows,
    ))  # fmt: skip
