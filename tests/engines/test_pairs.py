"""Products in pairs of bytes, of a CPU without dot products of bytes, give what the reference gives."""

import itertools
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
from quantspec import chapters
from quantspec.engines.compiled import batching
from quantspec.engines.compiled.engine import Compiled
from quantspec.engines.reference import Reference
from quantspec.kernels import cpu, gathered, jit, packed, pairing, pairs

spec = chapters.load("static")
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
draws, planes = st.sampled_from(sorted(DRAWS)), st.integers(1, len(pairing.FORMS))


def other_cpu() -> cpu.Cpu:
    """The CPU of ``QUANTSPEC_CPU=avx2``."""
    cpu.target.cache_clear()
    try:
        with mock.patch.dict("os.environ", QUANTSPEC_CPU="avx2"):
            return cpu.target()
    finally:
        cpu.target.cache_clear()


@pytest.fixture(autouse=True, scope="module")
def without_dot_products() -> Iterator[None]:
    """Kernels for such a CPU, in chunks of few rows."""
    jit.machine()  # the process's own is for its own CPU
    target = other_cpu()
    with mock.patch.object(cpu, "target", lambda: target), mock.patch.object(pairs, "CHUNK_BYTES", 2**12):
        sources = jit.sources.__wrapped__()
        machine = jit.Machine()
        with mock.patch.multiple(jit, sources=lambda: sources, machine=lambda: machine):
            yield


def drawn(r: np.random.Generator, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    return DRAWS[kind](r, shape).astype(np.int8)


def in_planes(count: int):
    """Weights of every layer paired, for so many planes."""
    return mock.patch.object(pairing, "planes_for", lambda *about: count)


def pack(weight: np.ndarray) -> packed.Packed:
    outputs = len(weight)
    codes = packed.pack(weight, lambda rows: rows[:, None, :], np.zeros(outputs), np.ones(outputs, np.float32))
    return packed.paired(codes)


@clause("STA-PAIRS")
@given(strategies.seeds(), draws, planes, st.integers(1, 70), st.integers(1, 60))
def test_no_pair_of_weights_can_overflow_and_all_together_are_the_weights(r, kind, count, outputs, inputs):
    weight = drawn(r, kind, (outputs, inputs))
    with in_planes(count):
        product = pack(weight)
    read = [panel.reshape(-1, 4) for panel in pairing.panels(product.weight, product.steps)]
    read.append(product.pairs.residues.reshape(-1, 4))
    couples = {tuple(pair) for rows in read for pair in rows.reshape(-1, 2).tolist()}
    assert all(spec.pair_is_exact(*couple) for couple in couples)
    assert np.array_equal(packed.unpack(product, inputs)[:, 0], weight)


@clause("STA-PAIRS")
def test_what_can_overflow_is_known():
    ends = [-128, -127, -100, -29, -28, -1, 0, 1, 27, 28, 29, 127]
    for couple in itertools.product(ends, ends):
        assert pairing.too_much(np.array([[*couple, 0, 0]], np.int16)) == (not spec.pair_is_exact(*couple))


@clause("STA-PAIRS", "STA-INSTRUCTIONS")
@needs_pairs
@given(
    strategies.seeds(), draws, planes, st.sampled_from([1, 2, 5, 13, 30, 60]), st.integers(1, 300),
    st.integers(1, 80), st.sampled_from(["any", "lowest", "highest"]), st.booleans(),
)  # fmt: skip
def test_rows(r, kind, count, rows, inputs, outputs, codes, real):
    x = programs.grid(r)
    step = programs.linear(r, "a", "x.codes", x, inputs, outputs)
    step.weight[...] = drawn(r, kind, step.weight.shape)
    values = programs.values(r, x, (rows, inputs))
    if codes != "any":
        values[...] = values.min() if codes == "lowest" else values.max()
    program = programs.to_floats(x, programs.real(step)) if real else programs.between(x, [step], step.y_qparams)
    check(program, values, count)


@clause("STA-PAIRS", "STA-INSTRUCTIONS")
@needs_pairs
@given(
    strategies.seeds(), draws, planes, st.integers(1, 30), st.integers(1, 50), st.sampled_from([1, 2]),
    st.sampled_from([(1, 1), (3, 1), (3, 2), (5, 2)]),
)  # fmt: skip
def test_images(r, kind, count, channels, outputs, groups, kernel):
    size, stride = kernel
    x = programs.grid(r)
    place = (size, size), (stride, stride), ((size // 2, size // 2),) * 2, (1, 1), groups
    channels, outputs = groups * (channels + 1), groups * (outputs + 1)
    step = programs.conv(r, "a", "x.codes", x, channels, outputs, *place)
    step.weight[...] = drawn(r, kind, step.weight.shape)
    values = programs.values(r, x, (2, channels, 7, 8))
    check(programs.between(x, [step], step.y_qparams), values, count)


@clause("STA-INSTRUCTIONS")
@needs_pairs
@given(strategies.seeds(), planes, st.integers(2, 40), st.booleans())
def test_sums(r, count, channels, first):
    program = programs.residual(r, channels, first)
    check(program, programs.values(r, program.steps[0].qparams, (2, channels, 6, 7)), count)


@clause("STA-INSTRUCTIONS")
@needs_pairs
@given(strategies.seeds(), draws, planes, st.integers(2, 4), st.integers(1, 200), st.integers(1, 200))
def test_threads_read_their_own_panels(r, kind, count, threads, inputs, outputs):
    x = programs.grid(r)
    step = programs.linear(r, "a", "x.codes", x, inputs, outputs)
    step.weight[...] = drawn(r, kind, step.weight.shape)
    values = programs.values(r, x, (int(r.choice([1, 2, 100])), inputs))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with mock.patch.multiple(batching, THREAD_MACS=1, PARALLEL_MACS=1, PATIENT_MACS=1):
            check(programs.between(x, [step], step.y_qparams), values, count)
    finally:
        torch.set_num_threads(before)


@clause("STA-INSTRUCTIONS")
@needs_pairs
@given(strategies.seeds(), st.sampled_from([16, 64, 3, 100]), st.booleans())
def test_products_whose_weights_stay_as_they_are(r, channels, each):
    x = programs.grid(r)
    place = (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), channels if each else 1
    step = programs.conv(r, "a", "x.codes", x, channels, channels, *place)
    check(programs.between(x, [step], step.y_qparams), programs.values(r, x, (2, channels, 7, 8)), 0)


@needs_pairs
def test_a_trained_layer_is_paired_and_one_of_uniform_weights_is_not():
    r = np.random.default_rng(0)
    assert gathered.unit() is pairs
    assert pack(drawn(r, "trained", (64, 288))).pairs is not None
    assert pack(drawn(r, "any", (64, 288))).pairs is None


def check(program, x, count):
    batch = {"x": torch.from_numpy(x)}
    with in_planes(count):
        engine = Compiled(program)
    first = engine(batch)
    assert torch.equal(first, Reference(program)(batch)) and torch.equal(engine(batch), first)
