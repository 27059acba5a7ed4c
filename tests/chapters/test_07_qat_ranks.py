"""Chapter 7: processes that train one network together, which here are ones that gloo joins or calls in turn."""

import datetime
import os

import pytest
import torch
import torch.multiprocessing
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import networks
import quantspec as qs
from evidence import clause
from networks import bits, same
from quantspec.qat import ranks


class Normalized(nn.Sequential):
    """A convolution with a normalization, and a layer behind it."""

    def __init__(self):
        super().__init__(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 25, 3))


def batch(number):
    """A batch of one process; each has another range."""
    return (number + 1) * networks.inputs(5, (2, 7, 7), seed=number)


def prepared():
    return qs.prepare_qat(networks.seeded(Normalized).train(), [batch(5)], averaging=0.5)


def rank(number, path):
    """One process of two, with batches of its own."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{path}/meet", rank=number, world_size=2, timeout=datetime.timedelta(seconds=60)
    )
    p = prepared()
    parallel = nn.parallel.DistributedDataParallel(p)
    optimizer = torch.optim.SGD(p.parameters(), 0.05)
    kept = []
    for x in (batch(number), batch(number + 2)):
        optimizer.zero_grad()
        F.cross_entropy(parallel(x), torch.arange(len(x)) % 3).backward()
        kept.append(bits(p))
        optimizer.step()
    torch.save([*kept, bits(p)], f"{path}/{number}")
    torch.distributed.barrier()
    # Freed in the ordinary way, gloo's group now and then waits for a thread of its own that waits for Python's lock.
    os._exit(0)


@clause("QAT-RANKS")
def test_two_processes_have_the_same_network_with_what_both_have_seen(tmp_path):
    torch.multiprocessing.start_processes(rank, (str(tmp_path),), nprocs=2, start_method="fork")
    both = [torch.load(tmp_path / str(number), weights_only=True) for number in range(2)]
    for first, second in zip(*both, strict=True):
        assert same(first, second)
    alone = []
    for number in range(2):
        p = prepared()
        p(batch(number))
        alone.append(bits(p))
    together = both[0][0]
    low, high = zip(*(each["networks.0.ranges"].unbind(1) for each in alone))
    assert torch.equal(together["networks.0.ranges"], torch.stack([torch.minimum(*low), torch.maximum(*high)], 1))
    assert not any(torch.equal(together["networks.0.ranges"], each["networks.0.ranges"]) for each in alone)
    for name in ("model.1.running_mean", "model.1.running_var"):
        # Each float32 operation rounds by half a unit of 2^-23.
        torch.testing.assert_close(together[name], (alone[0][name] + alone[1][name]) / 2, rtol=2**-21, atol=2**-23)


class World:
    """Processes that are called in turn: first what each gives to ``all_reduce``, then with what all gave."""

    def __init__(self, monkeypatch, size):
        self.size, self.given, self.number = size, [], 0
        monkeypatch.setattr(ranks.distributed, "is_available", lambda: True)
        monkeypatch.setattr(ranks.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(ranks.distributed, "get_world_size", lambda: size)
        monkeypatch.setattr(ranks.distributed, "all_reduce", self.reduce)

    def reduce(self, tensor, op=torch.distributed.ReduceOp.SUM):
        assert tensor.device.type == "cpu" and tensor.dtype == torch.float32
        if len(self.given) < self.size:
            self.given.append(tensor.clone())
            return
        stack = torch.stack(self.given)
        tensor.copy_(stack.amax(0) if op == torch.distributed.ReduceOp.MAX else stack.sum(0))

    def all(self, function, arguments):
        for argument in arguments:
            function(argument)
        return [function(argument) for argument in arguments]


PAIRS = st.lists(st.tuples(*[st.floats(-100, 100, width=32)] * 2).map(sorted).map(tuple), min_size=3, max_size=3)


@clause("QAT-RANKS")
@given(st.lists(PAIRS, min_size=2, max_size=4))
def test_ranges_are_the_widest_of_all_processes(seen):
    # Processes that have their model on another device, or compute in float64, say so to torch.
    with pytest.MonkeyPatch.context() as patch, torch.device("meta"):
        torch.set_default_dtype(torch.float64)
        try:
            found = World(patch, len(seen)).all(ranks.widest, seen)
        finally:
            torch.set_default_dtype(torch.float32)
    lows, highs = zip(*(zip(*pairs) for pairs in seen))
    assert found == [list(zip(map(min, zip(*lows)), map(max, zip(*highs))))] * len(seen)


@clause("QAT-RANKS")
@given(st.lists(st.lists(st.integers(-1000, 1000), min_size=2, max_size=2), min_size=2, max_size=4))
def test_statistics_are_the_mean_of_all_processes(seen):
    values = [torch.tensor(each, dtype=torch.float32) for each in seen]
    with pytest.MonkeyPatch.context() as patch:
        found = World(patch, len(seen)).all(ranks.averaged, values)
    expected = torch.tensor(seen).sum(0).float() / len(seen)
    assert all(torch.equal(each, expected) for each in found)
    assert [each.tolist() for each in values] == seen  # what was given is as it was


def refuse(*args, **kwargs):
    raise AssertionError("nobody is there to be asked")


@clause("QAT-RANKS")
@pytest.mark.parametrize("answers", [[False, refuse, refuse], [True, False, refuse], [True, True, 1]])
def test_one_process_asks_nobody(monkeypatch, answers):
    for name, answer in zip(("is_available", "is_initialized", "get_world_size"), answers):
        monkeypatch.setattr(ranks.distributed, name, answer if answer is refuse else lambda answer=answer: answer)
    monkeypatch.setattr(ranks.distributed, "all_reduce", refuse)
    values, pairs = torch.ones(2), [(-1.0, 2.0)]
    assert ranks.averaged(values) is values and ranks.widest(pairs) is pairs
