"""The figures of a file, computed from its JSON alone: what each kind of step states, with sizes of every axis."""

import math
import sys

import pytest
from forged import dict_of, step, tuple_of
from hypothesis import given
from hypothesis import strategies as st

from quantspec.storage import limits
from told import exactly

AXES = st.integers(1, 3)
SIZES = st.lists(st.integers(1, 50), min_size=1, max_size=3)
THOUSAND = step("many", "function", "torch.zeros", 1000)
MANY, X = {"ref": "many"}, {"ref": "x"}


def share(row, shapes=None, callables=()):
    """Bytes and operations of a step behind one that makes a thousand values."""
    network = {"steps": [THOUSAND, row | {"name": "y"}], "callables": list(callables)}
    tensors = {name: (shape, 0) for name, shape in (shapes or {}).items()}
    return limits.stated({"network": network}, tensors, 0).shares["step 'y'"]


@pytest.mark.parametrize(
    ("number", "told"),
    [(0, "0"), (1234, "1,234"), (0.5, "0"), (10**15 - 1, "999,999,999,999,999"), (10**15, "1e+15"),
     (2**60, "1.15e+18"), (10**400, f"{sys.float_info.max:.3g}"), (math.inf, f"{sys.float_info.max:.3g}")],
)  # fmt: skip
def test_a_figure_is_told_in_digits_below_a_million_of_thousand_millions_and_as_a_power_from_there(number, told):
    assert limits.figure(number) == told


@pytest.mark.parametrize(
    ("index", "unit", "argument"), [(0, "bytes of memory", "max_memory"), (1, "operations", "max_work")]
)
def test_what_is_refused_names_the_part_that_states_most_of_it(index, unit, argument):
    shares = {"z": (3, 2), "b": (1, 1), "m": (900, 8), "a": (8, 900), "c": (2, 3)}
    allowed = limits.Limits(*((math.inf, 913) if index else (913, math.inf)))
    told = f"it needs 914 {unit}, most of it for {'a' if index else 'm'}; {argument} allows 913"
    with pytest.raises(limits.TooLarge, match=exactly(f"{told}, pass a larger one to load it anyway")):
        limits.Statement(shares).check(allowed, 0)


@pytest.mark.parametrize(
    "content", [None, 3, "network", [], ["network"], {"network": [1]}, {"network": "steps"}, {"network": {"steps": 3}},
                {"network": {"steps": {"a": 1}}}, {"model": []}, {"model": {"parts": 3}}, {"model": {"parts": [4]}}],
    ids=repr,
)  # fmt: skip
def test_what_has_no_steps_states_its_header_alone(content):
    assert limits.stated(content, {}, 5).shares == {"its header": (64 * 5, 5)}


@pytest.mark.parametrize("name", [None, 3, [], {}, MANY, "many more"], ids=repr)
def test_what_is_no_name_of_a_value_counts_as_one_value(name):
    for row in ({"step": "Relu", "x": name}, {"step": "Add", "a": name, "b": name}, {"step": "Concat", "xs": [name]}):
        assert share(row) == (8, 1)


def test_each_network_of_a_model_states_its_steps():
    network = {"steps": [{"step": "AdaptiveAvgPool", "name": "y", "size": [10, 20]}]}
    parts = {"parts": [{"network": network}, {"network": network}]}
    for content, times in (
        ({"network": network}, 1), ({"model": parts}, 2), ({"network": network, "model": parts}, 3)
    ):  # fmt: skip
        assert limits.stated(content, {}, 0).shares["step 'y'"] == (8 * 200 * times, 200 * times)


@pytest.mark.parametrize("kind", ["MaxPool", "AvgPool"])
@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50)), min_size=1, max_size=3))
def test_a_pool_states_the_positions_of_its_padding_and_the_operations_of_its_window(kind, axes):
    row = {"step": kind, "x": "many", "kernel": [k for k, _ in axes], "padding": [p for _, p in axes]}
    made = 1 + math.prod(1 + 2 * p for _, p in axes)
    assert share(row) == (8 * made, made + math.prod(k for k, _ in axes))


@pytest.mark.parametrize("kind", ["AdaptiveAvgPool", "Bilinear"])
@given(SIZES)
def test_what_has_a_size_states_its_product(kind, size):
    assert share({"step": kind, "x": "many", "size": size}) == (8 * math.prod(size), math.prod(size))


@pytest.mark.parametrize("like", [None, [], "x"])
def test_what_is_resized_like_another_value_states_as_many_values_as_it_reads(like):
    assert share({"step": "Bilinear", "x": "many", "size": None, "factors": like}) == (8000, 1000)


@given(SIZES)
def test_an_embedding_states_one_row(shape):
    found = share({"step": "Embedding", "weight": "w"}, {"w": (7, *shape)})
    assert found == (8 * math.prod(shape), math.prod(shape))


@pytest.mark.parametrize("kind", ["Linear", "LinearReal", "LinearDynamic", "LinearWeight"])
@pytest.mark.parametrize(("inputs", "rows"), [(1000, 1), (999, 2), (334, 3), (10, 100), (2000, 1), (0, 1000)])
def test_a_linear_layer_states_the_rows_that_its_inputs_make(kind, inputs, rows):
    found = share({"step": kind, "x": "many", "weight": "w"}, {"w": (3, inputs)})
    assert found == (8 * 3 * rows, 3 * rows + rows * 3 * inputs)


@pytest.mark.parametrize("kind", ["Conv", "ConvReal"])
@given(
    st.lists(
        st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 9), st.integers(0, 9),
                  st.integers(1, 5)), min_size=1, max_size=3,
    ),
)  # fmt: skip
def test_a_convolution_states_its_windows_the_image_that_it_pads_and_a_part_for_each_place_between_inputs(kind, axes):
    kernel, stride, dilation, before, after, spread = zip(*axes)
    row = {
        "step": kind, "x": "many", "weight": "w", "stride": list(stride), "dilation": list(dilation),
        "input_dilation": list(spread), "padding": [list(pair) for pair in zip(before, after)],
    }  # fmt: skip
    windows = math.prod(max((b + a - d * (k - 1)) // s + 1, 1) for k, s, d, b, a, _ in axes)
    image, parts = 3 * math.prod(1 + b + a for b, a in zip(before, after)), math.prod(spread)
    made = 8 * windows + image + 8 * parts
    found = share(row, {"w": (8, 3, *kernel)})
    assert found == (8 * made, made + windows * 8 * 3 * math.prod(kernel) + parts)


@given(AXES, st.integers(0, 9), st.booleans())
def test_one_width_of_a_module_is_that_of_all_its_axes(axes, width, alone):
    padding = width if alone else tuple_of(*[width] * (axes + (axes == 1)))
    row = {"kind": "module", "target": "m", "class": f"MaxPool{axes}d", "arguments": dict_of(padding=padding)}
    made = (1 + 2 * width) ** (axes if alone else max(axes, 2))
    assert share(step("y", "module", "m", X), callables=[row])[1] == made


@given(AXES, st.integers(0, 9))
def test_one_width_of_a_padding_is_that_of_both_sides_of_all_its_axes(axes, width):
    row = {"kind": "module", "target": "m", "class": f"ZeroPad{axes}d", "arguments": dict_of(padding=width)}
    assert share(step("y", "module", "m", X), callables=[row])[1] == (1 + 2 * width) ** axes


MODES = {"nearest": 2, "linear": 1, "bilinear": 2, "bicubic": 2, "trilinear": 3, 7: 2, None: 2}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("module", [True, False])
def test_one_factor_is_that_of_all_axes_that_its_mode_has(mode, module):
    kwargs = {"scale_factor": 3.5, "mode": mode}
    row = {"kind": "module", "target": "m", "class": "Upsample", "arguments": dict_of(**kwargs)}
    made = step("y", "module", "m", MANY) if module else step(
        "y", "function", "torch.nn.functional.interpolate", MANY, kwargs=dict_of(**kwargs)
    )  # fmt: skip
    assert share(made, callables=[row])[1] == 1000 * 3 ** MODES[mode]


@pytest.mark.parametrize(
    ("factors", "times"),
    [((2.0, 3), 6), ((2.0, 0.5, 3.0), 6), ((1.0, 1.0), 1), ((math.inf, 2.0), 2), ((2.0, 0.5), 2), ((0.5,), 1), ((), 1)],
)
def test_factors_of_each_axis_multiply_where_they_make_more(factors, times):
    interpolate = "torch.nn.functional.interpolate"
    for row in (
        step("y", "function", interpolate, MANY, None, tuple_of(*factors)),
        step("y", "function", interpolate, MANY, kwargs=dict_of(scale_factor=tuple_of(*factors))),
    ):
        assert share(row)[1] == 1000 * times


def test_a_convolution_in_float_states_what_one_in_codes_states():
    fields = {"x": "many", "stride": [2, 1], "dilation": [1, 1], "input_dilation": [1, 2], "padding": [[9, 8], [7, 6]]}
    state, shapes = {"weight": "w"}, {"w": (8, 3, 2, 5)}
    row = {"kind": "module", "target": "m", "layer": "Conv", "fields": fields, "state": state}
    in_float = share(step("y", "module", "m", MANY), shapes, [row])
    assert in_float[0] == share({"step": "Conv", "weight": "w"} | fields, shapes)[0] == 8 * in_float[1]


@pytest.mark.parametrize("kind", ["tuple", "size"])
def test_sizes_may_stand_in_a_tuple_or_in_a_size(kind):
    for sizes in ([10, 20], [{kind: [10, 20]}], [{kind: [{kind: [10]}, 20]}]):
        assert share(step("y", "function", "torch.zeros", *sizes)) == (8 * 200, 200)
