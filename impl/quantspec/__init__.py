"""quantspec: an executable specification of 8-bit post-training quantization, and an implementation of it."""

from quantspec.comparison import Comparison, compare
from quantspec.errors import CalibrationError, FormatError, MissingExtraError, UnsupportedError
from quantspec.ir.program import Program
from quantspec.module.load import load
from quantspec.module.module import QuantizedModule
from quantspec.numerics.observers import (
    HistogramObserver,
    MinMaxObserver,
    MovingAverageObserver,
    MSEObserver,
    PercentileObserver,
)
from quantspec.onnx_export.export import export_onnx
from quantspec.ptq.dynamic import quantize_dynamic
from quantspec.ptq.static import Prepared, prepare, quantize
from quantspec.qat.prepare import QATModule, convert, prepare_qat
from quantspec.version import __version__ as __version__

__all__ = [
    "CalibrationError",
    "Comparison",
    "FormatError",
    "HistogramObserver",
    "MSEObserver",
    "MinMaxObserver",
    "MissingExtraError",
    "MovingAverageObserver",
    "PercentileObserver",
    "Prepared",
    "Program",
    "QATModule",
    "QuantizedModule",
    "UnsupportedError",
    "compare",
    "convert",
    "export_onnx",
    "load",
    "prepare",
    "prepare_qat",
    "quantize",
    "quantize_dynamic",
]
