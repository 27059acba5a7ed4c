"""Whole graphs: every field of every node, what is called, whose parts they are, why they stay in float, and how
constants were made."""

import pytest
import torch
from recordings import recorded as recorded_on
from torch import nn
from torch.nn import functional as F

from graph_text import numbered, text
from quantspec.capture import tracer


class Images(nn.Module):
    """Layers of images, modules that are layers, windows, activations, and what moves values."""

    def __init__(self):
        super().__init__()
        self.same = nn.Conv2d(2, 4, (2, 3), padding="same", dilation=(2, 1), padding_mode="reflect")
        self.valid = nn.Conv2d(4, 4, 2, padding="valid", groups=2, bias=False)
        self.edge = nn.ReplicationPad2d((1, 0, 2, 1))
        self.up = nn.ConvTranspose2d(4, 2, 2, stride=2, padding=1, output_padding=1, dilation=3, groups=2)
        self.norm, self.plain = nn.BatchNorm2d(2, eps=0.5), nn.BatchNorm2d(2, affine=False)
        self.drop, self.act, self.ceil = nn.Dropout(), nn.ReLU6(inplace=True), nn.Hardtanh(0.0, 2.0)
        self.both, self.parts = nn.Hardtanh(-1.0, 2.0), nn.PReLU(2)
        self.big, self.mid = nn.MaxPool2d((2, 1), padding=(1, 0)), nn.AvgPool2d(2, 1, ceil_mode=True)
        self.ada, self.pad, self.shuffle = nn.AdaptiveAvgPool2d((2, None)), nn.ZeroPad2d(1), nn.ChannelShuffle(2)
        self.large, self.near = nn.Upsample(size=(4, 6), mode="bilinear"), nn.Upsample(scale_factor=2.0)
        self.un, self.px, self.average = nn.PixelUnshuffle(2), nn.PixelShuffle(2), nn.AvgPool2d(1, divisor_override=3)
        self.whole, self.flat, self.unflat = nn.BatchNorm3d(1), nn.Flatten(), nn.Unflatten(1, (2, 96))
        self.rows, self.soft, self.circular = nn.BatchNorm1d(2), nn.Softmax(-1), nn.CircularPad1d(1)
        self.last = nn.Linear(98, 3)

    def forward(self, x):
        x = self.plain(self.norm(self.up(self.edge(self.valid(self.same(x))))))
        x = self.parts(self.both(self.ceil(self.act(self.drop(x)))))
        x = self.near(self.shuffle(self.large(self.pad(self.ada(self.mid(self.big(x)))))))
        x = self.whole(self.px(self.un(self.average(x)))[:, None])[:, 0]
        return self.last(self.circular(self.soft(self.rows(self.unflat(self.flat(x))))))


class Sequences(nn.Module):
    """Layers of sequences, and what they are given beside their inputs."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(5, 4, padding_idx=1)
        self.bag = nn.EmbeddingBag(5, 4, mode="sum", include_last_offset=True)
        self.lstm = nn.LSTM(4, 2, num_layers=2, bidirectional=True, batch_first=True)
        self.gru, self.rnn = nn.GRU(4, 2, bias=False), nn.RNN(2, 2, nonlinearity="relu")
        self.cell, self.long, self.short = nn.RNNCell(2, 2), nn.LSTMCell(2, 2), nn.GRUCell(2, 2)
        self.projected = nn.LSTM(4, 2, proj_size=1)
        self.norm, self.row = nn.LayerNorm(4), nn.Conv1d(4, 2, 1, padding=1, padding_mode="circular")

    def forward(self, x, offsets, state, scale=0.5, *, extra=None):
        y, kept = self.lstm(self.words(x), (state, state))
        bags = self.bag(x.flatten(), per_sample_weights=None, offsets=offsets)
        z = self.rnn(self.gru(self.norm(y), hx=None)[0])[0]
        row = self.long(self.cell(z[0]), None)[0]
        return {"a": [self.short(row, hx=row), kept[0]], "b": (bags, self.projected(y)[0]), "c": self.row(y.mT) * scale}


class Functions(nn.Module):
    """Functions and methods of torch as layers, activations, windows, sums and moves."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(3, 2, 2, 2)), nn.Parameter(torch.empty(3))
        self.inner = nn.Module()
        self.inner.weight, self.inner.other = nn.Parameter(torch.empty(3, 3)), nn.Parameter(torch.empty(3, 3))
        self.scale = nn.Parameter(torch.empty(1, 3, 1, 1))
        self.register_buffer("mean", torch.empty(3))

    def forward(self, x):
        x = F.conv2d(x, self.weight, self.bias, (2, 1), padding=(1, 0), dilation=2)
        x = F.batch_norm(x, self.mean, self.mean, eps=0.5)
        x = torch.batch_norm(x, None, self.bias, self.mean, self.mean, False, 0.1, 0.25, False)
        x = x / self.scale - self.scale
        x = self.scale * x + self.scale
        x = F.relu6(x.clamp(min=0, max=3.0)).neg_().clamp_(-2, -0.5)
        x = torch.relu_(3 - x) + (x + 0.5).mul_(2).div(4) - 1e-7
        x = torch.add(x, x, alpha=2) * x - torch.div(x, 0.3, rounding_mode="floor")
        x = torch.cat([x, F.dropout(x, 0.3, False), F.dropout2d(x, training=False)], 2)
        x = F.max_pool2d(x, (3, 1), stride=1, padding=(1, 0), ceil_mode=True)
        x = x + F.avg_pool2d(x, 1, count_include_pad=False)
        y = F.adaptive_avg_pool2d(x, 2) + x.mean((-1, -2), keepdim=True) + torch.mean(x, 3, True)[..., :1]
        x = F.interpolate(F.pad(x, (1, 2), value=0.0), size=y.shape[2:], mode="bilinear", align_corners=True)
        x = F.interpolate(x, scale_factor=(2, 3), mode="bilinear", recompute_scale_factor=True)
        x = F.interpolate(F.pad(x, (1, 2), "reflect"), scale_factor=2)
        x = x.permute(0, 2, 3, 1).contiguous().view(x.shape[0] * x.size(2), -1, 3)
        x = F.linear(F.linear(x, self.inner.weight, self.bias), weight=self.inner.other).squeeze()
        return F.linear(x.softmax(-1).to(x.dtype), self.inner.weight), y.sum(dim=1)


class Products(nn.Module):
    """Products with parameters by other names, and what is computed of parameters."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(4, 4)), nn.Parameter(torch.empty(1, 4))
        self.heads, self.several = nn.Parameter(torch.empty(4, 2, 2)), nn.Parameter(torch.empty(2, 4, 3))
        self.register_buffer("table", torch.empty(4, 4))

    def forward(self, x):
        x = torch.addmm(self.bias, x, self.weight) + x @ self.weight.t() + torch.einsum("ij,bj->bi", self.weight, x)
        x = x.matmul(self.weight * self.table + 1) + self.bias + (self.weight @ x.t()).t()
        heads = torch.einsum("bi,ihd->bhd", x, self.heads)
        x = torch.einsum("bhd,ihd->bi", heads, self.heads)
        return torch.bmm(torch.stack([x, x]), self.several), torch.sin(x @ self.weight), self.table[0].exp() * x


class Attention(nn.Module):
    """torch.nn's attention, which is written out."""

    def __init__(self):
        super().__init__()
        self.own, self.pair = nn.MultiheadAttention(4, 2, kdim=3, vdim=2, bias=False), nn.MultiheadAttention(4, 2, 0.5)
        self.layer = nn.TransformerEncoderLayer(4, 2, 3, 0.25, "gelu", norm_first=True, batch_first=True)
        self.more = nn.MultiheadAttention(4, 1, kdim=4, vdim=4)

    def forward(self, x, memory, mask):
        y, weights = self.pair(x, memory, memory, key_padding_mask=mask, average_attn_weights=False)
        y = self.own(y, memory[..., :3], memory[..., 2:], need_weights=False, attn_mask=None)[0]
        return self.layer(y, src_mask=mask), weights, self.more(x, memory, y)[0]


class Sizes(nn.Module):
    """Numbers that are sizes, what is written in place, and what Python decides by."""

    def __init__(self):
        super().__init__()
        self.layer, self.table = nn.Linear(4, 4), nn.Parameter(torch.empty(6))
        self.act, self.lazy = nn.Hardswish(inplace=True), nn.Flatten()

    def forward(self, x, more):
        y = self.layer(x)
        y[:, 0], z = 0.5, y.new_empty(y.shape[0], 2).fill_(1.0)
        y += len(x) / 2 if x.shape[0] > 2 and not x.shape[0] == 7 and x.dtype == torch.float32 else 0
        y = self.act(y).mul_(2) - self.lazy(more)[:, : y.shape[1]]
        y.copy_(y * (y.shape[-1] // 3 + more.numel() % 4)).zero_().sub_(1)
        rows = torch.arange(y.size(0)) + self.table[: y.size(0)].exp()
        first, second = y.split(2, 1)
        values = y.max(1)
        return y.T @ y, {"rows": rows, "parts": [second, z, first.mT]}, values.indices, y[:, None].size(), 1 - y.data


X = torch.ones(3, 4)
TABLE = torch.tensor([[1, 2, 0], [3, 4, 1]])
# A model, its arguments, and whether it is recorded.
MODELS = {
    "images": (Images, (torch.ones(1, 2, 7, 6),), False), "sequences": (Sequences, (TABLE, TABLE[0, :2] * 0, X), False),
    "functions": (Functions, (torch.ones(1, 2, 7, 6),), False), "products": (Products, (X,), False),
    "attention": (Attention, (X, X, X), False), "products, recorded": (Products, (X,), True),
    "sizes": (Sizes, (X, torch.ones(3, 2, 2)), True),
}  # fmt: skip


def graph_of(name):
    build, given, recorded = MODELS[name]
    model = numbered(build())
    if not recorded:
        return tracer.trace(model, acts=True).graph
    return recorded_on(model, *given)


# The whole of each graph.
EXPECTED = {}
EXPECTED["images"] = """
(x)
same_padded: Move(x='x') | same_padded: function torch.nn.functional.pad(%x, [1, 1, 1, 1], mode='reflect')
        @same
same: Conv(x='same_padded', layer='same', weight=float32[4, 2, 2, 3]:882, bias=float32[4]:14.17, stride=(1,
        1), padding=((0, 0), (0, 0)), dilation=(2, 1), input_dilation=(1, 1), groups=1) @same
valid: Conv(x='same', layer='valid', weight=float32[4, 2, 2, 2]:1100, bias=None, stride=(1, 1), padding=((0,
        0), (0, 0)), dilation=(1, 1), input_dilation=(1, 1), groups=2) @valid
edge: Move(x='valid') | edge: function torch.nn.functional.pad(%valid, [1, 0, 2, 1], mode='replicate') @edge
up: Conv(x='edge', layer='up', weight=float32[2, 2, 2, 2]:364, bias=float32[2]:10.25, stride=(1, 1),
        padding=((2, 3), (2, 3)), dilation=(3, 3), input_dilation=(2, 2), groups=2, transposed=True) @up
norm: BatchNorm(x='up', gamma=float32[2]:12.25, beta=float32[2]:14.25, mean=float32[2]:30.25,
        var=float32[2]:32.25, eps=0.5, layer='norm', positions=2) | norm: module norm(%up) # BatchNorm2d has
        no integer form here @norm
plain: BatchNorm(x='norm', gamma=float32[2]:3, beta=float32[2]:0, mean=float32[2]:36.25, var=float32[2]:38.25,
        eps=1e-05, layer='plain', positions=2) | plain: module plain(%norm) # BatchNorm2d has no integer form
        here @plain
plain.marked: Move(x='plain') | plain.marked: function quantspec.capture.builder.marked(%plain, 'act0') @plain
act: Elementwise(x='plain.marked', function='relu6', ceiling=6.0) | act: module act(%plain.marked) # ReLU6 has
        no integer form here @act
ceil: Elementwise(x='act', function='hardtanh', ceiling=2.0) | ceil: module ceil(%act) # Hardtanh has no
        integer form here @ceil
both: Elementwise(x='ceil', function='hardtanh') | both: module both(%ceil) # Hardtanh has no integer form
        here @both
parts: Elementwise(x='both', function='prelu', channels=2) | parts: module parts(%both) # PReLU has no integer
        form here @parts
big: MaxPool(x='parts', kernel=(2, 1), stride=(2, 1), padding=(1, 0), dilation=(1, 1), ceil_mode=False) | big:
        module big(%parts) # MaxPool2d has no integer form here @big
mid: AvgPool(x='big', kernel=(2, 2), stride=(1, 1), padding=(0, 0), ceil_mode=True, count_include_pad=True) |
        mid: module mid(%big) # AvgPool2d has no integer form here @mid
ada: AdaptiveAvgPool(x='mid', size=(2, None)) | ada: module ada(%mid) # AdaptiveAvgPool2d has no integer form
        here @ada
pad: Move(x='ada') | pad: function torch.nn.functional.pad(%ada, [1, 1, 1, 1]) @pad
large: Bilinear(x='pad', like=None, size=(4, 6), factors=None, exact=False, align_corners=False) | large:
        module large(%pad) # Upsample has no integer form here @large
shuffle: Move(x='large') | shuffle: function torch.channel_shuffle(%large, 2) @shuffle
near: Move(x='shuffle') | near: function torch.nn.functional.interpolate(%shuffle, size=None,
        scale_factor=2.0, mode='nearest') @near
average: module average(%near) # AvgPool2d has no integer form here @average
un: Move(x='average') | un: function torch.pixel_unshuffle(%average, 2) @un
px: Move(x='un') | px: function torch.pixel_shuffle(%un, 2) @px
getitem: Move(x='px') | getitem: function operator.getitem(%px, (slice(None, None, None), None)) @
whole: BatchNorm(x='getitem', gamma=float32[1]:0.25, beta=float32[1]:0.25, mean=float32[1]:0.25,
        var=float32[1]:0.25, eps=1e-05, layer='whole', positions=3) | whole: module whole(%getitem) #
        BatchNorm3d has no integer form here @whole
getitem_1: Move(x='whole') | getitem_1: function operator.getitem(%whole, (slice(None, None, None), 0)) @
flat: Move(x='getitem_1') | flat: function torch.flatten(%getitem_1, 1, -1) @flat
unflat: Move(x='flat') | unflat: method unflatten(%flat, 1, (2, 96)) @unflat
rows: BatchNorm(x='unflat', gamma=float32[2]:22.25, beta=float32[2]:24.25, mean=float32[2]:48.25,
        var=float32[2]:50.25, eps=1e-05, layer='rows') | rows: module rows(%unflat) # BatchNorm1d has no
        integer form here @rows
soft: module soft(%rows) # Softmax has no integer form here @soft
circular: Move(x='soft') | circular: function torch.nn.functional.pad(%soft, [1, 1], mode='circular')
        @circular
last: Linear(x='circular', layer='last', weight=float32[3, 98]:3.794e+05, bias=float32[3]:56.5) @last
-> %last
calls {'same': 1, 'valid': 1, 'edge': 1, 'up': 1, 'norm': 1, 'plain': 1, 'act': 1, 'ceil': 1, 'both': 1,
        'parts': 1, 'big': 1, 'mid': 1, 'ada': 1, 'pad': 1, 'large': 1, 'shuffle': 1, 'near': 1, 'average': 1,
        'un': 1, 'px': 1, 'whole': 1, 'flat': 1, 'unflat': 1, 'rows': 1, 'soft': 1, 'circular': 1, 'last': 1}
function torch.nn.functional.pad: pad
module norm: BatchNorm2d
module plain: BatchNorm2d
function quantspec.capture.builder.marked: marked
module act: ReLU6
module ceil: Hardtanh
module both: Hardtanh
module parts: PReLU
module big: MaxPool2d
module mid: AvgPool2d
module ada: AdaptiveAvgPool2d
module large: Upsample
function torch.channel_shuffle: channel_shuffle
function torch.nn.functional.interpolate: interpolate
module average: AvgPool2d
function torch.pixel_unshuffle: pixel_unshuffle
function torch.pixel_shuffle: pixel_shuffle
function operator.getitem: getitem
module whole: BatchNorm3d
function torch.flatten: flatten
module rows: BatchNorm1d
module soft: Softmax
act act0 of ('drop',), gives drop
    drop: module drop(%0) # Dropout has no integer form here
    module drop: Dropout
"""
EXPECTED["sequences"] = """
(x, offsets, state, scale=0.5, extra=None)
words: Embedding(x='x', layer='words', weight=float32[5, 4]:157.5, padding_idx=1) | words: module words(%x) #
        Embedding has no integer form here @words
lstm: Recurrent(x='words', state=(%state, %state), layer='lstm', kind='lstm', cells=(cell(float32[8, 4]:1100,
        float32[8, 2]:374, float32[8]:123, float32[8]:147), cell(float32[8, 4]:2508, float32[8, 2]:736.7,
        float32[8]:219, float32[8]:243), cell(float32[8, 4]:3916, float32[8, 2]:1099, float32[8]:315,
        float32[8]:339), cell(float32[8, 4]:5324, float32[8, 2]:1462, float32[8]:411, float32[8]:435)),
        bidirectional=True, batch_first=True) | lstm: module lstm(%words, (%state, %state)) # LSTM has no
        integer form here @lstm
getitem: Move(x='lstm') | getitem: function operator.getitem(%lstm, 0) @
getitem_1: Move(x='lstm') | getitem_1: function operator.getitem(%lstm, 1) @
flatten: Move(x='x') | flatten: method flatten(%x) @
bag: Embedding(x='flatten', layer='bag', weight=float32[5, 4]:297.5, bag='sum', offsets='offsets',
        include_last_offset=True) | bag: module bag(%flatten, per_sample_weights=None, offsets=%offsets) #
        EmbeddingBag has no integer form here @bag
norm: module norm(%getitem) # LayerNorm has no integer form here @norm
gru: Recurrent(x='norm', state=None, layer='gru', kind='gru', cells=(cell(float32[6, 4]:3825, float32[6,
        2]:1047, None, None)), bidirectional=False, batch_first=False) | gru: module gru(%norm, hx=None) # GRU
        has no integer form here @gru
getitem_2: Move(x='gru') | getitem_2: function operator.getitem(%gru, 0) @
rnn: Recurrent(x='getitem_2', state=None, layer='rnn', kind='rnn_relu', cells=(cell(float32[2, 2]:140.8,
        float32[2, 2]:147.5, float32[2]:46.25, float32[2]:48.25)), bidirectional=False, batch_first=False) |
        rnn: module rnn(%getitem_2) # RNN has no integer form here @rnn
getitem_3: Move(x='rnn') | getitem_3: function operator.getitem(%rnn, 0) @
getitem_4: Move(x='getitem_3') | getitem_4: function operator.getitem(%getitem_3, 0) @
cell: Recurrent(x='getitem_4', state=None, layer='cell', kind='rnn_tanh', cells=(cell(float32[2, 2]:167.5,
        float32[2, 2]:174.2, float32[2]:54.25, float32[2]:56.25)), bidirectional=False, batch_first=False,
        single=True) | cell: module cell(%getitem_4) # RNNCell has no integer form here @cell
long: Recurrent(x='cell', state=None, layer='long', kind='lstm', cells=(cell(float32[8, 2]:2641, float32[8,
        2]:2731, float32[8]:747, float32[8]:771)), bidirectional=False, batch_first=False, single=True) |
        long: module long(%cell, None) # LSTMCell has no integer form here @long
getitem_5: Move(x='long') | getitem_5: function operator.getitem(%long, 0) @
short: Recurrent(x='getitem_5', state=%getitem_5, layer='short', kind='gru', cells=(cell(float32[6, 2]:1722,
        float32[6, 2]:1774, float32[6]:491.7, float32[6]:505.8)), bidirectional=False, batch_first=False,
        single=True) | short: module short(%getitem_5, hx=%getitem_5) # GRUCell has no integer form here
        @short
getitem_6: Move(x='getitem_1') | getitem_6: function operator.getitem(%getitem_1, 0) @
projected: module projected(%getitem) # LSTM with proj_size has no integer form here @projected
getitem_7: Move(x='projected') | getitem_7: function operator.getitem(%projected, 0) @
row.getattr: function builtins.getattr(%getitem, 'mT') # builtins.getattr has no integer form here @row
row_padded: Move(x='row.getattr') | row_padded: function torch.nn.functional.pad(%row.getattr, [1, 1],
        mode='circular') @row
row: Conv(x='row_padded', layer='row', weight=float32[2, 4, 1]:1059, bias=float32[2]:90.25, stride=(1),
        padding=((0, 0)), dilation=(1), input_dilation=(1), groups=1) @row
mul: Mul(a='row', b='scale') | mul: function operator.mul(%row, %scale) # operator.mul has no integer form
        here @
-> {'a': [%short, %getitem_6], 'b': (%bag, %getitem_7), 'c': %mul}
calls {'words': 1, 'lstm': 1, 'bag': 1, 'norm': 1, 'gru': 1, 'rnn': 1, 'cell': 1, 'long': 1, 'short': 1,
        'projected': 1, 'row': 1}
module words: Embedding
module lstm: LSTM
function operator.getitem: getitem
module bag: EmbeddingBag
module norm: LayerNorm
module gru: GRU
module rnn: RNN
module cell: RNNCell
module long: LSTMCell
module short: GRUCell
module projected: LSTM
function builtins.getattr: getattr
function torch.nn.functional.pad: pad
function operator.mul: mul
"""
EXPECTED["functions"] = """
(x)
bias: attribute bias() # is a constant @
conv2d: Conv(x='x', layer='conv2d', weight=float32[3, 2, 2, 2]:225, bias=float32[3]:8.5, stride=(2, 1),
        padding=((1, 1), (0, 0)), dilation=(2, 2), input_dilation=(1, 1), groups=1) @
mean: attribute mean() # is a constant @
mean_1: attribute mean() # is a constant @
batch_norm: BatchNorm(x='conv2d', gamma=float32[3]:6, beta=float32[3]:0, mean=float32[3]:24.5,
        var=float32[3]:24.5, eps=0.5, layer='batch_norm') | batch_norm: function
        torch.nn.functional.batch_norm(%conv2d, %mean, %mean_1, weight=None, bias=None, training=False,
        momentum=0.1, eps=0.5) # torch.nn.functional.batch_norm has no integer form here @
mean_2: attribute mean() # is a constant @
mean_3: attribute mean() # is a constant @
batch_norm_1: BatchNorm(x='batch_norm', gamma=float32[3]:6, beta=float32[3]:8.5, mean=float32[3]:24.5,
        var=float32[3]:24.5, eps=0.25, layer='batch_norm_1') | batch_norm_1: function
        torch.batch_norm(%batch_norm, None, %bias, %mean_2, %mean_3, False, 0.1, 0.25, False) #
        torch.batch_norm has no integer form here @
scale: attribute scale() # is a constant @
truediv: BatchNorm(x='batch_norm_1', gamma=float32[3]:6.231, beta=float32[3]:0, mean=float32[3]:0,
        var=float32[3]:6, eps=0.0, layer='truediv', positions=2) | truediv: function
        operator.truediv(%batch_norm_1, %scale) # operator.truediv has no integer form here @
sub: BatchNorm(x='truediv', gamma=float32[3]:6, beta=float32[3]:-12.5, mean=float32[3]:0, var=float32[3]:6,
        eps=0.0, layer='sub', positions=2) | sub: function operator.sub(%truediv, %scale) # operator.sub has
        no integer form here @
mul: BatchNorm(x='sub', gamma=float32[3]:12.5, beta=float32[3]:0, mean=float32[3]:0, var=float32[3]:6,
        eps=0.0, layer='mul', positions=2) | mul: function operator.mul(%scale, %sub) # operator.mul has no
        integer form here @
add: BatchNorm(x='mul', gamma=float32[3]:6, beta=float32[3]:12.5, mean=float32[3]:0, var=float32[3]:6,
        eps=0.0, layer='add', positions=2) | add: function operator.add(%mul, %scale) # operator.add has no
        integer form here @
clamp: Elementwise(x='add', function='clamp', ceiling=3.0) | clamp: method clamp(%add, min=0, max=3.0) # clamp
        has no integer form here @
relu6: Elementwise(x='clamp', function='relu6', ceiling=6.0) | relu6: function
        torch.nn.functional.relu6(%clamp, inplace=False) # torch.nn.functional.relu6 has no integer form here
        @
neg_: method neg(%relu6) # neg has no integer form here @
clamp_: Elementwise(x='neg_', function='clamp') | clamp_: method clamp(%neg_, -2, -0.5) # clamp has no integer
        form here @
sub_1: Elementwise(x='clamp_', function='sub 3') | sub_1: function operator.sub(3, %clamp_) # operator.sub has
        no integer form here @
relu_: Relu(x='sub_1') | relu_: function torch.relu(%sub_1) # torch.relu has no integer form here @
add_1: Elementwise(x='clamp_', function='add 0.5') | add_1: function operator.add(%clamp_, 0.5) # operator.add
        has no integer form here @
mul_: Elementwise(x='add_1', function='mul 2') | mul_: method mul(%add_1, 2) # mul has no integer form here @
div: Elementwise(x='mul_', function='div 4') | div: method div(%mul_, 4) # div has no integer form here @
add_2: Add(a='relu_', b='div') | add_2: function operator.add(%relu_, %div) # operator.add has no integer form
        here @
sub_2: Elementwise(x='add_2', function='sub 1e-07') | sub_2: function operator.sub(%add_2, 1e-07) #
        operator.sub has no integer form here @
add_3: function torch.add(%sub_2, %sub_2, alpha=2) # torch.add has no integer form here @
mul_1: Mul(a='add_3', b='sub_2') | mul_1: function operator.mul(%add_3, %sub_2) # operator.mul has no integer
        form here @
div_1: function torch.div(%sub_2, 0.3, rounding_mode='floor') # torch.div has no integer form here @
sub_3: function operator.sub(%mul_1, %div_1) # operator.sub has no integer form here @
marked: Move(x='sub_3') | marked: function quantspec.capture.builder.marked(%sub_3, 'act0') @
marked_1: Move(x='sub_3') | marked_1: function quantspec.capture.builder.marked(%sub_3, 'act1') @
cat: Concat(xs=('sub_3', 'marked', 'marked_1'), axis=2) | cat: function torch.cat([%sub_3, %marked,
        %marked_1], 2) # torch.cat has no integer form here @
max_pool2d: MaxPool(x='cat', kernel=(3, 1), stride=(1, 1), padding=(1, 0), dilation=(1, 1), ceil_mode=True) |
        max_pool2d: function torch.nn.functional.max_pool2d(%cat, (3, 1), stride=1, padding=(1, 0),
        dilation=1, ceil_mode=True, return_indices=False) # torch.nn.functional.max_pool2d has no integer form
        here @
avg_pool2d: AvgPool(x='max_pool2d', kernel=(1, 1), stride=(1, 1), padding=(0, 0), ceil_mode=False,
        count_include_pad=False) | avg_pool2d: function torch.nn.functional.avg_pool2d(%max_pool2d, 1,
        count_include_pad=False) # torch.nn.functional.avg_pool2d has no integer form here @
add_4: Add(a='max_pool2d', b='avg_pool2d') | add_4: function operator.add(%max_pool2d, %avg_pool2d) #
        operator.add has no integer form here @
adaptive_avg_pool2d: AdaptiveAvgPool(x='add_4', size=(2, 2)) | adaptive_avg_pool2d: function
        torch.nn.functional.adaptive_avg_pool2d(%add_4, 2) # torch.nn.functional.adaptive_avg_pool2d has no
        integer form here @
mean_4: Mean(x='add_4', axes=(-1, -2), keepdim=True) | mean_4: method mean(%add_4, (-1, -2), keepdim=True) #
        mean has no integer form here @
add_5: Add(a='adaptive_avg_pool2d', b='mean_4') | add_5: function operator.add(%adaptive_avg_pool2d, %mean_4)
        # operator.add has no integer form here @
mean_5: Mean(x='add_4', axes=(3), keepdim=True) | mean_5: function torch.mean(%add_4, 3, True) # torch.mean
        has no integer form here @
getitem: Move(x='mean_5') | getitem: function operator.getitem(%mean_5, (Ellipsis, slice(None, 1, None))) @
add_6: Add(a='add_5', b='getitem') | add_6: function operator.add(%add_5, %getitem) # operator.add has no
        integer form here @
pad: Move(x='add_4') | pad: function torch.nn.functional.pad(%add_4, (1, 2), mode='constant', value=0.0) @
getattr_1: Shape(x='add_6') | getattr_1: function builtins.getattr(%add_6, 'shape') @
getitem_1: function operator.getitem(%getattr_1, slice(2, None, None)) @
interpolate: Bilinear(x='pad', like='add_6', size=None, factors=None, exact=False, align_corners=True) |
        interpolate: function torch.nn.functional.interpolate(%pad, size=%getitem_1, scale_factor=None,
        mode='bilinear', align_corners=True, recompute_scale_factor=None, antialias=False) #
        torch.nn.functional.interpolate has no integer form here @
interpolate_1: Bilinear(x='interpolate', like=None, size=None, factors=(2.0, 3.0), exact=False,
        align_corners=False) | interpolate_1: function torch.nn.functional.interpolate(%interpolate,
        size=None, scale_factor=(2, 3), mode='bilinear', align_corners=None, recompute_scale_factor=True,
        antialias=False) # torch.nn.functional.interpolate has no integer form here @
pad_1: Move(x='interpolate_1') | pad_1: function torch.nn.functional.pad(%interpolate_1, (1, 2),
        mode='reflect', value=None) @
interpolate_2: Move(x='pad_1') | interpolate_2: function torch.nn.functional.interpolate(%pad_1, size=None,
        scale_factor=2, mode='nearest', align_corners=None, recompute_scale_factor=None, antialias=False) @
permute: Move(x='interpolate_2') | permute: method permute(%interpolate_2, 0, 2, 3, 1) @
contiguous: Move(x='permute') | contiguous: method contiguous(%permute) @
getattr_2: Shape(x='interpolate_2') | getattr_2: function builtins.getattr(%interpolate_2, 'shape') @
getitem_2: function operator.getitem(%getattr_2, 0) @
size: Shape(x='interpolate_2') | size: method size(%interpolate_2, 2) @
mul_2: function operator.mul(%getitem_2, %size) @
view: Move(x='contiguous') | view: method view(%contiguous, %mul_2, -1, 3) @
linear: Linear(x='view', layer='inner', weight=float32[3, 3]:123.8, bias=float32[3]:8.5) @
linear_1: Linear(x='linear', layer='inner.other', weight=float32[3, 3]:153.8, bias=None) @
squeeze: Move(x='linear_1') | squeeze: method squeeze(%linear_1) @
softmax: method softmax(%squeeze, -1) # softmax has no integer form here @
getattr_3: Shape(x='squeeze') | getattr_3: function builtins.getattr(%squeeze, 'dtype') @
to: method to(%softmax, %getattr_3) # to has no integer form here @
linear_2: Linear(x='to', layer='inner', weight=float32[3, 3]:123.8, bias=None) @
sum_1: method sum(%add_6, dim=1) # sum has no integer form here @
-> (%linear_2, %sum_1)
calls {'conv2d': 1, 'batch_norm': 1, 'batch_norm_1': 1, 'truediv': 1, 'sub': 1, 'mul': 1, 'add': 1, 'inner':
        2, 'inner.other': 1}
attribute weight: float32[3, 2, 2, 2]:225
attribute bias: float32[3]:8.5
attribute mean: float32[3]:24.5
function torch.nn.functional.batch_norm: batch_norm
function torch.batch_norm: batch_norm
attribute scale: float32[1, 3, 1, 1]:12.5
function operator.truediv: truediv
function operator.sub: sub
function operator.mul: mul
function operator.add: add
function torch.nn.functional.relu6: relu6
function torch.relu: relu
function torch.add: add
function torch.div: div
function quantspec.capture.builder.marked: marked
function torch.cat: cat
function torch.nn.functional.max_pool2d: max_pool2d
function torch.nn.functional.avg_pool2d: avg_pool2d
function torch.nn.functional.adaptive_avg_pool2d: adaptive_avg_pool2d
function torch.mean: mean
function operator.getitem: getitem
function torch.nn.functional.pad: pad
function builtins.getattr: getattr
function torch.nn.functional.interpolate: interpolate
attribute inner.weight: float32[3, 3]:123.8
attribute inner.other: float32[3, 3]:153.8
recipe of scale_reciprocal: float32[3]:6.231
    source: attribute scale()
    reciprocal_1: method reciprocal(%source)
    reshape_2: method reshape(%reciprocal_1, -1)
recipe of scale_neg: float32[3]:-12.5
    source: attribute scale()
    neg_1: method neg(%source)
    reshape_2: method reshape(%neg_1, -1)
act act0 of ('',), gives dropout
    dropout: function torch.nn.functional.dropout(%0, p=0.3, training=False, inplace=False) #
        torch.nn.functional.dropout has no integer form here
    function torch.nn.functional.dropout: dropout
act act1 of ('',), gives dropout2d
    dropout2d: function torch.nn.functional.dropout2d(%0, p=0.5, training=False, inplace=False) #
        torch.nn.functional.dropout2d has no integer form here
    function torch.nn.functional.dropout2d: dropout2d
"""
EXPECTED["products"] = """
(x)
weight: attribute weight() # is a constant @
linear: Linear(x='x', layer='linear', weight=float32[4, 4]:93, bias=float32[4]:14.17) @
linear_1: Linear(x='x', layer='linear_1', weight=float32[4, 4]:102, bias=None) @
add: Add(a='linear', b='linear_1') | add: function operator.add(%linear, %linear_1) # operator.add has no
        integer form here @
linear_2: Linear(x='x', layer='linear_2', weight=float32[4, 4]:102, bias=None) @
add_1: Add(a='add', b='linear_2') | add_1: function operator.add(%add, %linear_2) # operator.add has no
        integer form here @
linear_4: Linear(x='add_1', layer='linear_4', weight=float32[4, 4]:457.6, bias=float32[4]:14.17) @
t_1: Move(x='add_1') | t_1: method t(%add_1) @
transpose: Move(x='t_1') | transpose: method transpose(%t_1, -2, -1) @
linear_5: Linear(x='transpose', layer='linear_5', weight=float32[4, 4]:102, bias=None) @
transpose_1: Move(x='linear_5') | transpose_1: method transpose(%linear_5, -2, -1) @
t_2: Move(x='transpose_1') | t_2: method t(%transpose_1) @
add_4: Add(a='linear_4', b='t_2') | add_4: function operator.add(%linear_4, %t_2) # operator.add has no
        integer form here @
linear_6: Linear(x='add_4', layer='linear_6', weight=float32[4, 4]:250.3, bias=None) @
unflatten: Move(x='linear_6') | unflatten: method unflatten(%linear_6, -1, (2, 2)) @
flatten: Move(x='unflatten') | flatten: method flatten(%unflatten, -2, -1) @
linear_7: Linear(x='flatten', layer='linear_7', weight=float32[4, 4]:283.3, bias=None) @
stack: function torch.stack([%linear_7, %linear_7]) # torch.stack has no integer form here @
select: Move(x='stack') | select: method select(%stack, -3, 0) @
select_1: Move(x='stack') | select_1: method select(%stack, -3, 1) @
linear_8: Linear(x='select', layer='linear_8', weight=float32[3, 4]:102, bias=None) @
linear_9: Linear(x='select_1', layer='linear_9', weight=float32[3, 4]:254.6, bias=None) @
stack_1: function torch.stack([%linear_8, %linear_9], -3) # torch.stack has no integer form here @
matmul_3: function operator.matmul(%linear_7, %weight) # operator.matmul has no integer form here @
sin: function torch.sin(%matmul_3) # torch.sin has no integer form here @
_tensor_constant0: attribute _tensor_constant0() # is a constant @
mul_1: Mul(a='_tensor_constant0', b='linear_7') | mul_1: method mul(%_tensor_constant0, %linear_7) # mul has
        no integer form here @
-> (%stack_1, %sin, %mul_1)
calls {'linear': 1, 'linear_1': 1, 'linear_2': 1, 'linear_4': 1, 'linear_5': 1, 'linear_6': 1, 'linear_7': 1,
        'linear_8': 1, 'linear_9': 1}
attribute bias: float32[1, 4]:14.17
attribute weight: float32[4, 4]:102
attribute weight_10: float32[4, 4]:93
attribute bias_flat: float32[4]:14.17
attribute t: float32[4, 4]:93
attribute t_10: float32[4, 4]:102
function operator.add: add
attribute add_2: float32[4, 4]:516.8
attribute add_2_10: float32[4, 4]:457.6
attribute heads: float32[4, 2, 2]:283.3
attribute heads_120: float32[4, 4]:250.3
attribute heads_012: float32[4, 4]:283.3
function torch.stack: stack
attribute several: float32[2, 4, 3]:825
attribute several_21_0: float32[3, 4]:102
attribute several_21_1: float32[3, 4]:254.6
function operator.matmul: matmul
function torch.sin: sin
attribute _tensor_constant0: float32[4]:25.35
recipe of t: Parameter float32[4, 4]:93
    weight: attribute weight() # is a constant
    t: method t(%weight) # t has no integer form here
recipe of add_2: Parameter float32[4, 4]:516.8
    weight: attribute weight() # is a constant
    table: attribute table() # is a constant
    mul: function operator.mul(%weight, %table) # operator.mul has no integer form here
    add_2: function operator.add(%mul, 1) # operator.add has no integer form here
    function operator.mul: mul
    function operator.add: add
recipe of weight_10: float32[4, 4]:93
    source: attribute weight()
    permute_1: method permute(%source, (1, 0))
    reshape_2: method reshape(%permute_1, 4, -1)
    contiguous_3: method contiguous(%reshape_2)
recipe of bias_flat: float32[4]:14.17
    source: attribute bias()
    reshape_1: method reshape(%source, -1)
    contiguous_2: method contiguous(%reshape_1)
recipe of t_10: float32[4, 4]:102
    weight: attribute weight() # is a constant
    t: method t(%weight) # t has no integer form here
    permute_2: method permute(%t, (1, 0))
    reshape_3: method reshape(%permute_2, 4, -1)
    contiguous_4: method contiguous(%reshape_3)
recipe of add_2_10: float32[4, 4]:457.6
    weight: attribute weight() # is a constant
    table: attribute table() # is a constant
    mul: function operator.mul(%weight, %table) # operator.mul has no integer form here
    add_2: function operator.add(%mul, 1) # operator.add has no integer form here
    permute_4: method permute(%add_2, (1, 0))
    reshape_5: method reshape(%permute_4, 4, -1)
    contiguous_6: method contiguous(%reshape_5)
    function operator.mul: mul
    function operator.add: add
recipe of heads_120: float32[4, 4]:250.3
    source: attribute heads()
    permute_1: method permute(%source, (1, 2, 0))
    reshape_2: method reshape(%permute_1, 4, -1)
    contiguous_3: method contiguous(%reshape_2)
recipe of heads_012: float32[4, 4]:283.3
    source: attribute heads()
    permute_1: method permute(%source, (0, 1, 2))
    reshape_2: method reshape(%permute_1, 4, -1)
    contiguous_3: method contiguous(%reshape_2)
recipe of several_21_0: float32[3, 4]:102
    source: attribute several()
    select_1: method select(%source, 0, 0)
    permute_2: method permute(%select_1, (1, 0))
    reshape_3: method reshape(%permute_2, 3, -1)
    contiguous_4: method contiguous(%reshape_3)
recipe of several_21_1: float32[3, 4]:254.6
    source: attribute several()
    select_1: method select(%source, 0, 1)
    permute_2: method permute(%select_1, (1, 0))
    reshape_3: method reshape(%permute_2, 3, -1)
    contiguous_4: method contiguous(%reshape_3)
"""
EXPECTED["attention"] = """
(x, memory, mask)
pair.linear_rows: Linear(x='x', layer='pair.0', weight=float32[4, 4]:171.4, bias=float32[4]:12.95) @pair
pair.linear_rows_1: Linear(x='memory', layer='pair.4', weight=float32[8, 4]:2089, bias=float32[8]:172.1) @pair
pair.chunk: Move(x='pair.linear_rows_1') | pair.chunk: method chunk(%pair.linear_rows_1, 2, -1) @pair
pair.getitem: Move(x='pair.chunk') | pair.getitem: function operator.getitem(%pair.chunk, 0) @pair
pair.getitem_1: Move(x='pair.chunk') | pair.getitem_1: function operator.getitem(%pair.chunk, 1) @pair
pair.attend: function quantspec.capture.attention.attend(%pair.linear_rows, %pair.getitem, %pair.getitem_1, 2,
        False, None, %mask, True, False) # quantspec.capture.attention.attend has no integer form here @pair
pair.getitem_2: Move(x='pair.attend') | pair.getitem_2: function operator.getitem(%pair.attend, 0) @pair
pair.getitem_3: Move(x='pair.attend') | pair.getitem_3: function operator.getitem(%pair.attend, 1) @pair
pair.out_proj: Linear(x='pair.getitem_2', layer='pair.out_proj', weight=float32[4, 4]:646,
        bias=float32[4]:54.17) @pair.out_proj
getitem_4: Move(x='memory') | getitem_4: function operator.getitem(%memory, (Ellipsis, slice(None, 3, None)))
        @
getitem_5: Move(x='memory') | getitem_5: function operator.getitem(%memory, (Ellipsis, slice(2, None, None)))
        @
own.project: Linear(x='pair.out_proj', layer='own.0', weight=float32[4, 4]:102, bias=None) @own
own.project_1: Linear(x='getitem_4', layer='own.k_proj_weight.4', weight=float32[4, 3]:110.5, bias=None) @own
own.project_2: Linear(x='getitem_5', layer='own.v_proj_weight.8', weight=float32[4, 2]:75, bias=None) @own
own.attend: function quantspec.capture.attention.attend(%own.project, %own.project_1, %own.project_2, 2,
        False, None, None, False, True) # quantspec.capture.attention.attend has no integer form here @own
own.getitem: Move(x='own.attend') | own.getitem: function operator.getitem(%own.attend, 0) @own
own.out_proj: Linear(x='own.getitem', layer='own.out_proj', weight=float32[4, 4]:374, bias=None) @own.out_proj
layer.norm1: module layer.norm1(%own.out_proj) # LayerNorm has no integer form here @layer.norm1
layer.self_attn.linear: Linear(x='layer.norm1', layer='layer.self_attn', weight=float32[12, 4]:7154,
        bias=float32[12]:526.5) @layer.self_attn
layer.self_attn.chunk: Move(x='layer.self_attn.linear') | layer.self_attn.chunk: method
        chunk(%layer.self_attn.linear, 3, -1) @layer.self_attn
layer.self_attn.getitem: Move(x='layer.self_attn.chunk') | layer.self_attn.getitem: function
        operator.getitem(%layer.self_attn.chunk, 0) @layer.self_attn
layer.self_attn.getitem_1: Move(x='layer.self_attn.chunk') | layer.self_attn.getitem_1: function
        operator.getitem(%layer.self_attn.chunk, 1) @layer.self_attn
layer.self_attn.getitem_2: Move(x='layer.self_attn.chunk') | layer.self_attn.getitem_2: function
        operator.getitem(%layer.self_attn.chunk, 2) @layer.self_attn
layer.self_attn.attend: function quantspec.capture.attention.attend(%layer.self_attn.getitem,
        %layer.self_attn.getitem_1, %layer.self_attn.getitem_2, 2, True, %mask, None, False, True) #
        quantspec.capture.attention.attend has no integer form here @layer.self_attn
layer.self_attn.getitem_3: Move(x='layer.self_attn.attend') | layer.self_attn.getitem_3: function
        operator.getitem(%layer.self_attn.attend, 0) @layer.self_attn
layer.self_attn.out_proj: Linear(x='layer.self_attn.getitem_3', layer='layer.self_attn.out_proj',
        weight=float32[4, 4]:1009, bias=float32[4]:80.83) @layer.self_attn.out_proj
layer.self_attn.out_proj.marked: Move(x='layer.self_attn.out_proj') | layer.self_attn.out_proj.marked:
        function quantspec.capture.builder.marked(%layer.self_attn.out_proj, 'act2') @layer.self_attn.out_proj
layer.add: Add(a='own.out_proj', b='layer.self_attn.out_proj.marked') | layer.add: function
        operator.add(%own.out_proj, %layer.self_attn.out_proj.marked) # operator.add has no integer form here
        @layer
layer.norm2: module layer.norm2(%layer.add) # LayerNorm has no integer form here @layer.norm2
layer.linear1: Linear(x='layer.norm2', layer='layer.linear1', weight=float32[3, 4]:682.5,
        bias=float32[3]:56.5) @layer.linear1
layer.gelu: Elementwise(x='layer.linear1', function='gelu') | layer.gelu: function
        torch.nn.functional.gelu(%layer.linear1) # torch.nn.functional.gelu has no integer form here @layer
layer.marked: Move(x='layer.gelu') | layer.marked: function quantspec.capture.builder.marked(%layer.gelu,
        'act3') @layer
layer.linear2: Linear(x='layer.marked', layer='layer.linear2', weight=float32[4, 3]:786.5,
        bias=float32[4]:107.5) @layer.linear2
layer.linear2.marked: Move(x='layer.linear2') | layer.linear2.marked: function
        quantspec.capture.builder.marked(%layer.linear2, 'act4') @layer.linear2
layer.add_1: Add(a='layer.add', b='layer.linear2.marked') | layer.add_1: function operator.add(%layer.add,
        %layer.linear2.marked) # operator.add has no integer form here @layer
more.linear_rows: Linear(x='x', layer='more.0', weight=float32[4, 4]:634.4, bias=float32[4]:42.05) @more
more.linear_rows_1: Linear(x='memory', layer='more.4', weight=float32[4, 4]:1595, bias=float32[4]:121.1) @more
more.linear_rows_2: Linear(x='own.out_proj', layer='more.8', weight=float32[4, 4]:2556, bias=float32[4]:200.2)
        @more
more.attend: function quantspec.capture.attention.attend(%more.linear_rows, %more.linear_rows_1,
        %more.linear_rows_2, 1, False, None, None, True, True) # quantspec.capture.attention.attend has no
        integer form here @more
more.getitem: Move(x='more.attend') | more.getitem: function operator.getitem(%more.attend, 0) @more
more.out_proj: Linear(x='more.getitem', layer='more.out_proj', weight=float32[4, 4]:2097,
        bias=float32[4]:160.8) @more.out_proj
-> (%layer.add_1, %pair.getitem_3, %more.out_proj)
calls {'pair.0': 1, 'pair.4': 1, 'pair.out_proj': 1, 'own.0': 1, 'own.k_proj_weight.4': 1,
        'own.v_proj_weight.8': 1, 'own.out_proj': 1, 'layer.norm1': 1, 'layer.self_attn': 1,
        'layer.self_attn.out_proj': 1, 'layer.norm2': 1, 'layer.linear1': 1, 'layer.linear2': 1, 'more.0': 1,
        'more.4': 1, 'more.8': 1, 'more.out_proj': 1}
attribute pair.in_proj_weight: float32[12, 4]:4018
attribute pair.in_proj_bias: float32[12]:318.5
function operator.getitem: getitem
function quantspec.capture.attention.attend: attend
attribute own.q_proj_weight: float32[4, 4]:102
attribute own.k_proj_weight: float32[4, 3]:110.5
attribute own.v_proj_weight: float32[4, 2]:75
module layer.norm1: LayerNorm
attribute layer.self_attn.in_proj_weight: float32[12, 4]:7154
attribute layer.self_attn.in_proj_bias: float32[12]:526.5
function quantspec.capture.builder.marked: marked
function operator.add: add
module layer.norm2: LayerNorm
function torch.nn.functional.gelu: gelu
attribute more.in_proj_weight: float32[12, 4]:1.656e+04
attribute more.in_proj_bias: float32[12]:1151
act pair.attend of ('pair',), gives output
    output: function quantspec.capture.attention.attend(%0, %1, %2, 2, False, None, %3, True, False,
        dropout=0.5) # quantspec.capture.attention.attend has no integer form here
    function quantspec.capture.attention.attend: attend
act layer.self_attn.attend of ('layer.self_attn',), gives output
    output: function quantspec.capture.attention.attend(%0, %1, %2, 2, True, %3, None, False, True,
        dropout=0.25) # quantspec.capture.attention.attend has no integer form here
    function quantspec.capture.attention.attend: attend
act act2 of ('layer.dropout1',), gives layer_dropout1
    layer_dropout1: module layer.dropout1(%0) # Dropout has no integer form here
    module layer.dropout1: Dropout
act act3 of ('layer.dropout',), gives layer_dropout
    layer_dropout: module layer.dropout(%0) # Dropout has no integer form here
    module layer.dropout: Dropout
act act4 of ('layer.dropout2',), gives layer_dropout2
    layer_dropout2: module layer.dropout2(%0) # Dropout has no integer form here
    module layer.dropout2: Dropout
"""
EXPECTED["products, recorded"] = """
(x)
weight: attribute weight() # is a constant @
constant_2: attribute constant_2() # is a constant @
linear: Linear(x='x', layer='linear', weight=float32[4, 4]:93, bias=float32[4]:14.17) @
linear_1: Linear(x='x', layer='linear_1', weight=float32[4, 4]:102, bias=None) @
add: Add(a='linear', b='linear_1') | add: method add(%linear, %linear_1) # add has no integer form here @
linear_2: Linear(x='x', layer='linear_2', weight=float32[4, 4]:102, bias=None) @
add_1: Add(a='add', b='linear_2') | add_1: method add(%add, %linear_2) # add has no integer form here @
linear_4: Linear(x='add_1', layer='linear_4', weight=float32[4, 4]:457.6, bias=float32[4]:14.17) @
t: Move(x='add_1') | t: method t(%add_1) @
transpose: Move(x='t') | transpose: method transpose(%t, -2, -1) @
linear_5: Linear(x='transpose', layer='linear_5', weight=float32[4, 4]:102, bias=None) @
transpose_1: Move(x='linear_5') | transpose_1: method transpose(%linear_5, -2, -1) @
t_1: Move(x='transpose_1') | t_1: method t(%transpose_1) @
add_3: Add(a='linear_4', b='t_1') | add_3: method add(%linear_4, %t_1) # add has no integer form here @
linear_6: Linear(x='add_3', layer='linear_6', weight=float32[4, 4]:250.3, bias=None) @
unflatten: Move(x='linear_6') | unflatten: method unflatten(%linear_6, -1, (2, 2)) @
flatten: Move(x='unflatten') | flatten: method flatten(%unflatten, -2, -1) @
linear_7: Linear(x='flatten', layer='linear_7', weight=float32[4, 4]:283.3, bias=None) @
stack: function torch.stack([%linear_7, %linear_7]) # torch.stack has no integer form here @
select: Move(x='stack') | select: method select(%stack, -3, 0) @
select_1: Move(x='stack') | select_1: method select(%stack, -3, 1) @
linear_8: Linear(x='select', layer='linear_8', weight=float32[3, 4]:102, bias=None) @
linear_9: Linear(x='select_1', layer='linear_9', weight=float32[3, 4]:254.6, bias=None) @
stack_1: function torch.stack([%linear_8, %linear_9], -3) # torch.stack has no integer form here @
matmul_3: method matmul(%linear_7, %weight) # matmul has no integer form here @
sin: function torch.sin(%matmul_3) # torch.sin has no integer form here @
mul: Mul(a='constant_2', b='linear_7') | mul: method mul(%constant_2, %linear_7) # mul has no integer form
        here @
-> (%stack_1, %sin, %mul)
calls {'linear': 1, 'linear_1': 1, 'linear_2': 1, 'linear_4': 1, 'linear_5': 1, 'linear_6': 1, 'linear_7': 1,
        'linear_8': 1, 'linear_9': 1}
attribute weight: float32[4, 4]:102
attribute constant_2: float32[4]:25.35
attribute weight_10: float32[4, 4]:93
attribute bias_flat: float32[4]:14.17
attribute constant_0_10: float32[4, 4]:102
attribute constant_1_10: float32[4, 4]:457.6
attribute heads_120: float32[4, 4]:250.3
attribute heads_012: float32[4, 4]:283.3
function torch.stack: stack
attribute several_21_0: float32[3, 4]:102
attribute several_21_1: float32[3, 4]:254.6
function torch.sin: sin
recipe of constant_0: Parameter float32[4, 4]:93
    made_0: attribute weight()
    made_1: function t 1(%made_0)
    function t 1: t
recipe of constant_1: Parameter float32[4, 4]:516.8
    made_0: attribute weight()
    made_1: attribute table()
    made_2: function mul 2(%made_0, %made_1)
    made_3: function add 3(%made_2, 1)
    function mul 2: mul
    function add 3: add
recipe of weight_10: float32[4, 4]:93
    source: attribute weight()
    permute_1: method permute(%source, (1, 0))
    reshape_2: method reshape(%permute_1, 4, -1)
    contiguous_3: method contiguous(%reshape_2)
recipe of bias_flat: float32[4]:14.17
    source: attribute bias()
    reshape_1: method reshape(%source, -1)
    contiguous_2: method contiguous(%reshape_1)
recipe of constant_0_10: float32[4, 4]:102
    made_0: attribute weight()
    made_1: function t 1(%made_0)
    permute_2: method permute(%made_1, (1, 0))
    reshape_3: method reshape(%permute_2, 4, -1)
    contiguous_4: method contiguous(%reshape_3)
    function t 1: t
recipe of constant_1_10: float32[4, 4]:457.6
    made_0: attribute weight()
    made_1: attribute table()
    made_2: function mul 2(%made_0, %made_1)
    made_3: function add 3(%made_2, 1)
    permute_4: method permute(%made_3, (1, 0))
    reshape_5: method reshape(%permute_4, 4, -1)
    contiguous_6: method contiguous(%reshape_5)
    function mul 2: mul
    function add 3: add
recipe of heads_120: float32[4, 4]:250.3
    source: attribute heads()
    permute_1: method permute(%source, (1, 2, 0))
    reshape_2: method reshape(%permute_1, 4, -1)
    contiguous_3: method contiguous(%reshape_2)
recipe of heads_012: float32[4, 4]:283.3
    source: attribute heads()
    permute_1: method permute(%source, (0, 1, 2))
    reshape_2: method reshape(%permute_1, 4, -1)
    contiguous_3: method contiguous(%reshape_2)
recipe of several_21_0: float32[3, 4]:102
    source: attribute several()
    select_1: method select(%source, 0, 0)
    permute_2: method permute(%select_1, (1, 0))
    reshape_3: method reshape(%permute_2, 3, -1)
    contiguous_4: method contiguous(%reshape_3)
recipe of several_21_1: float32[3, 4]:254.6
    source: attribute several()
    select_1: method select(%source, 0, 1)
    permute_2: method permute(%select_1, (1, 0))
    reshape_3: method reshape(%permute_2, 3, -1)
    contiguous_4: method contiguous(%reshape_3)
"""
EXPECTED["sizes"] = """
(x, more)
dim: Shape(x='x') | dim: method dim(%x) @
eq_3: function operator.eq(%dim, 2) @
_assert_4: function torch._assert(%eq_3, "the network was captured for 'x' with 2 axes") @
getattr_3: Shape(x='x') | getattr_3: function builtins.getattr(%x, 'dtype') @
eq_4: function operator.eq(%getattr_3, torch.float32) @
_assert_5: function torch._assert(%eq_4, "the network was captured for 'x' of torch.float32") @
dim_1: Shape(x='more') | dim_1: method dim(%more) @
eq_5: function operator.eq(%dim_1, 3) @
_assert_6: function torch._assert(%eq_5, "the network was captured for 'more' with 3 axes") @
table: attribute table() # is a constant @
layer: Linear(x='x', layer='layer', weight=float32[4, 4]:192.7, bias=float32[4]:20.83) @layer
size: Shape(x='layer') | size: method size(%layer, 0) @
new_zeros: method new_zeros(%layer, %size, 2) # new_zeros has no integer form here @
filled: function quantspec.capture.writes.filled(%new_zeros, 1.0) # quantspec.capture.writes.filled has no
        integer form here @
with_item: function quantspec.capture.writes.with_item(%layer, (slice(None, None, None), 0), 0.5) #
        quantspec.capture.writes.with_item has no integer form here @
size_1: Shape(x='x') | size_1: method size(%x, 0) @
gt: function operator.gt(%size_1, 2) @
_assert: function torch._assert(%gt, 'the network was captured where (x.size(0) > 2) is True (here)') @
size_2: Shape(x='x') | size_2: method size(%x, 0) @
eq: function operator.eq(%size_2, 7) @
not_: function operator.not_(%eq) @
_assert_1: function torch._assert(%not_, 'the network was captured where (x.size(0) == 7) is False (here)') @
size_3: Shape(x='x') | size_3: method size(%x, 0) @
eq_1: function operator.eq(%size_3, 3) @
_assert_2: function torch._assert(%eq_1, 'the network was captured where (x.size(0) == 3) is True (here)') @
add: Elementwise(x='with_item', function='add 1.5') | add: method add(%with_item, 1.5) # add has no integer
        form here @
act: Elementwise(x='add', function='hardswish') | act: module act(%add) # Hardswish has no integer form here
        @act
mul: Elementwise(x='act', function='mul 2') | mul: method mul(%act, 2) # mul has no integer form here @
lazy: Move(x='more') | lazy: function torch.flatten(%more, 1, -1) @lazy
size_4: Shape(x='mul') | size_4: method size(%mul, 1) @
getitem: Move(x='lazy') | getitem: function operator.getitem(%lazy, (slice(None, None, None), slice(None,
        %size_4, None))) @
sub: method sub(%mul, %getitem) # sub has no integer form here @
size_5: Shape(x='sub') | size_5: method size(%sub, 1) @
floordiv: function operator.floordiv(%size_5, 3) @
numel: Shape(x='more') | numel: method numel(%more) @
mod: function operator.mod(%numel, 4) @
add_1: function operator.add(%floordiv, %mod) @
mul_1: Mul(a='sub', b='add_1') | mul_1: method mul(%sub, %add_1) # mul has no integer form here @
filled_1: function quantspec.capture.writes.filled(%sub, %mul_1) # quantspec.capture.writes.filled has no
        integer form here @
filled_2: function quantspec.capture.writes.filled(%filled_1, 0) # quantspec.capture.writes.filled has no
        integer form here @
sub_1: Elementwise(x='filled_2', function='sub 1') | sub_1: method sub(%filled_2, 1) # sub has no integer form
        here @
size_6: Shape(x='sub_1') | size_6: method size(%sub_1, 0) @
arange: function torch.arange(%size_6) @
size_7: Shape(x='sub_1') | size_7: method size(%sub_1, 0) @
getitem_1: Move(x='table') | getitem_1: function operator.getitem(%table, slice(None, %size_7, None)) @
exp: method exp(%getitem_1) # exp has no integer form here @
add_2: Add(a='arange', b='exp') | add_2: method add(%arange, %exp) # add has no integer form here @
size_8: Shape(x='sub_1') | size_8: method size(%sub_1, 1) @
neg: function operator.neg(%size_8) @
floordiv_1: function operator.floordiv(%neg, 2) @
neg_1: function operator.neg(%floordiv_1) @
eq_2: function operator.eq(%neg_1, 2) @
_assert_3: function torch._assert(%eq_2, 'the network was captured where (neg((neg(sub_1.size(1)) // 2)) == 2)
        is True (here)') @
split: Move(x='sub_1') | split: method split(%sub_1, 2, dim=1) @
getitem_4: Move(x='split') | getitem_4: function operator.getitem(%split, 1) @
getitem_2: Move(x='split') | getitem_2: function operator.getitem(%split, 0) @
max_1: method max(%sub_1, 1) # max has no integer form here @
getitem_5: Move(x='max_1') | getitem_5: function operator.getitem(%max_1, 1) @
getattr_1: function builtins.getattr(%sub_1, 'T') # builtins.getattr has no integer form here @
matmul: method matmul(%getattr_1, %sub_1) # matmul has no integer form here @
getattr_2: function builtins.getattr(%getitem_2, 'mT') # builtins.getattr has no integer form here @
getitem_3: Move(x='sub_1') | getitem_3: function operator.getitem(%sub_1, (slice(None, None, None), None)) @
detach: Move(x='sub_1') | detach: method detach(%sub_1) @
sub_2: Elementwise(x='detach', function='sub 1') | sub_2: function operator.sub(1, %detach) # operator.sub has
        no integer form here @
size_9: Shape(x='getitem_3') | size_9: method size(%getitem_3, 0) @
size_10: Shape(x='getitem_3') | size_10: method size(%getitem_3, 1) @
size_11: Shape(x='getitem_3') | size_11: method size(%getitem_3, 2) @
-> (%matmul, {'rows': %add_2, 'parts': [%getitem_4, %filled, %getattr_2]}, %getitem_5, (%size_9, %size_10,
        %size_11), %sub_2)
calls {'layer': 1, 'act': 1, 'lazy': 1}
function operator.eq: eq
function torch._assert: _assert
function builtins.getattr: getattr
attribute table: float32[6]:15.75
function quantspec.capture.writes.filled: filled
function quantspec.capture.writes.with_item: with_item
function operator.gt: gt
function operator.not_: not_
module act: Hardswish
function torch.flatten: flatten
function operator.getitem: getitem
function operator.floordiv: floordiv
function operator.mod: mod
function operator.add: add
function torch.arange: arange
function operator.neg: neg
function operator.sub: sub
"""


@pytest.mark.parametrize("name", MODELS)
def test_a_graph_is_this_one(name):
    assert text(graph_of(name)) == EXPECTED[name].strip()
