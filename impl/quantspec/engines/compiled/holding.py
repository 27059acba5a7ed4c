"""Weights of a program that are held as they are packed (SIZ-HELD): the codes themselves are given up."""

from dataclasses import replace
from functools import partial

import numpy as np

from quantspec.ir.held import Held, changed, codes_shape, held, hold
from quantspec.ir.program import Conv, Embedding, Linear, Program
from quantspec.ir.traverse import CodeField, code_fields
from quantspec.kernels.packed import put_together

from .packing import FloatLayer, PackedLayer, pack_layer, unpack_layer

Places = tuple[object, ...]


class Copying:
    """Packs weights, and leaves the program as it is."""

    def __init__(self) -> None:
        self.layers: list[PackedLayer] = []

    def pack(self, step: Linear | Conv | FloatLayer, owner: object = None, name: str = "weight") -> PackedLayer:
        """The weights of a step, which are those of ``owner`` where that is another. Raises as ``pack_layer`` does."""
        self.layers.append(self.packed(step, owner, name))
        return self.layers[-1]

    def packed(self, step: Linear | Conv | FloatLayer, owner: object, name: str) -> PackedLayer:
        """As ``pack``."""
        return pack_layer(step)

    def put_together(self) -> None:
        """Moves what was packed into one block."""
        parts = (part for layer in self.layers for part in layer if isinstance(part, list))
        put_together(product for part in parts for product in part)


class Holding(Copying):
    """Packs weights, and has the fields of the program that hold their codes hold them packed.

    ``take``: nobody else has the codes, whose memory may be used. What steps without kernels read stays as it is.
    """

    def __init__(self, program: Program, *, take: bool):
        super().__init__()
        self.take = take
        self.owners: dict[int, list[CodeField]] = {}
        for owner, name in code_fields(program):
            self.owners.setdefault(id(held(owner, name)), []).append((owner, name))

    def packed(self, step: Linear | Conv | FloatLayer, owner: object, name: str) -> PackedLayer:
        existing = held(step if owner is None else owner, name)
        if isinstance(existing, Held):
            layer = pack_layer(step)
            if isinstance(existing.packed, tuple) and existing.packed[0] == places(step):
                layer = with_memory_of(layer, existing.packed[1])
            return layer
        owners = self.owners[id(existing)]
        alone = not any(isinstance(other, Embedding) for other, _ in owners)
        layer = pack_layer(step, take=self.take and alone)
        if alone:
            whole = Held(existing.shape, partial(unpack_layer, without_codes(step), layer), (places(step), layer))
            whole.resident = sum(memory(layer))
            for other, field in owners:
                hold(other, field, whole)
        return layer


def places(step: Linear | Conv | FloatLayer) -> Places:
    """What the order of packed weights depends on beside their shape."""
    if isinstance(step, Conv):
        return step.groups, step.stride, step.dilation, step.input_dilation, step.padding
    return ()


def without_codes(step: Linear | Conv | FloatLayer) -> Linear | Conv | FloatLayer:
    """A step that says everything about its weights but their codes."""
    return changed(step, weight=Held(codes_shape(step), refuse))


def refuse() -> np.ndarray:
    raise AssertionError("only the shape of these weights is known")


def memory(layer: PackedLayer) -> list[int]:
    """Bytes of packed weights."""
    return [group.memory() for part in layer for group in (part if isinstance(part, list) else [part])]


def with_memory_of(layer: PackedLayer, other: PackedLayer) -> PackedLayer:
    """The same packed weights in the memory of others that are equal."""
    result: PackedLayer = []
    for part, same in zip(layer, other, strict=True):
        if isinstance(part, list):
            assert isinstance(same, list)
            pairs = zip(part, same, strict=True)
            result.append([replace(group, weight=equal.weight, moved=equal.moved) for group, equal in pairs])
        else:
            assert not isinstance(same, list)
            result.append(replace(part, weight=same.weight))
    return result
