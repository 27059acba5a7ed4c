"""Run as a program: a digest of what the compiled engine gives for a fixed set of programs, on the CPU that
QUANTSPEC_CPU names. With ``arrays`` as argument: of what the kernels over arrays give, which need no torch.
"""

import functools
import hashlib
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from quantspec.kernels import arrays
from quantspec.numerics.affine import QParams, code_range


def digest_of_arrays() -> str:
    """The digest of codes and floats of arrays, in hexadecimal."""
    result, r = hashlib.sha256(), np.random.default_rng(0)
    values = r.normal(size=1000).astype(np.float32)
    for signed in (False, True):
        grid = QParams(np.float32(0.02), 3, *code_range(8, signed=signed)).array_grid
        q = arrays.quantize(values, grid)
        result.update(q.tobytes() + arrays.dequantize(q, grid).tobytes())
    return result.hexdigest()


@functools.cache
def digest() -> str:
    """The digest, in hexadecimal."""
    import torch

    import programs
    from quantspec import MinMaxObserver
    from quantspec.engines.compiled.engine import Compiled

    result = hashlib.sha256()
    for seed in range(6):
        r = np.random.default_rng(seed)
        x = programs.grid(r)
        mlp = [programs.linear(r, "a", "x.codes", x, 37, 100)]
        mlp.append(programs.linear(r, "b", "a", mlp[0].y_qparams, 100, 10))
        image = [programs.conv(r, "a", "x.codes", x, 5, 20, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1)]
        y = image[0].y_qparams
        image.append(programs.conv(r, "b", "a", y, 20, 20, (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), 20))
        cases = [(programs.between(x, mlp, mlp[-1].y_qparams), (9, 37))]
        cases.append((programs.between(x, image, image[-1].y_qparams), (2, 5, 9, 9)))
        cases.append((programs.residual(r, 18, seed % 2 == 0), (2, 18, 6, 7)))
        cases.append((programs.to_floats(x, programs.real(mlp[0])), (9, 37)))
        cases.append((programs.to_floats(x, programs.real(image[0])), (2, 5, 9, 9)))
        wide = programs.conv(r, "a", "x.codes", x, 20, 20, (5, 5), (1, 1), ((2, 2), (2, 2)), (1, 1), 20)
        cases.append((programs.to_floats(x, programs.real(wide)), (2, 20, 7, 6)))
        for program, shape in cases:
            y = Compiled(program)({"x": torch.from_numpy(programs.values(r, program.steps[0].qparams, shape))})
            result.update(y.numpy().tobytes())
        for signed in (False, True):
            g = QParams(x.scale, int(x.zero_point) - 128 * signed, *code_range(8, signed=signed))
            values = programs.values(r, x, (1000,))
            q = arrays.quantize(values, g.array_grid)
            result.update(q.tobytes() + arrays.dequantize(q, g.array_grid).tobytes())
            result.update(str(MinMaxObserver().observe(values[np.isfinite(values)]).range()).encode())
    for y in network_outputs():
        result.update(y.numpy().tobytes())
    return result.hexdigest()


def network_outputs():
    """What networks with tables and with a recurrent layer give."""
    import torch
    from torch import nn

    import quantspec

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        tables = nn.Sequential(nn.Linear(37, 50), nn.Sigmoid(), nn.Linear(50, 40), nn.GELU(), nn.Linear(40, 10)).eval()
        lstm, rows, words = nn.LSTM(6, 9).eval(), torch.randn(9, 37), torch.randn(4, 7, 6)
    yield quantspec.quantize(tables, [rows])(rows)
    yield quantspec.quantize(lstm, [words])(words)[0]


if __name__ == "__main__":
    print(digest_of_arrays() if "arrays" in sys.argv else digest())
