"""Instructions that put codes in another order: into and out of arrays of codes, and images as rows."""

from dataclasses import dataclass

import numpy as np

from quantspec.ir.program import Move
from quantspec.kernels import copies, images
from quantspec.kernels.memory import Layout

from .lowering import Export, Import, Turn, argument
from .planner import Planner

Distances = tuple[int, ...]  # in bytes, the longest first


@dataclass(frozen=True)
class Order:
    """Positions of a stack of planes: how many ``planes``, ``lines`` and ``positions``, and how many bytes are between
    two of each in ``memory``, where channels lie side by side, and in an ``array`` [images, channels, *positions],
    where positions do: there between planes, lines and channels."""

    planes: int
    lines: int
    positions: int
    channels: int
    memory: Distances
    array: Distances


def orders(layout: Layout, outer: int = 0) -> list[Order]:
    """Those of each stack of planes; ``outer``: how many bytes are between images in the array, where it has gaps."""
    area = layout.height * layout.width
    channel = layout.depth * area
    plane = area if layout.is_volume else outer or layout.channels * channel
    # Lines that nothing lies between are one.
    lines, positions = layout.height, layout.width
    if layout.line == layout.width * layout.pitch:
        lines, positions = 1, area
    array = plane, layout.width, channel
    return [
        Order(count, lines, positions, layout.channels, (distance, layout.line, layout.pitch), array)
        for _, count, distance in layout.stacks()
    ]


@dataclass(frozen=True)
class Side:
    """Where the codes of one side begin: in memory, or in an input or output of the program."""

    address: int = 0
    slot: int = -1


def emit_order(planner: Planner, order: Order, memory: Side, array: Side, *, out: bool, begin: int = 0) -> None:
    """From memory to an array where it goes ``out``, or the other way; ``begin``: where the codes begin in an input or
    output."""
    lying, standing = (memory, order.memory, order.positions), (array, order.array, order.channels)
    (source, near, rows), (target, far, columns) = (lying, standing) if out else (standing, lying)
    if order.lines * order.positions == order.array[-1] == 1:
        emit_copy(planner, (order.planes, 1, 1, order.channels), source, target, near, far, begin)
        return
    planner.emit(copies.TRANSPOSE, copies.Transpose(
        source=source.address, target=target.address, source_slot=source.slot, target_slot=target.slot, begin=begin,
        planes=order.planes, lines=order.lines, rows=rows, columns=columns,
        source_plane=near[0], source_line=near[1], source_row=near[2],
        target_plane=far[0], target_line=far[1], target_column=far[2],
    ))  # fmt: skip


def emit_copy(
    planner: Planner, counts: tuple[int, int, int, int], source: Side, target: Side, near: Distances, far: Distances,
    begin: int = 0,
) -> None:  # fmt: skip
    """Images of lines of positions of bytes, so many of each; the first three are as many bytes apart as ``near`` and
    ``far`` say.
    """
    near_strides, far_strides = (images.Strides(image=a, line=b, position=c) for a, b, c in (near, far))
    planner.emit(copies.COPY, copies.Copy(
        operands=images.Operands(
            a=source.address, b=source.address, target=target.address,
            loops=images.Loops(images=counts[0], lines=counts[1], positions=counts[2], bytes=counts[3]),
            a_strides=near_strides, b_strides=near_strides, target_strides=far_strides,
        ), source_slot=source.slot, target_slot=target.slot, begin=begin,
    ))  # fmt: skip


def emit_flatten(planner: Planner, step: Move) -> None:
    """An image as a row, in the order of an array."""
    name = argument(step)
    x, y = planner.values[name].layout, planner.values[step.name].layout
    count = planner.shapes[step.name][0]
    source, target = planner.first(name), planner.first(step.name)
    rows = x.images // count if count else 1  # rows of more than two axes join theirs
    if rows > 1:
        apart = (x.image * rows, x.image, 0), (y.image, x.channels, 0)
        emit_copy(planner, (count, rows, 1, x.channels), Side(source), Side(target), *apart)
        return
    for n, order in enumerate(orders(x, y.image)):
        emit_order(planner, order, Side(source + n * x.image), Side(target + n * y.image), out=True)


def emit_turn(planner: Planner, step: Turn) -> None:
    """Rows, one for each position, as images, or the other way."""
    x, y = planner.values[step.x].layout, planner.values[step.name].layout
    lying, row = (y, x.image) if step.first else (x, y.image)
    of_rows, before = (lying.height * lying.width * row, lying.width * row, row), 0
    for start, count, distance in lying.stacks():
        of_images = distance, lying.line, lying.pitch
        # Where the images and their rows begin, each with its distances.
        sides = (start, of_images), (before, of_rows)
        (source, near), (target, far) = sides[::-1] if step.first else sides
        counts = count, lying.height, lying.width, lying.channels
        source, target = planner.address(step.x) + source, planner.address(step.name) + target
        emit_copy(planner, counts, Side(source), Side(target), near, far)
        before += count * of_rows[0]


def emit_import(planner: Planner, step: Import) -> None:
    layout, first, slot = planner.values[step.name].layout, planner.first(step.name), planner.slot(step.x)
    for n, order in enumerate(orders(layout)):
        begin = n * layout.channels * int(np.prod(layout.counts))
        emit_order(planner, order, Side(first + n * layout.image), Side(slot=slot), out=False, begin=begin)


def emit_export(planner: Planner, step: Export) -> None:
    layout, first, slot = planner.values[step.x].layout, planner.first(step.x), planner.slot(step.name)
    for n, order in enumerate(orders(layout)):
        begin = n * layout.channels * int(np.prod(layout.counts))
        emit_order(planner, order, Side(first + n * layout.image), Side(slot=slot), out=True, begin=begin)
