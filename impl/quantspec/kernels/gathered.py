"""Rows of inputs, gathered: written to a product's buffer, their runs after one another, at equal distances."""

from collections.abc import Callable

from .emitter import I64, Emitter, Value
from .product import Product


def gather(
    emit: Emitter, product: Value, start: Value, end: Value,
    run: Callable[[Value, Value, Value], None], behind: Callable[[Value], None],
) -> None:  # fmt: skip
    """Rows from ``start`` to ``end``. ``run(near, far, nbytes)`` writes a run's bytes, and may
    write behind them; ``behind(target)`` what comes after a row's last run.
    """
    buffer, pitch, x, offsets, run_offsets, runs, run_steps = emit.fields(
        product, Product.buffer, Product.pitch, Product.x, Product.x_offsets, Product.run_offsets, Product.runs,
        Product.run_steps,
    )  # fmt: skip
    run_bytes = emit.shl(run_steps, I64(2))

    def row(index: Value) -> None:
        source = emit.add(x, emit.int_at(offsets, emit.add(start, index), 4))
        target = emit.add(buffer, emit.mul(index, pitch))

        def one_run(number: Value) -> None:
            near = emit.add(source, emit.int_at(run_offsets, number, 4))
            run(near, emit.add(target, emit.mul(number, run_bytes)), run_bytes)

        emit.each(runs, one_run)
        behind(target)

    emit.each(emit.sub(end, start), row)
