"""Rows of a table of codes, dequantized (DYN-EMBEDDING), at the speed of memory."""

import threading
from collections.abc import Callable

import numpy as np

from .emitter import BYTES, F32, FLOATS, I32, I64, INTS, LANES, Emitter, Value
from .frame import Frame, caller, frame_of, slot_addresses
from .gemm import PAST_BYTES
from .jit import Kernel
from .memory import place
from .records import Address, Instruction, Integer

AHEAD = 8  # rows that are fetched before they are needed, as nobody else can guess them
LINE = 64  # bytes of a cache line
LONG = 2**18  # values from which other Python threads may run meanwhile


class Rows(Instruction):
    """``count`` indices of rows of a table of ``height`` by ``width`` codes; ``scale_step``: bytes from the scale of a
    row to that of the next, 0 where all have the same.

    ``past``: whether floats go past the caches, whole lines of them.
    """

    codes: Address
    scales: Address
    scale_step: Integer
    count: Integer
    height: Integer
    width: Integer
    past: Integer = Integer()


def write_rows(index_bytes: int) -> Callable[[Emitter, Value, Value], Value]:
    """Writes the kernel from indices, the first slot, to floats, the second; 1 when an index is outside."""

    def write(emit: Emitter, op: Value, frame: Value) -> Value:
        indices, target = slot_addresses(emit, frame)
        codes, scales, scale_step, count, height, width = emit.fields(
            op, Rows.codes, Rows.scales, Rows.scale_step, Rows.count, Rows.height, Rows.width
        )
        whole, past = emit.ashr(width, I64(4)), emit.flag(op, Rows.past)
        left = emit.sub(width, emit.shl(whole, I64(4)))
        mask, nothing = emit.mask(left), emit.splat(0, BYTES)

        def index(i: Value) -> Value:
            at = emit.add(indices, emit.mul(i, I64(index_bytes)))
            return emit.read(at, I64) if index_bytes == 8 else emit.sext(emit.read(at, I32), I64)

        def source(number: Value) -> Value:
            return emit.add(codes, emit.mul(number, width))

        def row(i: Value) -> Value:
            following = emit.smaller(emit.add(i, I64(AHEAD)), emit.sub(count, I64(1)))
            # Any address will do, also that of an index which is outside.
            ahead = source(index(following))
            emit.prefetch(ahead)
            emit.prefetch(emit.add(ahead, I64(LINE)))
            number = index(i)
            outside = emit.icmp_unsigned(">=", number, height)
            number = emit.select(outside, I64(0), number)
            near, far = source(number), emit.add(target, emit.mul(i, emit.shl(width, I64(2))))
            scale = emit.splat(emit.read(emit.add(scales, emit.mul(number, scale_step)), F32))

            def floats(values: Value) -> Value:
                return emit.fmul(emit.sitofp(emit.sext(values, INTS), FLOATS), scale)

            def vectors(write: Callable[[Value, Value], object]) -> None:
                def vector(n: Value) -> None:
                    at = emit.shl(n, I64(4))
                    write(floats(emit.read(emit.add(near, at), BYTES)), emit.add(far, emit.shl(at, I64(2))))

                emit.each(whole, vector)

            with emit.if_else(past) as (beside, through):
                with beside:
                    vectors(emit.write_past)
                with through:
                    vectors(emit.write)
            with emit.if_then(emit.icmp_signed(">", left, I64(0))):
                at = emit.shl(whole, I64(4))
                values = emit.read_some(emit.add(near, at), BYTES, mask, nothing)
                emit.write_some(floats(values), emit.add(far, emit.shl(at, I64(2))), mask)
            return emit.zext(outside, I64)

        return emit.any_of(count, row)

    return write


ROWS = {size: Kernel(f"embedding_{8 * size}", Rows, write_rows(size)) for size in (4, 8)}


class Table:
    """A table of codes, int8 [entries, width], and scales, float32, one or as many as rows; all lie in one piece."""

    def __init__(self, codes: np.ndarray, scales: np.ndarray):
        self.codes, self.scales, self.local = codes, scales, threading.local()

    @property
    def frames(self) -> dict[int, tuple[Frame, Rows]]:
        """This thread's, by the bytes of an index."""
        existing: dict[int, tuple[Frame, Rows]] = self.local.__dict__.setdefault("frames", {})
        return existing

    def prepared(self, index_bytes: int) -> tuple[Frame, Rows]:
        """The frame for indices of so many bytes."""
        existing = self.frames
        if index_bytes not in existing:
            (height, width), step = self.codes.shape, 4 if self.scales.size > 1 else 0
            instruction = Rows(
                codes=place(self.codes), scales=place(self.scales), scale_step=step, count=0, height=height, width=width
            )
            frame = frame_of(ROWS[index_bytes].bound(instruction))
            existing[index_bytes] = frame, Rows.on(frame.instructions[0])
        return existing[index_bytes]

    def rows(self, indices: np.ndarray, target: int) -> bool:
        """Writes the rows of some indices, int32 or int64, to an address as float32; False where one is outside."""
        frame, instruction = self.prepared(indices.itemsize)
        values, width = indices.size * self.codes.shape[1], self.codes.shape[1]
        instruction.count, frame.release = indices.size, values >= LONG
        instruction.past = 4 * values >= PAST_BYTES and width % LANES == 0 and target % LINE == 0
        return not caller()(frame.address, place(indices), target)
