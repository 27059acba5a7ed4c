"""Packages that only some commands need, each brought by an extra: ``pip install 'quantspec[plots]'``."""

import importlib
from types import ModuleType

from quantspec.errors import MissingExtraError


def needed(module: str, extra: str, purpose: str) -> ModuleType:
    """A module of a package that ``extra`` brings. Raises MissingExtraError naming the extra where it is not
    installed; ``purpose`` is the subject of that sentence."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != package:
            raise
        raise MissingExtraError(
            f"{purpose} needs {package}, which is not installed: pip install 'quantspec[{extra}]'", name=package
        ) from error
