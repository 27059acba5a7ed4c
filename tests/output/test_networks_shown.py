"""What a network became, as the table that ``print(q)`` shows: a row for each step that computes, whatever it is."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import quantspec as qs
from files import every_step
from quantspec.ir.program import Add, Call, Conv, Linear, LinearDynamic, Recurrent, Ref
from quantspec.module.summary import Part, kind_of, network_table, row, span

PROGRAM = every_step.program()
STEPS = {step.name: step for step in PROGRAM.steps}
RULE = "─"
# Bytes: 1 for a code of a weight, 4 for a bias, and 4 each for a scale and a zero point that are stored with a step.
SHOWN = f"""\
a title

 layer      kind                  output scale  zero  bytes
 {RULE * 58}
 x          quantize                       0.5     3      8
 0          conv 3x3 + relu                0.5     3    164
 max        max pool                                      0
 slopes     prelu                          0.5     3  1,032
 avg        average pool                                  0
 between    bilinear                                      0
 factors    bilinear                                      0
 like       bilinear                                      0
 ada        average pool                                  0
 mean       mean                                          0
 table      sigmoid                        0.5     3    264
 relu       relu                                          0
 add        add                            0.5     3      8
 mul        mul                            0.5     3      8
 cat        concat                         0.5     3      8
 1          linear                     float32           44
 2          linear, dynamic            float32           32
 3          linear, int8 weights       float32           20
 4          embedding                  float32           28
 5          embedding                  float32           28
 attended   attention                  float32            0
 6          LSTM, dynamic              float32          168
 abs        float32                    float32            0
 float      float32                    float32           32

 stored                                               1,234
 in memory                                            5,678
in float32:
  why:
    abs
  excluded:
    float
in Python:
  its forward decides:
    head
on another engine:
  torch:
    0"""


def shown(*parts, stops=(), wide=False):
    return network_table("a title", iter(parts), stops, 1234, 5678, wide=wide)


def rows(text, *names):
    """The cells of these rows."""
    return [line.split() for line in text.splitlines() if line.split()[:1] and line.split()[0] in names]


def test_every_kind_of_step_has_its_row_and_every_reason_its_line():
    part = Part("body", PROGRAM, "compiled", {"0": "torch", "1": "compiled"})
    assert shown(part, stops=[("head", "its forward decides")]) == SHOWN


def test_a_wide_table_has_the_grids_of_weights_too():
    text = shown(Part("", PROGRAM, "compiled", {}), wide=True)
    heads = ["layer", "kind", "weight scale", "weight zero", "output scale", "output zero", "bytes"]
    assert [head.strip() for head in text.splitlines()[2].split("  ") if head.strip()] == heads
    assert rows(text, "x", "0", "3", "6", "stored") == [
        ["x", "quantize", "0.5", "3", "8"], ["0", "conv", "3x3", "+", "relu", "0.25", "0", "0.5", "3", "164"],
        ["3", "linear,", "int8", "weights", "0.25", "0", "float32", "20"],
        ["6", "LSTM,", "dynamic", "float32", "168"], ["stored", "1,234"],
    ]  # fmt: skip


def test_networks_of_several_steps_are_told_apart_where_there_are_several():
    alone = replace(PROGRAM, steps=(STEPS["q"], STEPS["max"]))
    single = replace(PROGRAM, steps=(STEPS["q"], STEPS["deq"]))  # of which one only computes
    texts = [shown(*(Part(path, network, "compiled", {}) for path, network in parts)) for parts in (
        [("", alone)], [("a.b", alone), ("", alone)], [("a.b", single), ("", single)]
    )]  # fmt: skip
    assert [text.count("one network") for text in texts] == [0, 2, 0]
    assert [line.split() for line in texts[1].splitlines() if "one network" in line] == [
        ["a.b", "one", "network"], ["the", "model", "one", "network"]
    ]  # fmt: skip


def test_reasons_and_engines_of_all_networks_are_told():
    text = shown(*(Part(path, PROGRAM, "compiled", {path: "torch"}) for path in ("first", "second")))
    for said in ("  why (2 times):\n    abs, abs", "  excluded (2 times):\n    float, float"):
        assert said in text
    assert text.endswith("on another engine:\n  torch (2 times):\n    first, second")


def test_a_convolution_is_told_by_its_kernel_and_by_what_it_does_with_it():
    conv = STEPS["conv"]
    assert isinstance(conv, Conv)
    depthwise = replace(conv, weight=every_step.codes(4, 1, 5, 2), groups=4)
    grouped, narrow = replace(depthwise, weight=every_step.codes(4, 2, 3), groups=2), replace(depthwise, groups=1)
    assert [kind_of(one) for one in (conv, depthwise, grouped, narrow)] == [
        "conv 3x3", "depthwise conv 5x2", "conv 3", "conv 5x2"
    ]  # fmt: skip
    assert kind_of(replace(conv, input_dilation=(1, 2))) == "transposed conv 3x3"
    assert kind_of(replace(depthwise, input_dilation=(2, 1))) == "depthwise transposed conv 5x2"


def test_layers_without_grids_of_their_inputs_are_told_by_how_they_get_them():
    dynamic, rnn = STEPS["dynamic"], STEPS["rnn"]
    assert isinstance(dynamic, LinearDynamic) and isinstance(rnn, Recurrent)
    assert kind_of(replace(dynamic, rows=True)) == "linear, dynamic, per token"
    assert kind_of(replace(rnn, kind="gru")) == "GRU, dynamic"


@pytest.mark.parametrize(("relu", "told"), [(False, ""), (True, " + relu")])
def test_a_relu_that_a_step_does_is_told(relu, told):
    linear, add = STEPS["linear"], STEPS["add"]
    assert isinstance(linear, Linear) and isinstance(add, Add)
    assert row(replace(linear, relu=relu), 4)[1] == f"linear{told}"
    assert row(replace(add, relu=relu), 4)[1] == f"add{told}"


def test_what_only_rearranges_or_has_nothing_to_quantize_has_no_row():
    for name in ("move", "deq", "norm", "function", "k", "shape"):
        assert row(STEPS[name], 4) is None


def test_a_step_is_told_by_the_name_that_the_model_has_for_it():
    """Codes have a name of their own where there are values of them too; a module is told by its path."""
    assert row(replace(STEPS["add"], name="sum.codes"), 4)[0] == "sum"
    called = Call("float_1", "module", "body.float", (Ref("x"),), {}, "excluded")
    assert row(called, 4)[0] == "body.float" and row(replace(called, kind="method"), 4)[0] == "float_1"


def test_numbers_of_channels_are_told_by_the_smallest_and_the_largest():
    numbers = np.float32([0.25, 1 / 3, 0.125])
    assert span(numbers, 4) == "0.125 .. 0.3333" and span(numbers, 6) == "0.125 .. 0.333333"
    assert span(np.float32([0.5, 0.5]), 4) == "0.5" and span(np.int32([]), 4) == ""


class Decides(nn.Module):
    """A model that decides by data behind each layer."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(layers))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x) if x.sum() < 1e9 else -x
        return x


@pytest.mark.parametrize(("layers", "count"), [(1, "1 int8 network"), (2, "2 int8 networks")])
def test_a_model_with_python_says_how_many_networks_it_has(layers, count):
    q = qs.quantize_dynamic(Decides(layers).eval(), engine="reference")
    assert q.table().splitlines()[0] == f"Decides: {count} and Python, engine reference"


def test_a_model_that_decides_itself_is_told_as_the_model_and_a_part_by_its_path():
    q = qs.quantize(nn.Sequential(Decides(1)).eval(), [torch.ones(2, 4)])
    assert q.table().splitlines()[-1].strip() == "the model, 0"
