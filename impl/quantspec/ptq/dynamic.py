"""Dynamic quantization: weights beforehand, activations by the range they arrive with (chapter 6)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from quantspec.capture import calls, copies, kept, parts, tracer
from quantspec.capture.builder import hooked
from quantspec.errors import UnsupportedError, near_names, shown
from quantspec.ir import float_graph, float_run, program
from quantspec.ir.float_graph import FloatGraph
from quantspec.ir.program import Call, LinearDynamic, LinearWeight, Program
from quantspec.module.islands import QuantizedModel
from quantspec.module.module import QuantizedModule
from quantspec.numerics.affine import QParams
from quantspec.numerics.integer import check_overflow
from quantspec.surroundings import usual

from . import work
from .attending import with_attention
from .captured import gives_optional, named
from .conversion import Weights, embedding_step, recurrent_step, with_own_biases
from .exclude import listed, without
from .options import Options, checked

STAYS_FLOAT = "dynamic quantization keeps activations in float"
# Codes up to 255 steps from their zero point.
COARSEST = QParams(np.ones((), np.float32), np.zeros((), np.int32), 0, 255)
ACTIVATIONS = ("per_tensor", "per_token", None)


@near_names
@usual
def quantize_dynamic(
    model: nn.Module,
    *,
    per_channel: bool = True,
    reduce_range: bool | None = None,
    dialect: str = "onnx",
    bits: int = 8,
    activations: str | None = "per_tensor",
    exclude: str | Sequence[str] = (),
    engine: str = "auto",
    example: Any = None,
) -> QuantizedModule | QuantizedModel:
    """Quantizes the weights of a model. Activations are quantized when they arrive, so no data is needed (chapter 6).

    The model is not modified. A layer whose accumulators could overflow stays in float (STA-OVERFLOW).

    Args:
        model: a float32 model on the CPU in evaluation mode.
        per_channel: whether each output channel of a weight has its own scale.
        reduce_range: whether activations have one bit less (STA-REDUCE). None: where accumulators of the dialect could
            saturate otherwise.
        dialect: the rounding and arithmetic to follow (chapter 10).
        bits: bits of the codes of weights, 2 to 8.
        activations: ``per_tensor``: one range for the whole input of a layer; ``per_token``: one for each row
            (DYN-ROWS); None: only weights are quantized (DYN-WEIGHT-ONLY). Recurrent layers have the ranges of
            DYN-RECURRENT with both, and stay in float with None.
        exclude: paths of modules, or shell patterns of paths, that stay in float with everything inside them.
        engine: what runs the result: ``auto``, ``compiled``, ``torch`` or ``reference``.
        example: a batch in the form that ``quantize`` takes. With one, the largest parts that can be captured become
            one network each (DYN-EXAMPLE). Without, layers are replaced where they are (DYN-LAYERS), except in models
            that consist of torch.nn's own modules only.

    Raises:
        TypeError: for arguments of a wrong type and unknown options.
        ValueError: for unknown names, and a model in training mode or not in float32.
    """
    if not (activations is None or isinstance(activations, str) and activations in ACTIVATIONS):
        raise ValueError(f"activations: expected {', '.join(map(repr, ACTIVATIONS))}, got {shown(activations)}")
    options = checked(per_channel=per_channel, reduce_range=reduce_range, dialect=dialect, bits=bits, engine=engine)
    tracer.check_model(model)
    own = copies.own_copy(copies.inside(model), share=True)
    quantizer = Quantizer(own, exclude, options, activations)
    if example is not None:
        return quantizer.by_example(example)
    if all(torchs(module) for module in own.modules()):
        try:
            return quantizer.whole(tracer.trace(own).graph)
        except UnsupportedError:  # its layers are what is left
            pass
    return quantizer.layers()


def torchs(module: nn.Module) -> bool:
    """Whether a module is one of torch.nn, without anything of the user's in it."""
    return type(module).__module__.startswith("torch.nn.modules") and not hooked(module)


def has_matrices(model: nn.Module) -> bool:
    """Whether a model has a weight that could be one of a linear layer, a table or a recurrent network."""
    others = (module for module in model.modules() if not isinstance(module, nn.modules.conv._ConvNd))
    return any(parameter.ndim >= 2 for module in others for parameter in module.parameters(recurse=False))


class Quantizer:
    """Makes networks of graphs of a model of ours."""

    def __init__(self, model: nn.Module, exclude: str | Sequence[str], options: Options, activations: str | None):
        self.model, self.exclude, self.options, self.activations = model, listed(exclude), options, activations
        self.weights = Weights(options)

    def without(self, graph: FloatGraph) -> FloatGraph:
        return without(graph, self.model, self.exclude)

    def program(self, graph: FloatGraph) -> Program:
        """The network of a graph."""
        steps: list[program.Step] = []
        callables = dict(graph.callables)
        for node in graph.nodes:
            if isinstance(node, Call):
                steps.append(node)
                continue
            quantized = step(node, self.weights, self.options, self.activations)
            if isinstance(quantized, str):
                in_float, called = float_step(node, quantized)
                steps += in_float
                callables |= called
            else:
                steps.append(quantized)
        dialect = self.options.dialect.name
        network = Program(dialect, graph.inputs, graph.defaults, tuple(steps), graph.output, callables)
        return with_own_biases(network if self.activations is None else with_attention(network))

    def whole(self, captured: FloatGraph) -> QuantizedModule:
        """The model, of which all is torch.nn's own."""
        graph = self.without(captured)
        network = self.program(graph)
        report = work.report_of_network(graph, network, work.of_weights(captured), counted=False)
        work.warn_of_float(report, [network], work.nothing_in(graph))
        return QuantizedModule(network, self.options.engine, report, own=True)

    def by_example(self, example: Any) -> QuantizedModule | QuantizedModel:
        """The whole model, or its largest parts, compared with what it does on a batch."""
        args, kwargs = calls.dense(*calls.arguments(self.model.forward, parts.as_given(self.model, example)))
        with parts.computing("example"):
            parts.expected(self.model, args, kwargs)
        try:
            capture = tracer.trace(self.model)
        except UnsupportedError:
            capture = None
        if capture is not None and not capture.stops and not gives_optional(capture.graph, args, kwargs):
            batch = named(capture.graph.inputs, args, kwargs)
            if parts.whole_differs(self.model, capture.graph, batch, args, kwargs) is None:
                graph = self.without(capture.graph)
                network = self.program(graph)
                report = work.report_of_network(graph, network, work.of_graph(graph, copies.cloned(batch)))
                work.warn_of_float(report, [network], work.nothing_in(graph))
                return QuantizedModule(network, self.options.engine, report, own=True)
        self.model = kept.called_once(self.model, args, kwargs)
        found = parts.find(self.model, args, kwargs, self.worth, worth=has_matrices)
        programs = {
            path: {pattern: self.program(graph) for pattern, graph in patterns.items()}
            for path, patterns in found.graphs.items()
        }
        counted = work.of_parts(self.model, found.graphs, args, kwargs)
        reasons = [*found.stops, *convolutions(self.model)]
        report = work.report_of_parts(found.graphs, programs, counted, reasons, self.exclude)
        work.warn_of_float(report, [p for patterns in programs.values() for p in patterns.values()], work.NO_PART)
        networks = {
            path: {pattern: QuantizedModule(program, self.options.engine) for pattern, program in patterns.items()}
            for path, patterns in programs.items()
        }
        return QuantizedModel(copies.own_copy(self.model), networks, {}, tuple(found.stops), report)

    def worth(self, graph: FloatGraph) -> FloatGraph | None:
        """The graph to use of one captured; None where no layer of it is to be quantized."""
        kept = self.without(graph)
        nodes = (node for node in kept.nodes if not isinstance(node, Call))
        quantized = (step(node, self.weights, self.options, self.activations) for node in nodes)
        return kept if any(isinstance(s, program.Layer) for s in quantized) else None

    def layers(self) -> QuantizedModel:
        """The model with its layers replaced where they are."""
        networks: dict[str, Program] = {}
        stops: list[tracer.Stop] = []
        attention = {path for path, module in self.model.named_modules() if isinstance(module, nn.MultiheadAttention)}
        for path, module in self.model.named_modules():
            if isinstance(module, copies.SCRIPTS) and any(p.ndim >= 2 for p in module.parameters(recurse=False)):
                stops.append(tracer.Stop(path, copies.SCRIPT))
            if path.rpartition(".")[0] in attention or not tracer.is_layer(module):
                continue
            try:
                graph = tracer.trace_layer(self.model, path)
            except UnsupportedError as error:
                stops.append(tracer.Stop(path, str(error)))
                continue
            network = self.program(self.without(graph))
            if network.layers:
                networks[path] = network
            else:
                stops += [tracer.Stop(path, step.reason) for step in network.steps if isinstance(step, Call)]
        reasons = [*stops, *convolutions(self.model)]
        report = work.report_of_layers(self.model, networks, reasons, self.exclude)
        work.warn_of_float(report, networks.values(), work.NO_PART)
        layers = {path: QuantizedModule(network, self.options.engine) for path, network in networks.items()}
        return QuantizedModel(copies.own_copy(self.model), {}, layers, tuple(stops), report)


def convolutions(model: nn.Module) -> list[tracer.Stop]:
    """The convolutions of a model, with the reason why all of them stay in float."""
    kind = nn.modules.conv._ConvNd
    return [tracer.Stop(path, work.CONVOLUTION) for path, module in model.named_modules() if isinstance(module, kind)]


FloatNode = float_graph.Layer | float_graph.Operation


def step(node: FloatNode, weights: Weights, options: Options, activations: str | None) -> program.Step | str:
    """The step for a node, or why it stays in float."""
    if isinstance(node, float_graph.Linear):
        codes, grid = weights.codes(node.weight, node.layer)
        if activations is None:
            return LinearWeight(node.name, node.x, node.layer, codes, node.bias, grid)
        try:
            # Before any input is known, this grid tells the worst case.
            check_overflow(COARSEST, codes, grid, np.zeros(len(codes), np.int32))
        except UnsupportedError as error:
            return str(error)
        layer = node.name, node.x, node.layer, codes, node.bias, grid
        return LinearDynamic(*layer, options.reduce_range, rows=activations == "per_token")
    if isinstance(node, float_graph.Conv):
        return work.CONVOLUTION
    if isinstance(node, float_graph.Embedding):
        return embedding_step(node, options, node.x, lambda name: name)
    if isinstance(node, float_graph.Recurrent) and activations is not None:
        return recurrent_step(node, weights, options, node.x, lambda name: name)
    if isinstance(node, (float_graph.Shape, float_graph.Move)):
        return node.call
    return node.call.reason if isinstance(node, float_graph.BatchNorm) else STAYS_FLOAT


def float_step(node: FloatNode, reason: str) -> tuple[list[Call], dict[tuple[str, str], Any]]:
    """A node in float, as calls, and what they call beside what the graph has."""
    if isinstance(node, float_graph.Layer):
        return float_run.float_calls(node, reason)
    return [replace(node.call, reason=reason)], {}
