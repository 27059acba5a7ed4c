"""States of networks that do not fit, and calls of their parts that were not seen."""

import copy
import pickle
from dataclasses import replace

import every_step
import pytest
import torch
from torch import nn

import quantspec as qs
from networks import seeded
from quantspec.ir.held import Held, held
from quantspec.ir.program import Conv
from quantspec.module import islands, modes
from quantspec.module.coded import Parameters, codes_in, put
from told import exactly

ROWS = torch.randn(6, 8, generator=torch.Generator().manual_seed(2))


class Decides(nn.Module):
    """A model that decides by data, with so many layers, whose part may be given more."""

    def __init__(self, layers=2, more=None):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(8, 8) for _ in range(layers)))
        self.more = more

    def forward(self, x):
        y = x
        for layer in self.layers:
            y = layer(y)
            y = y if y.sum() < 1e9 else -y
        return y


def test_the_state_of_another_model_is_refused_by_what_is_in_only_one_of_them():
    small, large = (qs.quantize(seeded(lambda count=count: Decides(count)), [ROWS]) for count in (2, 3))
    with pytest.raises(ValueError, match="expected the networks of this model, but .layers.2#0. is in only one"):
        small.load_state_dict(large.state_dict())
    small.load_state_dict(small.state_dict())


# Changes of a state, and what is said of them.
STATES = {
    "no state": (lambda state: 3, "networks, scales, tensors of this model, got 3"),
    "a network that is none": (
        lambda state: state | {"networks": {"layers.0#0": 3, "layers.1#0": 4}}, "networks of this model, got 3",
    ),
    "more of a network": (
        lambda state: state | {"networks": {
            name: network | {"float_parts.more": torch.zeros(1)} for name, network in state["networks"].items()
        }},
        "float parts of this network, but 'float_parts.more' is in only one of them",
    ),
    "more scales": (
        lambda state: state | {"scales": state["scales"] | {"more": torch.zeros(1)}},
        "scales of this model, but 'more' is in only one of them",
    ),
    "fewer tensors": (
        lambda state: state | {"tensors": {}}, "tensors of this model, but 'layers.0.bias' is in only one of them",
    ),
    "scales that are no tensors": (lambda state: state | {"scales": [1]}, "scales of this model, got [1]"),
}  # fmt: skip


@pytest.mark.parametrize("name", STATES)
def test_a_state_that_is_none_of_a_model_is_refused_by_a_whole_sentence(name):
    changed, told = STATES[name]
    q = qs.quantize(seeded(Decides), [ROWS])
    q.check_state(q.get_extra_state())
    with pytest.raises(ValueError, match=exactly(f"state_dict: expected the {told}")):
        q.check_state(changed(q.get_extra_state()))


def test_codes_say_in_how_many_groups_a_layer_has_them():
    program = every_step.program()
    steps = [replace(step, groups=2) if isinstance(step, Conv) else step for step in program.steps]
    groups = [(layer, weight.groups) for layer, weight in codes_in(replace(program, steps=tuple(steps)))]
    assert groups == [("0", 2), *((str(layer), 1) for layer in (1, 2, 3, 4, 5, 6, 6, 6, 6))]


def test_a_layer_that_nobody_watches_yet_computes():
    layer = islands.LayerIsland("layer", nn.ReLU(), nn.Linear(8, 8).forward)
    assert torch.equal(layer(ROWS), ROWS.relu())


def test_weights_that_a_model_keeps_as_codes_say_so():
    q = qs.quantize(seeded(Decides), [ROWS])
    assert repr(q.python.layers[0].weight) == "Coded([8, 8])"


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x, note=None):
        return self.layer(x) if note is None else self.layer(x) * 2


class Notes(nn.Module):
    """Gives its part what is no tensor where a number is large."""

    def __init__(self):
        super().__init__()
        self.part = Part()

    def forward(self, x):
        y = self.part(x) if x.sum() < 1e3 else self.part(x, object())
        return y


def test_a_part_that_is_given_what_no_graph_holds_runs_in_float():
    model = seeded(Notes).requires_grad_(False)
    q = qs.quantize(model, [ROWS])
    large = ROWS + 100
    with pytest.warns(UserWarning, match="this call runs in float"):
        got = q(large)
    # Twice a layer whose weights are those of the codes, at most half a step off, which is a 254th of a row's largest;
    # sums of nine in float32 miss by 2^-20 of what that is multiplied with, less than a 2^11th of the bound each.
    bound = 2 * large.abs().sum(1, keepdim=True) * model.part.layer.weight.abs().amax(1) / 254
    assert ((got - model(large)).abs() <= bound * (1 + 2.0**-10)).all()


@pytest.mark.parametrize("options", [
    {}, {"prefix": "a"}, {"recurse": False}, {"recurse": False, "prefix": "a"}, {"remove_duplicate": False},
], ids=str)  # fmt: skip
def test_parameters_that_are_attributes_now_are_named_as_torch_names_parameters(options):
    """Those that are shared once or as often as they are held, and those that are gone, or were none, not at all."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 8))
    model.own = nn.Parameter(torch.zeros(3))
    model[1].weight = model[0].weight
    del model[2].bias
    expected = list(model.named_parameters(**options))
    named = Parameters(model)
    for module in model.modules():
        module.named_parameters = Parameters(module)
        for name, value in list(module._parameters.items()):
            delattr(module, name)
            module.__dict__[name] = value
    del model[2].weight
    got = list(named(**options))
    assert [name for name, _ in got] == [name for name, _ in expected if not name.endswith("2.weight")]
    assert all(value is dict(expected)[name] for name, value in got)


@pytest.mark.parametrize("prefix", ["", "a.", "a", "a.b", "a.0."])
def test_a_state_with_parameters_that_are_attributes_now_is_named_and_ordered_as_torchs(prefix):
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Sequential(nn.Linear(8, 8)))
    model.own = nn.Parameter(torch.zeros(3))
    expected = model.state_dict(prefix=prefix)
    put(model, {(id(module), name): value for module in model.modules() for name, value in module._parameters.items()})
    assert not list(nn.Module.named_parameters(model))
    got = model.state_dict(prefix=prefix)
    assert list(got) == list(expected) and all(torch.equal(got[name], value) for name, value in expected.items())


def test_the_state_of_a_model_in_parts_names_no_parameter_that_is_gone():
    model = seeded(Decides)
    q = qs.quantize(model, [ROWS])
    for _ in range(2):
        assert list(q.python.state_dict()) == list(model.state_dict())
        model.layers[1].bias = q.python.layers[1].bias = None


def test_values_that_no_float_holds_are_refused_by_parts_and_layers():
    """Not as a call that has to run in float: the model could not compute with it either."""
    for q in (qs.quantize(seeded(Decides), [ROWS]), qs.quantize_dynamic(seeded(Decides))):
        message = "input: expected float32 values, got {} values that float32 cannot hold"
        for dtype, name in ((torch.complex64, "complex64"), (torch.int32, "int32")):
            with pytest.raises(TypeError, match=exactly(message.format(name))):
                q(ROWS.to(dtype))


class Slopes(Decides):
    """Has tensors that are neither parameters nor buffers."""

    def __init__(self):
        super().__init__()
        self.slopes = torch.randn(8)

    def forward(self, x):
        return super().forward(x) * self.slopes


def test_tensors_that_are_attributes_are_those_of_the_file(tmp_path):
    q = qs.quantize(seeded(Slopes), [ROWS])
    q.save(tmp_path / "q")
    other = seeded(Slopes, seed=1)
    assert not torch.equal(other.slopes, q.python.slopes)
    assert torch.equal(qs.load(tmp_path / "q", model=other)(ROWS), q(ROWS))


def test_how_a_call_of_a_part_comes_out_is_worked_out_once(monkeypatch):
    """Its arguments are taken apart when a call of that form comes first, not at each call."""
    q = qs.quantize(seeded(Notes), [ROWS])
    first = q(ROWS)

    def again(*_):
        raise AssertionError("taken apart again")

    monkeypatch.setattr(islands, "call_of", again)
    assert torch.equal(q(ROWS.clone()), first)


def test_a_layer_that_was_given_another_weight_says_so_once():
    q = qs.quantize_dynamic(seeded(Decides))
    q.layers[0].weight = nn.Parameter(torch.zeros(8, 8))
    with pytest.warns(UserWarning, match="layer 'layers.0' was given another weight; it runs in float"):
        first = q(ROWS)
    assert torch.equal(q(ROWS), first)


class Refuses(Decides):
    def forward(self, x):
        if x.sum() > 1e3:
            raise qs.UnsupportedError("so much has no place here")
        return super().forward(x)


def test_what_a_model_does_not_support_is_told_as_it_tells_it(monkeypatch):
    q = qs.quantize(seeded(Refuses), [ROWS])
    with pytest.raises(qs.UnsupportedError, match="^so much has no place here$"):
        q(ROWS + 100)

    def unsupported(*_, **__):
        raise qs.UnsupportedError("no kernel")

    monkeypatch.setattr(modes, "computed", unsupported)
    with pytest.raises(qs.UnsupportedError, match="^no kernel$"):
        q(ROWS)


class Asks(Decides):
    """Reads its own state, with a buffer in it, while it runs."""

    def __init__(self):
        super().__init__()
        self.register_buffer("shift", torch.ones(8))

    def forward(self, x):
        state = self.state_dict()
        assert list(state)[0] == "shift" and len(state) == 5
        return super().forward(x) + state["shift"]


@pytest.mark.filterwarnings("ignore:.*in float")
def test_a_model_that_reads_its_state_finds_buffers_where_they_were():
    model = seeded(Asks).requires_grad_(False)
    for q in (qs.quantize(model, [ROWS]), qs.quantize_dynamic(model)):
        assert (q(ROWS) - model(ROWS)).abs().max() < 0.05 * model(ROWS).abs().max()


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_layer_without_outputs_has_no_numbers_to_show():
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 0)).eval()
    for per_channel in (False, True):
        assert "linear" in str(qs.quantize(model, [ROWS], per_channel=per_channel))


def test_a_class_without_a_source_is_named_by_its_name():
    made = type("Made", (nn.Module,), {"__module__": "made_up"})()
    assert islands.place_of(made) == "made_up.Made"
    assert islands.place_of(Decides()).endswith(f", line {Decides.__init__.__code__.co_firstlineno - 3}")


def normed():
    return nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4))


OTHERS = {"nothing": None, "a number": 3, "a tensor": torch.ones(3), "no tensors": {"0.weight": 3}}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_what_is_no_state_of_a_network_is_refused_as_such(other):
    for build, what in ((normed, "arrays of this network"), (Decides, "networks, scales, tensors of this model")):
        q = qs.quantize(seeded(build), [ROWS])
        before = q(ROWS)
        with pytest.raises(ValueError, match=exactly(f"state_dict: expected the {what}, got {other}")):
            q.load_state_dict({"_extra_state": other}, strict=False)
        assert torch.equal(q(ROWS), before)


def test_the_state_of_one_network_is_none_of_a_model_of_several():
    one, several = qs.quantize(seeded(normed), [ROWS]), qs.quantize(seeded(Decides), [ROWS])
    with pytest.raises(ValueError, match="state_dict: expected the networks, scales, tensors of this model, got "):
        several.load_state_dict(one.state_dict(), strict=False)
    with pytest.raises(ValueError, match="state_dict: expected the arrays of this network, got "):
        one.load_state_dict(several.state_dict(), strict=False)
    state = {"networks": 3, "scales": {}, "tensors": {}}
    message = f"state_dict: expected the networks, scales, tensors of this model, got {state}"
    with pytest.raises(ValueError, match=exactly(message)):
        several.load_state_dict({"_extra_state": state})
    state = several.state_dict()["_extra_state"]
    with pytest.raises(ValueError, match=exactly("state_dict: expected the networks of this model, got 3")):
        several.load_state_dict({"_extra_state": state | {"networks": {**state["networks"], "layers.0#0": 3}}})


class Named(nn.LayerNorm):
    """Has a state of its own that is no tensor."""

    def get_extra_state(self):
        return "a name"

    def set_extra_state(self, state):
        assert state == "a name"


class Normed(Decides):
    """Decides by data, with float32 parts in the networks, and a tensor as an attribute."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(normed(), nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), Named(8)))
        self.shift = torch.ones(8)

    def forward(self, x):
        return super().forward(x) + self.shift


SPOILED = {
    "codes": (("networks", "layers.1#0", "_extra_state", "layers.1.0.weight"), torch.zeros(3, 3, dtype=torch.int8),
              "'layers.1.0.weight' is torch.int8[3, 3], expected torch.int8[8, 4]"),
    "a float part": (("networks", "layers.1#0", "float_parts.layers_1_1.weight"), torch.zeros(3),
                     "'float_parts.layers_1_1.weight' is torch.float32[3], expected torch.float32[8]"),
    "a scale": (("scales", "layers.1.0.weight"), torch.zeros(3),
                "'layers.1.0.weight' is torch.float32[3], expected torch.float32[8]"),
    "an attribute": (("tensors", "shift"), torch.zeros(8, dtype=torch.int64),
                     "'shift' is torch.int64[8], expected torch.float32[8]"),
}  # fmt: skip


@pytest.mark.parametrize("place, tensor, why", SPOILED.values(), ids=SPOILED)
def test_of_a_state_that_does_not_fit_nothing_is_taken(place, tensor, why):
    q = qs.quantize(seeded(Normed), [ROWS])
    before, state = q(ROWS), copy.deepcopy(q.state_dict())["_extra_state"]
    state["networks"]["layers.0#0"]["_extra_state"]["layers.0.0.weight"].zero_()
    *outer, last = place
    inner = state
    for name in outer:
        inner = inner[name]
    inner[last] = tensor
    with pytest.raises(ValueError, match=exactly(f"state_dict: {why}")):
        q.load_state_dict({**q.state_dict(), "_extra_state": state})
    assert torch.equal(q(ROWS), before) and torch.equal(copy.deepcopy(q)(ROWS), before)
    q.load_state_dict(qs.quantize(seeded(Normed), [ROWS]).state_dict())
    assert torch.equal(q(ROWS), before)


def test_a_deep_copy_has_what_others_have_put_into_a_network():
    q = qs.quantize(seeded(normed), [ROWS])
    plain = q(ROWS)
    q.shift, q.norm = torch.ones(4), q.float_parts["1"]
    q.register_buffer("counts", torch.zeros(3))
    q.register_forward_hook(lambda module, args, output: output + module.shift)
    twin = copy.deepcopy(q)
    q.shift.zero_()
    assert torch.equal(twin(ROWS), plain + 1) and torch.equal(q(ROWS), plain)
    assert twin.norm is twin.float_parts["1"] is not q.norm and twin.counts is not q.counts
    assert twin.program is not q.program and twin.compiled is not q.compiled and twin.report == q.report


def unpickled(q):
    return pickle.loads(pickle.dumps(q))


def with_its_own_state(q):
    q.load_state_dict(q.state_dict())
    return q


@pytest.mark.parametrize("again", [unpickled, copy.deepcopy, with_its_own_state])
@pytest.mark.parametrize("rows", [ROWS, None])
def test_a_network_that_comes_again_has_its_weights_in_memory_once(again, rows):
    """As the engine packed them, with no codes beside that: so many bytes more than codes are what padding takes."""
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 30), nn.ReLU(), nn.Linear(30, 5)))
    q = qs.quantize_dynamic(model, example=ROWS) if rows is None else qs.quantize(model, [rows])
    before = q.run_on("compiled").resident_nbytes
    twin = again(q)
    assert twin.resident_nbytes == before > twin.nbytes
    assert all(isinstance(held(step), Held) for step in twin.program.steps if hasattr(step, "weight"))


def test_an_input_that_is_given_twice_is_refused_as_the_model_does():
    q = qs.quantize(seeded(normed), [ROWS])
    with pytest.raises(TypeError, match=exactly("input: given by its place and by its name")):
        q(ROWS, input=2 * ROWS)
    assert torch.equal(q(input=ROWS), q(ROWS))


def test_a_model_whose_tensors_are_elsewhere_is_refused_by_name(tmp_path):
    qs.quantize(seeded(Decides), [ROWS]).save(tmp_path / "q")
    with torch.device("meta"):
        elsewhere = Decides()
    message = "model: expected tensors on the CPU, layers.0.weight is on meta"
    with pytest.raises(ValueError, match=exactly(message)):
        qs.load(tmp_path / "q", model=elsewhere)


class Scaled(Decides):
    """Has numbers that its Python reads, and names that a quantized model has, too."""

    def __init__(self):
        super().__init__()
        self.scale, self.stops, self.report = 1.0, "stops", "report"
        self.register_buffer("shift", torch.zeros(8))

    def forward(self, x):
        return super().forward(x) * self.scale + self.shift


@pytest.mark.parametrize("copied", [lambda q: q, copy.deepcopy])
def test_what_is_set_on_a_model_is_what_its_python_reads(copied):
    q = copied(qs.quantize(seeded(Scaled), [ROWS]))
    before = q(ROWS)
    q.scale, q.shift = 2.0, torch.ones(8)
    assert torch.equal(q(ROWS), before * 2 + 1) and (q.scale, q.python.scale) == (2.0, 2.0)
    assert torch.equal(q.state_dict()["python.shift"], torch.ones(8)) and "shift" not in q.state_dict()


def test_what_a_model_does_not_have_is_the_quantized_models_own():
    q = qs.quantize(seeded(Scaled), [ROWS])
    q.note, q.report, q.stops = "a note", None, ()
    assert vars(q)["note"] == "a note" and (q.report, q.stops) == (None, ())
    assert (q.python.report, q.python.stops) == ("report", "stops") and not hasattr(q.python, "note")
    with pytest.raises(AttributeError):
        q.engine = "reference"
