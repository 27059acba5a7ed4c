"""Which operations a module performs, recorded while it runs on real tensors: what symbolic tracing gets wrong or
cannot go through.

Python runs as it always does: type checks, optional arguments, hooks, attributes, writes through views. Each function
of torch that reads an input, or what was made of one, becomes a node; what reads none is a constant. Sizes stay free
(``tracked``); where Python decides by one, the graph checks it when it runs. What decides by values, writes to the
model, or leaves torch ends the recording.
"""

import itertools
import operator
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from quantspec.errors import UnsupportedError
from quantspec.ir.float_run import CAPTURED

from . import acting, aliases, attention, copies, products, splitting, tracked, writes
from .builder import GraphBuilder, hooked
from .calls import CallPattern
from .recorded import Made, Path, Stopped, Values, first, stale
from .tensor_names import (
    AUGMENTED,
    FACTS,
    INPLACE_AT,
    METHODS,
    OPERATORS,
    RANK,
    REFLECTED,
    TYPE,
    VALUES,
    by_place,
    indexes_by_truth,
    is_method,
)
from .tracer import Capture, Tracer, described, innermost
from .tracked import plain, slices


def is_needed(node: fx.Node) -> bool:
    """Whether a node stays though nobody reads it."""
    return node.op in ("placeholder", "output") or node.target is torch._assert


def record(
    model: nn.Module, path: str, pattern: CallPattern, tensors: list[torch.Tensor], *, acts: bool = False
) -> Capture:
    """The graph of the module at a path of a model of ours, called by some pattern with these tensors. ``acts``: with
    what acts in training mode only.

    Raises UnsupportedError with the place in the user's code where recording stopped.
    """
    twin = copies.run_copy(model)
    recorder = Recorder(twin, path)
    try:
        recorder.run(twin.get_submodule(path), pattern, [t.detach().clone() for t in tensors])
        found: acting.Acts = acts_beside(recorder, model, path, pattern, tensors) if acts else {}
        capture = recorder.capture()
        if found:
            graph = acting.with_acts(capture.graph, found, recorder.modules)
            capture = Capture(graph, capture.stops)
        return capture
    except (Stopped, Exception) as error:
        raise UnsupportedError(described(error)) from error
    finally:
        recorder.ended = True


def acts_beside(
    recorder: "Recorder", model: nn.Module, path: str, pattern: CallPattern, tensors: list[torch.Tensor]
) -> acting.Acts:
    """Marks in what was recorded what acts in training mode only."""
    twin = copies.run_copy(model).train()
    other = Recorder(twin, path)
    try:
        other.run(twin.get_submodule(path), pattern, [t.detach().clone() for t in tensors], training=True)
    finally:
        other.ended = True
    builders = GraphBuilder(recorder.model, recorder.constants), GraphBuilder(twin, other.constants)
    return acting.Alignment(recorder.graph, other.graph, *builders).run()


class Recorder(Values, TorchFunctionMode):
    """Records the functions that a module's forward calls."""

    def __init__(self, model: nn.Module, path: str):
        super().__init__(model, path)
        self.modules = dict(model.named_modules())
        self.paths = {module: name for name, module in self.modules.items()}
        self.off = 0
        self.required: set[Any] = set()
        self.inputs: dict[int, fx.Node] = {}
        self.perhaps: list[tuple[torch.Tensor, torch.Tensor]] = []  # that lie in one memory at some calls
        self.ranks: set[int] = set()
        self.types: set[fx.Node] = set()  # inputs whose type Python may have asked for
        self.ended = False
        self.training = False

    def run(
        self, module: nn.Module, pattern: CallPattern, tensors: list[torch.Tensor], *, training: bool = False
    ) -> None:
        """Records a call; in ``training`` mode it may draw random numbers."""
        for name, tensor in zip(pattern.names, tensors, strict=True):
            node = self.graph.placeholder(name)
            self.inputs[id(tensor)] = node
            self.know(tensor, node)
        args, kwargs = pattern.arguments(list(tensors))
        random, pythons, self.training = torch.get_rng_state(), acting.python_random(), training
        with copies.undisturbed():
            self.watch_modules()
            with self:
                output = self.forward(module, args, kwargs)
            if not training and not torch.equal(random, torch.get_rng_state()):
                raise Stopped("it draws random numbers")
            if acting.python_random() != pythons:
                raise Stopped(acting.DRAWS_OTHERWISE if training else acting.DRAWS)
        self.graph.output(self.argument(output))
        self.assert_inputs()
        self.graph.eliminate_dead_code(is_needed)

    def capture(self) -> Capture:
        """What was recorded."""
        products.as_layers(self.graph, self.model, self.constants, self.recipes)
        self.graph.eliminate_dead_code(is_needed)
        graph = GraphBuilder(self.model, self.constants, self.recipes, share=True).build(self.graph)
        return Capture(replace(graph, recipes=self.recipes), ())

    def forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a module's forward gives, without the hooks around it."""
        if (write := attention.written(module)) is not None:
            return write(module, *args, **kwargs)
        if Tracer.is_whole(module):
            return self.call_whole(module, self.paths[module], args, kwargs)
        return module.forward(*args, **kwargs)

    # --- modules

    def watch_modules(self) -> None:
        """Calls of the model's modules come by the recorder. They are a copy's, and so nobody else sees it."""
        for module, path in self.paths.items():
            called = type(module)._compiled_call_impl or module._call_impl
            # What torch calls in the place of a module's own call, for this one alone.
            module.__dict__["_compiled_call_impl"] = partial(self.call_module, module, path, called)

    def call_module(self, module: nn.Module, path: str, called: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.off:
            return called(*args, **kwargs)
        self.stack.append(path)
        try:
            if hooked(module) or (attention.written(module) is None and not Tracer.is_whole(module)):
                return called(*args, **kwargs)
            try:
                return self.forward(module, args, kwargs)
            except NotImplementedError:  # what is not written out
                return self.call_whole(module, path, args, kwargs)
        finally:
            self.stack.pop()

    def call_whole(self, module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A module of torch.nn, as one node."""
        args, kwargs = by_place(module, args, kwargs)
        if not any(self.is_known(leaf) for leaf in tree_leaves((args, kwargs))):
            output = self.call(module, args, kwargs)
            self.keep(output, self.making(Path(path), args, kwargs, *module.parameters()))
            return output
        node = self.add("call_module", path, *self.argument((args, kwargs)))
        target = args[0] if getattr(module, "inplace", False) is True and args else None
        output = self.call(module, args, kwargs)
        if target is not None:
            self.written(target, node)
        if isinstance(module, aliases.SOMETIMES_MODULES) and args:
            output = self.perhaps_view(args[0], output)
        self.keep_result(output, node)
        return output

    def call(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Runs something unrecorded, on plain numbers."""
        self.off += 1
        try:
            with torch._C.DisableTorchFunction():
                return function(*plain(args), **plain(kwargs))
        finally:
            self.off -= 1

    # --- functions

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func, args, kwargs = writes.zeroed(func, *by_place(func, args, kwargs or {}))
        name = METHODS.get(func, str(getattr(func, "__name__", func)))
        if name in ("__get__", "__set__", "__delete__"):
            return self.attribute(name, func, args)
        leaves = tree_leaves((args, kwargs)) + slices((args, kwargs))
        known = [leaf for leaf in leaves if self.is_known(leaf)]
        writing = self.target(name, args, kwargs)
        if not known:
            return self.constant(func, args, kwargs, leaves, writing)
        if name in aliases.LAYOUT:
            raise Stopped(aliases.TOLD_LAYOUT)
        if name in VALUES or indexes_by_truth(name, args):
            raise Stopped(f"Python reads values of a tensor ({name})")
        converts = name == "type" and (len(args) > 1 or kwargs)  # to the type that it is given
        if name in FACTS and not converts and isinstance(args[0] if args else None, torch.Tensor):
            self.asked(name, args[0])
            return self.call(func, args, kwargs)
        if name in RANK:
            self.ranks |= {id(args[0])}
            return self.call(func, args, kwargs)
        if name in ("size", "numel", "__len__", "is_same_size"):
            return self.size(name, func, args, kwargs)
        if writing is not None:
            return self.write(name, func, writing, args, kwargs)
        self.require_parts(name, args, kwargs)  # before one of them is taken that there may not be
        node = self.function_node(name, func, args, kwargs)
        output = self.call(func, args, kwargs)
        if not all(leaf is None or isinstance(leaf, torch.Tensor) for leaf in tree_leaves(output)):
            raise Stopped(f"Python reads what is no tensor of one ({name})")
        if name in aliases.SOMETIMES:
            output = self.perhaps_view(next(leaf for leaf in leaves if isinstance(leaf, torch.Tensor)), output)
        self.keep_result(output, node)
        return output

    def perhaps_view(self, source: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """The result of a function that gives its input, or a view of it, at some calls: another tensor, whose writes
        that one never sees."""
        if output is source:
            output = self.call(torch.Tensor.detach, (output,), {})
        self.perhaps += [(source, output)]
        return output

    def require_parts(self, name: str, args: Any, kwargs: Any) -> None:
        """A tensor has to be split into as many parts at each call."""
        split = splitting.arguments(name, args, kwargs)
        tensor = next((leaf for leaf in (*args[:1], *kwargs.values()) if isinstance(leaf, torch.Tensor)), None)
        if split is None or tensor is None or not self.is_known(tensor):
            return
        how, axis = split
        axes, size = self.call(lambda: (tensor.ndim, tensor.shape[axis]), (), {})
        parts = splitting.count(name, how, self.dimension(tensor, axis % axes, size)) if size else 0
        if isinstance(parts, tracked.Tracked):
            tracked.concrete(parts)

    def function_node(self, name: str, func: Any, args: Any, kwargs: Any) -> fx.Node:
        given, named = self.argument((args, kwargs))
        if name in REFLECTED:
            return self.add("call_function", REFLECTED[name], (given[1], given[0]), {})
        if name in OPERATORS and is_method(func):
            return self.add("call_function", OPERATORS[name], given, {})
        if is_method(func):
            return self.add("call_method", name, given, named)
        return self.add("call_function", func, given, named)

    def target(self, name: str, args: Any, kwargs: Any) -> torch.Tensor | None:
        """The tensor that a function writes to."""
        if isinstance(kwargs.get("out"), torch.Tensor):
            raise Stopped(f"{name} writes to its out= tensor")
        in_place = (name.endswith("_") and not name.endswith("__")) or name in AUGMENTED or name == "__setitem__"
        at = INPLACE_AT.get(name, len(args))
        in_place = in_place or kwargs.get("inplace") is True or (at < len(args) and args[at] is True)
        first = args[0] if args else None
        return first if in_place and isinstance(first, torch.Tensor) else None

    def write(self, name: str, func: Any, target: torch.Tensor, args: Any, kwargs: Any) -> Any:
        """A function that writes to a tensor: the tensor is what a function without that gives from then on."""
        if id(target) in self.attributes:
            raise Stopped(f"it writes to the model's {self.attributes[id(target)][0]!r}")
        if id(target) in self.inputs:
            raise Stopped("it writes to an input")
        given, named = self.argument((args, kwargs))
        if name == "__setitem__":
            node = self.add("call_function", writes.with_item, given, {})
        elif name in writes.FILLING:
            node = self.add("call_function", writes.filled, (given[0], writes.value_of(given, named)), {})
        else:
            pure = AUGMENTED.get(name, name.removesuffix("_"))
            if is_method(func):
                if not hasattr(torch.Tensor, pure):
                    raise Stopped(f"{name} writes in place")
                node = self.add("call_method", pure, given, {k: v for k, v in named.items() if k != "inplace"})
            else:
                node = self.add("call_function", func, given, named)
        output = self.call(func, args, kwargs)
        self.written(target, node)
        return output

    def written(self, target: torch.Tensor, node: fx.Node) -> None:
        """Other tensors in the memory that was written to are not known any more."""
        memories = {self.memory(target)}
        for _ in self.perhaps:
            pairs = [{self.memory(a), self.memory(b)} for a, b in self.perhaps]
            memories = memories.union(*(pair for pair in pairs if pair & memories))
        for key, (tensor, _, _) in list(self.nodes.items()):
            if tensor is not target and self.memory(tensor) in memories:
                self.nodes[key] = tensor, stale, tensor._version
        for key, tensor in list(self.fresh.items()):
            if tensor is not target and self.memory(tensor) in memories:
                del self.fresh[key]
                self.nodes[key] = tensor, stale, tensor._version
        self.fresh.pop(id(target), None)
        self.know(target, node)

    def memory(self, tensor: torch.Tensor) -> int:
        """Which memory a tensor lies in."""
        return int(self.call(torch.Tensor.untyped_storage, (tensor,), {})._cdata)

    def constant(self, func: Any, args: Any, kwargs: Any, leaves: list[Any], writing: torch.Tensor | None) -> Any:
        """A function of nothing but constants."""
        if writing is not None and id(writing) in self.attributes:
            raise Stopped(f"it writes to the model's {self.attributes[id(writing)][0]!r}")
        for leaf in leaves:
            if isinstance(leaf, torch.Tensor):
                self.check_constant(leaf)
        before = torch.get_rng_state() if self.training else None
        made = self.making(func, args, kwargs)
        output = self.call(func, args, kwargs)
        if before is not None and not torch.equal(before, torch.get_rng_state()):
            raise Stopped(acting.DRAWS_OTHERWISE)
        if writing is not None:
            # What lies in the memory that was written to is what it is after that.
            for key, tensor in self.fresh.items():
                if self.memory(tensor) == self.memory(writing):
                    old = self.made[key]
                    self.made[key] = Made(first, (old, made), {}, old.learned or made.learned)
        self.keep(output, made)
        return output

    def attribute(self, name: str, func: Any, args: Any) -> Any:
        """What is read of a tensor as an attribute."""
        what = func.__self__.__name__
        tensor = args[0]
        if name != "__get__":
            if self.is_known(tensor) or id(tensor) in self.attributes:
                raise Stopped(f"it sets a tensor's {what}")
            return func(*args)
        if not self.is_known(tensor):
            value = func(*args)
            self.keep(value, self.making(getattr, (tensor, what), {}))
            return value
        if what == "shape":
            return self.shape(tensor)
        if what in RANK:
            self.ranks.add(id(tensor))
        if what in FACTS or what in RANK:
            self.asked(what, tensor)
            return func(*args)
        if what in ("T", "mT", "H", "mH", "real", "imag"):
            node = self.add("call_function", getattr, (self.argument(tensor), what), {})
            value = func(*args)
            self.keep_result(value, node)
            return value
        if what == "data":
            value = func(*args)
            self.keep_result(value, self.add("call_method", "detach", (self.argument(tensor),), {}))
            return value
        raise Stopped(f"it reads a tensor's {what}")

    # --- sizes

    def shape(self, tensor: torch.Tensor) -> torch.Size:
        self.ranks.add(id(tensor))
        with torch._C.DisableTorchFunction():
            sizes = list(tensor.shape)
        return torch.Size([self.dimension(tensor, index, size) for index, size in enumerate(sizes)])

    def dimension(self, tensor: torch.Tensor, index: int, size: int) -> Any:
        """The length of an axis: a plain number where layers say it."""
        node = self.argument(tensor)
        if splitting.is_fixed(node, index, tensor.dim(), self.modules):
            return size
        return tracked.number(self, size, lambda: self.add("call_method", "size", (node, index), {}))

    def size(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        tensor = args[0]
        if name == "size":
            index = args[1] if len(args) > 1 else kwargs.get("dim")
            shape = self.shape(tensor)
            return shape if index is None else shape[tracked.exact(index)]
        if name == "__len__":
            return tracked.concrete(self.shape(tensor)[0])
        if name == "is_same_size":
            return self.shape(tensor) == self.shape(args[1])  # to which by_place has brought it
        node = self.argument(tensor)
        value = self.call(func, args, kwargs)
        return tracked.number(self, value, lambda: self.add("call_method", "numel", (node,), {}))

    def size_node(self, target: Callable[..., Any], args: tuple[Any, ...]) -> fx.Node:
        return self.add("call_function", target, self.argument(args), {})

    def stop(self, reason: str) -> None:
        raise Stopped(reason)

    def require(self, target: Callable[..., Any], args: tuple[Any, ...], result: bool) -> None:
        given = self.argument(args)
        if (key := (target, given, result)) in self.required:
            return
        self.required.add(key)
        condition = self.add("call_function", target, given, {})
        shown = f"{tracked.as_written(condition)} is {result}"
        if not result:
            condition = self.add("call_function", operator.not_, (condition,), {})
        own = itertools.takewhile(lambda frame: frame[0].f_code is not record.__code__, traceback.walk_stack(None))
        place = innermost(reversed(list(own)))
        message = f"{CAPTURED} where {shown}{f' ({place})' if place else ''}"
        self.add("call_function", torch._assert, (condition, message), {})

    def asked(self, name: str, tensor: torch.Tensor) -> None:
        """Notes the inputs that a fact about a tensor may depend on: where it is its type, those that come to it other
        than by a layer, which has a type of its own."""
        if name not in TYPE or id(tensor) not in self.nodes or self.nodes[id(tensor)][1] is stale:
            return
        pending, seen = [self.argument(tensor)], set[fx.Node]()
        while pending:
            node = pending.pop()
            module = self.modules[str(node.target)] if node.op == "call_module" else None
            layer = node.target is F.linear or (module is not None and any(True for _ in module.parameters()))
            if node.op == "placeholder":
                self.types.add(node)
            elif node not in seen and not layer:
                seen.add(node)
                pending += node.all_input_nodes

    def assert_inputs(self) -> None:
        """Inputs have to have as many axes as they had, where that was asked for, and the types."""
        first = next(node for node in self.graph.nodes if node.op != "placeholder")
        with self.graph.inserting_before(first):
            for key, node in self.inputs.items():
                tensor = self.nodes[key][0]
                if self.ranks:
                    dim = self.graph.call_method("dim", (node,))
                    self.assert_equal(dim, tensor.ndim, f"for {node.name!r} with {tensor.ndim} axes")
                if node in self.types:
                    dtype = self.graph.call_function(getattr, (node, "dtype"))
                    self.assert_equal(dtype, tensor.dtype, f"for {node.name!r} of {tensor.dtype}")

    def assert_equal(self, node: fx.Node, value: Any, condition: str) -> None:
        equal = self.graph.call_function(operator.eq, (node, value))
        self.graph.call_function(torch._assert, (equal, f"{CAPTURED} {condition}"))
