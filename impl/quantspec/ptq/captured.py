"""What calibration has of the user's model: the graph that was traced, until a batch has shown what the model does
(STA-SAME)."""

from collections.abc import Callable, Mapping
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn

from quantspec.capture import calls, copies, kept, parts, tracer
from quantspec.errors import CalibrationError, UnsupportedError
from quantspec.ir import float_run
from quantspec.ir.float_graph import FloatGraph
from quantspec.module import islands

from . import work

# Stands for the network of a model whose parts are to be found when a batch is seen.
NOTHING = FloatGraph((), {}, (), None, {}, {})


class Observing(Protocol):
    """A float graph with observers."""

    graph: FloatGraph
    observers: Any

    def observe_and_count(self, batch: Any) -> Any: ...


Part = TypeVar("Part", bound=nn.Module)


class Captured(Generic[Part]):
    """A copy of a model, and what was captured of it.

    ``traced``: the graph of the whole for any arguments, None where it cannot be traced. ``whole_agrees``: whether a
    batch has shown that to be the model. ``parts``: otherwise, by path and pattern of the call; ``running`` is a copy
    of the model in which they observe. ``work``: of them and of the Python around them, on the first batch. ``stops``:
    what stays Python, and why. ``acts``: whether graphs have what acts in training mode only.
    """

    def __init__(
        self, model: nn.Module, ready: Callable[[FloatGraph], FloatGraph], prepare: Callable[[FloatGraph], Part],
        exclude: list[str], *, acts: bool = False,
    ):  # fmt: skip
        self.model, self.ready, self.prepare, self.exclude, self.acts = model, ready, prepare, exclude, acts
        self.whole_agrees = False
        # Whether a batch that is a list is one argument; None before there was one.
        self.one_list = True if calls.says_list(model.forward) else None
        self.running: nn.Module | None = None
        self.parts: dict[str, dict[calls.CallPattern, Part]] = {}
        self.work = work.PartsWork()
        self.traced: FloatGraph | None = None
        self.stops: tuple[tracer.Stop, ...]
        try:
            capture = tracer.trace(model, acts=acts)
        except UnsupportedError as error:
            self.stops = (tracer.Stop("", str(error)),)
        else:
            self.stops = capture.stops
            self.traced = None if capture.stops else capture.graph

    def as_given(self, batch: Any) -> Any:
        """A batch of calibration data whose entries are the arguments."""
        return (batch,) if self.one_list and isinstance(batch, list) else batch

    def observe_batch(self, prepared: Observing, batch: Any) -> Any:
        """``observe`` for a batch of calibration data, of which the first list settles what lists are."""
        if not isinstance(batch, list) or self.one_list is not None:
            return self.observe(prepared, *self.arguments(self.as_given(batch)))
        try:
            output = self.observe(prepared, *self.arguments(batch))
        except Exception:  # whatever the model raises
            self.one_list = parts.as_given(self.model, batch) is not batch
            if not self.one_list:
                raise
            return self.observe(prepared, *self.arguments((batch,)))
        self.one_list = False
        return output

    def arguments(self, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A batch as arguments that are dense tensors."""
        return calls.dense(*calls.arguments(self.model.forward, batch))

    def observe(self, prepared: Observing, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The model's output for a batch, which is observed. The first one settles what the network is."""
        if self.running is None:
            if self.traced is not None and not gives_optional(self.traced, args, kwargs):
                agrees, output = self.compared(prepared, args, kwargs)
                if agrees:
                    self.whole_agrees = True
                    return output
            self.find_parts(args, kwargs)
        assert self.running is not None
        with copies.random_kept(), torch.no_grad():
            args, kwargs = copies.cloned((args, dict(kwargs)))
            return self.running(*args, **kwargs)

    def compared(self, prepared: Observing, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[bool, Any]:
        """Whether the graph of the whole gives what the model does on a batch, and what it gives."""
        batch = named(prepared.graph.inputs, args, kwargs)
        try:
            expected, state = parts.expected(self.model, args, dict(kwargs))
        except Exception:
            float_run.run(prepared.graph, batch)  # whose message names the layer
            raise
        before = prepared.observers
        try:
            output = prepared.observe_and_count(batch)
        except CalibrationError:
            raise
        except Exception:  # whatever the operations of a wrong graph raise
            return False, None
        assert self.traced is not None
        if state is None and (
            parts.difference(expected, output) is None
            or parts.difference(expected, output, parts.FUSED) is None
            and parts.graph_differs(self.traced, batch, expected) is None
        ):
            return True, output
        prepared.observers = before
        return False, None

    def find_parts(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Finds the parts of the model that are networks of their own."""
        with parts.computing("batch"):
            if not self.acts:  # in training mode a model may do without what it keeps
                self.model = kept.called_once(self.model, args, dict(kwargs))
            found = parts.find(self.model, args, dict(kwargs), self.part_ready, acts=self.acts)
        self.parts = {
            path: {pattern: self.prepare(graph) for pattern, graph in patterns.items()}
            for path, patterns in found.graphs.items()
        }
        self.stops = tuple(found.stops)
        self.work = work.of_parts(self.model, found.graphs, args, dict(kwargs))
        self.running = copies.run_copy(self.model)
        islands.attach(self.running, self.parts)

    def part_ready(self, graph: FloatGraph) -> FloatGraph | None:
        """The graph of a part as it will be observed; None where no layer of it is to be quantized."""
        ready = self.ready(graph)
        return ready if work.has_layers(ready) else None


def gives_optional(graph: FloatGraph, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call gives an argument that is None otherwise, or makes another choice: without it the network may be
    another one."""
    given = {**dict(zip(graph.inputs, args)), **kwargs}
    defaults = {name: graph.defaults.get(name, ...) for name in given}
    return any(
        defaults[name] is None and value is not None or calls.is_choice(value) and value != defaults[name]
        for name, value in given.items()
    )


def named(inputs: tuple[str, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The arguments of a call as a batch."""
    return {**dict(zip(inputs, args)), **kwargs} if kwargs else args
