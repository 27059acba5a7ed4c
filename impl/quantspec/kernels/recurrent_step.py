"""One step of a recurrent network for one sample: the product of the state and the cell behind it, a panel of outputs
after the other (DYN-RECURRENT).

A product of one row takes as long as its weights take from the second-level cache, and a cell as long as its arithmetic
does. So while a panel's cell is computed, weights of the next panel are fetched into the first-level cache.
"""

from functools import partial

from . import gemm
from .dynamic_gemm import DynamicProduct, float_tile
from .emitter import I32, I64, INTS, LANES, Body, Emitter, Value, function
from .jit import Kernel
from .product import PANEL, Product
from .records import Nested
from .recurrent_cell import KINDS, Cell, Kind, is_wide, outputs

FETCHED = 96  # lines for each vector of outputs: as many as come in the time that it takes
WIDTH = LANES * PANEL  # outputs of a panel


class Step(DynamicProduct):
    """The product of one row, whose outputs are the state's gates of a cell, and that cell. ``product.buffer`` has room
    for the sums of one panel of each gate.
    """

    cell: Nested[Cell]


def step(kind: Kind) -> Body:
    """Writes the kernel for one step of a kind of network: 1 when a gate is no finite number."""

    def write(emit: Emitter, op: Value, frame: Value) -> Value:
        product, own = emit.place(op, Step.product), emit.place(op, Step.cell)
        sums = function(emit.module, "quantspec_sums_of_gates", 2, partial(sums_of_gates, kind))
        floats = function(emit.module, f"quantspec_dynamic_after_1_{PANEL}", 4, float_tile(1, PANEL, False))
        cell = function(emit.module, "quantspec_cell_of_panel", 3, partial(of_panel, kind))
        panels = emit.sdiv(emit.field(own, Cell.size), I64(WIDTH))
        nbytes = emit.mul(emit.field(product, Product.steps), I64(4 * WIDTH))
        weights, buffer = emit.fields(product, Product.weight, Product.buffer)
        emit.put_field(product, Product.advance, emit.mul(nbytes, panels))

        def one_panel(panel: Value) -> Value:
            start = emit.add(weights, emit.mul(nbytes, panel))
            emit.call(sums, [op, start])
            for gate in range(kind.gates):
                of_gate = emit.add(panel, emit.mul(panels, I64(gate)))
                emit.call(floats, [op, I64(0), of_gate, emit.add(buffer, I64(4 * WIDTH * gate))])
            emit.put_field(product, Product.ahead, emit.add(start, nbytes))
            return emit.call(cell, [op, frame, panel])

        return emit.any_of(panels, one_panel)

    return write


def sums_of_gates(kind: Kind, emit: Emitter, op: Value, start: Value) -> None:
    """Writes the sums of products of one panel of each gate, whose weights begin at ``start``, to the buffer."""
    product = emit.place(op, Step.product)
    steps, apart, buffer = emit.fields(product, Product.steps, Product.advance, Product.buffer)
    x = gemm.addresses(emit, emit.field(product, Product.x), emit.field(product, Product.x_offsets), I64(0), 1)[0]
    starts = [emit.add(start, emit.mul(apart, I64(gate))) for gate in range(kind.gates)]

    def one_step(k: Value, totals: list[Value]) -> list[Value]:
        four = emit.splat(emit.read(emit.add(x, emit.shl(k, I64(2))), I32))
        ahead = emit.mul(k, I64(4 * WIDTH))
        weights = [
            emit.read(emit.add(emit.add(start, ahead), I64(64 * block)), INTS, 64)
            for start in starts for block in range(PANEL)
        ]  # fmt: skip
        return [emit.dot(total, four, w) for total, w in zip(totals, weights)]

    totals = emit.loop(steps, [emit.splat(0, INTS)] * (PANEL * kind.gates), one_step)
    for n, total in enumerate(totals):
        emit.write(total, emit.add(buffer, I64(64 * n)), 64)


def of_panel(kind: Kind, emit: Emitter, op: Value, frame: Value, panel: Value) -> Value:
    """Writes the cell of a panel's outputs."""
    product, own = emit.place(op, Step.product), emit.place(op, Step.cell)
    ahead, advance = emit.fields(product, Product.ahead, Product.advance)

    def fetch(n: Value) -> None:
        # With each vector of outputs those of another gate.
        start = emit.add(ahead, emit.mul(n, advance))
        for line in range(FETCHED):
            emit.prefetch(emit.add(start, I64(64 * line)), near=True)

    return outputs(kind, emit, own, frame, emit.mul(panel, I64(PANEL)), I64(PANEL), ends=False, meanwhile=fetch)


# Of fewer gates there are not sums enough at once to hide the latency of a dot product.
STEPS = {name: Kernel(f"{name}_step", Step, step(kind)) for name, kind in KINDS.items() if kind.gates > 2}


def kernel_of(kind: str, size: int) -> Kernel[Step] | None:
    """The kernel for a cell of so many outputs; None where these are no whole panels, or registers too few for the sums
    of a panel of each gate."""
    return STEPS.get(kind) if size % WIDTH == 0 and is_wide() else None
