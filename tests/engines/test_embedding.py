"""Embeddings: the kernel gives the reference's rows and bags, on any number of threads, and says when an index is
outside.
"""

import math
from dataclasses import replace
from operator import neg
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_parallel import threads

import programs
import strategies
from evidence import clause
from quantspec.engines.compiled import embedding
from quantspec.engines.compiled.embedding import CompiledEmbedding
from quantspec.engines.compiled.engine import Compiled
from quantspec.engines.reference import Reference
from quantspec.ir.program import Call, Embedding, Program, Ref
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


@clause("STA-THREADS", "DYN-EMBEDDING", "DYN-BAG")
@given(
    strategies.seeds(), st.integers(1, 40), st.integers(1, 20) | st.sampled_from([16, 32]),
    st.sampled_from([None, "sum", "mean", "max"]), st.tuples(st.integers(1, 9), st.integers(1, 9)), st.booleans(),
    st.booleans(),
)  # fmt: skip
def test_threads_share_rows_and_bags(r, entries, width, bag, shape, alone, past):
    x = torch.from_numpy(r.integers(0, entries, shape))
    program = table(r, entries, width, bag=bag)
    if not alone:
        then = Call("z", "function", "then", (Ref("y"),), {}, "")
        program = replace(program, steps=(*program.steps, then), output=Ref("z"), callables={("function", "then"): neg})
    expected = Reference(program)({"x": x})
    with (
        threads(3),
        mock.patch.object(embedding, "LEAST", 1),
        mock.patch.object(tables, "PAST_BYTES", 1 if past else 2**30),
    ):
        engine = Compiled(program)
        assert all(torch.equal(engine({"x": x}), expected) for _ in range(3))
        (bound,) = engine.parts[0].batched.values()
        assert len(bound.frames) == max(1, min(3, x.numel() if bag is None else len(x), x.numel() * width))
        x[-1, -1] = entries
        with pytest.raises(ValueError, match="^batch: layer 'layer' has"):
            engine({"x": x})
        torch.set_num_threads(1)
        x[-1, -1] = 0
        assert torch.equal(engine({"x": x}), Reference(program)({"x": x}))
        (bound,) = engine.parts[0].batched.values()
        assert len(bound.frames) == 1


def test_rows_past_the_caches_go_to_any_address():
    r = np.random.default_rng(0)
    codes, grid = programs.weights(r, (9, 32))
    rows, memory = np.arange(9), np.zeros(9 * 32 + 16, np.float32)
    with mock.patch.object(tables, "PAST_BYTES", 1):
        for start in range(16):
            memory[:] = 0
            taken = tables.Table(codes, np.asarray(grid.scale, np.float32).reshape(-1))
            assert taken.rows(rows, memory[start:].ctypes.data)
            assert np.array_equal(memory[start : start + 288].reshape(9, 32), grid.dequantize(codes))
            assert not memory[:start].any() and not memory[start + 288 :].any()


def test_a_network_of_one_embedding_is_called_directly():
    program = table(np.random.default_rng(0), 7, 20, bag="mean")
    engine = Compiled(program)
    assert engine.input_name == "x"
    for dtype in (torch.int64, torch.int32):
        for shape in ((3, 5), (3, 0), (0, 5)):
            x = torch.arange(math.prod(shape), dtype=dtype).reshape(shape) % 7
            for each in (x, x.T.contiguous().T):
                assert all(torch.equal(engine.single(each), Reference(program)({"x": each})) for _ in range(2))
    for wrong in (torch.ones(3, 5), torch.ones(3, dtype=torch.int64)):
        with pytest.raises(ValueError, match="^batch: layer 'layer' expects"):
            engine.single(wrong)


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
