"""One neuron worked out: every number between the input codes of a layer and one of its output codes."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch

from quantspec.backends.pytorch import quantized
from quantspec.engines.reference import Reference
from quantspec.ir.program import Linear
from quantspec.module.module import QuantizedModule
from quantspec.numerics.affine import QParams
from quantspec.numerics.dialects.named import dialect
from quantspec.numerics.integer import quantize_bias


@dataclass(frozen=True, eq=False)
class Neuron:
    """The arithmetic of output ``index`` of a layer, exactly (chapter 3). Codes are integers, ``unit`` and
    ``multiplier`` fractions."""

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

    @property
    def layer(self) -> str:
        """The path of the layer."""
        return self.step.layer

    @property
    def x(self) -> QParams:
        """The grid of its inputs."""
        return self.step.x_qparams

    @property
    def y(self) -> QParams:
        """The grid of its output."""
        return output_grid(self.step)

    @property
    def w_scale(self) -> float:
        """The scale of its weights."""
        return float(channel(self.step.w_qparams.scale, self.index))

    @property
    def bias(self) -> float:
        """Its bias, 0 where it has none."""
        return 0.0 if self.step.bias is None else float(self.step.bias[self.index])

    @property
    def total(self) -> int:
        """The sum of the products."""
        return int(self.products.sum())

    @property
    def accumulator(self) -> int:
        """The sum with the bias."""
        return self.total + self.bias_code

    @property
    def steps(self) -> int:
        """The accumulator in steps of the output."""
        return round(self.multiplier * self.accumulator)

    @property
    def real(self) -> float:
        """The real value of the code."""
        return float(self.y.dequantize(np.asarray(self.code, np.uint8)))

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
        layer = step.x_qparams, step.weight, step.w_qparams, step.bias, self.y
        for engine in quantized.ENGINES:
            if quantized.why_not_offered(engine):
                continue
            theirs = quantized.linear(self.x_codes[None], *layer, relu=step.relu, engine=engine)[0, self.index]
            names = quantized.dialects_here(engine)
            ours = [dialect(name).linear(self.x_codes[None], *layer, relu=step.relu)[0, self.index] for name in names]
            name, code = next((told for told in zip(names, ours) if told[1] == theirs), (names[-1], ours[-1]))
            rows.append((engine, name, int(code), int(theirs)))
        return rows


def output_grid(step: Linear) -> QParams:
    """The grid of a layer's output; ValueError for one that gives floats."""
    if step.y_qparams is None:
        raise ValueError(f"step: expected a layer with codes as output, {step.layer} gives floats")
    return step.y_qparams


def channel(values: np.ndarray, index: int) -> np.ndarray:
    """The value of one channel, or the one that all share."""
    return values if values.ndim == 0 else np.asarray(values[index])


def work_out(q: QuantizedModule, model: torch.nn.Module, x: torch.Tensor) -> Neuron:
    """The neuron with the largest output of a static network's last layer, for one input ``x`` [1, ...]; ``model`` is
    the float network."""
    values: dict[str, np.ndarray] = {}
    Reference(q.program)({q.program.inputs[0]: x}, lambda step, value: values.update({step.name: value}))
    step = [layer for layer in q.program.layers if isinstance(layer, Linear)][-1]
    y = output_grid(step)
    x_codes, index = values[step.x].reshape(-1), int(values[step.name].argmax())
    with torch.no_grad():
        float_value = float(model(x).reshape(-1)[index])
    w_codes = step.weight[index]
    products = (x_codes.astype(np.int64) - int(step.x_qparams.zero_point)) * w_codes
    unit = Fraction(float(step.x_qparams.scale)) * Fraction(float(channel(step.w_qparams.scale, index)))
    bias = np.zeros(len(step.weight), np.float32) if step.bias is None else step.bias
    bias_code = int(quantize_bias(bias, step.x_qparams.scale, step.w_qparams.scale)[index])
    multiplier = unit / Fraction(float(y.scale))
    codes = dialect("exact").linear(x_codes[None], step.x_qparams, step.weight, step.w_qparams, step.bias, y)
    code = int(codes[0, index])
    return Neuron(step, index, x_codes, w_codes, products, bias_code, unit, multiplier, code, float_value)
