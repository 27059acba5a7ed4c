"""Models of every kind: what is captured is the model, the model is not touched, and what cannot be captured runs as
the Python that it is."""

import copy
import io
import math
import pickle
import threading
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import models
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import networks
import quantspec as qs
from evidence import clause
from quantspec.capture import builder, copies, parts, tracer
from quantspec.errors import ShapeError
from quantspec.numerics import accuracy

DECIBELS = 25.0
BUILTINS = range, max, min


def built(name: str) -> tuple[nn.Module, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        case = models.CASES[name]
        return case.build(), case.batch()


def snapshot(model: nn.Module) -> tuple:
    """What a model holds, by value where it is a tensor, by content otherwise."""
    held = {
        (path, name): copy.copy(value) if isinstance(value, (dict, list)) else value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
    }
    return held, {name: tensor.clone() for name, tensor in model.state_dict().items()}


def untouched(model: nn.Module, before: tuple) -> bool:
    held, state = snapshot(model)
    same = all(torch.equal(tensor, before[1][name]) for name, tensor in state.items())
    return same and held.keys() == before[0].keys() and all(
        value is before[0][key] or list(value) == list(before[0][key]) for key, value in held.items()
    )


def sqnr(expected: torch.Tensor, got: torch.Tensor) -> float:
    return accuracy.sqnr(expected.numpy(), got.numpy())


@clause("STA-SAME", "STA-PARTS", "STA-UNTOUCHED", "STA-CONSTANT")
@pytest.mark.parametrize("name", models.CASES)
def test_what_is_quantized_is_the_model_and_the_model_is_untouched(name):
    reference, x = built(name)
    model, _ = built(name)
    before, random = snapshot(model), torch.get_rng_state()
    q = qs.quantize(model, [x])
    with torch.no_grad():
        assert sqnr(reference(x), q(x)) > DECIBELS
    assert untouched(model, before) and torch.equal(torch.get_rng_state(), random)
    assert qs.compare(built(name)[0], q, [x]).int8_macs > 0.99


@clause("DYN-LAYERS", "DYN-EXAMPLE", "DYN-NO-CALIBRATION", "STA-UNTOUCHED")
@pytest.mark.parametrize("example", [False, True])
@pytest.mark.parametrize("name", [name for name, case in models.CASES.items() if case.dynamic])
def test_dynamic_quantization_keeps_the_model_too(name, example):
    reference, x = built(name)
    model, _ = built(name)
    before = snapshot(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without an example nothing of layer_called_in_two_ways can be quantized
        q = qs.quantize_dynamic(model, example=x if example else None)
    with torch.no_grad():
        assert sqnr(reference(x), q(x)) > DECIBELS
    assert untouched(model, before)
    if name != "layer_called_in_two_ways" or example:
        assert qs.compare(built(name)[0], q, [x]).int8_macs > 0.99


@clause("STA-SAME")
def test_a_difference_of_structure_type_shape_or_value_is_one():
    x = torch.tensor([1.0, -2.0, float("nan")])
    assert parts.difference((x, {"a": x}), (x.clone(), {"a": x + 0})) is None
    assert parts.difference(x, torch.tensor([1.0, -2.0 - 2.0**-18, float("nan")])) is None
    off, other = torch.tensor([1.0, -2.0 - 2.0**-16, float("nan")]), torch.tensor([1.0, -2.0, 0.0])
    for got in (off, x.double(), x[None], (x,), other, None):
        assert parts.difference(x, got) is not None
    assert parts.difference([x], (x,)) is not None and parts.difference([x], [x, x]) is not None
    assert parts.difference({"a": x}, {"b": x}) is not None and parts.difference((x, 3), (x, 4)) is not None
    assert parts.difference(torch.tensor([1, 2]), torch.tensor([1, 3])) is not None


@clause("STA-SAME")
def test_what_symbolic_tracing_gets_wrong_is_not_used():
    model, x = built("question_of_type")
    wrong = tracer.trace(copies.own_copy(model)).graph
    assert [node.layer for node in wrong.nodes] == ["second"]  # the first layer is lost
    q = qs.quantize(model, [x])
    assert [step.layer for _, network in q.networks() for step in network.program.layers] == ["first", "second"]


@clause("STA-SAME", "STA-STEPS")
def test_the_three_steps_compare_with_the_first_batch_too():
    model, x = built("question_of_type")
    prepared = qs.prepare(model)
    with torch.no_grad():
        assert torch.equal(prepared(x), model(x)) and torch.equal(prepared(x), model(x))
        assert torch.equal(qs.convert(prepared)(x), qs.quantize(model, [x, x])(x))
        assert qs.quantize(model, [x], engine="reference").engine == "reference"
    message = "^prepared: it has seen no values; call it with calibration data first$"
    with pytest.raises(qs.CalibrationError, match=message):
        qs.convert(qs.prepare(built("sizes_unpacked")[0]))


@clause("STA-PARTS")
def test_python_between_the_parts_goes_on_running():
    model, x = built("buffer_that_counts")
    q = qs.quantize(model, [x])
    reference = copy.deepcopy(model)
    with torch.no_grad():
        for _ in range(3):
            assert sqnr(reference(x), q(x)) > DECIBELS
    assert q.count.item() == 3 and model.count.item() == 0
    model, _ = built("attribute_that_is_kept")
    q = qs.quantize(model, [x])
    q(x)
    assert q.last.shape == (16, 8) and not hasattr(model, "last")


@clause("STA-PARTS", "STA-BATCH-SIZE")
@pytest.mark.parametrize("name", ["loop_over_time", "sizes_unpacked", "padding_computed_from_the_size"])
def test_sizes_stay_free(name):
    model, x = built(name)
    q = qs.quantize(model, [x])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        for other in (x[:1], x[:, :3] if name == "loop_over_time" else x[:2], x[..., :17, :] if x.ndim == 4 else x):
            assert sqnr(model(other), q(other)) > DECIBELS


READ_OTHERWISE = {
    "by numpy": lambda x: torch.from_numpy(np.zeros((len(x), 8), np.float32)) + float(np.sqrt(x.shape[0])),
    "as a number of numpy": lambda x: x * float(np.int64(x.shape[0]) / 16),
    "as a root": lambda x: x * math.sqrt(x.shape[0] / 2),
    "as text": lambda x: x * float(f"{x.shape[0]}"),
    "as a key": lambda x: x * {n: n / 16 for n in range(20)}[x.shape[0]],
    "as an index": lambda x: x * list(range(20))[x.shape[0]],
    "as bits": lambda x: x * (x.shape[0] & 3) + (x.shape[0] << 1),
    "as a length": lambda x: x * len([0] * x.shape[0]),
    "as a bound": lambda x: x * max(x.shape[0] - 9, 2) + min(x.shape[0], 9),
    "as a count": lambda x: sum((x * (step / 99) for step in range(x.shape[0])), x),
    "as a number of parts": lambda x: torch.cat([p * i for i, p in enumerate(x.split(7), 1)]),
    "as a number of chunks": lambda x: torch.cat([p * i for i, p in enumerate(torch.chunk(x, chunks=6), 1)]),
    "as a number of rows": lambda x: torch.stack([p * (i / 9) for i, p in enumerate(x.unbind())]),
    "by a method": lambda x: x * x.shape[0].bit_length(),
}


@clause("STA-SAME", "STA-WAYS")
@pytest.mark.parametrize("how", READ_OTHERWISE)
def test_a_size_that_python_reads_otherwise_is_never_that_of_another_batch(how):
    read = READ_OTHERWISE[how]
    model = models.two_layers(lambda self, x: self.second(self.first(x) + read(x) if isinstance(len(x), int) else x))
    x = networks.inputs(16, (8,))
    q = qs.quantize(model, [x])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is computed in float
        for rows in (16, 9, 5):
            assert sqnr(model(x[:rows]), q(x[:rows])) > DECIBELS


@clause("STA-WAYS")
@pytest.mark.parametrize("split", [
    lambda self, x: self.first(x).chunk(2, -1), lambda self, x: self.first(x).split(4, 1),
    lambda self, x: self.first(x).view(x.shape[0], 2, 4).permute(1, 0, 2).unbind(0),
    lambda self, x: self.first(x).reshape((x.shape[0], 4, 2)).transpose(1, 2).split([1, 1], 1),
    lambda self, x: F.linear(x, self.first.weight).chunk(2, dim=1),
])  # fmt: skip
def test_features_that_are_split_are_no_condition(split):
    def forward(self, x):
        assert x.shape[1] == 8  # what symbolic tracing does not get through
        one, other = split(self, x)
        return self.second(torch.cat([(one * other).reshape(-1, 4)] * 2, 1))

    model, x = models.two_layers(forward), networks.inputs(16, (8,))
    q = qs.quantize(model, [x])
    with torch.no_grad():
        for rows in (16, 5):
            assert sqnr(model(x[:rows]), q(x[:rows])) > DECIBELS
    (network,) = (network for _, network in q.networks())
    conditions = [step for step in network.program.steps if getattr(step, "target", "") == "torch._assert"]
    assert len(conditions) <= 2  # the number of axes, and what the model asks itself


@clause("STA-UNTOUCHED")
def test_another_thread_sees_nothing_of_the_capture():
    other, rows = networks.seeded(lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU())), networks.inputs(3, (8,))
    expected, called, seen = other(rows), nn.Module.__call__, []

    def look() -> None:
        seen.append((range, max, min) == BUILTINS and torch.equal(other(rows), expected))

    def forward(self, x):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        return self.second(self.first(x)) * torch.ones(*x.shape)[:, :1]

    model, x = models.two_layers(forward), networks.inputs(16, (8,))
    q = qs.quantize(model, [x])
    assert len(seen) > 3 and all(seen) and nn.Module.__call__ is called

    def again() -> None:
        seen.append(torch.equal(qs.quantize(model, [x])(x), q(x)))

    threads = [threading.Thread(target=again) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(seen) and nn.Module.__call__ is called and (range, max, min) == BUILTINS


@clause("STA-PARTS")
def test_what_a_trace_raises_is_told_with_its_place_and_is_no_error(monkeypatch):
    class Failing(nn.Linear):
        def forward(self, x):
            if type(x) is not torch.Tensor or torch.overrides._get_current_function_mode() is not None:
                raise KeyError("mine")
            return F.linear(x, self.weight)

    model, x = networks.seeded(lambda: nn.Sequential(Failing(8, 8), nn.Linear(8, 4))), networks.inputs(5, (8,))
    with pytest.warns(UserWarning, match=r"^33 % of .* in int8; the rest: 0 \(67 %, Python: 'mine' .*line"):
        q = qs.quantize(model, [x])
    assert sqnr(model(x).detach(), q(x)) > DECIBELS
    assert any(stop.path == "0" and "mine" in str(stop) and "test_capture.py, line" in str(stop) for stop in q.stops)

    def broken(*args):
        raise KeyError("ours")

    monkeypatch.setattr(builder.GraphBuilder, "build", broken)
    with pytest.warns(UserWarning, match="nothing was quantized"):
        q = qs.quantize(built("flag")[0], [x])
    assert torch.equal(q(x), built("flag")[0](x)) and any("ours" in str(stop) for stop in q.stops)
    for model in (built("flag")[0], nn.Sequential(nn.Linear(8, 4)).eval()):
        with pytest.warns(UserWarning, match="nothing was quantized"):
            q = qs.quantize_dynamic(model)
        assert torch.equal(q(x), model(x)) and all("ours" in str(stop) for stop in q.stops) and q.stops


@clause("STA-UNTOUCHED", "STA-SAME")
def test_an_attribute_that_is_no_number_is_no_change():
    model, x = built("flag")
    model.limit = float("nan")
    q = qs.quantize(model, [x])
    assert [path for path, _ in q.networks()] == [""] and q.limit is model.limit


PRODUCTS = {
    "addmm": (lambda s, x: torch.addmm(s.b, x.view(-1, 8), s.w).view(*x.shape[:-1], 6), (8, 6)),
    "matmul": (lambda s, x: torch.matmul(x, s.w) + s.b, (8, 6)),
    "a transposed weight": (lambda s, x: s.b + x @ s.w.t(), (6, 8)),
    "from the left": (lambda s, x: s.w @ x, (6, 5)),
    "bmm": (lambda s, x: torch.bmm(x.transpose(0, 1), s.w), (5, 8, 6)),
    "einsum": (lambda s, x: torch.einsum("btd,dhk->bthk", x, s.w), (8, 2, 3)),
    "einsum that orders axes": (lambda s, x: torch.einsum("hdk, btd -> bhtk", s.w, x), (2, 8, 3)),
    "einsum over two axes": (lambda s, x: torch.einsum("...td,tdo->...o", x, s.w), (5, 8, 3)),
    "einsum of any axes": (lambda s, x: torch.einsum("...td,ts->...sd", x, s.w), (5, 3)),
    "einsum of any axes that orders others": (
        lambda s, x: torch.einsum("...btd,do->...otb", x, s.w), (8, 3),
    ),
    "einsum of any axes over a middle one": (lambda s, x: torch.einsum("...tdu,do->...tuo", x[..., None], s.w), (8, 3)),
    "einsum of a list": (lambda s, x: torch.einsum("btd,do->bto", [x, s.w]), (8, 3)),
    "einsum with a weight for each row": (lambda s, x: torch.einsum("btd,tdo->bot", x, s.w), (5, 8, 3)),
}


@clause("STA-PRODUCT")
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_with_a_parameter_are_linear_layers_by_any_name(name, recorded):
    product, shape = PRODUCTS[name]

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.b = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.randn(6))

        def forward(self, x):
            assert not recorded or x.shape[-1] == 8  # what symbolic tracing does not get through
            return product(self, x).relu()

    model, x = networks.seeded(Model), networks.inputs(3, (5, 8))
    q, d = qs.quantize(model, [x]), qs.quantize_dynamic(model, example=x)
    with torch.no_grad():
        for network in (q, d):
            assert sqnr(model(x), network(x)) > DECIBELS
            biases = {layer.bias is not None for layer in network.program.layers}
            assert biases == {shape[-1] in (6, 8) and len(shape) == 2 and name != "from the left"}
            assert not any("add" in getattr(step, "target", "") for step in network.program.steps)


@clause("STA-PRODUCT")
def test_products_with_what_is_no_parameter_are_none():
    model = networks.seeded(lambda: nn.Linear(8, 8, bias=False))
    model.register_buffer("table", torch.randn(8, 8))
    model.register_buffer("wide", torch.randn(8, 65))
    model.vector, model.many = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(65, 2, 3))
    for forward in (
        lambda x: x @ model.table, lambda x: torch.einsum("bd,d->bd", x, model.vector),
        lambda x: torch.outer(x[0], model.vector), lambda x: x @ model.vector,
        lambda x: torch.einsum("bd,de->b", x, model.weight), lambda x: torch.einsum("bd,de", x, model.weight),
        lambda x: torch.einsum("bd,dd->bd", x, model.weight), lambda x: torch.einsum("bd,...d->bd...", x, model.vector),
        lambda x: torch.einsum("bd,de,ef->bf", x, model.weight, model.weight), lambda x: torch.addmm(x[:, 0], x, x.t()),
        lambda x: torch.einsum("bd,d...->b...", x, model.weight), lambda x: torch.addmm(x[0], x, model.table),
        lambda x: torch.einsum("bgi,gio->bgo", torch.stack([x @ model.wide] * 2, -1), model.many),
    ):  # fmt: skip
        model.forward = forward
        with pytest.warns(UserWarning, match="nothing was quantized"):
            q = qs.quantize(model, [x := networks.inputs(5, (8,))])
        assert torch.equal(q(x), model(x))


@clause("STA-PRODUCT")
def test_a_product_with_a_buffer_stays_in_float():
    class Angles(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 64)
            self.register_buffer("table", torch.randn(64, 2))

        def forward(self, x):
            return self.layer(x).relu() @ self.table

    q = qs.quantize(networks.seeded(Angles), [networks.inputs(5, (64,))])
    assert [layer.layer for layer in q.program.layers] == ["layer"]


ANGLES = {
    "sine and cosine": lambda s, x: torch.cat([torch.sin(x @ s.w), torch.cos(x @ s.w)], -1),
    "of a multiple": lambda s, x: (2 * torch.pi * (x @ s.w)).cos(),
    "of a multiple and a phase": lambda s, x: torch.sin(torch.matmul(x, s.w) / 3 + s.b),
    "and read by others too": lambda s, x: torch.cat([(y := x @ s.w).sin(), y], -1),
}


@clause("STA-PRODUCT")
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("name", ANGLES)
def test_a_product_that_is_an_angle_stays_in_float(name, recorded):
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.b = nn.Parameter(100 * torch.randn(8, 6)), nn.Parameter(torch.randn(6))
            self.layer = nn.LazyLinear(256)

        def forward(self, x):
            assert not recorded or x.shape[-1] == 8
            return self.layer(ANGLES[name](self, x))

    model, x = networks.seeded(Positions), networks.inputs(5, (8,))
    model(x)
    for q in (qs.quantize(model, [x]), qs.quantize_dynamic(model, example=x)):
        assert [layer.layer for layer in q.program.layers] == ["layer"]
        with torch.no_grad():
            assert sqnr(model(x), q(x)) > DECIBELS


@clause("STA-IN-PLACE", "STA-ARGUMENTS")
def test_python_between_the_parts_does_not_write_to_the_inputs():
    def forward(self, x):
        x.mul_(2.0)
        return self.second(self.first(x)) if x.sum() > -1e9 else x

    model, x = models.two_layers(forward), networks.inputs(5, (8,))
    before, expected = x.clone(), model(x.clone()).detach()
    prepared, dynamic = qs.prepare(model), qs.quantize_dynamic(model)
    assert torch.equal(prepared(x), expected) and torch.equal(x, before)
    for q in (qs.convert(prepared), dynamic):
        assert sqnr(expected, q(x)) > DECIBELS and torch.equal(x, before)


@clause("STA-WAYS")
def test_another_way_to_call_is_computed_in_float():
    model, x = built("flag")
    q = qs.quantize(model, [x])
    unseen = "called with arguments or sizes that did not occur in calibration"
    with torch.no_grad(), pytest.warns(UserWarning, match=unseen):
        assert torch.equal(q(x, features=True), networks.with_codes_of(model, q)(x, features=True))
    with torch.no_grad():
        assert torch.equal(q(x, False), q(x)) and torch.equal(q(x=x), q(x))


@clause("STA-WAYS")
def test_calls_in_another_order_or_with_other_constants_are_told_apart_every_time():
    def forward(self, x, y, scale=1, *, shift=None):
        out = self.second(self.first(x) - y) * scale if x.sum() > -1e9 else x  # its parts are called
        return self.inner(x, y, scale=scale) + out

    model, x, y = models.two_layers(forward), networks.inputs(5, (8,)), networks.inputs(6, (8,))[:5] * 0.5
    model.inner = models.two_layers(lambda self, x, y, scale=1: self.second(self.first(x) - y) * scale)
    model.eval()
    q = qs.quantize(model, [(x, y), (y, x), (x, x)])
    island, held = q.islands["inner"], networks.with_codes_of(model, q)
    with torch.no_grad():
        for _ in range(3):
            assert sqnr(model(x, y), q(x, y)) > DECIBELS and sqnr(model(y, x), q(y, x)) > DECIBELS
            assert sqnr(model.inner(x, y), island(y=y, x=x)) > DECIBELS and sqnr(model.inner(x, x), island(x, x)) > 20
            assert sqnr(model.inner(x, y), island(x, scale=1, y=y)) > DECIBELS and island.unseen == 0
        for scale in (True, 1.0, 2):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that it is computed in float
                for _ in range(2):
                    assert torch.equal(island(x, y, scale=scale), held.inner(x, y, scale=scale))
        assert island.unseen == 6


@dataclass
class Answer:
    """What a model gives."""

    scores: torch.Tensor
    rows: list[torch.Tensor]
    loss: torch.Tensor | None = None


class Pair(NamedTuple):
    """What another gives."""

    first: torch.Tensor
    second: dict[str, torch.Tensor]


OUTPUTS = {
    "dataclass": lambda y: Answer(y, [y, y + 1]),
    "named tuple": lambda y: Pair(y, {"again": y * 2}),
    "ordered dict": lambda y: OrderedDict(out=y, aux=y * 2),
    "torch's own tuple": lambda y: y.aminmax(dim=1),
    "a dataclass in a tuple": lambda y: (Answer(y, []), y),
}


@clause("STA-PARTS", "STA-SAME")
@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_is_of_the_type_that_it_was(name):
    output = OUTPUTS[name]
    inner = networks.seeded(lambda: models.two_layers(lambda self, x: output(self.second(self.first(x).relu()))))
    outer = models.two_layers(lambda self, x: self.inner(x if x.sum() > -1e9 else -x))
    outer.inner = inner
    x = networks.inputs(5, (8,))
    for model in (inner, outer.eval()):
        q = qs.quantize(model, [x])
        assert list(getattr(q, "islands", {"": q})) == ["" if model is inner else "inner"]
        with torch.no_grad():
            got, expected = q(x), model(x)
        assert type(got) is type(expected) and parts.difference(expected, got, bound=0.05) is None
        assert torch.utils._pytree.tree_structure(got) == torch.utils._pytree.tree_structure(expected)
        assert parts.difference(got, copy.deepcopy(q)(x), 0) is None
    assert parts.difference(Answer(x, [x]), Answer(x, [x + 1])) and parts.difference(Answer(x, []), Answer(x, [], x))


class Branching(nn.Module):
    """Python that decides by a size."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x):
        return self.first(x) if x.shape[0] > 4 else self.second(x)


@clause("STA-WAYS")
def test_sizes_for_which_what_was_captured_does_not_stand_are_computed_in_float():
    model = networks.seeded(Branching)
    x = networks.inputs(16, (8,))
    q = qs.quantize(model, [x])
    with torch.no_grad():
        assert sqnr(model(x[:9]), q(x[:9])) > DECIBELS
        with pytest.warns(UserWarning, match="this call runs in float"):
            assert torch.equal(q(x[:3]), networks.with_codes_of(model, q)(x[:3]))


@pytest.mark.parametrize(
    "size, condition, other",
    [
        (lambda x: 8 if x.shape[0] > 4 else 6, "(x.size(0) > 4) is True", (3, 8, 8)),
        (lambda x: int(x.shape[1] * 1.25), "((x.size(1) * 1.25) == 10.0) is True", (6, 16, 8)),
        (lambda x: x.shape[1] // 2 + (0 if x.shape[0] == 3 else 1), "(x.size(0) == 3) is False", (3, 8, 8)),
    ],
)
def test_a_loaded_network_says_for_which_sizes_it_was_captured(tmp_path, size, condition, other):
    def forward(self, x):
        assert isinstance(x, torch.Tensor)  # what symbolic tracing does not get through
        return self.second(self.first(nn.functional.interpolate(x.transpose(1, 2), size(x)).transpose(1, 2)))

    model, x = models.two_layers(forward), networks.inputs(6, (8, 8))
    q = qs.quantize_dynamic(model, example=x)
    q.save(tmp_path / "q.safetensors")
    loaded = qs.load(tmp_path / "q.safetensors")
    assert torch.equal(loaded(x), q(x))
    with pytest.raises(ShapeError, match="^batch: the network was captured where ") as error:
        loaded(networks.inputs(1, other)[0])
    assert f"where {condition} ({__file__}, line " in str(error.value)


@clause("STA-CONSTANT")
def test_a_computed_weight_is_quantized_as_the_value_that_it_has():
    model, x = built("standardized_weights")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where nothing was quantized, the next line tells it
        q = qs.quantize(model, [x])
    steps = [step for step in q.program.layers]
    for layer, step in zip((model[0], model[2]), steps, strict=True):
        w = layer.weight.detach()
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        error = torch.from_numpy(step.w_qparams.dequantize(step.weight)) - w
        scale = torch.tensor(step.w_qparams.scale).reshape(-1, 1, 1, 1)
        assert (error.abs() <= scale * 0.51).all()


@clause("STA-COPY", "STA-PARTS")
def test_copies_of_a_model_with_parts_compute_the_same():
    model = networks.seeded(lambda: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)))
    model[0].register_forward_hook(print_nothing)
    x = networks.inputs(5, (8,))
    for q in (qs.quantize(model, [x]), qs.quantize_dynamic(model)):
        y = q(x)
        assert torch.equal(copy.deepcopy(q)(x), y) and torch.equal(pickle.loads(pickle.dumps(q))(x), y)
        assert torch.equal(q.run_on("reference")(x), y)
        file = io.BytesIO()
        torch.save(q, file)
        file.seek(0)
        assert torch.equal(torch.load(file, weights_only=False)(x), y)
        with pytest.raises(ValueError, match="cannot be trained"):
            q.train()
        assert not q.training and q.nbytes > 0


def print_nothing(module, inputs, output):
    return None


@clause("STA-PARTS")
def test_what_is_no_single_network_says_which_python_is_in_the_way(tmp_path):
    model, x = built("decision_by_data")
    q = qs.quantize(model, [x])
    dynamic = qs.quantize_dynamic(model)
    hooked, x = built("hook_that_changes_the_input")
    cases = (q, "2 of them: .*reads values of a tensor.*line"), (dynamic, "2 of them: the forward of Model .*, line")
    for network, message in (*cases, (qs.quantize(hooked, [x]), "1 of them: hooks of Sequential .*, line")):
        for needs_one in (lambda network=network: qs.export_onnx(network), lambda network=network: network.program):
            with pytest.raises(qs.UnsupportedError, match=f"expected a single network, got Python around {message}"):
                needs_one()
    model, x = built("optional_argument")
    q = qs.quantize(model, [x])
    q.save(tmp_path / "q")
    assert torch.equal(qs.load(tmp_path / "q")(x), q(x))


@clause("STA-UNTOUCHED")
def test_a_model_that_torch_refuses_to_copy_is_copied_all_the_same():
    model = nn.Sequential(models.weight_norm_by_hook(nn.Linear(8, 4)), nn.ReLU()).eval()
    with pytest.raises(RuntimeError):
        copy.deepcopy(model)
    x = networks.inputs(5, (8,))
    assert sqnr(model(x).detach(), qs.quantize(model, [x])(x)) > DECIBELS
    model = networks.seeded(lambda: nn.Sequential(nn.Linear(8, 4)))
    model.handle = (part for part in ())  # a generator cannot be copied
    assert sqnr(model(x).detach(), qs.quantize(model, [x])(x)) > DECIBELS


@clause("STA-UNTOUCHED")
def test_wrappers_are_looked_through_and_torchscript_is_refused(monkeypatch):
    # DataParallel moves the model to a GPU that is there.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model, x = networks.seeded(networks.Perceptron), networks.inputs()
    expected = qs.quantize(model, [x])(x)
    wrappers = nn.DataParallel, torch.optim.swa_utils.AveragedModel, torch.compile
    for wrap in (*wrappers, lambda model: torch.compile(nn.DataParallel(model))):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's compiler reads its own old modules
            wrapped = wrap(model).eval()
        assert torch.equal(qs.quantize(wrapped, [x])(x), expected)
        deep = nn.Sequential(wrapped).eval()
        q = qs.quantize(deep, [x])
        assert torch.equal(q(x), expected) and qs.compare(deep, q, [x]).int8_macs == 1.0 and deep[0] is wrapped
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.script(model)
    for quantize in (lambda: qs.quantize(script, [x]), lambda: qs.prepare(script), lambda: qs.quantize_dynamic(script)):
        with pytest.raises(qs.UnsupportedError, match="is TorchScript"):
            quantize()


@clause("STA-ARGUMENTS")
def test_a_list_is_one_argument_where_the_model_takes_one():
    def forward(self, images: list[torch.Tensor]):
        return self.second(self.first(images[0]) + images[1])

    model, x = models.two_layers(forward), networks.inputs(5, (8,))
    with torch.no_grad():
        for batch in ([x, x * 0.5], ([x, x * 0.5],)):
            for q in (qs.quantize(model, [batch]), qs.quantize_dynamic(model, example=batch)):
                assert sqnr(model([x, x * 0.5]), q([x, x * 0.5])) > DECIBELS


@clause("STA-SAME")
def test_the_model_runs_beside_its_graph_on_the_first_batch_alone():
    runs = []

    def note(x, kind=type):  # where tracing does not look for it
        runs.append(kind(x))

    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            note(x)
            return self.layer(x).relu()

    prepared = qs.prepare(Counted().eval())
    prepared(torch.randn(2, 4))
    assert runs.count(torch.Tensor) == 1
    prepared(torch.randn(2, 4)), prepared.observe(torch.randn(2, 4))
    assert runs.count(torch.Tensor) == 1
