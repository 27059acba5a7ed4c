"""Backends whose calls end, take or raise what few calls do, to be run in workers."""

import os
import sys
import time

import numpy as np

from quantspec.backends.protocol import NotOffered


class Dequantizes:
    """Gives codes back as reals; what else it does, it does at its second call."""

    name, version, dialect = "dequantizes", "1", "exact"
    calls = 0

    def dequantize(self, q, scale, zero_point, *, axis=None):
        self.calls += 1
        if self.calls == 2:
            self.second(q)
        return q.astype(np.float32)


class Returns(Dequantizes):
    """Ends its process as a program ends that has done its work."""

    def second(self, q):
        sys.exit(0)


class Leaves(Dequantizes):
    def second(self, q):
        os._exit(0)


class LeavesAChild(Dequantizes):
    """Ends its process, and leaves another one that lives on for a while."""

    def second(self, q):
        if not os.fork():
            time.sleep(3)
        os._exit(4)


class NamelessSignal(Dequantizes):
    def second(self, q):
        os.kill(os.getpid(), 40)


class TakesItsTime(Dequantizes):
    def dequantize(self, q, scale, zero_point, *, axis=None):
        time.sleep(0.5)
        return q.astype(np.float32)


class BadScale(ValueError):
    """What a library refuses with."""


class NoKernel(NotOffered):
    """What an adapter says of more than one kernel."""


class Died(Exception):
    """Of the same name as an exception of ours."""


class Raises(Dequantizes):
    """Raises by the zero point that it is given."""

    def dequantize(self, q, scale, zero_point, *, axis=None):
        if zero_point < 3:
            raise [BadScale("one"), NoKernel("two"), Died("three")][zero_point]
        return {} if zero_point == 3 else object()

    def quantize(self, x, scale, zero_point, *, qmin, qmax, axis=None):
        if zero_point == 2:
            os._exit(0)
        if zero_point:
            x.shape = (1, *x.shape)  # which a caller sees as well as other values
            return x
        x += 1
        raise ValueError("x: no such values")


class NoVersion:
    """An adapter that lacks what it has to say of itself."""

    name, dialect = "no-version", "exact"
