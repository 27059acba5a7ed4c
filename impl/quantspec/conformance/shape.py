"""The shape of a difference: in what way an answer is wrong, and for which kind of call. Two counterexamples of one
shape are taken for one divergence."""

from typing import Any

import numpy as np

from quantspec.numerics.affine import QParams

from .call import Call

CODES, REALS = "iu", "f"
DIGITS = 2.0**-20  # of a float32, below which only its last digits differ


def difference(got: np.ndarray, allowed: list[np.ndarray]) -> str:
    """In what way the elements of an array are wrong of which none is allowed."""
    if got.dtype.kind not in CODES:
        return real_difference(got, allowed)
    wide = got.astype(np.int64)
    distance = np.min([np.abs(wide - option.astype(np.int64)) for option in allowed], axis=0)
    if distance.max() <= 1:
        return "neighbouring codes"
    return "the other end" if distance.max() >= 255 else "other codes"


def real_difference(got: np.ndarray, allowed: list[np.ndarray]) -> str:
    """The same for real values."""
    if any(np.isnan(option).any() for option in allowed) or np.isnan(got).any():
        return "NaN"
    with np.errstate(invalid="ignore", over="ignore"):
        distances = [np.abs(got.astype(np.float64) - option) / np.maximum(np.abs(option), 1e-30) for option in allowed]
    return "last digits" if np.min(distances, axis=0).max() <= DIGITS else "other values"


def kind_of_call(call: Call) -> str:
    """What kernels choose their steps by: windows by their groups, weights by their zero points, arrays by their
    axes."""
    words = []
    if call.operation == "conv2d":
        words.append(kind_of_window(call))
    if call.operation in ("quantize", "dequantize"):
        words.append("per channel" if call.options.get("axis") is not None else "per tensor")
    if any(np.any(w.zero_point) for w in weight_grids(call)):
        words.append("weights off zero")
    if any(array.size == 0 for array in arrays(call.arguments)):
        words.append("empty")
    return ", ".join(words)


def kind_of_window(call: Call) -> str:
    """dense, grouped or depthwise."""
    groups, outputs = call.options.get("groups", 1), len(call.arguments[2])
    if groups == 1:
        return "dense"
    return "depthwise" if call.arguments[0].shape[1] == outputs == groups else "grouped"


def weight_grids(call: Call) -> list[QParams]:
    """The grids of a call's weights."""
    places = {"linear": 3, "conv2d": 3, "linear_dynamic": 2}
    return [call.arguments[places[call.operation]]] if call.operation in places else []


def arrays(value: Any) -> list[np.ndarray]:
    """All arrays inside of arguments."""
    if isinstance(value, np.ndarray):
        return [value]
    return [array for item in value for array in arrays(item)] if isinstance(value, (list, tuple)) else []
