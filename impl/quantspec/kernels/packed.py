"""The weights of products as kernels read them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

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
    return Packed(outputs, runs, steps, packed, lanes(bias, outputs, bias_type), lanes(factor, outputs, np.float32), sums)


def lanes(values: np.ndarray, outputs: int, dtype: DTypeLike) -> np.ndarray:
    """One value per lane of all blocks, zeros behind the last output. Integers wrap, as accumulators do."""
    result = aligned(-(-outputs // LANES) * LANES, dtype)
    result[:outputs] = values.astype(np.uint32).view(np.int32) if dtype == np.int32 else values
    return result
