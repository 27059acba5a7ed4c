"""Which families there are, and what each needs."""

import importlib
from types import ModuleType

import torch

from quantspec.errors import MissingExtraError, expected_one_of

from .network import Network

# The library that a family needs, None for those written here.
NEEDS = {
    "transformers": "transformers", "timm": "timm", "torchvision": "torchvision",
    "segmentation": "segmentation_models_pytorch", "torchaudio": "torchaudio", "yolo": None,
    "generation": "transformers",
}  # fmt: skip
NAMES = tuple(NEEDS)
EXTRAS = {family: "audio" if family == "torchaudio" else "families" for family in NAMES}
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
    except (ModuleNotFoundError, MissingExtraError) as error:
        needs = f"family {family} needs {error.name}, which is not installed"
        raise ValueError(f"{needs}: pip install 'quantspec[{EXTRAS[family]}]'") from error
    except (ImportError, OSError) as error:  # OSError: its compiled part does not fit this torch
        library, why = NEEDS[family], " ".join(str(error).split())
        raise ValueError(
            f"family {family}: {library} does not load beside torch {torch.__version__} ({why}); a build that does: "
            f"pip install --force-reinstall --no-deps {library}{index_of(torch.__version__)}"
        ) from error


def index_of(version: str) -> str:
    """Where pip finds what was built like a version of torch: what goes with ``2.13.0+cpu`` is not on PyPI."""
    _, _, build = version.partition("+")
    return f" --index-url https://download.pytorch.org/whl/{build}" if build else ""
