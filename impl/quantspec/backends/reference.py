"""Our own arithmetic behind the backend protocol, in any dialect: what the other backends are compared with."""

from importlib import metadata

import numpy as np

from quantspec.numerics import affine, integer
from quantspec.numerics.affine import QParams
from quantspec.numerics.dialects import operations
from quantspec.numerics.dialects.named import dialect


class Ours:
    """quantspec in one dialect of chapter 10."""

    def __init__(self, name: str):
        self._rules = dialect(name)
        self.name, self.version, self.dialect = f"quantspec-{name}", metadata.version("quantspec"), name

    def quantize(self, x, scale, zero_point, *, qmin, qmax, axis=None):
        return self._rules.quantize(x, scale, zero_point, qmin=qmin, qmax=qmax, axis=axis)

    def dequantize(self, q, scale, zero_point, *, axis=None):
        return np.asarray(affine.dequantize(q, scale, zero_point, axis=axis))

    def qparams(self, minimum, maximum, *, qmin, qmax, symmetric):
        grid = self._rules.qparams(minimum, maximum, qmin=qmin, qmax=qmax, symmetric=symmetric)
        return np.float32(grid.scale), int(grid.zero_point)

    def linear(self, x_q, x: QParams, w_q, w: QParams, bias, y: QParams, *, relu=False):
        return self._rules.linear(x_q, x, w_q, w, bias, y, relu=relu)

    def linear_dynamic(self, x, w_q, w: QParams, bias, *, relu=False):
        y = self._rules.linear_dynamic(x, w_q, w, bias)
        return np.maximum(y, np.float32(0)) if relu else y

    def conv2d(self, x_q, x: QParams, w_q, w: QParams, bias, y: QParams, *, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, relu=False):
        return self._rules.conv2d(x_q, x, w_q, w, bias, y, stride=stride, padding=padding, dilation=dilation, groups=groups, relu=relu)

    def add(self, a_q, a: QParams, b_q, b: QParams, y: QParams, *, relu=False):
        return operations.add(self._rules, a_q, a, b_q, b, y, relu=relu)

    def mul(self, a_q, a: QParams, b_q, b: QParams, y: QParams):
        return operations.mul(self._rules, a_q, a, b_q, b, y)

    def concat(self, parts, y: QParams, *, axis):
        return operations.concat(self._rules, parts, y, axis=axis)

    def max_pool2d(self, q, grid: QParams, *, kernel, stride=None, padding=(0, 0), dilation=(1, 1)):
        return integer.max_pool2d(q, kernel=kernel, stride=stride, padding=padding, dilation=dilation)

    def avg_pool2d(self, q, grid: QParams, *, kernel, stride=None, padding=(0, 0), count_include_pad=True):
        return operations.avg_pool2d(self._rules, q, grid, kernel=kernel, stride=stride, padding=padding, count_include_pad=count_include_pad)

    def adaptive_avg_pool2d(self, q, grid: QParams, *, size):
        return operations.adaptive_avg_pool2d(self._rules, q, grid, size=size)

    def fold_batch_norm(self, weight, bias, gamma, beta, mean, var, eps):
        return operations.fold_batch_norm(self._rules, weight, bias, gamma, beta, mean, var, eps)
