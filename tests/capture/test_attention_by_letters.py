"""Attention that a model writes out with ``torch.einsum``, in any order of axes."""

from functools import partial

import pytest
import torch
from torch import nn

import quantspec as qs
from evidence import clause
from networks import seeded
from quantspec.ir.program import Attention
from quantspec.numerics import accuracy

ROWS = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
OTHERS = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(2))


class Attending(nn.Module):
    """Attention between two layers."""

    def __init__(self, attend):
        super().__init__()
        self.inner, self.outer, self.attend = nn.Linear(16, 48), nn.Linear(16, 16), attend

    def forward(self, x):
        joined = self.attend(*self.inner(x).chunk(3, -1))
        return self.outer(joined.reshape(x.shape))


def heads(*values):
    return (x.reshape(*x.shape[:2], 2, 8) for x in values)


def heads_inside(q, k, v):
    q, k, v = heads(q, k, v)
    weights = torch.softmax(torch.einsum("nqhd,nkhd->nhqk", [q, k]) / 2.5, dim=3)
    return torch.einsum("nhql,nlhd->nqhd", [weights, v])


def heads_in_front(q, k, v):
    q, k, v = (x.transpose(1, 2) for x in heads(q, k, v))
    weights = (torch.einsum("b h i d, b h j d -> b h i j", q, k) * 8**-0.5).softmax(-1)
    return torch.einsum("b h i j, b h j d -> b h i d", weights, v).transpose(1, 2)


def of_any_axes(q, k, v):
    return torch.einsum("...ij,...jd->...id", torch.einsum("...id,...jd->...ij", q, k).softmax(-1), v)


def with_a_product(q, k, v):
    return torch.einsum("bid,bjd->bij", q, k).softmax(-1) @ v


def behind_a_product(q, k, v):
    return torch.einsum("bij,bjd->bid", (q @ k.transpose(1, 2)).softmax(-1), v)


def factors_turned_round(q, k, v):
    return torch.einsum("bjd,bij->bid", v, torch.einsum("bjd,bid->bij", k, q).softmax(2))


def features_first(q, k, v):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return torch.einsum("bij,bdj->bdi", torch.einsum("bdi,bdj->bij", q, k).softmax(-1), v).transpose(1, 2)


def hidden(q, k, v):
    scores = torch.einsum("bid,bjd->bij", q, k) / 4
    later = torch.ones(q.shape[1], q.shape[1]).triu(1).bool()
    return torch.einsum("bij,bjd->bid", scores.masked_fill(later, float("-inf")).softmax(-1), v)


def hidden_by_the_lengths_of_scores(q, k, v):
    scores = torch.einsum("bid,bjd->bij", q, k[:, 1:])
    scores = scores * 0.25
    i, j = scores.shape[-2:]
    later = torch.ones(i, j).triu(j - i + 1).bool()
    weights = scores.masked_fill(later, -torch.finfo(torch.float32).max).softmax(-1)
    return torch.einsum("bij,bjd->bid", weights, v[:, 1:])


def by_lists(q, k, v):
    weights = torch.einsum(q, [0, 1, 2], k, [0, 3, 2], [0, 1, 3]).softmax(-1)
    return torch.einsum(weights, [0, 1, 3], v, [0, 3, 2], [0, 1, 2])


FOUND = (
    by_lists, hidden_by_the_lengths_of_scores,
    heads_inside, heads_in_front, of_any_axes, with_a_product, behind_a_product, factors_turned_round, features_first,
    hidden,
)  # fmt: skip


@clause("DYN-ATTENTION-FLOAT")
@pytest.mark.parametrize("attend", FOUND, ids=lambda attend: attend.__name__)
def test_sums_of_products_by_letters_are_attention(attend):
    model = seeded(lambda: Attending(attend)).requires_grad_(False)
    for way in (lambda **how: qs.quantize(model, [ROWS], **how), partial(qs.quantize_dynamic, model, example=ROWS)):
        q, reference = way(), way(engine="reference")
        assert sum(isinstance(step, Attention) for step in q.program.steps) == 1
        assert accuracy.sqnr(model(ROWS).numpy(), q(ROWS).numpy()) > 35
        assert torch.equal(reference(OTHERS), q(OTHERS))
        assert qs.compare(model, q, [ROWS]).int8_macs == 1


def summed_over_queries(q, k, v):
    return torch.einsum("bij,bid->bjd", torch.einsum("bid,bjd->bij", q, k).softmax(-1), v)


def weights_of_keys(q, k, v):
    return torch.einsum("bji,bjd->bid", torch.einsum("bid,bjd->bji", q, k).softmax(-1), v)


def weights_over_another_axis(q, k, v):
    return torch.einsum("bij,bjd->bid", torch.einsum("bid,bjd->bij", q, k).softmax(1), v)


def summed_over_the_batch(q, k, v):
    return torch.einsum("ij,bjd->bid", torch.einsum("bid,bjd->ij", q, k).softmax(-1), v)


def of_three(q, k, v):
    return torch.einsum("bij,bjd,bid->bid", torch.einsum("bid,bjd->bij", q, k).softmax(-1), v, q)


def of_a_diagonal(q, k, v):
    return torch.einsum("bij,bjd->bid", torch.einsum("bii,bij->bij", q[..., :5], k[..., :5]).softmax(-1), v)


def weights_alone(q, k, v):
    return torch.einsum("bij,bjd->bid", q[:, :, :5].softmax(-1), v)


def of_a_hidden_rows_length(q, k, v):
    scores = torch.einsum("bid,bjd->bij", q, k) + q[:1, :, :1]
    return torch.einsum("bij,bjd->bid", scores.softmax(-1), v) / scores.size(0)


def of_the_batch_of_scores(q, k, v):
    scores = torch.einsum("bid,bjd->bij", q, k)
    return torch.einsum("bij,bjd->bid", scores.softmax(-1), v) / scores.size(0)


def of_three_letters_behind_any(q, k, v):
    q, k, v = (x.unflatten(-1, (2, 8)) for x in (q, k, v))
    weights = torch.einsum("...ihd,...jhd->...hij", q, k).softmax(-1)
    return torch.einsum("...hij,...jhd->...ihd", weights, v).flatten(-2)


def of_a_letter_in_one_factor(q, k, v):
    weights = torch.einsum("bidx,bjd->bij", q.unflatten(-1, (4, 4)), k[..., :4]).softmax(-1)
    return torch.einsum("bij,bjdx->bid", weights, v.unsqueeze(-1))


LEFT = (
    of_three_letters_behind_any, of_a_letter_in_one_factor, of_a_hidden_rows_length, of_the_batch_of_scores,
    summed_over_queries, weights_of_keys, weights_over_another_axis, summed_over_the_batch, of_three, of_a_diagonal,
    weights_alone,
)  # fmt: skip


@clause("DYN-ATTENTION-FLOAT")
@pytest.mark.filterwarnings("ignore:.*of the multiply-accumulates are in int8")
@pytest.mark.parametrize("attend", LEFT, ids=lambda attend: attend.__name__)
def test_other_sums_of_products_are_computed_in_float(attend):
    model = seeded(lambda: Attending(attend)).requires_grad_(False)
    q = qs.quantize_dynamic(model, example=ROWS)
    assert not any(isinstance(step, Attention) for step in q.program.steps)
    assert accuracy.sqnr(model(ROWS).numpy(), q(ROWS).numpy()) > 30
