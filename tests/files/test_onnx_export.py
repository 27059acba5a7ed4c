"""The ONNX model of a network: its form, its inputs and outputs, what has none, and floats of weights alone."""

import sys

import numpy as np
import pytest
from onnx_runtime import compared, onnx, onnxruntime, run
from torch import nn

import quantspec
from networks import Perceptron, inputs, mostly_attention, seeded
from quantspec import torchvision_compat
from quantspec.onnx_export import export

CALIBRATION = inputs(6, (3, 8, 8))


def test_the_model_is_in_qdq_form_and_open_in_its_batch(tmp_path):
    pool = nn.AdaptiveAvgPool2d(1)
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), pool, nn.Flatten(), nn.Linear(4, 2)))
    q = quantspec.quantize(model, [CALIBRATION])
    made = quantspec.export_onnx(q, tmp_path / "q.onnx")
    model = onnx.load(tmp_path / "q.onnx")
    assert model == made and [p.name for p in tmp_path.iterdir()] == ["q.onnx"]
    assert [(s.domain, s.version >= 17) for s in model.opset_import] == [("", True)]
    operators = [node.op_type for node in model.graph.node]
    conv = operators.index("Conv")
    assert {"DequantizeLinear", "Relu", "QuantizeLinear", "Gemm"} <= set(operators)
    assert operators[conv + 1 : conv + 3] == ["Relu", "QuantizeLinear"]
    assert [i.name for i in model.graph.input] == list(q.program.inputs)
    assert [o.name for o in model.graph.output] == ["output"]
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    for n, size in ((1, 8), (4, 11)):
        x = inputs(n, (3, size, size), 5)
        assert np.array_equal(run(str(tmp_path / "q.onnx"), **{q.program.inputs[0]: x})["output"], q(x).numpy())


def test_layers_are_fused_into_integer_kernels(tmp_path):
    pool = nn.AvgPool2d(2)
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), pool, nn.Flatten(), nn.Linear(36, 2)))
    q = quantspec.quantize(model, [CALIBRATION])
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "fused.onnx"), 4
    onnxruntime.InferenceSession(export.export_onnx(q).SerializeToString(), options, providers=["CPUExecutionProvider"])
    fused = [node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node]
    assert fused.count("QLinearConv") == 1 and fused.count("QGemm") == 1
    assert not {"Conv", "Gemm", "MatMul", "Relu"} & set(fused)


def test_what_has_no_operator_is_named_before_anything_is_written(tmp_path):
    q = quantspec.quantize_dynamic(seeded(lambda: nn.LSTM(4, 5)))
    with pytest.raises(quantspec.UnsupportedError, match="step .* cannot be exported to ONNX: LSTM"):
        quantspec.export_onnx(q, tmp_path / "q.onnx", example=inputs(3, (4,)))
    assert list(tmp_path.iterdir()) == []


def test_how_many_axes_an_input_has_is_asked_for_where_nothing_tells():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.soft, self.layer = nn.Softmax(-1), nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(self.soft(x))

    q = quantspec.quantize(seeded(Model), [inputs()])
    message = "input 'x': its number of axes is unknown; pass a batch as example="
    with pytest.raises(quantspec.UnsupportedError, match=message):
        quantspec.export_onnx(q)
    assert len(quantspec.export_onnx(q, example=inputs(2, (5, 4))).graph.input[0].type.tensor_type.shape.dim) == 3


def test_without_the_packages_the_error_says_how_to_have_them(monkeypatch):
    q = quantspec.quantize(seeded(Perceptron), [inputs()])
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"ONNX needs onnx, which is not installed: pip install 'quantspec\[onnx\]'"):
        quantspec.export_onnx(q)


def test_several_outputs_come_in_order_and_an_input_may_be_called_output():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 2)

        def forward(self, output, scale=None):
            return {"b": self.b(output), "a": (self.a(output), None)}

    q = quantspec.quantize(seeded(Model), [inputs()])
    assert compared(q, inputs(5)) == 25
    assert [o.name for o in quantspec.export_onnx(q).graph.output] == ["output_0", "output_1"]

    class One(Model):
        def forward(self, output):
            return self.a(output)

    q = quantspec.quantize(seeded(One), [inputs()])
    assert compared(q, inputs(5)) == 15
    assert [o.name for o in quantspec.export_onnx(q).graph.output] == ["output_2"]


def test_weights_alone_are_dequantized_in_the_graph():
    q = quantspec.quantize_dynamic(seeded(Perceptron), activations=None, example=inputs(5))
    model = export.export_onnx(q)
    assert sum(tensor.data_type == onnx.TensorProto.INT8 for tensor in model.graph.initializer) == 2
    outputs = run(model, x=inputs(5))["output"]
    np.testing.assert_allclose(outputs, q(inputs(5)).numpy(), rtol=1e-5, atol=1e-6)


@mostly_attention
@pytest.mark.parametrize("size", [8, 16, 18, 26])
def test_window_attention_is_torchvisions_at_any_size(size):
    """Whole windows, padded ones, and a single one, which is not shifted.

    All of it is in float, in which sums of at most 64 terms differ by their rounding.
    """
    torchvision_compat.import_torchvision()
    from torchvision.models.swin_transformer import SwinTransformer

    model = seeded(lambda: SwinTransformer([2, 2], 8, [2, 2], [2, 4], [4, 4], num_classes=6, stochastic_depth_prob=0.0))
    for parameter in model.parameters():
        parameter.data.mul_(3)
    q = quantspec.quantize_dynamic(model, activations=None, example=inputs(1, (3, size, size)))
    exported, x = quantspec.export_onnx(q), inputs(3, (3, size, size))
    np.testing.assert_allclose(run(exported, x=x)["output"], q(x).numpy(), rtol=0, atol=2**-16)
    assert q(x).abs().max() > 0.05
