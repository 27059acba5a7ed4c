"""Kernels that check every byte before they touch it find nothing, whatever they are run over; and they would."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import bounds
import programs
import quantspec as qs
import strategies
from evidence import clause
from fuzz import fuzz
from networks import inputs, mostly_attention, seeded, tensors, torch_threads
from quantspec.engines.compiled.engine import Compiled
from quantspec.engines.reference import Reference
from quantspec.kernels import arrays, frame, histogram, memory
from quantspec.kernels.emitter import FLOATS, I64
from quantspec.kernels.jit import Kernel
from quantspec.kernels.records import Instruction
from quantspec.numerics.affine import QParams


@pytest.fixture(scope="module")
def checked():
    """What kernels made by the tests of this file may touch. What this thread keeps of the others is not theirs."""
    model, batch = seeded(encoder), inputs(7, (5, 8))
    for x in (batch[:1], batch[:2], batch):
        qs.quantize(model, [x])(x)
    with bounds.checked() as ours:
        yield ours


@pytest.fixture(params=[1, 2])
def threads(request):
    with torch_threads(request.param):
        yield request.param


class Tagger(nn.Module):
    """Embedding, recurrent layer, linear layer."""

    def __init__(self, recurrent: type[nn.RNNBase]):
        super().__init__()
        self.words, self.tags = nn.Embedding(20, 6), nn.Linear(10, 3)
        self.recurrent = recurrent(6, 5, bidirectional=True, batch_first=True)

    def forward(self, x):
        return self.tags(self.recurrent(self.words(x))[0])


class Packing(Tagger):
    """The same for sequences of as many words as are above 3."""

    def forward(self, x):
        packed = pack_padded_sequence(self.words(x), (x > 3).sum(1), batch_first=True, enforce_sorted=False)
        return self.tags(pad_packed_sequence(self.recurrent(packed)[0], batch_first=True)[0])


def mlp():
    return nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 3))


def images():
    return nn.Sequential(
        nn.Conv2d(3, 9, 3, padding=1), nn.BatchNorm2d(9), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(9, 9, 3, groups=9),
        nn.Hardswish(), nn.ConvTranspose2d(9, 7, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 4),
        nn.Softmax(-1),
    )  # fmt: skip


def encoder():
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1, enable_nested_tensor=False)


def bag():
    return nn.Sequential(nn.EmbeddingBag(20, 9), nn.Linear(9, 3))


IMAGES, SEQUENCES, WORDS = inputs(4, (3, 9, 9)), inputs(2, (5, 8)), torch.arange(12).reshape(2, 6)
NETWORKS = {
    "images": (images, IMAGES, None),
    "perceptron": (mlp, inputs(3), None),
    "perceptron, dynamic": (mlp, inputs(3), {}),
    "perceptron, weights alone": (mlp, inputs(3), {"activations": None}),
    "encoder": (encoder, SEQUENCES, None),
    "encoder, by rows": (encoder, SEQUENCES, {"activations": "per_token"}),
    "LSTM": (lambda: Tagger(nn.LSTM), WORDS, {}),
    "GRU": (lambda: Tagger(nn.GRU), WORDS, {}),
    "packed GRU": (lambda: Packing(nn.GRU), WORDS, {}),
    "bag": (bag, WORDS, {}),
}


@mostly_attention
@clause("STA-BOUNDS")
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_touch_what_is_theirs(checked, threads, name):
    build, x, options = NETWORKS[name]
    model = seeded(build)
    q = qs.quantize(model, [x]) if options is None else qs.quantize_dynamic(model, example=x, **options)
    before = checked.checks
    for batch in (x, x[:1], torch.cat([x] * 7)):
        for found, expected in zip(tensors(q(batch)), tensors(q.run_on("reference")(batch)), strict=True):
            assert torch.equal(found, expected)
    assert checked.checks > before and not checked.violations


def drawn(r: np.random.Generator):
    """Programs of one kind of step or a few, of odd sizes, and inputs for them."""
    x = programs.grid(r)
    rows, inputs, outputs, channels, side = (int(n) for n in r.integers(1, (20, 150, 70, 70, 9)))
    layer = programs.linear(r, "a", "x.codes", x, inputs, outputs)
    yield programs.between(x, [layer], layer.y_qparams), programs.values(r, x, (rows, inputs))
    yield programs.to_floats(x, programs.real(layer)), programs.values(r, x, (rows, inputs))
    for groups, spread in ((1, 1), (1, 2), (channels, 1)):
        of = (channels, channels, (3, 2), (1, 2), ((1, 0), (1, 1)), (2, 1), groups, (spread, spread))
        image = programs.conv(r, "a", "x.codes", x, *of)
        for program in (programs.between(x, [image], image.y_qparams), programs.to_floats(x, programs.real(image))):
            yield program, programs.values(r, x, (2, channels, side + 5, side + 4))
    for step in [*programs.pools(r, x, 2), programs.table(r, x)]:
        program = programs.between(x, [step], getattr(step, "y_qparams", x))
        yield program, programs.values(r, x, (2, channels, side + 5, side + 6))
    yield programs.residual(r, channels, bool(r.random() < 0.5)), programs.values(r, x, (2, channels, side, side))
    for per_row in (False, True):
        chain = programs.dynamic_chain(r, [inputs, outputs], rows=per_row, reduce_range=False)
        yield chain, r.normal(size=(rows, 1, inputs)).astype(np.float32)


@clause("STA-BOUNDS")
@given(strategies.seeds(), st.integers(1, 2))
def test_attention_touches_what_is_its(checked, r, count):
    """Heads of odd sizes, in blocks of queries where there are many keys, with masks that lie in every way."""
    length, keys, features, width = (int(n) for n in r.integers(1, (50, 90, 40, 40)))
    keys, causal = keys * int(r.choice([1, 40])), bool(r.random() < 0.5)
    shapes = (2, 3, length, features), (2, 3, keys, features), (1, 3, keys, width)
    batch = {name: torch.from_numpy(r.normal(size=shape).astype(np.float32)) for name, shape in zip("qkv", shapes)}
    if not causal:
        mask = (int(r.choice([1, 2])), 1, int(r.choice([1, length])), int(r.choice([1, keys])))
        batch["mask"] = torch.from_numpy(r.normal(size=mask).astype(np.float32))
    program = programs.attention(*batch, **{"is_causal": True} if causal else {})
    before = checked.checks
    with torch_threads(count):
        assert torch.equal(Compiled(program)(batch), Reference(program)(batch))
    assert checked.checks > before and not checked.violations


@clause("STA-BOUNDS")
@given(strategies.seeds())
def test_drawn_programs_touch_what_is_theirs(checked, r):
    for program, x in drawn(r):
        Compiled(program)({"x": torch.from_numpy(x)})
        assert not checked.violations


@clause("STA-BOUNDS")
@given(strategies.seeds(), st.integers(1, 5000), st.sampled_from([np.uint8, np.int8]))
def test_whole_arrays_touch_what_is_theirs(checked, r, size, dtype):
    first = np.iinfo(dtype).min
    grid = QParams(np.float32(0.1), first + 100, first, first + 255).array_grid
    x = r.normal(size=size + 1).astype(np.float32)[1:]
    arrays.dequantize(arrays.quantize(x, grid), grid)
    qs.MinMaxObserver().observe(x)
    histogram.counts(x, -6, 2048)
    assert not checked.violations


@mostly_attention
@clause("STA-BOUNDS")
def test_forged_programs_touch_what_is_theirs(checked, tmp_path):
    subjects, loaded = fuzz.subjects(str(tmp_path)), 0
    path = tmp_path / "forged"
    for number in range(200):
        subject = subjects[number % len(subjects)]
        fuzz.written(path, fuzz.made("forged", number, 2, subject))
        became, found = fuzz.judged("forged", subject, str(path), checked)
        assert not found, number
        loaded += became == "loaded"
    assert loaded > 5


class Reading(Instruction):
    """Sixteen floats from an address, so many bytes from there to another one."""

    source: frame.Address
    target: frame.Address


def write_reading(emit, op, frame):
    source, target = emit.fields(op, Reading.source, Reading.target)
    emit.write(emit.read(source, FLOATS), target)


READING = Kernel("reading", Reading, write_reading)


@clause("STA-BOUNDS")
@pytest.mark.parametrize("source, target, nbytes, writes", [
    (0, 0, 0, False), (4, 0, 64, False), (-1, 0, 64, False), (0, 4, 64, True), (0, -64, 64, True), (0, 60, 64, True),
])  # fmt: skip
def test_a_byte_too_many_is_told(checked, source, target, nbytes, writes):
    both = [memory.aligned(16, np.float32) for _ in range(2)]
    places = [array.ctypes.data + distance for array, distance in zip(both, (source, target))]
    frame.run_alone(READING, Reading(source=places[0], target=places[1]))
    found = checked.violations
    assert len(found) == (nbytes > 0)
    for violation in found:
        assert "reading, test_bounds.py" in violation.site
        assert (violation.address, violation.nbytes, violation.writes) == (places[writes], nbytes, writes)
        assert violation.nearest == abs(target if writes else source)
        assert not any(array.any() for array in both[writes:])


@clause("STA-BOUNDS")
def test_a_lane_too_many_is_told_and_lanes_outside_the_mask_are_none(checked):
    source, target = memory.aligned(16, np.float32), memory.aligned(3, np.float32)
    for start, found in ((0, 0), (1, 1)):
        frame.run_alone(MASKED, Reading(source=source.ctypes.data, target=target[start:].ctypes.data))
        assert len(checked.violations) == found


def write_masked(emit, op, frame):
    source, target = emit.fields(op, Reading.source, Reading.target)
    emit.write_some(emit.read(source, FLOATS), target, emit.mask(I64(3)))


MASKED = Kernel("masked", Reading, write_masked)


@clause("STA-BOUNDS")
def test_a_row_too_many_is_told(checked):
    torch.default_generator.manual_seed(0)
    q, x = qs.quantize(nn.Linear(20, 30).eval(), [torch.randn(5, 20)]), torch.randn(5, 20)
    expected = q(x)
    assert not checked.violations
    (segment,) = q.compiled.parts
    (batched,) = segment.batched.values()
    ((plan, _),) = batched.tasks[0]
    for instruction in plan.instructions:
        if hasattr(instruction, "product"):
            wrong = type(instruction).on(plan.frame.instructions[plan.instructions.index(instruction)])
            wrong.product.rows = wrong.product.rows + 1
    q(x)
    (found,) = checked.violations
    assert found.site.startswith("product, "), found
    assert expected.shape == (5, 30)


def test_kernels_that_check_are_stored_nowhere(checked, tmp_path, monkeypatch):
    monkeypatch.setenv("QUANTSPEC_KERNELS", str(tmp_path))
    assert Kernel("unstored", Reading, write_reading).address and not list(tmp_path.iterdir())


@clause("STA-BOUNDS")
def test_the_emitter_alone_makes_addresses_pointers():
    kernels = Path(frame.__file__).parent
    found = {
        path.name: len(re.findall(r"inttoptr\(|\.gep\(|masked\.(?:gather|scatter)|llvm\.mem", path.read_text("utf-8")))
        for path in kernels.glob("*.py")
    }
    assert {name: count for name, count in found.items() if count} == {"emitter.py": 5, "frame.py": 2}
