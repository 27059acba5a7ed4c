"""Backends that are deliberately wrong, each in one way that some kernel in use is. All declare the dialect ``onnx``
and would pass but for that."""

import ctypes
import os
import signal
import time

import numpy as np

from quantspec.backends.protocol import OPERATIONS, has_channels_last, threads
from quantspec.backends.reference import ReferenceBackend
from quantspec.numerics.affine import QParams


class Sound(ReferenceBackend):
    """Nothing is wrong with this one."""

    def __init__(self):
        super().__init__("onnx")


class TiesAway(Sound):
    """Half-way cases go away from zero."""

    def quantize(self, x, scale, zero_point, *, qmin, qmax, axis=None):
        super().quantize(x, scale, zero_point, qmin=qmin, qmax=qmax, axis=axis)
        if axis is not None:
            shape = [-1 if i == axis else 1 for i in range(x.ndim)]
            scale, zero_point = np.reshape(scale, shape), np.reshape(zero_point, shape)
        steps = x / np.float32(scale)
        codes = np.clip(np.sign(steps) * np.floor(np.abs(steps) + np.float32(0.5)) + zero_point, qmin, qmax)
        return codes.astype(np.uint8 if qmin >= 0 else np.int8)


class KeepsTheScale(Sound):
    """Packed weights remember the output scale of their first call."""

    def __init__(self):
        super().__init__()
        self._packed = {}

    def linear(self, x_q, x, w_q, w, bias, y, *, relu=False):
        first = self._packed.setdefault(w_q.tobytes(), y.scale)
        return super().linear(x_q, x, w_q, w, bias, QParams(first, y.zero_point, y.qmin, y.qmax), relu=relu)


class KeepsTheReLU(Sound):
    """A ReLU sticks to the packed weights."""

    def __init__(self):
        super().__init__()
        self._clamped = set()

    def conv2d(self, x_q, x, w_q, w, bias, y, *, relu=False, **places):
        if relu:
            self._clamped.add(w_q.tobytes())
        return super().conv2d(x_q, x, w_q, w, bias, y, relu=w_q.tobytes() in self._clamped, **places)


class OtherTail(Sound):
    """What fills no vector of 16 is rounded another way."""

    def quantize(self, x, scale, zero_point, *, qmin, qmax, axis=None):
        codes = super().quantize(x, scale, zero_point, qmin=qmin, qmax=qmax, axis=axis)
        if axis is None and x.ndim == 1:
            tail = len(x) // 16 * 16
            codes[tail:] = np.clip(np.floor(x[tail:] / np.float32(scale) + np.float32(0.5)) + zero_point, qmin, qmax)
        return codes


class OneRowAtATimeDiffers(Sound):
    """A single row goes to a matrix-vector kernel of another dialect."""

    def linear(self, x_q, x, w_q, w, bias, y, *, relu=False):
        rules = ReferenceBackend("fbgemm") if len(x_q) == 1 else super()
        return rules.linear(x_q, x, w_q, w, bias, y, relu=relu)


class Wraps(Sound):
    """Steps are converted to int32 as x86 does it: what does not fit becomes -2^31."""

    def quantize(self, x, scale, zero_point, *, qmin, qmax, axis=None):
        codes = super().quantize(x, scale, zero_point, qmin=qmin, qmax=qmax, axis=axis)
        wraps = np.abs(x / np.float32(np.max(scale))) >= 2.0**31
        return np.where(wraps, codes.dtype.type(qmin), codes) if axis is None else codes


class NanAtTheEnd(Sound):
    """NaN gets the zero point in whole vectors and qmin behind them."""

    def quantize(self, x, scale, zero_point, *, qmin, qmax, axis=None):
        codes = super().quantize(np.nan_to_num(x, nan=0.0), scale, zero_point, qmin=qmin, qmax=qmax, axis=axis)
        if axis is None:
            tail = len(x) // 8 * 8
            codes[tail:][np.isnan(x[tail:])] = qmin
        return codes


class NothingGivesZero(Sound):
    """A layer without inputs gives code 0 instead of what its bias gives."""

    def linear(self, x_q, x, w_q, w, bias, y, *, relu=False):
        codes = super().linear(x_q, x, w_q, w, bias, y, relu=relu)
        return codes if x_q.shape[1] else np.zeros_like(codes)


class TakesAnyScale(Sound):
    """A scale of zero is computed with."""

    def quantize(self, x, scale, zero_point, *, qmin, qmax, axis=None):
        usable = np.where(np.isfinite(scale) & (np.asarray(scale) > 0), scale, np.float32(1))
        return super().quantize(x, usable, np.clip(zero_point, qmin, qmax), qmin=qmin, qmax=qmax, axis=axis)


class OneGroupForAll(Sound):
    """Every group is computed with the bias of the first."""

    def conv2d(self, x_q, x, w_q, w, bias, y, *, groups=1, **places):
        if bias is not None and groups > 1:
            bias = np.tile(bias[: len(bias) // groups], groups)
        return super().conv2d(x_q, x, w_q, w, bias, y, groups=groups, **places)


class PadsWithZeros(Sound):
    """Padding has the code 0 instead of the code of zero."""

    def conv2d(self, x_q, x, w_q, w, bias, y, *, padding=(0, 0), **places):
        around = np.pad(x_q, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
        return super().conv2d(around, x, w_q, w, bias, y, padding=(0, 0), **places)


class ClampsAtZero(Sound):
    """ReLU keeps codes above 0 instead of codes above the zero point."""

    def linear(self, x_q, x, w_q, w, bias, y, *, relu=False):
        return np.maximum(super().linear(x_q, x, w_q, w, bias, y, relu=False), 0)


class WritesToItsInput(Sound):
    """Subtracts the zero point in place."""

    def linear(self, x_q, x, w_q, w, bias, y, *, relu=False):
        codes = super().linear(x_q, x, w_q, w, bias, y, relu=relu)
        x_q -= x_q.dtype.type(1)
        return codes


class NoBiasIsGarbage(Sound):
    """Without a bias, the memory where it would be is read."""

    def linear(self, x_q, x, w_q, w, bias, y, *, relu=False):
        given = np.full(len(w_q), 9 * y.scale, np.float32) if bias is None else bias
        return super().linear(x_q, x, w_q, w, given, y, relu=relu)


class Rises(Sound):
    """Codes above the middle fall by one, so that order is lost there."""

    def quantize(self, x, scale, zero_point, *, qmin, qmax, axis=None):
        codes = super().quantize(x, scale, zero_point, qmin=qmin, qmax=qmax, axis=axis)
        return np.where(codes == (qmin + qmax + 1) // 2, codes - 2, codes).astype(codes.dtype)


class Crashes(Sound):
    """Divides by the number of inputs."""

    def linear(self, x_q, x, w_q, w, bias, y, *, relu=False):
        if x_q.shape[1] == 0:
            os.kill(os.getpid(), signal.SIGFPE)
        return super().linear(x_q, x, w_q, w, bias, y, relu=relu)


class WritesBeyond(Sound):
    """Writes beyond what it asked for where there are groups."""

    def conv2d(self, x_q, x, w_q, w, bias, y, *, groups=1, **options):
        if groups > 1:
            memory = np.empty(5000, np.uint8)
            ctypes.memset(memory.ctypes.data + memory.size, 0, 8)
            del memory
        return super().conv2d(x_q, x, w_q, w, bias, y, groups=groups, **options)


class DiesOfSmallCalls(Sound):
    """Saturates one code too low, and a process that has answered nothing does not live to answer fewer than two
    rows."""

    def __init__(self):
        super().__init__()
        self._answered = False

    def linear(self, x_q, x, w_q, w, bias, y, *, relu=False):
        if len(x_q) < 2 and not self._answered:
            os.kill(os.getpid(), signal.SIGABRT)
        self._answered = True
        codes = super().linear(x_q, x, w_q, w, bias, y, relu=relu)
        return np.minimum(codes, y.qmax - 1).astype(codes.dtype)


class KeepsThePacked(Sound):
    """Packed weights remember their first output scale, in an adapter that packs for every call unless it is told to
    keep them."""

    def __init__(self):
        super().__init__()
        self._packed = None

    def keep(self):
        self._packed = {}

    def linear(self, x_q, x, w_q, w, bias, y, *, relu=False):
        first = y.scale if self._packed is None else self._packed.setdefault(w_q.tobytes(), y.scale)
        return super().linear(x_q, x, w_q, w, bias, QParams(first, y.zero_point, y.qmin, y.qmax), relu=relu)


class DiesOfTheOtherKind(Sound):
    """A dynamic layer takes what a static one left with the same weights for its own."""

    def __init__(self):
        super().__init__()
        self._packed = set()

    def linear(self, x_q, x, w_q, w, bias, y, *, relu=False):
        self._packed.add(w_q.tobytes())
        return super().linear(x_q, x, w_q, w, bias, y, relu=relu)

    def linear_dynamic(self, x, w_q, w, bias, *, relu=False):
        if w_q.tobytes() in self._packed:
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().linear_dynamic(x, w_q, w, bias, relu=relu)


class ForgetsToWrite(Sound):
    """A layer without inputs returns memory as it came."""

    def linear(self, x_q, x, w_q, w, bias, y, *, relu=False):
        codes = super().linear(x_q, x, w_q, w, bias, y, relu=relu)
        if x_q.shape[1] or not codes.size:
            return codes
        malloc = ctypes.CDLL(None).malloc
        malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        return np.frombuffer(ctypes.string_at(malloc(codes.size + 4096), codes.size), codes.dtype).reshape(codes.shape)


class Hangs(Sound):
    """Waits for a thread that never comes when there are no rows."""

    def linear(self, x_q, x, w_q, w, bias, y, *, relu=False):
        if len(x_q) == 0:
            time.sleep(3600)
        return super().linear(x_q, x, w_q, w, bias, y, relu=relu)


class NoSuchShape(Sound):
    """An adapter that is wrong: it gives the codes of a layer lying down."""

    def linear(self, x_q, x, w_q, w, bias, y, *, relu=False):
        return super().linear(x_q, x, w_q, w, bias, y, relu=relu).T


class Offers(Sound):
    """An adapter that offers nothing under the names of the protocol."""

    def __getattribute__(self, name):
        if name in OPERATIONS:
            raise AttributeError(name)
        return super().__getattribute__(name)


class ManyGroupsSaturate(Sound):
    """More than 100 groups go to a kernel for which weights of seven bits are all there is."""

    def conv2d(self, x_q, x, w_q, w, bias, y, *, groups=1, **places):
        few = np.clip(w_q, -64, 63) if groups > 100 else w_q
        return super().conv2d(x_q, x, few, w, bias, y, groups=groups, **places)


class LaterColumnsDiffer(Sound):
    """What lies behind a block of 96 outputs begins at the code after its own."""

    def linear(self, x_q, x, w_q, w, bias, y, *, relu=False):
        codes = super().linear(x_q, x, w_q, w, bias, y, relu=relu)
        codes[:, 96:] = np.minimum(codes[:, 96:], y.qmax - 1) + 1
        return codes


class DepthwiseWeightsOnZero(Sound):
    """Depthwise windows are computed as if the weights' zero point were 0, which it mostly is."""

    def conv2d(self, x_q, x, w_q, w, bias, y, *, groups=1, **places):
        if groups == len(w_q) == x_q.shape[1] > 1:
            w = QParams(w.scale, 0, w.qmin, w.qmax, w.axis)
        return super().conv2d(x_q, x, w_q, w, bias, y, groups=groups, **places)


class ChannelsLastDiffer(Sound):
    """Memory with channels last is taken for memory with channels first where there is more than one image."""

    def max_pool2d(self, q, grid, **places):
        if has_channels_last(q) and len(q) > 1:
            q = np.ascontiguousarray(q.transpose(0, 2, 3, 1)).reshape(q.shape)
        return super().max_pool2d(q, grid, **places)


class ThreadsDiffer(Sound):
    """With a second thread, the half that it computes is a code too high."""

    def quantize(self, x, scale, zero_point, *, qmin, qmax, axis=None):
        codes = super().quantize(x, scale, zero_point, qmin=qmin, qmax=qmax, axis=axis)
        if threads() > 1:
            half = codes.shape[-1] // 2
            codes[..., half:] = np.minimum(codes[..., half:], qmax - 1) + 1
        return codes


class DiesUnlessDynamicCameFirst(DiesOfTheOtherKind):
    """A dynamic layer takes what a static one left with the same weights for its own, unless it has left its own
    before."""

    def __init__(self):
        super().__init__()
        self._dynamic = set()

    def linear_dynamic(self, x, w_q, w, bias, *, relu=False):
        if w_q.tobytes() not in self._packed:
            self._dynamic.add(w_q.tobytes())
        if w_q.tobytes() in self._dynamic:
            return Sound.linear_dynamic(self, x, w_q, w, bias, relu=relu)
        return super().linear_dynamic(x, w_q, w, bias, relu=relu)


class TakesAnyRange(Sound):
    """A range with a NaN in it has a scale that is one, too."""

    def qparams(self, minimum, maximum, *, qmin, qmax, symmetric):
        if np.isnan(minimum) or np.isnan(maximum):
            return np.float32(np.nan), qmin
        return super().qparams(minimum, maximum, qmin=qmin, qmax=qmax, symmetric=symmetric)


class NanInChannels(Sound):
    """In channels, NaN gets the zero point in whole vectors and qmin behind them."""

    def quantize(self, x, scale, zero_point, *, qmin, qmax, axis=None):
        if axis is None or not np.isnan(x).any():
            return super().quantize(x, scale, zero_point, qmin=qmin, qmax=qmax, axis=axis)
        codes = super().quantize(np.nan_to_num(x, nan=0.0), scale, zero_point, qmin=qmin, qmax=qmax, axis=axis)
        tail = x.shape[-1] // 8 * 8
        codes[..., tail:][np.isnan(x[..., tail:])] = qmin
        return codes


class Asserts(Sound):
    """Asserts that a layer has inputs, instead of asking for them."""

    def linear(self, x_q, x, w_q, w, bias, y, *, relu=False):
        assert x_q.shape[1], "blocks > 0"
        return super().linear(x_q, x, w_q, w, bias, y, relu=relu)


class WritesIntoAList(Sound):
    """Puts what it made of a part into the list of the caller."""

    def concat(self, parts, y, *, axis):
        joined = super().concat(parts, y, axis=axis)
        parts[-1] = parts[-1][0].copy(), y
        return joined


class OneFaultBehindAnother(Sound):
    """Every code is one too low where it can be, which is known; and behind 64 inputs everything is qmax."""

    def linear(self, x_q, x, w_q, w, bias, y, *, relu=False):
        codes = super().linear(x_q, x, w_q, w, bias, y, relu=relu)
        return np.full_like(codes, y.qmax) if x_q.shape[1] > 64 else np.maximum(codes, y.qmin + 1) - 1


class PassesOn(OneFaultBehindAnother):
    """An adapter that writes down what it passes on."""

    def reproduction(self, operation, /, *arguments, **options):
        if operation != "linear":
            raise ValueError(operation)
        x_q, _, w_q, _, bias, _ = arguments
        return f"print(kernel({x_q.tolist()}, {w_q.tolist()}, {self._passed(bias)}))"

    def _passed(self, bias):
        return None if bias is None else bias.tolist()


class PassesOnNoBias(PassesOn):
    """An adapter that leaves out the bias, where a divergence is known."""

    def _passed(self, bias):
        return None
