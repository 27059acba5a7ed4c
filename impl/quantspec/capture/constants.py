"""What depends on parameters alone is computed once: weights that a forward standardizes, scales or puts together
before it uses them."""

import operator
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.parametrize import ParametrizationList

from quantspec.ir.float_graph import Recipe

from . import aliases, copies
from .builder import GraphBuilder
from .tensor_names import LIKE

GROWTH = 2  # a result of more elements than this, for each that it is made of, is not stored in their place


def folded(graph: fx.Graph, model: nn.Module, *, trained: bool = False) -> tuple[dict[str, Any], dict[str, Recipe]]:
    """Takes what is constant out of a traced graph; gives the values of its new attributes by their names, and where it
    is to be ``trained`` how those were computed that depend on parameters."""
    values: dict[fx.Node, Any] = {}
    sizes: dict[fx.Node, int] = {}
    attributes: dict[str, Any] = {}
    learned: set[fx.Node] = set()  # parameters, and what is computed of them
    written = {node.args[0] for node in graph.nodes if node.args and writes(node)}
    for node in list(graph.nodes):
        if node.op == "get_attr" and node not in written:
            values[node] = operator.attrgetter(node.target)(model)
            sizes[node] = values[node].numel()  # parameters, buffers and other tensors are what torch.fx reads so
            learned |= {node} if isinstance(values[node], nn.Parameter) else set()
        elif (module := called(node, model)) is not None and is_constant_module(node, module, values):
            with torch.no_grad():
                result = computed(node, values, model)
            if isinstance(result, torch.Tensor):
                values[node], sizes[node] = result, max(result.numel(), 1)
                makes = any(True for _ in module.parameters()) or learned.intersection(node.all_input_nodes)
                learned |= {node} if makes and result.is_floating_point() else set()
        elif node.op in ("call_function", "call_method") and constant(node, values) and node not in written:
            with torch.no_grad():
                result = computed(node, values, model)
            if result is not FAILED:
                values[node] = result
                sizes[node] = max(sum(sizes[read] for read in node.all_input_nodes), 1)
                if isinstance(result, torch.Tensor) and result.is_floating_point():
                    learned |= {node} if learned.intersection(sources(node)) else set()
    replaced = [
        node for node in graph.nodes
        if node.op != "get_attr" and node in values and any(user not in values for user in node.users)
    ]  # fmt: skip
    builder = GraphBuilder(model, share=True)
    origins = {node: recipe(node, graph, builder, values[node]) for node in replaced if trained and node in learned}
    recipes: dict[str, Recipe] = {}
    for node in replaced:
        value = values[node]
        if isinstance(value, torch.Tensor):
            if value.numel() > GROWTH * sizes[node]:
                continue
            stack = node.meta.get("nn_module_stack") or {}
            path = list(stack)[-1] if stack else ""
            name = f"{path}.{node.name}" if path else node.name
            attributes[name] = value.detach().clone()
            if node in learned:
                attributes[name] = nn.Parameter(attributes[name], requires_grad=False)
                recipes |= {name: replace(origins[node], value=attributes[name])} if trained else {}
            with graph.inserting_before(node):
                attribute = graph.create_node("get_attr", name)
                attribute.meta = dict(node.meta)
            node.replace_all_uses_with(attribute)
        elif plain(value):
            for user in list(node.users):
                put_in(user, node, value)
    for node in reversed(list(graph.nodes)):
        if node in values and not node.users:
            graph.erase_node(node)
    return attributes, recipes


def sources(node: fx.Node) -> list[fx.Node]:
    """What the values of a node are computed of: not what it only takes a type or a shape from."""
    return node.all_input_nodes[:1] if aliases.name_of(node) in LIKE else node.all_input_nodes


def recipe(node: fx.Node, graph: fx.Graph, builder: GraphBuilder, value: torch.Tensor) -> Recipe:
    """How a node is computed, as calls."""
    needed, pending = {node}, [node]
    while pending:
        pending += (reads := [read for read in pending.pop().all_input_nodes if read not in needed])
        needed.update(reads)
    steps = tuple(builder.call(each) for each in graph.nodes if each in needed)
    named = {*dict(builder.model.named_parameters()), *dict(builder.model.named_buffers())}
    keys = ((step.kind, step.target) for step in steps if step.kind != "attribute" or step.target not in named)
    return Recipe(steps, {key: builder.callables[key] for key in keys if key in builder.callables}, value)


def called(node: fx.Node, model: nn.Module) -> nn.Module | None:
    """The module that a node calls."""
    return model.get_submodule(str(node.target)) if node.op == "call_module" else None


def is_constant_module(node: fx.Node, module: nn.Module, values: dict[fx.Node, Any]) -> bool:
    """Whether a module computes a weight, or something of parameters alone."""
    if isinstance(module, ParametrizationList):
        return True
    reads = node.all_input_nodes
    of_torch = copies.torchs(module) and not getattr(module, "inplace", False)
    return of_torch and bool(reads) and all(read in values for read in reads)


def put_in(user: fx.Node, node: fx.Node, value: Any) -> None:
    """Puts a value in the place of a node among what another reads."""

    def replaced(read: fx.Node) -> Any:
        return value if read is node else read

    given: Any = fx.node.map_arg((user.args, user.kwargs), replaced)
    user.args, user.kwargs = given


FAILED = object()
RANDOM = ("rand", "bernoulli", "dropout", "multinomial", "normal", "poisson")


def plain(value: Any) -> bool:
    return isinstance(value, (int, float, bool, torch.dtype, torch.device, torch.Size)) or value is None


def writes(node: fx.Node) -> bool:
    """Whether a node may change its argument."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.op == "call_module":
        return False
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or name == "setitem" or bool(node.kwargs.get("inplace") or "out" in node.kwargs)


def constant(node: fx.Node, values: dict[fx.Node, Any]) -> bool:
    """Whether what a node gives depends on parameters alone."""
    reads = node.all_input_nodes
    if writes(node) or keeps_statistics(node):
        return False
    return bool(reads) and all(read in values for read in reads) and not is_random(node)


def keeps_statistics(node: fx.Node) -> bool:
    """Whether a normalization changes the statistics that it is given: torch has these by place and the rest by name,
    however it was called."""
    training = node.target is nn.functional.batch_norm and node.kwargs.get("training")
    return bool(training) and node.args[1] is not None


def is_random(node: fx.Node) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name.startswith(RANDOM) or name.endswith("dropout")


def computed(node: fx.Node, values: dict[fx.Node, Any], model: nn.Module) -> Any:
    given: Any = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    args, kwargs = given
    state = torch.get_rng_state()
    try:
        if (module := called(node, model)) is not None:
            result = module(*args, **kwargs)
        elif node.op == "call_method":
            result = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        else:
            assert callable(node.target)
            result = node.target(*args, **kwargs)
    except Exception:  # it would have failed at the call, and will
        result = FAILED
    if not torch.equal(state, torch.get_rng_state()):  # it draws random numbers, others at each call
        torch.set_rng_state(state)
        return FAILED
    return result
