"""The compiled loop of the observers: the ends of many floats, beside those of all before them."""

import ctypes

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import quantspec as qs
import strategies
from quantspec.kernels import minmax
from quantspec.numerics.observers import NOTHING, PAIR

COUNTS = st.one_of(st.integers(1, 200), st.integers(1000, 1100))


def wider(x, known):
    return minmax.wider(x.ctypes.data, x.size, (known, ctypes.addressof(known)))


@given(strategies.seeds(), COUNTS, st.integers(0, 3))
def test_the_ends_of_everything(r, count, offset):
    x = r.normal(size=count + offset).astype(np.float32)[offset:]
    ends = float(x.min()), float(x.max())
    assert wider(x, NOTHING) == ends
    assert wider(x, PAIR(*ends)) is None
    up, down = np.float32(np.inf), np.float32(-np.inf)
    inside = np.nextafter(np.float32(ends[0]), up), np.nextafter(np.float32(ends[1]), down)
    assert wider(x, PAIR(inside[0], ends[1])) == wider(x, PAIR(ends[0], inside[1])) == ends
    assert wider(x, PAIR(-100, 100)) is None and wider(x, PAIR(-100, -100)) == (-100, ends[1])


@given(strategies.seeds(), COUNTS, st.sampled_from([np.nan, -np.nan, np.inf, -np.inf]))
def test_what_is_not_finite_shows_in_the_ends(r, count, value):
    x = r.normal(size=count).astype(np.float32)
    x[r.integers(count)] = value
    ends = wider(x, PAIR(-100, 100))
    assert np.isnan(ends).all() if np.isnan(value) else value in ends


def test_unaligned_values():
    x = np.frombuffer(b"!" + np.arange(99, dtype=np.float32).tobytes(), np.float32, offset=1)
    assert wider(x, NOTHING) == (0, 98)


@pytest.mark.parametrize("count", [minmax.LONG, minmax.LONG + 17])
def test_many_values(count):
    x = np.random.default_rng(0).normal(size=count).astype(np.float32)
    assert wider(x, NOTHING) == (x.min(), x.max())


class Tagged(torch.Tensor):
    pass


INPUTS = {
    "in a row": lambda x: x,
    "columns": lambda x: x.t().contiguous().t(),
    "every other": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "negated lazily": lambda x: torch.complex(torch.zeros_like(x), -x).conj().imag,
    "of a class of its own": lambda x: x.as_subclass(Tagged),
    "with a gradient": lambda x: x.clone().requires_grad_(),
    "repeated": lambda x: x[:1].expand(3, -1),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_tensors_of_every_kind_are_observed(kind):
    x = INPUTS[kind](torch.randn(3, 40, generator=torch.Generator().manual_seed(0)))
    prepared = qs.prepare(torch.nn.Linear(40, 2).eval())
    prepared(x)
    low, high = prepared.observers[prepared.graph.inputs[0]].range()
    assert (low, high) == (x.min().item(), x.max().item())


def test_inputs_of_no_samples_are_not_observed():
    prepared = qs.prepare(torch.nn.Linear(40, 2).eval())
    prepared(torch.zeros(0, 40))
    with pytest.raises(qs.CalibrationError):
        qs.convert(prepared)
