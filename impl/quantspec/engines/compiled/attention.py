"""Attention on values that lie in memory in a certain way: all heads in one call of machine code (DYN-ATTENTION), which
threads share head by head.
"""

from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch

from quantspec.engines.tensors import by_place
from quantspec.kernels import attention as kernels
from quantspec.kernels import gemm, weight_only
from quantspec.kernels.emitter import LANES
from quantspec.kernels.frame import Frame, caller, frame_of
from quantspec.kernels.grouped import give_buffers, rows_apart, sixteens_bytes
from quantspec.kernels.memory import WEIGHT_SLACK, aligned, row_pitch, workspace
from quantspec.kernels.product import Product
from quantspec.kernels.records import Instruction
from quantspec.kernels.weight_only import ProductSums

from .batching import Shared, shared_out, torchs_threads, wanted_threads
from .parallel import shares
from .planner import LONG

QUERY, KEY, VALUE, OUTPUT, MASK = range(5)  # the slots
BLOCK_BYTES, BLOCK_ROWS = 2**19, 32  # of the scores and weights of queries that are computed at once; at least
LEAST, OF_SCORE = 500_000, 64  # work that is worth giving to another thread; multiply-accumulates that a weight takes


class Lying(NamedTuple):
    """How float32 values lie in memory: their shape, and how many values lie between neighbours along each axis."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, x: torch.Tensor) -> "Lying":
        return cls(x.shape, x.stride())

    @property
    def pitch(self) -> int:
        """Bytes between two rows."""
        return 4 * self.strides[-2] if self.shape[-2] > 1 else 0

    def heads(self, batch: tuple[int, ...]) -> np.ndarray:
        """Where each head lies behind the first, in bytes, where their axes are ``batch``."""
        result = np.zeros((), np.int64)
        own = [(1, 0)] * (len(batch) + 2 - len(self.shape)) + list(zip(self.shape, self.strides))
        for count, (length, stride) in zip(batch, own):
            result = result[..., None] + (np.arange(count) * (4 * stride) if length > 1 else np.zeros(count, np.int64))
        # The one behind the last, which is fetched and not read, is the last again.
        return np.append(result.ravel(), result.ravel()[-1:])


class Room(NamedTuple):
    """Where a frame works: the addresses of codes and scales, of the scores of a block of queries, of their weights and
    one over the sums of these, and of the sums of weighted values."""

    keys: int
    key_scales: int
    key_sums: int
    features: int
    feature_scales: int
    feature_sums: int
    queries: int
    query_scales: int
    scores: int
    weights: int
    shares: int
    sums: int


class Bound(Shared):
    """Attention on values that lie in a certain way, for one calling thread at a time."""

    def __init__(self, values: tuple[Lying, ...], factor: np.float32, causal: bool, threads: int):
        self.factor, self.causal, self.threads = factor, causal, threads
        query, key, value = values[:3]
        self.keys, self.features, self.width, self.rows = key.shape[-2], key.shape[-1], value.shape[-1], query.shape[-2]
        batch = np.broadcast_shapes(*(lying.shape[:-2] for lying in values))
        self.shape, heads = (*batch, self.rows, self.width), prod(batch)
        self.kept: list[np.ndarray] = []
        lying = (*values[:3], Lying.of(by_place(self.shape)), *values[3:])
        self.places = [(self.keep(each.heads(batch)), each.pitch) for each in lying]
        self.fetched = self.keep(self.ahead())
        # Steps of four inputs of both products, and bytes between rows of their inputs and of their sums.
        self.steps = LANES // 4 * in_vectors(self.features), -(-self.keys // 4)
        self.code_pitch, self.weight_pitch = (
            row_pitch(LANES * in_vectors(count)) for count in (self.features, self.keys)
        )
        self.score_pitch, self.sum_pitch = (row_pitch(64 * in_vectors(count)) for count in (self.keys, self.width))
        most = max(BLOCK_ROWS, BLOCK_BYTES // (6 * self.keys) // BLOCK_ROWS * BLOCK_ROWS)
        self.blocks = shares(self.rows, -(-self.rows // most))
        work, team = heads * self.rows * self.keys * (self.features + 2 * self.width + OF_SCORE), torchs_threads()
        parts = shares(heads, wanted_threads(threads, work, LEAST) if team else 1)
        # The number of the head that each member comes to.
        self.turns, self.firsts = [aligned(1, np.int64) for _ in parts], [first for first, _ in parts]
        self.frames = [self.frame(member, last - first) for member, (first, last) in enumerate(parts)]
        for frame in self.frames:
            frame.release = work >= LONG
        self.share = shared_out([frame.address for frame in self.frames], team, threads, direct=False)
        self.start = self.share.address if self.share else self.frames[0].address

    def ahead(self) -> np.ndarray:
        """The records of what is fetched of the next head."""
        records = []
        sizes = (QUERY, self.rows, self.features), (KEY, self.keys, self.features), (VALUE, self.keys, self.width)
        for slot, rows, width in sizes:
            offsets, pitch = self.places[slot]
            lines = -(-4 * width // 64)
            records.append(kernels.Ahead(slot=slot, offsets=offsets, count=rows, pitch=pitch, lines=lines).entries)
        return np.concatenate(records)

    def frame(self, member: int, heads: int) -> Frame:
        """The frame of so many heads, which a ``member`` of the threads runs."""
        turn = self.keep(self.turns[member])

        def memory(use: str, nbytes: int) -> int:
            return self.keep(workspace(f"attention {use}", member, nbytes))

        rows = max(last - first for first, last in self.blocks)
        keys, width = in_vectors(self.keys), in_vectors(self.width)
        of_keys, of_features = 64 * keys * self.steps[0], 64 * width * self.steps[1]
        sizes = Room(
            of_keys + WEIGHT_SLACK, 64 * keys, 64 * keys, of_features + WEIGHT_SLACK, 64 * width, 64 * width,
            sixteens_bytes(rows, self.code_pitch), 4 * rows, rows * self.score_pitch,
            sixteens_bytes(2 * rows, self.weight_pitch), 4 * rows, 2 * rows * self.sum_pitch,
        )  # fmt: skip
        room = Room(*(memory(use, nbytes) for use, nbytes in zip(Room._fields, sizes)))
        instructions: list[Instruction] = [
            kernels.KEYS.bound(kernels.Keys(
                **self.head(turn, KEY, self.keys), width=self.features, target=room.keys, steps=self.steps[0],
                scales=room.key_scales, sums=room.key_sums,
            )),
            kernels.FEATURES.bound(kernels.Features(
                **self.head(turn, VALUE, self.keys), width=self.width, target=room.features, steps=self.steps[1],
                scales=room.feature_scales, sums=room.feature_sums,
            )),
        ]  # fmt: skip
        for first, last in self.blocks:
            instructions += self.block(room, turn, first, last)
        products = (each.product for each in instructions if isinstance(each, ProductSums))
        give_buffers(products, lambda nbytes: memory("rows", nbytes))
        return frame_of(*instructions, slices=heads, slots=5)

    def head(self, turn: int, slot: int, count: int, first: int = 0) -> dict[str, Any]:
        """Where ``count`` rows of a head lie, from the ``first`` on."""
        offsets, pitch = self.places[slot]
        return dict(turn=turn, slot=slot, offsets=offsets, count=count, pitch=pitch, ahead=first * pitch)

    def block(self, room: Room, turn: int, first: int, last: int) -> list[Instruction]:
        """What makes the outputs of the queries from ``first`` to ``last``."""
        count, masked = last - first, len(self.places) > MASK
        scores = self.product(
            count, self.keys, self.steps[0], x=room.queries, pitch=self.code_pitch, weight=room.keys,
            sums=room.key_sums, y=room.scores, y_pitch=self.score_pitch,
        )  # fmt: skip
        sums = self.product(
            2 * count, self.width, self.steps[1], x=room.weights, pitch=self.weight_pitch, weight=room.features,
            sums=room.feature_sums, y=room.sums, y_pitch=self.sum_pitch,
        )  # fmt: skip
        return [
            kernels.QUERIES.bound(kernels.Queries(
                **self.head(turn, QUERY, count, first), width=self.features, target=room.queries,
                target_pitch=self.code_pitch, scales=room.query_scales,
            )),
            scores,
            kernels.WEIGHTS_OF.bound(kernels.Weights(
                **self.head(turn, MASK if masked else QUERY, count, first), width=self.keys, scores=room.scores,
                scores_pitch=self.score_pitch, scales=room.query_scales, factor=self.factor,
                key_scales=room.key_scales, key_sums=room.key_sums, target=room.weights,
                target_pitch=self.weight_pitch, apart=count * self.weight_pitch, shares=room.shares, masked=masked,
                causal=self.causal, first=first, fetched=self.fetched,
            )),
            sums,
            kernels.OUTPUTS.bound(kernels.Outputs(
                **self.head(turn, OUTPUT, count, first), width=self.width, sums=room.sums, sums_pitch=self.sum_pitch,
                apart=count * self.sum_pitch, shares=room.shares, scales=room.feature_scales, step=last == self.rows,
            )),
        ]  # fmt: skip

    def product(self, rows: int, outputs: int, steps: int, *, pitch: int, y_pitch: int, **places: int) -> ProductSums:
        """The sums of rows of codes, ``pitch`` bytes apart, times weights."""
        blocks = in_vectors(outputs)
        inner = Product(
            **places, bias=0, factor=0, outputs=outputs, blocks=blocks, steps=steps,
            chunk=gemm.chunk_rows(rows, 4 * steps), **rows_apart(self.keep, rows, pitch, steps, blocks),
        )  # fmt: skip
        return weight_only.PRODUCT.bound(ProductSums(product=inner, y_pitch=y_pitch))

    def run(self, starts: list[int], result: int) -> bool:
        """Has the outputs of values that begin there written, as ``by_place`` has them; False for what has no codes."""
        addresses = [*starts[:3], result, *starts[3:]]
        for frame, turn, first in zip(self.frames, self.turns, self.firsts):
            frame.addresses[: len(addresses)] = addresses
            turn[0] = first
        return caller()(self.start, 0, 0) == 0

    def keep(self, array: np.ndarray) -> int:
        """The address of an array that lives as long."""
        self.kept.append(array)
        return int(array.ctypes.data)


def in_vectors(count: int) -> int:
    """How many vectors hold so many lanes."""
    return -(-count // LANES)
