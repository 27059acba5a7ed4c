"""Weights as kernels read them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from .depthwise import ORDER, WIDE
from .emitter import LANES
from .gemm import PANEL
from .memory import aligned


@dataclass(frozen=True, eq=False)
class Packed:
    """The weights of a product: ``weight`` [panel][step][block][16][4], ``bias`` int32 and ``factor`` float32 with
    entries for all lanes of all blocks.

    ``runs`` runs of ``run_steps`` steps of four inputs. ``sums``: the sum of each output's weights. ``float_bias``:
    float32, of layers that give floats.
    """

    outputs: int
    runs: int
    run_steps: int
    weight: np.ndarray
    bias: np.ndarray
    factor: np.ndarray
    sums: np.ndarray
    float_bias: np.ndarray | None = None

    @property
    def blocks(self) -> int:
        return -(-self.outputs // LANES)


def pack(weight: np.ndarray, bias: np.ndarray, factor: np.ndarray, bias_type: DTypeLike = np.int32) -> Packed:
    """``weight``: int8 [outputs, runs, inputs of a run]; ``bias`` (outputs,); ``factor``: float32, () or (outputs,)."""
    outputs, runs, inputs = weight.shape
    blocks, steps = -(-outputs // LANES), -(-inputs // 4)
    padded = np.zeros((blocks * LANES, runs, steps * 4), np.int8)
    padded[:outputs, :, :inputs] = weight
    by_block = padded.reshape(blocks, LANES, runs * steps, 4)
    packed = aligned(padded.size, np.int8)
    end = 0
    for first in range(0, blocks, PANEL):
        panel = by_block[first : first + PANEL].transpose(2, 0, 1, 3)
        packed[end : end + panel.size] = panel.ravel()
        end += panel.size
    sums = lanes(weight.astype(np.int64).sum((1, 2)), outputs, np.int32)
    biases, factors = lanes(bias, outputs, bias_type), lanes(factor, outputs, np.float32)
    return Packed(outputs, runs, steps, packed, biases, factors, sums)


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
