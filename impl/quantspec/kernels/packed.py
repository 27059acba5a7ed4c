"""Weights as kernels read them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from .depthwise import ORDER, WIDE
from .emitter import LANES
from .memory import LARGE_PAGE, LARGE_WEIGHTS, WEIGHT_SLACK, aligned, in_large_pages, memory_for, roomy
from .product import PANEL


@dataclass(eq=False)
class Packed:
    """The weights of a product: ``weight`` [panel][step][block][16][4], which ``put_together`` moves, ``bias`` int32
    and ``factor`` float32 with entries for all lanes of all blocks.

    ``runs`` runs of ``run_steps`` steps of four inputs. ``sums``: the sum of each output's weights. ``float_bias``:
    float32, of layers that give floats. ``moved``: whether the weights are where they stay.
    """

    outputs: int
    runs: int
    run_steps: int
    weight: np.ndarray
    bias: np.ndarray
    factor: np.ndarray
    sums: np.ndarray
    float_bias: np.ndarray | None = None
    moved: bool = False

    @property
    def blocks(self) -> int:
        return -(-self.outputs // LANES)

    def memory(self) -> int:
        """Bytes of the weights."""
        return int(self.weight.nbytes)


Runs = Callable[[np.ndarray], np.ndarray]


def pack(
    weight: np.ndarray, runs_of: Runs, bias: np.ndarray, factor: np.ndarray, bias_type: DTypeLike = np.int32,
    *, take: bool = False,
) -> Packed:  # fmt: skip
    """``weight``: int8 codes [outputs, ...], of which ``runs_of`` gives [outputs, runs, inputs of a run], also for some
    of the outputs; ``bias`` (outputs,); ``factor``: float32, () or (outputs,).

    ``take``: the memory of the codes may be used, which are no longer there then.
    """
    outputs = len(weight)
    _, runs, inputs = runs_of(weight[:1]).shape
    blocks, steps = -(-outputs // LANES), -(-inputs // 4)
    row = runs * steps * 4
    target = roomy(weight, blocks * LANES * row) if take and weight[:1].nbytes == row else None
    packed = memory_for(blocks * LANES * row) if target is None else target
    sums = np.zeros(outputs, np.int64)
    for first in range(0, blocks * LANES, LANES * PANEL):
        last = min(blocks * LANES, first + LANES * PANEL)
        own = runs_of(weight[first:last])
        padded = np.zeros((last - first, runs, steps * 4), np.int8)  # a copy, as the codes may be written over
        padded[: len(own), :, :inputs] = own
        sums[first : first + len(own)] = padded[: len(own)].sum((1, 2), dtype=np.int64)
        panel = padded.reshape(-1, LANES, runs * steps, 4).transpose(2, 0, 1, 3)
        packed[first * row : last * row].reshape(panel.shape)[...] = panel
    biases, factors = lanes(bias, outputs, bias_type), lanes(factor, outputs, np.float32)
    return Packed(outputs, runs, steps, packed, biases, factors, lanes(sums, outputs, np.int32))


def put_together(products: Iterable[Packed]) -> None:
    """Moves large weights into one block of large pages, one after the other, where there are enough of them: each
    is read from its own place of the processor's list of pages otherwise, which holds fewer than the weights take.
    """
    sharing: dict[int, list[Packed]] = {}
    for product in products:
        if product.weight.nbytes >= LARGE_WEIGHTS and not product.moved:
            sharing.setdefault(id(product.weight), []).append(product)
    nbytes = sum(-(-same[0].weight.nbytes // 64) * 64 for same in sharing.values())
    block = in_large_pages(nbytes + WEIGHT_SLACK) if nbytes >= LARGE_PAGE else None
    if block is None:
        return
    start = 0
    for same in sharing.values():
        weight = same[0].weight
        place = block[start : start + weight.nbytes]
        place[:] = weight
        for product in same:
            product.weight, product.moved = place, True
        start += -(-weight.nbytes // 64) * 64


def unpack(packed: Packed, inputs: int) -> np.ndarray:
    """The codes [outputs, runs, inputs of a run] that were packed."""
    outputs, row = packed.outputs, packed.runs * packed.run_steps * 4
    codes = np.empty((outputs, packed.runs, inputs), np.int8)
    for first in range(0, packed.blocks * LANES, LANES * PANEL):
        last = min(packed.blocks * LANES, first + LANES * PANEL)
        panel = packed.weight[first * row : last * row].reshape(row // 4, -1, LANES, 4).transpose(1, 2, 0, 3)
        own = panel.reshape(last - first, packed.runs, -1)
        codes[first:last] = own[: outputs - first, :, :inputs]
    return codes


def lanes(values: np.ndarray, outputs: int, dtype: DTypeLike) -> np.ndarray:
    """One value per lane of all blocks, zeros behind the last output. Integers wrap, as accumulators do."""
    result = aligned(-(-outputs // LANES) * LANES, dtype)
    result[:outputs] = values.astype(np.uint32).view(np.int32) if dtype == np.int32 else values
    return result


@dataclass(frozen=True, eq=False)
class PackedChannels:
    """The weights of a layer whose channels are each on their own [block of 64][group of four
    places][vector][lane][place].

    Biases, factors and other floats lie [block of 64][vector][lane] (``depthwise.ORDER``). ``float_bias``: of layers
    that give floats.
    """

    weight: np.ndarray
    bias: np.ndarray
    factor: np.ndarray
    float_bias: np.ndarray | None = None

    def memory(self) -> int:
        """Bytes of the weights."""
        return int(self.weight.nbytes)


def pack_channels(
    weight: np.ndarray, bias: np.ndarray, factor: np.ndarray, float_bias: np.ndarray | None = None
) -> PackedChannels:
    """``weight``: int8 [channels, places]; the others (channels,)."""
    channels, places = weight.shape
    # What fits several times into a block is there as many times, for as many neighbouring positions.
    times = WIDE // channels if WIDE % channels == 0 else 1
    channels *= times
    blocks, groups = -(-channels // WIDE), -(-places // 4)
    order = np.array(ORDER)

    def repeated(values: np.ndarray) -> np.ndarray:
        return np.concatenate([values] * times)

    def by_vector(values: np.ndarray, dtype: DTypeLike) -> np.ndarray:
        table, full = aligned(blocks * WIDE, dtype), np.zeros(blocks * WIDE, dtype)
        by_lane = lanes(repeated(values), channels, dtype)
        full[: len(by_lane)] = by_lane
        table[:] = full.reshape(blocks, WIDE)[:, order].ravel()
        return table

    padded = np.zeros((blocks * WIDE, groups * 4), np.int8)
    padded[:channels, :places] = repeated(weight)
    packed = aligned(padded.size, np.int8)
    packed[:] = padded.reshape(blocks, WIDE, groups, 4)[:, order].transpose(0, 3, 1, 2, 4).ravel()
    floats = None if float_bias is None else by_vector(float_bias, np.float32)
    return PackedChannels(packed, by_vector(bias, np.int32), by_vector(factor, np.float32), floats)


def unpack_channels(packed: PackedChannels, channels: int, places: int) -> np.ndarray:
    """The codes [channels, places] that were packed."""
    order, groups = np.array(ORDER), -(-places // 4)
    by_lane = packed.weight.reshape(-1, groups, *order.shape, 4).transpose(0, 2, 3, 1, 4)
    codes = np.empty((len(by_lane), WIDE, groups, 4), np.int8)
    codes[:, order] = by_lane
    return codes.reshape(-1, 4 * groups)[:channels, :places].copy()
