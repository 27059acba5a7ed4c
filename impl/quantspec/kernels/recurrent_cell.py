"""One step of a recurrent network (DYN-RECURRENT).

Gates need exp in float64, whose result is rounded to float32 (``reference_dynamic.near``). Here it is the nearest power
of two, or, where a table of sixteen roots of two can be looked up, of such a root, times a polynomial of what is left,
half a step at most, which is off by less than 2^-54; in small steps that takes half the terms. Sigmoid and tanh come
out within a few 2^-53, so that another float32 than the nearest is a matter of one in 2^26.
"""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from llvmlite import ir
from numpy.polynomial import chebyshev

from . import cpu
from .emitter import DOUBLES, FLOATS, I64, LANES, NO_LANES, Body, Emitter, Value
from .frame import slot_addresses
from .jit import Kernel
from .records import Address, Instruction, Integer


class Cell(Instruction):
    """``rows`` samples of ``size`` outputs, each of so many ``gates``; where the gates of the state, the outputs before
    and the cell's state are; how far behind the first two slots the inputs' gates and the outputs are, and how many
    bytes apart those of two samples.
    """

    rows: Integer
    size: Integer
    gates: Integer
    state_gates: Address
    h: Address
    c: Address
    output_pitch: Integer
    gates_ahead: Integer = Integer()
    output_ahead: Integer = Integer()


LONGS = ir.VectorType(I64, LANES)
Fraction64 = tuple[Value, Value]  # numerator and denominator, float64 vectors
LOG2_E = 1.4426950408889634  # nearer than most float64 are to what they stand for: by 2^-55.9 of it
ROOTS, ROOT_SHIFT = 16, 48  # roots of two in a table, and where four bits of a number are next to an exponent
TERMS = {1: 11, ROOTS: 6}


def multiply_add(emit: Emitter, a: Value, b: Value, c: Value) -> Value:
    """a * b + c of float64 vectors, in one rounding where that is one instruction: either is exact enough."""
    if cpu.target().has_fma:
        return emit.native("llvm.fma.v16f64", DOUBLES, a, b, c)
    return emit.fadd(emit.fmul(a, b), c)


def exp(emit: Emitter, y: Value, times: float, end: float) -> Value:
    """exp(times * y) + end, of float64 vectors that hold float32; ``times`` is a power of two or the negative of one,
    times * y at most 300 in size."""
    steps = ROOTS if is_wide() else 1  # of a power of two: the more, the fewer terms
    scale, to_integer = steps * times * LOG2_E, emit.splat(1.5 * 2.0**52, DOUBLES)  # adding that rounds to an integer
    moved = multiply_add(emit, y, emit.splat(scale, DOUBLES), to_integer)
    k = emit.fsub(moved, to_integer)
    # What of the steps is no integer, rounded once; without that instruction by products that are exact.
    r = emit.fneg(k)
    for part in (scale,) if cpu.target().has_fma else halves(scale):
        r = multiply_add(emit, y, emit.splat(part, DOUBLES), r)
    *terms, near = (emit.splat(term, DOUBLES) for term in terms_of_exp(TERMS[steps], math.log(2) / steps))
    for term in reversed(terms):
        near = multiply_add(emit, near, r, term)
    if steps == 1:
        # Of a float64's exponent; of its fraction.
        bias, digits = (ir.Constant(LONGS, [number] * LANES) for number in (1023, 52))
        power = emit.bitcast(emit.shl(emit.add(emit.bitcast(moved, LONGS), bias), digits), DOUBLES)
    else:
        power = powers_of_root(emit, moved, ROOT_BITS[0])
    start = emit.fadd(power, emit.splat(end, DOUBLES))
    if steps > 1 and end < 0:  # what a root of two is rounded by counts where the rest of it is taken away
        start = emit.fadd(start, powers_of_root(emit, moved, ROOT_BITS[1]))
    return multiply_add(emit, emit.fmul(power, r), near, start)


def halves(number: float) -> tuple[float, float]:
    """A float64 as the sum of two: a product of the first, which has 29 bits, and a float32 is exact."""
    size = 2.0 ** (math.frexp(number)[1] - 29)
    high = round(number / size) * size
    return high, number - high


def terms_of_exp(count: int, step: float) -> list[float]:
    """The polynomial of so many terms that is near (exp(step * r) - 1) / r on |r| <= 1/2: of Taylor's terms, as a sum
    of Chebyshev's polynomials, the first so many."""
    taylor = [step * (step / 2) ** n / math.factorial(n + 1) for n in range(2 * count)]
    near = chebyshev.cheb2poly(chebyshev.poly2cheb(taylor)[:count])
    return [float(term * 2**n) for n, term in enumerate(near)]


def is_wide() -> bool:
    """Whether one instruction looks eight of sixteen float64 up."""
    return cpu.target().dot_lanes == LANES


def root_bits(number: Fraction, n: int) -> int:
    """The bits of the nearest float64, less n steps in what of an exponent's bits 2^(1/16) to the n moves."""
    (bits,) = struct.unpack("<q", struct.pack("<d", number))
    return int(bits - (n << ROOT_SHIFT))


def roots_of_two() -> tuple[list[int], list[int]]:
    """2^(n / 16) as sums of two float64, in ``root_bits``; the second of 1 is next to nothing instead of 0."""
    near, rest = [], []
    for n in range(ROOTS):
        exact = Fraction(math.isqrt(math.isqrt(math.isqrt(math.isqrt(2**n << 16 * 160)))), 2**160)
        first = Fraction(float(exact))
        near.append(root_bits(first, n))
        rest.append(root_bits(exact - first or Fraction(1, 2**200), n))
    return near, rest


def powers_of_root(emit: Emitter, moved: Value, table: list[int]) -> Value:
    """2^(k / 16) of the integers k in the last bits of float64 vectors: the root of k's last four bits from a table,
    and all others added to the exponent."""
    eight = ir.VectorType(I64, LANES // 2)
    low, high = (ir.Constant(eight, part) for part in (table[: LANES // 2], table[LANES // 2 :]))
    found = []
    for half in emit.parts(emit.bitcast(moved, LONGS)):
        root = emit.native("llvm.x86.avx512.vpermi2var.q.512", eight, low, half, high)
        found.append(emit.add(root, emit.shl(half, ir.Constant(eight, [ROOT_SHIFT] * (LANES // 2)))))
    return emit.bitcast(emit.joined(*found), DOUBLES)


def limited(emit: Emitter, x: Value, limit: float) -> Value:
    """A float32 vector as float64, at most ``limit`` in size."""
    least, most = emit.splat(-limit, FLOATS), emit.splat(limit, FLOATS)
    return emit.fpext(emit.minimum(emit.maximum(x, least), most), DOUBLES)


def sigmoid(emit: Emitter, x: Value) -> Fraction64:
    """1 / (1 + exp(-x))."""
    return emit.splat(1.0, DOUBLES), exp(emit, limited(emit, x, 150.0), -1.0, 1.0)


def tanh(emit: Emitter, x: Value) -> Fraction64:
    """(exp(2x) - 1) / (exp(2x) + 1), of which a numerator that is 0 would lose its sign."""
    x = limited(emit, x, 30.0)
    above = emit.native("llvm.copysign.v16f64", DOUBLES, exp(emit, x, 2.0, -1.0), x)
    return above, emit.fadd(above, emit.splat(2.0, DOUBLES))


def quotient(emit: Emitter, fraction: Fraction64) -> Value:
    """A fraction as float32."""
    return emit.fptrunc(emit.fdiv(*fraction), FLOATS)


def quotients(emit: Emitter, first: Fraction64, second: Fraction64) -> tuple[Value, Value]:
    """Two fractions as float32, from one division, which takes as long as ten products."""
    (above, below), (other_above, other_below) = first, second
    both = emit.fdiv(emit.splat(1.0, DOUBLES), emit.fmul(below, other_below))
    exact = emit.fmul(above, emit.fmul(both, other_below)), emit.fmul(other_above, emit.fmul(both, below))
    return emit.fptrunc(exact[0], FLOATS), emit.fptrunc(exact[1], FLOATS)


ROOT_BITS = roots_of_two()
Gates = list[Value]  # of sixteen outputs, those of the input or of the state


def lstm(emit: Emitter, x: Gates, h: Gates, c: Value) -> tuple[list[Value], Value]:
    i, f, g, o = (emit.fadd(a, b) for a, b in zip(x, h))
    i, f = quotients(emit, sigmoid(emit, i), sigmoid(emit, f))
    g, o = quotients(emit, tanh(emit, g), sigmoid(emit, o))
    return [o], emit.fadd(emit.fmul(f, c), emit.fmul(i, g))


def lstm_output(emit: Emitter, kept: list[Value], before: Value, c: Value) -> Value:
    return emit.fmul(kept[0], quotient(emit, tanh(emit, c)))


def gru(emit: Emitter, x: Gates, h: Gates, c: Value) -> tuple[list[Value], Value]:
    r, z = quotients(emit, *(sigmoid(emit, emit.fadd(x[n], h[n])) for n in (0, 1)))
    return [z, emit.fadd(x[2], emit.fmul(r, h[2]))], c


def gru_output(emit: Emitter, kept: list[Value], before: Value, c: Value) -> Value:
    z, n = kept[0], quotient(emit, tanh(emit, kept[1]))
    return emit.fadd(n, emit.fmul(z, emit.fsub(before, n)))


def rnn(emit: Emitter, x: Gates, h: Gates, c: Value) -> tuple[list[Value], Value]:
    return [emit.fadd(x[0], h[0])], c


def rnn_tanh_output(emit: Emitter, kept: list[Value], before: Value, c: Value) -> Value:
    return quotient(emit, tanh(emit, kept[0]))


def rnn_relu_output(emit: Emitter, kept: list[Value], before: Value, c: Value) -> Value:
    return emit.maximum(kept[0], emit.splat(0.0, FLOATS))


@dataclass(frozen=True)
class Kind:
    """A kind of network: how many gates it has, what makes of all gates and the cell's state what is kept of them and
    the next state, and what makes of what was kept, the output before and the next state of the cell the next output.

    These are two loops: a processor looks ahead as far as one function or two, and where every output waits for a
    function of a function, it would have nothing else to do at the end of each.
    """

    gates: int
    step: Callable[[Emitter, Gates, Gates, Value], tuple[list[Value], Value]]
    kept: int
    output: Callable[[Emitter, list[Value], Value, Value], Value]


KINDS = {
    "lstm": Kind(4, lstm, 1, lstm_output),
    "gru": Kind(3, gru, 2, gru_output),
    "rnn_tanh": Kind(1, rnn, 1, rnn_tanh_output),
    "rnn_relu": Kind(1, rnn, 1, rnn_relu_output),
}


def outputs(
    kind: Kind, emit: Emitter, op: Value, frame: Value, first: Value, vectors: Value, *, ends: bool,
    meanwhile: Callable[[Value], None] | None = None,
) -> Value:  # fmt: skip
    """Writes a step of so many whole ``vectors`` of outputs from the ``first`` one on, of all rows; 1 when a gate is no
    finite number. ``ends``: the outputs behind them that are no whole vector, too.

    The inputs' gates and the outputs are the first two slots. What is kept of the gates takes the place of the state's.
    ``meanwhile(n)`` writes what else is done with vector n.
    """
    rows, size, state_gates, h, c = emit.fields(op, Cell.rows, Cell.size, Cell.state_gates, Cell.h, Cell.c)
    ahead = emit.fields(op, Cell.gates_ahead, Cell.output_ahead)
    gates, output = (emit.add(slot, more) for slot, more in zip(slot_addresses(emit, frame), ahead))
    output_pitch = emit.field(op, Cell.output_pitch)
    zeros = emit.splat(0.0, FLOATS)

    def row(b: Value, carried: list[Value]) -> list[Value]:
        line = emit.mul(emit.shl(size, I64(2)), b)
        starts = [emit.add(start, emit.mul(line, I64(kind.gates))) for start in (gates, state_gates)]
        of_row = emit.add(output, emit.mul(output_pitch, b))
        of_h, of_c = (emit.add(base, line) for base in (h, c))

        def gate(start: Value, index: int, at: Value) -> Value:
            return emit.add(start, emit.add(emit.mul(size, I64(4 * index)), at))

        def read(address: Value, mask: Value | None) -> Value:
            return emit.read_some(address, FLOATS, mask, zeros)

        def gates_of(at: Value, mask: Value | None, bad: Value) -> Value:
            xs, hs = ([read(gate(start, index, at), mask) for index in range(kind.gates)] for start in starts)
            for x, state in zip(xs, hs):
                total = emit.fadd(x, state)
                nothing = emit.fsub(total, total)  # infinity less itself is NaN
                bad = emit.or_(bad, emit.fcmp_unordered("uno", nothing, zeros))
            old = read(emit.add(of_c, at), mask)
            kept, new = kind.step(emit, xs, hs, old)
            for index, value in enumerate(kept):
                emit.write_some(value, gate(starts[1], index, at), mask)
            if new is not old:
                emit.write_some(new, emit.add(of_c, at), mask)
            return bad

        def output_of(at: Value, mask: Value | None) -> None:
            places = [gate(starts[1], index, at) for index in range(kind.kept)]
            places += [emit.add(start, at) for start in (of_h, of_c)]
            *kept, before, new = (read(address, mask) for address in places)
            after = kind.output(emit, kept, before, new)
            for target in (of_h, of_row):
                emit.write_some(after, emit.add(target, at), mask)

        def place(n: Value) -> Value:
            return emit.shl(emit.add(first, n), I64(6))

        def one(n: Value, carried: list[Value]) -> list[Value]:
            bad = gates_of(place(n), None, carried[0])
            if meanwhile is not None:
                meanwhile(n)
            return [bad]

        (bad,) = emit.loop(vectors, carried, one)
        emit.each(vectors, lambda n: output_of(place(n), None))
        if not ends:
            return [bad]
        left = emit.and_(size, I64(LANES - 1))
        mask = emit.mask(left)

        def last(n: Value, carried: list[Value]) -> list[Value]:
            bad = gates_of(place(vectors), mask, carried[0])
            output_of(place(vectors), mask)
            return [bad]

        return emit.loop(emit.smaller(left, I64(1)), [bad], last)

    bad = emit.loop(rows, [NO_LANES], row)[0]
    return emit.zext(emit.any(bad), I64)


def cell(kind: Kind) -> Body:
    """Writes the kernel for one step of a kind of network."""

    def write(emit: Emitter, op: Value, frame: Value) -> Value:
        vectors = emit.ashr(emit.field(op, Cell.size), I64(4))
        return outputs(kind, emit, op, frame, I64(0), vectors, ends=True)

    return write


CELLS = {name: Kernel(name, Cell, cell(kind)) for name, kind in KINDS.items()}
