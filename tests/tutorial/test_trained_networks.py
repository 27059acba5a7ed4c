"""A convolutional and a recurrent network, trained on the digits at hand: what int8 costs them in accuracy."""

import pytest
import torch

import quantspec as qs
from quantspec.tutorial import models


@pytest.fixture(scope="module")
def lenet(dataset):
    return trained(lambda: models.LeNet(dataset.x_train.shape[-1]), dataset, 1 if dataset.name == "mnist" else 30)


@pytest.fixture(scope="module")
def reader(dataset):
    return trained(lambda: models.RowReader(dataset.x_train.shape[-1]), dataset, 3 if dataset.name == "mnist" else 30)


def trained(build, dataset, epochs):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = build()
    models.train(model, dataset, seed=0, epochs=epochs, progress=False)
    return model


def compared(model, q, dataset):
    batches = zip(dataset.x_test.split(1000), dataset.y_test.split(1000))
    return qs.compare(model, q, batches)


@pytest.mark.parametrize(("per_channel", "most"), [(False, 0.003), (True, 0.001)])
def test_a_convolutional_network_loses_next_to_nothing(lenet, dataset, per_channel, most):
    q = qs.quantize(lenet, dataset.x_train[:1000].split(100), per_channel=per_channel)
    found = compared(lenet, q, dataset)
    print(found)
    lost = round((found.float_accuracy - found.int8_accuracy) * found.examples)  # a whole number of images
    assert found.float_accuracy > 0.9 and lost <= most * found.examples
    assert found.int8_macs == 1.0 and found.examples == len(dataset.x_test)


def test_a_recurrent_network_loses_next_to_nothing(reader, dataset):
    q = qs.quantize_dynamic(reader, example=dataset.x_test[:10])
    found = compared(reader, q, dataset)
    print(found)
    assert [layer.layer for layer in q.program.layers] == ["lstm", "head"]
    assert found.float_accuracy > 0.9 and found.float_accuracy - found.int8_accuracy <= 0.005
