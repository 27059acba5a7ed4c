"""What a step of a file must hold: the largest and smallest that is taken, and what every refusal says."""

from dataclasses import replace

import every_step
import numpy as np
import pytest
from forged import changed

import quantspec
from quantspec.ir.program import (
    AdaptiveAvgPool,
    Add,
    AvgPool,
    Bilinear,
    Cell,
    Concat,
    Conv,
    Dequantize,
    Embedding,
    Linear,
    LinearDynamic,
    MaxPool,
    Mean,
    Move,
    Mul,
    Quantize,
    Recurrent,
    Ref,
    Relu,
    Table,
)
from quantspec.numerics.affine import QParams
from quantspec.storage.validate import check_step
from told import exactly

GRID, OTHER = QParams(0.5, 3, 0, 255), QParams(0.25, 3, 0, 255)
SIGNED = QParams(0.5, 0, -128, 127)
CHANNELS = QParams(np.ones(2, np.float32), np.zeros(2, np.int32), -128, 127, 0)
GRIDS = {"x": None, "f": None, "c": GRID, "d": OTHER}
CODES = np.array([[1, -2, 3], [-4, 5, -128]], np.int8)

linear = Linear("y", "c", "head", CODES, np.ones(2, np.float32), GRID, CHANNELS, OTHER, False)
WINDOWS = (1,), ((1, 1),), (1,), (1,), 1  # stride, padding, both dilations, groups
conv = Conv("y", "c", "conv", np.ones((2, 3, 3), np.int8), None, GRID, CHANNELS, OTHER, False, *WINDOWS)
table = Table("y", "c", "sigmoid", np.arange(256, dtype=np.uint8), GRID, OTHER)
concat = Concat("y", ("c", "d"), (GRID, OTHER), OTHER, 1)
average = AvgPool("y", "c", GRID, (3, 3), (2, 2), (1, 1), False, True)
largest = MaxPool("y", "c", (3, 3), (2, 2), (1, 1), (1, 1), False)
adaptive = AdaptiveAvgPool("y", "c", GRID, (3, None))
mean = Mean("y", "c", GRID, (-1, 2), True)
bilinear = Bilinear("y", "c", GRID, None, (4, 6), None, False, False)
move = Move("y", "method", "flatten", (Ref("c"), 1), {}, GRID)
embedding = Embedding("y", "x", "table", CODES, CHANNELS)
EIGHT = QParams(np.float32(0.5), np.int32(0), -128, 127)
cell = Cell(np.ones((8, 3), np.int8), EIGHT, None, np.ones((8, 2), np.int8), EIGHT, None)
recurrent = Recurrent("y", "x", None, "lstm", "lstm", (cell,), False, False, False)
later = replace(cell, input_weight=np.ones((8, 2), np.int8))
both = replace(cell, input_weight=np.ones((8, 4), np.int8))
FAR = 2**20

TAKEN = {
    "linear": linear, "linear without codes behind": replace(linear, y_qparams=None),
    "linear of one scale": replace(linear, w_qparams=SIGNED),
    "conv": conv, "conv as long as may be": replace(conv, stride=(FAR,), padding=((-FAR, FAR),)),
    "conv in groups": replace(conv, groups=2), "table": table,
    "tables": replace(table, table=np.zeros((3, 256), np.uint8)),
    "concat": concat, "average": average, "largest": largest,
    "padding of half a kernel": replace(largest, kernel=(4, 4), padding=(2, 2)),
    "a long stride": replace(largest, stride=(FAR, FAR)), "adaptive": adaptive,
    "a long size": replace(adaptive, size=(FAR, 1, None)), "mean": mean,
    "mean of far axes": replace(mean, axes=(-64, 63)),
    "bilinear": bilinear, "by factors": replace(bilinear, size=None, factors=(2.0**-20, float(FAR)), exact=True),
    "like another": replace(bilinear, size=None, like="d"), "move": move, "embedding": embedding,
    "the last as padding": replace(embedding, padding_idx=1), "a bag": replace(embedding, bag="max", offsets="f"),
    "recurrent": recurrent, "two layers": replace(recurrent, cells=(cell, later)),
    "two directions": replace(recurrent, cells=(cell, cell, both, both), bidirectional=True),
    "quantize": Quantize("y", "x", GRID), "dequantize": Dequantize("y", "c", GRID),
    "add": Add("y", "c", "d", GRID, OTHER, GRID, True), "mul": Mul("y", "c", "d", GRID, OTHER, GRID),
    "relu": Relu("y", "c", GRID),
    "dynamic": LinearDynamic("y", "x", "head", CODES, None, CHANNELS, False),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
def test_a_step_that_is_one_is_taken_and_gives_its_grid(name):
    step = TAKEN[name]
    own = getattr(step, "y_qparams", getattr(step, "qparams", None))
    expected = None if isinstance(step, Dequantize) else GRID if isinstance(step, MaxPool) else own
    found = check_step(step, GRIDS)
    assert found is expected or (found.scale, found.zero_point) == (expected.scale, expected.zero_point)


ACTIVATION = "expected one scale and codes from 0 on for activations, got -128 to 127, axis"
SCALES = "expected a scale for all weights, or for each of 2 outputs, and zero point 0"
BIAS = "expected a float32 bias of shape (2,) without NaN, got"
PLACES = "weight: expected one to three axes of positions, and one place for each, got a weight of shape (2, 3, 3)"
STEPS = "weight: expected strides, dilations and kernels from 1 on, and groups that divide 2 outputs"
POOL = "expected kernel, stride, padding and dilation for one to three axes"
SIZES = "size: expected one to three sizes, got"
BAG = "expected a bag of sum, mean or max, and padding below 2, got"
REFUSED = {
    "what nobody makes": (replace(linear, x="z"), "reads 'z', which no earlier step makes"),
    "floats as codes": (replace(linear, x="f"), "reads floats, 'f', as codes"),
    "codes as floats": (replace(embedding, x="c"), "reads codes, 'c', as floats"),
    "another scale": (replace(linear, x_qparams=OTHER), "takes 'c' to be on another grid than it is"),
    "another zero point": (
        replace(linear, x_qparams=QParams(0.5, 4, 0, 255)), "takes 'c' to be on another grid than it is",
    ),
    "another end": (replace(linear, x_qparams=QParams(0.5, 3, 0, 127)), "takes 'c' to be on another grid than it is"),
    "signed codes read": (replace(linear, x_qparams=SIGNED), f"{ACTIVATION} None"),
    "signed codes behind": (replace(linear, y_qparams=SIGNED), f"{ACTIVATION} None"),
    "codes of channels behind": (replace(linear, y_qparams=CHANNELS), f"{ACTIVATION} 0"),
    "whole weights": (
        replace(linear, weight=CODES.astype(np.int32)), "expected int8 weights with 2 axes, got int32 (2, 3)",
    ),
    "weights of three axes": (
        replace(linear, weight=CODES[..., None]), "expected int8 weights with 2 axes, got int8 (2, 3, 1)",
    ),
    "an image's weights of two axes": (
        replace(conv, weight=CODES), "expected int8 weights with 3 or 4 or 5 axes, got int8 (2, 3)",
    ),
    "a zero point of weights": (replace(linear, w_qparams=QParams(0.5, 1, -128, 127)), SCALES),
    "unsigned weights": (replace(linear, w_qparams=QParams(0.5, 0, 0, 255)), SCALES),
    "scales of more channels": (
        replace(linear, w_qparams=QParams(np.ones(3, np.float32), np.zeros(3, np.int32), -128, 127, 0)), SCALES,
    ),
    "weights beyond their grid": (
        replace(linear, w_qparams=QParams(0.5, 0, -127, 127)), "weights beyond -127 to 127",
    ),
    "weights above their grid": (replace(linear, w_qparams=QParams(0.5, 0, -128, 4)), "weights beyond -128 to 4"),
    "a bias of float64": (replace(linear, bias=np.ones(2)), f"{BIAS} float64 (2,)"),
    "a long bias": (replace(linear, bias=np.ones(3, np.float32)), f"{BIAS} float32 (3,)"),
    "a bias that is NaN": (replace(linear, bias=np.float32([1, np.nan])), f"{BIAS} float32 (2,)"),
    "a place too many": (replace(conv, stride=(1, 1)), PLACES),
    "a stride of 0": (replace(conv, stride=(0,)), STEPS),
    "a dilation of 0": (replace(conv, dilation=(0,)), STEPS),
    "an input's dilation of 0": (replace(conv, input_dilation=(0,)), STEPS),
    "no groups": (replace(conv, groups=0), STEPS),
    "groups that do not divide": (replace(conv, groups=3), STEPS),
    "no kernel": (replace(conv, weight=np.ones((2, 3, 0), np.int8)), STEPS),
    "a stride too long": (replace(conv, stride=(FAR + 1,)), "weight: a place beyond 2^20"),
    "padding too long": (replace(conv, padding=((-FAR - 1, 0),)), "weight: a place beyond 2^20"),
    "a table of int8": (
        replace(table, table=np.zeros(256, np.int8)), "expected a table of 256 codes from 0 to 255, got int8 (256,)",
    ),
    "a short table": (
        replace(table, table=np.zeros(255, np.uint8)), "expected a table of 256 codes from 0 to 255, got uint8 (255,)",
    ),
    "no table": (
        replace(table, table=np.zeros((0, 256), np.uint8)),
        "expected a table of 256 codes from 0 to 255, got uint8 (0, 256)",
    ),
    "a table of three axes": (
        replace(table, table=np.zeros((1, 1, 256), np.uint8)),
        "expected a table of 256 codes from 0 to 255, got uint8 (1, 1, 256)",
    ),
    "a table beyond its grid": (
        replace(table, y_qparams=QParams(0.5, 0, 0, 254)),
        "expected a table of 256 codes from 0 to 254, got uint8 (256,)",
    ),
    "a table below its grid": (
        replace(table, y_qparams=QParams(0.5, 1, 1, 255)),
        "expected a table of 256 codes from 1 to 255, got uint8 (256,)",
    ),
    "nothing joined": (replace(concat, xs=(), x_qparams=()), "expected a grid for each of 0 values"),
    "a grid less": (replace(concat, x_qparams=(GRID,)), "expected a grid for each of 2 values"),
    "a pool of no axes": (replace(largest, kernel=(), stride=(), padding=(), dilation=()), POOL),
    "a pool of four": (
        replace(largest, kernel=(1,) * 4, stride=(1,) * 4, padding=(0,) * 4, dilation=(1,) * 4), POOL,
    ),
    "a stride of a pool less": (replace(average, stride=(2,)), POOL),
    "a padding of a pool less": (replace(average, padding=(1,)), POOL),
    "a kernel of 0": (replace(average, kernel=(0, 3)), POOL),
    "a pool too long": (replace(largest, dilation=(FAR + 1, 1)), POOL),
    "padding beyond half": (replace(largest, padding=(1, 3)), "padding: expected at most half of a kernel, got (1, 3)"),
    "padding below 0": (replace(largest, padding=(-1, 0)), "padding: expected at most half of a kernel, got (-1, 0)"),
    "no size": (replace(adaptive, size=()), f"{SIZES} ()"),
    "a size of 0": (replace(adaptive, size=(0, 3)), f"{SIZES} (0, 3)"),
    "a size too long": (replace(adaptive, size=(FAR + 1,)), f"{SIZES} ({FAR + 1},)"),
    "four sizes": (replace(adaptive, size=(1,) * 4), f"{SIZES} (1, 1, 1, 1)"),
    "no axes": (replace(mean, axes=()), "axes: expected different axes, got ()"),
    "an axis twice": (replace(mean, axes=(1, 1)), "axes: expected different axes, got (1, 1)"),
    "an axis too far": (replace(mean, axes=(64,)), "axes: expected different axes, got (64,)"),
    "an axis too far before": (replace(mean, axes=(-65,)), "axes: expected different axes, got (-65,)"),
    "no size to fill": (replace(bilinear, size=None), "expected one of like, size and factors, got []"),
    "two sizes to fill": (
        replace(bilinear, like="d"), "expected one of like, size and factors, got ['like', 'size']",
    ),
    "exact without factors": (replace(bilinear, exact=True), "expected one of like, size and factors, got ['size']"),
    "lengths too long": (
        replace(bilinear, size=(4, FAR + 1)), f"expected lengths or factors of at most 2^20, got (4, {FAR + 1})",
    ),
    "factors too small": (
        replace(bilinear, size=None, factors=(1.0, 2.0**-21)),
        f"expected lengths or factors of at most 2^20, got (1.0, {2.0**-21})",
    ),
    "like floats": (replace(bilinear, size=None, like="f"), "takes the lengths of 'f', which is no codes"),
    "another move": (replace(move, target="exp"), "'exp' does not move codes"),
    "a move of nothing": (replace(move, args=(1,)), "expected a value to move as the first argument"),
    "codes of codes": (Quantize("y", "c", GRID), "quantizes codes, 'c'"),
    "another bag": (replace(embedding, bag="median"), f"{BAG} 'median', None"),
    "padding beyond the entries": (replace(embedding, padding_idx=2), f"{BAG} None, 2"),
    "padding before the entries": (replace(embedding, padding_idx=-1), f"{BAG} None, -1"),
    "offsets of no bag": (replace(embedding, offsets="f"), "offsets and weights belong to bags"),
    "weights of no bag": (replace(embedding, weights="f"), "offsets and weights belong to bags"),
    "a last offset of no bag": (replace(embedding, include_last_offset=True), "offsets and weights belong to bags"),
    "another kind": (
        replace(recurrent, kind="sru"), "expected 1 cells for each layer of an lstm, gru or rnn, got 1 of 'sru'",
    ),
    "no cells": (
        replace(recurrent, cells=()), "expected 1 cells for each layer of an lstm, gru or rnn, got 0 of 'lstm'",
    ),
    "one direction of two": (
        replace(recurrent, bidirectional=True),
        "expected 2 cells for each layer of an lstm, gru or rnn, got 1 of 'lstm'",
    ),
    "a single one of two": (
        replace(recurrent, cells=(cell, later), single=True),
        "expected 1 cells for each layer of an lstm, gru or rnn, got 2 of 'lstm'",
    ),
    "gates of another kind": (
        replace(recurrent, kind="gru"), "expected a weight of shape (6, 3), got (8, 3)",
    ),
    "a second layer of other inputs": (
        replace(recurrent, cells=(cell, cell)), "expected a weight of shape (8, 2), got (8, 3)",
    ),
    "a second layer of one direction": (
        replace(recurrent, cells=(cell, cell, later, later), bidirectional=True),
        "expected a weight of shape (8, 4), got (8, 2)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_step_that_is_none_is_refused_by_a_whole_sentence(name):
    step, message = REFUSED[name]
    with pytest.raises(ValueError, match=exactly(message)):
        check_step(step, GRIDS)


# Steps that read codes, each with one grid that is not that of the codes.
ELSEWHERE = {
    "linear": replace(linear, x_qparams=OTHER), "conv": replace(conv, x_qparams=OTHER),
    "table": replace(table, x_qparams=OTHER), "relu": replace(TAKEN["relu"], qparams=OTHER),
    "sum, first": replace(TAKEN["add"], a_qparams=OTHER), "sum, second": replace(TAKEN["add"], b_qparams=GRID),
    "product, first": replace(TAKEN["mul"], a_qparams=OTHER), "product, second": replace(TAKEN["mul"], b_qparams=GRID),
    "concat, first": replace(concat, x_qparams=(OTHER, OTHER)),
    "concat, second": replace(concat, x_qparams=(GRID, GRID)),
    "average": replace(average, qparams=OTHER), "adaptive": replace(adaptive, qparams=OTHER),
    "mean": replace(mean, qparams=OTHER), "bilinear": replace(bilinear, qparams=OTHER),
    "move": replace(move, qparams=OTHER), "dequantize": Dequantize("y", "c", OTHER),
}  # fmt: skip


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_step_that_takes_codes_to_be_on_another_grid_is_refused(name):
    read = "d" if name.endswith("second") else "c"
    with pytest.raises(ValueError, match=exactly(f"takes {read!r} to be on another grid than it is")):
        check_step(ELSEWHERE[name], GRIDS)


@pytest.mark.parametrize("given", [3, [], "x"], ids=repr)
def test_defaults_that_are_no_names_and_values_are_refused_as_such(given, tmp_path):
    path = tmp_path / "q"
    path.write_bytes(changed(*every_step.parts(), [("defaults", given)]))
    with pytest.raises(quantspec.FormatError, match=exactly(f"{path}: defaults: expected dict, got {given!r}")):
        quantspec.load(path)
