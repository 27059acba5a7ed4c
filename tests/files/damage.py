"""Files that are damaged or forged at random: bytes, values of the JSON, tensors."""

import copy
import random

import torch

ODD_VALUES = (
    None, True, False, 0, 1, -1, 2, 3, 7, 255, 256, 2**31, 2**63, -(2**70), 0.5, -0.0, 1e-45, 1e300, "", "x", "lstm",
    "add", [], [0], [[1, 1]], {}, {"ref": "x"}, {"ref": "nobody"}, {"tuple": []}, {"float": "nan"}, {"dtype": "int8"},
    {"slice": [0, 1, None]}, {"tensor": "0.weight"}, {"dict": [["a", 1]]}, {"ellipsis": True},
)  # fmt: skip
# What a network may raise whose Program is well-formed, but is another.
RUNNING = (ValueError, TypeError, RuntimeError, IndexError, KeyError, AttributeError)
DTYPES = (torch.float32, torch.float64, torch.int8, torch.uint8, torch.int32, torch.bfloat16, torch.bool)


def leaves(value, path=()):
    """The paths of everything inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from leaves(item, (*path, key))


def at(path, value):
    for key in path:
        value = value[key]
    return value


def changed_json(network, draw: random.Random):
    network = copy.deepcopy(network)
    for _ in range(draw.choice((1, 1, 1, 2))):
        paths = list(leaves(network))
        *way, last = draw.choice(paths)
        place = at(way, network)
        kind = draw.randrange(5)
        if kind == 0:
            del place[last]
        elif kind == 1 and isinstance(place, list):
            place.insert(last, copy.deepcopy(place[draw.randrange(len(place))]))
        elif kind == 2:
            place[last] = copy.deepcopy(at(draw.choice(paths), network))  # something from elsewhere in the same file
        elif kind == 3 and isinstance(place[last], (int, float)):
            place[last] += draw.choice((-1, 1, 0.5, -2))
        else:
            place[last] = copy.deepcopy(draw.choice(ODD_VALUES))
    return network


def larger_numbers(network, draw: random.Random):
    """The JSON with some of its whole numbers much larger, whose products are larger still."""
    network = copy.deepcopy(network)
    paths = [path for path in leaves(network) if type(at(path, network)) is int]
    *way, last = draw.choice(paths)
    times = 2 ** draw.randrange(1, 30)
    near = [path for path in paths if path[: len(way)] == tuple(way)] if draw.random() < 0.7 else []
    for *place, key in near or [(*way, last)]:
        at(place, network)[key] = at(place, network)[key] * times + draw.choice((0, 0, 1, times))
    return network


def changed_tensors(tensors, draw: random.Random):
    tensors = dict(tensors)
    name = draw.choice(sorted(tensors))
    kind, tensor = draw.randrange(5), tensors[name]
    if kind == 0:
        tensors[name] = tensor.to(draw.choice(DTYPES))
    elif kind == 1:
        tensors[name] = tensor.reshape(-1)[: draw.randrange(tensor.numel() + 1)].clone()
    elif kind == 2:
        tensors[name] = tensor.unsqueeze(draw.randrange(tensor.ndim + 1)).clone()
    elif kind == 3:
        tensors[draw.choice(("other", name + "#2"))] = tensors.pop(name)
    else:
        flat = tensor.clone().reshape(-1)
        odd = (0.0, -1.0, float("nan"), float("inf"), 1e-40) if tensor.is_floating_point() else (0, 1, 127)
        flat[draw.randrange(flat.numel())] = draw.choice(odd)
        tensors[name] = flat.reshape(tensor.shape)
    return tensors


def changed_bytes(data: bytes, draw: random.Random) -> bytes:
    kind, made = draw.randrange(6), bytearray(data)
    if kind == 0:
        return bytes(made[: draw.randrange(len(made))])
    if kind == 1:
        at = draw.randrange(len(made))
        return bytes(made[:at] + bytes(draw.randrange(256) for _ in range(draw.randrange(1, 9))) + made[at:])
    if kind == 2:
        at, size = draw.randrange(len(made)), draw.randrange(1, 64)
        return bytes(made[:at] + made[at + size :])
    for _ in range(draw.choice((1, 1, 2, 8))):
        # Half of the changes go to the header, which is where they can do most.
        at = draw.randrange(len(made)) if draw.random() < 0.5 else draw.randrange(min(len(made), 3000))
        if kind == 3:
            made[at] = draw.choice(b'0123456789{}[]",:.-ex\\ \x00\xff')
        else:
            made[at] ^= 1 << draw.randrange(8)
    return bytes(made)
