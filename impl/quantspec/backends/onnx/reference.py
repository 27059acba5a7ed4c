"""The reference evaluator of the onnx package behind the backend protocol."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from quantspec.backends import protocol
from quantspec.backends.protocol import NotOffered, whole_byte
from quantspec.backends.reproduce import script
from quantspec.numerics.affine import QParams

from .graphs import OnnxOperators, channel_points, grids, model, rectified


class OnnxReference(OnnxOperators, protocol.OffersLinear, protocol.Reproduces):
    """onnx.reference: one NumPy implementation an operator, of ONNX's own operators only."""

    name, version = "onnx-reference", onnx.__version__
    dialect = "onnx-reference"

    def _run(self, graph: bytes, inputs: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        with np.errstate(all="ignore"):
            return cast(Sequence[np.ndarray], ReferenceEvaluator(graph).run(None, inputs))

    def linear(
        self, x_q: np.ndarray, x: QParams, w_q: np.ndarray, w: QParams, bias: np.ndarray | None, y: QParams, *,
        relu: bool = False,
    ) -> np.ndarray:
        """QLinearMatMul, which has no bias."""
        if bias is not None:
            raise NotOffered("bias: QLinearMatMul has none")
        whole_byte(y)
        constants = grids(x=x, y=y) | {"w": w_q.T, "w_s": w.scale, "w_z": channel_points(w, len(w_q))}
        node = helper.make_node("QLinearMatMul", ["x", "x_s", "x_z", "w", "w_s", "w_z", "y_s", "y_z"], ["y"])
        codes = self._run(model([node], {"x": x_q}, {"y": y.dtype}, constants), {"x": x_q})[0]
        return rectified(codes, y, relu)

    def reproduction(self, operation: str, /, *arguments: Any, **options: Any) -> str:
        """The script of a call, with the graph in it; see ``reproduce.script``."""
        modules = {sys.modules[__name__]: {"ReferenceEvaluator": "ReferenceEvaluator"}}
        first = ["from onnx.reference import ReferenceEvaluator"]
        return script(self, operation, arguments, options, first=first, modules=modules)
