"""A call that a backend is asked to answer, as plain data, and as text."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from quantspec.numerics.affine import QParams


@dataclass(frozen=True, eq=False)
class Call:
    """One call: ``getattr(backend, operation)(*arguments, **options)``, whose types ``backends.protocol`` gives."""

    operation: str
    arguments: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)

    def with_arguments(self, *arguments: Any, **options: Any) -> "Call":
        """The same operation with other arguments; options that are given replace those of the same name."""
        return replace(self, arguments=arguments, options={**self.options, **options})


def of_outputs(w: QParams, part: slice) -> QParams:
    """The grid of some outputs' weights."""
    if w.axis is None:
        return w
    points = w.zero_point if w.zero_point.ndim == 0 else w.zero_point[part]
    return QParams(w.scale[part], points, w.qmin, w.qmax, axis=0)


def call_text(call: Call | None) -> str:
    """A call in one line, floats in hexadecimal."""
    if call is None:
        return ""
    words = [*map(value_text, call.arguments), *(f"{key}={value_text(value)}" for key, value in call.options.items())]
    return f"{call.operation}({', '.join(words)})"


def value_text(value: Any) -> str:
    """An argument in one line, of an array at most its first 64 elements."""
    if isinstance(value, QParams):
        return f"({value_text(value.scale)}, {value_text(value.zero_point)}, {value.qmin}..{value.qmax})"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(value_text, value))}]"
    if isinstance(value, (np.ndarray, np.generic)):
        if np.ndim(value):
            shape = "x".join(map(str, np.shape(value)))
            flat = [value_text(v) for v in np.ravel(value)[:64]]
            return f"{value.dtype}[{shape}]{{{', '.join(flat)}{', ...' if np.size(value) > 64 else ''}}}"
        return float(value).hex() if value.dtype.kind == "f" else str(int(value))
    if isinstance(value, float):
        return value.hex()
    return str(value)


def number(value: Any) -> str:
    """A number without loss: integers as they are, floats in hexadecimal too."""
    return str(int(value)) if np.asarray(value).dtype.kind in "iu" else f"{float(value):.9g} ({float(value).hex()})"
