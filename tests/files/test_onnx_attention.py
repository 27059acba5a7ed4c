"""Attention and recurrent layers as operators of ONNX: in codes bit by bit, in float as torch computes."""

import itertools
import re
from functools import partial

import numpy as np
import pytest
import torch
from onnx_graph import agrees, in_graph
from torch import nn

import quantspec
from networks import inputs
from quantspec.engines.reference_attention import attended
from quantspec.ir import program as ir
from quantspec.ir.attention import OURS, TORCHS, WRITTEN
from quantspec.numerics.affine import QParams
from quantspec.onnx_export import attention, float_ops, recurrent
from quantspec.onnx_export.builder import Graph, Tensor
from told import exactly

Q, K, V = inputs(2, (3, 5, 4)), inputs(2, (3, 6, 4), 1), inputs(2, (3, 6, 7), 2)
NAMES = ("q", "k", "v", "m")


def step_of(target, *more, mask=None, **kwargs):
    names = [ir.Ref(name) for name in "qkv"]
    masked = {} if mask is None else {"mask" if target == WRITTEN else "attn_mask": mask}
    return ir.Attention("step", "function", target, (*names, *more), {**masked, **kwargs}, "")


def known_features(x):
    """A tensor of open lengths whose number of features is known, as that of a linear layer's output is."""
    return lambda g, t: Tensor(t.name, (*t.shape[:-1], x.shape[-1]))


def made_of(step, features):
    def make(g, *xs):
        xs = [Tensor(x.name, (*x.shape[:-1], n)) for x, n in zip(xs, features)]
        return attention.attention(g, step, dict(zip(NAMES, xs)))

    return make


def same(step, *tensors):
    """The joined values; a module of attention gives no weights beside them."""

    def reference(*given):
        found = attended(step, dict(zip(NAMES, given)).__getitem__)
        assert found is not None
        return found

    def make(g, *xs):
        made = made_of(step, [x.shape[-1] for x in tensors])(g, *xs)
        if step.target != OURS:
            return made
        joined, weights = made
        assert weights is None
        return joined

    agrees(make, lambda *given: reference(*given)[0] if step.target == OURS else reference(*given), *tensors)


MASKS = [None, inputs(5, (6,), 3), 100 * inputs(1, (6,), 3), inputs(2, (3, 5, 6), 4)]


@pytest.mark.parametrize("mask", MASKS, ids=["none", "rows", "one row", "each"])
@pytest.mark.parametrize("scale", [None, 0.3, -0.7, 40.0])
def test_attention_by_torchs_function(mask, scale):
    for times in (1.0, 2.0**20, 0.0, 2.0**-140):
        same(step_of(TORCHS, mask=mask, scale=scale), Q * times, K, V)
        same(step_of(TORCHS, mask=mask, scale=scale), Q, K * times, V * times)


def test_attention_without_heads_or_with_more_axes():
    for mask in (None, inputs(5, (6,), 3)):
        same(step_of(TORCHS, mask=mask), Q[0], K[0], V[0])
        same(step_of(TORCHS, mask=mask), Q[None], K[None], V[None])


@pytest.mark.parametrize("factor, divides", [(1.0, False), (0.5, False), (3, True), (-2.0, True)])
def test_attention_that_is_written_out(factor, divides):
    keys = K.transpose(-2, -1)
    for mask in MASKS:
        same(step_of(WRITTEN, mask=mask, factor=factor, divides=divides), Q, keys, V)
    hidden = torch.eye(5, 6) > 0
    same(step_of(WRITTEN, mask=hidden, factor=factor, divides=divides, hidden=-1e9), Q, keys, V)


def test_a_mask_of_written_out_attention_may_be_computed():
    keys, mask = K.transpose(-2, -1), inputs(5, (6,), 3)
    same(step_of(WRITTEN, mask=ir.Ref("m"), factor=0.5), Q, keys, V, mask)
    same(step_of(WRITTEN, mask=ir.Ref("m"), factor=0.5, hidden=-1e9), Q, keys, V, torch.eye(5, 6) > 0)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("mask", [None, inputs(5, (6,), 3)], ids=["all", "masked"])
def test_attention_of_a_module(batch_first, mask):
    each = [inputs(2, (length, 8), length) for length in (5, 6, 6)]
    q, k, v = each if batch_first else [x.transpose(0, 1).contiguous() for x in each]
    for weights in (False, True):
        same(step_of(OURS, 2, batch_first, mask=mask, need_weights=weights), q, k, v)


CONSTANT = [
    (step_of(TORCHS), (Q, K, V)), (step_of(WRITTEN, factor=0.5), (Q, K.transpose(-2, -1), V)),
    (step_of(OURS, 2, True), (inputs(2, (5, 8)), inputs(2, (6, 8), 1), inputs(2, (6, 8), 2))),
]  # fmt: skip


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("step, tensors", CONSTANT, ids=["torchs", "written", "module"])
def test_what_attends_or_is_attended_to_may_be_a_constant(step, tensors, which):
    """Such as queries that are learned."""
    names = [name for name in "qkv" if name != "qkv"[which]]
    others = [tensor for name, tensor in zip("qkv", tensors) if name in names]
    expected = attended(step, dict(zip("qkv", tensors)).__getitem__)

    def make(g, *xs):
        given = [Tensor(x.name, (*x.shape[:-1], other.shape[-1])) for x, other in zip(xs, others)]
        made = attention.attention(g, step, {"qkv"[which]: tensors[which], **dict(zip(names, given))})
        return made[0] if step.target == OURS else made

    found, _ = in_graph(make, *others)
    assert np.array_equal(found[0][1], expected[0] if step.target == OURS else expected)


def test_in_float_it_may_be_a_constant_too():
    attend, x = float_ops.FUNCTIONS["scaled_dot_product_attention"], inputs(2, (6, 8), 1)

    def both(g, k, v, x):
        x = Tensor(x.name, (*x.shape[:-1], 8))
        return attend(g, Q, k, v), float_ops.attend(g, inputs(2, (5, 8)), x, x, 2, True)[0]

    def given(g, q, k, v, y, x):
        q, y, x = (Tensor(t.name, (*t.shape[:-1], n)) for t, n in ((q, 4), (y, 8), (x, 8)))
        return attend(g, q, k, v), float_ops.attend(g, y, x, x, 2, True)[0]

    constants, _ = in_graph(both, K, V, x)
    tensors, _ = in_graph(given, Q, K, V, inputs(2, (5, 8)), x)
    for (_, a), (_, b) in zip(constants, tensors, strict=True):
        # Sums of at most 8 products in another order: each misses the exact one by 8 * 2^-24 of its largest partial
        # sum, both by 1e-6; what a score misses is averaged in the sum behind it.
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


TRUTHS = torch.eye(5, 6) > 0
REFUSED = {
    "a mask that is computed, or of truth values": step_of(TORCHS, mask=TRUTHS),
    "a mask that is computed, or of truth values ": step_of(TORCHS, mask=ir.Ref("m")),
    "attention whose heads share keys": step_of(TORCHS, enable_gqa=True),
    "attention with a causal mask of its own, or dropout": step_of(TORCHS, is_causal=True),
    "attention with a mask for each sequence": step_of(OURS, 2, True, mask=inputs(2, (5, 6))),
    "attention with a mask for each sequence ": step_of(OURS, 2, True, key_padding_mask=TRUTHS),
}


@pytest.mark.parametrize("message", REFUSED)
def test_other_attention_is_refused(message):
    made = made_of(REFUSED[message], (4, 4, 7, 6))
    tensors = (inputs(2, (5, 8)), inputs(2, (6, 8)), inputs(2, (6, 8)), inputs(5, (6,)))
    if REFUSED[message].target == TORCHS:
        tensors = (Q, K, V, tensors[-1])
    with pytest.raises(quantspec.UnsupportedError, match=exactly(message.strip())):
        in_graph(made, *tensors)


def test_attention_in_codes_is_not_that_in_float():
    def both(g, *xs):
        xs = dict(zip(NAMES, (Tensor(x.name, (*x.shape[:-1], n)) for x, n in zip(xs, (4, 4, 7)))))
        attend = float_ops.FUNCTIONS["scaled_dot_product_attention"]
        return attention.attention(g, step_of(TORCHS), xs), attend(g, *xs.values())

    ((_, codes), (_, floats)), _ = in_graph(both, Q, K, V)
    assert 0 < np.abs(codes - floats).max() < 0.05


# --- in float

# Sums of at most 8 products, one behind the other three times, by two libraries.
SUMS = {"rtol": 1e-5, "atol": 2e-6}


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("mask", [None, inputs(5, (6,), 3)], ids=["all", "masked"])
@pytest.mark.parametrize("weights", [None, True, False])
def test_a_module_in_float_is_torchs(batch_first, mask, weights):
    """With its weights, of each head or of all on average, if they are asked for."""
    x = [inputs(2, (n, 8), n) if batch_first else inputs(n, (2, 8), n) for n in (5, 6, 7)][:2]
    module = nn.MultiheadAttention(8, 2, batch_first=batch_first, bias=False)
    one = torch.eye(8)
    module.in_proj_weight.data, module.out_proj.weight.data = one.repeat(3, 1), one
    options = {"need_weights": weights is not None, "average_attn_weights": bool(weights), "attn_mask": mask}

    def make(g, q, k):
        q, k = (Tensor(x.name, (*x.shape[:-1], 8)) for x in (q, k))
        more = {"need_weights": weights is not None, "average": bool(weights), "attn_mask": mask}
        made = float_ops.attend(g, q, k, k, 2, batch_first, **more)
        assert (made[1] is None) is (weights is None)
        return [each for each in made if each is not None]

    def function(q, k):
        return [each for each in module(q, k, k, **options) if each is not None]

    agrees(make, function, *x, bound=SUMS)


FOR_EACH = "attention with a mask for each sequence"
MASKED = [
    (Tensor("m", (5, 6)), "a mask that is computed, or of truth values"), (Tensor("m", (2, 5, 6)), FOR_EACH),
    (inputs(2, (5, 6)), FOR_EACH),
]  # fmt: skip


@pytest.mark.parametrize("mask, message", MASKED)
def test_a_module_in_float_takes_a_constant_mask_for_all(mask, message):
    def make(g, x):
        x = Tensor(x.name, (*x.shape[:-1], 8))
        return float_ops.attend(g, x, x, x, 2, True, mask)[0]

    with pytest.raises(quantspec.UnsupportedError, match=exactly(message)):
        in_graph(make, inputs(2, (5, 8)))


def test_attention_needs_a_batch_axis():
    with pytest.raises(quantspec.UnsupportedError, match=exactly("attention without a batch axis")):
        in_graph(lambda g, x: float_ops.attend(g, x, x, x, 2, True)[0], inputs(5, (8,)))


# --- recurrent layers


def cell(inputs_, gates, state, seed, bias, per_channel):
    generator = np.random.default_rng(seed)

    def weight(columns):
        count = gates * state
        scale = generator.uniform(0.002, 0.01, count if per_channel else ()).astype(np.float32)
        return generator.integers(-127, 128, (count, columns)).astype(np.int8), QParams(
            scale, np.array(0), -127, 127, axis=0 if per_channel else None
        )

    biases = [generator.normal(size=gates * state).astype(np.float32) if bias else None for _ in range(2)]
    return ir.Cell(*weight(inputs_), biases[0], *weight(state), biases[1])


KINDS = {
    "lstm": (nn.LSTM, 4, {}), "gru": (nn.GRU, 3, {}), "rnn_tanh": (nn.RNN, 1, {}),
    "rnn_relu": (nn.RNN, 1, {"nonlinearity": "relu"}),
}  # fmt: skip


def layers(kind, count, both, batch_first, bias=True, per_channel=True, state=None):
    """A step, and torch's module with its weights."""
    module, gates, options = KINDS[kind]
    directions = 2 if both else 1
    cells = tuple(
        cell(4 if number < directions else 3 * directions, gates, 3, number, bias, per_channel)
        for number in range(count * directions)
    )
    twin = module(4, 3, count, bias=bias, batch_first=batch_first, bidirectional=both, **options)
    names = [f"l{layer}{end}" for layer in range(count) for end in ("", "_reverse")[:directions]]
    for name, of in zip(names, cells, strict=True):
        parts = {
            "weight_ih": of.input_qparams.dequantize(of.input_weight), "bias_ih": of.input_bias,
            "weight_hh": of.state_qparams.dequantize(of.state_weight), "bias_hh": of.state_bias,
        }  # fmt: skip
        for part, values in parts.items():
            if values is not None:
                getattr(twin, f"{part}_{name}").data.copy_(torch.from_numpy(values))
    return ir.Recurrent("step", "x", state, "layer", kind, cells, both, batch_first, False), twin


def leaves_of(output, last):
    return [output, *(last if isinstance(last, tuple) else (last,))]


FORMS = list(itertools.product([1, 2], [False, True], [False, True]))


@pytest.mark.parametrize("count, both, batch_first", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_recurrent_layer_is_torchs(kind, count, both, batch_first):
    states = 2 if kind == "lstm" else 1
    refs = [ir.Ref("h"), ir.Ref("c")][:states]
    x = inputs(2, (5, 4))
    given = [inputs(count * (1 + both), (2 if batch_first else 5, 3), seed) for seed in (3, 4)[:states]]
    for per_channel in (False, True):
        for state in (None, tuple(refs) if kind == "lstm" else refs[0]):
            step, twin = layers(kind, count, both, batch_first, per_channel is True, per_channel, state)

            def make(g, x, *starts, step=step):
                return recurrent.recurrent(g, step, {"x": x, **dict(zip("hc", starts))})

            def function(x, *starts, twin=twin, step=step):
                start = None if step.state is None else starts if kind == "lstm" else starts[0]
                return leaves_of(*twin(x, start))

            agrees(make, function, x, *(given if state is not None else ()), bound=SUMS)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_the_first_state_and_the_input_may_be_constants(kind):
    states = (inputs(1, (5, 3), 1), inputs(1, (5, 3), 2))[: 2 if kind == "lstm" else 1]
    refs = (ir.Ref("h"), ir.Ref("c")) if kind == "lstm" else ir.Ref("h")
    step, twin = layers(kind, 1, False, False, state=refs)
    x = inputs(2, (5, 4))
    with torch.no_grad():
        expected = leaves_of(*twin(x, states if kind == "lstm" else states[0]))
    held = {"x": x, **dict(zip("hc", states))}
    for name in ("x", "h"):  # the only one that is none
        made = partial(lambda name, g, t: recurrent.recurrent(g, step, held | {name: t}), name)
        agrees(made, lambda t: expected, held[name], bound=SUMS)


def test_a_step_that_is_single_or_has_no_batch_is_refused():
    step, _ = layers("lstm", 1, False, False)
    with pytest.raises(quantspec.UnsupportedError, match=exactly("LSTM without a batch axis")):
        in_graph(lambda g, x: recurrent.recurrent(g, step, {"x": x}), inputs(5, (4,)))
    step, _ = layers("gru", 1, False, False)
    single = ir.Recurrent("step", "x", None, "layer", "gru", step.cells, False, False, False, True)
    with pytest.raises(quantspec.UnsupportedError, match=exactly("GRU for a single step")):
        in_graph(lambda g, x: recurrent.recurrent(g, single, {"x": x}), inputs(5, (4,)))


def test_constants_of_a_recurrent_layer_are_named_by_what_they_are():
    g, (step, _) = Graph(), layers("lstm", 1, True, False)
    recurrent.recurrent(g, step, {"x": Tensor("x", ("steps", "batch", 4))})
    kinds = {re.sub(r"_\d+$", "", tensor.name) for tensor in g.initializers}
    assert kinds == {"weight", "scale", "zero_point", "bias", "ints"}
    assert [node.op_type for node in g.nodes].count("LSTM") == 1


def test_calls_of_one_layer_share_no_weights_that_may_be_made_unsigned():
    step, twin = layers("gru", 1, False, False)

    def make(g, x, y):
        made = [recurrent.recurrent(g, step, {"x": each})[0] for each in (x, y)]
        kinds = [tensor.data_type for tensor in g.initializers]
        assert kinds.count(3) == 8  # int8: two weights of each call, and the zero points of each
        return made

    x, y = inputs(5, (2, 4)), inputs(3, (2, 4), 1)
    agrees(make, lambda x, y: [twin(x)[0], twin(y)[0]], x, y, bound=SUMS)
