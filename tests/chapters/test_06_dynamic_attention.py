"""Chapter 6: attention in integers, on every engine."""

import copy
import math
import re
import warnings
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import networks
import programs
import quantspec as qs
import strategies as draws
from evidence import clause
from quantspec import chapters
from quantspec.capture.attention import weighted
from quantspec.engines import reference_attention, registry
from quantspec.ir import program
from quantspec.ir.attention import WRITTEN as WRITTEN_OUT
from quantspec.ir.program import Ref
from quantspec.numerics.attention import LOG2_E, POWER

spec = chapters.load("dynamic")
ENGINES = "reference", "compiled"


def run(engine, tensors, **options):
    """What an engine gives for queries, keys, values and perhaps a mask."""
    names = "qkvm"[: len(tensors)]
    return registry.engine(engine)(programs.attention(*names, **options))(dict(zip(names, tensors)))


def in_float(tensors, **options):
    return F.scaled_dot_product_attention(*tensors, **options)


def tensor(rows):
    return torch.tensor(rows, dtype=torch.float32)


def floats(g, *shape):
    """Normal numbers, of a size that differs from row to row."""
    x = g.normal(size=shape) * 2.0 ** g.integers(-3, 3, size=(*shape[:-1], 1))
    return torch.from_numpy(x.astype(np.float32))


@st.composite
def heads(draw, longest=9):
    """A generator, and how many queries, keys, features and features of values a head has."""
    return draw(draws.seeds()), *(draw(st.integers(1, longest)) for _ in range(4))


@clause("DYN-ATTENTION")
@pytest.mark.parametrize("engine", ENGINES)
@given(heads(), st.sampled_from([None, 1.0, -0.25, 40.0]), st.booleans(), st.data())
def test_attention_equals_the_definition(engine, head, scale, with_mask, data):
    g, length, keys, features, width = head
    q, k, v = floats(g, length, features), floats(g, keys, features), floats(g, keys, width)
    for x in (q, k, v):  # rows, and columns, without any size, and far too small for codes
        if data.draw(st.booleans()):
            x[data.draw(st.integers(0, len(x) - 1))] *= data.draw(st.sampled_from([0.0, 1e-40, 2.0**-100, 2.0**20]))
    mask = None
    if with_mask:
        mask = floats(g, length, keys)
        mask[torch.from_numpy(g.random((length, keys)) < 0.3)] = -math.inf
        mask[:, 0] = 0.5
    given_as = [x.tolist() for x in (q, k, v)]
    used = 1 / math.sqrt(features) if scale is None else scale
    expected = spec.attend(*given_as, used, None if mask is None else mask.tolist())
    got = run(engine, (q, k, v) if mask is None else (q, k, v, mask), scale=scale)
    assert got.tolist() == expected


@clause("DYN-ATTENTION")
def test_the_polynomial_is_the_chapters_and_near_the_power_of_two():
    assert tuple(map(float, POWER)) == spec.POWER and LOG2_E == spec.LOG2_E
    for x in np.linspace(-0.5, 0.5, 2001):
        power = 1 + x * np.polyval(spec.POWER[::-1], x)
        assert abs(power / 2.0**x - 1) <= 2.0**-18


# For each the shapes of queries, keys and values, that of a mask or None, and options.
SHAPES = {
    "heads": ((2, 3, 40, 16), (2, 3, 40, 16), (2, 3, 40, 16), None, {}),
    "another length of values": ((2, 3, 5, 7), (2, 3, 33, 7), (2, 3, 33, 21), None, {}),
    "one head alone": ((5, 7), (9, 7), (9, 3), None, {}),
    "a single row": ((3, 1, 8), (3, 1, 8), (3, 1, 8), None, {}),
    "many axes": ((2, 2, 2, 9, 4), (2, 1, 2, 6, 4), (2, 2, 1, 6, 4), None, {}),
    "shared keys": ((2, 6, 17, 8), (2, 2, 19, 8), (2, 2, 19, 8), None, {"enable_gqa": True}),
    "shared keys, from their own place back": (
        (2, 6, 19, 8), (2, 3, 19, 8), (2, 3, 19, 8), None, {"enable_gqa": True, "is_causal": True}
    ),
    "causal": ((2, 3, 70, 16), (2, 3, 70, 16), (2, 3, 70, 16), None, {"is_causal": True}),
    "causal, more keys": ((2, 33, 16), (2, 70, 16), (2, 70, 16), None, {"is_causal": True}),
    "causal, fewer keys": ((2, 70, 16), (2, 33, 16), (2, 33, 16), None, {"is_causal": True}),
    "a mask for all": ((2, 3, 33, 8), (2, 3, 50, 8), (2, 3, 50, 8), (33, 50), {}),
    "a mask for each sequence": ((2, 3, 33, 8), (2, 3, 50, 8), (2, 3, 50, 8), (2, 1, 1, 50), {}),
    "a mask for each head": ((2, 3, 33, 8), (2, 3, 50, 8), (2, 3, 50, 8), (2, 3, 33, 50), {}),
    "a mask for each query": ((2, 3, 33, 8), (2, 3, 50, 8), (2, 3, 50, 8), (33, 1), {}),
    "blocks of queries": ((1, 2, 300, 8), (1, 2, 1500, 8), (1, 2, 1500, 8), None, {}),
    "blocks of queries with a mask": ((1, 2, 300, 8), (1, 2, 1500, 8), (1, 2, 1500, 8), (300, 1500), {}),
    "blocks of queries, causal": ((2, 1500, 8), (2, 1500, 8), (2, 1500, 8), None, {"is_causal": True}),
    "another scale": ((2, 40, 16), (2, 40, 16), (2, 40, 16), None, {"scale": -0.7}),
}  # fmt: skip


def mask_of(g, shape):
    """Numbers, of which some are minus infinity, but not all of a row."""
    mask = torch.from_numpy(g.normal(size=shape).astype(np.float32))
    hidden = torch.from_numpy(g.random(shape) < 0.3)
    hidden[..., 0] = False
    return mask.masked_fill(hidden, -math.inf)


@clause("DYN-ATTENTION")
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", SHAPES)
def test_engines_agree_on_every_shape(name, threads):
    *shapes, mask, options = SHAPES[name]
    g = np.random.default_rng(len(name))
    tensors = [torch.from_numpy(g.normal(size=shape).astype(np.float32)) for shape in shapes]
    tensors += [mask_of(g, mask)] if mask else []
    expected = run("reference", tensors, **options)
    floats = in_float(tensors[:3], attn_mask=tensors[3] if mask else None, **options)
    assert expected.shape == floats.shape
    assert networks.far(expected, floats) < 0.05 * float(floats.abs().max())
    with networks.torch_threads(threads):
        got = run("compiled", tensors, **options)
        assert torch.equal(got, expected) and got.stride() == expected.stride()
        if mask:  # true: takes part
            seen = tensors[3] > -0.5
            seen[..., 0] = True
            assert torch.equal(*(run(engine, [*tensors[:3], seen], **options) for engine in ENGINES))


@clause("DYN-ATTENTION")
@pytest.mark.parametrize("engine", ENGINES)
def test_values_may_lie_in_memory_as_they_like(engine):
    g = np.random.default_rng(0)
    joined = torch.from_numpy(g.normal(size=(2, 19, 3, 4, 8)).astype(np.float32))
    usual = joined.permute(2, 0, 3, 1, 4)
    expected = run(engine, usual.contiguous())
    turned = usual.transpose(-1, -2).contiguous().transpose(-1, -2)
    wide = torch.cat([usual, usual], -1)[..., :8]
    for tensors in (usual, turned, wide, usual.flip(-2).flip(-2)):
        assert torch.equal(run(engine, tensors), expected)
    one = usual[:, :1, :1].expand(3, 2, 4, 19, 8)
    assert torch.equal(run(engine, one), run(engine, one.contiguous()))


@clause("DYN-ATTENTION")
@pytest.mark.parametrize("keys_turned,mask", [(False, (19, 1)), (False, (2, 4, 19, 1)), (True, None), (True, (19, 19))])
def test_values_that_lie_so_are_attended_to_again(keys_turned, mask):
    g = np.random.default_rng(0)
    shapes = (2, 4, 19, 8), (2, 4, 8, 19) if keys_turned else (2, 4, 19, 8), (2, 4, 19, 8), *([mask] if mask else [])
    keys = Ref("k" if keys_turned else "turned")
    told = Ref("q"), keys, Ref("v"), Ref("m") if mask else None, 0.3, False, None
    step = program.Attention("y", "function", WRITTEN_OUT, told, {}, "")
    before = () if keys_turned else (program.Call("turned", "method", "transpose", (Ref("k"), -2, -1), {}, ""),)
    names, called = "qkvm"[: len(shapes)], {("function", WRITTEN_OUT): weighted}
    network = program.Program("onnx", tuple(names), {}, (*before, step), Ref("y"), called)
    engines = [registry.engine(name)(network) for name in ENGINES]
    for _ in range(3):
        batch = {name: torch.from_numpy(g.normal(size=shape).astype(np.float32)) for name, shape in zip(names, shapes)}
        first, second = (engine(batch) for engine in engines)
        assert torch.equal(first, second)


@clause("DYN-ATTENTION")
def test_a_network_attends_to_one_shape_after_the_other():
    g = np.random.default_rng(0)
    network = programs.attention("q", "k", "v")
    engines = [registry.engine(name)(network) for name in ENGINES]
    for length in (5, 40, 5, 130, 40):
        batch = {name: torch.from_numpy(g.normal(size=(2, length, 8)).astype(np.float32)) for name in "qkv"}
        first, second = (engine(batch) for engine in engines)
        assert torch.equal(first, second)


@clause("DYN-ATTENTION-BOUND")
@given(heads(longest=24), st.sampled_from([None, 1.0, 3.0]), st.booleans())
def test_attention_is_near_its_real_value(head, scale, with_mask):
    g, length, keys, features, width = head
    q, k, v = floats(g, length, features), floats(g, keys, features), floats(g, keys, width)
    mask = mask_of(g, (length, keys)) if with_mask else torch.zeros(length, keys)
    scale = features**-0.5 if scale is None else scale
    got = run("reference", (q, k, v, mask), scale=scale).double()
    q, k, v, mask = (x.double() for x in (q, k, v, mask))
    weights = torch.softmax(q @ k.T * scale + mask, -1)
    s_q, s_k = (x.abs().amax(-1, keepdim=True) / 127 for x in (q, k))
    codes = s_k.T / 2 * q.abs().sum(-1, keepdim=True) + s_q / 2 * k.abs().sum(-1) + features / 4 * s_q * s_k.T
    finite = mask.masked_fill(mask == -math.inf, 0).abs().max()
    delta = (scale * codes).max() + 2.0**-20 * (scale * features * q.abs().max() * k.abs().max() + finite)
    largest = v.abs().amax(0)
    bound = largest * (torch.expm1(2 * delta) + 2.0**-14 * keys) + largest / 254
    # The sums of the test itself are off by a few 2^-53 of their largest term.
    assert ((got - weights @ v).abs() <= bound * (1 + 2.0**-40)).all()


@clause("DYN-ATTENTION-BOUND")
def test_many_small_weights_are_not_lost():
    keys = 4000  # each of which has a 1000th of the first one's weight: four times as much together
    k = torch.full((keys, 1), -math.log(1000.0))
    k[0] = 0.0
    v = torch.ones(keys, 1)
    v[0] = -1.0
    exact = (keys - 1 - 1000) / (keys - 1 + 1000)
    for engine in ENGINES:
        assert abs(float(run(engine, (torch.ones(1, 1), k, v))) - exact) < 0.02


def no_codes():
    """Queries, keys, values and options that have no codes."""
    g = np.random.default_rng(0)
    plain = [torch.from_numpy(g.normal(size=(2, 6, 4)).astype(np.float32)) for _ in range(3)]
    hidden = torch.zeros(6, 6)
    hidden[2] = -math.inf
    for place in range(3):
        for value in (math.nan, math.inf, -math.inf, 2.0**51, -(2.0**51)):
            tensors = [x.clone() for x in plain]
            tensors[place][1, 3, 2] = value
            yield f"{value} in argument {place}", tensors, {}
    yield "no key of a query is visible", [*plain, hidden], {}
    yield "no key of a query is visible, by truth values", [*plain, hidden == 0], {}
    for value in (math.nan, math.inf):
        mask = torch.zeros(6, 6)
        mask[3, 3] = value
        yield f"{value} in the mask", [*plain, mask], {}
    yield "scores of any size", plain, {"scale": 2.0**9}
    yield "float64", [x.double() for x in plain], {}
    yield "no queries", [plain[0][:, :0], *plain[1:]], {}
    yield "no batch", [x[:0] for x in plain], {}
    yield "too many keys", [plain[0][:1, :1], *(x[:1, :1].expand(1, 2**15, 4) for x in plain[1:])], {}


NO_CODES = list(no_codes())


@clause("DYN-ATTENTION-FLOAT")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("tensors,options", [case[1:] for case in NO_CODES], ids=[case[0] for case in NO_CODES])
def test_what_has_no_codes_is_torchs(engine, tensors, options):
    expected = in_float(tensors[:3], attn_mask=tensors[3] if len(tensors) > 3 else None, **options)
    # Exactly, but for NaN, which ``torch.equal`` tells from itself.
    torch.testing.assert_close(run(engine, tensors, **options), expected, rtol=0, atol=0, equal_nan=True)


@clause("DYN-ATTENTION-FLOAT")
@pytest.mark.parametrize("engine", ENGINES)
def test_the_largest_values_and_the_most_keys_have_codes(engine):
    g = np.random.default_rng(0)
    tensors = [torch.from_numpy(g.normal(size=(2, 6, 4)).astype(np.float32)) for _ in range(3)]
    for place in range(3):
        tensors[place][1, 3, 2] = 2.0**50
    assert not torch.equal(run(engine, tensors), in_float(tensors))
    most = [tensors[0][:1, :1], *(x[:1, :1].expand(1, 2**15 - 1, 4) for x in tensors[1:])]
    assert not torch.equal(run(engine, most), in_float(most))
    assert torch.equal(run(engine, most), run("reference", most))


class Attending(nn.Module):
    """Heads written out, with torch's function."""

    def __init__(self, **options):
        super().__init__()
        self.options = options
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, 2, 4).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, **self.options)
        return self.out(y.transpose(1, 2).reshape(batch, length, 8))


def kinds(q):
    return [type(step) for step in q.program.steps if "attend" in getattr(step, "target", "")
            or "attention" in getattr(step, "target", "")]  # fmt: skip


class Asked(nn.Module):
    """Whether queries see what comes behind them is an argument."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x, mask=None, is_causal=False):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal))


MODELS = {
    "with flags": Asked,
    "torch's function": Attending, "a module": networks.Heads, "a module, steps first": lambda: networks.Heads(False),
}  # fmt: skip


@clause("DYN-ATTENTION")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_networks_attend_in_codes(name, dynamic):
    model, x = networks.seeded(MODELS[name]), networks.inputs(3, (5, 8))
    q = qs.quantize_dynamic(model, example=x) if dynamic else qs.quantize(model, [x])
    assert kinds(q) == [program.Attention]
    with torch.no_grad():
        assert networks.far(q(x), model(x)) < 0.1 and torch.equal(q(x), q.run_on("reference")(x))
    assert re.search("attend|attention +attention", str(q))
    batch, length = (5, 3) if name == "a module, steps first" else (3, 5)
    work = batch * length * 8 * (32 + 2 * length)  # of the linear layers, and of scores and means
    if dynamic or q.report.counted:
        assert (q.report.share, q.report.macs) == (1.0, work)
    assert qs.compare(model, q, [x]).int8_macs == 1.0


@clause("DYN-ATTENTION-FLOAT")
@networks.mostly_attention
@pytest.mark.parametrize("build,options", [
    (Attending, {"dialect": "qnnpack"}), (Attending, {"dialect": "exact"}), (lambda: networks.Heads(read=True), {}),
    (lambda: Attending(dropout_p=0.5), {}),
    (lambda: nn.Sequential(networks.Heads(), nn.Linear(8, 8)), {"exclude": "0.attention"}),
])  # fmt: skip
def test_attention_stays_in_float(build, options):
    model, x = networks.seeded(build), networks.inputs(3, (5, 8))
    assert program.Attention not in kinds(qs.quantize_dynamic(model, example=x, **options))


@clause("DYN-ATTENTION-FLOAT")
@networks.mostly_attention
def test_attention_stays_in_float_with_quantized_weights_only():
    model, x = networks.seeded(Attending), networks.inputs(3, (5, 8))
    assert kinds(qs.quantize_dynamic(model, example=x, activations=None)) == [program.Call]


class Written(nn.Module):
    """Attention that a model writes out, by a function of queries, keys and values [batch, heads, length, features]."""

    def __init__(self, mean):
        super().__init__()
        self.mean, self.qkv, self.out = mean, nn.Linear(8, 24), nn.Linear(8, 8)
        self.dropout, self.softmax = nn.Dropout(0.1), nn.Softmax(dim=-1)
        self.register_buffer("bias", torch.linspace(-1, 1, 50).reshape(2, 5, 5))

    def forward(self, x):
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(self.mean(self, q, k, v).transpose(1, 2).reshape(batch, length, 8))


WRITTEN = {
    "divided": lambda m, q, k, v: m.dropout((q @ k.transpose(-2, -1) / 2.0).softmax(-1)) @ v,
    "scaled before": lambda m, q, k, v: torch.matmul(torch.softmax((q * 0.5) @ k.transpose(2, 3), dim=-1), v),
    "with a bias": lambda m, q, k, v: F.softmax(torch.matmul(q, k.mT) * 0.5 + m.bias, dim=-1).matmul(v),
    "a bias with scores": lambda m, q, k, v: m.softmax(m.bias + q.matmul(k.mT)) @ v,
    "of a type": lambda m, q, k, v: F.softmax(q @ k.mT, -1, dtype=torch.float32) @ v,
    "made of a type": lambda m, q, k, v: F.softmax(q @ k.mT, -1, dtype=torch.float32).to(torch.float32) @ v,
    "scaled by what stands before": lambda m, q, k, v: (0.5 * (q @ k.mT)).softmax(-1) @ v,
    "hidden": lambda m, q, k, v: F.softmax((q @ k.mT / 2).masked_fill(m.bias > 0.9, -math.inf), -1) @ v,
    "hidden by a number": lambda m, q, k, v: torch.softmax((q @ k.mT).masked_fill(m.bias > 0.9, -1e9), -1) @ v,
    "by batches": lambda m, q, k, v: torch.bmm(
        torch.softmax(torch.bmm(q.flatten(0, 1), k.flatten(0, 1).mT), -1), v.flatten(0, 1)
    ).unflatten(0, (-1, 2)),
}  # fmt: skip
OTHERWISE = {
    "over queries": lambda m, q, k, v: (q @ k.mT).softmax(-2) @ v,
    "scores are read elsewhere": lambda m, q, k, v: (s := q @ k.mT).softmax(-1) @ v + s.mean(),
    "weights are read elsewhere": lambda m, q, k, v: (w := (q @ k.mT).softmax(-1)) @ v + w.mean(),
    "scaled by a value": lambda m, q, k, v: (q @ k.mT * q.mean()).softmax(-1) @ v,
    "filled, and not hidden": lambda m, q, k, v: (q @ k.mT).masked_fill(m.bias > 0.9, -5.0).softmax(-1) @ v,
    "no product": lambda m, q, k, v: (q + k).softmax(-1) @ v.mT @ v,
    "weights behind values": lambda m, q, k, v: (v.mT @ (q @ k.mT).softmax(-1)).mT,
}  # fmt: skip


@clause("DYN-ATTENTION")
@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("dynamic", [False, True])
def test_attention_that_a_model_writes_out_is_in_codes(name, dynamic):
    model, x = networks.seeded(lambda: Written(WRITTEN[name])), networks.inputs(3, (5, 8))
    q = qs.quantize_dynamic(model, example=x) if dynamic else qs.quantize(model, [x])
    assert kinds(q) == [program.Attention]
    with torch.no_grad():
        assert networks.far(q(x), model(x)) < 0.1 and torch.equal(q(x), q.run_on("reference")(x))
        far = 2.0**60 * x  # values without codes are computed as the model does
        assert q(far).isfinite().all() == model(far).isfinite().all()
    assert q.report.share == 1.0 and qs.compare(model, q, [x]).int8_macs == 1.0


@clause("DYN-ATTENTION-FLOAT")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("hidden,seen", [(-math.inf, math.nan), (-1e9, 2.0), (-1e4, 2.0)])
def test_a_query_whose_keys_are_all_hidden_is_what_the_model_says(engine, hidden, seen):
    tensors = {name: torch.ones(3, 2) for name in ("q", "k")} | {"v": tensor([[1.0], [2.0], [3.0]])}
    tensors["m"] = torch.tensor([[False, True, True], [True, True, True], [False, False, False]])
    told = (*map(Ref, ("q", "turned", "v", "m")), 1.0, False, hidden)
    step = program.Attention("y", "function", WRITTEN_OUT, told, {}, "")
    turned = program.Call("turned", "method", "transpose", (Ref("k"), 0, 1), {}, "")
    called = {("function", WRITTEN_OUT): weighted}
    network = program.Program("onnx", tuple("qkvm"), {}, (turned, step), Ref("y"), called)
    got = registry.engine(engine)(network)(tensors)
    # A sum of three by torch.
    torch.testing.assert_close(got[1], tensor([seen]), rtol=0, atol=2.0**-20, equal_nan=True)
    # Half a step of values up to 3, and weights that are alike (DYN-ATTENTION-BOUND).
    torch.testing.assert_close(got[[0, 2]], tensor([[1.0], [2.0]]), rtol=0, atol=3 / 254 + 2.0**-20)


@clause("DYN-ATTENTION")
@networks.mostly_attention
@pytest.mark.parametrize("name", OTHERWISE)
def test_what_is_no_attention_stays_in_float(name):
    model, x = networks.seeded(lambda: Written(OTHERWISE[name])), networks.inputs(3, (5, 8))
    assert program.Attention not in kinds(qs.quantize_dynamic(model, example=x))


@clause("DYN-ATTENTION")
@pytest.mark.parametrize("name", ["divided", "with a bias"])
def test_attention_that_a_model_writes_out_is_stored_and_trained(name, tmp_path):
    model, x = networks.seeded(lambda: Written(WRITTEN[name])), networks.inputs(3, (5, 8))
    q = qs.quantize(model, [x])
    q.save(tmp_path / "q.safetensors")
    assert torch.equal(qs.load(tmp_path / "q.safetensors")(x), q(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of attention in float
        p = qs.prepare_qat(model, [x])
        p.train()
        p(x).sum().backward()
        p.eval()
        assert torch.equal(p(x), qs.convert(p)(x))


@clause("DYN-ATTENTION")
@pytest.mark.parametrize("name", MODELS)
def test_attention_is_stored(name, tmp_path):
    model, x = networks.seeded(MODELS[name]), networks.inputs(3, (5, 8))
    q = qs.quantize(model, [x])
    q.save(tmp_path / "q.safetensors")
    loaded = qs.load(tmp_path / "q.safetensors")
    assert kinds(loaded) == [program.Attention] and torch.equal(loaded(x), q(x))
    assert torch.equal(copy.deepcopy(q)(x), q(x))


@clause("DYN-ATTENTION", "QAT-EQUAL")
@pytest.mark.parametrize("name", MODELS)
def test_training_computes_attention_in_codes_with_the_gradient_of_float(name):
    model, x = networks.seeded(MODELS[name]), networks.inputs(3, (5, 8))
    p = qs.prepare_qat(model, [x, 3 * x]).eval()  # so that nothing is cut off, which has no gradient
    outputs, gradients = [], []
    for attended in (reference_attention.attended, lambda step, value: None):
        with mock.patch.object(reference_attention, "attended", attended):
            y = p(x)
            p.zero_grad()
            (y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum().backward()
        outputs.append(y.detach())
        gradients.append([w.grad.clone() for n, w in p.named_parameters() if "qkv" in n or "in_proj" in n])
    assert torch.equal(outputs[0], qs.convert(p)(x)) and not torch.equal(*outputs)
    assert gradients[0] and all(map(torch.equal, *gradients)) and all(g.any() for g in gradients[0])
