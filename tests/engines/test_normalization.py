"""Layer normalizations between layers in int8 are torch's, whichever engine calls them."""

import pytest
import torch
from torch import nn

import quantspec as qs
from networks import inputs, seeded
from quantspec.engines.compiled.normalization import LayerNorm

NORMS = {
    "plain": lambda: nn.LayerNorm(8), "no bias": lambda: nn.LayerNorm(8, bias=False),
    "another epsilon": lambda: nn.LayerNorm(8, eps=0.5), "two axes": lambda: nn.LayerNorm((3, 8)),
    "nothing learned": lambda: nn.LayerNorm(8, elementwise_affine=False),
}  # fmt: skip


def network(norm=NORMS["plain"]):
    return seeded(lambda: nn.Sequential(nn.Linear(8, 8), learned(norm()), nn.Linear(8, 4), nn.LayerNorm(4)))


def learned(norm):
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


def called(q):
    """The layer normalizations that are called without their module's ways."""
    return [part for part in q.compiled.parts if isinstance(part, LayerNorm)]


@pytest.mark.filterwarnings("ignore:values are NaN")
@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
@pytest.mark.parametrize("quantize", [qs.quantize, qs.quantize_dynamic])
def test_outputs_are_the_references(norm, quantize):
    x, model = inputs(5, (3, 8)), network(norm)
    q = quantize(model, [x]) if quantize is qs.quantize else quantize(model, example=x)
    assert len(called(q)) == 2
    for batch in (x, x[:1], 1e20 * x, x * torch.nan):  # the third has no finite variance
        # Bit for bit, and NaN where the reference has NaN.
        torch.testing.assert_close(q(batch), q.run_on("reference")(batch), rtol=0, atol=0, equal_nan=True)


def test_parameters_that_are_loaded_later_are_used():
    x = inputs(5, (3, 8))
    q, other = (qs.quantize_dynamic(network(), example=x) for _ in range(2))
    norm = called(other)[1].module
    with torch.no_grad():
        norm.weight.mul_(2)
    before = q(x)
    q.load_state_dict(other.state_dict())
    assert torch.equal(q(x), other(x)) and not torch.equal(q(x), before)
    norm.weight = nn.Parameter(torch.zeros(4))
    assert torch.equal(other(x), norm.bias.expand(5, 3, 4))


def test_hooks_of_the_module_are_called():
    x, seen = inputs(5, (3, 8)), []
    q = qs.quantize_dynamic(network(), example=x)
    module = called(q)[0].module
    expected = q(x)
    handle = module.register_forward_hook(lambda module, args, result: seen.append(result))
    assert torch.equal(q(x), expected) and len(seen) == 1
    handle.remove()
    module.register_forward_pre_hook(lambda module, args: seen.append(args))
    assert torch.equal(q(x), expected) and len(seen) == 2
