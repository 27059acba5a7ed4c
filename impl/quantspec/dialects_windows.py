"""Windows of a convolution as rows of codes (chapter 10, DIA-WINDOWS), so that it is as many linear layers as it has groups."""

import numpy as np

from . import integer


def windows(x_q, zero_point, w_q, stride, padding, dilation, groups: int) -> tuple[np.ndarray, tuple[int, int, int]]:
    """The codes of every window, [groups, windows, inputs], and how many images, rows and columns of windows there are.

    Inputs of a window are in the order rows, columns, channels, as ``rows`` puts weights; outside the image is the zero point. ValueError for shapes that do not fit.
    """
    x_q, w_q = integer.checked_codes(x_q, "x_q"), integer.checked_codes(w_q, "w_q")
    if x_q.ndim != 4 or w_q.ndim != 4 or x_q.shape[1] != w_q.shape[1] * groups or len(w_q) % groups:
        raise ValueError(f"x_q, w_q: shapes {x_q.shape} and {w_q.shape} do not make a convolution with {groups} groups")
    around = [(0, 0), (0, 0), *((p, p) for p in padding)]
    padded = np.pad(x_q, around, constant_values=int(zero_point))
    spread = [d * (k - 1) + 1 for d, k in zip(dilation, w_q.shape[2:])]
    views = np.lib.stride_tricks.sliding_window_view(padded, spread, axis=(2, 3))
    views = views[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]
    images, channels, height, width = views.shape[:4]
    split = views.reshape(images, groups, channels // groups, height, width, *w_q.shape[2:])
    inputs = int(np.prod(w_q.shape[1:]))
    return split.transpose(1, 0, 3, 4, 5, 6, 2).reshape(groups, images * height * width, inputs), (images, height, width)


def evened(x_q, w_q, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and weights with one more channel of zeros in each group where their number is odd."""
    if w_q.shape[1] % 2 == 0:
        return x_q, w_q
    images, channels, height, width = x_q.shape
    split = x_q.reshape(images, groups, channels // groups, height, width)
    split = np.pad(split, [(0, 0), (0, 0), (0, 1), (0, 0), (0, 0)])
    return split.reshape(images, channels + groups, height, width), np.pad(w_q, [(0, 0), (0, 1), (0, 0), (0, 0)])


def rows(w_q: np.ndarray) -> np.ndarray:
    """Weights [outputs, inputs, height, width] as [outputs, height * width * inputs], inputs last."""
    return w_q.transpose(0, 2, 3, 1).reshape(len(w_q), int(np.prod(w_q.shape[1:])))
