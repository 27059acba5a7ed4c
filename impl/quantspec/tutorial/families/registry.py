"""Which families there are, and what each needs."""

import importlib
from types import ModuleType

from quantspec.errors import expected_one_of

from .network import Network

# The library that a family needs, None for those written here.
NEEDS = {
    "transformers": "transformers", "timm": "timm", "torchvision": "torchvision",
    "segmentation": "segmentation_models_pytorch", "torchaudio": "torchaudio", "yolo": None,
    "generation": "transformers",
}  # fmt: skip
NAMES = tuple(NEEDS)
MEASURE_THEMSELVES = ("generation",)


def networks(family: str) -> dict[str, Network]:
    """The networks of a family by name. Raises ValueError for an unknown family, and for one whose library cannot be
    imported, saying how to get it."""
    found: dict[str, Network] = module_of(family).NETWORKS
    return found


def measuring(family: str) -> ModuleType:
    """The module with ``row``, ``as_table``, ``notes`` and ``as_json`` for a family. Raises as ``networks`` does."""
    return module_of(family) if family in MEASURE_THEMSELVES else importlib.import_module(".measure", __package__)


def module_of(family: str) -> ModuleType:
    if family not in NEEDS:
        raise ValueError(expected_one_of("family", NAMES, family))
    try:
        return importlib.import_module(f".{family}", __package__)
    except (ImportError, OSError) as error:  # OSError: its compiled part does not fit this torch
        why = str(error).splitlines()[0]
        raise ValueError(
            f"family {family}: {NEEDS[family]} cannot be imported ({why}): pip install 'quantspec[families]'"
        ) from error
