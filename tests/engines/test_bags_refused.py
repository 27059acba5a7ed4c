"""What tells no bags, or no rows of a table, is refused in whole words by the layer's name in every engine."""

import numpy as np
import pytest
import torch

from quantspec.engines import registry
from quantspec.ir.program import Embedding, Program, Ref
from quantspec.numerics.affine import QParams
from told import exactly

GRID, CODES = QParams(np.float32(1), 0, -128, 127), np.ones((3, 2), np.int8)
INTS, FLOATS = torch.tensor([0, 1]), torch.tensor([1.0, 2.0])
ROWS = torch.tensor([[0, 1]])
FORMS = "bags as rows of indices with two axes, or offsets beside indices with one, got indices of shape "
RISING = "offsets that rise from 0 to 2 at most, got "
IN_SUMS = "weights of samples in sums only, got them"
WEIGHTS = "a float32 weight for each index, shape (2,), got "
# The kind of bag, what a layer is given (indices, offsets, weights; None for what it does not read), what it expects.
REFUSED = {
    "floats for rows": (None, FLOATS, None, None, "indices, got torch.float32"),
    "a list": ("sum", [0, 1], INTS, None, "indices, got list"),
    "rows and offsets": ("sum", ROWS, torch.tensor([0]), None, f"{FORMS}(1, 2) with offsets"),
    "no offsets": ("mean", INTS, None, None, f"{FORMS}(2,) without offsets"),
    "three axes": ("max", ROWS[None], None, None, f"{FORMS}(1, 1, 2) without offsets"),
    "offsets that are a list": ("sum", INTS, [0], None, f"{FORMS}(2,) with offsets"),
    "offsets of two axes": ("sum", INTS, ROWS, None, "offsets of one axis, got torch.int64 of shape (1, 2)"),
    "offsets that are floats": ("sum", INTS, FLOATS, None, "offsets of one axis, got torch.float32 of shape (2,)"),
    "a late start": ("sum", INTS, torch.tensor([1, 2]), None, f"{RISING}[1, 2]"),
    "falling offsets": ("sum", INTS, torch.tensor([0, 2, 1]), None, f"{RISING}[0, 2, 1]"),
    "offsets past the end": ("sum", INTS, torch.tensor([0, 3]), None, f"{RISING}[0, 3]"),
    "many offsets": ("sum", INTS, torch.arange(12), None, f"{RISING}[0, 1, 2, 3, 4, 5, 6, 7]"),
    "weights in a mean": ("mean", INTS, torch.tensor([0]), FLOATS, f"{IN_SUMS} with 'mean'"),
    "too few weights": ("sum", INTS, torch.tensor([0]), FLOATS[:1], f"{WEIGHTS}(torch.float32, (1,))"),
    "weights of whole numbers": ("sum", INTS, torch.tensor([0]), INTS, f"{WEIGHTS}(torch.int64, (2,))"),
    "weights that are a list": ("sum", INTS, torch.tensor([0]), [1.0, 2.0], f"{WEIGHTS}('list', ())"),
}  # fmt: skip
ENGINES = ["compiled", "reference"]


def run(engine, bag, index, offsets=None, weights=None, *, last=False):
    names = ("x", None if offsets is None else "o", None if weights is None else "w")
    step = Embedding("y", "x", "layer", CODES, GRID, bag, *names[1:], include_last_offset=last)
    inputs = {name: value for name, value in zip(names, (index, offsets, weights)) if name is not None}
    return registry.engine(engine)(Program("onnx", tuple(inputs), {}, (step,), Ref("y")))(inputs)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", REFUSED)
def test_it_is_said_what_is_expected_and_what_was_given(kind, engine):
    *given, expected = REFUSED[kind]
    with pytest.raises(ValueError, match=exactly(f"batch: layer 'layer' expects {expected}")):
        run(engine, *given)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bag", [None, "sum", "max"])
def test_the_least_and_the_largest_index_are_told_where_one_is_outside(bag, engine):
    for index in ([[2, 3, 0]], [[-1, 2, 1]]):
        ends = f"{min(index[0])} to {max(index[0])}"
        with pytest.raises(ValueError, match=exactly(f"batch: layer 'layer' has 3 entries, got indices from {ends}")):
            run(engine, bag, torch.tensor(index))


@pytest.mark.parametrize("engine", ENGINES)
def test_the_last_offset_may_be_the_end_where_it_is_included(engine):
    assert run(engine, "sum", INTS, torch.tensor([0, 1, 2]), last=True).tolist() == [[1, 1], [1, 1]]
    assert run(engine, "sum", INTS, torch.tensor([0, 1, 2])).tolist() == [[1, 1], [1, 1], [0, 0]]
    with pytest.raises(ValueError, match=exactly(f"batch: layer 'layer' expects {RISING}[]")):
        run(engine, "sum", INTS, torch.zeros(0, dtype=torch.int64), last=True)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("weights", [None, FLOATS])
def test_what_lies_behind_the_last_bag_is_not_read(weights, engine):
    offsets = torch.tensor([0, 1])
    expected = run(engine, "sum", torch.tensor([2, 0]), offsets, weights, last=True)
    assert torch.equal(run(engine, "sum", torch.tensor([2, 99]), offsets, weights, last=True), expected)
    with pytest.raises(ValueError, match=exactly("batch: layer 'layer' has 3 entries, got indices from 99 to 99")):
        run(engine, "sum", torch.tensor([99, 0]), offsets, weights, last=True)
