"""What the tracer says of one module, call or error, and attention on windows beside torchvision's."""

import importlib
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from graph_text import numbered, text
from networks import seeded
from quantspec.capture import acting, attention, copies, tracer
from quantspec.capture.builder import GraphBuilder
from quantspec.errors import UnsupportedError
from quantspec.ir.float_graph import Act
from quantspec.ir.program import Call
from quantspec.torchvision_compat import import_torchvision
from told import exactly

# Both add the same products of numbers near 1 in float32, in another order. An addition rounds by at most 2^-24 of its
# result; some hundred and fifty of them lie before an output of two layers, and sixteen before one of attention alone.
NEAR, NEARER = 150 * 2**-24, 16 * 2**-24


class Own(nn.Linear):
    def forward(self, x):
        return x


class Scripted(copies.SCRIPTS):
    """As what is compiled, which has no forward that could be compared."""

    def __init__(self):
        nn.Module.__init__(self)


def derived(kind, *args):
    return type("Derived", (kind,), {})(*args)


def named(name, place):
    """A module of a class of that name in a module of that name."""
    return type(name, (nn.Module,), {"__module__": place})()


def test_which_modules_are_layers_whose_forward_is_known():
    instead, hooked, weighted = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
    instead.forward = torch.relu
    hooked.register_forward_pre_hook(lambda m, x: None)
    weighted.table = torch.ones(2)
    computed = nn.Linear(2, 2)
    computed.table = torch.ones(2)
    computed.register_forward_pre_hook(lambda m, x: None)
    layers = [nn.Linear(2, 2), derived(nn.Linear, 2, 2), nn.Embedding(2, 2), nn.GRUCell(2, 2), hooked, weighted,
              named("Conv1D", "transformers.a")]  # fmt: skip
    others = [Own(2, 2), nn.Conv1d(2, 2, 1), nn.LayerNorm(2), instead, computed, Scripted(),
              named("Conv1D", "other.a"), named("Conv2D", "transformers.a"),
              named("Conv1D", "transformersa")]  # fmt: skip
    assert [*map(tracer.is_layer, layers)] == [True] * 7 and [*map(tracer.is_layer, others)] == [False] * 9


def test_kinds_of_modules():
    kinds = [nn.Linear(2, 2), Own(2, 2), nn.ReLU(), nn.Module(), nn.Sequential(), nn.ModuleList(), derived(nn.Module)]
    assert [*map(tracer.is_kind_of_layer, kinds)] == [True, True, True, False, False, False, False]
    held = [nn.Linear(2, 2), nn.BatchNorm2d(2), nn.ReLU(), nn.Sequential(nn.Embedding(2, 2))]
    assert [*map(tracer.has_layers, held)] == [True, False, False, True]
    parametrized = nn.Linear(2, 2)
    parametrize.register_parametrization(parametrized, "weight", nn.Identity())
    wholes = [nn.Linear(2, 2), nn.ReLU(), parametrized, torch.ao.nn.quantized.FloatFunctional()]
    others = [Own(2, 2), nn.Sequential(), nn.MultiheadAttention(2, 1), nn.TransformerDecoderLayer(2, 1, 2),
              nn.DataParallel(nn.ReLU()), named("Linear", "torchnn")]  # fmt: skip
    is_whole = tracer.Tracer.is_whole
    assert [*map(is_whole, wholes)] == [True] * 4 and [*map(is_whole, others)] == [False] * 6


def frames(*files):
    return [(types.SimpleNamespace(f_code=types.SimpleNamespace(co_filename=file)), line)
            for line, file in enumerate(files, start=1)]  # fmt: skip


def test_the_place_of_an_error_is_the_last_one_of_the_user():
    own = "/home/own.py", "/home/other.py"
    assert tracer.innermost(frames(*own, "/x/torch/a.py", "<eval>", "/x/quantspec/a.py")) == "/home/other.py, line 2"
    assert tracer.innermost(frames("/x/torch/a.py", own[0], "<a")) == "/home/own.py, line 2"
    assert tracer.innermost(frames("/x/torch/a.py", "<eval>")) == tracer.innermost([]) == ""


def test_only_what_torch_would_compile_is_refused_as_that():
    compilers = type("Failing", (Exception,), {"__module__": "torch._dynamo.exc"})("told")
    told = ("model: it has torch compile a function, as torch.cond does (), which cannot be quantized; write it with "
            "Python's if")  # fmt: skip
    for error in (compilers, NotImplementedError("a HigherOrderOperator")):
        with pytest.raises(UnsupportedError, match=exactly(told)) as raised:
            tracer.refuse_compiled(error)
        assert raised.value.__cause__ is error
    for error in (NotImplementedError("other"), ValueError("a HigherOrderOperator"), ValueError("other")):
        tracer.refuse_compiled(error)


def test_arguments_with_their_defaults_are_left_out_from_behind():
    lstm, pool = nn.LSTM(2, 2), named("Takes", "a")
    pool.forward = lambda x, size=2, stride=None: x
    for module, args, left in (
        (lstm, (1, None), (1,)), (lstm, (1, 2), (1, 2)), (lstm, (None, None), (None,)), (lstm, (), ()),
        (pool, (1, 2, None), (1,)), (pool, (1, 2, 3), (1, 2, 3)), (pool, (1, 3, None), (1, 3)),
        (pool, (1, 2, None, None), (1, 2, None, None)),
    ):  # fmt: skip
        assert tracer.used(module, args, {"a": 1}) == (left, {"a": 1})


def test_lists_and_dicts_hold_again_what_they_held():
    inner, row = {"a": 1}, [2]
    outer = [inner, (row, 3)]
    found = tracer.contents(((outer,), {"b": inner}))
    assert [id(held) for held, _ in found] == [id(held) for held in (outer, inner, row)] + [id(found[3][0]), id(inner)]
    inner["c"], row[:] = 5, [7, 8]
    outer.append(4)
    for container, content in found:
        tracer.refill(container, content)
    assert outer == [inner, (row, 3)] and inner == {"a": 1} and row == [2]
    assert tracer.contents(5) == []


def test_a_layer_alone_has_its_inputs_with_their_defaults():
    up = nn.ConvTranspose1d(2, 2, 1)
    for module, path, inputs in (
        (nn.Linear(2, 2), "a.b", [("x", ())]), (nn.LSTM(2, 2), "", [("x", ()), ("hx", (None,))]), (up, "", [("x", ())]),
    ):  # fmt: skip
        graph = tracer.alone(module, path)
        *given, call, output = graph.nodes
        assert [(node.target.replace("input", "x"), node.args) for node in given] == inputs
        assert (call.op, call.target, call.args, output.args) == ("call_module", path, tuple(given), (call,))


def test_a_layer_is_traced_without_its_hooks():
    model = numbered(nn.Sequential(nn.Linear(2, 2), nn.Embedding(2, 2)))
    model[0].register_forward_hook(lambda m, x, y: y)
    model[0].register_forward_pre_hook(lambda m, x: None)
    assert text(tracer.trace_layer(model, "0")).splitlines()[:2] == [
        "(input)", "0: Linear(x='input', layer='0', weight=float32[2, 2]:7.5, bias=float32[2]:4.25) @0",
    ]  # fmt: skip
    turned = named("Conv1D", "transformers.a")
    turned.weight, turned.bias = nn.Parameter(torch.arange(6.0).reshape(2, 3)), nn.Parameter(torch.ones(3))
    graph = tracer.trace_layer(nn.Sequential(turned).eval(), "0")
    (layer,) = graph.nodes
    assert (layer.name, layer.x, layer.layer, layer.bias.tolist()) == ("output", "x", "0", [1, 1, 1])
    assert layer.weight.tolist() == [[0, 3], [1, 4], [2, 5]] and layer.weight.flags.c_contiguous
    assert (graph.inputs, graph.defaults, graph.callables, graph.calls, graph.paths) == (
        ("x",), {}, {}, {"0": 1}, {"output": "0"},
    )  # fmt: skip
    assert graph.output.name == "output"


SIZES = [((4, 4), (2, 2), (1, 1)), ((5, 3), (2, 2), (1, 1)), ((2, 5), (2, 3), (1, 2)), ((3, 3), (4, 2), (0, 0)),
         ((6, 4), (3, 2), (0, 1)), ((6, 4), (3, 2), (2, 0))]  # fmt: skip


@pytest.mark.parametrize("size, window, shift", SIZES)
def test_attention_in_windows_is_torchvisions_in_both_modes(size, window, shift):
    swin = import_torchvision() and importlib.import_module("torchvision.models.swin_transformer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for drops in ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5)):
            m = swin.ShiftedWindowAttention(4, [*window], [*shift], 2, attention_dropout=drops[0], dropout=drops[1])
            nn.init.normal_(m.relative_position_bias_table)
            x = torch.randn(2, *size, 4)
            for training in (False, True):
                m.train(training)
                torch.manual_seed(4)
                expected = m(x)
                torch.manual_seed(4)
                assert torch.allclose(attention.window_attention(m, x), expected, atol=NEAR)


def test_transformers_are_written_out_with_their_masks():
    drawn = torch.Generator().manual_seed(1)
    t = seeded(lambda: nn.Transformer(4, 2, 2, 2, 4, batch_first=True))  # with gradients, so that torch fuses nothing
    source, target = torch.randn(2, 3, 4, generator=drawn), torch.randn(2, 5, 4, generator=drawn)
    masks = {name: torch.where(torch.rand(shape, generator=drawn) < 0.3, -2.0, 0.5) for name, shape in {
        "src_mask": (3, 3), "tgt_mask": (5, 5), "memory_mask": (5, 3), "src_key_padding_mask": (2, 3),
        "tgt_key_padding_mask": (2, 5), "memory_key_padding_mask": (2, 3),
    }.items()}  # fmt: skip
    none = dict.fromkeys(masks)
    for given in (none, masks, *(none | {name: mask} for name, mask in masks.items())):
        expected = t(source, target, **given)
        for write in (attention.transformer, attention.whole_transformer):
            assert torch.allclose(write(t, source, target, **given), expected, atol=NEAR)
        source_masks = {"mask": given["src_mask"], "src_key_padding_mask": given["src_key_padding_mask"]}
        expected = t.encoder(source, **source_masks)
        for write in (attention.encoder, attention.whole_encoder):
            assert torch.allclose(write(t.encoder, source, **source_masks), expected, atol=NEAR)
        own = {"src_mask": given["src_mask"], "src_key_padding_mask": given["src_key_padding_mask"]}
        expected = t.encoder.layers[0](source, **own)
        for write in (attention.encoder_layer, attention.whole_encoder_layer):
            assert torch.allclose(write(t.encoder.layers[0], source, **own), expected, atol=NEAR)
        own = {name: mask for name, mask in given.items() if not name.startswith("src")}
        expected = t.decoder(target, source, **own)
        for write in (attention.decoder, attention.whole_decoder):
            assert torch.allclose(write(t.decoder, target, source, **own), expected, atol=NEAR)
    t.encoder.norm = t.decoder.norm = None
    assert torch.allclose(attention.transformer(t, source, target), t(source, target), atol=NEAR)
    m, given = t.encoder.layers[0].self_attn, (source, source, source, masks["src_key_padding_mask"])
    expected = m(*given, attn_mask=masks["src_mask"])
    for got, output in zip(attention.whole_multihead(m, *given, masks["src_mask"]), expected):
        assert torch.allclose(got, output, atol=NEARER)


class Alone:
    """What an alignment needs of builders to compare trees."""


def test_trees_of_both_modes_are_laid_beside_each_other():
    graph, training = torch.fx.Graph(), torch.fx.Graph()
    x, y = (g.placeholder("x") for g in (graph, training))
    other = graph.placeholder("other")
    beside = acting.Alignment(graph, training, Alone(), Alone())
    beside.images[y] = {x}

    def merged(mine, others):
        differing = []
        return beside.merged(mine, others, lambda a, b: ("pair", a, b), differing), differing

    pair = ("pair", x, y)
    for mine, others, expected, differing in (
        (x, y, pair, []), ((x, 1), (y, 1), (pair, 1), []), ([x, 1], [y, 2], [pair, 1], [2]), ((1,), [1], (1,), []),
        ({"a": x, "b": 1}, {"a": y, "b": 1}, {"a": pair, "b": 1}, []), (1, 1.0, 1, [1.0]), (1, True, 1, [True]),
        ({"a": 1, "b": 2}, {"c": 3}, {"a": 1, "b": 2}, ["a", "b", "c"]), (None, None, None, []), ("a", "b", "a", ["b"]),
        (slice(x, 1, None), slice(y, 2, None), slice(pair, 1, None), [2]), (slice(1, 2, 3), slice(1, 2, 4),
         slice(1, 2, 3), [4]), ((1, [2, {"a": x}]), (1, [5, {"a": y}]), (1, [2, {"a": pair}]), [5]),
        ((1,), 1, (1,), [1]), ({"a": 1}, [1], {"a": 1}, [[1]]), (slice(1), 1, slice(1), [1]),
    ):  # fmt: skip
        found = merged(mine, others)
        assert (found[0], sorted(found[1], key=str)) == (expected, differing) and type(found[0]) is type(expected)
    for mine, others in ((other, y), (x, 1), (1, y), (x, x), ((1, 2), (1,)), ({"a": x}, {}), ({}, {"a": y}),
                         ({"a": (x,)}, {"a": (1,)}), (slice(x), slice(1))):  # fmt: skip
        with pytest.raises(acting.Mismatch):
            merged(mine, others)


def test_random_numbers_of_python_and_torch_are_noticed_and_taken_back():
    state, pythons = torch.get_rng_state(), acting.python_random()
    for draw in (lambda: torch.rand(1), lambda: np.random.rand(), lambda: __import__("random").random()):
        with pytest.raises(UnsupportedError, match=exactly("why")), acting.no_draws("why"):
            draw()
    with pytest.raises(UnsupportedError, match=exactly(acting.DRAWS)), acting.no_draws():
        torch.rand(1)
    with acting.no_draws("why"):
        pass
    assert torch.equal(torch.get_rng_state(), state) and acting.python_random() == pythons


def test_what_scales_goes_behind_the_relu_that_alone_reads_it():
    drop, step = nn.Dropout(), Call("drop", "module", "drop", (), {}, "")
    function = Call("f", "function", "torch.nn.functional.dropout2d", (), {}, "")
    act, other = (Act((step,), "drop", (), {("module", "drop"): what}) for what in (drop, nn.ELU()))
    model = nn.ModuleDict({"relu": nn.ReLU(), "own": nn.ReLU6()})
    for given, reader, also, moves in (
        (act, torch.relu, False, True), (act, "relu", False, True), (act, nn.functional.relu, False, True),
        (act, "own", False, False), (act, torch.tanh, False, False), (other, torch.relu, False, False),
        (act, torch.relu, True, False), (Act((function,), "f", (), {}), torch.relu, False, True),
        (Act((step, function), "f", (), {("module", "drop"): drop}), torch.relu, False, False),
    ):  # fmt: skip
        graph = torch.fx.Graph()
        x = graph.placeholder("x")
        mark = graph.call_function(acting.marked, (x, "act0"))
        relu = graph.call_method(reader, (mark,)) if isinstance(reader, str) else graph.call_function(reader, (mark,))
        last = graph.call_method("exp", (relu,))
        graph.output((last, mark) if also else last)
        acting.behind_relu(mark, given, GraphBuilder(model))
        order = [node.name for node in graph.nodes]
        if moves:
            assert (relu.args, mark.args, last.args) == ((x,), (relu, "act0"), (mark,))
            assert order.index(relu.name) + 1 == order.index(mark.name)
        else:
            assert (relu.args, mark.args, last.args) == ((mark,), (x, "act0"), (relu,))
