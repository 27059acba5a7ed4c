"""How the parts of a network are called: names of arguments, those that are left out, inputs that do not fit, what
nobody reads, and numbers that are drawn."""

import copy
import functools
import inspect
import warnings

import models
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import networks
import quantspec as qs
from evidence import clause
from quantspec.capture import calls


@clause("STA-PARTS", "DYN-LAYERS")
def test_arguments_have_the_names_that_the_model_gives_them():
    model = networks.seeded(lambda: models.two_layers(lambda self, input: self.second(self.first(input=input))))
    x = networks.inputs(5, (8,))
    for q in (qs.quantize(model, [x]), qs.quantize_dynamic(model), qs.quantize_dynamic(model, example=x)):
        assert torch.equal(q(input=x), q(x))


@clause("STA-WAYS")
def test_an_argument_that_calibration_had_may_be_left_out():
    model = networks.seeded(
        lambda: models.two_layers(lambda self, x, bias=None: self.second(self.first(x) if bias is None else x + bias))
    )
    x = networks.inputs(5, (8,))
    for q in (qs.quantize(model, [(x, x)]), qs.quantize_dynamic(model, example=(x, x))):
        with torch.no_grad(), pytest.warns(UserWarning, match="this call runs in float"):
            assert (q(x) - model(x)).abs().max() < 0.05


@clause("STA-WAYS", "DYN-LAYERS")
def test_an_input_that_does_not_fit_raises_what_the_model_does():
    def forward(self, x):
        try:
            return self.second(self.first(x[:, :3]))
        except RuntimeError:
            return self.second(self.first(x))

    model, x = networks.seeded(lambda: models.two_layers(forward)), networks.inputs(5, (8,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the call that fails is computed in float
        for q in (qs.quantize(model, [x]), qs.quantize_dynamic(model), qs.quantize_dynamic(model, example=x)):
            assert (q(x) - model(x)).abs().max() < 0.05


def with_scale(forward):
    """A decorator that adds an argument of its own where the caller gave none, as those of transformers do."""

    @functools.wraps(forward)
    def wrapper(self, *args, **kwargs):
        kwargs.setdefault("scale", 2.0)
        return forward(self, *args, **kwargs)

    return wrapper


@clause("STA-PARTS", "STA-WAYS")
@pytest.mark.parametrize("traceable", [True, False])
def test_a_decorated_forward_is_given_what_its_caller_gives(traceable, tmp_path):
    @with_scale
    def forward(self, x, mask=None, scale=1.0):
        assert traceable or isinstance(x, torch.Tensor)
        return self.second(self.first(x)) * scale

    model, x = networks.seeded(lambda: models.two_layers(forward)), networks.inputs(5, (8,))
    for q in (qs.quantize(model, [{"x": x, "mask": None}]), qs.quantize_dynamic(model, example=(x,))):
        assert (q(x) - model(x)).abs().max() < 0.05
        assert isinstance(q.program, qs.Program)
        q.save(tmp_path / "q.safetensors")
        assert torch.equal(qs.load(tmp_path / "q.safetensors")(x), q(x))


class Routed(nn.Module):
    """Experts, each with the rows that begin with its number, and a layer for all rows."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)) for _ in range(3))
        self.last = nn.Linear(8, 4)

    def forward(self, x):
        output = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            output[x[:, 0] == number] = expert(x[x[:, 0] == number])
        return self.last(output)


@clause("STA-PARTS", "STA-CALIBRATED")
def test_an_expert_to_which_calibration_sent_no_rows_stays_in_float(tmp_path):
    model, x = networks.seeded(Routed), networks.inputs(12, (8,))
    x[:, 0] = torch.arange(12) % 2
    q = qs.quantize(model, [x, x.flip(1).abs().clamp(2.5, 3)])
    assert sorted(q.islands) == ["experts.0", "experts.1", "last"]
    assert [str(stop) for stop in q.stops if stop.path] == ["experts.2: calibration gave no values at input 'input'"]
    assert (q(x) - model(x)).abs().max() < 0.05
    x[::4, 0] = 2
    assert (q(x) - model(x)).abs().max() < 0.2
    q.save(tmp_path / "q")
    assert torch.equal(qs.load(tmp_path / "q", model=model)(x), q(x))
    with pytest.raises(qs.CalibrationError, match="the observer has seen no values"):
        qs.quantize(model, [x[:0]])


@clause("STA-CALIBRATED")
def test_an_expert_whose_values_make_no_grid_is_refused_by_its_place():
    model, x = networks.seeded(Routed), networks.inputs(12, (8,))
    nn.init.zeros_(model.experts[1][0].weight)
    x[:, 0] = torch.arange(12) % 3
    x[x[:, 0] == 1, 1:3] = torch.tensor([-3e38, 3e38])
    with pytest.raises(qs.CalibrationError, match="^input 'input': values from -3e.38 to 3e.38: "):
        qs.quantize(model, [x])


@clause("DYN-LAYERS")
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_layer_without_outputs_is_quantized_like_others(tmp_path):
    model = networks.seeded(lambda: models.two_layers(lambda self, x: self.second(x) + self.third(self.first(x))))
    model.first, model.third = nn.Linear(8, 0).eval(), nn.Linear(0, model.second.out_features).eval()
    x = networks.inputs(5, (8,))
    static = qs.quantize(model, [x])
    for q in (static, qs.quantize_dynamic(model), qs.quantize_dynamic(model, example=x)):
        assert (q(x) - model(x)).abs().max() < 0.05
    assert [step.layer for step in static.program.layers] == ["second"]
    static.save(tmp_path / "q")
    assert torch.equal(qs.load(tmp_path / "q")(x), static(x))


@clause("STA-SAME")
@pytest.mark.parametrize("engine", ["reference", "compiled"])
def test_a_layer_whose_output_nobody_wants_is_left_out(engine):
    def forward(self, x):
        self.unread = self.first(x) + torch.softmax(x, -1)
        del self.unread
        return self.second(x)

    model, x = networks.seeded(lambda: models.two_layers(forward)), networks.inputs(5, (8,))
    q = qs.quantize(model, [x], engine=engine)
    assert (q(x) - model(x)).abs().max() < 0.05
    assert [step.layer for step in q.program.layers] == ["second"]


@clause("DYN-LAYERS", "STA-CONSTANT")
def test_a_computed_weight_is_a_parameter_though_another_hook_runs():
    layer = models.weight_norm_by_hook(networks.seeded(lambda: nn.Linear(8, 4)))
    layer.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 0.5,))
    model, x = nn.Sequential(layer, nn.ReLU()).eval(), networks.inputs(5, (8,))
    q = qs.quantize_dynamic(model)
    assert (q(x) - model(x)).abs().max() < 0.05 and list(q.islands) == ["0"]


@clause("STA-UNTOUCHED")
@pytest.mark.parametrize("whole", [True, False])
def test_a_model_that_draws_numbers_leaves_the_random_state(whole):
    def forward(self, x):
        x = self.first(x) + 0.0 * torch.rand_like(x)
        return self.second(x) if whole or x.sum() > -1e9 else x

    model, x = networks.seeded(lambda: models.two_layers(forward)), networks.inputs(5, (8,))
    state = torch.get_rng_state()
    qs.quantize(model, [x, x])
    qs.quantize_dynamic(model, example=x)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_call_of_what_has_no_signature_is_a_pattern_of_what_it_is_given():
    x = networks.inputs(5, (8,))
    pattern, tensors = calls.call_of(torch.add, (x, x), {"alpha": 2})
    assert pattern.names == ("input0", "input1") and len(tensors) == 2 and ("int", 2) in pattern.constants
    assert calls.arguments(torch.add, [x, x, x]) == ((x, x, x), {})


def test_a_default_may_be_a_tensor_and_an_argument_no_constant():
    one, x = torch.ones(8), networks.inputs(5, (8,))

    def forward(x, y=one, *more):
        return x + y

    pattern, tensors = calls.call_of(forward, (x,), {})
    assert pattern.names == ("x", "y") and tensors[1] is one
    with pytest.raises(calls.NotPlain, match="the argument 'y' is a object"):
        calls.call_of(forward, (x, object()), {})
    assert calls.arguments(forward, (x, x, x)) == ((x, x, x), {})  # none is one too many


def test_a_list_is_one_argument_where_the_model_says_so():
    def forward(xs: list[torch.Tensor], y=None):
        return xs

    x = networks.inputs(5, (8,))
    assert calls.arguments(forward, [x, x]) == (([x, x],), {})
    assert calls.arguments(forward, (x, x)) == ((x, x), {})


def test_what_a_call_leaves_out_is_known_where_its_tensors_alone_make_it():
    x = networks.inputs(5, (8,))
    cases = {
        (): lambda x: x,
        (("flag", True),): lambda x, flag=True: x,
        None: lambda x, flag: x,
    }
    for expected, forward in cases.items():
        given = {"flag": False} if expected is None else {}
        assert calls.left_out(forward, calls.call_of(forward, (x,), given)[0]) == expected
    other = calls.call_of(cases[("flag", True),], (x,), {"flag": False})[0]
    assert calls.left_out(cases[("flag", True),], other) is None


def test_names_of_arguments_are_told_apart():
    assert calls.unique(["x", "x", "y", "x"]) == ("x", "x_1", "y", "x_2")


class Asks(nn.Module):
    """Gives a part and a layer those of its arguments that they say they take."""

    def __init__(self):
        super().__init__()
        self.part = models.two_layers(lambda self, x, twice=False: self.second(self.first(x)) * (1 + twice))
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        given = {"twice": True, "input": x, "unknown": 3}
        parameters = inspect.signature(self.part.forward).parameters
        y = self.part(x, **{name: value for name, value in given.items() if name in parameters})
        given["input"] = y if y.sum() < 1e9 else -y
        return self.last(**{name: given[name] for name in inspect.signature(self.last.forward).parameters})


def test_what_stands_in_the_place_of_a_forward_has_its_signature():
    model, x = networks.seeded(Asks), networks.inputs(5, (8,))
    for q in (qs.quantize(model, [x]), qs.quantize_dynamic(model), qs.quantize_dynamic(model, example=x)):
        for other in (q, copy.deepcopy(q)):
            with torch.no_grad():
                assert (other(x) - model(x)).abs().max() < 0.05
            for path, island in other.islands.items():
                assert inspect.signature(island) == inspect.signature(model.get_submodule(path).forward)


def kept_in_a_default(self, x, kept=[]):  # noqa: B006 - what is tested
    kept.append(len(kept))
    return self.second(self.first(x)) * len(kept)


EVERYBODYS: list[int] = []


class Scaled(nn.Linear):
    def forward(self, x, kept):
        return super().forward(x) * len(kept)


def kept_by_everybody(self, x):
    EVERYBODYS.append(len(EVERYBODYS))
    return self.second(self.first(x), EVERYBODYS)


@clause("STA-PARTS")
@pytest.mark.filterwarnings("ignore:66 % of the multiply", "ignore:module 'second'")
@pytest.mark.parametrize("forward", [kept_in_a_default, kept_by_everybody])
def test_arguments_that_are_others_at_each_call_leave_the_rest_to_be_captured(forward):
    model, x = models.two_layers(forward), networks.inputs(3, (8,))
    if forward is kept_by_everybody:
        model.second = Scaled(8, 4).eval()
    q = qs.quantize_dynamic(model, example=x)
    assert "first" in q.islands and "" not in q.islands
    before = q(x)
    after = q(x)
    assert not torch.equal(before, after)  # the list is read at each call


TENSORS = [torch.zeros(1), torch.zeros(2), torch.zeros(3)]
PLAIN = st.recursive(
    st.sampled_from([*TENSORS, 0, 1, 1.0, True, False, None, "a", ...]),
    lambda inner: st.lists(inner, max_size=2).flatmap(lambda items: st.sampled_from([items, tuple(items)])),
    max_leaves=3,
)  # fmt: skip


def taking(first, second=1, *others, named=None, **more):
    """A forward of every kind of argument."""


CALLS = st.tuples(st.lists(PLAIN, min_size=1, max_size=3), st.dictionaries(st.sampled_from(["named", "x"]), PLAIN))


@given(st.lists(CALLS, min_size=2, max_size=4))
def test_calls_of_one_key_have_one_pattern_and_its_tensors(drawn):
    found = {}
    for args, kwargs in drawn:
        key, tensors = calls.key_of(tuple(args), kwargs)
        pattern, expected = calls.call_of(taking, tuple(args), kwargs)
        assert sorted(map(id, tensors)) == sorted(map(id, expected))
        assert found.setdefault(key, pattern) == pattern
        (alike, _), (others, _) = (calls.key_of((*args,), more) for more in (kwargs, {**kwargs, "y": {}}))
        assert alike == key and others is None
