"""Calls of attention by head: which can be computed in codes, and what the queries, keys, values and masks of each
head are. And codes that lie in memory in another order."""

import copy
import pickle
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from quantspec.capture.attention import attend
from quantspec.ir import attention
from quantspec.ir.attention import OURS, TORCHS, WRITTEN
from quantspec.ir.held import Held, changed, codes_shape, held, held_by, hold
from quantspec.ir.program import Call, Linear, Move, Ref
from quantspec.numerics.affine import QParams
from told import exactly


def call(target, *args, kind="function", **kwargs):
    return Call("y", kind, target, args, kwargs, "")


def values(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def heads(target, *args, **kwargs):
    return attention.heads(call(target), args, kwargs)


def softly(given):
    """What the heads give in float64."""
    scores = given.query.double() @ given.key.double().transpose(-2, -1) * given.scale
    if given.mask is not None:
        scores = scores + given.mask
    if given.causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), float("-inf"))
    return given.joined(scores.softmax(-1) @ given.value.double())


def near(a, b):
    """Torch's float32 sums of a few values of size 1."""
    return a.shape == b.shape and float((a - b).abs().max()) < 2.0**-18


QKV = values(2, 3, 5, 4), values(2, 3, 6, 4, seed=1), values(2, 3, 6, 7, seed=2)
HIDDEN = torch.rand(5, 6, generator=torch.Generator().manual_seed(0)) < 0.3
HIDDEN[:, 0] = False


@pytest.mark.parametrize("options", [
    {}, {"scale": -0.5}, {"is_causal": True}, {"attn_mask": values(5, 6)}, {"attn_mask": ~HIDDEN},
    {"attn_mask": values(2, 1, 1, 6)}, {"attn_mask": values(5, 1)},
], ids=["plain", "scale", "causal", "mask", "seen", "of batches", "of queries"])  # fmt: skip
def test_torchs_attention_by_head_is_torchs(options):
    assert near(softly(heads(TORCHS, *QKV, **options)), F.scaled_dot_product_attention(*QKV, **options).double())


@pytest.mark.parametrize("causal", [False, True])
def test_heads_that_share_keys_are_torchs(causal):
    q, k, v = values(2, 6, 5, 4), values(2, 3, 5, 4, seed=1), values(2, 3, 5, 7, seed=2)
    options = {"enable_gqa": True, "is_causal": causal}
    expected = F.scaled_dot_product_attention(q, k, v, **options).double()
    assert near(softly(heads(TORCHS, q, k, v, **options)), expected)
    assert heads(TORCHS, q, k, v, attn_mask=values(5, 5), enable_gqa=True) is None
    assert heads(TORCHS, q[:, :5], k, v, enable_gqa=True) is None
    assert heads(TORCHS, q, k, v[:, :1], enable_gqa=True) is None
    assert heads(TORCHS, q[0, 0], k[0, 0], v[0, 0], enable_gqa=True) is None
    assert near(softly(heads(TORCHS, q[0], k[0], v[0], enable_gqa=True)), F.scaled_dot_product_attention(
        q[0], k[0], v[0], enable_gqa=True).double())  # fmt: skip


PADDING = torch.arange(6) >= torch.tensor([[6], [4]])
SEVERAL = values(2 * 2, 5, 6, seed=5)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("masks", [
    {}, {"attn_mask": values(5, 6)}, {"attn_mask": HIDDEN}, {"attn_mask": SEVERAL}, {"key_padding_mask": PADDING},
    {"attn_mask": SEVERAL, "key_padding_mask": PADDING}, {"attn_mask": HIDDEN, "key_padding_mask": PADDING},
], ids=["none", "floats", "hidden", "of heads", "padding", "both", "both hidden"])  # fmt: skip
def test_attention_of_modules_by_head_is_theirs(first, masks):
    q, k, v = values(2, 5, 8), values(2, 6, 8, seed=1), values(2, 6, 12, seed=2)
    if not first:
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    expected, _ = attend(q, k, v, 2, first, **masks)
    given = heads(OURS, q, k, v, 2, first, **masks)
    got, weights = softly(given)
    assert near(got, expected.double()) and weights is None and given.query.shape == (2, 2, 5, 4)


def test_attention_of_modules_without_a_batch_is_theirs():
    q, k, v = values(5, 8), values(6, 8, seed=1), values(6, 8, seed=2)
    for first in (False, True):
        expected, _ = attend(q, k, v, 2, first, key_padding_mask=PADDING[1])
        assert near(softly(heads(OURS, q, k, v, 2, first, key_padding_mask=PADDING[1]))[0], expected.double())
    assert heads(OURS, q, k[None], v[None], 2, True) is None and heads(OURS, *QKV, 2, True) is None


def test_attention_that_is_written_out_has_keys_turned_and_a_factor():
    q, k, v = QKV
    turned, mask = k.transpose(-2, -1), values(5, 6)
    for told, scores in (
        ({}, q @ turned), ({"factor": 0.25}, q @ turned * 0.25), ({"factor": 4.0, "divides": True}, q @ turned / 4.0),
        ({"mask": mask, "factor": 0.5}, q @ turned * 0.5 + mask),
        ({"mask": HIDDEN, "hidden": float("-inf")}, (q @ turned).masked_fill(HIDDEN, float("-inf"))),
    ):  # fmt: skip
        assert near(softly(heads(WRITTEN, q, turned, v, **told)), (scores.softmax(-1) @ v).double())
    assert heads(WRITTEN, q, turned, v, mask=HIDDEN) is None
    assert heads(WRITTEN, q, turned, v, mask=mask, hidden=float("-inf")) is None


def test_values_that_do_not_fit_have_no_heads():
    q, k, v = QKV
    odd = {
        "features": (q, k[..., :3], v), "lengths": (q, k, v[..., :5, :]),
        "batches": (q, k[:1].expand(3, -1, -1, -1), v), "a type": (q.double(), k, v), "one axis": (q[0, 0, 0], k, v),
        "no tensor": (q, None, v), "sparse": (q, k, v.to_sparse()),
        "no queries": (q[..., :0, :], k, v), "no batch": (q[:0], k[:0], v[:0]), "no values": (q, k, v[..., :0]),
    }  # fmt: skip
    assert [name for name, given in odd.items() if heads(TORCHS, *given) is not None] == []
    for mask in (values(5, 4), values(4, 6), values(3, 1, 5, 6), values(5, 6).double(), values(6), 3.0):
        assert heads(TORCHS, *QKV, attn_mask=mask) is None
    assert heads(TORCHS, *QKV, attn_mask=values(5, 6), is_causal=True) is None
    assert heads(TORCHS, *QKV, is_causal=1) is None and heads(TORCHS, *QKV, enable_gqa=None) is None


def test_a_mask_of_one_column_is_that_of_all_keys():
    assert heads(TORCHS, *QKV, attn_mask=values(5, 1)).mask.shape == (5, 6)
    assert heads(TORCHS, *QKV, attn_mask=values(2, 1, 1, 1)).mask.shape == (2, 1, 1, 6)
    assert heads(TORCHS, *QKV, attn_mask=values(2, 3, 5, 1)).mask.shape == (2, 3, 5, 6)
    of_one = [x[0, 0] for x in QKV]
    assert heads(TORCHS, *of_one, attn_mask=values(5, 1)).mask.shape == (5, 6)


def test_no_sum_of_codes_leaves_int32():
    size = lambda *shape: torch.Size(shape)  # noqa: E731
    assert attention.fit_together(size(1, 2**15), size(2**15 - 1, 2**15), size(2**15 - 1, 1), None)
    assert not attention.fit_together(size(1, 4), size(2**15, 4), size(2**15, 1), None)
    assert not attention.fit_together(size(1, 2**15 + 1), size(3, 2**15 + 1), size(3, 1), None)


@pytest.mark.parametrize("target,more,codes", [
    (TORCHS, {}, True), (TORCHS, {"dropout_p": 0.1}, False), (TORCHS, {"dropout_p": Ref("p")}, False),
    (TORCHS, {"is_causal": True}, True), (TORCHS, {"is_causal": Ref("c")}, True), (TORCHS, {"is_causal": 1}, False),
    (TORCHS, {"enable_gqa": None}, False), (TORCHS, {"scale": 2}, True), (TORCHS, {"scale": 0.5}, True),
    (TORCHS, {"scale": Ref("s")}, False), (OURS, {"heads": 2, "batch_first": True}, True),
    (OURS, {"dropout": 0.5}, False),
    (OURS, {"need_weights": True}, True), (OURS, {"need_weights": "yes"}, False),
    (WRITTEN, {}, True), (WRITTEN, {"factor": 0}, False), (WRITTEN, {"factor": Ref("f")}, False),
    (WRITTEN, {"factor": 2}, True),
    (WRITTEN, {"divides": 1}, False), (WRITTEN, {"hidden": -1e9}, True), (WRITTEN, {"hidden": 0.0}, False),
    ("torch.matmul", {}, False),
])  # fmt: skip
def test_attention_has_codes_where_all_that_it_depends_on_is_known(target, more, codes):
    given = call(target, Ref("q"), Ref("k"), Ref("v"), **more)
    assert attention.has_codes(given, False) is codes
    other = call(target, Ref("q"), Ref("k"), Ref("v"), kind="method", **more)
    assert attention.has_codes(other, False) is False


def test_attention_whose_weights_are_read_has_no_codes():
    asked = call(OURS, Ref("q"), Ref("k"), Ref("v"), need_weights=True)
    assert attention.has_codes(asked, False) and not attention.has_codes(asked, True)
    assert attention.has_codes(call(OURS, Ref("q"), Ref("k"), Ref("v")), True)


def test_weights_are_read_by_whoever_takes_more_than_the_first_item():
    def item(name, index):
        return Call(name, "function", "operator.getitem", (Ref("y"), index), {}, "")

    grid = QParams(np.float32(1.0), 0, 0, 255)
    moved = Move("a", "function", "operator.getitem", (Ref("y"), 0), {}, grid)
    other = Call("o", "method", "neg", (Ref("x"),), {}, "")
    for steps, output, read in (
        ([item("a", 0)], Ref("a"), False), ([moved, other], Ref("a"), False), ([item("a", 1)], Ref("a"), True),
        ([item("a", 0), item("b", 1)], Ref("a"), True), ([item("a", 0)], (Ref("a"), Ref("y")), True),
        ([], Ref("x"), False),
        ([Call("a", "method", "neg", (Ref("y"), 0), {}, "")], Ref("a"), True),
    ):  # fmt: skip
        assert attention.reads_weights("y", steps, output) is read


def test_a_score_is_hidden_from_minus_ten_thousand_on():
    assert [attention.hides(value) for value in (-1e4, -1e5, float("-inf"), -10_000)] == [True] * 4
    assert [attention.hides(value) for value in (-9999.9, 0, 1e5, Ref("v"), None)] == [False] * 5


CODES = np.arange(6, dtype=np.int8).reshape(2, 3)


def layer(weight):
    grid, weights = QParams(np.float32(0.5), 3, 0, 255), QParams(np.float32(0.5), 0, -128, 127)
    return Linear("l", "x", "layer", weight, None, grid, weights, grid, False)


def test_codes_are_unpacked_once_as_long_as_somebody_has_them():
    unpacked = []

    def unpack():
        unpacked.append(None)
        return CODES.copy()

    packed = Held((2, 3), unpack, "packed", 64)
    step = layer(packed)
    assert codes_shape(step) == (2, 3) and held(step) is packed and not unpacked
    assert (packed.nbytes, packed.resident, packed.packed) == (6, 64, "packed") and not unpacked
    first = step.weight
    assert step.weight is first and np.array_equal(first, CODES) and len(unpacked) == 1
    with pytest.raises(ValueError, match="read-only"):
        first[0, 0] = 1
    del first
    assert np.array_equal(step.weight, CODES) and len(unpacked) == 2


def test_held_codes_are_copied_as_they_are_and_pickled_as_an_array():
    packed = Held((2, 3), CODES.copy)
    assert copy.deepcopy(packed) is packed and packed.resident == 0 and packed.packed is None
    loaded = pickle.loads(pickle.dumps(packed))
    assert isinstance(loaded, np.ndarray) and np.array_equal(loaded, CODES) and loaded.flags.writeable


def test_fields_of_codes_are_kept_apart_and_are_not_the_classs():
    @dataclass
    class Pair:
        first: np.ndarray
        second: np.ndarray

    held_by(first=(Pair,), second=(Pair,))
    packed = Held((2, 3), CODES.copy)
    pair = Pair(CODES, packed)
    assert pair.first is CODES and np.array_equal(pair.second, CODES)
    assert held(pair, "first") is CODES and held(pair, "second") is packed
    for name in ("first", "second"):
        with pytest.raises(AttributeError, match=exactly(name)):
            getattr(Pair, name)


def test_a_step_is_changed_without_unpacking_its_codes():
    packed = Held((2, 3), CODES.copy)
    step = layer(packed)
    other = changed(step, name="m", relu=True)
    assert held(other) is packed and (other.name, other.relu, other.layer) == ("m", True, "layer")
    assert step.name == "l" and held(changed(step, weight=CODES)) is CODES
    hold(step, "weight", CODES)
    assert held(step) is CODES and step.weight is CODES and codes_shape(step) == (2, 3)
