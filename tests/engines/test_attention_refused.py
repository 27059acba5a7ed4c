"""Attention that is not computed in codes, since its shapes do not fit together or its mask is none: it stays float."""

import pytest
import torch

from quantspec.ir import attention
from quantspec.ir.program import Attention

Q = torch.zeros(2, 4, 5, 8)
CALLS = {
    "heads that share keys, of which there are not as many values": (
        attention.TORCHS, (Q, Q[:, :2], Q[:, :1]), {"enable_gqa": True},
    ),
    "heads that share keys and cannot be divided": (
        attention.TORCHS, (Q, torch.zeros(2, 3, 5, 8), torch.zeros(2, 3, 5, 8)), {"enable_gqa": True},
    ),
    "a mask of other keys": (attention.TORCHS, (Q, Q, Q, torch.zeros(5, 3)), {}),
    "a mask of other queries": (attention.TORCHS, (Q, Q, Q, torch.zeros(3, 5)), {}),
    "batches that do not broadcast": (attention.TORCHS, (Q, torch.zeros(3, 4, 5, 8), torch.zeros(3, 4, 5, 8)), {}),
    "queries of more axes than keys": (attention.OURS, (Q, Q[0], Q[0], 2, True), {}),
    "truth values that are added": (
        attention.WRITTEN, (Q, Q.transpose(-2, -1), Q, torch.zeros(5, 5, dtype=torch.bool)), {},
    ),
    "numbers that tell where": (
        attention.WRITTEN, (Q, Q.transpose(-2, -1), Q, torch.zeros(5, 5), 1.0, False, -1e9), {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_what_does_not_fit_together_is_not_in_codes(name):
    target, args, kwargs = CALLS[name]
    assert attention.heads(Attention("a", "function", target, args, kwargs, ""), args, kwargs) is None


def test_one_sequence_is_a_batch_of_one():
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    args = x, x * 2, x * 3, 2, True
    found = attention.heads(Attention("a", "function", attention.OURS, args, {}, ""), args, {})
    assert found is not None and tuple(found.query.shape) == (1, 2, 5, 4)
    assert torch.equal(found.joined(found.query)[0], x)
