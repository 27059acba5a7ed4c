"""Whether a Program says what an engine can compute: names, shapes, types, ranges, grids.

What a file is held to before anything runs.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from quantspec.engines.reference_dynamic import KINDS
from quantspec.ir import attention, float_graph, rearrange
from quantspec.ir.program import (
    AdaptiveAvgPool,
    Add,
    Attention,
    AvgPool,
    Bilinear,
    Call,
    Cell,
    Concat,
    Conv,
    Dequantize,
    Embedding,
    Linear,
    LinearDynamic,
    LinearWeight,
    MaxPool,
    Mean,
    Move,
    Mul,
    Program,
    Quantize,
    Recurrent,
    Ref,
    Relu,
    Step,
    Table,
)
from quantspec.ir.traverse import reads, refs
from quantspec.numerics.affine import QParams
from quantspec.numerics.dialects.named import DIALECTS
from quantspec.numerics.integer import check_overflow, quantize_bias

from .allowed import check_call

Grids = dict[str, QParams | None]  # of the values so far; None for what is no codes
READING_CODES = (
    Dequantize, Linear, Conv, Table, Relu, Add, Mul, Concat, MaxPool, AvgPool, AdaptiveAvgPool, Mean, Bilinear, Move,
)  # fmt: skip
LONGEST = 2**20  # no kernel, stride or dilation is longer
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def check(program: Program) -> None:
    """ValueError naming the step for a Program that no engine could run."""
    if program.dialect not in DIALECTS:
        raise ValueError(f"unknown dialect {program.dialect!r}")
    if len(set(program.inputs)) != len(program.inputs) or set(program.defaults) - set(program.inputs):
        raise ValueError("inputs: expected different names, and defaults for these only")
    if taken := set(program.inputs).intersection(name for name, _ in program.fixed):
        raise ValueError(f"fixed: {sorted(taken)[0]!r} is an input")
    nothing_read((program.defaults, program.fixed))
    grids: Grids = dict.fromkeys(program.inputs)
    called = set()
    for step in program.steps:
        if step.name in grids or not step.name:
            raise ValueError(f"step {step.name!r}: the name is taken")
        try:
            grids[step.name] = check_step(step, grids)
        except ValueError as error:
            raise ValueError(f"step {step.name!r}: {error}") from error
        if isinstance(step, Call):
            check_call(step, program.callables)
            if isinstance(step, Attention) and not attention.has_codes(
                step, attention.reads_weights(step.name, program.steps, program.output)
            ):
                raise ValueError(f"step {step.name!r}: {step.target} is no attention that is computed in codes")
            if step.kind != "method":
                called.add((step.kind, step.target))
    for name in refs(program.output):
        if name not in grids or grids[name] is not None:
            raise ValueError(f"output: {name!r} is not a float value")
    if called != set(program.callables):
        odd = sorted(called ^ set(program.callables))[0]
        raise ValueError(f"callables: {odd} is called but not defined, or defined but not called")


def nothing_read(tree: Any) -> None:
    """ValueError where a tree refers to a value."""
    if found := refs(tree):
        raise ValueError(f"a constant refers to {found[0]!r}")


def check_step(step: Step, grids: Grids) -> QParams | None:
    """The grid of what a step gives. ValueError for a step that reads, or holds, what it cannot."""
    for name in reads(step):
        if name not in grids:
            raise ValueError(f"reads {name!r}, which no earlier step makes")
    if isinstance(step, Call):
        return None  # it may read codes, whose shape it asks for
    if not isinstance(step, (Quantize, *READING_CODES)):
        for name in reads(step):
            if grids[name] is not None:
                raise ValueError(f"reads codes, {name!r}, as floats")
    return CHECKS[type(step)](step, grids)


def on_grid(name: str, grid: QParams | None, grids: Grids) -> QParams:
    """The grid of the codes ``name``, which is that which its reader takes it to be (None: any)."""
    have = grids[name]
    if have is None:
        raise ValueError(f"reads floats, {name!r}, as codes")
    if grid is not None:
        activation(grid)
        if (have.scale, have.zero_point, have.qmin, have.qmax) != (grid.scale, grid.zero_point, grid.qmin, grid.qmax):
            raise ValueError(f"takes {name!r} to be on another grid than it is")
    return have


def activation(grid: QParams) -> QParams:
    if grid.qmin < 0 or grid.axis is not None:
        codes = f"{grid.qmin} to {grid.qmax}, axis {grid.axis}"
        raise ValueError(f"expected one scale and codes from 0 on for activations, got {codes}")
    return grid


def weight(codes: np.ndarray, grid: QParams, bias: np.ndarray | None, *, dims: tuple[int, ...]) -> None:
    """int8 codes with zero point 0 on their grid, and a float32 bias."""
    if codes.dtype != np.int8 or codes.ndim not in dims:
        axes = " or ".join(map(str, dims))
        raise ValueError(f"expected int8 weights with {axes} axes, got {codes.dtype} {codes.shape}")
    outputs = codes.shape[:1]
    per_channel = grid.axis == 0 and grid.scale.shape == outputs
    if np.any(grid.zero_point) or grid.qmin >= 0 or not (grid.axis is None or per_channel):
        raise ValueError(f"expected a scale for all weights, or for each of {outputs[0]} outputs, and zero point 0")
    if codes.size and (codes.min() < grid.qmin or codes.max() > grid.qmax):
        raise ValueError(f"weights beyond {grid.qmin} to {grid.qmax}")
    if bias is not None and (bias.dtype != np.float32 or bias.shape != outputs or np.isnan(bias).any()):
        raise ValueError(f"expected a float32 bias of shape {outputs} without NaN, got {bias.dtype} {bias.shape}")


def layer(step: Linear | Conv, grids: Grids) -> QParams | None:
    x = on_grid(step.x, step.x_qparams, grids)
    weight(step.weight, step.w_qparams, step.bias, dims=(2,) if isinstance(step, Linear) else (3, 4, 5))
    check_layer(step, step.weight, step.bias, "weight")
    bias = np.zeros(len(step.weight), np.float32) if step.bias is None else step.bias
    try:
        check_overflow(x, step.weight, step.w_qparams, quantize_bias(bias, x.scale, step.w_qparams.scale))
    except NotImplementedError as error:
        raise ValueError(str(error)) from error
    return None if step.y_qparams is None else activation(step.y_qparams)


def check_layer(
    node: float_graph.Layer | Linear | Conv, weight: np.ndarray, bias: np.ndarray | None, where: str
) -> None:
    """ValueError unless weight, bias and the places of a convolution belong together.

    ``node``: a layer of a float graph or of a Program.
    """
    outputs = weight.shape[:1]
    if bias is not None and bias.shape != outputs:
        raise ValueError(f"{where}: expected a bias of shape {outputs}, got {bias.shape}")
    if isinstance(node, (float_graph.Linear, Linear)):
        if weight.ndim != 2:
            raise ValueError(f"{where}: expected a weight [outputs, inputs], got shape {weight.shape}")
        return
    positions, places = weight.ndim - 2, (node.stride, node.padding, node.dilation, node.input_dilation)
    if not 1 <= positions <= 3 or any(len(place) != positions for place in places):
        expected = "one to three axes of positions, and one place for each"
        raise ValueError(f"{where}: expected {expected}, got a weight of shape {weight.shape}")
    steps = (*node.stride, *node.dilation, *node.input_dilation)
    if min(*steps, node.groups, *weight.shape[2:]) < 1 or weight.shape[0] % node.groups:
        expected = "strides, dilations and kernels from 1 on, and groups that divide"
        raise ValueError(f"{where}: expected {expected} {weight.shape[0]} outputs")
    if max(*steps, *(abs(end) for pair in node.padding for end in pair)) > LONGEST:
        raise ValueError(f"{where}: a place beyond 2^20")


def table(step: Table, grids: Grids) -> QParams:
    on_grid(step.x, step.x_qparams, grids)
    y, codes = activation(step.y_qparams), step.table
    fits = codes.dtype == np.uint8 and codes.ndim in (1, 2) and codes.shape[-1] == 256 and codes.size > 0
    if not fits or codes.min() < y.qmin or codes.max() > y.qmax:
        raise ValueError(f"expected a table of 256 codes from {y.qmin} to {y.qmax}, got {codes.dtype} {codes.shape}")
    return y


def pair(step: Add | Mul, grids: Grids) -> QParams:
    on_grid(step.a, step.a_qparams, grids)
    on_grid(step.b, step.b_qparams, grids)
    return activation(step.y_qparams)


def concat(step: Concat, grids: Grids) -> QParams:
    if not step.xs or len(step.xs) != len(step.x_qparams):
        raise ValueError(f"expected a grid for each of {len(step.xs)} values")
    for name, grid in zip(step.xs, step.x_qparams):
        on_grid(name, grid, grids)
    return activation(step.y_qparams)


def pool(step: MaxPool | AvgPool, grids: Grids) -> QParams:
    dilation = step.dilation if isinstance(step, MaxPool) else (1,) * len(step.kernel)
    steps = (step.kernel, step.stride, dilation)
    lengths = {len(place) for place in (*steps, step.padding)}
    if not 1 <= len(step.kernel) <= 3 or len(lengths) != 1 or not all(1 <= n <= LONGEST for p in steps for n in p):
        raise ValueError("expected kernel, stride, padding and dilation for one to three axes")
    if any(not 0 <= 2 * p <= d * (k - 1) + 1 for p, k, d in zip(step.padding, step.kernel, dilation)):
        raise ValueError(f"padding: expected at most half of a kernel, got {step.padding}")
    return on_grid(step.x, step.qparams if isinstance(step, AvgPool) else None, grids)


def adaptive(step: AdaptiveAvgPool, grids: Grids) -> QParams:
    if not 1 <= len(step.size) <= 3 or any(n is not None and not 1 <= n <= LONGEST for n in step.size):
        raise ValueError(f"size: expected one to three sizes, got {step.size}")
    return on_grid(step.x, step.qparams, grids)


def mean(step: Mean, grids: Grids) -> QParams:
    if not step.axes or any(not -64 <= axis < 64 for axis in step.axes) or len(set(step.axes)) != len(step.axes):
        raise ValueError(f"axes: expected different axes, got {step.axes}")
    return on_grid(step.x, step.qparams, grids)


def interpolated(step: Bilinear, grids: Grids) -> QParams:
    given = [name for name in ("like", "size", "factors") if getattr(step, name) is not None]
    if len(given) != 1 or (step.exact and step.factors is None):
        raise ValueError(f"expected one of like, size and factors, got {given}")
    numbers = step.size or step.factors or (1, 1)
    if not all(2.0**-20 <= number <= LONGEST for number in numbers):
        raise ValueError(f"expected lengths or factors of at most 2^20, got {numbers}")
    if step.like is not None and grids[step.like] is None:
        raise ValueError(f"takes the lengths of {step.like!r}, which is no codes")
    return on_grid(step.x, step.qparams, grids)


def move(step: Move, grids: Grids) -> QParams:
    if not rearrange.known(step.kind, step.target):
        raise ValueError(f"{step.target!r} does not move codes")
    if not step.args or not isinstance(step.args[0], Ref):
        raise ValueError("expected a value to move as the first argument")
    return on_grid(step.args[0].name, step.qparams, grids)


def quantize(step: Quantize, grids: Grids) -> QParams:
    if grids[step.x] is not None:
        raise ValueError(f"quantizes codes, {step.x!r}")
    return activation(step.qparams)


def dequantize(step: Dequantize, grids: Grids) -> None:
    on_grid(step.x, step.qparams, grids)


def linear_float(step: LinearDynamic | LinearWeight, grids: Grids) -> None:
    weight(step.weight, step.w_qparams, step.bias, dims=(2,))


def embedding(step: Embedding, grids: Grids) -> None:
    entries = len(step.weight)
    weight(step.weight, step.w_qparams, None, dims=(2,))
    padding = step.padding_idx
    if step.bag not in (None, "sum", "mean", "max") or (padding is not None and not 0 <= padding < entries):
        expected = f"a bag of sum, mean or max, and padding below {entries}"
        raise ValueError(f"expected {expected}, got {step.bag!r}, {padding!r}")
    if step.bag is None and (step.offsets or step.weights or step.include_last_offset):
        raise ValueError("offsets and weights belong to bags")


def recurrent(step: Recurrent, grids: Grids) -> None:
    directions, cells = 2 if step.bidirectional else 1, step.cells
    if step.kind not in KINDS or not cells or len(cells) % directions or (step.single and len(cells) != 1):
        expected = f"{directions} cells for each layer of an lstm, gru or rnn"
        raise ValueError(f"expected {expected}, got {len(cells)} of {step.kind!r}")
    size, inputs = cells[0].state_weight.shape[-1], cells[0].input_weight.shape[-1]
    for index, cell in enumerate(cells):
        fits_cell(cell, GATES[step.kind] * size, inputs if index < directions else directions * size, size)


def fits_cell(cell: Cell, outputs: int, inputs: int, size: int) -> None:
    for codes, grid, bias, columns in (
        (cell.input_weight, cell.input_qparams, cell.input_bias, inputs),
        (cell.state_weight, cell.state_qparams, cell.state_bias, size),
    ):
        weight(codes, grid, bias, dims=(2,))
        if codes.shape != (outputs, columns):
            raise ValueError(f"expected a weight of shape {(outputs, columns)}, got {codes.shape}")


def relu(step: Relu, grids: Grids) -> QParams:
    return on_grid(step.x, step.qparams, grids)


CHECKS: dict[type, Callable[[Any, Grids], QParams | None]] = {
    Quantize: quantize, Dequantize: dequantize, Linear: layer, Conv: layer, Table: table, Relu: relu, Add: pair,
    Mul: pair, Concat: concat, MaxPool: pool, AvgPool: pool, AdaptiveAvgPool: adaptive, Mean: mean,
    Bilinear: interpolated, Move: move,
    LinearDynamic: linear_float, LinearWeight: linear_float, Embedding: embedding, Recurrent: recurrent,
}  # fmt: skip
