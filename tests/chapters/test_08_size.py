"""Chapter 8: size. The oracle is the chapter's own formulas."""

import copy
import ctypes
import gc
import os
import pickle
import re
import tracemalloc
import warnings
import weakref
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import networks
import quantspec as qs
from evidence import clause
from quantspec import chapters
from quantspec.capture import tracer
from quantspec.engines.registry import engine as find_engine
from quantspec.ir import program
from quantspec.ir.held import Held, held
from quantspec.ir.traverse import code_fields, refs
from quantspec.module import size
from quantspec.numerics.affine import QParams

spec = chapters.load("size")


def shapes(model):
    return [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)]


@st.composite
def chains(draw):
    """A chain of linear layers with bias."""
    sizes = draw(st.lists(st.integers(1, 40), min_size=2, max_size=5))
    return networks.seeded(lambda: nn.Sequential(*(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:]))))


def quantized(model, dynamic, per_channel):
    x = networks.inputs(4, (shapes(model)[0][0],))
    return (
        qs.quantize_dynamic(model, per_channel=per_channel)
        if dynamic
        else qs.quantize(model, [x], per_channel=per_channel)
    )


@clause("SIZ-NETWORK", "SIZ-LAYER", "SIZ-QPARAMS", "SIZ-BYTES")
@given(chains(), st.booleans(), st.booleans())
def test_a_network_takes_the_bytes_of_the_formula(model, dynamic, per_channel):
    q, layers = quantized(model, dynamic, per_channel), shapes(model)
    assert q.nbytes == spec.network_bytes(layers, per_channel, dynamic)
    assert size.float_bytes(model) == sum(spec.float_layer_bytes(*layer) for layer in layers)
    for step, layer in zip(q.program.layers, layers):
        assert size.step_bytes(step) == spec.layer_bytes(*layer, per_channel=per_channel, dynamic=dynamic)


@clause("SIZ-LAYER")
@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_without_bias_stores_none(bias):
    model = networks.seeded(lambda: networks.Perceptron(bias))
    step = qs.quantize(model, [networks.inputs()], per_channel=False).program.layers[0]
    assert size.step_bytes(step) == spec.layer_bytes(4, 5, bias=bias)
    assert size.float_bytes(model.first) == spec.float_layer_bytes(4, 5, bias=bias)


@clause("SIZ-BYTES")
def test_the_formula_counts_what_would_be_stored():
    q = qs.quantize(networks.seeded(networks.Perceptron), [networks.inputs()])
    stored = []
    for step in q.program.steps:
        stored += [v for name in vars(step) if isinstance(v := getattr(step, name), np.ndarray)]
    for grid in [q.program.steps[0].qparams] + [g for s in q.program.layers for g in (s.w_qparams, s.y_qparams)]:
        stored += [grid.scale, grid.zero_point]
    assert q.nbytes == sum(len(array.tobytes()) for array in stored)


@clause("SIZ-BYTES")
def test_what_stays_in_float_counts_with_its_buffers():
    model = networks.seeded(networks.Normalised)
    q = qs.quantize(model, [networks.inputs()], fuse=False)
    norm = 4 * 5 * 4 + 8  # weight, bias, mean, variance, and the count of batches
    layers = [step for step in q.program.steps if not isinstance(step, program.Call)]
    assert size.float_bytes(model.norm) == norm
    assert q.nbytes == sum(size.step_bytes(step) for step in layers) + norm


@clause("SIZ-ONCE")
def test_shared_arrays_count_once():
    model = networks.seeded(networks.Shared)
    q = qs.quantize(model, [networks.inputs()], per_channel=False)
    first, second = q.program.layers
    assert first.weight is second.weight and first.bias is second.bias
    each = [size.step_bytes(step) for step in q.program.layers]
    norm = size.float_bytes(model.norm)
    quantizes = [s for s in q.program.steps if isinstance(s, program.Quantize)]
    # The second layer adds its output's scale and zero point only.
    assert q.nbytes == each[0] + 8 + 8 * len(quantizes) + norm
    tied = networks.seeded(lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    tied[1].weight = tied[0].weight
    assert size.float_bytes(tied) == 4 * (16 + 4 + 4)


@clause("SIZ-ONCE")
def test_a_shared_array_counts_once():
    one, other = np.zeros(3, np.float32), np.zeros(5, np.int8)
    assert size.arrays_bytes([one, other, one]) == 12 + 5


@clause("SIZ-QPARAMS")
@pytest.mark.parametrize("channels", [1, 7])
def test_weights_per_channel_share_a_zero_point(channels):
    model = networks.seeded(lambda: nn.Sequential(nn.Linear(3, channels)))
    grid = qs.quantize_dynamic(model, per_channel=True).program.layers[0].w_qparams
    assert grid.scale.shape == (channels,) and grid.zero_point.shape == () and grid.nbytes == 4 * channels + 4


@clause("SIZ-RATIO")
@given(st.integers(1, 5000), st.integers(1, 5000))
def test_compression_is_below_four_and_at_least_the_formula(inputs, outputs):
    size = spec.float_layer_bytes(inputs, outputs)
    per_tensor = Fraction(size, spec.layer_bytes(inputs, outputs))
    per_channel = Fraction(size, spec.layer_bytes(inputs, outputs, per_channel=True))
    assert 4 / (1 + Fraction(3, inputs) + Fraction(16, outputs * inputs)) <= per_tensor < 4
    assert 4 / (1 + Fraction(7, inputs) + Fraction(12, outputs * inputs)) <= per_channel < 4


@clause("SIZ-RATIO")
@given(chains(), st.booleans())
def test_a_whole_network_is_compressed_as_the_formula_says(model, per_channel):
    q = quantized(model, False, per_channel)
    assert Fraction(size.float_bytes(model), q.nbytes) == spec.compression(shapes(model), per_channel=per_channel)


@clause("SIZ-SMALLER")
@given(st.integers(1, 300), st.integers(1, 300), st.booleans(), st.booleans())
def test_layers_of_some_size_are_never_larger_than_in_float(inputs, outputs, per_channel, bias):
    size = spec.layer_bytes(inputs, outputs, bias=bias, per_channel=per_channel)
    if inputs * outputs >= 6 and not per_channel or inputs >= 4 and outputs >= 2:
        assert size <= spec.float_layer_bytes(inputs, outputs, bias=bias)


@clause("SIZ-SMALLER")
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_quantized_layers_of_some_size_are_not_larger_than_they_were(per_channel, bias):
    for inputs, outputs in np.ndindex(8, 8):
        inputs, outputs = inputs + 1, outputs + 1
        if (inputs >= 4 and outputs >= 2) if per_channel else inputs * outputs >= 6:
            model = networks.seeded(lambda i=inputs, o=outputs: nn.Sequential(nn.Linear(i, o, bias=bias)))
            for q in (
                qs.quantize(model, [networks.inputs(4, (inputs,))], per_channel=per_channel),
                qs.quantize_dynamic(model, per_channel=per_channel),
            ):
                assert size.step_bytes(q.program.layers[0]) <= size.float_bytes(model)


@clause("SIZ-SMALLER")
def test_the_smallest_layers_are_larger():
    model = networks.seeded(lambda: nn.Sequential(nn.Linear(1, 1)))
    step = qs.quantize(model, [networks.inputs(4, (1,))], per_channel=False).program.layers[0]
    assert (size.float_bytes(model), size.step_bytes(step)) == (8, 21)


@clause("SIZ-NETWORK")
def test_the_size_does_not_depend_on_the_data():
    model = networks.seeded(networks.Perceptron)
    sizes = {qs.quantize(model, [networks.inputs(rows) * size]).nbytes for rows in (1, 9) for size in (0.01, 100)}
    assert len(sizes) == 1


@clause("SIZ-MACS")
@pytest.mark.parametrize(
    ("build", "shape", "expected"),
    [
        (lambda: nn.Linear(5, 3), (7, 4, 5), lambda: spec.macs_linear(28, 5, 3)),
        (lambda: nn.Conv2d(4, 6, 3, groups=2, stride=2), (2, 4, 9, 7), lambda: spec.macs_conv(2 * 4 * 3, 4, 6, 9, 2)),
        (lambda: nn.Conv1d(4, 4, 3, padding=1), (4, 8), lambda: spec.macs_conv(8, 4, 4, 3)),
        (
            lambda: nn.ConvTranspose2d(4, 6, 3, groups=2, stride=2), (2, 4, 3, 5),
            lambda: spec.macs_conv(2 * 3 * 5, 4, 6, 9, 2),
        ),
    ],
)
def test_multiply_accumulates_are_counted_by_the_formula(build, shape, expected):
    model, x = networks.seeded(build), networks.inputs(shape[0], shape[1:])
    q = qs.quantize(model, [x])
    (layer,) = q.program.layers
    assert size.macs(layer, x.shape, q(x).shape) == expected()
    (node,) = tracer.capture(model).nodes
    assert size.macs(node, x.shape, q(x).shape) == expected()
    assert size.macs(q.program.steps[0], x.shape, x.shape) == 0



def status(key):
    """Bytes of this process, as Linux tells them."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def at_rest():
    """Bytes that are resident when all that is free has gone back to the system; the peak is counted from here."""
    libc = ctypes.CDLL(None)
    libc.mallopt(-3, 65536)  # M_MMAP_THRESHOLD: large blocks are given back when they are freed
    gc.collect()
    libc.malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return status("VmRSS")


def network(kind, width):
    """A model of one kind, and an input for it."""
    if kind == "conv":
        return nn.Sequential(nn.Conv2d(width, width // 4, 4), nn.Flatten()).eval(), torch.randn(2, width, 4, 4)
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(3))).eval(), torch.randn(2, width)


def quantize(kind, model, x):
    if kind in ("static", "conv"):
        return qs.quantize(model, [x])
    return qs.quantize_dynamic(model, example=x if kind == "example" else None)


@pytest.fixture
def one_thread():
    with networks.torch_threads(1):  # threads of torch's have memory of their own
        yield


@clause("SIZ-RESIDENT", "SIZ-PEAK")
@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="memory is measured as Linux tells it")
@pytest.mark.parametrize("kind", ["static", "dynamic", "example", "conv"])
def test_weights_are_in_memory_once(kind, tmp_path, one_thread):
    path, width = tmp_path / "q.safetensors", 1024 if kind == "conv" else 2048
    model, x = network(kind, 64)  # what is loaded and compiled once
    small = quantize(kind, model, x)
    small.save(path)
    qs.load(path)(x)
    model, x = network(kind, width)
    before = at_rest()
    with torch.no_grad():
        model(x)
    running, floats = status("VmHWM") - before, sum(p.nbytes for p in model.parameters())
    before = at_rest() - floats
    q = quantize(kind, model, x)
    peak = status("VmHWM") - before
    del model
    q(x)
    resident = at_rest() - before
    assert resident <= spec.most_resident(q.nbytes) and q.nbytes <= q.resident_nbytes <= spec.most_resident(q.nbytes)
    assert peak <= spec.most_while_quantizing(floats, running, q.nbytes)
    q.save(path)
    del q
    before = at_rest()
    q = qs.load(path)
    peak = status("VmHWM") - before
    q(x)
    assert at_rest() - before <= spec.most_resident(q.nbytes)
    assert peak <= spec.most_while_loading(path.stat().st_size)


@st.composite
def layers(draw):
    """A layer of any kind that is packed, and an input for it; the sizes are no whole vectors."""
    inputs, outputs, size = draw(st.integers(1, 9)), draw(st.integers(1, 70)), draw(st.integers(1, 3))
    kind = draw(st.sampled_from(["linear", "lstm", "conv", "groups", "depthwise", "transposed", "volume"]))
    stride, dilation = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    x = (2, inputs, 9, 9)
    if kind == "linear":
        return kind, lambda: nn.Linear(inputs, outputs), (3, inputs)
    if kind == "lstm":
        both = draw(st.booleans())
        return kind, lambda: nn.LSTM(inputs, outputs, bidirectional=both), (3, 2, inputs)
    if kind == "groups":
        sizes = 2 * inputs, 2 * outputs, size
        return kind, lambda: nn.Conv2d(*sizes, dilation=dilation, groups=2), (2, 2 * inputs, 9, 9)
    if kind == "depthwise":
        return kind, lambda: nn.Conv2d(outputs, outputs, size, stride, groups=outputs), (2, outputs, 9, 9)
    if kind == "transposed":
        return kind, lambda: nn.ConvTranspose2d(inputs, outputs, size, stride, dilation=dilation), x
    if kind == "volume":
        return kind, lambda: nn.Conv3d(inputs, outputs, size, stride), (1, inputs, 4, 4, 4)
    return kind, lambda: nn.Conv2d(inputs, outputs, size, stride, dilation=dilation), x


@clause("SIZ-CODES")
@given(layer=layers(), twice=st.booleans())
def test_codes_are_those_that_were_quantized(layer, twice, tmp_path_factory):
    kind, make, shape = layer
    module, x = networks.seeded(make), networks.inputs(shape[0], shape[1:])
    square = kind == "linear" and shape[1] == module.out_features
    model = nn.Sequential(module, module).eval() if twice and square else module
    make_it = qs.quantize_dynamic if kind == "lstm" else lambda model, **options: qs.quantize(model, [x], **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        q, plain = make_it(model, engine="compiled"), make_it(model, engine="reference")
    expected = all_codes(plain)
    assert expected and all(isinstance(array, np.ndarray) for array in expected)
    path = tmp_path_factory.mktemp("codes") / "q.safetensors"
    q.save(path)
    for other in (q, q, copy.deepcopy(q), pickle.loads(pickle.dumps(q)), qs.load(path), q.run_on("reference")):
        assert all(np.array_equal(a, b) for a, b in zip(all_codes(other), expected, strict=True))
    for array, mine in zip(plain.state_dict()["_extra_state"].values(), q.state_dict()["_extra_state"].values()):
        assert torch.equal(array, mine)
    assert any(isinstance(held(*field), Held) for field in code_fields(q.program))
    again = make_it(networks.seeded(make), engine="compiled") if model is module else q
    again.load_state_dict(q.state_dict())
    assert all(np.array_equal(a, b) for a, b in zip(all_codes(again), expected, strict=True))


@clause("SIZ-CALL")
@given(layer=layers())
def test_a_call_unpacks_nothing(layer):
    kind, make, shape = layer
    model, x = networks.seeded(make), networks.inputs(shape[0], shape[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        q, plain = (qs.quantize_dynamic(model) if kind == "lstm" else qs.quantize(model, [x]) for _ in range(2))
    expected = plain(x)
    fields = [field for field in code_fields(q.program) if isinstance(held(*field), Held)]
    assert fields
    for field in fields:
        held(*field).unpack = None
    assert torch.equal(*(y[0] if kind == "lstm" else y for y in (q(x), expected)))


@st.composite
def watched(draw):
    """A program of calls, and of layers between some of them, that checks in each call which values there are still;
    the names of the values that nobody reads from one call on, for each call."""
    steps, made, read_by = [], ["x"], {"x": -1}
    for index in range(draw(st.integers(2, 8))):
        names = draw(st.lists(st.sampled_from(made), min_size=1, max_size=3))
        if draw(st.booleans()):
            codes, y = f"codes{index}", f"layer{index}"
            steps += [program.Quantize(codes, names[0], GRID), program.Dequantize(y, codes, GRID)]
            read_by[names[0]] = index - 1  # it is read before the call
            made.append(y)
            names = [y, *names[1:]]
        steps.append(program.Call(f"y{index}", "function", f"f{index}", tuple(map(program.Ref, names)), {}, ""))
        read_by |= dict.fromkeys([*names, f"y{index}"], index)
        made.append(f"y{index}")
    output = draw(st.sampled_from(made[1:]))
    return tuple(steps), output, read_by


GRID = QParams(0.1, 128, 0, 255)


@clause("SIZ-VALUES")
@given(watched())
def test_values_that_nobody_reads_any_more_are_given_up(drawn):
    steps, output, read_by = drawn
    alive, calls = {}, {}

    def watching(index, names):
        def call(*values):
            for name, value in zip(names, values):
                alive[name] = weakref.ref(value)
            held = {name for name, value in alive.items() if name not in ("x", output) and value() is not None}
            assert held == {name for name in alive if name not in ("x", output) and read_by[name] >= index}
            return values[0] + 1

        return call

    for step in steps:
        if isinstance(step, program.Call):
            calls["function", step.target] = watching(int(step.target[1:]), refs(step.args))
    drawn_program = program.Program("onnx", ("x",), {}, steps, program.Ref(output), calls)
    for engine in ("reference", "torch", "compiled"):
        alive.clear()
        find_engine(engine)(drawn_program)({"x": networks.inputs(2, (3,))})
        assert alive


def parts_apart(layers):
    """Layers of equal shapes with steps of torch's between them."""
    return nn.Sequential(*[m for _ in range(layers) for m in (nn.Linear(512, 512), nn.LayerNorm(512))])


@clause("SIZ-WORKSPACE")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("how", [None, {}, {"activations": None}], ids=["static", "dynamic", "weights alone"])
def test_more_layers_work_in_no_more_memory(how, threads):
    held, x = {}, networks.inputs(256, (512,))
    for layers in (2, 10):
        model = networks.seeded(lambda: parts_apart(layers)).eval()  # noqa: B023  # called at once
        q = qs.quantize(model, [x]) if how is None else qs.quantize_dynamic(model, example=x, **how)
        assert q.engines == dict.fromkeys(q.engines, "compiled")
        gc.collect()
        tracemalloc.start()
        try:
            with networks.torch_threads(threads):
                q(x)
            held[layers] = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
    # What is told of a layer is kept: offsets of its rows, and instructions. One layer's codes alone are 128 KiB.
    assert held[2] > 2**17 and held[10] - held[2] < 8 * 2**15


def all_codes(q):
    return [getattr(owner, name) for owner, name in code_fields(q.program)]


@clause("SIZ-CODES")
def test_codes_that_are_unpacked_cannot_be_written_to():
    q = qs.quantize_dynamic(networks.seeded(lambda: nn.Linear(8, 3)))
    (owner, name), *_ = code_fields(q.program)
    codes = getattr(owner, name)
    assert getattr(owner, name) is codes and isinstance(held(owner, name), Held)
    with pytest.raises(ValueError, match="read-only"):
        codes[:] = 0


@clause("SIZ-TOLD")
def test_the_table_tells_bytes_in_memory():
    q = qs.quantize_dynamic(nn.Linear(8, 3).eval())  # of which a vector of 16 outputs is held
    assert q.nbytes == 3 * 8 + 3 * 4 + 3 * 4 + 4 and q.resident_nbytes == q.nbytes + 13 * 8
    for text in (repr(q), q.table(wide=True)):
        assert re.search("^ stored +52$", text, re.M) and re.search("^ in memory +156$", text, re.M)
