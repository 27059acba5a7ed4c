"""Backends that go wrong on purpose, each in one way, to be run in workers."""

import ctypes
import os
import signal
import sys
import time

import numpy as np

from quantspec.backends.protocol import NotOffered


class Broken:
    """A backend whose ``dequantize`` works and whose ``quantize`` goes wrong as its subclass says."""

    name, version, dialect = "broken", "1", {"quantize": frozenset({"onnx", "exact"}), "dequantize": "exact"}

    def dequantize(self, q, scale, zero_point, *, axis=None):
        return (q.astype(np.float32) - zero_point) * np.float32(scale)

    def quantize(self, x, scale, zero_point, *, qmin, qmax, axis=None):
        return self.go_wrong()


class Divides(Broken):
    def go_wrong(self):
        os.kill(os.getpid(), signal.SIGFPE)


class Segfaults(Broken):
    def go_wrong(self):
        ctypes.string_at(0)


class Leaves(Broken):
    def go_wrong(self):
        print("I am leaving.", file=sys.stderr, flush=True)
        os._exit(3)


class Hangs(Broken):
    def go_wrong(self):
        time.sleep(3600)


class WritesOverThePipe(Broken):
    """Damaged memory, seen from outside: bytes that are no answer."""

    def go_wrong(self):
        for descriptor in range(3, 20):
            try:
                os.write(descriptor, b"\xff" * 64)
            except OSError:
                pass


class ClosesThePipe(Broken):
    def go_wrong(self):
        os.closerange(3, 20)
        time.sleep(3600)


class Prints(Broken):
    def go_wrong(self):
        print("a kernel's progress bar")
        os.system("echo and a child that prints")  # noqa: S605
        return np.zeros(1, np.uint8)


class Refuses(Broken):
    def go_wrong(self):
        raise ValueError("scale: expected a positive number")


class Lacks(Broken):
    def go_wrong(self):
        raise NotOffered("one scale a channel")


class Raises(Broken):
    def go_wrong(self):
        raise ZeroDivisionError("by nothing")


class ReturnsAnObject(Broken):
    def go_wrong(self):
        return object()


class CannotBeMade(Broken):
    def __init__(self):
        raise NotOffered("this build lacks it")


class DiesWhenMade(Broken):
    def __init__(self):
        os.kill(os.getpid(), signal.SIGILL)


class Echoes(Broken):
    """Says what it was given, to show what crosses the pipe."""

    def quantize(self, x, scale, zero_point, *, qmin, qmax, axis=None):
        return x

    def linear(self, *arguments, **options):
        return [list(arguments), options, os.environ["OMP_NUM_THREADS"], os.environ.get("QUANTSPEC_TEST", "")]
