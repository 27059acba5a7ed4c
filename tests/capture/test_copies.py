"""Copies of the user's model: as ``copy.deepcopy`` makes them, in less time."""

import subprocess
import sys
import threading
from collections import OrderedDict

import pytest
import torch
from torch import nn

from evidence import clause
from quantspec.capture import copies


class Attributes(nn.Module):
    """Holds whatever a module may hold."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.register_buffer("seen", torch.zeros(3))
        self.alias = self.seen
        self.view = self.seen[1:]
        self.history = [self.seen, {"layer": self.first}]
        self.cache = self.same_cache = {}
        self.order = OrderedDict(a=self.second)
        self.scale, self.lock, self.missing = 0.5, threading.Lock(), float("nan")
        self.__dict__["unlisted"] = self.first
        self.child = Child(self)

    def forward(self, x):
        return self.second(self.first(x))


class Child(nn.Module):
    def __init__(self, parent):
        super().__init__()
        self.links = [parent]


class OwnCopy(nn.Module):
    def __init__(self, label="made"):
        super().__init__()
        self.label = label

    def __deepcopy__(self, memo):
        return OwnCopy("copied")


@pytest.mark.parametrize("make", [copies.own_copy, copies.run_copy])
@clause("STA-UNTOUCHED")
def test_what_is_one_in_a_model_is_one_in_its_copy_and_nothing_is_shared(make):
    model = Attributes()
    twin = make(model)
    assert type(twin) is Attributes and list(vars(twin)) == list(vars(model))
    assert twin.first.weight is twin.second.weight and twin.alias is twin.seen is twin.history[0]
    assert twin.view.untyped_storage().data_ptr() == twin.seen.untyped_storage().data_ptr()
    assert twin.history[1]["layer"] is twin.first is twin.unlisted and twin.order["a"] is twin.second
    assert twin.cache is twin.same_cache is not model.cache and twin.child.links[0] is twin
    assert twin.seen is not model.seen and twin.history is not model.history
    assert (twin.first.weight is model.first.weight) == (make is copies.run_copy)
    assert twin.lock is model.lock  # which refuses to be copied
    twin.seen += 1
    twin.cache["x"] = twin.first._forward_hooks["x"] = 1
    assert not model.seen.any() and not model.cache and not model.first._forward_hooks


@clause("STA-UNTOUCHED")
def test_a_class_that_says_how_it_is_copied_is_copied_so():
    assert copies.run_copy(nn.Sequential(OwnCopy()))[0].label == "copied"


@pytest.mark.parametrize("make", [copies.own_copy, copies.run_copy])
@pytest.mark.parametrize("how", ["weight_norm", "spectral_norm", "orthogonal"])
@clause("STA-UNTOUCHED")
def test_a_parametrized_layer_computes_from_the_copy_s_own_parts(how, make):
    model, x = nn.Sequential(getattr(nn.utils.parametrizations, how)(nn.Linear(4, 3))).eval(), torch.randn(2, 4)
    twin, (name, *_) = make(model), model[0].parametrizations.weight._parameters
    expected = model(x)
    assert copies.plain_state(type(model[0])) and type(twin[0]) is type(model[0]) and torch.equal(twin(x), expected)
    own, copied = model[0].parametrizations.weight, twin[0].parametrizations.weight
    assert copied is not own and (getattr(copied, name) is getattr(own, name)) == (make is copies.run_copy)
    setattr(copied, name, nn.Parameter(torch.zeros_like(getattr(own, name)) + torch.eye(*getattr(own, name).shape)))
    assert not torch.equal(twin(x), expected) and torch.equal(model(x), expected)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@clause("STA-UNTOUCHED")
def test_a_recurrent_layer_of_a_copy_reads_the_copy_s_weights(kind):
    layer, x = kind(3, 4), torch.randn(2, 5, 3)
    before = layer(x)[0]
    twin = copies.own_copy(layer)
    with torch.no_grad():
        twin.weight_ih_l0.zero_()
    assert not torch.equal(twin(x)[0], before) and torch.equal(layer(x)[0], before)


@pytest.mark.parametrize("make", [copies.own_copy, copies.run_copy])
@clause("STA-UNTOUCHED")
def test_the_copy_of_what_was_compiled_in_place_computes_by_itself(make):
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3))
    model._compiled_call_impl = model._call_impl  # as model.compile() does
    twin, x = make(model), torch.randn(8, 3)
    twin[0](x), twin(x)
    assert twin[0].num_batches_tracked == 2 and model[0].num_batches_tracked == 0
    assert not torch.equal(twin[0].running_mean, model[0].running_mean)


@clause("STA-UNTOUCHED")
def test_a_buffer_that_refuses_to_be_copied_is_the_models_own():
    model = nn.BatchNorm1d(3)
    model.running_mean = model.weight * 2  # torch copies nothing that has a history
    twin = copies.run_copy(nn.Sequential(model))[0]
    assert twin.running_mean is model.running_mean and twin._buffers is not model._buffers


PROCESS = """
import random, sys
import torch
import quantspec as qs
sys.stderr.isatty = lambda: True  # so that there is a progress bar
torch.default_generator.manual_seed(0)
state = random.getstate()
qs.quantize(torch.nn.Sequential(torch.nn.Linear(8, 8)).eval(), [torch.randn(4, 8)])
assert "rich.progress" in sys.modules and random.getstate() == state
"""


@clause("STA-UNTOUCHED")
def test_the_first_network_of_a_process_leaves_the_random_state():
    # What is imported meanwhile may draw numbers.
    subprocess.run([sys.executable, "-c", PROCESS], check=True, capture_output=True)


@clause("STA-SAME", "STA-UNTOUCHED")
def test_copies_of_tensors_are_what_deepcopy_gives():
    x = torch.randn(4, 3)
    held = {
        "plain": x, "part": x[1:, ::2], "turned": x.t(), "expanded": x[:1].expand(5, 3), "grad": x.clone(),
        "sparse": x.to_sparse(), "meta": x.to("meta"), "marked": x.clone(), "empty": x[:0], "conj": torch.ones(2) * 1j,
        "none": None, "parameter": nn.Parameter(x.clone(), requires_grad=False),
    }  # fmt: skip
    held["grad"].requires_grad_()
    held["marked"].told = ["something"]
    held["conj"] = held["conj"].conj()
    memo = {}
    for name, value in held.items():
        twin = copies.tensor_copy(value, memo)
        assert type(twin) is type(value) and copies.tensor_copy(value, memo) is twin, name
        if value is None:
            continue
        assert twin is not value and twin.layout == value.layout and twin.device == value.device
        assert (twin.shape, twin.dtype, twin.requires_grad) == (value.shape, value.dtype, value.requires_grad)
        if value.device.type == "cpu":
            assert torch.equal(twin.to_dense(), value.to_dense()), name
        if value.layout is torch.strided:
            assert twin.stride() == value.stride() and twin.storage_offset() == value.storage_offset(), name
    assert memo[id(held["marked"])].told == ["something"] and memo[id(held["marked"])].told is not held["marked"].told
    one, other = (memo[id(held[name])].untyped_storage()._cdata for name in ("plain", "part"))
    assert one == other != x.untyped_storage()._cdata


@clause("STA-SAME")
@pytest.mark.parametrize("change, path", [
    (lambda m: m.seen.add_(1), "seen"), (lambda m: m.view.add_(1), "seen"), (lambda m: m.cache.update(x=1), "cache"),
    (lambda m: setattr(m, "scale", 2.0), "scale"), (lambda m: setattr(m.child, "new", 1), "child.new"),
    (lambda m: delattr(m, "scale"), "scale"),
])  # fmt: skip
def test_what_a_run_changes_is_seen(change, path):
    model = Attributes()
    before = copies.state_of(model)
    assert copies.changed(before, copies.state_of(model)) is None
    change(model)
    # Writing to one tensor writes to its views and aliases.
    assert copies.changed(before, copies.state_of(model)) in (path, "alias", "view", "history", "same_cache")
