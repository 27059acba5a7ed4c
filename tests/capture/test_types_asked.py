"""Networks of models whose Python asks for the type of an input: they are those of that type."""

import copy

import pytest
import torch
from torch import nn

import quantspec as qs
from evidence import clause
from networks import seeded
from quantspec.errors import ShapeError
from quantspec.numerics import accuracy
from told import exactly

ROWS = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
FLOATS = torch.randn(6, 8, generator=torch.Generator().manual_seed(2))
TRUTHS = FLOATS > 0


class Masked(nn.Module):
    """A layer, and a mask that is added, or hides where it is true, by its type."""

    def __init__(self, is_hidden):
        super().__init__()
        self.layer, self.is_hidden = nn.Linear(8, 8), is_hidden

    def forward(self, x, mask):
        mask = mask[:, None].squeeze(1)
        return self.layer(x) + (mask.float() * -3 if self.is_hidden(mask) else mask)


ASKING = {
    "dtype": lambda mask: mask.dtype == torch.bool, "float": lambda mask: not mask.is_floating_point(),
    "size": lambda mask: mask.element_size() == 1, "torch": lambda mask: not torch.is_floating_point(mask),
    "bytes": lambda mask: mask.itemsize == 1, "type": lambda mask: mask.type() == "torch.BoolTensor",
    "looked up": lambda mask: {torch.bool: True}.get(mask.dtype, False),
    "in a set": lambda mask: mask.dtype in {torch.bool},
    "the same": lambda mask: mask.dtype is torch.bool, "the other way": lambda mask: torch.bool is mask.dtype,
    "not another": lambda mask: mask.dtype is not torch.float32,
    "its name": lambda mask: str(mask.dtype) == "torch.bool", "in a text": lambda mask: "bool" in f"{mask.dtype}",
}  # fmt: skip


@clause("STA-WAYS")
@pytest.mark.parametrize("first", [FLOATS, TRUTHS], ids=["floats", "truths"])
@pytest.mark.parametrize("name", ASKING)
def test_a_mask_of_another_type_than_in_calibration_is_what_it_is_in_the_model(name, first):
    """By the model's Python, of which the user is told."""
    model = seeded(lambda: Masked(ASKING[name])).requires_grad_(False)
    q, other = qs.quantize(model, [(ROWS, first)]), TRUTHS if first is FLOATS else FLOATS
    assert accuracy.sqnr(model(ROWS, first).numpy(), q(ROWS, first).numpy()) > 25
    told = "module '': it is called with arguments or sizes that did not occur in calibration; this call runs in float"
    with pytest.warns(UserWarning, match=exactly(told)):
        got = q(ROWS, other)
    assert accuracy.sqnr(model(ROWS, other).numpy(), got.numpy()) > 25


def test_a_loaded_network_says_which_types_it_was_captured_for(tmp_path):
    model = seeded(lambda: Masked(ASKING["dtype"]))
    q = qs.quantize(model, [(ROWS, TRUTHS)])
    q.save(tmp_path / "q")
    loaded = qs.load(tmp_path / "q")
    assert torch.equal(loaded(ROWS, TRUTHS), q(ROWS, TRUTHS))
    told = "batch: the network was captured for 'mask' of torch.bool, and has no Python that decides for others"
    with pytest.raises(ShapeError, match=exactly(told)):
        loaded(ROWS, FLOATS)


def test_the_type_of_what_a_layer_gives_is_no_condition_on_its_input():
    class Asking(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.layer = nn.Embedding(9, 8), nn.Linear(8, 8)

        def forward(self, words):
            x = self.table(words)
            y = self.layer(x)
            return y * 2 if x.dtype == y.dtype == torch.float32 else y

    model, words = seeded(Asking), torch.tensor([[1, 8, 3]])
    q = qs.quantize(copy.deepcopy(model), [words])
    assert torch.equal(q(words.int()), q(words))
