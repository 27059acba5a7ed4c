"""The errors quantspec raises besides ``ValueError`` and ``TypeError`` for bad arguments.

Each is also one of the built-in kinds, so that code which knows nothing of quantspec can catch it.
"""

import difflib
from collections.abc import Iterable


class CalibrationError(ValueError):
    """Calibration saw nothing, or saw what has no range: NaN or an infinity."""


class ShapeError(ValueError):
    """An input that does not fit a layer."""


class UnsupportedError(NotImplementedError):
    """An operation that quantspec cannot quantize, or one that an engine cannot run."""


class FormatError(ValueError):
    """A file that is not ours, is truncated, or was tampered with."""


class MissingExtraError(ImportError):
    """A package that only an extra of quantspec brings is not installed."""


def expected_one_of(what: str, known: Iterable[str], got: object, *, others: str = "") -> str:
    """The message for a name that is none of ``known``: the list, the name, and those near it. ``others``: what else
    would do, in words."""
    names = list(known)
    near = difflib.get_close_matches(str(got), names, n=3)
    meant = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"{what}: expected one of {', '.join(names)}{others}, got {got!r}{meant}"
