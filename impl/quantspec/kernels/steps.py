"""What kernels of training are made of (chapter 7): functions of Python's that take numbers alone, loops over floats of
any count, codes less the zero point by the rules of chapter 10, as float32."""

from collections.abc import Callable, Sequence

from llvmlite import ir

from .emitter import DOUBLES, F32, FLOATS, I1, I32, I64, LANES, Emitter, Value, function
from .frame import LONG, argument, callable_from_python, python, released

# A quotient of at most 2^9 steps, by way of the reciprocal, is off by less than a 2^13th of a step: what is farther
# than that from a tie has the code that a division gives.
CLOSE = 2.0**-12
UNSAFE = 2.0**-100  # below it a scale has no float32 for its reciprocal

Read = Callable[[Value], Value]
Write = Callable[[Value, Value], None]


def bits(value: Value, emit: Emitter) -> Value:
    """A float32 as int64."""
    return emit.zext(emit.bitcast(value, I32), I64)


def single(value: Value, emit: Emitter) -> Value:
    """The float32 of its bits as int64."""
    return emit.bitcast(emit.trunc(value, I32), F32)


def called(name: str, write: Callable[..., Value], addresses: int, floats: int, long: Callable[..., Value]) -> "Call":
    """What ``write(emit, *numbers)`` gives for so many addresses and counts, and floats behind them, as a function of
    Python's; ``long(emit, *numbers)`` says of how many values it is."""

    def body(emit: Emitter, self: Value, arguments: Value, count: Value) -> Value:
        numbers = [python(emit, "PyLong_AsVoidPtr", argument(emit, arguments, i)) for i in range(addresses)]
        for index in range(addresses, addresses + floats):
            wide = python(emit, "PyFloat_AsDouble", argument(emit, arguments, index))
            numbers.append(bits(emit.fptrunc(wide, F32), emit))
        run = function(emit.module, f"quantspec_{name}_run", len(numbers), write)
        many = emit.icmp_signed(">=", long(emit, *numbers), I64(LONG))
        return python(emit, "PyLong_FromLong", released(emit, many, lambda: emit.call(run, numbers)))

    return callable_from_python(name, body)


Call = Callable[..., int]


def over(
    emit: Emitter, count: Value, carried: Sequence[Value], body: Callable[[Read, Write, list[Value]], list[Value]]
) -> list[Value]:
    """``body(read, write, carried)`` for sixteen floats at a time; the last vectors of what is carried.

    Of the last of all, which may be fewer than sixteen, nothing else is read or written, and the other lanes of what is
    carried stay as they are.
    """

    def whole(i: Value, values: list[Value]) -> list[Value]:
        at = emit.shl(i, I64(6))
        return body(
            lambda base: emit.read(emit.add(base, at), FLOATS),
            lambda base, value: emit.write(value, emit.add(base, at)),
            values,
        )

    values = emit.loop(emit.ashr(count, I64(4)), carried, whole)
    start = emit.and_(count, I64(-LANES))
    mask, at = emit.mask(emit.sub(count, start)), emit.shl(start, I64(2))

    def rest(i: Value, before: list[Value]) -> list[Value]:
        after = body(
            lambda base: emit.read_some(emit.add(base, at), FLOATS, mask, emit.splat(0.0, FLOATS)),
            lambda base, value: emit.write_some(value, emit.add(base, at), mask),
            before,
        )
        return [emit.select(mask, new, old) for new, old in zip(after, before)]

    return emit.loop(emit.select(emit.icmp_signed("<", start, count), I64(1), I64(0)), values, rest)


def near(emit: Emitter, x: Value, low: Value, high: Value) -> Value:
    """Between both ends; a NaN stays one."""
    x = emit.select(emit.fcmp_ordered("<", x, low), low, x)
    return emit.select(emit.fcmp_ordered(">", x, high), high, x)


class Divided:
    """Codes by a rule of DIA-QUANTIZE for a zero point of 0: ``exact``, ``divide`` or ``reciprocal``, on a scale and
    between ends that are float32."""

    def __init__(self, emit: Emitter, rule: str, scale: Value, low: Value, high: Value):
        self.emit, self.rule = emit, rule
        self.scale = emit.splat(scale)
        self.inverse = emit.splat(emit.fdiv(F32(1), scale))
        self.low, self.high = emit.splat(low), emit.splat(high)
        unsafe = emit.fcmp_ordered("<", scale, F32(UNSAFE))
        self.unsafe = emit.splat_to(unsafe, ir.VectorType(I1, LANES))

    def exactly(self, x: Value) -> Value:
        """By the division itself."""
        emit = self.emit
        if self.rule == "divide":
            return emit.integral(near(emit, emit.fdiv(x, self.scale), self.low, self.high))
        steps = emit.fdiv(emit.fpext(x, DOUBLES), emit.fpext(self.scale, DOUBLES))
        steps = emit.integral(near(emit, steps, emit.fpext(self.low, DOUBLES), emit.fpext(self.high, DOUBLES)))
        return emit.fptrunc(steps, FLOATS)

    def codes(self, x: Value) -> Value:
        emit = self.emit
        steps = emit.fmul(x, self.inverse)
        if self.rule == "reciprocal":
            return emit.integral(near(emit, steps, self.low, self.high))
        one = emit.splat(1.0, FLOATS)
        steps = near(emit, steps, emit.fsub(self.low, one), emit.fadd(self.high, one))
        nearest = emit.integral(steps)
        apart = emit.magnitude(emit.fsub(steps, nearest))
        # Of a NaN this holds, too.
        close = emit.fcmp_unordered(">", apart, emit.splat(0.5 - CLOSE, FLOATS))
        fast, before = near(emit, nearest, self.low, self.high), emit.block
        with emit.if_then(emit.any(emit.or_(close, self.unsafe)), likely=False):
            slow, inside = self.exactly(x), emit.block
        result = emit.phi(FLOATS)
        result.add_incoming(fast, before)
        result.add_incoming(slow, inside)
        return result
