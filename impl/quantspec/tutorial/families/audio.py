"""torchaudio where no network needs it."""

import importlib
import sys
from typing import Any, cast


def hide_torchaudio_that_does_not_load() -> None:
    """Has Python say from here on that torchaudio is not installed, where importing it fails: transformers imports it
    wherever it is installed, and dies of one that was built for another torch."""
    try:
        importlib.import_module("torchaudio")
    except (ImportError, OSError):  # OSError: its compiled part does not fit this torch
        cast(dict[str, Any], sys.modules)["torchaudio"] = None
