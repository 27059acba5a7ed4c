"""A network with every kind of step and of what it calls, as a file that can be changed in one place."""

import copy
import functools
import json
import operator
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn

from quantspec.ir import float_graph
from quantspec.ir.attention import TORCHS
from quantspec.ir.float_run import FloatLayer
from quantspec.ir.program import (
    AdaptiveAvgPool,
    Add,
    Attention,
    AvgPool,
    Bilinear,
    Call,
    Cell,
    Concat,
    Conv,
    Dequantize,
    Embedding,
    Linear,
    LinearDynamic,
    LinearWeight,
    MaxPool,
    Mean,
    Move,
    Mul,
    Program,
    Quantize,
    Recurrent,
    Ref,
    Relu,
    Table,
)  # fmt: skip
from quantspec.numerics.affine import QParams
from quantspec.storage import file as storage_file

GRID = QParams(np.float32(0.5), 3, 0, 255)
WEIGHTS = QParams(np.float32(0.25), 0, -128, 127)
NARROW = QParams(np.float32(0.25), 0, -8, 7)
CHANNELS = QParams(np.full(4, 0.25, np.float32), np.zeros(4, np.int32), -128, 127, 0)


def codes(*shape: int) -> np.ndarray:
    return (np.arange(np.prod(shape)) % 7 - 3).astype(np.int8).reshape(shape)


def floats(*shape: int) -> np.ndarray:
    return np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)


def cell(inputs: int, size: int = 2, gates: int = 4) -> Cell:
    return Cell(codes(gates * size, inputs), WEIGHTS, floats(gates * size), codes(gates * size, size), WEIGHTS, None)


def program() -> Program:
    """Inputs: images [n, 3, 8, 8] and words [n, m]."""
    ones = (1, 1)
    steps = (
        Quantize("q", "x", GRID),
        Conv(
            "conv", "q", "0", codes(4, 3, 3, 3), floats(4), GRID, CHANNELS, GRID, True, ones, (ones, ones), ones,
            ones, 1,
        ),
        MaxPool("max", "conv", (2, 2), (2, 2), (0, 0), ones, False),
        Table("slopes", "max", "prelu", np.arange(1024).reshape(4, 256).astype(np.uint8), GRID, GRID),
        AvgPool("avg", "slopes", GRID, (2, 2), (2, 2), (0, 0), False, True),
        Bilinear("between", "avg", GRID, None, (3, 2), None, False, True),
        Bilinear("factors", "between", GRID, None, None, (0.75, 1.5), True, False),
        Bilinear("like", "factors", GRID, "avg", None, None, False, False),
        AdaptiveAvgPool("ada", "like", GRID, (2, None)),
        Mean("mean", "ada", GRID, (2, 3), False),
        Table("table", "mean", "sigmoid", np.arange(256).astype(np.uint8), GRID, GRID),
        Relu("relu", "table", GRID),
        Add("add", "relu", "table", GRID, GRID, GRID, False),
        Mul("mul", "add", "relu", GRID, GRID, GRID),
        Concat("cat", ("mul", "add"), (GRID, GRID), GRID, 1),
        Move("move", "method", "flatten", (Ref("cat"), 1), {}, GRID),
        Linear("linear", "move", "1", codes(3, 8), floats(3), GRID, NARROW, None, False),
        Dequantize("deq", "mul", GRID),
        LinearDynamic("dynamic", "deq", "2", codes(3, 4), floats(3), WEIGHTS, False),
        LinearWeight("weight", "deq", "3", codes(3, 4), None, WEIGHTS),
        Embedding("words", "w", "4", codes(5, 4), WEIGHTS),
        Embedding("bag", "w", "5", codes(5, 4), WEIGHTS, "sum"),
        Attention("attended", "function", TORCHS, (Ref("words"),) * 3, {}, ""),
        Recurrent("rnn", "attended", None, "6", "lstm", (cell(4), cell(4)), True, True, False),
        Call("abs", "method", "abs", (Ref("linear"),), {}, "why"),
        Call("function", "function", "torch.add", (Ref("abs"), Ref("k")), {"alpha": 2.0}, ""),
        Call("k", "attribute", "k", (), {}, ""),
        Call("norm", "module", "norm", (Ref("dynamic"),), {}, ""),
        Call("soft", "module", "soft", (Ref("norm"),), {}, ""),
        Call("float", "module", "float", (Ref("soft"),), {}, "excluded"),
        Call("shape", "function", "builtins.getattr", (Ref("x"), "shape"), {}, ""),
        Call("item", "function", "operator.getitem", (Ref("x"), (slice(None, 1, None), Ellipsis)), {}, ""),
    )
    node = float_graph.Linear("float", "soft", "float", floats(2, 3), floats(2))
    callables = {
        ("function", "torch.add"): torch.add, ("attribute", "k"): torch.ones(3), ("module", "norm"): nn.LayerNorm(3),
        ("module", "soft"): nn.Softmax(-1), ("module", "float"): FloatLayer(node),
        ("function", "builtins.getattr"): getattr, ("function", "operator.getitem"): operator.getitem,
        ("function", TORCHS): nn.functional.scaled_dot_product_attention,
    }  # fmt: skip
    # "k" stands before what reads it.
    order = [step for step in steps if step.name == "k"] + [step for step in steps if step.name != "k"]
    output = (Ref("rnn"), Ref("bag"), Ref("function"), Ref("float"), Ref("weight"))
    return Program("onnx", ("x", "w"), {"w": None}, tuple(order), output, callables)


@functools.cache
def whole_file() -> bytes:
    """The file of that program."""
    return storage_file.packed(program(), ((("0", 5, "int8", ""),), True))


def parts() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The file's JSON without its checksum, and its tensors; a copy each time."""
    data = whole_file()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["quantspec"])
    return header, safetensors.torch.load(data)


def resigned(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> bytes:
    """A file of a content, with the checksum that belongs to it unless the header has none."""
    header = copy.copy(header)
    if "sha256" in header:
        kind = "model" if "model" in header else "network"
        content = {key: header[key] for key in ("report", kind) if key in header}
        content = header[kind] if header["version"] in (1, 2) else content
        header["sha256"] = storage_file.digest(content, tensors)
    return safetensors.torch.save(tensors, {"quantspec": json.dumps(header)})


def place(header: dict[str, Any], path: str) -> tuple[Any, Any]:
    """Where a path such as ``steps conv stride 0`` leads to: an object or a list, and a key of it."""
    first, *more = path.split(" ")
    value: Any = header if first in header or first == "header" else header["network"]
    key: Any = first
    for name in more:
        value = value if key == "header" else value[key]
        key = name
        if isinstance(value, list) and name.isdigit():
            key = int(name)
        elif isinstance(value, list) and name != "+":
            key = next(n for n, row in enumerate(value) if name in (row.get("name"), row.get("target")))
    return value, key
