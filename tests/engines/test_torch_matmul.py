"""The torch engine gives the reference engine's bits in every dialect that adds exactly, and runs in no other and on
no CPU that saturates.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import networks
import programs
import quantspec as qs
import strategies
from quantspec import UnsupportedError
from quantspec.engines import autotune, torch_matmul
from quantspec.engines.reference import Reference
from quantspec.ir.program import Program
from quantspec.numerics.dialects.named import DIALECTS

EXACT = [name for name, choices in DIALECTS.items() if choices.accumulate_rule == "exact"]
pytestmark = pytest.mark.skipif(
    not torch_matmul.is_exact(),
    reason="torch's product of int8 matrices saturates on this CPU, where the engine refuses to run",
)


def check(program: Program, dialect: str, x: np.ndarray, callables: Mapping = MappingProxyType({})) -> None:
    """Both engines' outputs are equal, also the second time, when it is known that nothing overflows."""
    program, batch = replace(program, dialect=dialect, callables=callables), {"x": torch.from_numpy(x)}
    expected = Reference(program)(batch)
    for measure, times in ((False, 2), (True, 2 * autotune.TRIALS + 1)):
        engine = torch_matmul.Torch(program, measure=measure)
        for _ in range(times):
            assert torch.equal(engine(batch), expected)


@given(
    strategies.seeds(), st.sampled_from(EXACT), st.integers(0, 20), st.integers(1, 100), st.integers(1, 40),
    st.booleans(),
)  # fmt: skip
def test_linear_layers(r, dialect, rows, inputs, outputs, real):
    x = programs.grid(r)
    step = programs.linear(r, "a", "x.codes", x, inputs, outputs)
    program = programs.of_layer(x, step, real)
    check(program, dialect, programs.values(r, x, (rows, inputs)))


@given(strategies.seeds(), st.sampled_from(EXACT), st.data())
def test_convolutions(r, dialect, data):
    def draw(low, high):
        return data.draw(st.integers(low, high))

    groups, positions = data.draw(st.sampled_from([1, 1, 2, 3])), draw(1, 3)
    channels, outputs = groups * draw(1, 12), groups * draw(1, 8)
    kernel, stride, dilation = (tuple(draw(1, high) for _ in range(positions)) for high in (3, 2, 2))
    padding = tuple((draw(0, 2), draw(0, 2)) for _ in range(positions))
    needs = (max(d * (k - 1) + 1 - before - after, 1) for k, d, (before, after) in zip(kernel, dilation, padding))
    lengths = [need + draw(0, 4) for need in needs]
    x = programs.grid(r)
    step = programs.conv(r, "a", "x.codes", x, channels, outputs, kernel, stride, padding, dilation, groups)
    step = replace(step, input_dilation=tuple(draw(1, 2) for _ in range(positions)))
    program = programs.to_floats(x, programs.real(step)) if draw(0, 1) else programs.between(x, [step], step.y_qparams)
    check(program, dialect, programs.values(r, x, (draw(0, 2), channels, *lengths)))


@given(strategies.seeds(), st.sampled_from(EXACT), st.booleans(), st.booleans())
def test_dynamic_layers(r, dialect, rows, reduce_range):
    program = programs.dynamic_chain(r, [17, 40, 9], rows=rows, reduce_range=reduce_range)
    x = (r.normal(size=(6, 1, 17)) * 3).astype(np.float32)
    check(program, dialect, x, {("function", "torch.flatten"): torch.flatten, ("function", "torch.relu"): torch.relu})


@pytest.mark.parametrize("dialect", ["fbgemm", "exact"])
def test_it_is_what_runs_where_no_kernels_are(dialect):
    model, x = networks.seeded(networks.Perceptron), networks.inputs(9)
    q = qs.quantize(model, [x], dialect=dialect)
    assert q.engine == "torch" and torch.equal(q(x), q.run_on("reference")(x))
    assert qs.quantize(model, [x]).engine == "compiled" and qs.quantize(model, [x], engine="torch").engine == "torch"


class OneWeight(nn.Module):
    """Convolutions with the same weight on images of other channels, so that it has other groups in each."""

    def __init__(self, *groups: int):
        super().__init__()
        self.groups, self.weight = groups, nn.Parameter(networks.inputs(4, (2, 3, 3)))

    def forward(self, *images):
        return [F.conv2d(x, self.weight, groups=groups) for groups, x in zip(self.groups, images)]


@pytest.mark.parametrize("groups", [(1, 2), (2, 1), (4, 1, 2)])
def test_layers_that_share_a_weight_have_groups_of_their_own(groups):
    images = [networks.inputs(2, (2 * count, 5, 6)) for count in groups]
    q = qs.quantize(networks.seeded(lambda: OneWeight(*groups)), [tuple(images)], engine="torch")
    assert len({id(layer.weight) for layer in q.program.layers}) == 1 < len(q.program.layers)
    for y, expected in zip(q(*images), q.run_on("reference")(*images), strict=True):
        assert torch.equal(y, expected)


def test_products_that_could_overflow_are_left_to_the_reference():
    r = np.random.default_rng(0)
    x = programs.grid(r)
    step = programs.linear(r, "a", "x.codes", x, torch_matmul.MOST_INPUTS + 1, 2)
    program = programs.between(x, [replace(step, weight=step.weight // 64)], step.y_qparams)
    assert not torch_matmul.KnownWeights(program.steps).layers
    check(program, "onnx", programs.values(r, x, (2, torch_matmul.MOST_INPUTS + 1)))


def test_dialects_that_saturate_are_refused():
    r = np.random.default_rng(0)
    x = programs.grid(r)
    step = programs.linear(r, "a", "x.codes", x, 3, 2)
    program = programs.between(x, [step], step.y_qparams)
    message = "^dialect: the torch engine cannot compute in 'fbgemm-int16', as its accumulators saturate$"
    with pytest.raises(UnsupportedError, match=message):
        torch_matmul.Torch(replace(program, dialect="fbgemm-int16"))


@pytest.mark.parametrize("shift", [0, 128])
def test_products_whose_pairs_saturate_in_16_bits_are_not_exact(shift, monkeypatch):
    """As instructions of x86 add them, of codes as they are and of codes made unsigned."""

    def saturating(a, b):
        pairs = ((a.int() + shift)[:, :, None] * b.int()).unflatten(1, (-1, 2)).sum(2)
        return pairs.clamp(-(2**15), 2**15 - 1).sum(1).int() - shift * b.int().sum(0)

    monkeypatch.setattr(torch, "_int_mm", saturating)
    assert not torch_matmul.is_exact.__wrapped__()


SATURATING = """
import torch, quantspec as qs
from quantspec.engines import autotune, torch_matmul
model = torch.nn.Linear(4, 2).eval()
q = qs.quantize(model, [torch.rand(5, 4)], dialect="fbgemm")
try:
    q.run_on("torch")
except qs.UnsupportedError as error:
    print(error)
print(torch_matmul.is_exact())
"""


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"),
    reason="the environment variable is one of x86 CPUs",
)
def test_a_cpu_whose_products_saturate_is_refused():
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    command = [sys.executable, "-c", SATURATING]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    refused = "the torch engine cannot compute in 'fbgemm', as torch's product of int8 matrices saturates on this CPU"
    # Without dot products of bytes, torch leaves these products to loops of its own, which are exact.
    exact = run.stdout.endswith("True\n")
    assert exact == (run.stdout == "True\n") and (exact or run.stdout == f"dialect: {refused}\nFalse\n")
    assert not exact or torch.backends.cpu.get_cpu_capability() == "AVX2"
