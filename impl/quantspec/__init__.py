"""quantspec: an executable specification of 8-bit post-training quantization, and an implementation of it."""

from .comparison import Comparison, compare
from .dynamic import quantize_dynamic
from .errors import CalibrationError, FormatError, UnsupportedError
from .module import QuantizedModule
from .observers import HistogramObserver, MinMaxObserver, MovingAverageObserver, MSEObserver, PercentileObserver
from .onnx_export import export_onnx
from .program import Program
from .static import Prepared, convert, prepare, quantize
from .storage import load

__all__ = [
    "CalibrationError",
    "Comparison",
    "FormatError",
    "HistogramObserver",
    "MSEObserver",
    "MinMaxObserver",
    "MovingAverageObserver",
    "PercentileObserver",
    "Prepared",
    "Program",
    "QuantizedModule",
    "UnsupportedError",
    "compare",
    "convert",
    "export_onnx",
    "load",
    "prepare",
    "quantize",
    "quantize_dynamic",
]
