"""The arrays of a file by themselves: what its header says, where each lies, and what every refusal says."""

import io

import numpy as np
import pytest
import torch
from forged import raw

from quantspec.storage import arrays, file
from told import exactly

NO_HEADER = "it has no header of a .safetensors file"
ODD_PLACE = "tensor 'a' has offsets that do not follow those before, or do not fit its shape"
INCOMPLETE = "its header does not describe all of its bytes"


def row(dtype="U8", shape=(2,), first=0, last=2):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [first, last]}


def raw_of(body=b"", **rows):
    return raw(file.text(rows).encode(), body)


def header(data):
    return arrays.header(io.BytesIO(data), file.once)


def unlike(value):
    return f"expected the type, shape and place of a tensor, got {value!r}"


REFUSED = {
    "seven bytes": (bytes(7), NO_HEADER),
    "a header of one byte": (raw(b"1"), NO_HEADER),
    "a header of one byte more than there are": (raw(b"{} ")[:-1], NO_HEADER),
    "a key twice": (raw(b'{"a":1,"a":2}'), "a key occurs twice"),
    "no object": (raw(b"[]"), "its header is not a JSON object"),
    "a place that is none": (raw_of(b"ab", a=3), unlike(3)),
    "a long row": (raw_of(a=["b" * 99]), f"{unlike('')[:-2]}{['b' * 99]!r:.80}"),
    "a row without a type": (raw_of(a={"shape": [2]}), unlike({"shape": [2]})),
    "an unknown type": (raw_of(b"ab", a=row("U9")), unlike(row("U9"))),
    "a length by text": (raw_of(b"ab", a=row(shape="2")), unlike(row(shape="2"))),
    "a length that is a float": (raw_of(b"ab", a=row(shape=[2.0])), unlike(row(shape=[2.0]))),
    "a length below 0": (raw_of(b"ab", a=row(shape=[-1, -2])), unlike(row(shape=[-1, -2]))),
    "a place below 0": (raw_of(b"ab", a=row(first=-1)), unlike(row(first=-1))),
    "a gap before the first": (raw_of(b"abc", a=row(first=1, last=3)), ODD_PLACE),
    "a gap between two": (raw_of(b"abcde", b=row(), a=row(first=3, last=5)), ODD_PLACE),
    "two at one place": (raw_of(b"abc", b=row(), a=row(first=1, last=3)), ODD_PLACE),
    "fewer bytes than the shape has": (raw_of(b"ab", a=row(shape=[3])), ODD_PLACE),
    "fewer bytes than the type has": (raw_of(b"ab", a=row("I16")), ODD_PLACE),
    "one byte beyond the file": (raw_of(b"a", a=row()), ODD_PLACE),
    "one byte that no tensor has": (raw_of(b"abc", a=row()), INCOMPLETE),
    "one byte and no tensor": (raw(b"{}", b"a"), INCOMPLETE),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_file_of_arrays_is_refused_by_a_whole_sentence(name):
    data, message = REFUSED[name]
    with pytest.raises(ValueError, match=exactly(message)):
        header(data)


def test_a_header_says_where_each_array_lies_in_their_order():
    rows = {"late": row("I8", (2, 3), 16, 22), "scalar": row("F64", (), 0, 8), "early": row("I32", (2, 1), 8, 16)}
    data = raw_of(bytes(22), **rows)
    found = header(data)
    assert found == arrays.Header({}, found.places, len(data) - 22, len(data))
    assert list(found.places.items()) == [
        ("scalar", ((0, 8), (), torch.float64)),
        ("early", ((8, 16), (2, 1), torch.int32)),
        ("late", ((16, 22), (2, 3), torch.int8)),
    ]


@pytest.mark.parametrize("metadata", [b"{}", b'{"__metadata__":null}', b'{"__metadata__":{}}'])
def test_a_file_without_arrays_and_metadata_has_a_header(metadata):
    data = raw(metadata)
    assert header(data) == arrays.Header({}, {}, len(data), len(data))


def test_a_header_is_read_from_the_beginning_and_gives_its_metadata():
    source = io.BytesIO(raw(b'{"__metadata__":{"a":"b"}}'))
    source.seek(5)
    assert arrays.header(source, file.once).metadata == {"a": "b"}


def test_a_header_is_of_a_limited_length(monkeypatch):
    data = raw_of(b"ab", a=row())
    length = int.from_bytes(data[:8], "little")
    monkeypatch.setattr(arrays, "LONGEST_HEADER", length)
    assert list(header(data).places) == ["a"]
    monkeypatch.setattr(arrays, "LONGEST_HEADER", length - 1)
    with pytest.raises(ValueError, match=f"^{NO_HEADER}$"):
        header(data)


VALUES = {
    "flag": ("BOOL", torch.tensor([True, False, True])),
    "bytes": ("U8", torch.tensor([[1, 255]], dtype=torch.uint8)),
    "vector": ("I8", torch.tensor([-128, 127], dtype=torch.int8)),
    "codes": ("I8", torch.tensor([[1, -2, 3], [-4, 5, -6]], dtype=torch.int8)),
    "cube": ("I8", torch.arange(24, dtype=torch.int8).reshape(2, 3, 4)),
    "no codes": ("I8", torch.zeros(3, 0, dtype=torch.int8)),
    "no images": ("I8", torch.zeros(0, 4, 4, dtype=torch.int8)),
    "number": ("F32", torch.tensor(2.5)),
    "complex": ("C64", torch.tensor([1 + 2j, -3j], dtype=torch.complex64)),
    "half": ("BF16", torch.tensor([[0.5], [-8.0]], dtype=torch.bfloat16)),
}


def in_a_file():
    rows, body = {}, b""
    for name, (kind, tensor) in VALUES.items():
        data = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        rows[name] = row(kind, tensor.shape, len(body), len(body) + len(data))
        body += data
    return raw_of(body, **rows)


def test_arrays_are_read_bit_for_bit_and_int8_matrices_as_codes_too():
    source = io.BytesIO(in_a_file())
    tensors, codes = arrays.read(source, arrays.header(source, file.once))
    assert list(tensors) == list(VALUES)
    for name, (_, expected) in VALUES.items():
        assert tensors[name].dtype == expected.dtype and torch.equal(tensors[name], expected), name
        assert tensors[name].shape == expected.shape, name
    assert list(codes) == ["codes", "cube"]
    for name, array in codes.items():
        assert array.dtype == np.int8 and np.array_equal(array, VALUES[name][1].numpy())
        assert tensors[name].data_ptr() == array.ctypes.data  # one memory for both
        assert array.ctypes.data % 64 == 0


@pytest.mark.parametrize("left", [1, 5])
def test_a_file_that_another_process_shortens_meanwhile_is_told(left):
    data = in_a_file()
    found = header(data)
    (first, last), *_ = found.places["cube"]
    with pytest.raises(ValueError, match="^tensor 'cube' is cut off$"):
        arrays.read(io.BytesIO(data[: found.start + last - left]), found)
    with pytest.raises(ValueError, match="^tensor 'cube' is cut off$"):
        arrays.read(io.BytesIO(data[: found.start + first]), found)
