"""torchvision next to a CPU-only torch.

On Linux the published torchvision wheel is linked against a CUDA build of torch. Beside a CPU build its compiled part
does not load, and the import dies with "operator torchvision::nms does not exist", because Python code registers
kernels for operators that only the compiled part declares. Declaring them is enough for datasets, transforms and
models, which never call them.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

import torch

from quantspec.errors import MissingExtraError

MISSING = "operator torchvision::nms does not exist"
SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_declared: list[torch.library.Library] = []  # a declaration lasts as long as its Library


def import_torchvision() -> ModuleType:
    """torchvision, with the missing operators declared where, and only where, the plain import fails for want of
    them. Raises MissingExtraError where torchvision is not installed."""
    try:
        return importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            raise
        what = "the tutorial and the zoo need torchvision, which is not installed"
        raise MissingExtraError(f"{what}: pip install 'quantspec[tutorial]'", name="torchvision") from error
    except RuntimeError as error:
        if str(error) != MISSING:
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # half imported
    if not _declared:
        new_library: Any = torch.library.Library  # its functions have no types
        library = new_library("torchvision", "DEF")
        for schema in SCHEMAS.values():
            library.define(schema)
        _declared.append(library)
    return importlib.import_module("torchvision")
