"""Layers whose weights alone are codes: the kernels take them, and give the reference's bits."""

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import programs
import strategies
from networks import torch_threads
from quantspec.engines.compiled import batching
from quantspec.engines.compiled.engine import Compiled, Segment
from quantspec.engines.reference import Reference
from quantspec.ir.held import Held
from quantspec.ir.program import Call, LinearWeight, Program, Ref
from quantspec.kernels import tiles
from quantspec.numerics.affine import QParams

FUNCTIONS = {("function", "torch.flatten"): torch.flatten, ("function", "torch.relu"): torch.relu}


def chain(r: np.random.Generator, widths: list[int]) -> Program:
    """Layers with a ReLU behind each but the last, of flattened inputs."""
    steps: list = [Call("x.flat", "function", "torch.flatten", (Ref("x"), 1), {}, "")]
    for index, (inputs, outputs) in enumerate(zip(widths, widths[1:])):
        codes, grid = programs.weights(r, (outputs, inputs))
        bias = r.normal(size=outputs).astype(np.float32) if r.random() < 0.7 else None
        steps.append(LinearWeight(f"l{index}", steps[-1].name, f"layer{index}", codes, bias, grid))
        steps.append(Call(f"r{index}", "function", "torch.relu", (Ref(f"l{index}"),), {}, ""))
    return Program("onnx", ("x",), {}, tuple(steps[:-1]), Ref(steps[-2].name), FUNCTIONS)


def check(program: Program, x: torch.Tensor, taken: bool = True) -> None:
    engine = Compiled(program)
    (segment,) = engine.parts
    assert isinstance(segment, Segment)
    assert (segment([x]) is not None) is taken
    expected = Reference(program)({"x": x})
    assert torch.equal(engine({"x": x}), expected) and torch.equal(engine({"x": x}), expected)


@given(strategies.seeds(), st.lists(st.integers(1, 150), min_size=2, max_size=4), st.integers(0, 40))
def test_layers(r, widths, rows):
    check(chain(r, widths), torch.from_numpy(r.normal(size=(rows, widths[0], 1)).astype(np.float32)))


@given(strategies.seeds(), st.integers(1, 150), st.integers(1, 40), st.booleans())
def test_products_in_tiles_and_without(r, inputs, outputs, in_tiles):
    x = torch.from_numpy(r.normal(size=(int(r.integers(1, 40)), inputs)).astype(np.float32))
    with mock.patch.multiple(tiles, LEAST_ROWS=1 if in_tiles else 10**6, LEAST_THERE=0, LEAST_DOTS=0, DOTS_OF_COPY=0):
        check(chain(r, [inputs, outputs]), x)


@given(strategies.seeds(), st.integers(2, 4), st.integers(1, 100), st.integers(1, 200))
def test_threads_share_outputs_and_rows(r, count, inputs, outputs):
    program = chain(r, [inputs, outputs, 7])
    x = torch.from_numpy(r.normal(size=(int(r.choice([1, 2, 60])), inputs)).astype(np.float32))
    with torch_threads(count), mock.patch.multiple(batching, THREAD_MACS=1, PARALLEL_MACS=1, PATIENT_MACS=1):
        check(program, x)


def sizes(r: np.random.Generator, rows: int, inputs: int, small: float) -> np.ndarray:
    """Rows of numbers of one size, but for a share of ``small`` ones, whose low bytes are not 0."""
    x = r.uniform(0.5, 1, size=(rows, inputs)) * r.choice([-1, 1], size=(rows, inputs))
    return np.where(r.random(size=x.shape) < small, x * 2.0 ** -r.integers(8, 24, size=x.shape), x)


def large_first(r: np.random.Generator, rows: int, inputs: int) -> np.ndarray:
    """Rows of which some have one number beside which all others are small."""
    x = sizes(r, rows, inputs, 0.02)
    x[r.random(size=rows) < 0.5, 0] = 1000.0
    return x


KINDS = {
    "whole": lambda r, rows, inputs: np.round(r.normal(size=(rows, inputs)) * 3),
    "one": lambda r, rows, inputs: np.eye(rows, inputs) * r.normal(),
    "small": lambda r, rows, inputs: r.normal(size=(rows, inputs)) * 1e-43,
    "none": lambda r, rows, inputs: np.zeros((rows, inputs)),
    "few low bytes": lambda r, rows, inputs: sizes(r, rows, inputs, 0.02),
    "about as many as are few": lambda r, rows, inputs: sizes(r, rows, inputs, 0.07),
    "many low bytes": lambda r, rows, inputs: sizes(r, rows, inputs, 0.5),
    "many low bytes in some rows": large_first,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [1, 3])
@given(strategies.seeds(), st.integers(1, 300), st.sampled_from([1, 3, 20]), st.integers(1, 100))
def test_inputs_of_every_kind(threads, kind, r, inputs, rows, outputs):
    x = torch.from_numpy(KINDS[kind](r, rows, inputs).astype(np.float32))
    with torch_threads(threads), mock.patch.multiple(batching, THREAD_MACS=1, PARALLEL_MACS=1, PATIENT_MACS=1):
        check(chain(r, [inputs, outputs]), x)


@given(strategies.seeds(), st.integers(1, 40), st.integers(0, 3), st.integers(0, 7))
def test_a_low_byte_in_any_step_counts(r, steps, lane, row):
    # One number only has low bytes: one step of `steps` in eight rows.
    x = np.ones((8, 4 * steps), np.float32)
    x[row, 4 * int(r.integers(steps)) + lane] = np.float32(2.0**-9 * (1 + 2.0**-23))
    check(chain(r, [4 * steps, 20]), torch.from_numpy(x))


@pytest.mark.parametrize("x", [0.0, 1.0, -1.0, 2.0**-60])
def test_what_cannot_be_told_is_the_references(x):
    # Just above, at and just below the middle between two floats, by less than 2^-48 of the largest input.
    codes = np.ones((1, 3), np.int8)
    layer = LinearWeight("y", "x", "layer", codes, None, QParams(np.float32(1), 0, -128, 127))
    program = Program("onnx", ("x",), {}, (layer,), Ref("y"))
    values = torch.tensor([[1.0, 2.0**-24, x * 2.0**-80]])
    check(program, values, taken=x == 0)
    expected = 1 + 2.0**-23 if x > 0 else 1.0
    assert Compiled(program)({"x": values}).item() == expected


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_goes_through(value):
    program = chain(np.random.default_rng(1), [20, 30])
    x = torch.ones(2, 20)
    x[1, 3] = value
    engine = Compiled(program)
    assert engine.parts[0]([x]) is None
    found, expected = (made({"x": x}).numpy() for made in (engine, Reference(program)))
    assert np.array_equal(found, expected, equal_nan=True) and np.isfinite(found[0]).all()
    assert not np.isfinite(found[1]).any()


def test_a_weight_is_held_once():
    program = chain(np.random.default_rng(2), [32, 64])
    codes = program.layers[0].weight.copy()
    engine = Compiled(program, weights="held")
    assert isinstance(vars(program.layers[0])["weight"], Held) and (program.layers[0].weight == codes).all()
    assert engine.engines == {"l0": "compiled"}
