"""What the public functions are given: anything else is refused by what was expected."""

import re

import pytest
import torch
from torch import nn

import networks
import quantspec as qs
from evidence import clause
from told import exactly


@pytest.mark.parametrize("call, message", [
    (lambda m, q: qs.convert(m), "prepared: expected the result of prepare or prepare_qat, got Sequential"),
    (lambda m, q: qs.export_onnx(m), "q: expected a network quantized by quantspec, got Sequential"),
    (lambda m, q: qs.compare(q, m, []), "q: expected a network quantized by quantspec, got Sequential"),
    (lambda m, q: qs.compare(q, q, []), "model: expected the float model, got a QuantizedModule"),
    (lambda m, q: qs.compare(qs.prepare(m), q, []), "model: expected the float model, got a Prepared"),
    (lambda m, q: qs.quantize(m, [], per_chanel=1), "quantize: argument: expected one of model, calibration, fuse, "),
    (lambda m, q: qs.quantize(m, [], x=1), "quantize: argument: expected one of model, calibration, fuse, "),
])  # fmt: skip
def test_what_is_something_else_is_refused_by_what_was_expected(call, message):
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval()
    with pytest.raises(TypeError, match=re.escape(message)):
        call(model, qs.quantize(model, [networks.inputs(3, (4,))]))


@clause("STA-MEMORY")
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # which torch's jvp calls
@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("change", [
    torch.vmap, lambda f: torch.func.grad(lambda x: f(x).sum()), lambda f: lambda x: torch.func.jvp(f, (x,), (x,)),
])  # fmt: skip
def test_what_stands_for_other_values_is_not_observed(calibrated, change):
    model, x = nn.Sequential(nn.Linear(4, 3)).eval(), networks.inputs(3, (4,))
    prepared = qs.prepare(model)
    if calibrated:
        prepared(x)
    message = "batch: expected dense tensors on the CPU, got one that is of no values of its own: vmap, grad and"
    with pytest.raises(TypeError, match=f"^{message}"):
        change(prepared)(x)
    prepared(x)
    assert torch.equal(qs.convert(prepared)(x), qs.quantize(model, [x])(x))


FORMS = {
    "nested": lambda x: torch.nested.nested_tensor([x, x[:2]]),
    "of layout torch.sparse_coo": lambda x: x.to_sparse(), "of layout torch.sparse_csr": lambda x: x.to_sparse_csr(),
    "on meta": lambda x: x.to("meta"), "masked": lambda x: torch.masked.masked_tensor(x, x > 0),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:The PyTorch API", "ignore:Sparse CSR tensor support", "ignore:Sparse invariant")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("by_name", [False, True])
def test_a_tensor_that_is_not_dense_is_refused_by_its_form(form, by_name):
    prepared, x = qs.prepare(nn.Sequential(nn.Linear(4, 3)).eval()), networks.inputs(3, (4,))
    given = FORMS[form](x)
    with pytest.raises(TypeError, match=exactly(f"batch: expected dense tensors on the CPU, got one that is {form}")):
        prepared(input=given) if by_name else prepared(given)


class Refusing(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        if float(x.sum()) > -1e9:
            raise KeyError("no\n  luck")
        return self.layer(x)


@pytest.mark.parametrize("argument, quantize", [
    ("batch", lambda model, x: qs.quantize(model, [x])),
    ("batch", lambda model, x: qs.prepare_qat(model, [x])),
    ("example", lambda model, x: qs.quantize_dynamic(model, example=x)),
])  # fmt: skip
def test_what_a_model_raises_is_told_with_the_argument_that_it_was_given(argument, quantize):
    with pytest.raises(ValueError, match=rf"^{argument}: the model raised KeyError: 'no\\n luck'$") as raised:
        quantize(Refusing().eval(), networks.inputs(3, (4,)))
    assert isinstance(raised.value.__cause__, KeyError)


def test_paths_that_differ_in_a_dot_are_two_parts():
    class Twin(nn.Module):
        def __init__(self):
            super().__init__()
            self.l, self.a_b, self.a = nn.Linear(4, 4), nn.Softmax(-1), nn.Module()
            self.a.b, self.values, self.keys = nn.LayerNorm(4), nn.LayerNorm(4), nn.GroupNorm(2, 4)

        def forward(self, x):
            return self.keys(self.values(self.a.b(self.a_b(self.l(x)))))

    q = qs.quantize(Twin().eval(), [networks.inputs(3, (4,))])
    assert sum(p.numel() for p in q.parameters()) == 6 * 4
    assert len(set(q.state_dict())) == 6 + 1


def test_excluding_all_layers_is_told_whatever_the_way():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    for quantize in (
        lambda: qs.quantize(model, [torch.ones(1, 4)], exclude="*"), lambda: qs.quantize_dynamic(model, exclude="*"),
        lambda: qs.quantize_dynamic(model, example=torch.ones(1, 4), exclude="*"),
    ):  # fmt: skip
        with pytest.warns(UserWarning, match="^nothing was quantized: all of its layers are excluded"):
            quantize()
