"""Exported networks whose lengths are all known, or are outputs; words; and attention in float."""

import math
import re

import numpy as np
import pytest
import torch
from onnx_runtime import compared, run
from torch import nn

import quantspec
from networks import inputs, seeded
from quantspec.ir.program import Attention
from quantspec.numerics import accuracy
from quantspec.onnx_export import check

CALIBRATION = inputs(6, (3, 8, 8))
# Sums of up to 64 products in float32 by two libraries: each misses the exact sum by at most 64 * 2^-24 of the largest
# partial sum, both together by 8e-6 of it. Attention is seven sums of 46 terms in all, one behind the other.
SUMS = {"rtol": 1e-5, "atol": 2e-6}
KNOWN = {
    "between neighbours": lambda: nn.Upsample((7, 5), mode="bilinear"),
    "between neighbours, by a factor": lambda: nn.Upsample(scale_factor=1.5, mode="bilinear"),
    "neighbours, by a factor": lambda: nn.Upsample(scale_factor=1.5),
    "windows": lambda: nn.MaxPool2d(2),
}


@pytest.mark.parametrize("name", KNOWN)
def test_lengths_that_are_known_are_worked_out_before(name):
    layers = [nn.Conv2d(3, 4, 1), nn.Upsample((6, 5)), KNOWN[name](), nn.Conv2d(4, 2, 1)]
    q = quantspec.quantize(seeded(lambda: nn.Sequential(*layers)), [CALIBRATION])
    for x in (inputs(1, (3, 8, 8), 2), inputs(5, (3, 9, 12), 3)):
        assert compared(q, x) > 0
    lengths = quantspec.export_onnx(q).graph.output[0].type.tensor_type.shape.dim[2:]
    assert tuple(d.dim_value for d in lengths) == tuple(q(CALIBRATION).shape[2:])


class AsksForTypes(nn.Module):
    """A layer behind what Python decides by the type of an input."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x):
        return self.layer(x if x.dtype == torch.float32 else x.float())


def test_a_type_that_python_asked_for_is_that_of_the_exported_networks_input():
    q = quantspec.quantize(seeded(AsksForTypes), [inputs(6, (8,))])
    assert compared(q, inputs(5, (8,), 2)) > 0


class Attends(nn.Module):
    def __init__(self, options):
        super().__init__()
        self.first, self.options = nn.Linear(8, 8), options
        self.attention, self.last = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        y = self.first(x)
        y, weights = self.attention(y, y, y, **self.options)
        return self.last(y), *(() if weights is None else (weights,))


FLOAT = "ignore:.* of the multiply-accumulates are in int8"  # as is said of attention in float
OPTIONS = {
    "joined values": {"need_weights": False},
    "weights": {},
    "weights of each head": {"average_attn_weights": False},
    "a mask": {"attn_mask": torch.linspace(-2, 1, 25).reshape(5, 5)},
    "a mask of truth values": {"attn_mask": torch.eye(5) > 0},
}


@pytest.mark.filterwarnings(FLOAT)
@pytest.mark.parametrize("name", OPTIONS)
def test_attention_beside_layers_of_weights_alone_is_in_float(name):
    model, x = seeded(lambda: Attends(OPTIONS[name])), inputs(3, (5, 8))
    q = quantspec.quantize_dynamic(model, activations=None, example=x)
    if "truth" in name:
        with pytest.raises(quantspec.UnsupportedError, match="a mask that is computed, or of truth values"):
            quantspec.export_onnx(q, example=x)
        return
    expected = q(x)
    for got, values in zip(run(quantspec.export_onnx(q, example=x), x=x).values(), expected, strict=True):
        np.testing.assert_allclose(got, values.numpy(), **SUMS)


class WrittenOut(nn.Module):
    """Attention as products around a softmax, with a mask that is an input, too."""

    def __init__(self, written):
        super().__init__()
        self.qkv, self.last, self.written = nn.Linear(8, 24), nn.Linear(8, 3), written

    def forward(self, x, mask):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.last(torch.softmax(self.written(q @ k.transpose(-2, -1), mask), -1) @ v)


SEEN = torch.eye(5) < 1
WRITTEN = {
    "hidden by a constant": lambda scores, mask: (scores / 3).masked_fill(~SEEN, -1e9),
    "hidden by an input": lambda scores, mask: (scores * 0.3).masked_fill(mask > 0, -1e9),
    "added": lambda scores, mask: scores + mask,
    "added constants": lambda scores, mask: scores * 0.5 + torch.linspace(-2, 1, 25).reshape(5, 5),
}


@pytest.mark.filterwarnings(FLOAT)
@pytest.mark.parametrize("name", WRITTEN)
def test_attention_written_out_is_in_codes_there_too(name):
    x, mask = inputs(3, (5, 8)), inputs(5, (5,), 9).clamp(-1, 1) - 0.9
    q = quantspec.quantize(seeded(lambda: WrittenOut(WRITTEN[name])), [(x, mask)])
    assert any(isinstance(step, Attention) for step in q.program.steps)
    got = run(quantspec.export_onnx(q, example=(x, mask)), x=x, mask=mask)["output"]
    # A weight of attention, or a code of its output, may be rounded the other way: a step of the last layer's input.
    expected = q.run_on("reference")(x, mask).numpy()
    assert accuracy.sqnr(expected, got) > 35


class Words(nn.Module):
    def __init__(self, table):
        super().__init__()
        self.table, self.layer = table, nn.Linear(4, 3)

    def forward(self, words):
        return self.layer(self.table(words))


@pytest.mark.parametrize("per_channel", [False, True])
def test_words_have_two_axes_where_nothing_else_is_said(per_channel):
    words = torch.tensor([[1, 2, 0], [4, 4, 3]])
    q = quantspec.quantize_dynamic(seeded(lambda: Words(nn.Embedding(5, 4))), per_channel=per_channel, example=words)
    exported = quantspec.export_onnx(q)
    (given,) = exported.graph.input
    assert len(given.type.tensor_type.shape.dim) == 2
    outputs, differing = check.compare_codes(q, words)
    assert outputs > 0 and differing == 0


def test_a_bag_of_words_has_no_operator():
    q = quantspec.quantize_dynamic(seeded(lambda: Words(nn.EmbeddingBag(5, 4))), example=torch.tensor([[1, 2], [0, 3]]))
    with pytest.raises(quantspec.UnsupportedError, match="cannot be exported to ONNX: an embedding bag"):
        quantspec.export_onnx(q)


def test_quotients_of_long_numbers_are_refused_where_lengths_are_open():
    resize = nn.Upsample(scale_factor=math.pi / 3, mode="bilinear")
    q = quantspec.quantize(seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 1), resize, nn.Conv2d(4, 2, 1))), [CALIBRATION])
    message = f"bilinear interpolation by {math.pi / 3}, a quotient of long numbers, of lengths that are not known"
    with pytest.raises(quantspec.UnsupportedError, match=re.escape(message)):
        quantspec.export_onnx(q)


def test_lengths_among_the_outputs_are_left_out():
    class WithLength(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(x), x.shape[0]

    q = quantspec.quantize(seeded(WithLength), [inputs()])
    got = run(quantspec.export_onnx(q), x=inputs(5))
    assert list(got) == ["output_0"] and np.array_equal(got["output_0"], q(inputs(5))[0].numpy())


def test_outputs_of_other_shapes_or_types_are_no_comparison():
    for theirs in (np.zeros((2, 3), np.float32), np.zeros((3, 2), np.int8)):
        with pytest.raises(ValueError, match=r"expected float32\[3, 2\], got (float32\[2, 3\]|int8\[3, 2\])"):
            check.differing(np.zeros((3, 2), np.float32), theirs)
