"""Inputs that kernels do not take, and what is kept of others: the compiled engine gives what the reference engine
gives, or raises where that raises."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import quantspec as qs
from networks import seeded
from quantspec.engines import registry, tensors
from quantspec.engines.compiled import heads, planner
from quantspec.ir import program
from quantspec.ir.held import held
from quantspec.kernels import histogram, memory
from quantspec.numerics import bilinear
from quantspec.numerics.affine import QParams
from quantspec.numerics.dialects import qparams

IMAGES = torch.randn(3, 4, 6, 5, generator=torch.Generator().manual_seed(1))
ROWS = torch.randn(7, 12, generator=torch.Generator().manual_seed(2))


class Written(nn.Module):
    """Two layers of images, and what is written with them."""

    def __init__(self, written, last=None):
        super().__init__()
        self.a, self.b, self.last = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), last or nn.Identity()
        self.written = written

    def forward(self, x):
        return self.written(self, x)


class OfTwo(Written):
    def forward(self, x, y):
        return self.written(self, x, y)


def turned(n, x):
    return n.last(n.a(x).permute(0, 2, 3, 1))


# A network, the batch of its calibration, and others that it is called with.
CASES = {
    "no positions to interpolate": (
        lambda: Written(lambda n, x: n.b(nn.functional.interpolate(n.a(x), scale_factor=2, mode="bilinear"))),
        (IMAGES,), [(IMAGES[:, :, :0],), (IMAGES[0],), (IMAGES[:0],), (IMAGES[:1],)],
    ),
    "a summand of another shape": (
        lambda: OfTwo(lambda n, x, y: n.a(x) + n.b(y)), (IMAGES, IMAGES.flip(0)),
        [(IMAGES, IMAGES[:, :, :1, :1]), (IMAGES, IMAGES[:1]), (IMAGES[:2], IMAGES[1:])],
    ),
    "no elements to average": (
        lambda: Written(lambda n, x: n.last(n.a(x)), nn.AdaptiveAvgPool2d((2, 3))), (IMAGES,),
        [(IMAGES[:, :, :0],), (IMAGES[:0],), (IMAGES[:2],)],
    ),
    "windows of padding alone": (
        lambda: Written(lambda n, x: n.last(n.a(x)), nn.AvgPool2d(2, padding=1, count_include_pad=False)), (IMAGES,),
        [(IMAGES[:, :, :0, :0],), (IMAGES[:, :, :1, :1],)],
    ),
    "other axes to turn": (
        lambda: Written(turned, nn.Linear(4, 3)), (IMAGES,), [(IMAGES[0],), (IMAGES[None],), (IMAGES[:1],)],
    ),
    "one axis to flatten": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), (ROWS,), [(ROWS[0],), (ROWS.reshape(7, 3, 4),)],
    ),
    "strides with a large product": (
        lambda: Written(lambda n, x: n.last(n.a(x)), nn.ConvTranspose2d(4, 3, 3, stride=(33, 32))), (IMAGES,), [],
    ),
    "no steps of a sequence": (
        lambda: nn.Sequential(nn.LSTM(12, 4)), (ROWS[None],), [(ROWS[None, :0],), (ROWS[:0, None],), (ROWS[:, None],)],
    ),
}  # fmt: skip


def outcome(q, given):
    """The values that a network gives, or that it raises."""
    try:
        return [y.numpy() for y in torch.utils._pytree.tree_leaves(q(*given))]
    except (ValueError, RuntimeError, IndexError):
        return None


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("name", CASES)
def test_inputs_that_kernels_do_not_take_are_the_reference_engines(name):
    build, calibration, others = CASES[name]
    q = qs.quantize(seeded(build), [calibration])
    reference = q.run_on("reference")
    for given in (calibration, *others):
        expected, got = outcome(reference, given), outcome(q, given)
        assert (expected is None) == (got is None), given[0].shape
        for ours, theirs in zip(got or (), expected or (), strict=True):
            assert ours.shape == theirs.shape and np.array_equal(ours, theirs), given[0].shape
    assert outcome(q, calibration) is not None


def test_a_part_with_too_many_inputs_and_outputs_is_not_compiled(monkeypatch):
    model = seeded(lambda: Written(lambda n, x: (n.a(x), n.b(x), n.a(n.b(x)))))
    monkeypatch.setattr(planner, "MOST_SLOTS", 3)
    q = qs.quantize(model, [IMAGES])
    for ours, theirs in zip(q(IMAGES), q.run_on("reference")(IMAGES), strict=True):
        assert torch.equal(ours, theirs)


def test_what_is_kept_of_shapes_of_attention_is_bounded(monkeypatch):
    monkeypatch.setattr(heads, "SHAPES_KEPT", 2)
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(3))

    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(8, 24)

        def forward(self, x):
            query, keys, values = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
            return nn.functional.scaled_dot_product_attention(query, keys, values)

    q = qs.quantize_dynamic(seeded(Attends), example=x)
    for length in (5, 4, 3, 2, 5, 4):
        given = x[:, :length].contiguous()
        assert torch.equal(q(given), q.run_on("reference")(given))


@pytest.mark.parametrize("engine", ["compiled", "reference", "torch"])
def test_a_compiled_program_may_be_copied_and_called_with_one_tensor(engine):
    q = qs.quantize(seeded(lambda: Written(lambda n, x: n.b(n.a(x)))), [IMAGES]).run_on(engine)
    ready = q.compiled
    assert torch.equal(copy.deepcopy(ready).single(IMAGES), ready.single(IMAGES))
    assert torch.equal(ready.single(IMAGES), ready({q.program.inputs[0]: IMAGES}))


def test_a_tensor_that_stands_for_others_has_no_address():
    found = []

    def look(row):
        found.append(tensors.rows_address(row))
        return row

    torch.vmap(look)(ROWS)
    assert found == [0] and tensors.rows_address(ROWS) == ROWS.data_ptr()


@pytest.mark.filterwarnings("ignore:nothing was quantized")
def test_keys_that_lie_negated_are_negated_where_others_of_their_form_came_before():
    """As the imaginary part of a conjugate does: where the numbers lie that it is the negative of."""

    class Attends(nn.Module):
        def forward(self, query, keys, values):
            return nn.functional.scaled_dot_product_attention(query, keys, values)

    query, keys, values = torch.randn(3, 1, 2, 5, 4, generator=torch.Generator().manual_seed(3))
    q = qs.quantize_dynamic(seeded(Attends), example=(query, keys, values))
    plain, negative = (q(query, given, values) for given in (keys, -keys))
    assert not torch.equal(plain, negative)
    assert torch.equal(q(query, torch._neg_view(keys), values), negative)


class Sums(nn.Module):
    """A sum, and what its summand is made of."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(12, 12), nn.Linear(12, 12)

    def forward(self, x, y):
        made = self.a(x)
        return self.b(made) + y, made


@pytest.mark.parametrize("width", [12, 1], ids=["rows", "numbers"])
def test_what_is_given_out_beside_a_sum_stays_where_the_sum_is_computed_by_itself(width):
    for make in (lambda model: qs.quantize(model, [(ROWS, ROWS)]), qs.quantize_dynamic):
        q = make(seeded(Sums))
        for given in ((ROWS, ROWS[:1, :width]), (ROWS, ROWS)):
            expected, got = (outcome(network, given) for network in (q.run_on("reference"), q))
            assert len(got) == 2 and all(map(np.array_equal, got, expected))


PLACED = {
    "dilations": [{"padding": 1}, {"padding": 2, "dilation": 2}],
    "strides of channels": [{"groups": 4, "padding": 1}, {"groups": 4, "padding": 1, "stride": 2}],
}


@pytest.mark.parametrize("name", PLACED)
def test_layers_that_share_a_weight_have_it_packed_in_the_order_of_each(name):
    first, second = PLACED[name]

    class Shares(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Conv2d(4, 4, 3, **places) for places in (first, second, first))
            for layer in self.layers[1:]:
                layer.weight = self.layers[0].weight

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    q = qs.quantize(seeded(Shares), [IMAGES])
    assert torch.equal(q(IMAGES), q.run_on("reference")(IMAGES))


@pytest.mark.parametrize("weights", ["held", "taken"])
def test_codes_of_a_table_and_a_layer_are_rows_still_once_they_are_packed(weights):
    """A layer gives up the memory of codes that it packs; a table looks its rows up there."""
    codes = np.arange(-40, 40, dtype=np.int8).reshape(10, 8)
    grid = QParams(np.linspace(0.1, 1, 10, dtype=np.float32), np.zeros(10, np.int32), -128, 127, axis=0)
    steps = (
        program.Embedding("rows", "x", "table", codes, grid),
        program.LinearWeight("y", "rows", "layer", codes, None, grid),
    )
    network = program.Program("onnx", ("x",), {}, steps, (program.Ref("rows"), program.Ref("y")), {})
    given = {"x": torch.arange(10)[None]}
    expected = registry.engine("reference")(network)(given)
    got = registry.engine("compiled")(network, weights=weights)(given)
    assert held(steps[0]) is codes
    for ours, theirs in zip(got, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_weights_of_samples_are_for_sums():
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.bag = nn.EmbeddingBag(6, 4, mode="mean")

        def forward(self, words, weights=None):
            return self.bag(words, per_sample_weights=weights)

    words = torch.tensor([[1, 2], [0, 5]])
    q = qs.quantize_dynamic(seeded(Bag), example=words)
    with pytest.raises(ValueError, match="layer 'bag' expects weights of samples in sums only, got them with 'mean'"):
        q(words, torch.ones(2, 2))


def test_values_are_counted_where_they_are_float32_and_bins_have_a_width():
    with pytest.raises(TypeError, match="x: expected float32 values, got float64"):
        histogram.counts(np.zeros(3), 0, 8)
    with pytest.raises(ValueError, match=r"exponent: expected -?\d+ to \d+, got 400"):
        histogram.counts(np.zeros(3, np.float32), 400, 8)
    assert histogram.counts(np.float32([0.5, -0.5, 1.5]), 0, 8).tolist() == [0, 0, 0, 1, 1, 1, 0, 0]


def test_codes_that_lie_otherwise_have_no_room_behind_them():
    assert memory.roomy(np.zeros(64, np.int8)[1:], 32) is None
    assert memory.roomy(np.zeros((8, 8), np.int8)[:, ::2], 32) is None


RELU = {program.Add: (False,), program.Mul: ()}  # which a sum has inside


@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
@pytest.mark.parametrize("kind", [program.Add, program.Mul])
def test_a_ratio_of_scales_beyond_float32_is_the_reference_engines(kind):
    """Scales as a file may have them, which no calibration gives."""
    large, small = (QParams(np.float32(scale), np.int32(0), 0, 255) for scale in (1e19, 1e-20))
    steps = (
        program.Quantize("codes", "x", large), kind("made", "codes", "codes", large, large, small, *RELU[kind]),
        program.Dequantize("y", "made", small),
    )  # fmt: skip
    network = program.Program("onnx", ("x",), {}, steps, program.Ref("y"), {})
    given = {"x": torch.linspace(1e20, 2e21, 12).reshape(3, 4)}
    expected, got = (registry.engine(name)(network)(given) for name in ("reference", "compiled"))
    assert torch.equal(expected, got)


def test_positions_are_interpolated_between_positions():
    resize = nn.Upsample(scale_factor=2, mode="bilinear")
    q = qs.quantize(seeded(lambda: nn.Sequential(resize, nn.Conv2d(4, 3, 1))), [IMAGES])
    for given in (IMAGES[:, :, :0], IMAGES[:0]):
        assert outcome(q, (given,)) is None or outcome(q.run_on("reference"), (given,)) is not None
    with pytest.raises(ValueError, match="expected positions to interpolate, got"):
        bilinear.lengths((0, 5), None, (2.0, 2.0))


def test_grids_of_several_ranges_are_those_of_each():
    low, high = np.float32([-1, -0.5, 0, -3e-20]), np.float32([2, 0.25, 1, 1e-20])
    for rule, grids in qparams.QPARAMS.items():
        scales, points = grids(low, high, 0, 255)
        for each in range(len(low)):
            scale, point = grids(low[each], high[each], 0, 255)
            assert (scales[each], points[each]) == (scale, point), rule
