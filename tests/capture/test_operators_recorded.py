"""Operators of Python in a recording: each is what it is, with what stands on its left on its left."""

import operator

import pytest
import torch
from recordings import recorded
from torch import nn

from networks import seeded
from quantspec.capture import parts

ROWS = torch.randn(6, 8, generator=torch.Generator().manual_seed(2))


class Between(nn.Module):
    """What is written between two layers."""

    def __init__(self, written):
        super().__init__()
        self.first, self.last, self.written = nn.Linear(8, 8), nn.Linear(8, 3), written

    def forward(self, x):
        return self.last(self.written(self.first(x).abs() + 0.5).float())


ARITHMETIC = [operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod, operator.pow]
TRUTHS = operator.and_, operator.or_, operator.xor
COMPARISONS = operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge
WRITTEN = {
    **{f"{sign.__name__} of a number": lambda x, sign=sign: sign(1.5, x) for sign in (*ARITHMETIC, *COMPARISONS)},
    **{f"{sign.__name__} by a number": lambda x, sign=sign: sign(x, 1.5) for sign in (*ARITHMETIC, *COMPARISONS)},
    **{f"{sign.__name__} of values": lambda x, sign=sign: sign(x, x.flip(0)) for sign in (*ARITHMETIC, *COMPARISONS)},
    **{f"{sign.__name__} of a truth": lambda x, sign=sign: sign(True, x > 1) * x for sign in TRUTHS},
    **{f"{sign.__name__} by a truth": lambda x, sign=sign: sign(x > 1, False) * x for sign in TRUTHS},
    **{f"{sign.__name__} of an integer": lambda x, sign=sign: sign(5, (4 * x).int()) for sign in TRUTHS},
    "negative": operator.neg, "positive": operator.pos, "absolute": abs, "not": lambda x: ~(x > 1) * x,
    "of matrices": lambda x: x @ x.t() @ x, "an item": lambda x: x[:, [1, 0, 2, 3, 4, 5, 6, 7]],
    "in place": lambda x: operator.isub(operator.imul(operator.iadd(x, 1), 2), x.flip(0)),
    "a quotient in place": lambda x: operator.itruediv(operator.ipow(x, 2), 3),
    "a whole quotient in place": lambda x: operator.ifloordiv(x, 0.25),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_an_operator_is_recorded_with_its_sides_as_they_stand(name):
    model = seeded(lambda: Between(WRITTEN[name])).requires_grad_(False)
    graph = recorded(model, ROWS)
    for x in (ROWS, 2 * ROWS.flip(0)):
        assert parts.graph_differs(graph, (x,), model(x)) is None
