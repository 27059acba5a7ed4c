"""Chapter 7: batches of every form that the converted network takes: single images, single numbers, no positions,
other types of numbers; and what is no batch."""

import pytest
import torch
from torch import nn

import networks
import quantspec as qs
from evidence import clause

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def made():
    """A network without normalizations and a batch, all of whose numbers float16 has."""
    model, x = networks.seeded(networks.Perceptron), networks.inputs(8).half().float()
    return qs.prepare_qat(model, [x]), x


@clause("QAT-EQUAL", "QAT-LAYER")
@pytest.mark.parametrize("dialect", ["onnx", "fbgemm"])
@pytest.mark.parametrize("positions", CONVOLUTIONS)
def test_an_image_alone_gives_what_it_gives_as_a_batch(positions, dialect):
    kind, x = CONVOLUTIONS[positions], networks.inputs(4, (3, *[4] * positions))
    model = networks.seeded(lambda: nn.Sequential(kind(3, 4, 2), nn.ReLU(), kind(4, 2, 1)))
    p = qs.prepare_qat(model, [x], dialect=dialect)
    assert torch.equal(p(x[0]), qs.convert(p)(x[0])) and torch.equal(p(x[0]), p(x)[0])
    gradients = []
    for batch in (x[0], x[:1]):
        p.zero_grad()
        p(batch).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in p.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@clause("QAT-EQUAL")
@pytest.mark.parametrize("stride", [2, 3])
def test_a_transposed_convolution_of_no_positions_is_the_converted_one(stride):
    model = networks.seeded(lambda: nn.Sequential(nn.ConvTranspose1d(3, 4, 5, stride), nn.ReLU(), nn.Conv1d(4, 2, 1)))
    x = networks.inputs(4, (3, 6))
    p = qs.prepare_qat(model, [x])
    q = qs.convert(p)
    for length in range(3):
        assert torch.equal(p(x[:, :, :length]), q(x[:, :, :length]))


@clause("QAT-RANGE")
def test_a_single_number_moves_the_range():
    p = qs.prepare_qat(networks.seeded(lambda: nn.Linear(1, 2)), [torch.tensor([[-1.0], [1.0]])], averaging=0.5)
    (_, _, network), = p.parts()
    (name,) = network.graph.inputs
    p.train()(torch.tensor([[3.0]]))
    assert network.ranges[network.places[name]].tolist() == [1.0, 2.0]  # halfway to 3


@clause("QAT-EQUAL", "QAT-FORWARD")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_floats_of_another_type_give_what_they_give_as_float32(dtype):
    p, x = made()
    q = qs.convert(p)
    assert torch.equal(p(x.to(dtype)), q(x)) and torch.equal(q(x.to(dtype)), q(x))
    assert torch.equal(p.train()(x.to(dtype)), q(x))


@clause("QAT-REFUSE")
def test_what_is_no_batch_is_refused_by_its_type():
    p, x = made()
    for training in (False, True):
        part = p.train(training)
        with pytest.raises(TypeError, match="^batch: expected a tensor, got ndarray$"):
            part(x.numpy())
        with pytest.raises(TypeError, match="^x: expected float32 values, got torch.int64$"):
            part(x.to(torch.int64))
