"""Embeddings: the kernel gives the reference's rows, and says when an index is outside."""

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import programs
import strategies
from quantspec.engines.compiled.embedding import CompiledEmbedding
from quantspec.engines.compiled.engine import Compiled
from quantspec.engines.reference import Reference
from quantspec.ir.program import Embedding, Program, Ref
from quantspec.kernels import table as tables


def table(r: np.random.Generator, entries: int, width: int, **options) -> Program:
    codes, grid = programs.weights(r, (entries, width))
    return Program("onnx", ("x",), {}, (Embedding("y", "x", "layer", codes, grid, **options),), Ref("y"))


def check(program: Program, x: torch.Tensor) -> None:
    engine = Compiled(program)
    assert isinstance(engine.parts[0], CompiledEmbedding) and engine.engines == {"y": "compiled"}
    for _ in range(2):
        found, expected = (run({"x": x}) for run in (engine, Reference(program)))
        assert found.dtype == torch.float32 and found.shape == expected.shape and torch.equal(found, expected)


@given(
    strategies.seeds(), st.integers(1, 40), st.integers(1, 100) | st.sampled_from([16, 32, 64]),
    st.sampled_from([torch.int32, torch.int64]), st.sampled_from([(), (0,), (5,), (2, 30), (3, 0, 2)]), st.booleans(),
)  # fmt: skip
def test_rows(r, entries, width, dtype, shape, past):
    x = torch.from_numpy(np.array(r.integers(0, entries, shape))).to(dtype)
    with mock.patch.object(tables, "PAST_BYTES", 1 if past else 2**30):
        check(table(r, entries, width), x)
        check(table(r, entries, width), x.mT if x.ndim > 1 else x)


@given(
    strategies.seeds(), st.integers(1, 40), st.integers(1, 40), st.sampled_from(["sum", "mean", "max"]),
    st.sampled_from([None, 0]), st.integers(1, 30),
)  # fmt: skip
def test_bags(r, entries, width, mode, padding, count):
    x = torch.from_numpy(r.integers(0, entries, (2, count)))
    check(table(r, entries, width, bag=mode, padding_idx=padding), x)


@pytest.mark.parametrize("bag", [None, "sum"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("index", [-1, 7, 2**31 - 1, -(2**31)])
def test_an_index_outside_is_refused(bag, dtype, index):
    engine = Compiled(table(np.random.default_rng(0), 7, 20, bag=bag))
    for others in ([], [1] * 20):
        x = torch.tensor([[*others, index]], dtype=dtype)
        with pytest.raises(ValueError, match="^batch: layer 'layer' has 7 entries, got indices from"):
            engine({"x": x})


def test_a_table_with_zero_points_is_the_references():
    program = table(np.random.default_rng(0), 3, 4)
    grid = programs.QParams(np.float32(0.5), 3, -128, 127)
    step = Embedding("y", "x", "layer", program.layers[0].weight, grid)
    program = Program("onnx", ("x",), {}, (step,), Ref("y"))
    assert Compiled(program).engines == {"y": "reference"}
    assert torch.equal(Compiled(program)({"x": torch.tensor([1])}), Reference(program)({"x": torch.tensor([1])}))
