"""What each pass makes into one step, and what it leaves as it is."""

from dataclasses import replace

import numpy as np
import pytest

from programs import OF_WEIGHTS, codes
from quantspec.engines.compiled.lowering import (
    AddFactors,
    ConvAdd,
    DynamicLinear,
    Export,
    FlattenFloats,
    Import,
    LinearSum,
    QuantizeFlat,
    Turn,
    add_factors,
    lower,
)
from quantspec.ir.program import Add, Call, Conv, Dequantize, Linear, LinearDynamic, Move, Quantize, Ref, Relu
from quantspec.numerics.affine import QParams

X_GRID, A_GRID, B_GRID, Y_GRID = (QParams(np.float32(scale), 3, 0, 255) for scale in (0.1, 0.2, 0.3, 0.4))


def conv(name, x, *, groups=1, spread=1, grid=A_GRID):
    places = (1, 1), ((0, 0), (0, 0)), (1, 1), (spread, spread), groups
    return Conv(name, x, name, codes(4, 4 // groups, 1, 1), None, X_GRID, OF_WEIGHTS, grid, False, *places)


def linear(name, x, *, real=True):
    return Linear(name, x, name, codes(4, 4), None, X_GRID, OF_WEIGHTS, None if real else A_GRID, False)


def dynamic(name, x):
    return LinearDynamic(name, x, name, codes(4, 4), None, OF_WEIGHTS, False)


def call(name, target, *args):
    return Call(name, "function", target, tuple(map(Ref, args)), {}, "")


def flatten(name, x, grid=X_GRID):
    return Move(name, "function", "torch.flatten", (Ref(x), 1), {}, grid)


def shown(step):
    """A step's kind and name, and the names of what it reads."""
    read = [getattr(step, field) for field in ("x", "a", "b") if hasattr(step, field)]
    return " ".join([type(step).__name__, step.name, *read])


def lowered(steps, inputs=("x",), outputs=None):
    return lower(steps, inputs, outputs or (steps[-1].name,))


def kinds(*steps, inputs=("x",), outputs=None):
    return [shown(step) for step in lowered(steps, inputs, outputs).steps]


SUM = Add("sum", "left", "right", A_GRID, B_GRID, Y_GRID, False)
LEFT, RIGHT, QUANTIZE = conv("left", "q"), conv("right", "q", grid=B_GRID), Quantize("q", "x", X_GRID)


def test_a_sum_of_floats_takes_the_layer_before_it_whichever_operand_that_is():
    assert kinds(QUANTIZE, linear("layer", "q"), call("y", "operator.add", "layer", "b"), inputs=("x", "b")) == [
        "Quantize q x", "LinearSum y q b",
    ]  # fmt: skip
    made = lowered((QUANTIZE, linear("layer", "q"), call("y", "torch.add", "b", "layer")), ("x", "b"))
    assert [shown(step) for step in made.steps] == ["Quantize q x", "LinearSum y q b"]
    assert made.steps[1].linear.name == "layer" and (made.inputs, made.outputs) == (("x", "b"), ("y",))


def test_a_relu_of_floats_goes_into_its_layer():
    steps = dynamic("a", "x"), call("r", "torch.relu", "a"), dynamic("b", "r")
    made = lowered(steps).steps
    assert [(type(step), step.name, step.x, step.relu) for step in made] == [
        (DynamicLinear, "r", "x", True), (DynamicLinear, "b", "r", False),
    ]  # fmt: skip
    assert [step.layer for step in made] == [steps[0], steps[2]]


def test_a_flatten_of_floats_is_one_of_what_comes_in():
    steps = Call("flat", "function", "torch.flatten", (Ref("x"), 1), {}, ""), dynamic("a", "flat")
    made = lowered(steps).steps
    assert isinstance(made[0], FlattenFloats) and [shown(step) for step in made] == [
        "FlattenFloats flat x", "DynamicLinear a flat",
    ]  # fmt: skip


@pytest.mark.parametrize(("order", "first", "rank"), [
    ((0, 3, 1, 2), True, 4), ((0, 2, 3, 1), False, 4), ((0, 4, 1, 2, 3), True, 5), ((0, 2, 3, 4, 1), False, 5),
])  # fmt: skip
def test_what_puts_channels_first_or_last_is_a_turn_of_the_same_grid(order, first, rank):
    move = Move("y", "function", "torch.permute", (Ref("q"), order), {}, X_GRID)
    _, turn, *_ = lowered((QUANTIZE, move)).steps
    assert isinstance(turn, Turn) and (turn.name, turn.x, turn.first, turn.rank) == ("y", "q", first, rank)
    assert turn.qparams is X_GRID


def test_quantizing_is_one_with_the_flatten_that_alone_reads_it():
    made = lowered((QUANTIZE, flatten("flat", "q"), linear("y", "flat"))).steps
    assert [shown(step) for step in made] == ["QuantizeFlat flat x", "Linear y flat"]
    assert isinstance(made[0], QuantizeFlat) and made[0].qparams is X_GRID
    both = [QUANTIZE, flatten("flat", "q"), linear("y", "flat"), conv("z", "q")]
    assert kinds(*both, outputs=("y", "z")) == [
        "Quantize q x", "Move flat", "Linear y flat", "Conv z q", "Export z outside z",
    ]  # fmt: skip
    given_out = kinds(*both[:3], outputs=("q", "y"))
    assert given_out == ["Quantize q x", "Move flat", "Linear y flat", "Export q outside q"]
    assert kinds(flatten("flat", "x"), linear("y", "flat")) == ["Import x x outside", "Move flat", "Linear y flat"]
    # What is not quantized just before is flattened by itself.
    assert kinds(QUANTIZE, Relu("r", "q", X_GRID), flatten("flat", "r"), linear("y", "flat"))[1:3] == [
        "Relu r q", "Move flat",
    ]  # fmt: skip


@pytest.mark.parametrize(("first", "other", "grid"), [(True, "left", B_GRID), (False, "right", A_GRID)])
def test_a_sum_is_one_with_the_later_convolution(first, other, grid):
    """It is the sum's first operand or its second; the other's grid is that of the other operand."""
    order = (RIGHT, LEFT) if first else (LEFT, RIGHT)
    made = lowered((QUANTIZE, *order, SUM)).steps
    name = "right" if first else "left"
    assert [shown(step) for step in made] == [
        "Quantize q x", f"Conv {name} q", f"ConvAdd sum q {name}", "Export sum outside sum",
    ]  # fmt: skip
    assert isinstance(made[2], ConvAdd) and made[2].first == first and made[2].add is SUM and made[2].conv is order[1]
    assert made[2].b_qparams is grid and other != name


LARGE, SMALL = (QParams(np.float32(scale), 0, 0, 255) for scale in (1e19, 1e-20))
NOT_WITHIN = {
    "that others read": (LEFT, RIGHT, Relu("r", "right", B_GRID), SUM),
    "with channels on their own": (LEFT, replace(conv("right", "q", groups=4), y_qparams=B_GRID), SUM),
    "of spread inputs": (LEFT, replace(conv("right", "q", spread=2), y_qparams=B_GRID), SUM),
    "added to itself": (RIGHT, replace(SUM, a="right", a_qparams=B_GRID)),
    "before another step": (LEFT, RIGHT, Relu("r", "left", A_GRID), replace(SUM, a="r")),
    "whose ratio float32 does not hold": (
        conv("left", "q", grid=LARGE), RIGHT, replace(SUM, a_qparams=LARGE, y_qparams=SMALL),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_WITHIN)
def test_a_sum_is_computed_by_itself_behind_a_convolution(name):
    steps = NOT_WITHIN[name]
    assert [type(step) for step in lowered((QUANTIZE, *steps)).steps][1:-1] == [type(step) for step in steps]


def test_a_sum_with_what_comes_in_is_computed_within_its_convolution():
    steps = conv("left", "c"), replace(SUM, b="d")
    assert kinds(*steps, inputs=("c", "d"))[2:] == ["ConvAdd sum c d", "Export sum outside sum"]


def test_a_sum_behind_one_that_is_computed_by_itself_is_computed_within_its_convolution():
    alone = replace(SUM, name="alone", a="q", b="q", a_qparams=X_GRID, b_qparams=X_GRID)
    later = conv("right", "q", grid=B_GRID)
    both = replace(SUM, a="alone", a_qparams=Y_GRID)
    steps = lowered((QUANTIZE, LEFT, alone, later, both), outputs=("left", "sum")).steps
    assert [type(step) for step in steps] == [Quantize, Conv, Add, ConvAdd, Export, Export]


def test_a_convolution_that_is_given_out_stays_beside_its_sum():
    assert [type(step) for step in lowered((QUANTIZE, LEFT, RIGHT, SUM), outputs=("right", "sum")).steps] == [
        Quantize, Conv, Conv, Add, Export, Export,
    ]  # fmt: skip


def test_sums_of_groups_are_computed_within_convolutions():
    right = replace(conv("right", "q", groups=2), y_qparams=B_GRID)
    assert isinstance(lowered((QUANTIZE, LEFT, right, SUM)).steps[2], ConvAdd)


def test_codes_have_other_names_outside_and_floats_have_not():
    made = lowered((Relu("r", "c", X_GRID), Quantize("q", "x", X_GRID), Dequantize("y", "r", X_GRID)), ("c", "x"),
                   ("y", "q", "r"))  # fmt: skip
    assert [shown(step) for step in made.steps] == [
        "Import c c outside", "Relu r c", "Quantize q x", "Dequantize y r", "Export q outside q", "Export r outside r",
    ]  # fmt: skip
    assert made.inputs == ("c outside", "x") and made.outputs == ("y", "q outside", "r outside")
    assert isinstance(made.steps[0], Import) and isinstance(made.steps[-1], Export)


def test_a_summand_that_comes_in_is_floats():
    made = lowered((linear("layer", "c"), call("y", "operator.add", "layer", "b")), ("c", "b"))
    assert isinstance(made.steps[1], LinearSum)
    assert made.inputs == ("c outside", "b") and made.outputs == ("y",)


def test_the_factors_of_a_sum_are_rounded_as_the_dialect_says():
    a, b, y = QParams(np.float32(0.3), 7, 0, 255), QParams(np.float32(0.7), 200, 0, 255), QParams(0.9, 11, 0, 255)
    found = add_factors(Add("y", "a", "b", a, b, y, False))
    ratios = np.float32(0.3) / np.float32(0.9), np.float32(0.7) / np.float32(0.9)
    # The products of float32 with codes are exact in float64, and so is their sum here.
    rounded = np.float32(np.float64(ratios[0]) * 7 + np.float64(np.float32(ratios[1] * np.float32(200))))
    assert found == AddFactors(float(ratios[0]), float(ratios[1]), float(np.float32(11) - rounded))
    few = add_factors(Add("y", "a", "b", QParams(0.001, 1, 0, 255), QParams(0.003, 1, 0, 255), y, False))
    assert few.start == np.float32(few.start) and 10.99 < few.start < 11
    assert found.finite and not replace(found, b=float("inf")).finite and not replace(found, start=float("nan")).finite
