"""The errors quantspec raises besides ``ValueError`` and ``TypeError`` for bad arguments.

Each is also one of the built-in kinds, so that code which knows nothing of quantspec can catch it.
"""

import difflib
import functools
import inspect
import numbers
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])


class CalibrationError(ValueError):
    """Calibration data is missing, or gives no range because it holds NaN or infinities."""


class ShapeError(ValueError):
    """An input whose shape does not fit a layer."""


class UnsupportedError(NotImplementedError):
    """An operation that quantspec cannot quantize, or that an engine cannot run."""


class FormatError(ValueError):
    """A file that quantspec did not write, or that is truncated or modified."""


class MissingExtraError(ImportError):
    """A package of an optional extra is not installed."""


def shown(value: object) -> str:
    """A value in a message: on one line, and not at length; its class where it does not show itself."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # whatever a class, or a tensor whose memory is gone, raises there
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def whole_number(value: object, argument: str) -> int:
    """A whole number that was given for an argument; TypeError for others."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{argument}: expected a whole number, got {shown(value)}")
    return int(value)


def real_number(value: object, argument: str) -> float:
    """A number that was given for an argument; TypeError for others."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{argument}: expected a number, got {shown(value)}")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"{argument}: expected a number that a float holds, got {shown(value)}") from error


def flag(value: object, argument: str) -> bool:
    """A truth value that was given for an argument; TypeError for others."""
    if not isinstance(value, bool):
        raise TypeError(f"{argument}: expected True or False, got {shown(value)}")
    return value


def expected_one_of(what: str, existing: Iterable[str], got: object, *, others: str = "") -> str:
    """The message for a name that is none of ``known``: the list, the name, and those near it. ``others``: what else
    would do, in words."""
    names = list(existing)
    near = difflib.get_close_matches(got, names, n=3) if isinstance(got, str) else []
    meant = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"{what}: expected one of {', '.join(names)}{others}, got {shown(got)}{meant}"


def near_names(function: Function) -> Function:
    """A function that answers a keyword which it does not take with TypeError, the list, and the near ones."""
    parameters = inspect.signature(function).parameters

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for name in kwargs:
            if name not in parameters:
                raise TypeError(expected_one_of(f"{function.__name__}: argument", parameters, name))
        return function(*args, **kwargs)

    return cast(Function, call)
