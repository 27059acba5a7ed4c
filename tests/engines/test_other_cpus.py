"""Kernels of a CPU without extensions, which has neither dot products of bytes nor vectors of 256 bits, give what the
reference gives."""

import operator
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import programs
import strategies
from evidence import clause
from other_cpu import compiling_for
from quantspec.engines.compiled.engine import Compiled
from quantspec.engines.reference import Reference
from quantspec.ir.program import Call, Ref
from quantspec.kernels import cpu, grouped


@pytest.fixture(autouse=True, scope="module")
def without_extensions() -> Iterator[None]:
    with compiling_for("generic"):
        yield


def test_such_a_cpu_has_no_unit_of_its_own():
    assert cpu.target().dot_lanes == 0 and grouped.unit() is None


@clause("STA-INSTRUCTIONS")
@given(strategies.seeds(), st.integers(1, 5), st.integers(1, 300), st.integers(1, 80), st.booleans())
def test_few_rows(r, rows, inputs, outputs, real):
    x = programs.grid(r)
    step = programs.linear(r, "a", "x.codes", x, inputs, outputs)
    program = programs.of_layer(x, step, real)
    check(program, programs.values(r, x, (rows, inputs)))


@clause("STA-INSTRUCTIONS")
@given(strategies.seeds(), st.integers(1, 30), st.sampled_from([1, 2]), st.sampled_from([(1, 1), (3, 1), (3, 2)]))
def test_images(r, channels, groups, kernel):
    size, stride = kernel
    x = programs.grid(r)
    place = (size, size), (stride, stride), ((size // 2, size // 2),) * 2, (1, 1), groups
    step = programs.conv(r, "a", "x.codes", x, groups * channels, groups * 9, *place)
    check(programs.between(x, [step], step.y_qparams), programs.values(r, x, (2, groups * channels, 4, 5)))


@clause("STA-INSTRUCTIONS")
@given(strategies.seeds(), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_attention(r, length, keys, features, causal):
    shapes = (3, length, features), (3, keys, features), (3, keys, 7)
    batch = {name: torch.from_numpy(r.normal(size=shape).astype("float32")) for name, shape in zip("qkv", shapes)}
    program = programs.attention(*batch, is_causal=causal)
    assert torch.equal(Compiled(program)(batch), Reference(program)(batch))


@clause("STA-INSTRUCTIONS")
@given(strategies.seeds(), st.integers(1, 30), st.integers(1, 40))
def test_sums(r, rows, features):
    x = programs.grid(r)
    step = programs.real(programs.linear(r, "a", "x.codes", x, features, features))
    program = programs.to_floats(x, step)
    total = Call("sum", "function", "operator.add", (Ref("x"), Ref("a")), {}, "")
    called = {("function", "operator.add"): operator.add}
    program = replace(program, steps=(*program.steps, total), output=Ref("sum"), callables=called)
    engine = Compiled(program)
    assert engine.parts[0].sum is total
    check(program, programs.values(r, x, (rows, features)))


def check(program, x):
    batch = {"x": torch.from_numpy(x)}
    assert torch.equal(Compiled(program)(batch), Reference(program)(batch))
