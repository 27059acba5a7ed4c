"""The reference of layers whose weights alone are codes has a part of them in floats at a time."""

from unittest import mock

import numpy as np
import pytest

from quantspec.numerics import weight_only
from quantspec.numerics.affine import QParams


class Noted(np.ndarray):
    """An array that notes the parts of it that are made floats."""

    def astype(self, kind, *args, **kwargs):
        self.converted.append(self.shape[0])
        return np.asarray(super().astype(kind, *args, **kwargs))

    def __array_finalize__(self, whole):
        self.converted = getattr(whole, "converted", [])


@pytest.mark.parametrize(("outputs", "expected"), [(3, [3]), (4, [4]), (5, [4, 1]), (11, [4, 4, 3]), (0, [])])
def test_so_many_outputs_have_weights_in_floats_at_a_time(outputs, expected):
    r = np.random.default_rng(outputs)
    x, codes = r.normal(size=(2, 6)).astype(np.float32), r.integers(-128, 128, (outputs, 6)).astype(np.int8)
    grid = QParams(r.uniform(0.01, 0.1, outputs).astype(np.float32), np.zeros(outputs, np.int32), -128, 127, axis=0)
    whole, noted = weight_only.linear(x, codes, grid, None), codes.view(Noted)
    with mock.patch.object(weight_only, "OUTPUTS", 4):
        assert np.array_equal(weight_only.linear(x, noted, grid, None), whole)
    assert noted.converted == expected
