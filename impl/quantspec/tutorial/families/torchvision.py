"""torchvision beyond classification: detection, segmentation, video and optical flow."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from quantspec.torchvision_compat import import_torchvision
from quantspec.tutorial.zoo import images

from .network import Network, normal

import_torchvision()

from torchvision import extension, models  # noqa: E402
from torchvision.ops import boxes as box_operations  # noqa: E402

SIZE = 96
EVERY = 10**6
# Everything is kept, so that what is chosen does not decide over what is compared.
ALL = {"score_thresh": 0.0, "nms_thresh": 1.0, "detections_per_img": EVERY}
ALL_BOXES = {f"box_{key}": value for key, value in ALL.items()}
ALL_BOXES |= {"rpn_nms_thresh": 1.0, "rpn_post_nms_top_n_test": 60}
RESIZED = {"min_size": SIZE, "max_size": SIZE, "num_classes": 6}


def nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Non-maximum suppression, in Python."""
    order, kept = scores.argsort(descending=True, stable=True), []
    if iou_threshold >= 1:
        return order
    overlaps = box_operations.box_iou(boxes, boxes)
    while len(order):
        kept.append(order[0])
        order = order[1:][overlaps[order[0], order[1:]] <= iou_threshold]
    return torch.stack(kept) if kept else order


if not extension._has_ops():  # a wheel whose compiled part does not load here
    box_operations.nms = nms
    pooling: Any = sys.modules["torchvision.ops.roi_align"]  # whose own replacement would be compiled for every size
    pooling._roi_align = pooling._roi_align.__wrapped__


def build(name: str, **options: Any) -> nn.Module:
    """A model without trained weights."""
    with_backbone = {"weights_backbone": None} if name in (*DETECTION, *SEGMENTATION) else {}
    model: nn.Module = models.get_model(name, weights=None, **with_backbone, **options)
    return model


def mvit() -> nn.Module:
    """The video transformer with four blocks, since the library's own sizes are for images of 224 x 224."""
    block = models.video.mvit.MSBlockConfig
    pool, whole = [3, 3, 3], [1, 1, 1]
    blocks = [
        block(1, 32, 32, pool, pool, whole, [1, 4, 4]), block(2, 32, 64, pool, pool, [1, 2, 2], [1, 2, 2]),
        block(4, 64, 128, pool, pool, [1, 2, 2], whole), block(4, 128, 128, pool, pool, whole, whole),
    ]  # fmt: skip
    model: nn.Module = models.video.MViT(
        (64, 64), 8, blocks, residual_pool=True, residual_with_cls_embed=False, rel_pos_embed=True,
        proj_after_attn=True, num_classes=20,
    )  # fmt: skip
    return model


def ordered(detections: Any) -> list[torch.Tensor]:
    """Scores and corners of what was found in images, each in the order of its values."""
    return [
        values.sort(dim=0, descending=True).values
        for detection in detections
        for values in (detection["scores"], detection["boxes"])
    ]


def pictures(seed: int) -> tuple[list[torch.Tensor]]:
    """Images in a list, as detectors take them."""
    return (list(images(2, SIZE, seed).sigmoid()),)


def frames(seed: int, length: int = 4, size: int = 48) -> torch.Tensor:
    """Videos [2, 3, length, size, size] that change slowly."""
    first, last = images(2, size, seed), images(2, size, seed + 50)
    return torch.stack([first + (last - first) * t / length for t in range(length)], 2)


def flow(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two images, of which the second is the first that moved."""
    first = images(1, 128, seed).tanh()
    return first, first.roll((2, 3), (2, 3)) + 0.01 * normal(1, 3, 128, 128, seed=seed)


DETECTION: dict[str, dict[str, Any]] = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": ALL_BOXES | RESIZED,
    "fasterrcnn_resnet50_fpn": ALL_BOXES | RESIZED,
    "retinanet_resnet50_fpn": ALL | RESIZED | {"topk_candidates": EVERY},
    "fcos_resnet50_fpn": ALL | RESIZED | {"topk_candidates": EVERY},
    "ssdlite320_mobilenet_v3_large": ALL | {"topk_candidates": EVERY, "num_classes": 6},
}
SEGMENTATION: dict[str, dict[str, Any]] = {
    "deeplabv3_mobilenet_v3_large": {}, "deeplabv3_resnet50": {}, "fcn_resnet50": {"aux_loss": True},
    "lraspp_mobilenet_v3_large": {},
}  # fmt: skip
VIDEO: dict[str, tuple[dict[str, Any], Callable[[int], Any]]] = {
    "r3d_18": ({}, frames), "mc3_18": ({}, frames), "r2plus1d_18": ({}, frames),
    "swin3d_t": ({}, frames),
}  # fmt: skip
NETWORKS = (
    {name: Network(partial(build, name, **options), pictures, ordered) for name, options in DETECTION.items()}
    | {
        name: Network(partial(build, name, **options), partial(images, 2, SIZE))
        for name, options in SEGMENTATION.items()
    }
    | {name: Network(partial(build, name, **options), batch) for name, (options, batch) in VIDEO.items()}
    | {"mvit": Network(mvit, partial(frames, length=8, size=64))}
    | {name: Network(partial(build, name), flow) for name in ("raft_small", "raft_large")}
)
