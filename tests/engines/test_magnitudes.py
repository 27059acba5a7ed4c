"""Products in pairs of bytes, of a CPU without dot products of bytes, give what the reference gives."""

from collections.abc import Iterator
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from llvmlite import binding

import programs
import strategies
from evidence import clause
from networks import torch_threads
from other_cpu import compiling_for
from quantspec.engines.compiled import batching
from quantspec.engines.compiled.engine import Compiled
from quantspec.engines.reference import Reference
from quantspec.kernels import grouped, magnitudes
from quantspec.kernels.product import Product

features = binding.get_host_cpu_features()
needs_pairs = pytest.mark.skipif(
    not (features.get("avx2") and features.get("fma")), reason="this CPU has no vectors of 256 bits"
)
DRAWS = {
    "any": lambda r, shape: r.integers(-128, 128, shape),
    "trained": lambda r, shape: np.clip(np.rint(r.normal(0, 35, shape)), -128, 127),
    "ends": lambda r, shape: r.choice([-128, 127], shape),
    "lowest": lambda r, shape: np.full(shape, -128),
    "highest": lambda r, shape: np.full(shape, 127),
}
draws, least = st.sampled_from(sorted(DRAWS)), st.sampled_from([1, magnitudes.MANY, 10**6])


@pytest.fixture(autouse=True, scope="module")
def without_dot_products() -> Iterator[None]:
    """Kernels for such a CPU, in chunks of few rows."""
    with compiling_for("avx2"), mock.patch.object(magnitudes, "CHUNK_BYTES", 2**12):
        yield


def drawn(r: np.random.Generator, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    return DRAWS[kind](r, shape).astype(np.int8)


@clause("STA-PAIRS", "STA-INSTRUCTIONS")
@needs_pairs
@given(
    strategies.seeds(), draws, least, st.sampled_from([1, 2, 5, 8, 13, 30, 60]), st.integers(1, 300),
    st.integers(1, 80), st.sampled_from(["any", "lowest", "highest"]), st.booleans(),
)  # fmt: skip
def test_rows(r, kind, from_rows, rows, inputs, outputs, codes, real):
    x = programs.grid(r)
    step = programs.linear(r, "a", "x.codes", x, inputs, outputs)
    step.weight[...] = drawn(r, kind, step.weight.shape)
    values = programs.values(r, x, (rows, inputs))
    if codes != "any":
        values[...] = -1e6 if codes == "lowest" else 1e6
    program = programs.of_layer(x, step, real)
    check(program, values, from_rows)


@clause("STA-PAIRS", "STA-INSTRUCTIONS")
@needs_pairs
@given(
    strategies.seeds(), draws, least, st.integers(1, 30), st.integers(1, 50), st.sampled_from([1, 2]),
    st.sampled_from([(1, 1), (3, 1), (3, 2), (5, 2)]),
)  # fmt: skip
def test_images(r, kind, from_rows, channels, outputs, groups, kernel):
    size, stride = kernel
    x = programs.grid(r)
    place = (size, size), (stride, stride), ((size // 2, size // 2),) * 2, (1, 1), groups
    channels, outputs = groups * (channels + 1), groups * (outputs + 1)
    step = programs.conv(r, "a", "x.codes", x, channels, outputs, *place)
    step.weight[...] = drawn(r, kind, step.weight.shape)
    values = programs.values(r, x, (2, channels, 7, 8))
    check(programs.between(x, [step], step.y_qparams), values, from_rows)


@clause("STA-PAIRS", "STA-INSTRUCTIONS")
@needs_pairs
@given(
    strategies.seeds(), draws, st.sampled_from([2, 16, 64, 65, 130]), st.sampled_from([1, 2, 3, 5]),
    st.sampled_from(["any", "lowest", "highest"]), st.booleans(),
)  # fmt: skip
def test_channels_on_their_own(r, kind, channels, size, codes, real):
    x = programs.grid(r)
    place = (size, size), (1, 1), ((size // 2, size // 2),) * 2, (1, 1), channels
    step = programs.conv(r, "a", "x.codes", x, channels, channels, *place)
    step.weight[...] = drawn(r, kind, step.weight.shape)
    values = programs.values(r, x, (2, channels, 6, 7))
    if codes != "any":
        values[...] = -1e6 if codes == "lowest" else 1e6
    program = programs.of_layer(x, step, real)
    check(program, values, 1)


@clause("STA-INSTRUCTIONS")
@needs_pairs
@given(strategies.seeds(), least, st.integers(2, 40), st.booleans())
def test_sums(r, from_rows, channels, first):
    program = programs.residual(r, channels, first)
    check(program, programs.values(r, program.steps[0].qparams, (2, channels, 6, 7)), from_rows)


@clause("STA-INSTRUCTIONS")
@needs_pairs
@given(strategies.seeds(), draws, least, st.integers(2, 4), st.integers(1, 200), st.integers(1, 200))
def test_threads_read_their_own_panels(r, kind, from_rows, threads, inputs, outputs):
    x = programs.grid(r)
    step = programs.linear(r, "a", "x.codes", x, inputs, outputs)
    step.weight[...] = drawn(r, kind, step.weight.shape)
    values = programs.values(r, x, (int(r.choice([1, 2, 100])), inputs))
    with torch_threads(threads), mock.patch.multiple(batching, THREAD_MACS=1, PARALLEL_MACS=1, PATIENT_MACS=1):
        check(programs.between(x, [step], step.y_qparams), values, from_rows)


@needs_pairs
def test_products_are_computed_so():
    product = Product(**dict.fromkeys(Product.NEEDED, 1))
    assert grouped.unit() is magnitudes and magnitudes.allowed() and magnitudes.fits(product)


def check(program, x, from_rows):
    batch = {"x": torch.from_numpy(x)}
    with mock.patch.object(magnitudes, "MANY", from_rows):
        engine = Compiled(program)
        first = engine(batch)
        assert torch.equal(first, Reference(program)(batch)) and torch.equal(engine(batch), first)


@clause("STA-PAIRS", "STA-INSTRUCTIONS")
@needs_pairs
@given(
    strategies.seeds(), least, st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(1, 40),
    st.booleans(),
)  # fmt: skip
def test_attention(r, from_rows, length, keys, features, width, causal):
    shapes = (3, length, features), (3, keys, features), (3, keys, width)
    batch = {name: torch.from_numpy(r.normal(size=shape).astype(np.float32)) for name, shape in zip("qkv", shapes)}
    program = programs.attention(*batch, is_causal=causal)
    with mock.patch.object(magnitudes, "MANY", from_rows):
        assert torch.equal(Compiled(program)(batch), Reference(program)(batch))
