"""The exported model as a whole, and how it is compared with engine ``reference``."""

import platform
import sys
from dataclasses import replace

import llvmlite.binding
import numpy as np
import pytest
import torch
from onnx_runtime import onnx, onnxruntime, run
from torch import nn

import quantspec
from networks import Perceptron, inputs, seeded
from quantspec.engines.reference import Reference
from quantspec.ir.program import Ref
from quantspec.module.module import QuantizedModule
from quantspec.onnx_export import check, export
from told import exactly

IMAGES = inputs(4, (3, 6, 5))


class Model(nn.Module):
    """Two inputs and a third that may be left out; codes, floats and a length."""

    def __init__(self):
        super().__init__()
        self.conv, self.rows, self.table = nn.Conv2d(3, 4, 1), nn.Linear(4, 3), nn.Embedding(9, 4)

    def forward(self, image, words, scale=None):
        y = torch.relu(self.conv(image))
        z = self.rows(y.mean((2, 3)))
        return {"z": z, "more": [torch.softmax(z, -1), self.table(words)], "n": image.shape[0]}


BATCH = {"image": IMAGES, "words": torch.tensor([[1, 2, 0], [4, 8, 3]])}


@pytest.fixture(scope="module")
def q():
    return quantspec.quantize(seeded(Model), [BATCH])


def shape_of(info):
    return [d.dim_param or d.dim_value or None for d in info.type.tensor_type.shape.dim]


def test_inputs_have_their_names_types_and_open_axes(q):
    for model in (quantspec.export_onnx(q), quantspec.export_onnx(q, example=BATCH)):
        image, words = model.graph.input
        assert (image.name, words.name) == ("image", "words")
        assert shape_of(image) == ["batch", "image_1", "image_2", "image_3"] and shape_of(words) == ["batch", "words_1"]
        kinds = [info.type.tensor_type.elem_type for info in (image, words)]
        assert kinds == [onnx.TensorProto.FLOAT, onnx.TensorProto.INT64]


def test_outputs_are_numbered_and_say_what_is_known_of_their_axes(q):
    model = quantspec.export_onnx(q)
    assert [info.name for info in model.graph.output] == ["output_0", "output_1", "output_2"]
    assert [shape_of(info) for info in model.graph.output] == [[None, 3], [None, 3], [None, None, 4]]
    assert {info.type.tensor_type.elem_type for info in model.graph.output} == {onnx.TensorProto.FLOAT}
    assert [node.name for node in model.graph.node[-3:]] == [f"output_{i}:Identity" for i in range(3)]
    assert [node.op_type for node in model.graph.node[-3:]] == ["Identity"] * 3


def test_the_model_says_who_made_it_and_what_it_needs(q):
    model = quantspec.export_onnx(q)
    assert (model.producer_name, model.ir_version) == ("quantspec", 10)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 21)]
    onnx.checker.check_model(model, full_check=True)


def test_nodes_have_the_names_of_their_steps(q):
    names = {node.name.partition("/")[0] for node in quantspec.export_onnx(q).graph.node if "/" in node.name}
    assert {"conv", "rows", "softmax", "table"} <= names <= {step.name for step in q.program.steps}


def test_a_file_is_what_is_returned(q, tmp_path):
    model = quantspec.export_onnx(q, tmp_path / "a.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == model.SerializeToString()
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


def test_steps_may_be_outputs_too(q):
    step = q.program.steps[0].name
    model = export.build(q.program, export.input_axes(q.program), (step,))
    shown = model.graph.output[-1]
    assert shown.name == step and shown.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    found = run(model, **BATCH)[step]
    seen = {}
    Reference(replace(q.program, dialect="onnx"))(BATCH, lambda step, value: seen.setdefault(step.name, value))
    assert np.array_equal(found, seen[step])


def test_what_is_no_quantized_network_is_refused():
    message = "q: expected a network quantized by quantspec, got Linear"
    with pytest.raises(TypeError, match=exactly(message)):
        quantspec.export_onnx(nn.Linear(2, 2))


def test_the_example_has_to_be_a_batch_of_the_network(tmp_path):
    q = quantspec.quantize(seeded(Perceptron), [inputs()])
    with pytest.raises(ValueError, match="expects 4 input features"):
        quantspec.export_onnx(q, tmp_path / "a.onnx", example=inputs(2, (3,)))
    assert not list(tmp_path.iterdir())


def test_a_network_in_a_model_that_takes_any_arguments_is_exported():
    class Any(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, *xs):
            return self.layer(xs[0])

    q = quantspec.quantize(seeded(Any), [inputs()])
    assert not isinstance(q, QuantizedModule)
    model = quantspec.export_onnx(q, example=inputs(2, (5, 4)))
    (given,) = model.graph.input
    found = run(model, **{given.name: inputs(3, (5, 4))})["output"]
    assert np.array_equal(found, q(inputs(3, (5, 4))).numpy())
    with pytest.raises(ValueError, match="expects 4 input features"):
        quantspec.export_onnx(q, example=inputs(2, (3,)))


def test_what_onnx_refuses_is_told_with_its_node(tmp_path):
    """Numbers that are none of a kind: ONNX does not convert integers."""

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return torch.softmax(self.layer(x), -1) + torch.arange(4)

    q = quantspec.quantize(seeded(Mixed), [inputs()])
    with pytest.raises(quantspec.UnsupportedError, match="^the network cannot be exported to ONNX: .*add/Add:Add"):
        quantspec.export_onnx(q, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


class Passing(nn.Module):
    """Constants and an input among the outputs."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("places", torch.arange(6).reshape(2, 3))
        self.register_buffer("gain", torch.ones(3))

    def forward(self, x, words):
        return self.layer(x), self.places, self.gain, words, x


def test_constants_and_inputs_may_be_outputs():
    batch = {"x": inputs(5), "words": torch.arange(5)}
    q = quantspec.quantize(seeded(Passing), [batch])
    found = run(quantspec.export_onnx(q, example=batch), **batch)
    expected = q.run_on("reference")(**batch)
    for got, value in zip(found.values(), expected, strict=True):
        assert np.array_equal(got, value.detach().numpy()) and got.dtype == value.detach().numpy().dtype
    assert check.compare_codes(q, batch) == (15 + 6 + 3 + 5 + 20, 0)


class First(nn.Module):
    """A layer behind what else reads the input."""

    def __init__(self, layer, before=lambda x: x):
        super().__init__()
        self.layer, self.before = layer, before

    def forward(self, x):
        return self.layer(self.before(x))


READERS = {
    "linear": (lambda: nn.Linear(4, 3), inputs(3), [], (2, False)),
    "convolution": (lambda: nn.Conv1d(3, 4, 1), inputs(2, (3, 5)), [], (3, False)),
    "convolution in float": (lambda: nn.Conv2d(3, 4, 1), IMAGES, ["1.layer"], (4, False)),
    "linear in float": (lambda: nn.Linear(4, 3), inputs(3), ["1.layer"], (2, False)),
}


@pytest.mark.filterwarnings("ignore:nothing was quantized")
@pytest.mark.parametrize("name", READERS)
def test_the_axes_of_an_input_are_those_that_its_first_layer_asks_for(name):
    build, batch, exclude, axes = READERS[name]
    model = seeded(lambda: nn.Sequential(nn.Identity(), First(build())))
    q = quantspec.quantize(model, [batch], exclude=exclude)
    (given,) = q.program.inputs
    assert export.input_axes(q.program) == {given: axes}


@pytest.mark.parametrize("build, batch, axes", [
    (lambda: nn.Linear(4, 3), inputs(3), (2, False)), (lambda: nn.Embedding(5, 2), torch.tensor([[1, 2]]), (2, True)),
])  # fmt: skip
@pytest.mark.parametrize("activations", ["per_tensor", None])
def test_the_axes_of_an_input_of_dynamic_layers(build, batch, axes, activations):
    q = quantspec.quantize_dynamic(seeded(build), activations=activations, example=batch)
    (given,) = q.program.inputs
    assert export.input_axes(q.program) == {given: axes}


def test_the_axes_of_an_example_are_its_own():
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x, indices, image, flags=True, other=None):
            return self.layer(x)

    batch = {"x": inputs(2, (5, 4)), "indices": torch.tensor([1]), "image": torch.zeros(2, 3, dtype=torch.uint8)}
    q = quantspec.quantize_dynamic(seeded(Several), example=batch)
    given = dict(batch, flags=True, other=None)
    assert export.input_axes(q.program, given) == {
        "x": (3, False), "indices": (1, True), "image": (2, False), "flags": None, "other": None,
    }  # fmt: skip
    axes = export.input_axes(quantspec.quantize(seeded(lambda: First(nn.Linear(4, 3))), [inputs()]).program)
    assert axes == {"x": (2, False)}


def test_values_of_values_come_one_by_one():
    assert export.several((1, [2, (3,)], ())) == [1, 2, 3] and export.several("ab") == ["ab"]


# --- comparing


def test_all_outputs_are_compared(q):
    found = check.differences(q.program, BATCH)
    assert list(found) == ["output_0", "output_1", "output_2"]
    assert [count for count, _ in found.values()] == [12, 12, 24]
    assert found["output_0"][1] == found["output_2"][1] == 0
    assert check.compare_codes(q, BATCH)[0] == 48
    q = quantspec.quantize(seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))), [IMAGES])
    assert check.compare_codes(q, IMAGES) == (240, 0) == check.compare_codes(q, {"input": IMAGES})


def test_steps_are_compared_in_the_order_of_the_network():
    q = quantspec.quantize(seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.Hardswish(), nn.Linear(5, 2))), [inputs(9)])
    found = check.differences(q.program, inputs(3), steps=True)
    coded = [step.name for step in q.program.steps if type(step).__name__ not in ("Dequantize", "Call")]
    assert list(found) == [*coded, "output"] and len(coded) >= 3
    assert [count for count, _ in found.values()] == [12, 15, 15, 6, 6][: len(found)]
    assert check.compare_codes(q, inputs(3), steps=True) == (sum(count for count, _ in found.values()), 0)
    assert check.compare_codes(q, inputs(3)) == (6, 0)


def test_the_dialect_is_that_of_the_runtime_whatever_the_networks():
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(8, 4, 1)))
    for dialect in ("paper", "fbgemm", "onnx"):
        q = quantspec.quantize(model, [IMAGES], dialect=dialect)
        assert check.compare_codes(q, IMAGES, steps=True)[1] == 0


def test_a_network_of_another_dialect_is_compared_with_its_floats_given():
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Softmax(1), nn.Conv2d(4, 2, 1)))
    q = quantspec.quantize(model, [IMAGES], dialect="fbgemm")
    assert check.between_floats(q.program, IMAGES)[0].dialect == "onnx"
    assert check.compare_codes(q, IMAGES, same_floats=True, steps=True)[1] == 0


def test_the_runtime_computes_on_the_cpu_with_exact_sums_and_torchs_threads(monkeypatch):
    options, asked = onnxruntime.SessionOptions(), []

    class Session(onnxruntime.InferenceSession):
        def __init__(self, model, given=None, providers=None):
            asked.append((given, providers))
            super().__init__(model, given, providers=providers)

    monkeypatch.setattr(check, "exact_options", lambda: options)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    check.compare_codes(quantspec.quantize(seeded(Perceptron), [inputs()]), inputs(3))
    assert asked == [(options, ["CPUExecutionProvider"])]
    assert options.intra_op_num_threads == torch.get_num_threads() and options.log_severity_level >= 3


def test_differences_are_counted():
    ours = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    assert check.differing(ours, ours) == (6, 0) and check.differing(ours, ours + (ours > 4)) == (6, 2)
    assert type(check.differing(ours, ours)[1]) is int
    for theirs, shown in ((ours.T, "float32[3, 2]"), (ours.astype(np.uint8), "uint8[2, 3]"), (ours[0], "float32[3]")):
        with pytest.raises(ValueError, match=exactly(f"expected float32[2, 3], got {shown}")):
            check.differing(ours, theirs)


def test_values_stand_where_the_tree_has_references():
    tree = {"a": Ref("x"), "b": [Ref("y"), (Ref("z"), None)], "c": 3}
    values = {"a": (1, 2), "b": [3, (4, None)], "c": 3}
    assert check.leaves(tree, values) == [1, 2, 3, 4] and check.leaves(Ref("x"), 5) == [5] == check.leaves(
        (Ref("x"),), [5]
    )
    assert check.leaves(None, 1) == [] == check.leaves((), ())


def test_with_the_floats_given_what_they_read_is_compared(q):
    between, batch = check.between_floats(q.program, BATCH)
    removed = [step.name for step in q.program.steps if step not in between.steps]
    assert removed == ["softmax"] and between.inputs == ("image", "words", "scale", "softmax")
    assert set(batch) == {"image", "words", "scale", "softmax"} and batch["scale"] is None
    assert between.dialect == "onnx" and torch.equal(batch["image"], IMAGES)
    compared, differing = check.compare_codes(q, BATCH, same_floats=True)
    assert differing == 0 and compared == 12 + 12 + 24 - 12
    # Of three numbers, by two libraries, whose exp and sum differ in a few of 2^-24.
    assert torch.allclose(batch["softmax"], q.run_on("reference")(**BATCH)["more"][0])


def test_sums_do_not_saturate_where_they_would(monkeypatch):
    key = "session.x64quantprecision"
    for does in (True, False):
        monkeypatch.setattr(check, "saturates", lambda does=does: does)
        options = check.exact_options()
        if does:
            assert options.get_session_config_entry(key) == "1"
        else:
            with pytest.raises(RuntimeError):
                options.get_session_config_entry(key)


HOSTS = [
    ("x86_64", {"avx2": True, "avx512vnni": False}, True), ("AMD64", {}, True), ("x86_64", {"avx512vnni": True}, False),
    ("x86_64", {"avxvnni": True, "avx2": True}, False), ("aarch64", {}, False), ("AMD64", {"avxvnni": False}, True),
]  # fmt: skip


@pytest.mark.parametrize("machine, features, does", HOSTS)
def test_cpus_without_vnni_saturate(monkeypatch, machine, features, does):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(llvmlite.binding, "get_host_cpu_features", lambda: features)
    assert check.saturates() is does


def test_without_onnx_a_model_is_not_begun(monkeypatch, q):
    monkeypatch.setitem(sys.modules, "onnx", None)
    message = "the export to ONNX needs onnx, which is not installed: pip install 'quantspec[onnx]'"
    with pytest.raises(quantspec.MissingExtraError, match=exactly(message)):
        export.build(q.program, {})


def test_without_the_runtime_the_error_says_how_to_have_it(monkeypatch, q):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    extra = "needs onnxruntime, which is not installed: pip install 'quantspec[onnx]'"
    for asks in (lambda: check.compare_codes(q, BATCH), check.exact_options):
        with pytest.raises(ImportError, match=exactly(f"comparing with ONNX Runtime {extra}")):
            asks()
