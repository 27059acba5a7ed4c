"""Hostile inputs: whatever somebody may pass by mistake, or in bad faith."""

import pathlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

import quantspec as qs

FEATURES = 4


def network() -> nn.Sequential:
    torch.default_generator.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def batch(rows: int = 3) -> torch.Tensor:
    return torch.linspace(-1, 1, rows * FEATURES).reshape(rows, FEATURES)


class Subclass(torch.Tensor):
    """A tensor of another class."""


class NoForward(nn.Module):
    """A module that computes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, 3)


class Raises(nn.Module):
    """A model whose forward raises."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise KeyError("its own mistake")


def changed(value: float) -> torch.Tensor:
    x = batch().clone()
    x[1, 2] = value
    return x


def shortened() -> torch.Tensor:
    x = batch().clone()
    x.untyped_storage().resize_(4)
    return x


def weights(value: float) -> nn.Module:
    model = network()
    with torch.no_grad():
        model[0].weight[0, 0] = value
    return model


def built(make: Callable[[], Any]) -> Callable[[], Any]:
    """What warns when it is made."""

    def quiet() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make()

    return quiet


def lazily() -> Any:
    yield batch()


INPUTS: dict[str, Callable[[], Any]] = {
    "None": lambda: None, "True": lambda: True, "3": lambda: 3, "-1": lambda: -1, "2.5": lambda: 2.5,
    "NaN": lambda: float("nan"), "2**70": lambda: 2**70, "''": str, "'text'": lambda: "text",
    "bytes": lambda: b"\x00\xff", "a string with NUL": lambda: "a\0b", "[]": list, "()": tuple, "{}": dict, "set": set,
    "[1.0]": lambda: [1.0], "nested lists": lambda: [[[]]], "object()": object, "a function": lambda: len,
    "a class": lambda: nn.Linear, "a generator": lazily, "an exception": lambda: ValueError("x"),
    "a path that is not there": lambda: pathlib.Path("nowhere/q.safetensors"), "a folder": lambda: pathlib.Path("."),
    "a device": lambda: pathlib.Path("/dev/null"),
    "NumPy floats": lambda: batch().numpy(), "NumPy objects": lambda: np.array([None, "x"], object),
    "NumPy texts": lambda: np.array(["a", "b"]),
    "float64": lambda: batch().double(), "float16": lambda: batch().half(), "bfloat16": lambda: batch().bfloat16(),
    "int64": lambda: batch().long(), "uint8": lambda: batch().to(torch.uint8), "bool": lambda: batch() > 0,
    "complex": lambda: batch().to(torch.complex64), "conjugated": lambda: batch().to(torch.complex64).conj(),
    "no rows": lambda: batch(0), "no axes": lambda: torch.tensor(1.0), "one axis": lambda: batch()[0],
    "other features": lambda: torch.ones(3, FEATURES + 1), "five axes": lambda: torch.ones(1, 1, 1, 1, FEATURES),
    "a NaN": lambda: changed(float("nan")), "an infinity": lambda: changed(float("inf")),
    "the largest float": lambda: changed(3.4e38), "all zeros": lambda: torch.zeros(3, FEATURES),
    "requires_grad": lambda: batch().requires_grad_(), "a Parameter": lambda: nn.Parameter(batch()),
    "not contiguous": lambda: batch(FEATURES).t(), "expanded": lambda: batch(1).expand(3, FEATURES),
    "sparse": built(lambda: batch().to_sparse()), "sparse CSR": built(lambda: batch().to_sparse_csr()),
    "nested": built(lambda: torch.nested.nested_tensor([batch(), batch(2)])),
    "masked": built(lambda: torch.masked.masked_tensor(batch(), batch() > 0)),
    "meta": lambda: batch().to("meta"), "without memory": lambda: torch._efficientzerotensor((3, FEATURES)),
    "shortened memory": shortened, "MKL-DNN": lambda: batch().to_mkldnn(),
    "torch's quantized": built(lambda: torch.quantize_per_tensor(batch(), 0.1, 0, torch.quint8)),
    "a subclass": lambda: batch().as_subclass(Subclass),
    "a model": network, "a model in training": lambda: network().train(), "a float64 model": lambda: network().double(),
    "a half model": lambda: network().half(), "a meta model": lambda: network().to("meta"),
    "an empty model": nn.Sequential, "a model without forward": lambda: NoForward().eval(),
    "a model that raises": lambda: Raises().eval(),
    "a lazy model": built(lambda: nn.Sequential(nn.LazyLinear(3)).eval()),
    "DataParallel": built(lambda: nn.DataParallel(network()).eval()),
    "TorchScript": built(lambda: torch.jit.script(network())),
    "a model with NaN": lambda: weights(float("nan")), "a model with infinity": lambda: weights(float("inf")),
    "a quantized model": built(lambda: qs.quantize(network(), [batch()])),
    "a prepared model": built(lambda: qs.prepare(network())),
    "a model for training": built(lambda: qs.prepare_qat(network(), [batch()])),
    "a Program": built(lambda: qs.quantize(network(), [batch()]).program),
}  # fmt: skip
