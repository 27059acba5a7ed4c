"""What is said when nothing becomes int8, and of values that cannot be observed."""

import pytest
import torch
from torch import nn

import quantspec as qs
from quantspec.numerics.observers import HistogramObserver, MinMaxObserver
from quantspec.ptq import static
from told import exactly

X = torch.ones(2, 4)


class Decides(nn.Module):
    """Has no layer, and Python that looks at values."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


# How each is quantized: with calibration, with an example, and with neither.
WAYS = {
    "static": lambda model, **options: qs.quantize(model, [X], **options),
    "example": lambda model, **options: qs.quantize_dynamic(model, example=X, **options),
    "layers": lambda model, **options: qs.quantize_dynamic(model, **options),
}
NOTHING = {
    "no part": (Decides, {}, "no part with a layer could be captured", WAYS),
    "no layer": (nn.ReLU, {}, "it has no layer with an integer form", WAYS),
    "all excluded": (lambda: nn.Sequential(nn.Linear(4, 4)), {"exclude": "0"}, "all of its layers are excluded", WAYS),
    "all in float": (lambda: nn.LSTM(4, 4), {"activations": None}, "every layer stayed in float", [*WAYS][1:]),
}


@pytest.mark.parametrize(("name", "way"), [(name, way) for name, (*_, ways) in NOTHING.items() for way in ways])
def test_that_nothing_was_quantized_is_said_once_with_the_reason(name, way):
    build, options, why, _ = NOTHING[name]
    with pytest.warns(UserWarning) as said:
        WAYS[way](build().eval(), **options)
    assert [str(each.message) for each in said] == [f"nothing was quantized: {why}; print the result to see why"]


@pytest.mark.parametrize("observer", [MinMaxObserver(), HistogramObserver()], ids=lambda of: type(of).__name__)
@pytest.mark.parametrize(
    ("value", "form"),
    [(X.to_sparse(), "on cpu of layout torch.sparse_coo"), (X.to("meta"), "on meta of layout torch.strided")],
    ids=["sparse", "without memory"],
)
def test_a_value_that_is_no_dense_tensor_is_not_observed_and_told_as_a_value_that_is(observer, value, form):
    message = f"a value that is observed: expected a dense tensor on the CPU, got one that is {form}"
    with pytest.raises(TypeError, match=exactly(message)):
        static.observed(observer, value)
