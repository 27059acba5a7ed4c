"""``nn.Module`` to float graph: which operations a model performs, traced once with ``torch.fx``.

What is traced is a copy of the model, with torch.nn's attention modules written out (``attention``). A module that
cannot be traced, or around which hooks run, becomes one node that calls a copy of it; whether that is good enough is
for the caller to say.
"""

import inspect
import threading
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import parametrize

from quantspec.errors import UnsupportedError
from quantspec.ir.float_graph import FloatGraph, Linear
from quantspec.ir.program import Ref
from quantspec.surroundings import usual

from . import acting, attention, calls, constants, copies, products
from .builder import GraphBuilder, hooked
from .calls import CallPattern
from .operators import public
from .proxies import RefusingTracer

PACKING = tuple(
    getattr(nn.utils.rnn, name)
    for name in ("pack_padded_sequence", "pad_packed_sequence", "pack_sequence", "unpack_sequence", "pad_sequence")
)
# torch's tracer watches the modules of the whole process, and puts back what it found: one at a time.
TRACING = threading.RLock()
LAYERS = (
    nn.Linear, nn.Embedding, nn.EmbeddingBag, nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell,
)  # fmt: skip


@dataclass(frozen=True)
class Stop:
    """A module that could not be gone into: its path, why, and where in the user's code."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path or 'the model'}: {self.reason}"


@dataclass(frozen=True)
class Capture:
    """A float graph, and the modules with layers in them that it calls as they are."""

    graph: FloatGraph
    stops: tuple[Stop, ...]


@usual
def capture(model: nn.Module) -> FloatGraph:
    """The float graph of a model in evaluation mode, for any arguments that it takes.

    Raises TypeError for what is no module, ValueError for a model in training mode (STA-TRAINING), without parameters
    in float32 on the CPU, UnsupportedError when the model's own control flow depends on data.
    """
    check_model(model)
    return trace(copies.own_copy(model)).graph


def trace(model: nn.Module, path: str = "", pattern: CallPattern | None = None, *, acts: bool = False) -> Capture:
    """The graph of a model, or of the module of that path called by that pattern. The model is one of ours. ``acts``:
    with what acts in training mode only.

    Raises UnsupportedError with the place where tracing stopped.
    """
    twin = copies.run_copy(model)
    part = twin.get_submodule(path)
    tracer = Tracer()
    try:
        with acting.no_draws(), TRACING:
            traced = tracer.traced(twin, part, path, pattern)
        found: acting.Acts = acts_beside(traced, twin, model, path, pattern) if acts else {}
        values, recipes = constants.folded(traced, twin, trained=acts)
        products.as_layers(traced, twin, values, recipes)
        graph = GraphBuilder(twin, values, recipes, share=True).build(traced)
        graph = replace(graph, recipes=recipes)
        if found:
            graph = acting.with_acts(graph, found, dict(twin.named_modules()))
    except Exception as error:  # the tracer lets through whatever the model raises on a proxy
        name = type(part).__name__
        raise UnsupportedError(f"model: {name} cannot be traced: {described(error)}") from error
    return Capture(graph, tuple(tracer.stops))


def acts_beside(
    traced: fx.Graph, twin: nn.Module, model: nn.Module, path: str, pattern: CallPattern | None
) -> acting.Acts:
    """Marks in a traced graph what acts in training mode only. Raises UnsupportedError where that has another graph."""
    other = copies.run_copy(model).train()
    with acting.no_draws(acting.DRAWS_OTHERWISE), TRACING:
        training = Tracer().traced(other, other.get_submodule(path), path, pattern)
    return acting.Alignment(traced, training, GraphBuilder(twin), GraphBuilder(other)).run()


def is_layer(module: nn.Module) -> bool:
    """Whether a module is a layer whose forward is known, wherever it is called: one of torch.nn, or of a class that
    leaves its forward alone."""
    if isinstance(module, copies.SCRIPTS):
        return False
    if "forward" in vars(module) or not (public(module, LAYERS) or is_conv1d(module)):
        return False
    # A weight that a hook computes is another one at the next call, for all that is known.
    computed = [name for name, value in vars(module).items() if isinstance(value, torch.Tensor)]
    return not (computed and module._forward_pre_hooks)


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is the transformers library's linear layer, whose weight is [inputs, outputs]."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.")


def trace_layer(model: nn.Module, path: str) -> FloatGraph:
    """The graph of a layer of a model of ours, for any arguments. Raises UnsupportedError where there is none."""
    twin = copies.run_copy(model)
    module = twin.get_submodule(path)
    for hooks in (module._forward_hooks, module._forward_pre_hooks):
        hooks.clear()
    if is_conv1d(module):
        weight, bias = module.get_parameter("weight"), module.get_parameter("bias")
        linear = Linear("output", "x", path, weight.detach().t().contiguous().numpy(), bias.detach().numpy())
        return FloatGraph(("x",), {}, (linear,), Ref("output"), {}, {path: 1}, {"output": path})
    try:
        return GraphBuilder(twin, share=True).build(alone(module, path))
    except Exception as error:  # as when a model is traced
        raise UnsupportedError(f"{type(module).__name__} cannot be traced: {described(error)}") from error


def check_model(model: nn.Module) -> None:
    """Raises unless the model is a module in evaluation mode, its parameters on the CPU and those of layers float32."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    for path, module in model.named_modules():
        if getattr(module, "training", False):  # frozen TorchScript says nothing of it
            raise ValueError(f"model: {path or 'it'} is in training mode; call model.eval() first")
    for path, parameter in model.named_parameters():
        other = parameter.dtype != torch.float32 and is_kind_of_layer(model.get_submodule(path.rpartition(".")[0]))
        if other or parameter.device.type != "cpu":
            what = f"{path} is {parameter.dtype} on {parameter.device}"
            raise ValueError(f"model: expected float32 parameters on the CPU, {what}")


def is_kind_of_layer(module: nn.Module) -> bool:
    """Whether a module is a layer of torch.nn, or of a class derived from one."""
    found = {kind.__module__ for kind in type(module).__mro__ if kind.__module__.startswith("torch.nn.modules.")}
    return bool(found - {"torch.nn.modules.module", "torch.nn.modules.container"})


def described(error: BaseException) -> str:
    """An error with the place in the user's code where it came from."""
    place = where(error)
    return f"{str(error) or type(error).__name__}{f' ({place})' if place else ''}"


def refuse_compiled(error: BaseException) -> None:
    """Raises UnsupportedError for an error of torch's compiler, or of what only it runs: the compiler cannot go through
    modules that are watched or replaced, and torch.cond calls it."""
    own = type(error).__module__.startswith("torch._dynamo")
    if own or (isinstance(error, NotImplementedError) and "HigherOrderOperator" in str(error)):
        raise UnsupportedError(
            f"model: it has torch compile a function, as torch.cond does ({where(error)}), which cannot be quantized;"
            " write it with Python's if"
        ) from error


def where(error: BaseException) -> str:
    """File and line of the innermost frame of the user's code that an error went through."""
    return innermost(traceback.walk_tb(error.__traceback__))


def innermost(frames: Iterable[tuple[FrameType, int]]) -> str:
    """File and line of the last frame that is neither torch's nor ours, or ""."""
    places = [(frame.f_code.co_filename, line) for frame, line in frames]
    others = ("/torch/", "/quantspec/")
    own = [place for place in places if place[0][:1] != "<" and not any(other in place[0] for other in others)]
    return f"{own[-1][0]}, line {own[-1][1]}" if own else ""


def has_layers(module: nn.Module) -> bool:
    """Whether a module holds weights that could be quantized."""
    return any(parameter.ndim >= 2 for parameter in module.parameters())


class Tracer(RefusingTracer):
    """Goes into modules as far as they let it; one that does not is a leaf, and only that one."""

    def __init__(self) -> None:
        # Packing sequences looks at their lengths, so it is called as a whole, by whatever name. Naming the module to
        # fx would do that to everything in it, among it the class Tensor, which models ask their inputs for.
        super().__init__(autowrap_functions=PACKING)
        self._autowrap_search.append(nn.utils.rnn)
        self.stops: list[Stop] = []
        self.root_call: Callable[[], Any] | None = None
        self.entered = ""
        self.thread = threading.get_ident()

    def traced(self, model: nn.Module, part: nn.Module, path: str, pattern: CallPattern | None) -> fx.Graph:
        """The graph of a model, or of the part of it that is called by that pattern."""
        if pattern is not None:
            graph = self.trace_part(model, part, path, pattern)
        else:
            graph = alone(part) if self.is_whole(part) else self.trace_all(model)
        self.check_answered()
        return graph

    def trace_all(self, model: nn.Module) -> fx.Graph:
        """The graph of a model for any arguments."""
        write = attention.whole(model)
        if write is None:
            if hooked(model):
                raise UnsupportedError("it has hooks")
            given = inspect.signature(model.forward).parameters.values()
            self.of_choices = any(calls.is_choice(p.default) for p in given)
            self.check_answers(model.forward)
            return self.trace(model)
        inputs = list(inspect.signature(write).parameters.values())[1:]

        def call() -> Any:
            values = {p.name: self.placeholder(p.name, p.default) for p in inputs}
            return write(model, **values)

        self.root_call = call
        return self.trace(model)

    def trace_part(self, model: nn.Module, part: nn.Module, path: str, pattern: CallPattern) -> fx.Graph:
        """The graph of a module's forward, called by one pattern. Hooks run around it, whoever calls it."""
        for hooks in (part._forward_hooks, part._forward_pre_hooks):
            hooks.clear()

        def call() -> Any:
            args, kwargs = pattern.arguments([self.placeholder(name) for name in pattern.names])
            if (write := attention.written(part)) is not None:
                return write(part, *args, **kwargs)
            if self.is_whole(part):
                return self.create_proxy("call_module", path, *used(part, args, kwargs))
            self.check_answers(part.forward)
            return part.forward(*args, **kwargs)

        self.root_call, self.entered, self.of_tensors = call, path, True
        return self.trace(model)

    def placeholder(self, name: str, default: Any = inspect.Parameter.empty) -> fx.Proxy:
        return self.create_proxy("placeholder", name, () if default is inspect.Parameter.empty else (default,), {})

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        if self.root_call is None:
            return super().create_args_for_root(root_fn, is_module, concrete_args)
        call = self.root_call
        if self.entered:
            self.module_stack[self.entered] = (self.entered, type(self.root.get_submodule(self.entered)))
        return (lambda: call()), []

    @staticmethod
    def is_whole(module: nn.Module) -> bool:
        """Whether a module is never gone into: those of torch.nn, other than containers and what ``attention`` writes
        out."""
        # A parametrization makes a class of torch's own of whatever class its module has.
        kind = parametrize.type_before_parametrizations(module)
        own = kind.__module__.startswith(("torch.nn", "torch.ao.nn"))
        containers = nn.Sequential, nn.TransformerDecoderLayer, *copies.WRAPPERS, *attention.WRITTEN
        return own and not isinstance(module, containers)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self.is_whole(m)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)  # torch watches the calls of all threads
        if isinstance(m, copies.SCRIPTS):  # which have a forward of their own, too
            self.refuse(copies.SCRIPT)
        if hooked(m):
            return self.leaf(m, args, kwargs, "it has hooks")
        if self.is_whole(m):
            return super().call_module(m, forward, args, kwargs)
        before, stack, scope = set(self.graph.nodes), dict(self.module_stack), self.scope
        refused, self.refused = self.refused, None
        given = contents((args, kwargs))
        try:
            write = attention.written(m)
            if write is None:
                self.check_answers(m.forward)
            output = super().call_module(m, forward if write is None else partial(write, m), args, kwargs)
            self.check_answered()
            self.refused = refused
            return output
        except Exception as error:
            for node in reversed([node for node in self.graph.nodes if node not in before]):
                self.graph.erase_node(node)
            self.module_stack.clear()
            self.module_stack.update(stack)
            self.scope, self.refused = scope, refused
            for container, content in given:
                refill(container, content)
            path = self.path_of_module(m)
            self.stops = [stop for stop in self.stops if not stop.path.startswith(f"{path}.")]
            return self.leaf(m, args, kwargs, described(error))

    def leaf(self, m: nn.Module, args: Any, kwargs: Any, reason: str) -> fx.Proxy:
        """A module called as it is."""
        path = self.path_of_module(m)
        if has_layers(m):
            self.stops.append(Stop(path, reason))
        return self.create_proxy("call_module", path, args, kwargs)


def contents(tree: Any) -> list[tuple[Any, Any]]:
    """The lists and dicts among arguments, each with a copy of it."""
    if isinstance(tree, dict):
        return [(tree, dict(tree)), *(found for value in tree.values() for found in contents(value))]
    if isinstance(tree, (tuple, list)):
        inner = [found for value in tree for found in contents(value)]
        return [(tree, list(tree)), *inner] if isinstance(tree, list) else inner
    return []


def refill(container: Any, content: Any) -> None:
    """A list or dict holds again what it held."""
    container.clear()
    (container.extend if isinstance(container, list) else container.update)(content)


def used(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call without those that have their defaults, as a caller would write it."""
    names = list(inspect.signature(module.forward).parameters.values())
    given = list(args)
    while given and len(given) <= len(names) and given[-1] is names[len(given) - 1].default:
        given.pop()
    return tuple(given), kwargs


def alone(model: nn.Module, path: str = "") -> fx.Graph:
    """The graph of a model that is a single module of torch.nn: its inputs, and one call."""
    graph = fx.Graph()
    values = []
    for name, parameter in inspect.signature(model.forward).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or name == "output_size":
            break  # the size of a transposed convolution's output follows from its input here
        optional = parameter.default is not parameter.empty
        values.append(graph.placeholder(name, default_value=parameter.default) if optional else graph.placeholder(name))
    graph.output(graph.call_module(path, tuple(values)))
    return graph
