"""How many multiply-accumulates the parts of a model take, counted while it runs, and which of them became int8
(SIZ-REPORT, SIZ-WARN)."""

import contextlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from quantspec.capture import calls, copies, tracer
from quantspec.ir import float_graph, float_run
from quantspec.ir.float_graph import FloatGraph
from quantspec.ir.program import Call, Callables, Embedding, Layer, Program, Recurrent
from quantspec.module.report import EXCLUDED, FLOAT, INT8, PYTHON, Report, Work, report
from quantspec.module.size import macs as macs_of
from quantspec.surroundings import level_of_caller

from .attending import attends
from .exclude import excluded

ENOUGH = 0.9
PRODUCT = "a product of two computed values has no integer form"
UNKNOWN = "it is not a layer of torch.nn with torch.nn's own forward"

CONVOLUTION = "a convolution, which dynamic quantization leaves in float"
QUANTIZE = "quantize() with calibration data quantizes convolutions"
NO_PART = "no part with a layer could be captured"

Macs = Mapping[str, int]
Graphs = Mapping[str, Mapping[calls.CallPattern, FloatGraph]]
Programs = Mapping[str, Mapping[calls.CallPattern, Program]]


@dataclass(frozen=True)
class PartsWork:
    """The work of each node of the parts of a model, and of the Python in each module around them."""

    parts: Mapping[tuple[str, calls.CallPattern], Macs] = field(default_factory=dict)
    python: Macs = field(default_factory=dict)


class Products(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types there
    """Counts the multiply-accumulates of what torch computes while it is entered (SIZ-MACS)."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # nor there
        self.macs = 0

    # Torch would import its compiler, which takes two seconds, to tell it what to leave out. It asks while the class is
    # made, before mutmut has what it puts around methods.
    _should_skip_dynamo = classmethod(lambda cls: False)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if (count := COUNTS.get(func._schema.name)) is not None:
            self.macs += count(args, result)
        return result

    def take(self) -> int:
        """How many there were since this was asked last."""
        macs, self.macs = self.macs, 0
        return macs


def matrices(first: int) -> Callable[[Any, Any], int]:
    """The products of matrices; ``first``: which argument is the first of them."""
    return lambda args, result: result.numel() * args[first].shape[-1]


def convolution(args: Any, result: Any) -> int:
    x, weight, transposed = args[0], args[1], args[6]
    per_position = weight.numel() // weight.shape[0]
    return int((x if transposed else result).numel() * per_position)


def attention(args: Any, result: Any) -> int:
    query, key, value = args[:3]
    rows = query.numel() // query.shape[-1]
    return int(rows * key.shape[-2] * (query.shape[-1] + value.shape[-1]))


def recurrent(args: Any, result: Any) -> int:
    """A layer of an LSTM in one direction, for all steps."""
    x, *weights = args[:3]
    return int(x.numel() // x.shape[-1] * sum(weight.numel() for weight in weights))


def encoder_layer(*weights: int) -> Callable[[Any, Any], int]:
    """torch's own kernel of a whole encoder layer, or of its attention; ``weights``: which of its arguments are such.
    """

    def count(args: Any, result: Any) -> int:
        # With a mask of padding torch makes a list of sequences of the batch, which has no shape.
        sizes = args[0]._nested_tensor_size().tolist() if args[0].is_nested else [args[0].shape[1:]] * len(args[0])
        own = sum(args[place].numel() for place in weights)
        return int(sum(length * (own + 2 * length * features) for length, features in sizes))

    return count


COUNTS: dict[str, Callable[[Any, Any], int]] = {
    "aten::mm": matrices(0), "aten::bmm": matrices(0), "aten::addmm": matrices(1), "aten::baddbmm": matrices(1),
    "aten::mv": matrices(0), "aten::dot": lambda args, result: int(args[0].numel()),
    "aten::convolution": convolution, "aten::mkldnn_rnn_layer": recurrent,
    "aten::_scaled_dot_product_flash_attention_for_cpu": attention,
    "aten::_transformer_encoder_layer_fwd": encoder_layer(3, 5, 14, 16),
    "aten::_native_multi_head_attention": encoder_layer(5, 7),
}  # fmt: skip


class PerNode:
    """The multiply-accumulates of each node of a float graph, which runs with ``compute``. What a layer takes follows
    from shapes, and operations take none: torch is watched at calls alone, unless it is ``watched`` already."""

    def __init__(self, watched: Products | None = None):
        self.products, self.watch = watched or Products(), watched is None
        self.macs = Counter[str]()

    def compute(self, node: float_graph.Node, values: dict[str, Any], callables: Callables) -> Any:
        """The value of a node."""
        if not self.watch or isinstance(node, Call):
            with self.products if self.watch else contextlib.nullcontext():
                value = float_run.run_node(node, values, callables)
            self.macs[node.name] += self.products.take()
        else:
            value = float_run.run_node(node, values, callables)
            if isinstance(node, float_graph.Layer | float_graph.Recurrent):
                shape = values[node.x].data.shape  # a packed sequence has rows, too
                self.macs[node.name] += macs_of(node, shape, getattr(value, "shape", ()))
        return value


def of_graph(graph: FloatGraph, batch: Any) -> Macs:
    """Of each node of a graph, on a batch."""
    nodes = PerNode()
    with copies.undisturbed():
        float_run.run(graph, batch, compute=nodes.compute)
    return nodes.macs


def of_parts(model: nn.Module, graphs: Graphs, args: Any, kwargs: Any) -> PartsWork:
    """Of the parts of a model of ours and the Python around them, on one batch."""
    twin = copies.run_copy(model)
    parts: dict[tuple[str, calls.CallPattern], PerNode] = {}
    python = Counter[str]()
    places = [""]

    def watched(path: str, forward: Callable[..., Any], products: Products) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            python[places[-1]] += products.take()
            if path in graphs:
                with contextlib.suppress(Exception):  # other sizes, of which the model makes what it will
                    pattern, tensors = calls.call_of(forward, args, kwargs)
                    if (graph := graphs[path].get(pattern)) is not None:
                        nodes = parts.setdefault((path, pattern), PerNode(products))
                        return float_run.run(graph, tuple(tensors), compute=nodes.compute)
            places.append(path)
            try:
                return forward(*args, **kwargs)
            finally:
                python[places.pop()] += products.take()

        run.__wrapped__ = forward  # type: ignore[attr-defined]  # so that its signature is the model's own
        return run

    with copies.undisturbed(), Products() as products:
        for path, module in twin.named_modules():
            module.__dict__["forward"] = watched(path, module.forward, products)
        try:
            twin(*copies.cloned(args), **copies.cloned(kwargs))
        except Exception as error:  # whatever a model raises where its modules are not called directly
            tracer.refuse_compiled(error)
            if graphs:
                raise
            products.take()
            with contextlib.suppress(Exception):  # what torch refuses to watch, of which nothing is known then
                copies.run_copy(model)(*copies.cloned(args), **copies.cloned(kwargs))
            python = Counter({"": products.take()})
    return PartsWork({key: nodes.macs for key, nodes in parts.items()}, python)


def of_weights(graph: FloatGraph) -> Macs:
    """Of each layer of a graph, for one row of its input."""
    return {node.name: size for node in graph.nodes if (size := weights_of(node))}


def weights_of(node: float_graph.Node | Layer) -> int:
    """The products that a layer of a float graph or of a network computes for one row; looking rows up takes none."""
    if isinstance(node, float_graph.Recurrent | Recurrent):
        return sum(cell.input_weight.size + cell.state_weight.size for cell in node.cells)
    if isinstance(node, float_graph.Layer | Layer) and not isinstance(node, Embedding):
        return node.weight.size
    return 0


def rows_of(graph: FloatGraph, program: Program, macs: Macs) -> list[Work]:
    """The rows for a graph and the network that it became."""
    steps = {step.name: step for step in program.steps}
    rows = []
    for node in graph.nodes:
        step, layer = steps.get(node.name), getattr(node, "layer", "")
        path = layer or graph.paths.get(node.name, "")
        if isinstance(step, Layer) or attends(node, steps):
            rows.append(Work(path, macs.get(node.name, 0), INT8, ""))
        else:
            reason = step.reason if isinstance(step, Call) else ""
            rows.append(Work(path, macs.get(node.name, 0), FLOAT, reason or PRODUCT))
    return rows


def rows_of_python(macs: Macs, stops: Sequence[tracer.Stop], exclude: Sequence[str]) -> list[Work]:
    """The rows for what modules compute in Python. The reason is what stopped the capture there, or around it."""
    reasons = {stop.path: stop.reason for stop in stops}

    def reason(path: str) -> str:
        if excluded(path, exclude):
            return EXCLUDED
        around = path
        while around not in reasons and around:
            around = around.rpartition(".")[0]
        return reasons.get(around, PRODUCT)

    return [Work(path, count, PYTHON, reason(path)) for path, count in macs.items()]


def report_of_network(graph: FloatGraph, program: Program, macs: Macs, *, counted: bool = True) -> Report:
    """The report of a model that is one network."""
    return report(rows_of(graph, program, macs), counted=counted)


def report_of_parts(
    graphs: Graphs, programs: Programs, work: PartsWork, stops: Sequence[tracer.Stop], exclude: Sequence[str]
) -> Report:
    """The report of a model of which parts are networks; a part without a program stays Python."""
    python, rows = Counter(work.python), []
    for (path, pattern), macs in work.parts.items():
        if (program := programs.get(path, {}).get(pattern)) is None:
            python[path] += sum(macs.values())
        else:
            rows += rows_of(graphs[path][pattern], program, macs)
    return report(rows + rows_of_python(python, stops, exclude), counted=True)


def report_of_layers(
    model: nn.Module, networks: Mapping[str, Program], stops: Sequence[tracer.Stop], exclude: Sequence[str]
) -> Report:
    """The report of a model whose layers were replaced where they are, without data."""
    rows, reasons = [], {stop.path: stop.reason for stop in stops}
    for path, module in model.named_modules():
        if path in networks:
            rows.append(Work(path, sum(map(weights_of, networks[path].layers)), INT8, ""))
        elif not isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            # What begins with an axis of length 1 is a token or a position, which is added.
            own = [p for p in module._parameters.values() if p is not None and p.ndim >= 2 and p.shape[0] > 1]
            reason = EXCLUDED if excluded(path, exclude) else reasons.get(path, UNKNOWN)
            rows.append(Work(path, sum(p.numel() for p in own), PYTHON, reason))
    return report(rows, counted=False)


def has_layers(graph: FloatGraph) -> bool:
    """Whether a graph has a layer that could be in int8."""
    kinds = float_graph.Layer | float_graph.Embedding | float_graph.Recurrent
    return any(isinstance(node, kinds) for node in graph.nodes)


def nothing_in(graph: FloatGraph) -> str:
    """Why nothing of a graph is in int8, where that is so."""
    if has_layers(graph):
        return "every layer stayed in float"
    if any(isinstance(node, Call) and node.reason == EXCLUDED for node in graph.nodes):
        return "all of its layers are excluded"
    return "it has no layer with an integer form"


def warn_of_float(report: Report | None, programs: Iterable[Program], nothing: str) -> None:
    """Warns when no layer of the networks is in int8 (STA-NOTHING), ``nothing`` saying why, or when less than 90 % of
    the work is (SIZ-WARN)."""
    if not any(program.layers for program in programs):
        if report is not None and has_convolutions(report):
            nothing = f"dynamic quantization leaves convolutions in float ({QUANTIZE})"
        warnings.warn(f"nothing was quantized: {nothing}; print the result to see why", stacklevel=level_of_caller())
    elif report is not None and report.share < ENOUGH:
        warnings.warn(f"{report.sentence()}; {'; '.join(advice(report))}", stacklevel=level_of_caller())


def has_convolutions(report: Report) -> bool:
    """Whether convolutions stayed in float because quantization is dynamic."""
    return any(CONVOLUTION in row.reason for row in report.rest)


def advice(report: Report) -> list[str]:
    """What could be done for more of the work in int8."""
    texts = ["q.report lists all", "use exclude= for what should stay in float"]
    if has_convolutions(report):
        texts.append(QUANTIZE)
    if any(row.place == PYTHON for row in report.rest):
        texts.append("rewrite that Python" if report.counted else "pass a batch as example= to capture more")
    return texts
