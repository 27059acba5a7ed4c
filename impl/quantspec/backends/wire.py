"""How calls and results cross a pipe: one frame is a JSON tree and the arrays that it refers to, as .npy bytes. No
pickle: nothing that is read can run code."""

import io
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
QPARAMS = ("scale", "zero_point", "qmin", "qmax", "axis")


class Malformed(Exception):
    """Bytes that are no frame: somebody else wrote to the pipe, or the writer's memory is damaged."""


def pack(tree: Any) -> bytes:
    """The frame of a tree of dicts with string keys, lists, tuples, strings, numbers, None, arrays and QParams.
    TypeError for anything else."""
    arrays: list[bytes] = []
    text = json.dumps(encode(tree, arrays), allow_nan=False).encode()
    body = b"".join(struct.pack("<Q", len(a)) + a for a in arrays)
    return HEAD.pack(MAGIC, len(text), len(body)) + text + body


def unpack(read: Callable[[int], bytes]) -> Any:
    """The tree of the next frame; ``read(n)`` gives exactly n bytes or raises. Malformed for what ``pack`` did not
    write."""
    magic, text_length, body_length = HEAD.unpack(read(HEAD.size))
    if magic != MAGIC or max(text_length, body_length) > LONGEST:
        raise Malformed(f"a frame cannot begin with {magic!r} and have {text_length} + {body_length} bytes")
    text, body = read(text_length), read(body_length)
    try:
        arrays, at = [], 0
        while at < len(body):
            (length,) = struct.unpack_from("<Q", body, at)
            arrays.append(np.load(io.BytesIO(body[at + 8 : at + 8 + length]), allow_pickle=False))
            at += 8 + length
        return decode(json.loads(text), arrays)
    except (ValueError, KeyError, IndexError, TypeError, EOFError, struct.error) as error:
        raise Malformed(f"the body of a frame is damaged: {error}") from error


def encode(value: Any, arrays: list[bytes]) -> Any:
    """``value`` as JSON; arrays move to the list, where their place stands for them."""
    if value is None or isinstance(value, (bool, str, int)):
        return value
    if isinstance(value, (np.ndarray, np.generic)):
        file = io.BytesIO()
        order = memory_order(np.asarray(value))
        dense = np.asarray(value).transpose(order)
        np.lib.format.write_array(file, np.array(dense, order="C"), allow_pickle=False)
        arrays.append(file.getvalue())
        # The order of the axes in memory is kept. What has gaps arrives as every second element of a larger array.
        strided = value.ndim > 0 and not dense.flags.c_contiguous
        return {
            "array": len(arrays) - 1, "generic": isinstance(value, np.generic), "strided": strided, "order": order,
        }
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


def decode(value: Any, arrays: list[np.ndarray]) -> Any:
    """What ``encode`` was given."""
    if isinstance(value, list):
        return [decode(v, arrays) for v in value]
    if not isinstance(value, dict):
        return value
    (kind, content), *rest = value.items()
    if kind == "array":
        generic, strided, order = (field for _, field in rest)
        array = np.repeat(arrays[content], 2, axis=-1)[..., ::2] if strided else arrays[content]
        return array[()] if generic else array.transpose(np.argsort(order))
    if kind == "qparams":
        return QParams(**{key: decode(part, arrays) for key, part in content.items()})
    if kind == "float":
        return float(content)
    if kind == "tuple":
        return tuple(decode(v, arrays) for v in content)
    if kind == "set":
        return frozenset(decode(v, arrays) for v in content)
    return {key: decode(v, arrays) for key, v in content.items()}
