"""Which families there are, and what each needs."""

import importlib

from .network import Network

# The library that a family needs, None for those written here.
NEEDS = {
    "transformers": "transformers", "timm": "timm", "torchvision": "torchvision",
    "segmentation": "segmentation_models_pytorch", "torchaudio": "torchaudio", "yolo": None,
}  # fmt: skip
NAMES = tuple(NEEDS)


def networks(family: str) -> dict[str, Network]:
    """The networks of a family by name. Raises ValueError for an unknown family, and for one whose library cannot be
    imported, saying how to get it."""
    if family not in NEEDS:
        raise ValueError(f"family: expected one of {', '.join(NAMES)}, got {family!r}")
    try:
        module = importlib.import_module(f".{family}", __package__)
    except (ImportError, OSError) as error:  # OSError: its compiled part does not fit this torch
        why = str(error).splitlines()[0]
        raise ValueError(
            f"family {family}: {NEEDS[family]} cannot be imported ({why}): pip install 'quantspec[families]'"
        ) from error
    found: dict[str, Network] = module.NETWORKS
    return found
