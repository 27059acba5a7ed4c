"""Models that write to what lies in the memory of another value at some calls and not at others."""

import pytest
import torch
from torch import nn

import quantspec as qs
from evidence import clause
from networks import seeded
from quantspec.capture import tracer
from quantspec.errors import UnsupportedError


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last, self.flatten = nn.Linear(6, 6), nn.Linear(6, 3), nn.Flatten(0)


class ContiguousInput(Layers):
    def forward(self, x):
        y = x.contiguous()
        y.mul_(2)
        return self.last(x) + self.last(y)


class ContiguousRows(Layers):
    def forward(self, x):
        h = self.first(x)[None].transpose(0, 2)
        y = h.contiguous()
        y.mul_(2)
        return self.last((h + y).transpose(0, 2)[0])


class Reshaped(Layers):
    def forward(self, x):
        h = self.first(x).t()
        y = h.reshape(-1)
        y.mul_(2)
        return self.last(h.t())


class Flattened(Layers):
    def forward(self, x):
        h = self.first(x).t()
        y = self.flatten(h)
        h.mul_(2)
        return self.last(h.t()) + y.sum()


class FlattenedView(Layers):
    def forward(self, x):
        h = self.first(x).t()
        y = torch.flatten(h).unsqueeze(0)
        h[0] += 2
        return self.last(h.t()) + y.mean()


class ByStrides(Layers):
    def forward(self, x):
        return self.last(self.first(x.as_strided((len(x), 6), (6, 1))))


class AsksStrides(Layers):
    def forward(self, x):
        return self.last(self.first(x) * (1 if x.stride(0) == 6 else 5))


DEPENDING = ContiguousInput, ContiguousRows, Reshaped, Flattened, FlattenedView, ByStrides, AsksStrides


def rows(count, *, transposed=False):
    x = torch.rand(count, 6, generator=torch.Generator().manual_seed(count))
    return x.t().contiguous().t() if transposed else x


INPUTS = {"rows": rows(9), "one row": rows(1), "columns": rows(9, transposed=True)}


@clause("STA-LAYOUT")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("build", DEPENDING)
@pytest.mark.parametrize("first", INPUTS)
def test_what_depends_on_memory_is_computed_as_the_model_does(build, first):
    def given(name):
        return INPUTS[name].clone(memory_format=torch.preserve_format)

    model = seeded(build)
    q = qs.quantize_dynamic(model, example=given(first))
    assert "" not in q.islands
    for name in INPUTS:
        expected = model(given(name))
        # Half a code of each layer's input and of its weights, twice, and once more.
        assert (q(given(name)) - expected).abs().max() < 5 / 127 * expected.abs().max(), name
    with pytest.raises(UnsupportedError):
        tracer.capture(model)


class FixedStrides(Layers):
    def forward(self, x):
        return self.last(self.first(x).as_strided((4, 6), (6, 1)))


def test_a_graph_for_any_arguments_reads_no_strides():
    with pytest.raises(UnsupportedError, match="Python reads the memory layout of a tensor"):
        tracer.capture(seeded(FixedStrides))


class InPlaceAlone(Layers):
    """Writes to what nothing else reads, which is what networks do."""

    def forward(self, x):
        h = torch.relu_(torch.flatten(self.first(x).contiguous(), 1))
        h += 1
        y = h.reshape(-1, 6)
        return self.last(y.clone().mul_(2) + y)


@clause("STA-LAYOUT")
def test_what_nobody_reads_again_may_be_written_to():
    model = seeded(InPlaceAlone)
    q = qs.quantize(model, [rows(64)])
    assert isinstance(q, qs.QuantizedModule) and len(q.program.layers) == 2
