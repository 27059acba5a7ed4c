"""What a file states that it costs: told before anything is made, and refused beyond what the caller allows."""

import math
import re
import time
import tracemalloc

import every_step
import pytest
import torch
from forged import changed, dict_of, step, tuple_of
from hypothesis import given
from hypothesis import strategies as st
from stored import NETWORKS

import quantspec
from evidence import clause
from networks import mostly_attention
from quantspec import chapters
from quantspec.storage import arrays, file, limits

pytestmark = mostly_attention
spec = chapters.load("static")
X, CONV = {"ref": "x"}, "steps conv"
BIG = 2**19


def statement(data: bytes, tmp_path) -> limits.Statement:
    """What a file states."""
    (tmp_path / "q").write_bytes(data)
    with open(tmp_path / "q", "rb") as source:
        header = arrays.header(source, file.once)
    sizes = {name: (shape, last - first) for name, ((first, last), shape, _) in header.places.items()}
    return limits.stated(file.json.loads(header.metadata["quantspec"]), sizes, header.start)


def stated(changes, tmp_path) -> limits.Statement:
    return statement(changed(*every_step.parts(), changes), tmp_path)


@clause("STA-LIMITS")
@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)), stride=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    padding=st.tuples(*[st.tuples(st.integers(-3, 2**20), st.integers(0, 9))] * 2),
    dilation=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)  # fmt: skip
def test_a_convolution_states_what_its_places_multiply_to(kernel, stride, padding, dilation, tmp_path_factory):
    changes = [("tensor conv.weight", torch.zeros(4, 3, *kernel, dtype=torch.int8)), (f"{CONV} stride", list(stride)),
               (f"{CONV} padding", list(map(list, padding))), (f"{CONV} dilation", list(dilation))]  # fmt: skip
    memory, work = stated(changes, tmp_path_factory.mktemp("q")).shares["step 'conv'"]
    values, read = spec.stated_convolution(4, 3, kernel, stride, padding, dilation)
    parts = 4  # of an input that is not spread: one, with its four outputs
    assert memory == 8 * (values + read + parts)
    assert work >= values * 3 * math.prod(kernel)


@clause("STA-LIMITS")
@pytest.mark.parametrize("name", NETWORKS)
def test_what_a_network_states_is_the_limit_at_which_it_loads(name, tmp_path):
    q, x = NETWORKS[name]()
    q.save(tmp_path / "q")
    told = statement((tmp_path / "q").read_bytes(), tmp_path)
    assert torch.equal(quantspec.load(tmp_path / "q", max_memory=told.memory, max_work=told.work)(x), q(x))
    for key, figure in (("memory", told.memory), ("work", told.work)):
        message = rf"q: it needs {figure:,} .*; max_{key} allows {figure - 1:,}, pass a larger one"
        with pytest.raises(quantspec.FormatError, match=message):
            quantspec.load(tmp_path / "q", **{f"max_{key}": figure - 1})
    size = (tmp_path / "q").stat().st_size
    assert told.memory < size * limits.MEMORY_OF_BYTE and told.work < limits.ANY_WORK


def call(name, kind, target, *args, **kwargs):
    return ("steps +", step(name, kind, target, *args, kwargs=dict_of(**kwargs)))


def function(target, *args, **kwargs):
    """A step that calls a function."""
    rows = [call("odd", "function", target, *args, **kwargs)]
    known = {row["target"] for row in every_step.parts()[0]["network"]["callables"]}
    return rows if target in known else [*rows, ("callables +", {"kind": "function", "target": target})]


def module(name, **arguments):
    """A step that calls a module."""
    row = {"kind": "module", "target": "odd", "class": name, "arguments": dict_of(**arguments), "state": {}}
    return [call("odd", "module", "odd", X), ("callables +", row)]


UPSAMPLE = dict.fromkeys(("size", "scale_factor", "align_corners", "recompute_scale_factor")) | {"mode": "nearest"}
# Each of the sizes alone is allowed, or was never looked at.
LARGE = {
    "padding": [(f"{CONV} padding", [[BIG, BIG], [BIG, BIG]])],
    "input dilation": [(f"{CONV} input_dilation", [2**16, 2**16])],
    "kernels of a pool": [("steps max kernel", [2**18, 2**18]), ("steps max padding", [2**17, 2**17])],
    "adaptive sizes": [("steps ada size", [2**20, 2**20])],
    "sizes of an interpolation": [("steps between size", [2**20, 2**20])],
    "factors of an interpolation": [("steps factors factors", [2.0**20, 2.0**20])],
    "a weight without values": [("tensor linear.weight", torch.zeros(2**40, 0, dtype=torch.int8))],
    "full": function("torch.full", tuple_of(2**20, 2**20), 0.0),
    "zeros": function("torch.zeros", 2**20, 2**20),
    "ones": function("torch.ones", 2**40),
    "arange of one number": function("torch.arange", 2**40),
    "new_zeros": [call("odd", "method", "new_zeros", X, 2**20, 2**20)],
    "arange": function("torch.arange", 0, 2**40),
    "linspace": function("torch.linspace", 0, 1, 2**40),
    "logspace": function("torch.logspace", 0, 1, 2**40),
    "eye": function("torch.eye", 2**20),
    "eye of two sizes": function("torch.eye", 2**20, m=2**20),
    "mvlgamma": function("torch.mvlgamma", X, 2**40),
    "hann_window": function("torch.hann_window", 2**40),
    "one_hot": function("torch.nn.functional.one_hot", X, 2**40),
    "expand": [call("odd", "method", "expand", X, 2**20, 2**20)],
    "repeat": [call("odd", "method", "repeat", X, 2**20, 2**20)],
    "repeated again": [call("a", "method", "repeat", X, 2**20), call("b", "method", "repeat", {"ref": "a"}, 2**20)],
    "repeat_interleave": function("torch.repeat_interleave", X, repeats=2**40),
    "pad": function("torch.nn.functional.pad", X, [BIG, BIG, BIG, BIG]),
    "pooling": function("torch.nn.functional.max_pool2d", X, 1, 1, tuple_of(BIG, BIG)),
    "interpolate to a size": function("torch.nn.functional.interpolate", X, size=tuple_of(2**20, 2**20)),
    "interpolate by a factor": function("torch.nn.functional.interpolate", X, scale_factor=2.0**20),
    "Upsample": module("Upsample", **UPSAMPLE | {"scale_factor": 2.0**20}),
    "Upsample to a size": module("Upsample", **UPSAMPLE | {"size": tuple_of(2**20, 2**20)}),
    "AdaptiveAvgPool2d": module("AdaptiveAvgPool2d", output_size=tuple_of(2**20, 2**20)),
    "ZeroPad2d": module("ZeroPad2d", padding=tuple_of(BIG, BIG, BIG, BIG)),
    "ZeroPad3d with one width": module("ConstantPad3d", padding=BIG, value=0.0),
    "doubled forty times": [
        ("steps +", {"step": "Concat", "name": f"d{n}", "xs": [f"d{n - 1}" if n else "mul"] * 2, "x_qparams": [0, 0],
                     "y_qparams": 0, "axis": 0}) for n in range(40)
    ],
}  # fmt: skip


@clause("STA-LIMITS")
@pytest.mark.parametrize("name", LARGE)
def test_sizes_that_multiply_are_refused_before_anything_is_made(name, tmp_path):
    (tmp_path / "q").write_bytes(changed(*every_step.parts(), LARGE[name]))
    tracemalloc.start()
    try:
        begin = time.monotonic()
        with pytest.raises(quantspec.FormatError, match="it needs .* most of it for .*; max_(memory|work) allows"):
            quantspec.load(tmp_path / "q")
        assert tracemalloc.get_traced_memory()[1] < 2**22 and time.monotonic() - begin < 2
    finally:
        tracemalloc.stop()


def test_a_limit_that_the_caller_raises_is_the_limit(tmp_path):
    (tmp_path / "q").write_bytes(changed(*every_step.parts(), LARGE["adaptive sizes"]))
    with pytest.raises(quantspec.FormatError) as caught:
        quantspec.load(tmp_path / "q")
    (figure,) = re.findall(r"it needs ([\d,]+) bytes", str(caught.value))
    with pytest.raises(quantspec.FormatError, match="max_work allows"):
        quantspec.load(tmp_path / "q", max_memory=int(figure.replace(",", "")))
    q = quantspec.load(tmp_path / "q", max_memory=math.inf, max_work=math.inf)
    assert [step.size for step in q.program.steps if step.name == "ada"] == [(2**20, 2**20)]


@pytest.mark.parametrize("made", [
    function("torch.zeros", 1000), function("torch.ones", 10, 100), function("torch.arange", 1000),
    function("torch.full", tuple_of(1000), 0.0), function("torch.eye", 40, 25),
    [call("odd", "method", "new_zeros", X, 1000)], [call("odd", "method", "expand", X, 8, 125)],
], ids=lambda rows: rows[0][1]["target"])  # fmt: skip
def test_sizes_state_the_values_that_they_multiply_to(made, tmp_path):
    assert stated(function("torch.eye", 30), tmp_path).shares["step 'odd'"] == (8 * 900, 900)
    assert stated(made, tmp_path).shares["step 'odd'"] == (8 * 1000, 1000)
    # And so many has what is computed of each of them.
    for kind in ("Quantize", "Dequantize", "Relu", "Table"):
        rows = [*made, ("steps +", {"step": kind, "name": "each", "x": "odd"})]
        assert stated(rows, tmp_path).shares["step 'each'"] == (8 * 1000, 1000)


ODD, MODULE = {"ref": "odd"}, {"kind": "module", "target": "each"}
FLOAT = MODULE | {"layer": "Linear", "fields": {"x": "odd"}, "state": {"weight": "linear.weight"}}  # [3, 8]
PADDED = MODULE | {"class": "ZeroPad2d", "arguments": dict_of(padding=tuple_of(20, 30, 40, 50)), "state": {}}
# What reads 1000 values, and how many it makes of them at least.
READERS = {
    "a sum": ({"step": "Add", "name": "each", "a": "odd", "b": "x"}, 1000),
    "a product": ({"step": "Mul", "name": "each", "a": "x", "b": "odd"}, 1000),
    "joined codes": ({"step": "Concat", "name": "each", "xs": ["odd", "x", "odd"]}, 2001),
    "a layer": ({"step": "Linear", "name": "each", "x": "odd", "weight": "linear.weight"}, 125 * 3),
    "bilinear": ({"step": "Bilinear", "name": "each", "x": "odd", "factors": [2.5, 3.0]}, 6000),
    "smaller than it was": ({"step": "Bilinear", "name": "each", "x": "odd", "factors": [0.5, 3.0]}, 1),
    "what keeps values": (call("each", "method", "relu", ODD)[1], 1000),
    "what may take some": (call("each", "method", "sum", ODD)[1], 1),
    "joined": (call("each", "function", "torch.cat", [ODD, X, ODD])[1], 2001),
    "given by name": (call("each", "function", "torch.abs", input=ODD)[1], 1000),
    "a layer in float": (call("each", "module", "each", ODD)[1], 125 * 3, FLOAT),
    "a module": (call("each", "module", "each", ODD)[1], (1 + 20 + 30) * (1 + 40 + 50), PADDED),
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_a_step_states_the_values_that_it_makes_of_those_that_it_reads(name, tmp_path):
    row, values, *called = READERS[name]
    rows = [*function("torch.zeros", 1000), ("steps +", row), *(("callables +", what) for what in called)]
    assert stated(rows, tmp_path).shares["step 'each'"][0] == 8 * values


def test_what_is_not_said_counts_as_one_value(tmp_path):
    usual = stated([], tmp_path)
    for changes in (
        function("torch.chunk", X, 4096), [call("odd", "method", "reshape", X, -1, 2**20)],
        function("operator.getitem", X, {"slice": [0, 2**62, None]}),
        [call("odd", "method", "split", X, [2**20, 2**20])],
        [call("odd", "method", "clamp", X, -(2**40), 2**40)],
    ):  # fmt: skip
        assert stated(changes, tmp_path).shares["step 'odd'"] == (8, 1)
    assert usual.memory < 2**20


def test_padding_of_a_module_that_there_is_not_is_refused_with_the_module(tmp_path):
    (tmp_path / "q").write_bytes(changed(*every_step.parts(), module("Padded", padding=3)))
    with pytest.raises(quantspec.FormatError, match="'Padded'"):
        quantspec.load(tmp_path / "q")


@pytest.mark.parametrize("row", [None, 3, [], {}, {"step": "Conv", "padding": {"a": 1}, "weight": []}, {"step": []}])
def test_what_has_another_form_counts_as_little_and_is_refused_later(row, tmp_path):
    (tmp_path / "q").write_bytes(changed(*every_step.parts(), [("steps +", row)]))
    with pytest.raises(quantspec.FormatError, match="unknown kind|expected the keys"):
        quantspec.load(tmp_path / "q")


@pytest.mark.parametrize("size", [0, 1, 1000])
def test_by_default_a_file_may_state_so_much_and_more_for_each_of_its_bytes(size):
    for key, most in (("memory", 2**30 + 64 * size), ("work", 2**34 + 4096 * size)):
        for over in (0, 1):
            share = (most + over) * (key == "memory"), (most + over) * (key == "work")
            told = limits.Statement({"a part": share})
            if not over:
                told.check(limits.Limits(), size)
                continue
            with pytest.raises(limits.TooLarge, match=f"for a part; max_{key} allows {most:,}, "):
                told.check(limits.Limits(), size)


@pytest.mark.parametrize(("shape", "nbytes", "longest"), [((2, 5), 40, 5), ((0, 2**40), 0, 2**40), ((), 4, 0)])
def test_an_array_states_three_times_its_bytes_and_a_value_for_each_place_of_its_longest_axis(shape, nbytes, longest):
    shares = limits.stated({}, {"a": (shape, nbytes)}, 7).shares
    assert shares == {"its header": (64 * 7, 7), "tensor 'a'": (3 * nbytes + 8 * longest, nbytes + longest)}


@pytest.mark.parametrize("pair", [[], ["alpha"], ["alpha", 2.0, 1], "ab", 3, None, {"a": 1, "b": 2}, [1, 2]], ids=repr)
def test_what_is_no_pair_of_a_name_and_a_value_counts_as_nothing_and_is_refused_later(pair, tmp_path):
    changes = [("steps function kwargs", {"dict": [pair]})]
    usual = stated([("steps function kwargs", dict_of())], tmp_path)
    assert stated(changes, tmp_path).shares["step 'function'"] == usual.shares["step 'function'"]
    with pytest.raises(quantspec.FormatError, match="kwargs"):
        quantspec.load(tmp_path / "q")
