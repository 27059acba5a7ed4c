"""Which steps of a network are attention, to be computed in codes (DYN-ATTENTION): calls of it, and products around a
softmax."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from quantspec.capture.attention import weighted
from quantspec.ir import attention
from quantspec.ir.float_graph import Node
from quantspec.ir.program import Attention, Call, Program, Ref, Step
from quantspec.ir.traverse import reads, refs
from quantspec.module.report import EXCLUDED

from .contraction import EINSUM, Order, Product, product_of

PRODUCTS = {("function", "operator.matmul"), ("function", "torch.matmul"), ("function", "torch.bmm"),
            ("method", "matmul"), ("method", "bmm"), EINSUM}  # fmt: skip
SUMS = {("function", "operator.add"), ("function", "torch.add"), ("method", "add")}
FACTORS = {("function", "operator.mul"), ("function", "torch.mul"), ("method", "mul"),
           ("function", "operator.truediv"), ("function", "torch.div"), ("method", "div")}  # fmt: skip
FILLS = {("method", "masked_fill"), ("function", "torch.masked_fill")}
JOINED = ".joined"  # what attention is called whose axes the step of its name puts into another order
TYPED = {("method", "to"), ("method", "type"), ("method", "float")}
SOFTMAX = {("function", "torch.softmax"), ("function", "torch.nn.functional.softmax"), ("method", "softmax")}


def with_attention(network: Program, *, written_out: bool = True) -> Program:
    """The network whose attention is steps in codes, where its dialect has such. ``written_out``: also the operations
    that make it up."""
    if network.dialect != "onnx":
        return network
    steps = tuple(in_codes(step, network) for step in network.steps)
    network = replace(network, steps=steps)
    return Written(network).network() if written_out else network


def in_codes(step: Step, network: Program) -> Step:
    """A call of attention as a step in codes; others as they are."""
    if not isinstance(step, Call) or step.reason == EXCLUDED:
        return step
    if not attention.has_codes(step, attention.reads_weights(step.name, network.steps, network.output)):
        return step
    return Attention(step.name, step.kind, step.target, step.args, step.kwargs, "")


def attends(node: Node, steps: Mapping[str, Step]) -> bool:
    """Whether a node of a float graph is attention in codes, or a product that became part of it, by the steps of the
    network that the graph became."""
    made = any(isinstance(steps.get(name), Attention) for name in (node.name, node.name + JOINED))
    return made or (isinstance(node, Call) and node.name not in steps)


class Written:
    """A network with attention written out: softmax(query @ keys * factor + mask) @ value, where nothing else reads
    what is in between."""

    def __init__(self, network: Program):
        self.given = network
        self.steps = {step.name: step for step in network.steps}
        self.readers: dict[str, int] = dict.fromkeys(refs(network.output), 2)
        self.sizes: dict[str, list[Call]] = {}  # calls that only ask a value for the length of an axis
        for step in network.steps:
            if isinstance(step, Call) and (step.kind, step.target) == ("method", "size") and len(step.args) == 2:
                self.sizes.setdefault(step.args[0].name, []).append(step)
                continue
            for name in reads(step):
                self.readers[name] = self.readers.get(name, 0) + 1

    def network(self) -> Program:
        """The same with each of them as one step."""
        steps: list[Step] = []
        gone: set[str] = set()
        asked: dict[str, Call] = {}
        for step in self.given.steps:
            inner, made, lengths = self.attention(step) or (set(), [step], [])
            gone |= inner
            steps += made
            asked |= {call.name: call for call in lengths}
        if not gone:
            return self.given
        kept = tuple(asked.get(step.name, step) for step in steps if step.name not in gone)
        called = {(step.kind, step.target) for step in kept if isinstance(step, Call)}
        callables = {key: value for key, value in self.given.callables.items() if key in called}
        callables["function", attention.WRITTEN] = weighted
        return replace(self.given, steps=kept, callables=callables)

    def between(self, value: Any, kinds: set[tuple[str, str]]) -> Call | None:
        """The call of one of these kinds that gives a value which is read once; None where there is none."""
        step = self.steps.get(value.name) if isinstance(value, Ref) else None
        if not isinstance(step, Call) or step.reason == EXCLUDED or self.readers[step.name] != 1:
            return None
        return step if (step.kind, step.target) in kinds else None

    def product(self, step: Call, weights: Any = None) -> Product | None:
        """The product of matrices that a call of one is; ``weights``: which factor comes first, if it is known."""
        if (step.kind, step.target) == EINSUM:
            return product_of(step, weights)
        return Product(*step.args, {}) if len(step.args) == 2 and not step.kwargs else None

    def softmax(self, value: Any, axes: int | None) -> Call | None:
        """A softmax over the last axis, of ``axes`` where it is known how many there are."""
        step = self.steps.get(value.name) if isinstance(value, Ref) else None
        if isinstance(step, Call) and step.kind == "module":
            module = self.given.callables.get((step.kind, step.target))
            last = type(module) is nn.Softmax and module.dim == -1 and len(step.args) == 1
            return step if last and self.readers[step.name] == 1 and step.reason != EXCLUDED else None
        call = self.between(value, SOFTMAX)
        if call is None or not call.args:
            return None
        # Of another type than its input, it gives values that are multiplied by others than the step would be.
        if any(dtype not in (None, torch.float32) for dtype in (*call.args[2:], call.kwargs.get("dtype"))):
            return None
        dim = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim")
        return call if dim == -1 or axes is not None and dim == axes - 1 else None

    def attention(self, step: Step) -> tuple[set[str], list[Step], list[Call]] | None:
        """What makes the weights of a product with values, the steps in their place, and what asks for the lengths of
        scores, asking for those of queries and keys; None for another step."""
        if not isinstance(step, Call) or (step.kind, step.target) not in PRODUCTS or step.reason == EXCLUDED:
            return None
        for weights in map(Ref, refs(step.args)) if (step.kind, step.target) == EINSUM else step.args[:1]:
            of_values = self.product(step, weights)
            if of_values is not None and (found := self.scores(of_values)) is not None:
                break
        else:
            return None
        inner, of_scores, told = found
        asked = self.asked(inner, of_scores)
        return None if asked is None else (inner, attending_steps(step.name, of_scores, of_values, told), asked)

    def asked(self, inner: set[str], of_scores: Product) -> list[Call] | None:
        """What asks for lengths of scores, asking for those that they are from; None where that is not known."""
        found = []
        for name in inner:
            for call in self.sizes.get(name, ()):
                source = of_scores.lengths.get(call.args[1]) if isinstance(call.args[1], int) else None
                if source is None:
                    return None
                found.append(replace(call, args=source))
        return found

    def scores(self, of_values: Product) -> tuple[set[str], Product, tuple[Any, ...]] | None:
        """What makes the weights of a product with values: the names of the steps, the product of queries and keys, and
        what is done to it; None where those are no weights of attention."""
        inner, weights = set[str](), of_values.a
        # Some say of which type weights are, which they are already.
        typed = self.between(weights, TYPED)
        if typed is not None and typed.args[1:] == (() if typed.target == "float" else (torch.float32,)):
            inner.add(typed.name)
            weights = typed.args[0]
        softmax = self.softmax(weights, of_values.axes)
        if softmax is None:
            return None
        inner.add(softmax.name)
        scores, mask, factor, divides, hidden = softmax.args[0], None, 1.0, False, None
        if (filled := self.between(scores, FILLS)) is not None and len(filled.args) == 3 and not filled.kwargs:
            scores, mask, hidden = filled.args
            if not isinstance(mask, (Ref, torch.Tensor)) or not attention.hides(hidden):
                return None
            inner.add(filled.name)
        elif (added := self.between(scores, SUMS)) is not None and len(added.args) == 2 and not added.kwargs:
            scores, mask = added.args
            if self.between(scores, PRODUCTS | FACTORS) is None:
                scores, mask = mask, scores
            if not isinstance(mask, (Ref, torch.Tensor)):
                return None
            inner.add(added.name)
        if (scaled := self.between(scores, FACTORS)) is not None and len(scaled.args) == 2 and not scaled.kwargs:
            scores, factor = scaled.args
            divides = "div" in scaled.target
            if isinstance(scores, (int, float)) and not divides:
                scores, factor = factor, scores
            if not isinstance(factor, (int, float)) or factor == 0:
                return None
            inner.add(scaled.name)
        product = self.between(scores, PRODUCTS)
        of_scores = None if product is None else self.product(product)
        if product is None or of_scores is None:
            return None
        # A mask may have more axes than scores, or longer ones.
        if any(name in self.sizes for name in inner if scaled is None or name != scaled.name):
            return None
        inner.add(product.name)
        if not all(isinstance(each, Ref) for each in (of_scores.a, of_scores.b, of_values.b)):
            return None
        return inner, of_scores, (mask, factor, divides, hidden)


def attending_steps(name: str, of_scores: Product, of_values: Product, told: tuple[Any, ...]) -> list[Step]:
    """Attention as a step, between those that put axes into another order."""
    steps: list[Step] = []

    def turned(value: Any, order: Order, called: str) -> Any:
        if order is None:
            return value
        method, axes = order
        steps.append(Call(called, "method", method, (value, *axes), {}, ""))
        return Ref(called)

    query = turned(of_scores.a, of_scores.before_a, f"{name}.query")
    keys = turned(of_scores.b, of_scores.before_b, f"{name}.keys")
    values = turned(of_values.b, of_values.before_b, f"{name}.values")
    own = name if of_values.behind is None else name + JOINED
    steps.append(Attention(own, "function", attention.WRITTEN, (query, keys, values, *told), {}, ""))
    turned(Ref(own), of_values.behind, name)
    return steps
