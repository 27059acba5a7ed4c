"""Looks at an adapter before its backend is judged: easy calls, whose answers must be of the right kind and about
right."""

import numpy as np

from quantspec.backends.outcome import outcome
from quantspec.backends.worker import Worker
from quantspec.numerics.affine import QParams

from .call import Call
from .session import answer_of, other_parts, parts, reference, wanted_parts

GRID, WEIGHTS, WIDE = QParams(0.5, 3, 0, 255), QParams(0.25, 0, -128, 127), QParams(1.0, 7, 0, 255)
CODES = np.array([[3, 5, 9], [4, 3, 20]], np.uint8)
SMALL = np.array([[1, -2, 3], [4, 0, -1]], np.int8)
BIAS = np.array([0.5, -1], np.float32)
REALS = np.array([0.0, 1.1, -0.6], np.float32)
ROW = np.array([[0, 1.3, 2.2]], np.float32)
IMAGE, PAIR = CODES.reshape(1, 1, 2, 3), CODES.reshape(1, 2, 1, 3)
POINT = SMALL[:1, :1].reshape(1, 1, 1, 1)
WINDOWS = {"kernel": (2, 2), "stride": (1, 1)}
EASY = (
    Call("quantize", (REALS, np.float32(0.5), 3), {"qmin": 0, "qmax": 255}),
    Call("dequantize", (np.array([3, 4, 2], np.uint8), np.float32(0.5), 3)),
    Call("qparams", (np.float32(-1), np.float32(3)), {"qmin": 0, "qmax": 255, "symmetric": False}),
    Call("linear", (CODES, GRID, SMALL, WEIGHTS, BIAS, WIDE), {"relu": False}),
    Call("linear_dynamic", (ROW, SMALL, WEIGHTS, BIAS), {"relu": False}),
    Call("conv2d", (IMAGE, GRID, POINT, WEIGHTS, None, WIDE)),
    Call("add", (PAIR, GRID, PAIR, GRID, WIDE), {"relu": False}),
    Call("mul", (PAIR, GRID, PAIR, GRID, WIDE)),
    Call("concat", ([(CODES, GRID), (CODES, GRID)], WIDE), {"axis": 1}),
    Call("max_pool2d", (IMAGE, GRID), WINDOWS),
    Call("avg_pool2d", (IMAGE, GRID), WINDOWS),
    Call("adaptive_avg_pool2d", (IMAGE, GRID), {"size": (1, 1)}),
)


def smoke(name: str, worker: Worker) -> None:
    """Raises ValueError saying what is wrong with the *adapter*: what it offers, and answers of the right kind."""
    if not worker.operations:
        raise ValueError(f"backend {name}: it has no method of the protocol (quantspec.backends.protocol)")
    for call in EASY:
        operation = call.operation
        if operation not in worker.operations:
            continue
        expected = answer_of(reference("exact"), call)
        got = outcome(worker, operation, *call.arguments, **call.options)
        if got.kind in ("not offered", "refused"):
            continue
        adapter = f"backend {name}: the adapter's {operation}"
        if got.kind != "value":
            raise ValueError(f"{adapter} fails on an easy call: {got.message}")
        if wrong := other_parts(operation, got.value):
            raise ValueError(f"{adapter} returns {wrong} where the protocol expects {wanted_parts(operation)}")
        for part, model in zip(parts(got.value), parts(expected)):
            if part.shape != model.shape or part.dtype.kind != model.dtype.kind:
                kind, wanted = f"{part.dtype}{list(part.shape)}", f"{model.dtype}{list(model.shape)}"
                raise ValueError(f"{adapter} returns {kind} where the protocol expects {wanted}")
            if np.abs(part.astype(np.float64) - model.astype(np.float64)).max(initial=0) > 1:
                numbers, about = part.ravel().tolist(), model.ravel().tolist()
                raise ValueError(f"{adapter} returns {numbers} for an easy call, expected about {about}")
