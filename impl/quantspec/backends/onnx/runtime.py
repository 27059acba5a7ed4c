"""ONNX Runtime behind the backend protocol: one operator a session, on its CPU provider."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import onnxruntime
from onnx import helper

from quantspec.backends import protocol
from quantspec.backends.cache import Cache
from quantspec.backends.protocol import CodesOnGrids, NotOffered, Pair, sums_exactly, threads, whole_byte
from quantspec.backends.reproduce import script
from quantspec.numerics.affine import QParams
from quantspec.numerics.integer import quantize_bias

from .graphs import MICROSOFT, OnnxOperators, channel_points, grids, model, rectified


class OnnxRuntime(
    OnnxOperators, protocol.OffersLinear, protocol.OffersAdd, protocol.OffersMul, protocol.OffersConcat,
    protocol.OffersAvgPool2d, protocol.OffersAdaptiveAvgPool2d, protocol.Keeps, protocol.Reproduces,
):  # fmt: skip
    """ONNX Runtime's CPU kernels: standard operators, and com.microsoft's for what ONNX has none.

    A session is made for every call, unless it is told to keep them; graphs hold the qparams and weights as constants,
    so that a session serves only calls of the same shapes, weights and qparams.
    """

    name, version = "onnxruntime", onnxruntime.__version__

    def __init__(self) -> None:
        self._cache = Cache()
        self.dialect = "onnx" if sums_exactly(self.linear) else "onnx-int16"

    def keep(self) -> None:
        """Sessions are kept from here on, as any server does."""
        self._cache = Cache(enabled=True)

    def _run(self, graph: bytes, inputs: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        session = self._cache((graph,), lambda: self._session(graph))
        dense = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        return cast(Sequence[np.ndarray], session.run(None, dense))

    def _session(self, graph: bytes) -> Any:  # onnxruntime.InferenceSession, which has no types
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads(), 1, 4
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def linear(
        self, x_q: np.ndarray, x: QParams, w_q: np.ndarray, w: QParams, bias: np.ndarray | None, y: QParams, *,
        relu: bool = False,
    ) -> np.ndarray:
        """com.microsoft's QGemm: QLinearMatMul has no bias."""
        whole_byte(y)
        constants = grids(x=x, y=y) | {"w": w_q, "w_s": w.scale, "w_z": channel_points(w, len(w_q))}
        if bias is not None:
            constants["b"] = quantize_bias(bias, x.scale, w.scale)
        names = ["x", "x_s", "x_z", "w", "w_s", "w_z", "" if bias is None else "b", "y_s", "y_z"]
        node = helper.make_node("QGemm", names, ["y"], domain=MICROSOFT, transB=1)
        codes = self._run(model([node], {"x": x_q}, {"y": y.dtype}, constants), {"x": x_q})[0]
        return rectified(codes, y, relu)

    def add(
        self, a_q: np.ndarray, a: QParams, b_q: np.ndarray, b: QParams, y: QParams, *, relu: bool = False
    ) -> np.ndarray:
        return rectified(self._pair("QLinearAdd", a_q, a, b_q, b, y), y, relu)

    def mul(self, a_q: np.ndarray, a: QParams, b_q: np.ndarray, b: QParams, y: QParams) -> np.ndarray:
        return self._pair("QLinearMul", a_q, a, b_q, b, y)

    def _pair(
        self, operator: str, a_q: np.ndarray, a: QParams, b_q: np.ndarray, b: QParams, y: QParams
    ) -> np.ndarray:
        if not a.dtype == b.dtype == y.dtype:
            raise NotOffered("the kernel takes one type of codes, got signed and unsigned ones")
        whole_byte(y)
        node = helper.make_node(operator, ["a", "a_s", "a_z", "b", "b_s", "b_z", "y_s", "y_z"], ["y"], domain=MICROSOFT)
        inputs = {"a": a_q, "b": b_q}
        return self._run(model([node], inputs, {"y": y.dtype}, grids(a=a, b=b, y=y)), inputs)[0]

    def concat(self, parts: CodesOnGrids, y: QParams, *, axis: int) -> np.ndarray:
        if any(grid.dtype != y.dtype for _, grid in parts):
            raise NotOffered("the kernel takes one type of codes, got signed and unsigned ones")
        whole_byte(y)
        inputs = {f"x{i}": q for i, (q, _) in enumerate(parts)}
        constants = grids(y=y) | grids(**{f"x{i}": grid for i, (_, grid) in enumerate(parts)})
        names = ["y_s", "y_z", *(f"x{i}{part}" for i in range(len(parts)) for part in ("", "_s", "_z"))]
        node = helper.make_node("QLinearConcat", names, ["y"], domain=MICROSOFT, axis=axis)
        return self._run(model([node], inputs, {"y": y.dtype}, constants), inputs)[0]

    def avg_pool2d(
        self, q: np.ndarray, grid: QParams, *,
        kernel: Pair, stride: Pair | None = None, padding: Pair = (0, 0), count_include_pad: bool = True,
    ) -> np.ndarray:
        windows = {"kernel_shape": kernel, "strides": stride or kernel, "pads": [*padding, *padding]}
        node = helper.make_node(
            "QLinearAveragePool", ["x", "x_s", "x_z", "x_s", "x_z"], ["y"], domain=MICROSOFT, **windows,
            count_include_pad=int(count_include_pad),
        )  # fmt: skip
        return self._run(model([node], {"x": q}, {"y": q.dtype}, grids(x=grid)), {"x": q})[0]

    def adaptive_avg_pool2d(self, q: np.ndarray, grid: QParams, *, size: Pair) -> np.ndarray:
        if tuple(size) != (1, 1):
            raise NotOffered(f"size: QLinearGlobalAveragePool gives 1 by 1, got {size[0]} by {size[1]}")
        names = ["x", "x_s", "x_z", "x_s", "x_z"]
        node = helper.make_node("QLinearGlobalAveragePool", names, ["y"], domain=MICROSOFT, channels_last=0)
        return self._run(model([node], {"x": q}, {"y": q.dtype}, grids(x=grid)), {"x": q})[0]

    def reproduction(self, operation: str, /, *arguments: Any, **options: Any) -> str:
        """The script of a call, with the graph in it; see ``reproduce.script``."""
        modules = {sys.modules[__name__]: {"onnxruntime": "onnxruntime"}}
        return script(self, operation, arguments, options, first=["import onnxruntime"], modules=modules)
