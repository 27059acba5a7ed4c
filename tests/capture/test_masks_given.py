"""The masks of torch.nn's attention modules have the shapes that torch takes, or are refused: one with its axes
exchanged has as many values and would hide others."""

import pytest
import torch
from torch import nn

import quantspec as qs
from networks import seeded
from quantspec.capture import parts, tracer
from quantspec.errors import ShapeError
from quantspec.numerics import accuracy
from told import exactly

BATCH, LENGTH, KEYS = 2, 3, 5


class Attending(nn.Module):
    """Queries of one sequence on keys of another."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x, memory, mask, padding):
        return self.attention(x, memory, memory, attn_mask=mask, key_padding_mask=padding, need_weights=False)[0]


def given(mask=(LENGTH, KEYS), padding=(BATCH, KEYS), batch=(BATCH,)) -> tuple[torch.Tensor, ...]:
    numbers = torch.Generator().manual_seed(4)
    x, memory = (torch.randn(*batch, n, 8, generator=numbers) for n in (LENGTH, KEYS))
    return x, memory, torch.zeros(mask, dtype=torch.bool), torch.zeros(padding, dtype=torch.bool)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return seeded(Attending)


@pytest.fixture(scope="module", params=["compiled", "reference"])
def quantized(request, model):
    return qs.quantize_dynamic(model, example=given()).run_on(request.param)


@pytest.mark.parametrize("shape", [(KEYS, LENGTH), (1, KEYS), (BATCH, LENGTH, KEYS), (LENGTH * KEYS,)])
def test_a_mask_of_another_shape_is_refused(model, quantized, shape):
    with pytest.raises((RuntimeError, AssertionError)):
        model(*given(mask=shape))
    told = f"attn_mask: expected shape {(4, 3, 5) if len(shape) == 3 else (3, 5)}, got {shape}"
    with pytest.raises(ShapeError, match=exactly(told)):
        quantized(*given(mask=shape))


@pytest.mark.parametrize("shape", [(KEYS, BATCH), (1, KEYS), (KEYS,)])
def test_a_mask_of_padding_of_another_shape_is_refused(model, quantized, shape):
    with pytest.raises((RuntimeError, AssertionError)):
        model(*given(padding=shape))
    with pytest.raises(ShapeError, match=exactly(f"key_padding_mask: expected shape (2, 5), got {shape}")):
        quantized(*given(padding=shape))


@pytest.mark.parametrize("mask", [(LENGTH, KEYS), (2 * BATCH, LENGTH, KEYS)])
def test_masks_that_hide_nothing_change_nothing(quantized, mask):
    assert torch.equal(quantized(*given(mask=mask)), quantized(*given()))


def test_one_sequence_has_a_mask_of_padding_without_an_axis_of_samples(model, quantized):
    alone = given(padding=(KEYS,), batch=())
    assert model(*alone).shape == (LENGTH, 8)
    one = given(batch=(1,), padding=(1, KEYS))
    assert torch.equal(quantized(*alone), quantized(*one)[0])


class Recorded(Attending):
    """Symbolic tracing cannot go through it."""

    def forward(self, x, memory, mask, padding):
        assert x.shape[0] > 0
        return super().forward(x, memory, mask, padding)


@pytest.mark.parametrize("heads", [1, 2 * BATCH])
def test_masks_tie_a_network_to_no_sizes(heads):
    """Neither to the batch of the example, nor to one whose masks have as many heads as rows."""
    model = seeded(Recorded)
    hidden = (LENGTH, KEYS) if heads == 1 else (heads, LENGTH, KEYS)
    q = qs.quantize_dynamic(model, example=given(mask=hidden))
    numbers = torch.Generator().manual_seed(4)
    for batch, length, keys in [(1, LENGTH, KEYS), (3, 6, 6), (2, 4, 4), (4, KEYS, LENGTH)]:
        mask = (length, keys) if heads == 1 else (2 * batch, length, keys)
        x, memory = (torch.randn(batch, n, 8, generator=numbers) for n in (length, keys))
        masks = torch.zeros(mask, dtype=torch.bool), torch.zeros(batch, keys, dtype=torch.bool)
        assert accuracy.sqnr(model(x, memory, *masks).detach().numpy(), q(x, memory, *masks).numpy()) > 25


X, MEMORY = given()[:2]
SQUARE, CROSS, OTHERS = (LENGTH, LENGTH), (LENGTH, KEYS), (KEYS, KEYS)
OF_X, OF_MEMORY = (BATCH, LENGTH), (BATCH, KEYS)
# A module of torch.nn, what it is called with, and the shapes of its masks.
WHOLE = {
    "attention": (
        lambda: nn.MultiheadAttention(8, 2, batch_first=True), {"query": X, "key": MEMORY, "value": MEMORY},
        {"key_padding_mask": OF_MEMORY, "attn_mask": CROSS},
    ),
    "encoder layer": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), {"src": X},
        {"src_mask": SQUARE, "src_key_padding_mask": OF_X},
    ),
    "encoder": (
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False
        ),
        {"src": X}, {"mask": SQUARE, "src_key_padding_mask": OF_X},
    ),
    "decoder": (
        lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), 2),
        {"tgt": X, "memory": MEMORY},
        {"tgt_mask": SQUARE, "memory_mask": CROSS, "tgt_key_padding_mask": OF_X,
         "memory_key_padding_mask": OF_MEMORY},
    ),
    "transformer": (
        lambda: nn.Transformer(8, 2, 1, 1, 16, batch_first=True), {"src": MEMORY, "tgt": X},
        {"src_mask": OTHERS, "tgt_mask": SQUARE, "memory_mask": CROSS, "src_key_padding_mask": OF_MEMORY,
         "tgt_key_padding_mask": OF_X, "memory_key_padding_mask": OF_MEMORY},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_each_mask_of_a_module_that_is_the_whole_model_hides_what_it_hides_in_torch(name):
    build, inputs, masks = WHOLE[name]
    model = seeded(build).requires_grad_(False)
    graph, prepared, outputs = tracer.capture(model), qs.prepare(model), []
    for hidden in (None, *masks):
        now = inputs | {mask: torch.zeros(shape, dtype=torch.bool) for mask, shape in masks.items()}
        if hidden is not None:
            now[hidden][0, 0] = True
        expected = model(**now)
        assert parts.difference(expected, prepared(**now)) is None
        assert parts.graph_differs(graph, tuple(now[name] for name in graph.inputs), expected) is None
        outputs.append(expected[0] if isinstance(expected, tuple) else expected)
    # Each mask is one that is seen: what it hides makes more of a difference in torch than rounding does.
    assert not any(torch.allclose(output, outputs[0], atol=1e-3) for output in outputs[1:])
