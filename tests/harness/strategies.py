"""Everything that Hypothesis draws here, and everything that is enumerated instead of drawn.

Drawn values are float32 in NumPy. Each strategy reaches the places where kernels go wrong: ties and their neighbours,
ends of ranges, the largest and the smallest numbers, lengths around vector widths. What is drawn again and again is
made once: Hypothesis examines each new strategy for longer than it draws from it.
"""

from functools import cache

import numpy as np
from hypothesis import strategies as st

from evidence import note
from quantspec.numerics.affine import QParams

WIDTHS = [(bits, signed) for bits in range(2, 9) for signed in (False, True)]
LENGTHS = [0, 1, 2, 3, 15, 16, 17, 63, 64, 65]
FLOAT32_MAX = float(np.finfo(np.float32).max)
KINDS_OF_VALUES = st.sampled_from(["tie", "code", "between", "any", "end", "extreme"])
BESIDE_TIES, BESIDE_CODES = st.sampled_from([0, 0, -1, 1]), st.sampled_from([0, -1, 1])
FEW = st.sampled_from([0, 1, 1, 2, 3])
KINDS_OF_RANGES = st.sampled_from(["ordinary", "any", "huge", "one-sided", "symmetric", "point", "tiny"])
KINDS_OF_LAYOUTS = st.sampled_from(["plain", "fortran", "strided", "backwards", "offset"])


def code_ends(bits: int, signed: bool) -> tuple[int, int]:
    """(qmin, qmax), written out independently of the code under test."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def every_code(qmin: int, qmax: int) -> np.ndarray:
    """All codes from qmin to qmax; the test that asks for them counts as exhaustive over codes."""
    note("codes")
    return np.arange(qmin, qmax + 1, dtype=np.uint8 if qmin >= 0 else np.int8)


def every_zero_point(qmin: int, qmax: int) -> range:
    """All zero points; the test that asks for them counts as exhaustive over zero points."""
    note("zero points")
    return range(qmin, qmax + 1)


@cache
def widths() -> st.SearchStrategy[tuple[int, int]]:
    """(qmin, qmax) of 2 to 8 bits, signed and unsigned; 8 bits half of the time."""
    eight_bits = st.sampled_from([(8, False), (8, True)])
    return st.one_of(st.sampled_from(WIDTHS), eight_bits).map(lambda width: code_ends(*width))


@cache
def exponents(low: int, high: int) -> st.SearchStrategy[float]:
    """Powers of two, from 2**low to 2**high."""
    return st.integers(low, high).map(lambda e: 2.0**e)


@cache
def scales(low: float = 2.0**-126, high: float = 2.0**119) -> st.SearchStrategy[np.float32]:
    """Scales that AFF-SCALE admits: powers of two, the ends, ordinary ones, any float32 between."""
    low_exponent, high_exponent = int(np.ceil(np.log2(low))), int(np.floor(np.log2(high)))
    mantissas = st.floats(1, 2, width=32, exclude_max=True)
    return st.one_of(
        st.floats(2.0**-10, 2.0, width=32) if low <= 2**-10 and high >= 2 else st.nothing(),
        exponents(low_exponent, high_exponent),
        # No example is drawn twice, so without the idle draw each end would come once.
        exponents(low_exponent, high_exponent).flatmap(lambda _: st.sampled_from([low, high])),
        st.floats(low, high, width=32),
        # Uniform in the exponent: what st.floats draws is mostly simple numbers.
        st.tuples(st.integers(low_exponent, high_exponent - 1), mantissas).map(lambda pair: pair[1] * 2.0 ** pair[0]),
    ).map(np.float32)


@cache
@st.composite
def channel_scales(draw, count: int, low: float = 2.0**-126, high: float = 2.0**119) -> np.ndarray:
    """Scales for so many channels, float32 (count,): each for itself, or all alike but one that is wildly different."""
    if draw(st.booleans()):
        return np.array([draw(scales(low, high)) for _ in range(count)], np.float32)
    array = np.full(count, draw(scales(low, high)), np.float32)
    if count:
        array[draw(st.integers(0, count - 1))] = draw(st.sampled_from([low, high]))
    return array


@cache
@st.composite
def shapes(draw, axes: int, longest: int = 65, elements: int = 400) -> tuple[int, ...]:
    """Shapes of so many axes: one may be as long as a vector or its neighbours, the others are 0, 1 or small."""
    shape = [draw(FEW) for _ in range(axes)]
    lengths = [n for n in LENGTHS if n <= longest and n * int(np.prod(np.maximum(shape, 1))) <= elements]
    if axes and draw(st.booleans()):
        shape[draw(st.integers(0, axes - 1))] = draw(st.sampled_from(lengths or [1]))
    return tuple(shape)


def shifted(x: float, ulps: int) -> np.float32:
    """The float32 that lies so many places from x."""
    x = np.float32(x)
    for _ in range(abs(ulps)):
        x = np.nextafter(x, np.float32(np.inf if ulps > 0 else -np.inf))
    return x


@st.composite
def values(draw, scale: float, qmin: int = -128, qmax: int = 255, *, finite: bool = False) -> np.float32:
    """A real value to be quantized with a scale: on and beside ties and codes, ends, huge, subnormal, infinite."""
    kind = draw(KINDS_OF_VALUES)
    steps = draw(st.integers(qmin - qmax - 2, qmax - qmin + 2))
    with np.errstate(over="ignore"):
        if kind == "tie":
            x = shifted((steps + 0.5) * float(scale), draw(BESIDE_TIES))
        elif kind == "code":
            x = shifted(steps * float(scale), draw(BESIDE_CODES))
        elif kind == "between":
            x = np.float32(draw(st.floats(-1.5, 1.5, width=32)) * (qmax - qmin) * float(scale))
        elif kind == "any":
            x = np.float32(draw(st.floats(width=32, allow_nan=False, allow_infinity=not finite)))
        elif kind == "end":
            x = shifted(draw(st.sampled_from([qmin, qmax, qmin - qmax])) * float(scale), draw(st.integers(-1, 1)))
        else:
            beyond_int32 = [2.0**31 * float(scale), -(2.0**31) * float(scale), 3e9 * float(scale)]
            extremes = [FLOAT32_MAX, -FLOAT32_MAX, *beyond_int32, 1e-45, -1e-45, 0.0, -0.0]
            x = np.float32(draw(st.sampled_from(extremes if finite else [*extremes, np.inf, -np.inf])))
    return np.float32(np.clip(x, -FLOAT32_MAX, FLOAT32_MAX)) if finite else x


@cache
@st.composite
def grids(draw, low: float = 2.0**-126, high: float = 2.0**119) -> QParams:
    """Per-tensor qparams of any width."""
    qmin, qmax = draw(widths())
    return QParams(draw(scales(low, high)), draw(st.integers(qmin, qmax)), qmin, qmax)


@st.composite
def arrays_on(draw, grid: QParams, *, finite: bool = False, lengths=None) -> np.ndarray:
    """A 1-d float32 array of values for a grid, of a length around a vector width."""
    length = draw(lengths if lengths is not None else st.sampled_from(LENGTHS))
    few = draw(st.lists(values(float(grid.scale), grid.qmin, grid.qmax, finite=finite), min_size=1, max_size=16))
    return np.resize(np.array(few, dtype=np.float32), length)


@cache
@st.composite
def ranges(draw, widest: float = 2 * FLOAT32_MAX) -> tuple[np.float32, np.float32]:
    """(minimum, maximum): ordinary, one-sided, symmetric, degenerate, tiny, huge.

    No range is wider than ``widest``, zero included.
    """
    kind = draw(KINDS_OF_RANGES)
    if kind == "any":
        a, b = (draw(st.floats(width=32, allow_nan=False, allow_infinity=False)) for _ in "ab")
    elif kind == "huge":
        a, b = (float(np.float32(draw(st.floats(-1, 1, width=32)) * 2.0 ** draw(st.integers(90, 127)))) for _ in "ab")
    elif kind == "tiny":
        a, b = (draw(st.floats(-(2.0**-50), 2.0**-50, width=32)) for _ in "ab")
    else:
        a, b = (draw(st.floats(-100, 100, width=32)) for _ in "ab")
    if kind == "one-sided":
        a, b = (abs(a), abs(b)) if draw(st.booleans()) else (-abs(a), -abs(b))
    elif kind == "symmetric":
        a, b = -abs(a), abs(a)
    elif kind == "point":
        b = a
    a, b = np.clip([a, b], -widest / 2, widest / 2)
    return np.float32(min(a, b)), np.float32(max(a, b))


def coverable() -> st.SearchStrategy[tuple[np.float32, np.float32]]:
    """Ranges that some scale covers with codes of any width, so that AFF-RANGE-HUGE does not apply."""
    return ranges(widest=2.0**118)


@cache
def seeds() -> st.SearchStrategy[np.random.Generator]:
    """Generators for bulk data whose single values do not matter."""
    return st.integers(0, 2**32 - 1).map(np.random.default_rng)


@st.composite
def layouts(draw, x: np.ndarray) -> np.ndarray:
    """The same array in another memory layout.

    As it is, in Fortran order, every second element of a larger one, backwards, or off its alignment.
    """
    kind = draw(KINDS_OF_LAYOUTS)
    if kind == "fortran":
        return np.asfortranarray(x)
    if kind == "strided" and x.ndim:
        return np.repeat(x, 2, axis=x.ndim - 1)[..., ::2]
    if kind == "backwards" and x.ndim:
        return np.ascontiguousarray(x[::-1])[::-1]
    if kind == "offset":
        memory = np.zeros(x.nbytes + 1, np.uint8)
        memory[1:] = np.frombuffer(x.tobytes(), np.uint8)
        return memory[1:].view(x.dtype).reshape(x.shape)
    return x
