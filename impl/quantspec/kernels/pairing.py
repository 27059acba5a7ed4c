"""Weights whose products no sum of two in 16 bits can overflow (STA-PAIRS).

A code is at most 255, so that a pair of weights is exact whose positive ones and whose negative ones each add up to 128
at most in size: 255 * 128 is 32,640. Three things make nearly all weights of a trained layer such pairs.

Four inputs can be paired in three ways. Of a pair the second input x can be read as 255 - x, its weight with the other
sign, and 255 times the weight added to the bias: then weights of one sign no longer add up. A row of inputs is
gathered in each of these forms, its planes, and every step of eight outputs reads the plane in which most pairs are
exact. What is too much in the others is a residue: one more step of the same inputs, for which the weights are exact
too.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .memory import aligned, row_pitch
from .product import PANEL, PairsRecord

MOST = 128  # what weights of a pair may add up to, of each sign
EIGHT = 8  # outputs whose weights are read together
FORMS = [(order, sign) for order in ((0, 1, 2, 3), (0, 2, 1, 3), (0, 3, 1, 2)) for sign in (1, -1)]
# Operations of vectors of 32 bytes, as counted: for so many products by dot products in pairs of 16-bit numbers, by
# pairs of bytes, and for gathering them into one plane.
WIDE, NARROW, PLANE = 4.3, 3.1, 4.5
SAMPLE = 4  # panels that tell how many planes there should be
LARGE, SPARE = 2**16, 0.05  # bytes of weights from which on residues may be only so many of the steps (SIZ-RESIDENT)


@dataclass(frozen=True, eq=False)
class Pairs:
    """What there is beside the weights, which are those of the planes.

    ``which``: the plane of each step, uint8 [panel][step][eight outputs]. ``starts``: int32, where the residues of each
    eight outputs begin; ``steps``: int32, the step of each; ``residues``: int8 [residue][8][4]. ``offset``: what planes
    add to each output's bias. ``forms``: of all planes the order of 32 bytes and the bits that are turned.
    """

    planes: int
    which: np.ndarray
    starts: np.ndarray
    steps: np.ndarray
    residues: np.ndarray
    offset: np.ndarray
    forms: np.ndarray

    @property
    def nbytes(self) -> int:
        return self.which.nbytes + self.starts.nbytes + self.steps.nbytes + self.residues.nbytes

    def record(self, steps: int) -> PairsRecord:
        """What the kernel reads, whose arrays these are."""
        tables = (self.which, self.starts, self.steps, self.residues, self.forms)
        which, starts, own, residues, forms = (int(table.ctypes.data) for table in tables)
        plane = row_pitch(4 * steps)
        return PairsRecord(
            which=which, starts=starts, steps=own, residues=residues, forms=forms, planes=self.planes,
            pitch=self.planes * plane, offsets=plane * np.arange(len(FORMS)),
        )  # fmt: skip


def panels(weight: np.ndarray, steps: int) -> Iterator[np.ndarray]:
    """Packed weights by panel, each [step][eight outputs][8][4]."""
    for first in range(0, weight.size, 64 * PANEL * steps):
        yield weight[first : first + 64 * PANEL * steps].reshape(steps, -1, EIGHT, 4)


def in_form(codes: np.ndarray, form: int) -> np.ndarray:
    """Weights [..., 4] as a plane has them, int16."""
    order, sign = FORMS[form]
    result = codes[..., order].astype(np.int16)
    result[..., 1::2] *= sign
    return result


def too_much(weights: np.ndarray) -> np.ndarray:
    """Which steps [..., 8, 4] have a pair that could overflow."""
    first, second = weights[..., 0::2], weights[..., 1::2]
    above = np.maximum(first, 0) + np.maximum(second, 0) > MOST
    below = np.minimum(first, 0) + np.minimum(second, 0) < -MOST
    found: np.ndarray = (above | below).any((-1, -2))
    return found


def exact_part(weights: np.ndarray) -> np.ndarray:
    """Weights in which no pair can overflow, and of which the rest can neither; int16."""
    first, second = weights[..., 0::2], weights[..., 1::2]
    above, below = np.clip(first, 0, MOST - 1), np.clip(first, -MOST, 0)
    result = np.empty_like(weights)
    result[..., 0::2] = above + below
    room = np.minimum(MOST - above, MOST - 1)
    result[..., 1::2] = np.clip(second, -MOST - below, room)
    return result


def planes_for(weight: np.ndarray, steps: int, outputs: int) -> int:
    """How many planes make a product quickest; 0 where pairs of bytes make it none."""
    sample = [panel for _, panel in zip(range(SAMPLE), panels(weight, steps))]
    left = [np.ones(panel.shape[:2], bool) for panel in sample]
    best, least = 0, WIDE * outputs
    for form in range(len(FORMS)):
        left = [own & too_much(in_form(panel, form)) for own, panel in zip(left, sample)]
        share = sum(int(own.sum()) for own in left) / sum(own.size for own in left)
        operations = NARROW * outputs * (1 + share) + PLANE * (form + 2)
        if operations < least and (weight.size < LARGE or share <= SPARE):
            best, least = form + 1, operations
    return best


def pair(weight: np.ndarray, steps: int, outputs: int) -> Pairs | None:
    """Has packed weights be those of the planes; None where they stay as they are."""
    planes = planes_for(weight, steps, outputs)
    if not planes:
        return None
    which, counts, own_steps, residues, offsets = [], [], [], [], []
    for panel in panels(weight, steps):
        chosen = np.zeros(panel.shape[:2], np.uint8)
        left = np.ones(panel.shape[:2], bool)
        for form in range(planes):
            overflows = too_much(in_form(panel, form))
            chosen[left & ~overflows] = form
            left &= overflows
        offset, rest = np.zeros(panel.shape[1:3], np.int64), np.zeros(panel.shape, np.int8)
        for form in np.unique(chosen):
            here = chosen == form
            own = in_form(panel[here], form)
            exact = exact_part(own)
            order, sign = FORMS[form]
            if sign < 0:
                taken = np.zeros(panel.shape[:3], np.int64)
                taken[here] = own[..., 1::2].sum(-1, dtype=np.int64)
                offset -= 255 * taken.sum(0)
            panel[here], rest[here] = exact, own - exact
        eight, step = np.nonzero(rest.any((-1, -2)).T)
        which.append(chosen.ravel())
        counts.append(np.bincount(eight, minlength=panel.shape[1]))
        own_steps.append(step)
        residues.append(rest[step, eight])
        offsets.append(offset.ravel())
    starts = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
    return Pairs(
        planes, kept(np.concatenate(which)), kept(starts.astype(np.int32)),
        kept(np.concatenate(own_steps).astype(np.int32)), kept(np.concatenate(residues)), np.concatenate(offsets),
        kept(form_table()),
    )  # fmt: skip


def form_table() -> np.ndarray:
    """Bytes [plane][order, bits][32]: bytes go where they go in each half of 32."""
    orders = [[4 * four + place for four in (*range(4), *range(4)) for place in order] for order, _ in FORMS]
    bits = [[0, 255 if sign < 0 else 0] * 16 for _, sign in FORMS]
    return np.stack([orders, bits], 1).astype(np.uint8)


def kept(values: np.ndarray) -> np.ndarray:
    """A copy that begins on a cache line."""
    result = aligned(max(values.size, 1), values.dtype)[: values.size].reshape(values.shape)
    result[...] = values
    return result


def unpaired(pairs: Pairs, weight: np.ndarray, steps: int) -> np.ndarray:
    """The packed weights that ``pair`` was given."""
    result = weight.copy()
    eights = 0
    start = 0
    for panel in panels(result, steps):
        chosen = pairs.which[start : start + panel.shape[0] * panel.shape[1]].reshape(panel.shape[:2])
        start += chosen.size
        whole = panel.astype(np.int16)
        for eight in range(panel.shape[1]):
            first, last = pairs.starts[eights + eight : eights + eight + 2]
            whole[pairs.steps[first:last], eight] += pairs.residues[first:last]
        eights += panel.shape[1]
        for form in np.unique(chosen):
            order, sign = FORMS[form]
            here = chosen == form
            own = whole[here]
            own[..., 1::2] *= sign
            panel[here] = own[..., np.argsort(order)]
    return result
