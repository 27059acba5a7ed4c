"""Operators of ONNX put into a graph by one function, and what ONNX Runtime computes with them."""

import numpy as np
import torch
from onnx_runtime import onnx, run

from quantspec.onnx_export.builder import Graph, Size, Tensor

TYPES = {
    torch.float32: onnx.TensorProto.FLOAT, torch.uint8: onnx.TensorProto.UINT8, torch.int64: onnx.TensorProto.INT64,
    torch.bool: onnx.TensorProto.BOOL,
}  # fmt: skip


def leaves(value):
    """The tensors and lengths that a function gave, and the numbers as they are."""
    return [leaf for item in value for leaf in leaves(item)] if isinstance(value, (tuple, list)) else [value]


def in_graph(make, *tensors, known=False, grid=None):
    """What ``make``, given a graph and its inputs, puts into it: pairs of what it gave and of what that is when run.

    The lengths of the inputs are ``known``, or open; inputs of bytes are codes of ``grid``.
    """
    g, inputs, feeds = Graph(), [], {}
    for number, tensor in enumerate(tensors):
        name = g.fresh(f"x{number}")
        shape = tuple(tensor.shape) if known else tuple((name, axis) for axis in range(tensor.ndim))
        inputs.append(Tensor(name, shape, grid if tensor.dtype == torch.uint8 else None))
        feeds[name] = tensor
    made = leaves(make(g, *inputs))
    infos = [
        onnx.helper.make_tensor_value_info(name, TYPES[tensor.dtype], [None] * tensor.ndim)
        for name, tensor in feeds.items()
    ]
    ends = [onnx.ValueInfoProto(name=f"end_{number}") for number in range(len(made))]
    for end, value in zip(ends, made):
        name = value.name if isinstance(value, (Tensor, Size)) else g.ints(value)
        g.nodes.append(onnx.helper.make_node("Identity", [name], [end.name]))
    opsets = [onnx.helper.make_opsetid("", 21)]
    model = onnx.helper.make_model(g.proto(infos, ends), opset_imports=opsets, ir_version=10)
    onnx.shape_inference.infer_shapes(model, strict_mode=True)  # which raises for operators that are none
    read = {name for node in g.nodes for name in node.input}
    assert {constant.name for constant in g.initializers} <= read, "a constant that no operator reads"
    return list(zip(made, run(model, **feeds).values(), strict=True)), list(zip(inputs, feeds.values()))


def agrees(make, function, *tensors, grid=None, gives=None, bound=None, open_only=False):
    """Asserts that ``make`` puts into a graph what ``function`` of torch gives, for open lengths and for known ones.

    What the graph knows of lengths is held to: numbers are the lengths, and names that are equal name equal lengths.
    Of known lengths all follow, unless ``open_only``. Codes are those of ``gives``, or of the inputs' ``grid``.
    ``bound``: how far results may differ, as of ``numpy.testing.assert_allclose``; without one they are equal.
    """
    with torch.no_grad():
        expected = leaves(function(*tensors))
    for known in (False, True):
        made, inputs = in_graph(make, *tensors, known=known, grid=grid)
        lengths = {}
        for value, array in [*made, *inputs]:
            if isinstance(value, Tensor):
                assert value.rank == array.ndim
                for dim, length in zip(value.shape, array.shape):
                    assert length == (dim if isinstance(dim, int) else lengths.setdefault(dim, length)), dim
                    assert not known or open_only or isinstance(dim, int), dim
            elif isinstance(value, Size):
                assert lengths.setdefault(value.dim, int(array[0])) == int(array[0]), value.dim
        for (value, array), tensor in zip(made, expected, strict=True):
            wanted = np.asarray(tensor) if isinstance(value, Tensor) else np.array([tensor])
            assert array.shape == wanted.shape and array.dtype == wanted.dtype
            np.testing.assert_allclose(array, wanted, **(bound or {"rtol": 0}))
            if isinstance(value, Tensor):
                assert value.grid is ((gives or grid) if array.dtype == np.uint8 else None)
