"""Small models of timm, as the library names them."""

from functools import partial
from typing import Any

from torch import nn

from quantspec.torchvision_compat import import_torchvision
from quantspec.tutorial.zoo import images

from .network import Network

import_torchvision()  # timm imports it

import timm  # noqa: E402

SIZE = 64
CONVOLUTIONAL = (
    "resnet10t", "resnet18d", "seresnext26t_32x4d", "ecaresnet26t", "skresnet18", "resnetv2_18", "resnest14d",
    "res2net50_26w_4s", "tf_efficientnet_b0", "efficientnet_lite0", "tf_efficientnetv2_b0", "mobilenetv2_050",
    "mobilenetv3_small_050", "mobilenetv4_conv_small_050", "fbnetc_100", "ghostnet_050", "hardcorenas_a", "lcnet_050",
    "tinynet_e", "mixnet_s", "repvgg_a0", "mobileone_s0", "regnetx_002", "regnety_002", "rexnet_100", "dla46_c",
    "hrnet_w18_small", "selecsls42b", "ese_vovnet19b_slim", "cspdarknet53", "nf_regnet_b0", "convnext_atto",
    "convnextv2_atto", "poolformer_s12", "repghostnet_050",
)  # fmt: skip
# Those that attend or mix over positions; sizes where 64 is not taken.
MIXED: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"img_size": SIZE}, "deit_tiny_patch16_224": {"img_size": SIZE},
    "swin_tiny_patch4_window7_224": {"img_size": 56, "window_size": 7, "depths": (1, 1, 1, 1)},
    "pit_ti_224": {"img_size": SIZE}, "levit_128s": {"img_size": SIZE}, "resmlp_12_224": {"img_size": SIZE},
    "gmixer_12_224": {"img_size": SIZE}, "xcit_nano_12_p16_224": {}, "mobilevit_xxs": {}, "mobilevitv2_050": {},
    "edgenext_xx_small": {}, "fastvit_t8": {}, "eva02_tiny_patch14_224": {"img_size": 56}, "pvt_v2_b0": {},
    "efficientvit_b0": {},
}  # fmt: skip


def build(name: str, **options: Any) -> nn.Module:
    """A model without trained weights."""
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=20, **options)
    return model


OPTIONS: dict[str, dict[str, Any]] = {name: {} for name in CONVOLUTIONAL} | MIXED
NETWORKS = {
    name: Network(partial(build, name, **options), partial(images, 2, options.get("img_size", SIZE)))
    for name, options in OPTIONS.items()
}
