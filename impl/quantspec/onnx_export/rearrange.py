"""What rearranges values, codes and floats alike, as ONNX operators."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from quantspec.errors import UnsupportedError
from quantspec.ir import rearrange
from quantspec.ir.program import Move
from quantspec.ir.traverse import replace_refs

from .builder import Dim, Graph, Length, Size, Tensor, dim_of, times
from .resize import interpolate

FAR = 2**62  # beyond the end of any axis


def like(x: Tensor, name: str, shape: tuple[Dim, ...]) -> Tensor:
    return Tensor(name, shape, x.grid)


def reshape(g: Graph, x: Tensor, *sizes: Any) -> Tensor:
    """``torch.reshape``; sizes are numbers or lengths, one may be -1."""
    if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
        sizes = tuple(sizes[0])
    return like(x, g.node("Reshape", [x.name, g.vector(sizes)]), resolved(x, sizes))


def resolved(x: Tensor, sizes: Iterable[Length]) -> tuple[Dim, ...]:
    """The shape, with -1 worked out where the lengths on both sides cancel."""
    dims = [dim_of(size) for size in sizes]
    if -1 not in dims:
        return tuple(dims)
    at = dims.index(-1)
    rest: Dim = ("rest", x.name, tuple(dims))
    left, right = list(x.shape), dims[:at] + dims[at + 1 :]
    for dim in list(right):
        if dim in left:
            left.remove(dim)
            right.remove(dim)
    names = [dim for dim in left if not isinstance(dim, int)]
    factors = [dim for dim in right if isinstance(dim, int)]
    if len(factors) == len(right) and len(names) <= 1:
        more, less = math.prod(dim for dim in left if isinstance(dim, int)), math.prod(factors)
        if not names and less and more % less == 0:
            rest = more // less
        elif names and more == less:
            rest = names[0]
    return (*dims[:at], rest, *dims[at + 1 :])


def flatten(g: Graph, x: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    start, end = x.axis(start_dim), x.axis(end_dim)
    if start >= end:
        return x
    return reshape(g, x, *(g.size(x, i) for i in range(start)), -1, *(g.size(x, i) for i in range(end + 1, x.rank)))


def unflatten(g: Graph, x: Tensor, dim: int, sizes: Any) -> Tensor:
    at = x.axis(dim)
    return reshape(g, x, *(g.size(x, i) for i in range(at)), *sizes, *(g.size(x, i) for i in range(at + 1, x.rank)))


def permute(g: Graph, x: Tensor, *axes: Any) -> Tensor:
    if len(axes) == 1 and isinstance(axes[0], (tuple, list)):
        axes = tuple(axes[0])
    axes = tuple(axis % len(axes) for axis in axes)
    shape = tuple(x.shape[axis] for axis in axes)
    return like(x, g.node("Transpose", [x.name], perm=axes), shape)


def transpose(g: Graph, x: Tensor, dim0: int, dim1: int) -> Tensor:
    axes = list(range(x.rank))
    a, b = x.axis(dim0), x.axis(dim1)
    axes[a], axes[b] = axes[b], axes[a]
    return permute(g, x, *axes)


def movedim(g: Graph, x: Tensor, source: Any, destination: Any) -> Tensor:
    sources, ends = ([x.axis(a) for a in (v if isinstance(v, (tuple, list)) else (v,))] for v in (source, destination))
    axes: list[int | None] = [None] * x.rank
    for a, b in zip(sources, ends):
        axes[b] = a
    others = iter(a for a in range(x.rank) if a not in sources)
    return permute(g, x, *(next(others) if a is None else a for a in axes))


def transpose_matrix(g: Graph, x: Tensor) -> Tensor:
    return x if x.rank < 2 else transpose(g, x, 0, 1)


def unsqueeze(g: Graph, x: Tensor, dim: int) -> Tensor:
    at = dim % (x.rank + 1)
    shape = (*x.shape[:at], 1, *x.shape[at:])
    return like(x, g.node("Unsqueeze", [x.name, g.ints(dim)]), shape)


def squeeze(g: Graph, x: Tensor, dim: Any = None) -> Tensor:
    named = (dim,) if isinstance(dim, int) else dim
    axes = [x.axis(d) for d in (range(x.rank) if named is None else named)]
    for axis in axes:
        if named is None and not isinstance(x.shape[axis], int):
            raise UnsupportedError(f"squeeze of axis {axis}, whose length is unknown before the network runs")
    # An axis that is named is taken to have one entry; the runtime refuses others.
    axes = [axis for axis in axes if x.shape[axis] == 1 or not isinstance(x.shape[axis], int)]
    if not axes:
        return x
    return like(x, g.node("Squeeze", [x.name, g.ints(*axes)]), tuple(d for i, d in enumerate(x.shape) if i not in axes))


def narrow(g: Graph, x: Tensor, axis: int, start: Any, stop: Any, step: int = 1) -> Tensor:
    """A slice along an axis counted from the first; ``stop`` may be None."""
    length = x.shape[axis]
    ends = [g.int_name(start), g.int_name(FAR if stop is None else stop), g.ints(axis), g.ints(step)]
    if isinstance(length, int) and isinstance(start, int) and (stop is None or isinstance(stop, int)):
        dim: Dim = len(range(*slice(start, stop, step).indices(length)))
    else:
        dim = ("slice", length, dim_of(start), None if stop is None else dim_of(stop), step)
    shape = (*x.shape[:axis], dim, *x.shape[axis + 1 :])
    return like(x, g.node("Slice", [x.name, *ends]), shape)


def select(g: Graph, x: Tensor, dim: int, index: Any) -> Tensor:
    axis = x.axis(dim)
    shape = (*x.shape[:axis], *x.shape[axis + 1 :])
    return like(x, g.node("Gather", [x.name, g.node("Squeeze", [g.int_name(index)])], axis=axis), shape)


def getitem(g: Graph, x: Any, index: Any) -> Any:
    """An item of a tuple, or part of a tensor by integers, slices, None and Ellipsis."""
    if isinstance(x, (tuple, list)):
        return x[index]
    parts = index if isinstance(index, tuple) else (index,)
    if any(not isinstance(p, (int, Size, slice, type(None), type(Ellipsis))) or isinstance(p, bool) for p in parts):
        raise UnsupportedError("indexing by a tensor")
    if any(p is Ellipsis for p in parts):
        at = next(i for i, p in enumerate(parts) if p is Ellipsis)
        missing = x.rank - sum(p is not None and p is not Ellipsis for p in parts)
        parts = (*parts[:at], *[slice(None)] * missing, *parts[at + 1 :])
    axis = 0
    for part in parts:
        if part is None:
            x, axis = unsqueeze(g, x, axis), axis + 1
        elif isinstance(part, slice):
            step = 1 if part.step is None else part.step
            if (part.start, part.stop, step) != (None, None, 1):
                x = narrow(g, x, axis, 0 if part.start is None else part.start, part.stop, step)
            axis += 1
        else:
            x = select(g, x, axis, part)
    return x


def known(x: Tensor, axis: int, what: str) -> int:
    """The length of an axis. Raises UnsupportedError where it is not known."""
    length = x.shape[axis]
    if not isinstance(length, int):
        raise UnsupportedError(f"{what} of an axis whose length is unknown before the network runs")
    return length


def split(g: Graph, x: Tensor, size: Any, dim: int = 0) -> tuple[Tensor, ...]:
    """``torch.split``: parts of a size, or of the sizes given."""
    axis = x.axis(dim)
    if isinstance(size, (tuple, list)):
        sizes = list(size)
    else:
        length = known(x, axis, "a split")
        sizes = [min(size, length - start) for start in range(0, length, size)]
    if len(sizes) == 1:
        return (x,)
    names = g.outputs(len(sizes), "Split", [x.name, g.vector(sizes)], axis=axis)
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    return tuple(like(x, name, (*before, dim_of(size), *after)) for name, size in zip(names, sizes))


def chunk(g: Graph, x: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    return split(g, x, -(-known(x, x.axis(dim), "a split") // chunks), dim)


def unbind(g: Graph, x: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    axis = x.axis(dim)
    return tuple(select(g, x, axis, index) for index in range(known(x, axis, "unbind")))


def expand(g: Graph, x: Tensor, *sizes: Any) -> Tensor:
    if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
        sizes = tuple(sizes[0])
    new = len(sizes) - x.rank
    dims = [1 if s == -1 else s for s in sizes]  # ONNX broadcasts both ways: 1 keeps the axis
    shape = tuple(x.shape[i - new] if s == -1 else dim_of(s) for i, s in enumerate(sizes))
    return like(x, g.node("Expand", [x.name, g.vector(dims)]), shape)


def sizes_of(g: Graph, x: Tensor) -> list[Length]:
    return [g.size(x, axis) for axis in range(x.rank)]


def repeat(g: Graph, x: Tensor, *counts: Any) -> Tensor:
    if len(counts) == 1 and isinstance(counts[0], (tuple, list)):
        counts = tuple(counts[0])
    if len(counts) > x.rank:
        x = reshape(g, x, *[1] * (len(counts) - x.rank), *sizes_of(g, x))
    shape = tuple(times(dim, dim_of(count)) for dim, count in zip(x.shape, counts))
    return like(x, g.node("Tile", [x.name, g.vector(counts)]), shape)


def tile(g: Graph, x: Tensor, *counts: Any) -> Tensor:
    """``torch.tile``, which takes counts of the last axes alone."""
    if len(counts) == 1 and isinstance(counts[0], (tuple, list)):
        counts = tuple(counts[0])
    return repeat(g, x, *[1] * (x.rank - len(counts)), *counts)


def flip(g: Graph, x: Tensor, *dims: Any) -> Tensor:
    axes = [x.axis(d) for d in (dims[0] if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims)]
    ends = [g.ints(*[-1] * len(axes)), g.ints(*[-FAR] * len(axes)), g.ints(*axes), g.ints(*[-1] * len(axes))]
    return like(x, g.node("Slice", [x.name, *ends]), x.shape)


def roll(g: Graph, x: Tensor, shifts: Any, dims: Any = None) -> Tensor:
    if dims is None:
        raise UnsupportedError("roll without dims")
    for shift, dim in zip(*((v,) if isinstance(v, (int, Size)) else v for v in (shifts, dims))):
        if shift != 0:
            axis = x.axis(dim)
            # A shift may go round more than once, or the other way.
            first = g.compute("sub", 0, g.compute("mod", shift, g.size(x, axis)))
            parts = narrow(g, x, axis, first, None), narrow(g, x, axis, 0, first)
            x = like(x, g.node("Concat", [part.name for part in parts], axis=axis), x.shape)
    return x


def pad(g: Graph, x: Tensor, widths: Any, mode: str = "constant", value: Any = None) -> Tensor:
    """``F.pad``; codes get their zero point, floats zero or ``value``. Widths may be lengths."""
    pairs = [(x.rank - 1 - i, widths[2 * i], widths[2 * i + 1]) for i in range(len(widths) // 2)]
    kinds = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    for axis, before, after in pairs:  # what is negative cuts off
        if cuts(before) or cuts(after):
            x = narrow(g, x, axis, -before if cuts(before) else 0, after if cuts(after) else None)
    pairs = [(axis, 0 if cuts(before) else before, 0 if cuts(after) else after) for axis, before, after in pairs]
    pairs = [(axis, before, after) for axis, before, after in pairs if before != 0 or after != 0]
    if not pairs:
        return x
    # For every axis: ONNX Runtime loses its way with a Pad of some axes when it moves transpositions through it.
    befores, afters = {axis: before for axis, before, _ in pairs}, {axis: after for axis, _, after in pairs}
    ends = g.vector([*(befores.get(i, 0) for i in range(x.rank)), *(afters.get(i, 0) for i in range(x.rank))])
    filler = []
    if mode == "constant":
        content = (value or 0.0, np.float32) if x.grid is None else (x.grid.zero_point, x.grid.dtype)
        filler.append(g.constant(*content))
    name = g.node("Pad", [x.name, ends, *filler], mode=kinds[mode])
    shape = list(x.shape)
    for axis, before, after in pairs:
        shape[axis] = padded(shape[axis], before, after)
    return like(x, name, tuple(shape))


def cuts(width: Length) -> bool:
    return isinstance(width, int) and width < 0


def padded(dim: Dim, before: Length, after: Length) -> Dim:
    """The length of a padded axis."""
    if isinstance(dim, int) and isinstance(before, int) and isinstance(after, int):
        return dim + before + after
    return ("pad", dim, dim_of(before), dim_of(after))


def pixel_shuffle(g: Graph, x: Tensor, upscale_factor: int) -> Tensor:
    r = upscale_factor
    *before, c, h, w = sizes_of(g, x)
    n, channels = len(before), g.compute("floordiv", c, r**2)
    blocks = permute(g, reshape(g, x, *before, channels, r, r, h, w), *range(n + 1), n + 3, n + 1, n + 4, n + 2)
    return reshape(g, blocks, *before, channels, g.compute("mul", h, r), g.compute("mul", w, r))


def pixel_unshuffle(g: Graph, x: Tensor, downscale_factor: int) -> Tensor:
    r = downscale_factor
    *before, c, h, w = sizes_of(g, x)
    n, height, width = len(before), g.compute("floordiv", h, r), g.compute("floordiv", w, r)
    blocks = permute(g, reshape(g, x, *before, c, height, r, width, r), *range(n + 1), n + 2, n + 4, n + 1, n + 3)
    return reshape(g, blocks, *before, g.compute("mul", c, r**2), height, width)


def channel_shuffle(g: Graph, x: Tensor, groups: int) -> Tensor:
    n, c, *rest = sizes_of(g, x)
    split_channels = reshape(g, x, n, groups, g.compute("floordiv", c, groups), *rest)
    return reshape(g, permute(g, split_channels, 0, 2, 1, *range(3, 3 + len(rest))), n, c, *rest)


def same(g: Graph, x: Tensor, *others: Any, **options: Any) -> Tensor:
    return x


def like_other(g: Graph, x: Tensor, other: Tensor) -> Tensor:
    return reshape(g, x, *sizes_of(g, other))


def narrow_by_length(g: Graph, x: Tensor, dim: int, start: Length, length: Length) -> Tensor:
    """``torch.narrow``."""
    axis = x.axis(dim)
    if isinstance(start, int) and start < 0:  # from the end, which a slice may not reach by its stop
        start = g.compute("add", g.size(x, axis), start)
    return narrow(g, x, axis, start, g.compute("add", start, length))


# By the names in ``ir.rearrange``, functions without their module.
MOVES: dict[str, Callable[..., Any]] = {
    "flatten": flatten, "unflatten": unflatten, "reshape": reshape, "view": reshape, "view_as": like_other,
    "reshape_as": like_other, "permute": permute, "transpose": transpose, "swapaxes": transpose, "movedim": movedim,
    "t": transpose_matrix, "contiguous": same, "clone": same, "detach": same, "squeeze": squeeze,
    "unsqueeze": unsqueeze, "chunk": chunk, "split": split, "unbind": unbind, "roll": roll, "flip": flip,
    "narrow": narrow_by_length, "select": select, "getitem": getitem, "tile": tile, "repeat": repeat,
    "expand": expand, "broadcast_to": expand, "pad": pad, "interpolate": interpolate, "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle, "channel_shuffle": channel_shuffle,
}  # fmt: skip
# What torch calls an argument of some of them.
KEYWORDS = {"axis0": "dim0", "axis1": "dim1", "split_size": "size"}
OF_NUMBERS = (reshape, permute, flip, repeat, tile, expand)  # whose one argument is one number after the other


def moved(g: Graph, target: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What one of ``MOVES`` gives, called as torch's. Raises UnsupportedError for arguments that it does not take."""
    given = {KEYWORDS.get(name, name): value for name, value in kwargs.items()}
    function = MOVES[target]
    if "input" in given:
        args = (given.pop("input"), *args)
    if function in OF_NUMBERS:
        args, given = (*args, *given.values()), {}
    try:
        return function(g, *args, **given)
    except TypeError as error:
        raise UnsupportedError(f"{target} with these arguments: {error}") from error


def move(g: Graph, step: Move, values: dict[str, Any]) -> Any:
    """Codes rearranged. Raises UnsupportedError for what is no move, or has no operator."""
    target = step.target.rpartition(".")[2]
    if target not in MOVES or not rearrange.known(step.kind, step.target):
        raise UnsupportedError(step.target)
    args, kwargs = replace_refs(step.args, values.__getitem__), replace_refs(step.kwargs, values.__getitem__)
    return moved(g, target, args, kwargs)


def lengths(g: Graph, target: str, x: Tensor, *args: Any) -> Any:
    """What calls that read shapes give: numbers, lengths, or tuples of them."""
    if target in ("shape", "size"):
        sizes = tuple(sizes_of(g, x))
        return sizes[args[0]] if args else sizes
    return x.rank  # dim, ndim, ndimension
