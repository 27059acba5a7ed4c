"""The errors quantspec raises besides ``ValueError`` and ``TypeError`` for bad arguments.

Each is also one of the built-in kinds, so that code which knows nothing of quantspec can catch it.
"""


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
