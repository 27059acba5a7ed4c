"""Cells of recurrent networks: sigmoid and tanh are the float32 nearest to float64's, at their edges too."""

import math

import numpy as np
import pytest
import torch

from evidence import clause
from quantspec.kernels.frame import caller, frame_of
from quantspec.kernels.memory import aligned
from quantspec.kernels.recurrent_cell import CELLS, KINDS, Cell

LEFT = 5  # outputs that are no whole vector


def around(values):
    """Float32 values with both signs, and their neighbours."""
    near = np.float32(values)
    near = np.concatenate([near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf))])
    return np.concatenate([near, -near])


# exp is computed in steps of a power of two or a root of it, of x or of 2 x: half a step is where they change. From
# some values on, all outputs are 0 or 1.
STEPS = np.arange(0, 64, 0.5) * math.log(2)
EDGES = np.concatenate([
    around(STEPS), around(STEPS / 2), around(STEPS / 16), around(STEPS / 32),
    around([0.0, 1e-45, 1e-38, 2.0**-126, 1e-20, 2.0**-24, 2.0**-12, 9.0, 15.0, 17.3, 30.0, 87.3, 88.7, 103.9, 104.0]),
    around([110.0, 149.0, 150.0, 151.0, 300.0, 1e10, 3e38]),
])  # fmt: skip
EDGES = np.concatenate([EDGES, np.zeros((LEFT - len(EDGES)) % 16, np.float32)])


def step(kind: str, gates: np.ndarray, state: float) -> tuple[int, np.ndarray, np.ndarray]:
    """What a step tells, its outputs and the state, of one sample, whose inputs' gates, [gates, outputs], are all
    of the gates."""
    count, size = gates.shape
    xs, hs = aligned(2 * gates.size, np.float32).reshape(2, gates.size)
    h, c, outputs = aligned(3 * size, np.float32).reshape(3, size)
    xs[:], hs[:], h[:], c[:] = gates.ravel(), -0.0, 0, state
    frame = frame_of(CELLS[kind].bound(Cell(
        rows=1, size=size, gates=count, state_gates=hs.ctypes.data, h=h.ctypes.data, c=c.ctypes.data,
        output_pitch=4 * size,
    )), slots=2)  # fmt: skip
    frame.addresses[:2] = xs.ctypes.data, outputs.ctypes.data
    return caller()(frame.address, 0, 0), outputs, c


def nearest(function, values: np.ndarray) -> np.ndarray:
    return function(torch.from_numpy(values).double()).float().numpy()


@clause("DYN-RECURRENT")
def test_tanh_is_the_float32_nearest_to_float64s():
    told, outputs, _ = step("rnn_tanh", EDGES[None], 0.0)
    assert not told and np.array_equal(outputs.view(np.int32), nearest(torch.tanh, EDGES).view(np.int32))


@clause("DYN-RECURRENT")
def test_sigmoid_is_the_float32_nearest_to_float64s():
    """The forget gate of a state of ones is what is left of it, where nothing is added."""
    gates = np.zeros((KINDS["lstm"].gates, len(EDGES)), np.float32)
    gates[1] = EDGES
    told, _, state = step("lstm", gates, 1.0)
    assert not told and np.array_equal(state, nearest(torch.sigmoid, EDGES))


@pytest.mark.parametrize("place", [0, 15, 16, 16 + LEFT - 1])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_gate_that_is_no_finite_number_is_told(kind, value, place):
    gates = np.zeros((KINDS[kind].gates, 16 + LEFT), np.float32)
    for gate in range(len(gates)):
        wrong = gates.copy()
        wrong[gate, place] = value
        assert step(kind, wrong, 0.0)[0] == 1
