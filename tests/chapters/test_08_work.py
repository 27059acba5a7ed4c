"""Chapter 8, work: what a network reports of its multiply-accumulates, and when quantizing it warns."""

import copy
import pickle
import re
import warnings
from fractions import Fraction

import pytest
import torch
from torch import nn

import networks
import quantspec as qs
from evidence import clause
from quantspec import chapters
from quantspec.module.report import Report, Work
from quantspec.ptq import work
from quantspec.ptq.work import Products

spec = chapters.load("size")


class Decides(nn.Module):
    """Python that decides by data, around two layers, and one that is called in it."""

    def __init__(self, features: int):
        super().__init__()
        self.first, self.second = nn.Linear(8, features), nn.Linear(features, 4)
        self.free = nn.Parameter(torch.ones(4, 64))

    def forward(self, x):
        y = self.first(x)
        y = self.second(y if y.sum() > 0 else y + 1)
        return y @ self.free


class Mixing(nn.Module):
    """Products of computed values: attention, or, without its weights, what stays in float."""

    def __init__(self, weighs=False):
        super().__init__()
        self.weighs, self.first, self.last = weighs, nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        y = self.first(x)
        scores = y @ y.transpose(1, 2)
        return self.last((torch.softmax(scores, -1) if self.weighs else scores) @ y)


def products(model: nn.Module, *inputs: torch.Tensor) -> int:
    with torch.no_grad(), Products() as counted:
        model(*inputs)
    return counted.take()


def exact(report: Report) -> Fraction:
    return spec.share_in_int8([(row.macs, row.place, row.reason) for row in report.rows])


LAYERS = {
    "linear": (lambda: nn.Linear(8, 5), (3, 8), spec.macs_linear(3, 8, 5)),
    "linear without bias": (lambda: nn.Linear(8, 5, bias=False), (2, 3, 8), spec.macs_linear(6, 8, 5)),
    "convolution": (lambda: nn.Conv2d(4, 6, 3, 2, 1, groups=2), (2, 4, 7, 7), spec.macs_conv(2 * 16, 4, 6, 9, 2)),
    "one axis": (lambda: nn.Conv1d(4, 6, 3), (2, 4, 7), spec.macs_conv(2 * 5, 4, 6, 3)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, groups=2), (2, 4, 5, 5), spec.macs_conv(50, 4, 6, 9, 2)),
    "lstm": (lambda: nn.LSTM(8, 5), (3, 2, 8), spec.macs_linear(6, 8, 20) + spec.macs_linear(6, 5, 20)),
    "gru": (lambda: nn.GRU(8, 5, bidirectional=True), (3, 2, 8), 2 * 6 * 15 * (8 + 5)),
    "encoder layer": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (2, 5, 8),
        10 * (4 * 64 + 2 * 8 * 16) + 2 * 2 * 5 * 5 * 8,
    ),
}  # fmt: skip


@clause("SIZ-REPORT", "SIZ-MACS")
@pytest.mark.parametrize("name", LAYERS)
def test_products_are_counted_as_the_formula_says(name):
    build, shape, expected = LAYERS[name]
    model = networks.seeded(build)
    assert products(model, networks.inputs(shape[0], shape[1:])) == expected


@clause("SIZ-REPORT")
@pytest.mark.parametrize("name", [name for name in LAYERS if name != "encoder layer"])
def test_a_layer_is_reported_with_its_products(name):
    build, shape, expected = LAYERS[name]
    model, x = networks.seeded(lambda: nn.Sequential(build())), networks.inputs(shape[0], shape[1:])
    for q in (qs.quantize(model, [x, x]), qs.quantize(Keeping(model), [x, x])):
        (row,) = q.report.rows
        assert row == Work(row.path, expected, "int8", "") and row.path.endswith("0")
        assert q.report.macs == q.report.int8_macs == expected and q.report.counted


class Keeping(nn.Module):
    """A model around which a whole graph cannot stand."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, x):
        self.last = self.model(x)
        return self.last


@clause("SIZ-REPORT")
def test_every_product_is_somewhere_and_says_why_it_is_in_float():
    model, x = networks.seeded(lambda: Decides(64)), networks.inputs(5, (8,))
    with pytest.warns(UserWarning, match="^66 % of the multiply-accumulates are in int8"):
        q = qs.quantize(model, [x, x[:2]], exclude="second")
    assert q.report.macs == products(model, x)
    by_path = {row.path: row for row in q.report.rows}
    assert by_path["first"] == Work("first", 5 * 8 * 64, "int8", "")
    assert by_path["second"] == Work("second", 5 * 64 * 4, "Python", "excluded")
    python = by_path[""]
    assert (python.macs, python.place) == (5 * 4 * 64, "Python")
    assert re.search(r"reads values of a tensor.*test_08_work\.py, line \d+", python.reason)
    with pytest.warns(UserWarning, match="^75 % of the multiply-accumulates are in int8"):
        d = qs.quantize_dynamic(model, example=x)
    assert d.report.macs == q.report.macs and d.report.int8_macs == 5 * 8 * 64 + 5 * 64 * 4


@clause("SIZ-REPORT")
def test_the_share_is_that_of_a_comparison_on_the_same_batch():
    x = networks.inputs(4, (6, 8))
    for model in (networks.seeded(Mixing), networks.seeded(lambda: Keeping(Mixing()))):
        with pytest.warns(UserWarning, match="multiply-accumulates"):
            q = qs.quantize(model, [x])
        compared = qs.compare(model, q, [x])
        assert q.report.macs == products(model, x)
        assert compared.int8_macs == float(exact(q.report)) == q.report.share < 0.9
        assert sum(row.macs for row in compared.layers) == q.report.int8_macs
    for model in (networks.seeded(lambda: Mixing(True)), networks.seeded(lambda: Keeping(Mixing(True)))):
        q = qs.quantize(model, [x])
        assert q.report.macs == q.report.int8_macs == products(model, x)
        assert qs.compare(model, q, [x]).int8_macs == q.report.share == 1.0


@clause("SIZ-REPORT")
def test_without_data_each_layer_counts_for_one_row():
    model = networks.seeded(lambda: Decides(64))
    with pytest.warns(UserWarning, match="counted for one row of each layer's input.*pass a batch as example="):
        report = qs.quantize_dynamic(model, exclude="second").report
    assert not report.counted
    assert [(row.path, row.macs, row.place) for row in report.rows] == [
        ("", 256, "Python"), ("first", 512, "int8"), ("second", 256, "Python")
    ]  # fmt: skip
    assert report.share == 512 / 768 and report.excluded_macs == 256
    torchs = networks.seeded(lambda: nn.Sequential(nn.LSTM(8, 5)))
    q = qs.quantize_dynamic(torchs)
    assert q.report.rows == (Work("0", 20 * 13, "int8", ""),) and q.report.counted is False
    images = networks.seeded(lambda: nn.Sequential(nn.Conv1d(4, 4, 1), nn.Linear(8, 2)))
    with pytest.warns(UserWarning, match="^50 % of the multiply-accumulates are in int8, .*; the rest: 0 "):
        qs.quantize_dynamic(images)


@clause("SIZ-REPORT")
def test_a_report_goes_with_the_network():
    model, x = networks.seeded(networks.Perceptron), networks.inputs()
    made = [qs.quantize(model, [x]), qs.quantize_dynamic(model, example=x)]
    for q in (*made, qs.quantize(Keeping(model), [x]), qs.quantize_dynamic(Keeping(model))):
        for twin in (copy.deepcopy(q), pickle.loads(pickle.dumps(q)), q.run_on("reference")):
            assert twin.report == q.report and q.report.macs > 0
    assert q.report.as_json()["rows"][0]["path"] == "model.first" and "model.first" in str(q.report)


@clause("SIZ-WARN")
@pytest.mark.parametrize("part,warns", [(0.1, False), (0.11, True)])
def test_below_nine_tenths_quantizing_warns_once(part, warns):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1000, 1)

        def forward(self, x):  # as many more products as the sum of two vectors' products has
            rest = round(1000 * part / (1 - part))
            return self.layer(x) + x[:, None, :rest] @ x[:, :rest, None]

    model, x = networks.seeded(Model), networks.inputs(2, (1000,))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = [qs.quantize(model, [x, x]), qs.quantize_dynamic(model, example=x)]
        prepared = qs.prepare(model)
        prepared(x)
        made.append(qs.convert(prepared))
    assert all((exact(q.report) < Fraction(9, 10)) == warns for q in made)
    assert [str(w.message)[:4] for w in caught] == (["88 %"] * 3 if warns else [])
    assert all(w.filename == __file__ for w in caught)


@clause("SIZ-WARN")
def test_code_of_no_module_is_warned_as_well():
    names = {"quantize": qs.quantize, "model": nn.Sequential(nn.ReLU()).eval(), "batches": [torch.ones(1, 1)]}
    with pytest.warns(UserWarning, match="^nothing was quantized") as caught:
        exec(compile("quantize(model, batches)", "<a cell>", "exec"), names)
    assert caught[0].filename == "<a cell>"


@clause("SIZ-WARN")
def test_the_warning_names_where_the_work_is_the_largest_first_and_why():
    rows = [Work("a", 60, "int8", ""), Work("b", 5, "float", "why b"), Work("c", 10, "Python", "why c")]
    rows += [Work("d", 3, "float", "d"), Work("e", 2, "float", "e"), Work("f", 1, "float", "f")]
    rows += [Work("g", 500, "Python", "excluded")]
    report = Report(tuple(rows), True)
    assert exact(report) == Fraction(60, 81) and report.share == 60 / 81
    assert report.sentence() == (
        "74 % of the multiply-accumulates are in int8; the rest: c (12 %, Python: why c);"
        " b (6 %, float: why b); d (4 %, float: d); 2 others (4 %)"
    )
    model, x = networks.seeded(lambda: Decides(8)), networks.inputs(5, (8,))
    message = r"^27 % of .* in int8; the rest: the model \(73 %, Python: .*reads values of a tensor.*line \d+"
    with pytest.warns(UserWarning, match=message):
        qs.quantize(model, [x])


@clause("SIZ-WARN")
def test_what_was_excluded_does_not_count():
    model, x = networks.seeded(lambda: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 800))), networks.inputs(5, (8,))
    for m, exclude in ((model, "1"), (Keeping(model), "model.1")):
        for q in (qs.quantize(m, [x], exclude=exclude), qs.quantize_dynamic(m, exclude=exclude)):
            assert q.report.share == 1 and q.report.excluded_macs / q.report.macs > 0.98


@clause("SIZ-REPORT")
def test_what_a_model_of_parts_raises_while_it_is_counted_is_raised():
    class Tired(nn.Module):
        def forward(self, x):
            raise ValueError("no more")

    with pytest.raises(ValueError, match="^no more$"):
        work.of_parts(Tired(), {"part": {}}, (torch.zeros(2),), {})
    assert work.of_parts(Tired(), {}, (torch.zeros(2),), {}) == work.of_parts(nn.Identity(), {}, (torch.zeros(2),), {})
