"""What a part of a model may do with tensors while it is recorded: read their attributes, write into its own, compute
with sizes. Whatever it is, the network computes what the model does, on other batches too.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import quantspec as qs
from evidence import clause
from quantspec.numerics import accuracy

ROWS = torch.randn(6, 8, generator=torch.Generator().manual_seed(2))
Written = Callable[[torch.Tensor], Any]


class Part(nn.Module):
    """Two layers with something between them."""

    def __init__(self, written: Written):
        super().__init__()
        self.first, self.last, self.written = nn.Linear(8, 8), nn.Linear(8, 3), written

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.written(self.first(x)))


class Around(nn.Module):
    """A model that decides by data, so that its part is recorded as it runs."""

    def __init__(self, part: nn.Module):
        super().__init__()
        self.part = part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.part(x)
        return y if y.sum() < 1e9 else -y


@dataclasses.dataclass
class Pair:
    one: torch.Tensor
    factor: float = 0.5


def with_item(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[:, 2] = 0.25
    y[:, 3:5] = x[:, :2]
    return y


def copied(x: torch.Tensor) -> torch.Tensor:
    y = torch.empty_like(x)
    y.copy_(x)
    z = x.clone()
    z.zero_()
    w = torch.empty_like(x)
    w.fill_(0.125)
    return y + z + w


def by_methods(x: torch.Tensor) -> torch.Tensor:
    y = x * 1
    y.mul_(2).add_(x)
    y -= 0.5
    y = F.elu(y, 1.0, True)
    return F.hardtanh(y, inplace=True)


def through_a_view(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    view = y[:, :4]
    y.add_(1)
    return torch.cat([view, y[:, 4:]], 1)


def by_size(x: torch.Tensor) -> torch.Tensor:
    return x * (x.numel() / (x.size(0) * x.shape[1] * 2)) + 1.0 / len(x.shape)


def by_questions(x: torch.Tensor) -> torch.Tensor:
    rows, columns = x.shape
    same = rows == rows and rows is not None and not rows == "6" and columns != None  # noqa: E711
    return x * 2 if rows and same and columns.bit_length() == 4 and columns * [0] else -x


def by_numel(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(x.numel() // 8, x.nelement() // x.shape[0]) / x.numel()


def by_a_loop(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x[index] for index in range(x.shape[0])])


def with_out(x: torch.Tensor) -> torch.Tensor:
    return torch.add(x, 1, out=torch.empty(x.shape))


def setting(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y.data = x * 2
    return y


def in_fields(x: torch.Tensor) -> torch.Tensor:
    pair = Pair(x)
    return pair.one * pair.factor


RECORDED: dict[str, Written] = {
    "T": lambda x: x.T.T,
    "mT": lambda x: x.mT.mT,
    "H": lambda x: x.H.H,
    "real": lambda x: x.real,
    "data": lambda x: x.data * 2,
    "detach": lambda x: x.detach(),
    "1 - x": lambda x: 1 - x,
    "2 / x": lambda x: 2 / (x * x + 1),
    "2 ** x": lambda x: 2**x,
    "x.shape": lambda x: x.reshape(x.shape[0], 2, -1).flatten(1),
    "x.ndim": lambda x: x if x.ndim == 2 else -x,
    "an item": with_item,
    "copies": copied,
    "in place": by_methods,
    "a size": by_size,
    "questions about sizes": by_questions,
    "numbers of elements": by_numel,
    "grad": lambda x: x if x.grad is None else -x,
    "fields": in_fields,
    "an in-place module": nn.Hardswish(inplace=True),
}
NOT_RECORDED: dict[str, Written] = {
    "a loop": by_a_loop,
    "out=": with_out,
    "a view": through_a_view,
    "an attribute that is set": setting,
    "values": lambda x: x * float(x.detach()[0, 0] * 0 + 2),
}


def quantized(written: Written) -> tuple[nn.Module, Any]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        model = Around(Part(written)).eval().requires_grad_(False)
    return model, qs.quantize(model, [ROWS, ROWS.flip(0) * 0.9])


def assert_same(model: nn.Module, q: nn.Module) -> None:
    """The outputs are the model's, but for rounding, on other batches too, and stay so when the next one is run."""
    batches = ROWS, ROWS * 0.5, ROWS[:1], ROWS.repeat(2, 1) * 0.7
    for batch, y in zip(batches, [q(batch) for batch in batches]):
        assert accuracy.sqnr(model(batch).numpy(), y.numpy()) > 20, batch.shape


@clause("STA-PARTS")
@pytest.mark.parametrize("name", RECORDED)
def test_what_a_part_does_with_tensors_is_recorded(name):
    model, q = quantized(RECORDED[name])
    assert list(q.islands) == ["part"]
    assert_same(model, q)


@clause("STA-PARTS")
@pytest.mark.parametrize("name", NOT_RECORDED)
def test_what_cannot_be_recorded_stays_python_around_its_layers(name):
    model, q = quantized(NOT_RECORDED[name])
    assert list(q.islands) == ["part.first", "part.last"]
    assert_same(model, q)


@clause("STA-FROZEN", "STA-SAME")
def test_a_result_is_not_in_a_tensor_that_the_next_call_writes_to():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.add(self.layer(x), 1, out=torch.empty(6, 3))

    model = Last().eval().requires_grad_(False)
    q = qs.quantize(model, [ROWS])
    y = q(ROWS)
    before = y.clone()
    q(ROWS * 0.5)
    assert torch.equal(y, before)
    assert accuracy.sqnr(model(ROWS).numpy(), y.numpy()) > 20
