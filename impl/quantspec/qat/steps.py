"""What each step of a Program computes in training: codes by the chapters' own functions, and the gradient of the
float operation that they stand for.

A value in codes is held as codes less the zero point (``functions``); where activations are still float, as the real
values themselves, and grids are None.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from quantspec.capture.acting import MARK
from quantspec.engines import reference_attention, reference_embedding
from quantspec.ir import float_graph, program, rearrange
from quantspec.ir.float_run import FloatLayer, call_float, check_fits
from quantspec.ir.program import Step
from quantspec.ir.traverse import refs, replace_refs
from quantspec.numerics import bilinear, integer
from quantspec.numerics.affine import QParams
from quantspec.numerics.dialects import operations
from quantspec.ptq import conversion

from .functions import (
    Layer,
    LayerPlan,
    Quantized,
    QuantizedWeight,
    Real,
    Replaced,
    Snapped,
    apply,
    as_codes,
    of_codes,
)
from .grids import Grid, LayerCodes, layer_codes, quantized_and_ends, weight_scale
from .live import called
from .recurrent import recurrent
from .run import Run
from .weights import layer_in_float


def real(run: Run, step: Step, value: torch.Tensor, field: str) -> torch.Tensor:
    """The real values of a value in codes, on the grid in a field of a step."""
    grid = run.grid(step, field)
    if grid is None:
        return value
    made: torch.Tensor = apply(Real, value, grid.scale)
    return made


def codes_and_grid(run: Run, step: Step, value: torch.Tensor, field: str) -> tuple[np.ndarray, QParams]:
    """The codes themselves of a value in codes, and the grid in a field of a step, which they are on."""
    grid = run.grid(step, field)
    assert grid is not None
    return as_codes(value, grid), grid.qparams


def observe(run: Run, place: str, value: torch.Tensor) -> None:
    """Notes the ends of real values, where they are those of a place that is to be observed."""
    if run.sees(place) and value.numel():
        run.observe(place, *(end.item() for end in value.detach().aminmax()))


def snapped(
    run: Run, step: Step, place: str, surrogate: torch.Tensor, codes: Callable[[Grid], np.ndarray]
) -> torch.Tensor:
    """The codes of a step that has a grid of its own, in ``y_qparams``, with the gradient of ``surrogate``, whose range
    is observed. What reads values between codes rounds those of ``surrogate``."""
    observe(run, place, surrogate)
    grid = run.grid(step, "y_qparams")
    if grid is None:
        return surrogate
    if run.is_loose(step):
        quantized: torch.Tensor = apply(Quantized, surrogate, run.learned(step, "y_qparams"), grid, run.options.dialect)
        return quantized
    made: torch.Tensor = apply(Snapped, surrogate, run.learned(step, "y_qparams"), of_codes(codes(grid), grid), grid)
    return made


def node_name(step: Step) -> str:
    """The node of the float graph that a step computes."""
    return step.name.removesuffix(".codes")


def number(value: Any) -> torch.Tensor:
    """A float32 tensor of what a float operation gave, as under autocast it may be another."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"batch: expected a tensor, got {type(value).__name__}")
    return value.to(torch.float32) if value.is_floating_point() else value


def quantize(run: Run, step: program.Quantize) -> torch.Tensor:
    x = number(run.values[step.x])
    if x.dtype != torch.float32:
        raise TypeError(f"{step.x}: expected float32 values, got {x.dtype}")
    own, grid, learned = node_name(step), run.grid(step, "qparams"), run.learned(step, "qparams")
    if grid is not None and learned is None and not x.requires_grad:
        codes, ends = quantized_and_ends(x, grid, run.options.dialect)
        if run.sees(own) and x.numel():
            run.observe(own, *ends)
        return codes
    observe(run, own, x)
    if grid is None:
        return x
    made: torch.Tensor = apply(Quantized, x, learned, grid, run.options.dialect)
    return made


def dequantize(run: Run, step: program.Dequantize) -> torch.Tensor:
    return real(run, step, run.values[step.x], "qparams")


def layer(run: Run, step: program.Linear | program.Conv) -> torch.Tensor:
    x = run.values[step.x]
    check_fits(step, x.shape)
    alone = isinstance(step, program.Conv) and x.ndim == step.weight.ndim - 1
    made = batched_layer(run, step, x.unsqueeze(0) if alone else x)
    return made.squeeze(0) if alone else made


def batched_layer(run: Run, step: program.Linear | program.Conv, x: torch.Tensor) -> torch.Tensor:
    """A layer on a batch of rows or images."""
    network, x_grid = run.network, run.grid(step, "x_qparams")
    source = network.layers[step.name]
    places = None
    if isinstance(step, program.Conv):
        x = spread(x, step.input_dilation, step.padding)
        places = step.stride, step.dilation, step.groups
    follows = run.by_batches and source.follows_batches
    seen = real(run, step, x, "x_qparams") if follows else None
    weight, bias = source.folded(seen, lambda x, w, b: in_float(x, w, b, places))
    if x_grid is None:
        scale, learned = network.weight_scales(step.name, weight)
        codes = apply(QuantizedWeight, weight, learned, scale, run.options)
        y = in_float(x, apply(Real, codes, scale.view(-1, *[1] * (weight.ndim - 1))), bias, places)
        y = y.relu() if step.relu else y
        observe(run, step.name, y)
        return y
    y_grid = None if step.y_qparams is None else run.grid(step, "y_qparams")
    coded, learned = network.layer_codes(step.name, weight, bias, x_grid, y_grid)
    if bias is not None and coded.tight:
        raised = with_room(run, step, x_grid, y_grid, weight.detach(), bias.detach(), coded)
        if raised is not None:
            # A scale that is its bias's is no function of what was learned.
            learned = None if learned is None else torch.where(raised.scale == coded.scale, learned, raised.scale)
            coded = raised
    given = weight
    if learned is not None:
        given = apply(QuantizedWeight, weight, learned, coded.scale, run.options, coded.codes)
    plan = LayerPlan(
        step.layer, x_grid, y_grid, step.relu, places, run.options.dialect, coded, run.sees(step.name),
        run.is_loose(step),
    )  # fmt: skip
    y_learned = None if y_grid is None else run.learned(step, "y_qparams")
    result: torch.Tensor = apply(Layer, x, given, bias, y_learned, plan)
    if plan.ends is not None:
        run.observe(step.name, *plan.ends)
    return result.relu() if step.relu and y_grid is None else result


def with_room(
    run: Run, step: program.Linear | program.Conv, x: Grid, y: Grid | None, weight: torch.Tensor, bias: torch.Tensor,
    coded: LayerCodes,
) -> LayerCodes | None:  # fmt: skip
    """A layer on scales that are large enough for its bias (STA-WEIGHT-BIAS); None where they are already."""
    grid = replace(step.w_qparams, scale=coded.scale.numpy())
    raised = conversion.grid_with_room(weight.numpy(), bias.numpy(), grid, x.qparams)
    if raised is grid:
        return None
    return layer_codes(weight, bias, run.options, True, x, y, torch.from_numpy(raised.scale.copy()))


def in_float(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None,
    places: tuple[tuple[int, ...], tuple[int, ...], int] | None,
) -> torch.Tensor:
    """A layer on real values, padded where it is a convolution."""
    if places is None:
        return F.linear(x, weight, bias)
    stride, dilation, groups = places
    convolve = (F.conv1d, F.conv2d, F.conv3d)[weight.ndim - 3]
    result: torch.Tensor = convolve(x, weight, bias, stride, 0, dilation, groups)
    return result


def spread(
    x: torch.Tensor, input_dilation: Sequence[int], padding: Sequence[tuple[int, int]]
) -> torch.Tensor:
    """What the windows of a convolution see: zeros between and around the inputs."""
    if any(d > 1 for d in input_dilation):
        sizes = [max((n - 1) * d + 1, 0) for n, d in zip(x.shape[2:], input_dilation)]
        wide = x.new_zeros(*x.shape[:2], *sizes)
        wide[(slice(None), slice(None), *(slice(None, None, d) for d in input_dilation))] = x
        x = wide
    if any(end for pair in padding for end in pair):
        x = F.pad(x, [end for pair in reversed(padding) for end in pair])
    return x


def table(run: Run, step: program.Table) -> torch.Tensor:
    node = run.network.placement.nodes[node_name(step)]
    assert isinstance(node, float_graph.Elementwise)
    x = run.values[step.x]
    values = real(run, step, x, "x_qparams")
    y = number(call_float(node.call, run.network.callables, lambda name: values))

    def codes_on(grid: Grid) -> np.ndarray:
        x_q, x_grid = codes_and_grid(run, step, x, "x_qparams")
        rows = conversion.table(node, run.network.callables, x_grid, grid.qparams, run.options.dialect)
        codes: np.ndarray = integer.look_up(rows, x_q)
        return codes

    return snapped(run, step, node.name, y, codes_on)


def relu(run: Run, step: program.Relu) -> torch.Tensor:
    value: torch.Tensor = run.values[step.x].relu()
    return value


def pair_codes(
    run: Run, step: program.Add | program.Mul
) -> tuple[np.ndarray, QParams, np.ndarray, QParams]:
    """Both values as codes of one shape, each with its grid."""
    a, b = torch.broadcast_tensors(run.values[step.a], run.values[step.b])  # type: ignore[no-untyped-call]
    return *codes_and_grid(run, step, a, "a_qparams"), *codes_and_grid(run, step, b, "b_qparams")


def added(run: Run, step: program.Add) -> torch.Tensor:
    y = real(run, step, run.values[step.a], "a_qparams") + real(run, step, run.values[step.b], "b_qparams")

    def codes(grid: Grid) -> np.ndarray:
        a_q, a, b_q, b = pair_codes(run, step)
        return operations.add(run.options.dialect, a_q, a, b_q, b, grid.qparams, relu=step.relu)

    return snapped(run, step, node_name(step), y.relu() if step.relu else y, codes)


def multiplied(run: Run, step: program.Mul) -> torch.Tensor:
    y = real(run, step, run.values[step.a], "a_qparams") * real(run, step, run.values[step.b], "b_qparams")

    def codes(grid: Grid) -> np.ndarray:
        a_q, a, b_q, b = pair_codes(run, step)
        return operations.mul(run.options.dialect, a_q, a, b_q, b, grid.qparams)

    return snapped(run, step, node_name(step), y, codes)


def joined(run: Run, step: program.Concat) -> torch.Tensor:
    fields = [f"x_qparams.{index}" for index in range(len(step.xs))]
    values = [run.values[x] for x in step.xs]
    y = torch.cat([real(run, step, value, field) for value, field in zip(values, fields)], step.axis)

    def codes(grid: Grid) -> np.ndarray:
        parts = [codes_and_grid(run, step, value, field) for value, field in zip(values, fields)]
        return operations.concat(run.options.dialect, parts, grid.qparams, axis=step.axis)

    return snapped(run, step, node_name(step), y, codes)


POOLS = (F.max_pool1d, F.max_pool2d, F.max_pool3d)


def max_pool(run: Run, step: program.MaxPool) -> torch.Tensor:
    pool = POOLS[len(step.kernel) - 1]
    value: torch.Tensor = pool(
        run.values[step.x], step.kernel, step.stride, step.padding, step.dilation, step.ceil_mode
    )
    return value


def pooled(run: Run, step: program.AvgPool | program.AdaptiveAvgPool | program.Mean) -> torch.Tensor:
    """Averages, which keep the grid of their input."""
    node = run.network.placement.nodes[node_name(step)]
    assert isinstance(node, float_graph.Pool)
    x, grid = run.values[step.x], run.grid(step, "qparams")
    y: torch.Tensor = call_float(node.call, run.network.callables, lambda name: x)
    if grid is None or run.is_loose(step):
        return y
    dialect, codes = run.options.dialect, as_codes(x, grid)
    if isinstance(step, program.AvgPool):
        places = step.kernel, step.stride, step.padding, step.ceil_mode, step.count_include_pad
        averages_q = operations.avg_pool(dialect, codes, grid.qparams, *places)
    elif isinstance(step, program.AdaptiveAvgPool):
        averages_q = operations.adaptive_avg_pool(dialect, codes, grid.qparams, step.size)
    else:
        averages_q = operations.mean(dialect, codes, grid.qparams, step.axes, keepdim=step.keepdim)
    averages: torch.Tensor = apply(Replaced, y, of_codes(averages_q, grid))
    return averages


def interpolated(run: Run, step: program.Bilinear) -> torch.Tensor:
    """Values between neighbours, which keep the grid of their input."""
    x, grid = run.values[step.x], run.grid(step, "qparams")
    size = step.size if step.like is None else tuple(run.values[step.like].shape[-2:])
    y = F.interpolate(
        x, size, step.factors, "bilinear", step.align_corners,
        recompute_scale_factor=None if step.factors is None else not step.exact,
    )  # fmt: skip
    if grid is None or run.is_loose(step):
        return y
    values_q = bilinear.interpolate(
        as_codes(x, grid), grid.qparams, size, step.factors, exact=step.exact, align_corners=step.align_corners
    )
    result: torch.Tensor = apply(Replaced, y, of_codes(values_q, grid))
    return result


def moved(run: Run, step: program.Move) -> Any:
    """What is padded on is a real 0, or the code of it less the zero point, which is 0, too."""
    if step.target == MARK:
        return acted_on(run, step)
    args, kwargs = (replace_refs(tree, run.values.__getitem__) for tree in (step.args, step.kwargs))
    if step.kind == "method":
        return getattr(args[0], step.target)(*args[1:], **kwargs)
    return rearrange.FUNCTIONS[step.target](*args, **kwargs)


def acted_on(run: Run, step: program.Move | program.Call) -> Any:
    """A value with what acts on it in training mode; codes as what they mean, between codes from then on."""
    value, *others = (run.values[name] for name in refs(step.args))
    if (act := run.acting(step)) is None:
        return value
    if isinstance(step, program.Call) or (grid := run.grid(step, "qparams")) is None:
        return run.acted(act, [value, *others])
    before = apply(Real, value, grid.scale)
    acted: torch.Tensor = run.acted(act, [before, *others])
    if torch.equal(acted, before):
        return value  # it did nothing: still codes
    run.loose.add(step.name)
    return apply(Real, acted, 1 / grid.scale)


def embedding(run: Run, step: program.Embedding) -> torch.Tensor:
    weight, index = run.network.value(run.network.tables[step.name]), run.values[step.x]
    scale = weight_scale(weight.detach(), run.options, True)  # one for each row
    codes = apply(QuantizedWeight, weight, None, scale, run.options)
    rows = apply(Real, codes, scale.view(-1, 1))
    if step.bag is None:
        return F.embedding(index, rows, step.padding_idx)
    offsets, weights = (None if name is None else run.values[name] for name in (step.offsets, step.weights))
    surrogate = F.embedding_bag(
        index, rows, offsets, mode=step.bag, per_sample_weights=weights,
        include_last_offset=step.include_last_offset, padding_idx=step.padding_idx,
    )  # fmt: skip
    table, scales = codes.detach().numpy(), scale.detach().numpy()
    value = reference_embedding.joined(
        step, reference_embedding.bags_of(step, run.values), lambda index: (table[index], scales[index])
    )
    exact: torch.Tensor = apply(Replaced, surrogate, value)
    return exact


def recurrent_step(run: Run, step: program.Recurrent) -> Any:
    state = replace_refs(step.state, run.values.__getitem__)
    cells = [
        {field: None if where is None else run.network.value(where) for field, where in cell.items()}
        for cell in run.network.cells[step.name]
    ]
    own = dict(run.network.model.named_modules()).get(step.layer)
    dropout = own.dropout if isinstance(own, nn.RNNBase) and run.training and own.training else 0.0
    return recurrent(step, run.values[step.x], state, cells, run.options, dropout)


def call(run: Run, step: program.Call) -> Any:
    if step.target == MARK:
        return acted_on(run, step)
    if (act := run.acting(step)) is not None:
        return run.acted(act, [run.values[name] for name in refs((step.args, step.kwargs))])
    what, placement = run.network.callables.get((step.kind, step.target)), run.network.placement
    if isinstance(what, FloatLayer) and (name := step.name.removesuffix(".layer")) in run.network.layers:
        source, x = run.network.layers[name], number(run.values[step.args[0].name])
        if (read := placement.sources[source.node.x]) not in run.seen:
            observe(run, read, x)
        seen = x if run.by_batches else None
        weight, bias = source.folded(seen, lambda x, w, b: layer_in_float(source.node, x, w, b))
        value = layer_in_float(source.node, x, weight, bias)
    else:
        value = called(step, run.network.callables, run.values)
    if step.name in placement.coded:  # but for the accumulators of a layer before it, or its own (QAT-OVERFLOW)
        observe(run, step.name, value)
    return value


def attended(run: Run, step: program.Attention) -> Any:
    """What the engines compute, with the gradient of attention in float; in float where weights are dropped."""
    value = call(run, step)
    if run.acting(step) is not None or (exact := reference_attention.attended(step, run.values.__getitem__)) is None:
        return value
    if isinstance(value, tuple):
        return apply(Replaced, value[0], exact[0]), exact[1]
    return apply(Replaced, value, exact)


# Of all kinds that a static network has; ``LinearDynamic`` and ``LinearWeight`` are in dynamic ones only.
STEPS: dict[type, Callable[[Any, Any], Any]] = {
    program.Call: call, program.Quantize: quantize, program.Dequantize: dequantize, program.Linear: layer,
    program.Conv: layer, program.Table: table, program.Relu: relu, program.Add: added, program.Mul: multiplied,
    program.Concat: joined, program.MaxPool: max_pool, program.AvgPool: pooled, program.AdaptiveAvgPool: pooled,
    program.Mean: pooled, program.Bilinear: interpolated, program.Move: moved, program.Embedding: embedding,
    program.Recurrent: recurrent_step, program.Attention: attended,
}  # fmt: skip
