"""The arrays of a ``.safetensors`` file, read one at a time into memory of their own."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedIOBase
from typing import Any

import numpy as np
import torch

from quantspec.kernels.memory import aligned, codes_with_room

TYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32,
    "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
    "C64": torch.complex64,
}  # fmt: skip
LONGEST_HEADER = 100_000_000
METADATA = "__metadata__"


@dataclass(frozen=True)
class Header:
    """What the beginning of a file says: its metadata; place, shape and type of each tensor, in the order in which they
    lie; ``start``: where they begin; ``size``: bytes of the file."""

    metadata: Any
    places: dict[str, tuple[tuple[int, int], tuple[int, ...], torch.dtype]]
    start: int
    size: int


def header(source: BufferedIOBase, once: Callable[[Any], Any]) -> Header:
    """What a file has in it. ``once``: makes an object of JSON of its pairs. ValueError for what is no such file."""
    size = source.seek(0, 2)
    source.seek(0)
    length = int.from_bytes(source.read(8), "little")
    if not 2 <= length <= min(LONGEST_HEADER, size - 8):
        raise ValueError("it has no header of a .safetensors file")
    content = json.loads(source.read(length), object_pairs_hook=once)
    if type(content) is not dict:
        raise ValueError("its header is not a JSON object")
    metadata, places, end = content.pop(METADATA, None) or {}, {}, 0
    rows = sorted((place(row), name, row) for name, row in content.items())  # no name occurs twice
    for (first, last), name, row in rows:
        shape, dtype = tuple(row["shape"]), TYPES[row["dtype"]]
        if first != end or last - first != math.prod(shape) * dtype.itemsize or last > size - 8 - length:
            raise ValueError(f"tensor {name!r} has offsets that do not follow those before, or do not fit its shape")
        places[name], end = ((first, last), shape, dtype), last
    if end != size - 8 - length:
        raise ValueError("its header does not describe all of its bytes")
    return Header(metadata, places, 8 + length, size)


def read(source: BufferedIOBase, header: Header) -> tuple[dict[str, torch.Tensor], dict[str, np.ndarray]]:
    """The tensors of a file, and those of them that are codes as arrays, in memory in which they can be packed.

    ValueError for a file that ends before its header says so.
    """
    tensors, codes = {}, {}
    source.seek(header.start)
    for name, ((first, last), shape, dtype) in header.places.items():
        as_codes = dtype == torch.int8 and len(shape) >= 2 and 0 not in shape
        array = codes_with_room(shape) if as_codes else aligned(last - first)
        if source.readinto(array.data) != last - first:
            raise ValueError(f"tensor {name!r} is cut off")
        tensors[name] = torch.from_numpy(array).view(dtype).reshape(shape)
        if as_codes:
            codes[name] = array
    return tensors, codes


def place(row: Any) -> tuple[int, int]:
    """Where a tensor begins and ends. ValueError for a row of the header that does not say what a tensor is."""
    good = type(row) is dict and row.keys() == {"dtype", "shape", "data_offsets"} and row["dtype"] in TYPES
    numbers = [row["shape"], row["data_offsets"]] if good else []
    if not all(type(each) is list and all(type(n) is int and n >= 0 for n in each) for each in numbers) or not good:
        raise ValueError(f"expected the type, shape and place of a tensor, got {row!r:.80}")
    first, last = row["data_offsets"]
    return first, last
