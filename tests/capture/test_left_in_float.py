"""Parts of networks that stay in float, or have sizes of their own: what was captured computes as the model does."""

from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import quantspec as qs
from quantspec.capture import parts, tracer
from quantspec.ir import program
from quantspec.ir.traverse import replace_refs
from quantspec.numerics import accuracy

ROWS, KEYS, SIZE = 5, 7, 16


class Attends(nn.Module):
    """Attention between two layers, with inputs as callers give them, and a mask of one of the usual kinds."""

    def __init__(self, inputs, mask, sizes):
        super().__init__()
        torch.default_generator.manual_seed(3)
        self.first, self.attention = nn.Linear(SIZE, SIZE), nn.MultiheadAttention(SIZE, 2, batch_first=True, **sizes)
        self.keys, self.values = nn.Linear(SIZE, sizes.get("kdim", SIZE)), nn.Linear(SIZE, sizes.get("vdim", SIZE))
        if self.attention.in_proj_bias is not None:
            nn.init.normal_(self.attention.in_proj_bias)
        self.inputs = inputs
        self.masks = mask and {mask[0]: mask[1]}

    def forward(self, x, y):
        x = self.first(x)
        keys = self.keys(y)
        given = {"self": (x, x, x), "memory": (x, keys, keys), "three": (x, keys, self.values(y))}[self.inputs]
        return self.attention(*given, **(self.masks or {}))[0]


def masks(keys):
    generator = torch.Generator().manual_seed(4)
    closed = torch.rand(ROWS, keys, generator=generator) > 0.7
    closed[:, 0] = False
    several = torch.randn(4, ROWS, keys, generator=generator)  # batch * heads
    padding = torch.arange(keys) >= torch.tensor([[keys], [keys - 2]])
    return {
        "none": None, "truth values": ("attn_mask", closed), "floats of each head": ("attn_mask", several),
        "padding": ("key_padding_mask", padding),
    }  # fmt: skip


@pytest.mark.parametrize("mask", masks(ROWS))
@pytest.mark.parametrize(
    ("inputs", "sizes"),
    [("self", {}), ("memory", {}), ("three", {}), ("three", {"kdim": 12, "vdim": 10}), ("memory", {"bias": False})],
    ids=["self", "memory", "three", "own sizes", "without bias"],
)
def test_attention_in_float_is_the_models(inputs, sizes, mask):
    keys = ROWS if inputs == "self" else KEYS
    model = Attends(inputs, masks(keys)[mask], sizes).eval()
    batch = torch.randn(2, ROWS, SIZE), torch.randn(2, KEYS, SIZE)
    with pytest.warns(UserWarning, match="^nothing was quantized: all of its layers are excluded"):
        q = qs.quantize(model, [batch], exclude="*")
    with torch.no_grad():
        given, expected = q(*batch), model(*batch)
    assert (given - expected).abs().max() <= parts.BOUND * expected.abs().max()  # STA-SAME: what is written out


SIZES = {
    "shape": lambda x, y: y.shape[-2:], "shape from 2": lambda x, y: y.shape[2:],
    "shape to 4": lambda x, y: y.shape[2:4], "size()": lambda x, y: y.size()[2:],
    "lengths": lambda x, y: (y.size(2), y.size(-1)),
    "items": lambda x, y: (y.shape[2], y.shape[3]), "turned": lambda x, y: (y.shape[3], y.shape[2]),
    "of two": lambda x, y: (x.shape[2], y.shape[3]), "doubled": lambda x, y: (x.shape[2] * 2, x.shape[3] * 2),
    "one": lambda x, y: y.shape[3],
}  # fmt: skip


class Resized(nn.Module):
    """An image in the size of another, or of something near that."""

    def __init__(self, size):
        super().__init__()
        torch.default_generator.manual_seed(3)
        self.a, self.b, self.size = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1), size

    def forward(self, x, y):
        x = self.a(x)
        return self.b(F.interpolate(x, self.size(x, y), mode="bilinear", align_corners=False))


@pytest.mark.parametrize("name", SIZES)
def test_an_image_gets_the_size_that_the_model_asks_for(name):
    """For images of other sizes than those of calibration, of which no two lengths are equal."""
    model = Resized(SIZES[name]).eval()
    q = qs.quantize(model, [(torch.rand(2, 3, 8, 10), torch.rand(2, 3, 12, 14))])
    x, y = torch.rand(2, 3, 9, 11), torch.rand(2, 3, 17, 13)
    with torch.no_grad():
        expected = model(x, y)
    got = q(x, y)
    assert got.shape == expected.shape
    assert accuracy.sqnr(expected.numpy(), got.numpy()) > 25


class OfTensors(nn.Module):
    """Two layers, with what is written between them."""

    def __init__(self, between):
        super().__init__()
        self.first, self.table, self.last = nn.Linear(SIZE, SIZE), nn.Embedding(3, SIZE), nn.Linear(SIZE, 3)
        self.between = between

    def forward(self, x):
        return self.last(self.between(self, self.first(x)))


class Pair(NamedTuple):
    one: torch.Tensor
    other: torch.Tensor


def small(model, y):
    torch._assert(y.shape[0] < 5, "too many rows")
    return y


ASKED = [type]  # where tracing does not look for it


def refuses(model, y):
    if ASKED[0](y) is torch.Tensor:
        raise RuntimeError("no tensors here")
    return y


def made(between):
    torch.default_generator.manual_seed(5)
    return OfTensors(between).eval().requires_grad_(False), torch.randn(4, SIZE)


def test_a_model_keeps_its_own_assertions():
    model, x = made(small)
    q = qs.quantize(model, [x])
    assert accuracy.sqnr(model(x).numpy(), q(x).numpy()) > 25
    with pytest.raises(AssertionError, match="^too many rows$"):
        q(x.repeat(2, 1))


def test_tensors_with_names_may_be_arguments():
    model, x = made(lambda model, y: torch.cat(Pair(y[:2], y[2:].relu())))
    q = qs.quantize(model, [x])
    assert accuracy.sqnr(model(x).numpy(), q(x).numpy()) > 25


def test_a_model_that_refuses_what_its_graph_computes_is_heard():
    model, x = made(refuses)
    with pytest.raises(RuntimeError, match="^no tensors here$"):
        qs.quantize(model, [x])


def test_a_table_is_no_layer_of_the_work():
    model, x = made(lambda model, y: model.table(y.argmax(1) % 3) if y.sum() < 1e9 else y)
    report = qs.quantize_dynamic(model, exclude="table").report
    assert [row.path for row in report.rows if row.macs] == ["first", "last"]


def test_a_class_of_steps_has_no_codes_itself():
    with pytest.raises(AttributeError, match="weight"):
        program.Linear.weight  # noqa: B018


def test_references_in_tuples_with_names_are_replaced_in_place():
    pair = replace_refs(Pair(program.Ref("a"), program.Ref("b")), {"a": 1, "b": 2}.get)
    assert pair == Pair(1, 2) and type(pair) is Pair


class WithoutSigns(nn.Module):
    """Layers, between which the bits of values are those of integers."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE)

    def forward(self, x):
        bits = self.first(x).view(torch.int32) & 0x7FFFFFFF
        return self.second(bits.view(dtype=torch.float32))


def test_bits_of_values_as_integers_are_those_of_floats():
    torch.default_generator.manual_seed(5)
    model, rows = WithoutSigns().eval().requires_grad_(False), torch.randn(ROWS, SIZE)
    for q in (qs.quantize(model, [rows]), qs.quantize_dynamic(model, example=rows)):
        assert accuracy.sqnr(model(rows).numpy(), q(rows).numpy()) > 25


def test_a_transformer_takes_all_masks_that_torchs_takes():
    torch.default_generator.manual_seed(3)
    model = nn.Transformer(SIZE, 2, 1, 1, SIZE, batch_first=True).eval()
    source, target = torch.randn(2, KEYS, SIZE), torch.randn(2, ROWS, SIZE)
    names = {"src_key_padding_mask": KEYS, "tgt_key_padding_mask": ROWS, "memory_key_padding_mask": KEYS}
    padding = {name: torch.arange(keys) >= torch.tensor([[keys], [keys - 2]]) for name, keys in names.items()}
    ahead = {"tgt_mask": torch.ones(ROWS, ROWS, dtype=torch.bool).triu(1)}
    graph = tracer.capture(model)
    for given in ({}, ahead, *({name: mask} for name, mask in padding.items()), padding | ahead):
        batch = {"src": source, "tgt": target} | given
        assert parts.graph_differs(graph, batch, model(**batch).detach()) is None, list(given)


class Packed(nn.Module):
    """A recurrent layer on sequences of several lengths, and one behind it."""

    def __init__(self):
        super().__init__()
        self.inner, self.last = nn.GRU(SIZE, SIZE, batch_first=True), nn.Linear(SIZE, 3)

    def forward(self, x, lengths):
        rows = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.last(nn.utils.rnn.pad_packed_sequence(self.inner(rows)[0], batch_first=True)[0])


def test_a_recurrent_layer_of_packed_sequences_is_a_layer_for_any_lengths():
    torch.manual_seed(4)
    model, x = Packed().eval().requires_grad_(False), torch.randn(3, KEYS, SIZE)
    lengths = torch.tensor([KEYS - 2, KEYS, KEYS - 1])
    graph = tracer.capture(model)
    for given in ((x, lengths), (2 * x[:2], lengths[1:])):
        assert parts.graph_differs(graph, given, model(*given)) is None
    assert [node.layer for node in graph.nodes if hasattr(node, "layer")] == ["inner", "last"]
    q = qs.quantize(model, [(x, lengths)])
    assert [layer.layer for layer in q.program.layers] == ["inner", "last"]
    assert accuracy.sqnr(model(x, lengths).numpy(), q(x, lengths).numpy()) > 25
