"""segmentation-models-pytorch: each of its decoders on a small encoder."""

from functools import partial

from torch import nn

from quantspec.torchvision_compat import import_torchvision
from quantspec.tutorial.zoo import images

from .network import Network

import_torchvision()  # timm, which the library stands on, imports it

import segmentation_models_pytorch as library  # noqa: E402

SIZE = 64
ENCODERS = {
    "Unet": "resnet18", "UnetPlusPlus": "mobilenet_v2", "Linknet": "resnet18", "FPN": "timm-efficientnet-b0",
    "PSPNet": "resnet18", "PAN": "resnet18", "DeepLabV3": "mobilenet_v2", "DeepLabV3Plus": "resnet18",
    "MAnet": "efficientnet-b0", "UPerNet": "resnet18", "Segformer": "mit_b0",
}  # fmt: skip


def build(decoder: str, encoder: str) -> nn.Module:
    """A model without trained weights."""
    model: nn.Module = getattr(library, decoder)(encoder, encoder_weights=None, classes=4)
    return model


NETWORKS = {
    f"{decoder}_{encoder}".lower().replace("-", "_"): Network(
        partial(build, decoder, encoder), partial(images, 2, 2 * SIZE if decoder == "PAN" else SIZE)
    )
    for decoder, encoder in ENCODERS.items()
}
