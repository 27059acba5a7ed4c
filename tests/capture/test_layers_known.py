"""Operations on parameters: which forms are layers or parts of one, with what weights, and which stay calls."""

import pytest
from forms import all_become

FORMS = {}
FORMS["norms"] = """
F.batch_norm(x, m.vec, m.vec)
    vec held; vec held; BatchNorm(x='x', gamma=float32[4]:10, beta=float32[4]:0, mean=float32[4]:167.5,
    var=float32[4]:167.5, eps=1e-05, layer='batch_norm'); calls {'batch_norm': 1}
F.batch_norm(x, m.vec, m.vec, m.b, eps=1)
    b held; vec held; vec held; BatchNorm(x='x', gamma=float32[4]:34.17, beta=float32[4]:0, mean=float32[4]:167.5,
    var=float32[4]:167.5, eps=1.0, layer='batch_norm'); calls {'batch_norm': 1}
F.batch_norm(x, m.vec, m.vec, None, m.b)
    b held; vec held; vec held; BatchNorm(x='x', gamma=float32[4]:10, beta=float32[4]:34.17, mean=float32[4]:167.5,
    var=float32[4]:167.5, eps=1e-05, layer='batch_norm'); calls {'batch_norm': 1}
F.batch_norm(x, m.vec, m.vec, training=True)
    vec held; vec held; torch.nn.functional.batch_norm
F.batch_norm(x, m.vec, None)
    vec held; torch.nn.functional.batch_norm
F.batch_norm(x, m.vec, y)
    vec held; torch.nn.functional.batch_norm
F.batch_norm(x, x, m.vec)
    vec held; torch.nn.functional.batch_norm
F.batch_norm(x, m.vec, m.vec, y)
    vec held; vec held; torch.nn.functional.batch_norm
F.batch_norm(x, m.vec, m.vec, m.b, y)
    b held; vec held; vec held; torch.nn.functional.batch_norm
F.batch_norm(x, m.doubled, m.vec)
    doubled held; vec held; torch.nn.functional.batch_norm
x * m.k
    k held; BatchNorm(x='x', gamma=float32[4]:54.17, beta=float32[4]:0, mean=float32[4]:0, var=float32[4]:10,
    eps=0.0, layer='mul', positions=2); calls {'mul': 1}
m.k * x
    k held; BatchNorm(x='x', gamma=float32[4]:54.17, beta=float32[4]:0, mean=float32[4]:0, var=float32[4]:10,
    eps=0.0, layer='mul', positions=2); calls {'mul': 1}
m.k * 2 * x
    mul held; BatchNorm(x='x', gamma=float32[4]:108.3, beta=float32[4]:0, mean=float32[4]:0, var=float32[4]:10,
    eps=0.0, layer='mul_1', positions=2); calls {'mul_1': 1}
m.k * m.buf * x
    mul held; BatchNorm(x='x', gamma=float32[4]:1076, beta=float32[4]:0, mean=float32[4]:0, var=float32[4]:10,
    eps=0.0, layer='mul_1', positions=2); calls {'mul_1': 1}
m.k * m.k
    mul held
x + m.c
    c held; BatchNorm(x='x', gamma=float32[4]:10, beta=float32[4]:60.83, mean=float32[4]:0, var=float32[4]:10,
    eps=0.0, layer='add', positions=2); calls {'add': 1}
m.c + x
    c held; BatchNorm(x='x', gamma=float32[4]:10, beta=float32[4]:60.83, mean=float32[4]:0, var=float32[4]:10,
    eps=0.0, layer='add', positions=2); calls {'add': 1}
x - m.k
    k held; BatchNorm(x='x', gamma=float32[4]:10, beta=float32[4]:-54.17, mean=float32[4]:0, var=float32[4]:10,
    eps=0.0, layer='sub', positions=2); calls {'sub': 1}
m.k - x
    k held; operator.sub
x / m.k
    k held; BatchNorm(x='x', gamma=float32[4]:5.76, beta=float32[4]:0, mean=float32[4]:0, var=float32[4]:10,
    eps=0.0, layer='truediv', positions=2); calls {'truediv': 1}
m.k / x
    k held; operator.truediv
x / m.zero
    zero held; operator.truediv
x * m.zero
    zero held; BatchNorm(x='x', gamma=float32[4]:0, beta=float32[4]:0, mean=float32[4]:0, var=float32[4]:10,
    eps=0.0, layer='mul', positions=2); calls {'mul': 1}
torch.maximum(x, m.k)
    k held; torch.maximum
torch.add(x, m.k, alpha=1)
    k held; Add(a='x', b='k')
torch.mul(x, other=m.k)
    k held; BatchNorm(x='x', gamma=float32[4]:54.17, beta=float32[4]:0, mean=float32[4]:0, var=float32[4]:10,
    eps=0.0, layer='mul', positions=2); calls {'mul': 1}
x * m.b
    b held; Mul(a='x', b='b')
x * m.row
    row held; Mul(a='x', b='row')
x * m.t
    t held; BatchNorm(x='x', gamma=float32[4]:67.5, beta=float32[4]:0, mean=float32[4]:0, var=float32[4]:10,
    eps=0.0, layer='mul', positions=1); calls {'mul': 1}
x * m.filters
    filters held; BatchNorm(x='x', gamma=float32[4]:74.17, beta=float32[4]:0, mean=float32[4]:0, var=float32[4]:10,
    eps=0.0, layer='mul', positions=2); calls {'mul': 1}
x * m.two
    two held; Mul(a='x', b='two')
x * m.doubled
    doubled held; Mul(a='x', b='doubled')
x ** m.k
    k held; operator.pow
m.norm(x) * m.k
    BatchNorm(x='x', gamma=float32[4]:147.5, beta=float32[4]:154.2, mean=float32[4]:174.2, var=float32[4]:180.8,
    eps=1e-05, layer='norm', positions=2); k held; BatchNorm(x='norm', gamma=float32[4]:54.17, beta=float32[4]:0,
    mean=float32[4]:0, var=float32[4]:10, eps=0.0, layer='mul', positions=2); calls {'norm': 1, 'mul': 1}
"""
FORMS["products"] = """
x @ m.w
    Linear(x='x', layer='linear', weight=float32[4, 4]:93, bias=None); calls {'linear': 1}
m.w @ x
    Move(x='x'); Linear(x='transpose', layer='linear', weight=float32[4, 4]:102, bias=None); Move(x='linear'); calls
    {'linear': 1}
x @ m.b
    b held; operator.matmul
m.w @ m.w @ x
    Move(x='x'); Linear(x='transpose', layer='linear', weight=float32[4, 4]:261.8, bias=None); Move(x='linear');
    calls {'linear': 1}
torch.mm(x, m.w)
    Linear(x='x', layer='linear', weight=float32[4, 4]:93, bias=None); calls {'linear': 1}
x.mm(m.wide.t())
    Linear(x='x', layer='linear', weight=float32[3, 4]:110.5, bias=None); calls {'linear': 1}
torch.mm(x, mat2=m.w)
    Linear(x='x', layer='linear', weight=float32[4, 4]:93, bias=None); calls {'linear': 1}
torch.bmm(x, m.each)
    Move(x='x'); Move(x='x'); Linear(x='select', layer='linear', weight=float32[3, 4]:300, bias=None);
    Linear(x='select_1', layer='linear_1', weight=float32[3, 4]:818.9, bias=None); torch.stack; calls {'linear': 1,
    'linear_1': 1}
x.bmm(m.each)
    Move(x='x'); Move(x='x'); Linear(x='select', layer='linear', weight=float32[3, 4]:300, bias=None);
    Linear(x='select_1', layer='linear_1', weight=float32[3, 4]:818.9, bias=None); torch.stack; calls {'linear': 1,
    'linear_1': 1}
torch.bmm(m.each, x)
    Move(x='x'); Move(x='x'); Move(x='select'); Linear(x='permute', layer='linear', weight=float32[4, 3]:336.6,
    bias=None); Move(x='select_1'); Linear(x='permute_1', layer='linear_1', weight=float32[4, 3]:855.5, bias=None);
    torch.stack; Move(x='stack'); calls {'linear': 1, 'linear_1': 1}
torch.addmm(m.b, x, m.w)
    Linear(x='x', layer='linear', weight=float32[4, 4]:93, bias=float32[4]:34.17); calls {'linear': 1}
torch.addmm(m.row, x, m.w)
    Linear(x='x', layer='linear', weight=float32[4, 4]:93, bias=float32[4]:40.83); calls {'linear': 1}
torch.addmm(y, x, m.w)
    Linear(x='x', layer='linear', weight=float32[4, 4]:93, bias=None); Add(a='linear', b='y'); calls {'linear': 1}
torch.addmm(m.b, x, m.w, beta=2)
    b held; w held; torch.addmm
torch.addmm(m.b, x, y)
    b held; torch.addmm
m.b.addmm(x, m.w)
    Linear(x='x', layer='linear', weight=float32[4, 4]:93, bias=float32[4]:34.17); calls {'linear': 1}
torch.addmm(m.two, x, m.w)
    two held; Linear(x='x', layer='linear', weight=float32[4, 4]:93, bias=None); Add(a='linear', b='two'); calls
    {'linear': 1}
torch.einsum("bi,io->bo", x, m.w)
    Linear(x='x', layer='linear', weight=float32[4, 4]:93, bias=None); calls {'linear': 1}
torch.einsum("bi,io->bo", [x, m.w])
    Linear(x='x', layer='linear', weight=float32[4, 4]:93, bias=None); calls {'linear': 1}
torch.einsum("bi,io", x, m.w)
    w held; torch.einsum
torch.einsum("bi->b", x)
    torch.einsum
torch.einsum("bi,io,oj->bj", x, m.w, m.w)
    w held; torch.einsum
torch.einsum(" b i , o i -> b o", x, m.w)
    Linear(x='x', layer='linear', weight=float32[4, 4]:102, bias=None); calls {'linear': 1}
torch.einsum("oi,bi->bo", m.w, x)
    Linear(x='x', layer='linear', weight=float32[4, 4]:102, bias=None); calls {'linear': 1}
torch.einsum("oi,ij->oj", m.w, m.w)
    einsum held
torch.einsum("bi,io->bo", x, y)
    torch.einsum
torch.einsum("bi,ihd->bhd", x, m.heads)
    Linear(x='x', layer='linear', weight=float32[4, 4]:958.3, bias=None); Move(x='linear'); calls {'linear': 1}
torch.einsum("bhd,ihd->bi", x, m.heads)
    Move(x='x'); Linear(x='flatten', layer='linear', weight=float32[4, 4]:1099, bias=None); calls {'linear': 1}
torch.einsum("bdh,ihd->ib", x, m.heads)
    Move(x='x'); Move(x='permute'); Linear(x='flatten', layer='linear', weight=float32[4, 4]:1099, bias=None);
    Move(x='linear'); calls {'linear': 1}
torch.einsum("...i,ihd->...hd", x, m.heads)
    Linear(x='x', layer='linear', weight=float32[4, 4]:958.3, bias=None); Move(x='linear'); calls {'linear': 1}
torch.einsum("...i,ihd->...dh", x, m.heads)
    Linear(x='x', layer='linear', weight=float32[4, 4]:958.3, bias=None); Move(x='linear'); Move(x='unflatten');
    calls {'linear': 1}
torch.einsum("...i,...io->...o", x, m.w)
    w held; torch.einsum
torch.einsum("...i,io->o", x, m.w)
    w held; torch.einsum
torch.einsum("zti,zio->zto", x, m.each)
    Move(x='x'); Move(x='x'); Linear(x='select', layer='linear', weight=float32[3, 4]:300, bias=None);
    Linear(x='select_1', layer='linear_1', weight=float32[3, 4]:818.9, bias=None); torch.stack; calls {'linear': 1,
    'linear_1': 1}
torch.einsum("tiz,zio->zto", x, m.each)
    Move(x='x'); Move(x='x'); Linear(x='select', layer='linear', weight=float32[3, 4]:300, bias=None);
    Linear(x='select_1', layer='linear_1', weight=float32[3, 4]:818.9, bias=None); torch.stack; calls {'linear': 1,
    'linear_1': 1}
torch.einsum("...zi,zio->...zo", x, m.each)
    Move(x='x'); Move(x='x'); Linear(x='select', layer='linear', weight=float32[3, 4]:300, bias=None);
    Linear(x='select_1', layer='linear_1', weight=float32[3, 4]:818.9, bias=None); torch.stack; calls {'linear': 1,
    'linear_1': 1}
torch.einsum("azti,azio->azto", x, m.pairs)
    pairs held; torch.einsum
torch.einsum("zi,zio->zo", x, m.many)
    many held; torch.einsum
torch.einsum("bi,io->bi", x, m.w)
    w held; torch.einsum
torch.einsum("bi,io->boi", x, m.w)
    w held; torch.einsum
torch.einsum("b,io->bio", x, m.w)
    w held; torch.einsum
torch.einsum("bii,io->bo", x, m.w)
    w held; torch.einsum
torch.einsum("bi,io->bbo", x, m.w)
    w held; torch.einsum
torch.einsum("bi,i->b", x, m.b)
    b held; torch.einsum
torch.einsum("bi,ioz->bo", x, m.heads)
    heads held; torch.einsum
torch.einsum("bi,ioz->bo", x, m.w)
    w held; torch.einsum
torch.einsum("b1,1o->bo", x, m.w)
    w held; torch.einsum
torch.einsum("bi,io->bo", x, m.outs)
    outs held; torch.einsum
torch.einsum("bi,io->bo", x, m.thin)
    Linear(x='x', layer='linear', weight=float32[1, 4]:20.83, bias=None); calls {'linear': 1}
torch.einsum("bi,io->bo", x, m.doubled)
    doubled held; torch.einsum
torch.einsum("bi,io->bo", x, m.vec[None])
    _tensor_constant0 held; torch.einsum
torch.sin(x @ m.w)
    w held; operator.matmul; torch.sin
torch.sin(x @ m.w + m.b)
    w held; operator.matmul; b held; Add(a='matmul', b='b'); torch.sin
(2 * (x @ m.w)).cos()
    w held; operator.matmul; Elementwise(x='matmul', function='mul 2'); cos
torch.sin(x @ m.w + y)
    Linear(x='x', layer='linear', weight=float32[4, 4]:93, bias=None); Add(a='linear', b='y'); torch.sin; calls
    {'linear': 1}
torch.sin(F.linear(x, m.w)).exp() + x @ m.w
    Linear(x='x', layer='linear', weight=float32[4, 4]:102, bias=None); torch.sin; exp; Linear(x='x',
    layer='linear_1', weight=float32[4, 4]:93, bias=None); Add(a='exp', b='linear_1'); calls {'linear': 1,
    'linear_1': 1}
x @ m.w + m.b
    Linear(x='x', layer='linear_1', weight=float32[4, 4]:93, bias=float32[4]:34.17); calls {'linear_1': 1}
m.b + x @ m.w
    Linear(x='x', layer='linear_1', weight=float32[4, 4]:93, bias=float32[4]:34.17); calls {'linear_1': 1}
x @ m.w + m.two
    Linear(x='x', layer='linear', weight=float32[4, 4]:93, bias=None); two held; Add(a='linear', b='two'); calls
    {'linear': 1}
x @ m.w + m.row
    Linear(x='x', layer='linear_1', weight=float32[4, 4]:93, bias=float32[4]:40.83); calls {'linear_1': 1}
x @ m.w + m.c
    Linear(x='x', layer='linear', weight=float32[4, 4]:93, bias=None); c held; BatchNorm(x='linear',
    gamma=float32[4]:10, beta=float32[4]:60.83, mean=float32[4]:0, var=float32[4]:10, eps=0.0, layer='add',
    positions=2); calls {'linear': 1, 'add': 1}
F.linear(x, m.w, m.b) + m.b
    b held; Linear(x='x', layer='linear', weight=float32[4, 4]:102, bias=float32[4]:34.17); Add(a='linear', b='b');
    calls {'linear': 1}
torch.add(x @ m.w, m.b, alpha=1)
    Linear(x='x', layer='linear', weight=float32[4, 4]:93, bias=None); b held; Add(a='linear', b='b'); calls
    {'linear': 1}
F.linear(x, weight=m.w) + m.b
    Linear(x='x', layer='linear', weight=float32[4, 4]:102, bias=None); b held; Add(a='linear', b='b'); calls
    {'linear': 1}
"""
FORMS["layers"] = """
F.linear(x, m.w)
    Linear(x='x', layer='linear', weight=float32[4, 4]:102, bias=None); calls {'linear': 1}
F.linear(x, y)
    torch.nn.functional.linear
F.linear(x, m.w, y)
    w held; torch.nn.functional.linear
F.linear(x, m.w, m.b)
    Linear(x='x', layer='linear', weight=float32[4, 4]:102, bias=float32[4]:34.17); calls {'linear': 1}
F.linear(F.linear(x, m.w), m.wide, bias=None)
    Linear(x='x', layer='linear', weight=float32[4, 4]:102, bias=None); Linear(x='linear', layer='linear_1',
    weight=float32[3, 4]:110.5, bias=None); calls {'linear': 1, 'linear_1': 1}
F.linear(x, m.doubled)
    doubled held; torch.nn.functional.linear
F.linear(x, m.w, m.doubled)
    w held; doubled held; torch.nn.functional.linear
F.conv2d(x, m.kernel)
    Conv(x='x', layer='conv2d', weight=float32[4, 2, 3, 2]:1.264e+04, bias=None, stride=(1, 1), padding=((0, 0), (0,
    0)), dilation=(1, 1), input_dilation=(1, 1), groups=1); calls {'conv2d': 1}
F.conv2d(x, m.kernel, m.b, 2, 1, (2, 1), 2)
    Conv(x='x', layer='conv2d', weight=float32[4, 2, 3, 2]:1.264e+04, bias=float32[4]:34.17, stride=(2, 2),
    padding=((1, 1), (1, 1)), dilation=(2, 1), input_dilation=(1, 1), groups=2); calls {'conv2d': 1}
F.conv2d(x, m.kernel, padding="same", dilation=(2, 2))
    Conv(x='x', layer='conv2d', weight=float32[4, 2, 3, 2]:1.264e+04, bias=None, stride=(1, 1), padding=((2, 2), (1,
    1)), dilation=(2, 2), input_dilation=(1, 1), groups=1); calls {'conv2d': 1}
F.conv2d(x, m.kernel, padding="valid")
    Conv(x='x', layer='conv2d', weight=float32[4, 2, 3, 2]:1.264e+04, bias=None, stride=(1, 1), padding=((0, 0), (0,
    0)), dilation=(1, 1), input_dilation=(1, 1), groups=1); calls {'conv2d': 1}
F.conv2d(x, m.kernel, stride=(1, 2, 3))
    kernel held; torch.conv2d
F.conv2d(x, m.kernel, padding=(1, 2, 3))
    kernel held; torch.conv2d
F.conv2d(x, m.kernel, dilation=(1, 2, 3))
    kernel held; torch.conv2d
F.conv2d(x, m.kernel, groups=x.size(0))
    kernel held; Shape(x='x'); torch.conv2d
F.conv2d(x, m.kernel, stride=x.size(0))
    kernel held; Shape(x='x'); torch.conv2d
F.conv2d(x, m.kernel, m.b, [2])
    Conv(x='x', layer='conv2d', weight=float32[4, 2, 3, 2]:1.264e+04, bias=float32[4]:34.17, stride=(2, 2),
    padding=((0, 0), (0, 0)), dilation=(1, 1), input_dilation=(1, 1), groups=1); calls {'conv2d': 1}
F.conv1d(x, m.kernel1, stride=2)
    Conv(x='x', layer='conv1d', weight=float32[4, 2, 3]:3425, bias=None, stride=(2), padding=((0, 0)), dilation=(1),
    input_dilation=(1), groups=1); calls {'conv1d': 1}
torch.conv1d(x, m.kernel1, m.b, 2, 1, 2, 2)
    Conv(x='x', layer='conv1d', weight=float32[4, 2, 3]:3425, bias=float32[4]:34.17, stride=(2), padding=((1, 1)),
    dilation=(2), input_dilation=(1), groups=2); calls {'conv1d': 1}
torch.conv3d(x, m.kernel3)
    Conv(x='x', layer='conv3d', weight=float32[4, 2, 1, 1, 1]:435, bias=None, stride=(1, 1, 1), padding=((0, 0), (0,
    0), (0, 0)), dilation=(1, 1, 1), input_dilation=(1, 1, 1), groups=1); calls {'conv3d': 1}
F.conv3d(x, m.kernel3)
    Conv(x='x', layer='conv3d', weight=float32[4, 2, 1, 1, 1]:435, bias=None, stride=(1, 1, 1), padding=((0, 0), (0,
    0), (0, 0)), dilation=(1, 1, 1), input_dilation=(1, 1, 1), groups=1); calls {'conv3d': 1}
torch.conv2d(x, m.kernel)
    Conv(x='x', layer='conv2d', weight=float32[4, 2, 3, 2]:1.264e+04, bias=None, stride=(1, 1), padding=((0, 0), (0,
    0)), dilation=(1, 1), input_dilation=(1, 1), groups=1); calls {'conv2d': 1}
attention.linear_rows(x, m.w, m.b, 1, 3)
    Linear(x='x', layer='linear_rows.1', weight=float32[2, 4]:24.6, bias=float32[2]:8.667); calls {'linear_rows.1':
    1}
attention.project(x, m.w, None, 1, 3)
    Linear(x='x', layer='project.1', weight=float32[4, 4]:102, bias=None); calls {'project.1': 1}
m.conv(x) + F.conv2d(x, m.conv.weight)
    Conv(x='x', layer='conv', weight=float32[4, 4, 1, 1]:1825, bias=float32[4]:140.8, stride=(1, 1), padding=((0,
    0), (0, 0)), dilation=(1, 1), input_dilation=(1, 1), groups=1); Conv(x='x', layer='conv', weight=float32[4, 4,
    1, 1]:1825, bias=None, stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), input_dilation=(1, 1),
    groups=1); Add(a='conv', b='conv2d'); calls {'conv': 2}
"""
FORMS["constants"] = """
F.linear(x, m.act(m.w))
    Linear(x='x', layer='act', weight=float32[4, 4]:84.48, bias=None); calls {'act': 1}
F.linear(x, m.act(m.vec[None]))
    Linear(x='x', layer='act', weight=float32[1, 4]:9.245, bias=None); calls {'act': 1}
F.linear(x, m.conv(m.k)[0, :, :, 0])
    Linear(x='x', layer='linear', weight=float32[4, 1]:2416, bias=None); calls {'linear': 1}
F.linear(x, m.w.t().contiguous())
    Linear(x='x', layer='linear', weight=float32[4, 4]:93, bias=None); calls {'linear': 1}
F.linear(x, m.w * m.buf.sum())
    Linear(x='x', layer='linear', weight=float32[4, 4]:4947, bias=None); calls {'linear': 1}
F.linear(x, torch.zeros_like(m.w))
    Linear(x='x', layer='linear', weight=float32[4, 4]:0, bias=None); calls {'linear': 1}
F.linear(x, weight=m.w + 1)
    Linear(x='x', layer='linear', weight=float32[4, 4]:238, bias=None); calls {'linear': 1}
x * m.b.expand(3, 4)
    b held; Move(x='b'); Mul(a='x', b='expand')
x * m.b.expand(2, 4)
    expand held; Mul(a='x', b='expand_1')
x * (m.b.expand(3, 4) + 1).sum(0)
    sum_1 held; Mul(a='x', b='sum_2')
x.view(m.w.shape[0], -1)
    Move(x='x')
torch.sum(x, dim=m.w.dim())
    torch.sum
x.to(m.w.dtype)
    to
x * torch.rand_like(m.b)
    b held; torch.rand_like; Mul(a='x', b='rand_like')
x * torch.maximum(m.b, m.vec)
    maximum held; Mul(a='x', b='maximum_1')
x * m.b.max(0)[0]
    getitem held; Mul(a='x', b='getitem_1')
x * m.b.view(3, 3)
    b held; Move(x='b'); Mul(a='x', b='view')
x * m.b.max()
    max_1 held; Mul(a='x', b='max_2')
x * (m.vec.int() + 1)
    _tensor_constant0 held; Mul(a='x', b='_tensor_constant0')
"""


@pytest.mark.parametrize("name", FORMS)
def test_each_form_of_a_layer_becomes_this(name):
    assert all_become(FORMS[name]) == FORMS[name].strip()
