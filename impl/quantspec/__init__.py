"""quantspec: an executable specification of 8-bit post-training quantization, and an implementation of it.

A public name is imported when it is first used, so that a process which needs none of PyTorch, such as one that serves
a backend written in C or NumPy, does not load it.
"""

import importlib
from typing import TYPE_CHECKING, Any

from quantspec.version import __version__ as __version__

if TYPE_CHECKING:
    from quantspec.comparison.compare import compare as compare
    from quantspec.comparison.result import Comparison as Comparison
    from quantspec.errors import CalibrationError as CalibrationError
    from quantspec.errors import FormatError as FormatError
    from quantspec.errors import MissingExtraError as MissingExtraError
    from quantspec.errors import UnsupportedError as UnsupportedError
    from quantspec.ir.program import Program as Program
    from quantspec.module.load import load as load
    from quantspec.module.module import QuantizedModule as QuantizedModule
    from quantspec.numerics.observers import HistogramObserver as HistogramObserver
    from quantspec.numerics.observers import MinMaxObserver as MinMaxObserver
    from quantspec.numerics.observers import MovingAverageObserver as MovingAverageObserver
    from quantspec.numerics.observers import MSEObserver as MSEObserver
    from quantspec.numerics.observers import PercentileObserver as PercentileObserver
    from quantspec.onnx_export.export import export_onnx as export_onnx
    from quantspec.ptq.dynamic import quantize_dynamic as quantize_dynamic
    from quantspec.ptq.static import Prepared as Prepared
    from quantspec.ptq.static import prepare as prepare
    from quantspec.ptq.static import quantize as quantize
    from quantspec.qat.prepare import QATModule as QATModule
    from quantspec.qat.prepare import convert as convert
    from quantspec.qat.prepare import prepare_qat as prepare_qat
    from quantspec.tutorial import zoo as zoo

MODULES = {
    "CalibrationError": "errors",
    "Comparison": "comparison.result",
    "FormatError": "errors",
    "HistogramObserver": "numerics.observers",
    "MSEObserver": "numerics.observers",
    "MinMaxObserver": "numerics.observers",
    "MissingExtraError": "errors",
    "MovingAverageObserver": "numerics.observers",
    "PercentileObserver": "numerics.observers",
    "Prepared": "ptq.static",
    "Program": "ir.program",
    "QATModule": "qat.prepare",
    "QuantizedModule": "module.module",
    "UnsupportedError": "errors",
    "compare": "comparison.compare",
    "convert": "qat.prepare",
    "export_onnx": "onnx_export.export",
    "load": "module.load",
    "prepare": "ptq.static",
    "prepare_qat": "qat.prepare",
    "quantize": "ptq.static",
    "quantize_dynamic": "ptq.dynamic",
}
__all__ = [*MODULES, "zoo"]


def __getattr__(name: str) -> Any:
    """A public name, which is an attribute of the package from then on (PEP 562)."""
    value: Any
    if name == "zoo":
        value = importlib.import_module("quantspec.tutorial.zoo")
    elif name in MODULES:
        value = getattr(importlib.import_module(f"quantspec.{MODULES[name]}"), name)
    else:
        raise AttributeError(f"module 'quantspec' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
