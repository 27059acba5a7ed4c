"""torch.ops.onednn's pointwise kernels behind the backend protocol: what torch's compiler calls, on plain uint8 and
int8 tensors."""

from typing import Any, cast

import numpy as np
import torch

from quantspec.backends import protocol
from quantspec.backends.cache import Cache
from quantspec.backends.protocol import NotOffered, Pair, per_tensor, rounds_as, sums_exactly, threads, whole_byte
from quantspec.numerics.affine import QParams
from quantspec.numerics.dialects import named

from .reproduce import torch_script

OPS = torch.ops.onednn
NO_SCALARS: list[float] = []  # of a ReLU


class OnednnPointwise(protocol.OffersLinear, protocol.OffersConv2d, protocol.Keeps, protocol.Reproduces):
    """``qlinear_pointwise`` and ``qconv2d_pointwise``, for activations of one type: signed ones go another way, on most
    CPUs through oneDNN's slow reference kernel."""

    version = torch.__version__

    def __init__(self, codes: str) -> None:
        if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # torch's own
            raise NotOffered("this build of torch has no oneDNN")
        torch.set_num_threads(threads())
        self._codes, self._cache = np.dtype(codes), Cache()
        self.name = "torch-onednn-pointwise" + ("" if codes == "uint8" else f"-{codes}")
        self.dialect: protocol.Dialects = self._signed() if codes == "int8" else self._probed()

    def _signed(self) -> str:
        """``onednn-reference``, or ``onednn-pointwise-product`` where oneDNN has a kernel for signed activations, as on
        CPUs with AVX2 and not more: whichever gives the codes of a layer in which the two differ."""
        x_q, w_q = (np.arange(-128, 128, step).astype(np.int8)[:, None] for step in (1, 17))
        x, w, y = (QParams(np.float32(scale), point, -128, 127) for scale, point in ((0.1, 3), (0.03, 0), (0.37, -5)))
        layer = x_q, x, w_q, w, np.linspace(-1, 1, len(w_q), dtype=np.float32), y
        try:
            codes = self.linear(*layer)
        except RuntimeError as error:
            raise NotOffered(f"torch {torch.__version__} takes unsigned activations only: {error}") from error
        product = "onednn-pointwise-product"
        return product if np.array_equal(codes, named.dialect(product).linear(*layer)) else "onednn-reference"

    def _probed(self) -> frozenset[str]:
        """``onednn-pointwise``, also with the product of the scales where oneDNN multiplies by it, or both with
        saturating pairs (DIA-ACCUMULATE)."""
        product = "onednn-pointwise-product"
        if not sums_exactly(self.linear):
            return frozenset({"onednn-pointwise-int16", f"{product}-int16"})
        # Linear layers do so in torch 2.6; kernels for AMX multiply the scales first for some shapes of windows.
        multiplies = torch.cpu._is_amx_tile_supported() or rounds_as(self.linear, product)
        products = [product] if multiplies else []
        return frozenset({"onednn-pointwise", *products})

    def keep(self) -> None:
        """Packed weights are kept from here on, as compiled code keeps them."""
        self._cache = Cache(enabled=True)

    def linear(
        self, x_q: np.ndarray, x: QParams, w_q: np.ndarray, w: QParams, bias: np.ndarray | None, y: QParams, *,
        relu: bool = False,
    ) -> np.ndarray:
        weight, *layer, dtype = self._arguments(x, w_q, w, bias, y)
        packed = self._cache(("linear", w_q), lambda: OPS.qlinear_prepack(weight, None))
        output = float(y.scale), int(y.zero_point), dtype, "relu" if relu else "none", NO_SCALARS, ""
        codes, grid = torch.from_numpy(np.array(x_q)), (float(x.scale), int(x.zero_point))
        return cast(np.ndarray, OPS.qlinear_pointwise(codes, *grid, packed, *layer, *output).numpy())

    def conv2d(
        self, x_q: np.ndarray, x: QParams, w_q: np.ndarray, w: QParams, bias: np.ndarray | None, y: QParams, *,
        stride: Pair = (1, 1), padding: Pair = (0, 0), dilation: Pair = (1, 1), groups: int = 1, relu: bool = False,
    ) -> np.ndarray:
        if x.dtype != np.uint8:
            raise NotOffered("signed activations: qconv2d_pointwise takes unsigned ones only")
        weight, *layer, dtype = self._arguments(x, w_q, w, bias, y)
        grid = float(x.scale), int(x.zero_point)
        places = list(stride), list(padding), list(dilation), groups
        key = "conv2d", w_q, w.scale, x.scale, x.zero_point, str(places), x_q.shape
        packed = self._cache(key, lambda: OPS.qconv_prepack(weight, layer[0], *grid, *places, list(x_q.shape)))
        codes = torch.from_numpy(np.array(x_q)).contiguous(memory_format=torch.channels_last)
        output = float(y.scale), int(y.zero_point), dtype, "relu" if relu else "none", NO_SCALARS, ""
        result = OPS.qconv2d_pointwise(codes, *grid, packed, *layer, *places, *output)
        return np.ascontiguousarray(result.numpy())

    def reproduction(self, operation: str, /, *arguments: Any, **options: Any) -> str:
        """The script of a call; see ``reproduce.script``."""
        return torch_script(self, operation, arguments, options)

    def _arguments(
        self, x: QParams, w_q: np.ndarray, w: QParams, bias: np.ndarray | None, y: QParams
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, torch.dtype]:
        """(weight, its scales, its zero points, bias, type of the output)."""
        per_tensor(x, "x")
        per_tensor(y, "y")
        whole_byte(y)
        if x.dtype != self._codes:
            raise NotOffered(f"x: this adapter takes {self._codes} codes, got {x.dtype}")
        if np.any(w.zero_point):
            raise NotOffered("w: the kernels take weights with zero point 0 only")
        scales = torch.from_numpy(np.atleast_1d(w.scale).copy())
        points = torch.zeros(len(scales), dtype=torch.int64)
        addend = None if bias is None else torch.from_numpy(bias.copy())
        dtype = torch.uint8 if y.qmin == 0 else torch.int8
        return torch.from_numpy(np.array(w_q, order="C")), scales, points, addend, dtype
