"""How calls and results cross a pipe: one frame is a JSON tree and the bytes of the arrays in it, one behind the other.
No pickle: nothing that is read can run code."""

import json
import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from quantspec.numerics.affine import QParams

MAGIC = b"QS8\n"
HEAD = struct.Struct("<4sIQ")  # magic, length of the JSON, length of the arrays
LONGEST = 1 << 30
KINDS = "biufc"  # of arrays: what they hold are numbers, whose bytes are all there is
QPARAMS = ("scale", "zero_point", "qmin", "qmax", "axis")


class Malformed(Exception):
    """Bytes that are no frame: somebody else wrote to the pipe, or the writer's memory is damaged."""


def pack(tree: Any) -> bytes:
    """The frame of a tree of dicts with string keys, lists, tuples, strings, numbers, None, arrays and QParams.
    TypeError for anything else."""
    arrays: list[bytes] = []
    text = json.dumps(encode(tree, arrays), allow_nan=False).encode()
    body = b"".join(arrays)
    return HEAD.pack(MAGIC, len(text), len(body)) + text + body


def unpack(read: Callable[[int], bytes]) -> Any:
    """The tree of the next frame; ``read(n)`` gives exactly n bytes or raises. Malformed for what ``pack`` did not
    write."""
    magic, text_length, body_length = HEAD.unpack(read(HEAD.size))
    if magic != MAGIC or max(text_length, body_length) > LONGEST:
        raise Malformed(f"a frame cannot begin with {magic!r} and have {text_length} + {body_length} bytes")
    text, body = read(text_length), read(body_length)
    try:
        arrays = Body(body)
        tree = decode(json.loads(text), arrays)
        if arrays.at < len(body):
            raise ValueError(f"{len(body) - arrays.at} bytes are of no array")
        return tree
    except Exception as error:  # damaged bytes come to anything
        raise Malformed(f"the body of a frame is damaged: {error}") from error


class Body:
    """The bytes of a frame's arrays, which are taken in the order in which they lie."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def array(self, kind: str, shape: list[int]) -> np.ndarray:
        """The next array, in memory of its own."""
        dtype, start = np.dtype(kind), self.at
        if dtype.kind not in KINDS or any(length < 0 for length in shape):
            raise ValueError(f"there is no array of {kind!r} and shape {shape}")
        self.at += math.prod(shape) * dtype.itemsize
        if self.at > len(self.data):
            raise ValueError(f"an array of {kind!r} and shape {shape} is cut off")
        return np.ndarray(shape, dtype, self.data, start).copy()


def encode(value: Any, arrays: list[bytes]) -> Any:
    """``value`` as JSON; the bytes of arrays move to the list."""
    if value is None or isinstance(value, (bool, str, int)):
        return value
    if isinstance(value, (np.ndarray, np.generic)):
        array = np.asarray(value)
        if array.dtype.kind not in KINDS:
            raise TypeError(f"expected arrays of numbers, got {array.dtype}")
        order = memory_order(array)
        dense = array.transpose(order)
        arrays.append(dense.tobytes())
        # The order of the axes in memory is kept. What has gaps arrives as every second element of a larger array.
        strided = array.ndim > 0 and not dense.flags.c_contiguous
        form = {"generic": isinstance(value, np.generic), "strided": strided, "order": order}
        return {"array": dense.dtype.str, "shape": list(dense.shape), **form}
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, QParams):
        return {"qparams": {field: encode(getattr(value, field), arrays) for field in QPARAMS}}
    if isinstance(value, tuple):
        return {"tuple": [encode(v, arrays) for v in value]}
    if isinstance(value, (frozenset, set)):
        return {"set": [encode(v, arrays) for v in sorted(value)]}
    if isinstance(value, list):
        return [encode(v, arrays) for v in value]
    if isinstance(value, dict):
        return {"dict": {key: encode(v, arrays) for key, v in value.items()}}
    raise TypeError(f"expected arrays, numbers, strings, QParams and containers of them, got {type(value).__name__}")


def memory_order(array: np.ndarray) -> list[int]:
    """The axes of an array, that with the largest stride first; as they are where the array is in C order."""
    if array.flags.c_contiguous:
        return list(range(array.ndim))
    return sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))


def decode(value: Any, body: Body) -> Any:
    """What ``encode`` was given."""
    if isinstance(value, list):
        return [decode(v, body) for v in value]
    if not isinstance(value, dict):
        return value
    (kind, content), *rest = value.items()
    if kind == "array":
        shape, generic, strided, order = (field for _, field in rest)
        array = body.array(content, shape)
        array = np.repeat(array, 2, axis=-1)[..., ::2] if strided else array
        if generic:
            return array[()]
        return array if order == list(range(array.ndim)) else array.transpose(np.argsort(order))
    if kind == "qparams":
        return QParams(**{key: decode(part, body) for key, part in content.items()})
    if kind == "float":
        return float(content)
    if kind == "tuple":
        return tuple(decode(v, body) for v in content)
    if kind == "set":
        return frozenset(decode(v, body) for v in content)
    if kind == "dict":
        return {key: decode(v, body) for key, v in content.items()}
    raise ValueError(f"there is no kind {kind!r} of values")
