"""One neuron worked out: every number between the input codes of a layer and one of its output codes."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch

from quantspec.backends.pytorch import quantized
from quantspec.ir.program import Linear
from quantspec.module.module import QuantizedModule
from quantspec.numerics.dialects.named import dialect
from quantspec.numerics.integer import quantize_bias


@dataclass(frozen=True, eq=False)
class Neuron:
    """The arithmetic of output ``index`` of a layer, exactly (chapter 3). Codes are integers, ``unit`` and ``multiplier`` fractions."""

    step: Linear
    index: int
    x_codes: np.ndarray
    w_codes: np.ndarray
    products: np.ndarray
    bias_code: int
    unit: Fraction
    multiplier: Fraction
    code: int
    float_value: float

    layer = property(lambda self: self.step.layer)
    x_scale = property(lambda self: float(self.step.x_qparams.scale))
    x_zero = property(lambda self: int(self.step.x_qparams.zero_point))
    w_scale = property(lambda self: float(channel(self.step.w_qparams.scale, self.index)))
    y_scale = property(lambda self: float(self.step.y_qparams.scale))
    y_zero = property(lambda self: int(self.step.y_qparams.zero_point))
    y_qmin = property(lambda self: self.step.y_qparams.qmin)
    y_qmax = property(lambda self: self.step.y_qparams.qmax)
    bias = property(lambda self: float(self.step.bias[self.index]))
    total = property(lambda self: int(self.products.sum()))
    accumulator = property(lambda self: self.total + self.bias_code)
    steps = property(lambda self: round(self.multiplier * self.accumulator))
    real = property(lambda self: float(self.step.y_qparams.dequantize(np.uint8(self.code))))

    @property
    def shift(self) -> int:
        """n in M = 2^-n * M0 with M0 from 1/2 to 1 (Jacob et al. 2018, equation 6)."""
        shift = 0
        while self.multiplier * 2**shift < Fraction(1, 2):
            shift += 1
        return shift

    def beside_torch(self) -> list[tuple[str, str, int, int]]:
        """(engine, dialect, our code, torch's code) for every engine that this build of torch has."""
        step, rows = self.step, []
        for engine in quantized.ENGINES:
            if quantized.why_not_offered(engine):
                continue
            layer = step.x_qparams, step.weight, step.w_qparams, step.bias, step.y_qparams
            theirs = quantized.linear(self.x_codes[None], *layer, relu=step.relu, engine=engine)[0, self.index]
            for name in quantized.dialects_here(engine):
                rules = dialect(name)
                ours = rules.linear(self.x_codes[None], *layer, relu=step.relu)
                if ours[0, self.index] == theirs or name == quantized.dialects_here(engine)[-1]:
                    rows.append((engine, name, int(ours[0, self.index]), int(theirs)))
                    break
        return rows


def channel(values: np.ndarray, index: int):
    """The value of one channel, or the one that all share."""
    return values if values.ndim == 0 else values[index]


def work_out(q: QuantizedModule, model: torch.nn.Module, x: torch.Tensor) -> Neuron:
    """The neuron with the largest output of a static network's last layer, for one input ``x`` [1, ...]; ``model`` is the float network."""
    values: dict[str, np.ndarray] = {}
    q.run_on("reference").compiled({q.program.inputs[0]: x}, lambda step, value: values.setdefault(step.name, value))
    step = [s for s in q.program.layers if isinstance(s, Linear)][-1]
    x_codes, index = values[step.x].reshape(-1), int(values[step.name].argmax())
    with torch.no_grad():
        float_value = float(model(x).reshape(-1)[index])
    w_codes = step.weight[index]
    products = (x_codes.astype(np.int64) - int(step.x_qparams.zero_point)) * w_codes
    unit = Fraction(float(step.x_qparams.scale)) * Fraction(float(channel(step.w_qparams.scale, index)))
    bias_code = int(quantize_bias(step.bias, step.x_qparams.scale, step.w_qparams.scale)[index])
    multiplier = unit / Fraction(float(step.y_qparams.scale))
    code = int(dialect("exact").linear(x_codes[None], step.x_qparams, step.weight, step.w_qparams, step.bias, step.y_qparams)[0, index])
    return Neuron(step, index, x_codes, w_codes, products, bias_code, unit, multiplier, code, float_value)
