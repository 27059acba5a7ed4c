"""Lowered steps: what each pass makes holds together, and what does not is told apart."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import programs
import strategies
from quantspec.engines.compiled import lowering, planner, verify
from quantspec.engines.compiled.engine import Segment
from quantspec.engines.compiled.lowering import Lowered
from quantspec.engines.compiled.packing import pack_layer
from quantspec.engines.compiled.verify import BrokenError, check_lowered, check_plan
from quantspec.ir.program import Add, Dequantize, Linear, LinearDynamic, Program
from quantspec.ir.traverse import refs
from quantspec.numerics.affine import QParams


def passes(program: Program, outputs: tuple[str, ...] | None = None) -> dict[str, Lowered]:
    """What each pass makes of a program, all of which compiles."""
    result = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lowering, "after_pass", lambda name, lowered: result.update({name: lowered}))
        lowering.lower(program.steps, program.inputs, outputs or tuple(refs(program.output)))
    return result


def codes_alone(r: np.random.Generator) -> Program:
    """Layers between codes from outside and codes that go there."""
    program = programs.residual(r, 5, True)
    steps = program.steps[1:-1]
    return replace(program, inputs=("x.codes",), steps=steps)


def test_every_test_of_the_engines_checks_what_it_lowers_and_plans():
    assert lowering.after_pass is verify.check_lowered and planner.after_plan is verify.check_plan


@given(strategies.seeds(), st.booleans())
def test_passes_make_one_step_of_what_has_kernels_of_its_own(r, first):
    made = passes(programs.residual(r, 5, first))
    kinds = {name: [type(step).__name__ for step in lowered.steps] for name, lowered in made.items()}
    assert list(made) == list(verify.ALLOWED)
    assert kinds["select"] == ["Quantize", "Conv", "Conv", "Add", "Dequantize"]
    assert kinds["boundaries"] == ["Quantize", "Conv", "ConvAdd", "Dequantize"]
    chain = passes(programs.dynamic_chain(r, [4, 5, 6], rows=False, reduce_range=False))["boundaries"]
    assert [type(step).__name__ for step in chain.steps] == ["FlattenFloats", "DynamicLinear", "DynamicLinear"]
    outside = passes(codes_alone(r), ("sum",))["boundaries"]
    assert [type(step).__name__ for step in outside.steps] == ["Import", "Conv", "ConvAdd", "Export"]
    assert (outside.inputs, outside.outputs) == (("x.codes outside",), ("sum outside",))


def without(lowered: Lowered, index: int) -> Lowered:
    return replace(lowered, steps=lowered.steps[:index] + lowered.steps[index + 1 :])


def other_grid(lowered: Lowered, index: int) -> Lowered:
    step = lowered.steps[index]
    x = step.x_qparams
    steps = list(lowered.steps)
    steps[index] = replace(step, x_qparams=QParams(x.scale * 2, x.zero_point, x.qmin, x.qmax))
    return replace(lowered, steps=tuple(steps))


def through_floats(lowered: Lowered) -> Lowered:
    """The first layer reads floats."""
    quantize, layer, *others = lowered.steps
    floats = Dequantize("f", quantize.name, quantize.qparams)
    return replace(lowered, steps=(quantize, floats, replace(layer, x="f"), *others))


BROKEN = {
    "read before it is made": ("select", lambda lowered: without(lowered, 1), "'left' is read before it is made"),
    "in another order": (
        "select", lambda lowered: replace(lowered, steps=lowered.steps[::-1]), "'sum' is read before it is made",
    ),
    "made twice": (
        "select", lambda lowered: replace(lowered, steps=lowered.steps[:2] + lowered.steps[1:]),
        "there is a value of that name already",
    ),
    "on another grid": ("select", lambda lowered: other_grid(lowered, 2), "step 'right': 'left' is codes of scale"),
    "floats for codes": ("select", through_floats, "'f' is floats, and is read as codes"),
    "codes for floats": (
        "select",
        lambda lowered: replace(lowered, steps=(*lowered.steps, replace(lowered.steps[0], x="sum", name="q"))),
        "'sum' is codes of scale .*, and is read as floats",
    ),
    "output that nothing makes": (
        "select", lambda lowered: replace(lowered, outputs=("nothing",)), "output 'nothing' is not made",
    ),
    "too early": (
        "flat quantizing", lambda lowered: passes_of_residual()["boundaries"], "ConvAdd is not allowed there",
    ),
    "codes go outside": (
        "boundaries", lambda lowered: replace(lowered, outputs=("left",)), r"codes \['left'\] go outside",
    ),
    "codes come from outside": (
        "boundaries", lambda lowered: replace(without(lowered, 0), inputs=("x.codes",)), "codes from outside are read",
    ),
}  # fmt: skip


def passes_of_residual() -> dict[str, Lowered]:
    return passes(programs.residual(np.random.default_rng(0), 5, True))


@pytest.mark.parametrize("case", BROKEN)
def test_lowered_steps_that_do_not_hold_together_are_refused(case):
    name, broken, message = BROKEN[case]
    made = passes_of_residual()
    for stage, lowered in made.items():
        check_lowered(stage, lowered)
    with pytest.raises(BrokenError, match=message):
        check_lowered(name, broken(made[name]))


def test_a_layer_that_a_pass_left_is_refused():
    made = passes(programs.dynamic_chain(np.random.default_rng(0), [4, 5, 6], rows=False, reduce_range=False))
    assert any(isinstance(step, LinearDynamic) for step in made["select"].steps)
    with pytest.raises(BrokenError, match="after 'dynamic layers': .* is not allowed there"):
        check_lowered("dynamic layers", made["select"])


def planned() -> planner.Planner:
    """A plan of two layers and a sum of rows, in which three values are needed at a time."""
    r = np.random.default_rng(0)
    x = programs.grid(r)
    first = programs.linear(r, "a", "x.codes", x, 12, 12)
    second = programs.linear(r, "b", "a", first.y_qparams, 12, 12)
    total = Add("sum", "a", "b", first.y_qparams, second.y_qparams, programs.grid(r), False)
    program = programs.between(x, [first, second, total], total.y_qparams)
    packed = {step.name: pack_layer(step) for step in program.steps if isinstance(step, Linear)}
    made = Segment(program.steps, ("out",), packed).planner
    made.plan({"x": (3, 12)})
    return made


def test_a_plan_whose_values_share_memory_or_have_other_shapes_is_refused():
    made = planned()
    check_plan(made)
    made.values["b"].place = made.values["a"].place
    with pytest.raises(BrokenError, match="'a' and 'b': their values share memory while both are needed"):
        check_plan(made)
    made = planned()
    made.values["x.codes"].place = made.values["sum"].place  # which is made when nothing reads the codes any more
    check_plan(made)
    made.shapes["a"] = (3, 13)
    with pytest.raises(BrokenError, match="step 'a': its shape is"):
        check_plan(made)
    made = planned()
    made.values["a"].layout = replace(made.values["a"].layout, channels=11)
    with pytest.raises(BrokenError, match="step 'a': memory as .* does not hold shape"):
        check_plan(made)
