"""What torchvision's Swin transformers compute in float, of any image size, as ONNX operators."""

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto

from quantspec.errors import UnsupportedError

from .builder import Graph, Size, Tensor, dim_of
from .float_ops import cat, linear, named
from .rearrange import narrow, permute, reshape, select, transpose


def patch_merging(g: Graph, x: Tensor) -> Tensor:
    """torchvision's: every second row and column, [..., rows, columns, channels] to [..., rows / 2, columns / 2, 4 * channels]."""
    if x.rank != 4:
        raise UnsupportedError("patches without a batch axis")
    whole = filled(g, x, [(axis, length_op(g, "Mod", g.size(x, axis), 2)) for axis in (1, 2)])
    parts = [narrow(g, narrow(g, whole, 1, i, None, 2), 2, j, None, 2) for j in (0, 1) for i in (0, 1)]
    return cat(g, parts, -1)


def length_op(g: Graph, operator: str, a: int | Size, b: int | Size) -> int | Size:
    exact = {"Mod": lambda a, b: a % b, "Div": lambda a, b: a // b, "Mul": lambda a, b: a * b, "Sub": lambda a, b: a - b, "Add": lambda a, b: a + b}
    return exact[operator](a, b) if isinstance(a, int) and isinstance(b, int) else g.compute(operator, a, b)


def filled(g: Graph, x: Tensor, after: list[tuple[int, int | Size]]) -> Tensor:
    """Zeros behind some axes, as many as lengths say."""
    more = dict(after)
    ends = g.vector([0] * x.rank + [more.get(axis, 0) for axis in range(x.rank)])
    name = g.node("Pad", [x.name, ends, g.constant(0.0, np.float32)])
    dims = tuple(d if axis not in more else ("filled", d, dim_of(more[axis])) for axis, d in enumerate(x.shape))
    return Tensor(name, tuple(d[1] + d[2] if isinstance(d, tuple) and d[0] == "filled" and isinstance(d[1], int) and isinstance(d[2], int) else d for d in dims))


def shifted_window_attention(
    g: Graph, input: Tensor, qkv_weight: Any, proj_weight: Any, relative_position_bias: Any, window_size: Any, num_heads: int, shift_size: Any,
    attention_dropout: float = 0.0, dropout: float = 0.0, qkv_bias: Any = None, proj_bias: Any = None, logit_scale: Any = None, training: bool = True,
) -> Tensor:  # fmt: skip
    """torchvision's, of any image size: [images, rows, columns, channels] padded to whole windows, shifted, attention inside each, and back."""
    if logit_scale is not None or training and (dropout or attention_dropout):
        raise UnsupportedError("attention by cosines, or with dropout")
    channels, area = proj_weight.shape[0], window_size[0] * window_size[1]
    missing = []
    for axis, w in enumerate(window_size, start=1):
        left = length_op(g, "Sub", w, length_op(g, "Mod", g.size(input, axis), w))
        missing.append((axis, length_op(g, "Mod", left, w)))
    x = filled(g, input, missing)
    x = Tensor(x.name, (input.shape[0], (x.name, 1), (x.name, 2), channels))
    batch, *sizes = (g.size(x, axis) for axis in range(3))
    counts = [length_op(g, "Div", length, w) for length, w in zip(sizes, window_size)]
    shifts = [shift if shift == 0 else shifted(g, length, w, shift) for length, w, shift in zip(sizes, window_size, shift_size)]
    moved = any(shift != 0 for shift in shift_size)
    if moved:
        x = rolled(g, x, sizes, shifts, back=False)
    windows_ = permute(g, reshape(g, x, batch, counts[0], window_size[0], counts[1], window_size[1], channels), 0, 1, 3, 2, 4, 5)
    rows = reshape(g, windows_, -1, area, channels)
    joined = reshape(g, linear(g, rows, qkv_weight, qkv_bias), -1, area, 3, num_heads, channels // num_heads)
    q, k, v = (select(g, permute(g, joined, 2, 0, 3, 1, 4), 0, i) for i in range(3))
    q = Tensor(g.node("Mul", [q.name, g.constant((channels // num_heads) ** -0.5, np.float32)]), q.shape)
    scores = g.node("Add", [g.node("MatMul", [q.name, transpose(g, k, -2, -1).name]), named(g, relative_position_bias)])
    if moved:
        windows_count = length_op(g, "Mul", counts[0], counts[1])
        apart = g.node("Reshape", [scores, g.vector([batch, windows_count, num_heads, area, area])])
        masked = g.node("Add", [apart, window_mask(g, sizes, counts, window_size, shifts)])
        scores = g.node("Reshape", [masked, g.ints(-1, num_heads, area, area)])
    weights = g.node("Softmax", [scores], axis=-1)
    made = permute(g, Tensor(g.node("MatMul", [weights, v.name]), v.shape), 0, 2, 1, 3)
    y = linear(g, reshape(g, made, -1, area, channels), proj_weight, proj_bias)
    y = permute(g, reshape(g, y, batch, counts[0], counts[1], window_size[0], window_size[1], channels), 0, 1, 3, 2, 4, 5)
    y = reshape(g, y, batch, *sizes, channels)
    if moved:
        y = rolled(g, y, sizes, shifts, back=True)
    y = narrow(g, narrow(g, y, 1, 0, g.size(input, 1)), 2, 0, g.size(input, 2))
    return Tensor(y.name, (*input.shape[:3], channels))


def shifted(g: Graph, length: int | Size, window: int, shift: int) -> int | Size:
    """The shift, 0 where one window is all there is."""
    if isinstance(length, int):
        return 0 if window >= length else shift
    small = g.node("LessOrEqual", [length.name, g.ints(window)])
    return Size(g.node("Where", [small, g.ints(0), g.ints(shift)]), ("shift", length.dim, window, shift))


def rolled(g: Graph, x: Tensor, sizes: list, shifts: list, back: bool) -> Tensor:
    """Rows and columns moved by their shifts, to the front, or back again."""
    for axis, (length, shift) in enumerate(zip(sizes, shifts), start=1):
        if shift != 0:
            start = length_op(g, "Sub", length, shift) if back else shift
            parts = narrow(g, x, axis, start, None), narrow(g, x, axis, 0, start)
            x = Tensor(g.node("Concat", [part.name for part in parts], axis=axis), x.shape)
    return x


def window_mask(g: Graph, sizes: list, counts: list, window: Any, shifts: list) -> str:
    """-100 between positions of a window that were no neighbours before the shift, [1, windows, 1, area, area]."""
    places = []
    for length, w, shift in zip(sizes, window, shifts):
        squeezed = g.node("Squeeze", [g.int_name(length)])
        index = g.node("Range", [g.constant(0, np.int64), squeezed, g.constant(1, np.int64)])
        ends = [g.int_name(length_op(g, "Sub", length, cut)) for cut in (w, shift)]
        behind = [g.node("Cast", [g.node("GreaterOrEqual", [index, end])], to=TensorProto.INT64) for end in ends]
        places.append(g.node("Add", behind))
    rows = g.node("Mul", [g.node("Unsqueeze", [places[0], g.ints(1)]), g.ints(3)])
    region = g.node("Add", [rows, g.node("Unsqueeze", [places[1], g.ints(0)])])
    region = g.node("Reshape", [region, g.vector([counts[0], window[0], counts[1], window[1]])])
    region = g.node("Reshape", [g.node("Transpose", [region], perm=[0, 2, 1, 3]), g.ints(-1, window[0] * window[1])])
    same = g.node("Equal", [g.node("Unsqueeze", [region, g.ints(1)]), g.node("Unsqueeze", [region, g.ints(2)])])
    mask = g.node("Where", [same, g.constant(0.0, np.float32), g.constant(-100.0, np.float32)])
    return g.node("Unsqueeze", [mask, g.ints(0, 2)])


FUNCTIONS: dict[str, Callable] = {
    "torchvision.models.swin_transformer.shifted_window_attention": shifted_window_attention,
    "torchvision.models.swin_transformer._patch_merging_pad": patch_merging,
}
