"""Operations without weights: which forms of a call are known, and with what, and which stay calls."""

import pytest
from forms import all_become

FORMS = {}
FORMS["elementwise"] = """
F.relu6(x)
    Elementwise(x='x', function='relu6', ceiling=6.0)
F.hardtanh(x, 0, 3)
    Elementwise(x='x', function='hardtanh', ceiling=3.0)
F.hardtanh(x)
    Elementwise(x='x', function='hardtanh')
F.hardtanh(x, 0.0, 1)
    Elementwise(x='x', function='hardtanh', ceiling=1.0)
F.hardtanh(x, min_val=0, max_val=0.5)
    Elementwise(x='x', function='hardtanh', ceiling=0.5)
x.clamp(0, 5)
    Elementwise(x='x', function='clamp', ceiling=5.0)
x.clamp(0)
    Elementwise(x='x', function='clamp')
x.clamp(max=5)
    Elementwise(x='x', function='clamp')
x.clamp(0, 0)
    Elementwise(x='x', function='clamp')
x.clamp(0, -1)
    Elementwise(x='x', function='clamp')
x.clamp(1, 5)
    Elementwise(x='x', function='clamp')
torch.clip(x, min=0, max=4)
    Elementwise(x='x', function='clamp', ceiling=4.0)
x.clip(0, "a")
    Elementwise(x='x', function='clamp')
torch.clamp(min=0, input=x)
    Elementwise(x='x', function='clamp')
torch.clamp(input=x, min=0, max=2)
    Elementwise(x='x', function='clamp', ceiling=2.0)
x.clamp(x, 1)
    clamp
x.clamp(0, max=y)
    clamp
m.b.clamp(0, x)
    b held; clamp
F.elu(x, 0.5)
    Elementwise(x='x', function='elu')
F.threshold(x, 0, 5)
    Elementwise(x='x', function='threshold')
F.gelu(x, approximate="tanh")
    Elementwise(x='x', function='gelu')
torch.sigmoid(x, out=None)
    Elementwise(x='x', function='sigmoid')
F.leaky_relu(x, [0.5])
    torch.nn.functional.leaky_relu
F.silu(x, torch.float)
    torch.nn.functional.silu
F.softplus(x, beta=True)
    Elementwise(x='x', function='softplus')
abs(-x)
    Elementwise(x='x', function='neg'); Elementwise(x='neg', function='abs')
torch.relu(x)
    Relu(x='x')
F.relu(input=x)
    Relu(x='x')
F.relu(x, inplace=True)
    Relu(x='x')
"""
FORMS["arithmetic"] = """
torch.add(x, y, alpha=1)
    Add(a='x', b='y')
torch.add(x, y, alpha=2)
    torch.add
x.add(y, alpha=0)
    add
torch.add(x, 2, alpha=3)
    torch.add
x.div(2, rounding_mode=None)
    Elementwise(x='x', function='div 2')
x.div(2, rounding_mode="trunc")
    div
x.mul(other=y)
    Mul(a='x', b='y')
torch.mul(other=2, input=x)
    Elementwise(x='x', function='mul 2')
x - y
    operator.sub
x / y
    operator.truediv
2 - x
    Elementwise(x='x', function='sub 2')
2 / x
    operator.truediv
x / 2
    Elementwise(x='x', function='div 2')
x * True
    Elementwise(x='x', function='mul 1')
x + 1j
    operator.add
x + x.shape[0]
    Shape(x='x'); operator.getitem; Add(a='x', b='getitem')
"""
FORMS["concat"] = """
torch.cat((x, y))
    Concat(xs=('x', 'y'), axis=0)
torch.cat(x)
    torch.cat
torch.concat([x, y], dim=-1)
    Concat(xs=('x', 'y'), axis=-1)
torch.cat([x, y], x.dim())
    Shape(x='x'); torch.cat
"""
FORMS["pools"] = """
F.max_pool2d(x, 2)
    MaxPool(x='x', kernel=(2, 2), stride=(2, 2), padding=(0, 0), dilation=(1, 1), ceil_mode=False)
F.max_pool2d(x, 2, [])
    MaxPool(x='x', kernel=(2, 2), stride=(2, 2), padding=(0, 0), dilation=(1, 1), ceil_mode=False)
F.max_pool2d(x, 2, ())
    MaxPool(x='x', kernel=(2, 2), stride=(2, 2), padding=(0, 0), dilation=(1, 1), ceil_mode=False)
F.max_pool2d(x, (2, 3), 1, 0, (1, 2), True)
    MaxPool(x='x', kernel=(2, 3), stride=(1, 1), padding=(0, 0), dilation=(1, 2), ceil_mode=True)
F.max_pool2d(kernel_size=[2], stride=3, input=x)
    MaxPool(x='x', kernel=(2, 2), stride=(3, 3), padding=(0, 0), dilation=(1, 1), ceil_mode=False)
F.max_pool2d(x, 2, return_indices=True)
    torch.nn.functional.max_pool2d_with_indices
F.max_pool2d(x, x.size(0))
    Shape(x='x'); torch.nn.functional.max_pool2d
F.max_pool2d(x, (1, 2, 3))
    torch.nn.functional.max_pool2d
F.max_pool2d(x, 2, (1, 2, 3))
    torch.nn.functional.max_pool2d
F.max_pool2d(x, 2, None, (1, 1, 1))
    torch.nn.functional.max_pool2d
F.max_pool2d(x, 2, None, 0, (1, 1, 1))
    torch.nn.functional.max_pool2d
torch.max_pool2d(x, 2, 3, 1, 2, True)
    MaxPool(x='x', kernel=(2, 2), stride=(3, 3), padding=(1, 1), dilation=(2, 2), ceil_mode=True)
F.max_pool1d(x, 2, 1)
    MaxPool(x='x', kernel=(2), stride=(1), padding=(0), dilation=(1), ceil_mode=False)
F.max_pool3d(x, 2, 1)
    MaxPool(x='x', kernel=(2, 2, 2), stride=(1, 1, 1), padding=(0, 0, 0), dilation=(1, 1, 1), ceil_mode=False)
F.avg_pool2d(x, 2)
    AvgPool(x='x', kernel=(2, 2), stride=(2, 2), padding=(0, 0), ceil_mode=False, count_include_pad=True)
F.avg_pool2d(x, 2, [])
    AvgPool(x='x', kernel=(2, 2), stride=(2, 2), padding=(0, 0), ceil_mode=False, count_include_pad=True)
F.avg_pool2d(x, 2, ())
    AvgPool(x='x', kernel=(2, 2), stride=(2, 2), padding=(0, 0), ceil_mode=False, count_include_pad=True)
F.avg_pool2d(x, (2, 3), 1, 1, True, False)
    AvgPool(x='x', kernel=(2, 3), stride=(1, 1), padding=(1, 1), ceil_mode=True, count_include_pad=False)
F.avg_pool2d(x, 2, divisor_override=3)
    torch.nn.functional.avg_pool2d
F.avg_pool2d(x, x.size(0))
    Shape(x='x'); torch.nn.functional.avg_pool2d
F.avg_pool2d(x, (1, 2, 3))
    torch.nn.functional.avg_pool2d
F.avg_pool2d(x, 2, (1, 2, 3))
    torch.nn.functional.avg_pool2d
F.avg_pool2d(x, 2, None, (1, 1, 1))
    torch.nn.functional.avg_pool2d
F.avg_pool1d(x, 3, 2, 1)
    AvgPool(x='x', kernel=(3), stride=(2), padding=(1), ceil_mode=False, count_include_pad=True)
F.adaptive_avg_pool2d(x, (2, None))
    AdaptiveAvgPool(x='x', size=(2, None))
F.adaptive_avg_pool2d(x, None)
    AdaptiveAvgPool(x='x', size=(None, None))
F.adaptive_avg_pool2d(x, 3)
    AdaptiveAvgPool(x='x', size=(3, 3))
F.adaptive_avg_pool2d(x, [1, 2])
    AdaptiveAvgPool(x='x', size=(1, 2))
F.adaptive_avg_pool2d(x, (1, 2, 3))
    torch.nn.functional.adaptive_avg_pool2d
F.adaptive_avg_pool2d(x, x.shape[2:])
    Shape(x='x'); operator.getitem; torch.nn.functional.adaptive_avg_pool2d
"""
FORMS["mean"] = """
x.mean(1)
    Mean(x='x', axes=(1), keepdim=False)
x.mean(0)
    Mean(x='x', axes=(0), keepdim=False)
x.mean((1, 2), True)
    Mean(x='x', axes=(1, 2), keepdim=True)
x.mean()
    mean
x.mean(())
    mean
x.mean(1, dtype=torch.float)
    mean
x.mean(x.dim())
    Shape(x='x'); mean
x.mean(-1, 1)
    mean
x.mean(dim=[2], keepdim=True)
    Mean(x='x', axes=(2), keepdim=True)
torch.mean(x, 0, True)
    Mean(x='x', axes=(0), keepdim=True)
"""
FORMS["moves"] = """
x.size(0)
    Shape(x='x')
x.shape
    Shape(x='x')
x.ndim
    Shape(x='x')
x.dtype
    Shape(x='x')
x.device
    Shape(x='x')
x.requires_grad
    builtins.getattr
x.numel()
    Shape(x='x')
x.view(torch.int32)
    view
x.view(dtype=torch.int32)
    view
x.view(2, -1)
    Move(x='x')
x[0]
    Move(x='x')
F.pad(x, (1, 1))
    Move(x='x')
F.pad(x, (1, 1), "constant", 0)
    Move(x='x')
F.pad(x, (1, 1), "constant", 1)
    torch.nn.functional.pad
F.pad(x, (1, 1), "reflect")
    Move(x='x')
F.interpolate(x, scale_factor=2)
    Move(x='x')
F.interpolate(x, 3, None, "nearest-exact")
    Move(x='x')
F.interpolate(x, scale_factor=2, mode="bicubic")
    torch.nn.functional.interpolate
F.interpolate(x, scale_factor=2, mode="area")
    torch.nn.functional.interpolate
"""
FORMS["bilinear"] = """
F.interpolate(x, 3, mode="bilinear")
    Bilinear(x='x', like=None, size=(3, 3), factors=None, exact=False, align_corners=False)
F.interpolate(x, (3, 4), mode="bilinear", align_corners=True)
    Bilinear(x='x', like=None, size=(3, 4), factors=None, exact=False, align_corners=True)
F.interpolate(x, [3], mode="bilinear")
    Bilinear(x='x', like=None, size=(3, 3), factors=None, exact=False, align_corners=False)
F.interpolate(x, (3, 4, 5), mode="bilinear")
    torch.nn.functional.interpolate
F.interpolate(x, scale_factor=2, mode="bilinear")
    Bilinear(x='x', like=None, size=None, factors=(2.0, 2.0), exact=True, align_corners=False)
F.interpolate(x, scale_factor=0.5, mode="bilinear", recompute_scale_factor=True)
    Bilinear(x='x', like=None, size=None, factors=(0.5, 0.5), exact=False, align_corners=False)
F.interpolate(x, scale_factor=(2, 3), mode="bilinear")
    Bilinear(x='x', like=None, size=None, factors=(2.0, 3.0), exact=True, align_corners=False)
F.interpolate(x, scale_factor=(2, 3, 4), mode="bilinear")
    torch.nn.functional.interpolate
F.interpolate(x, scale_factor=y, mode="bilinear")
    torch.nn.functional.interpolate
F.interpolate(x, mode="bilinear")
    torch.nn.functional.interpolate
F.interpolate(x, 3, mode="bilinear", antialias=True)
    torch.nn.functional.interpolate
F.interpolate(x, y.shape[-2:], mode="bilinear")
    Shape(x='y'); operator.getitem; Bilinear(x='x', like='y', size=None, factors=None, exact=False,
    align_corners=False)
F.interpolate(x, (y.size(2), y.size(3)), mode="bilinear", align_corners=False)
    Shape(x='y'); Shape(x='y'); Bilinear(x='x', like='y', size=None, factors=None, exact=False, align_corners=False)
F.interpolate(x, y.shape[1:], mode="bilinear")
    Shape(x='y'); operator.getitem; torch.nn.functional.interpolate
F.interpolate(x, (3, 4), (2, 2), mode="bilinear")
    Bilinear(x='x', like=None, size=(3, 4), factors=None, exact=False, align_corners=False)
F.interpolate(x, y.shape[-2:], (2, 2), mode="bilinear")
    Shape(x='y'); operator.getitem; Bilinear(x='x', like='y', size=None, factors=None, exact=False,
    align_corners=False)
F.interpolate(x, (3, x.size(3)), mode="bilinear")
    Shape(x='x'); torch.nn.functional.interpolate
"""


@pytest.mark.parametrize("name", FORMS)
def test_each_form_of_a_layer_becomes_this(name):
    assert all_become(FORMS[name]) == FORMS[name].strip()
