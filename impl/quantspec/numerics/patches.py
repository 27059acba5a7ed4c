"""Windows of a convolution as rows of codes (DIA-WINDOWS), so that it is as many products as it has groups."""

import numpy as np

from quantspec.numerics.windows import Counts


def windows(
    padded: np.ndarray, kernel: Counts, stride: Counts, dilation: Counts, groups: int
) -> tuple[np.ndarray, Counts]:
    """The codes of every window, [groups, windows, inputs], and how many images and windows along each axis there are.

    ``padded``: codes [n, channels, *positions] with what is outside around them. Inputs of a window are in the order
    positions, channels, as ``rows`` puts weights.
    """
    axes = tuple(range(2, padded.ndim))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel)]
    views = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=axes)
    steps = (slice(None, None, step) for step in (*stride, *dilation))
    views = views[(slice(None), slice(None), *steps)]
    images, channels, *places = views.shape[: padded.ndim]
    split = views.reshape(images, groups, channels // groups, *places, *kernel)
    # [groups, images, *places, *kernel, channels of the group]
    order = (1, 0, *range(3, 3 + 2 * len(axes)), 2)
    inputs = channels // groups * int(np.prod(kernel))
    return split.transpose(order).reshape(groups, images * int(np.prod(places)), inputs), (images, *places)


def evened(
    x_q: np.ndarray, w_q: np.ndarray, w_zero_point: np.ndarray, groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and weights with one more channel in each group where their number is odd: of code 0 and of weights that
    stand for 0, by their zero points, one for each output."""
    if w_q.shape[1] % 2 == 0:
        return x_q, w_q
    images, channels, *places = x_q.shape
    nothing = [(0, 0)] * len(places)
    split = np.pad(x_q.reshape(images, groups, channels // groups, *places), [(0, 0), (0, 0), (0, 1), *nothing])
    zeros = np.broadcast_to(w_zero_point.reshape(-1, 1, *[1] * len(places)), (len(w_q), 1, *w_q.shape[2:]))
    return split.reshape(images, channels + groups, *places), np.concatenate([w_q, zeros.astype(w_q.dtype)], axis=1)


def rows(w_q: np.ndarray) -> np.ndarray:
    """Weights [outputs, inputs, *kernel] as [outputs, kernel * inputs], inputs last."""
    return np.moveaxis(w_q, 1, -1).reshape(len(w_q), int(np.prod(w_q.shape[1:])))
