"""Products with parameters, by whatever name a forward calls them, as ``F.linear`` of a weight [outputs, inputs].

``torch.addmm``, ``matmul``, ``bmm`` and ``einsum`` say the same thing in other orders of axes: a letter that only the
value and the parameter have is summed over, one that the parameter and the result have is an output. Buffers stay what
they are, and so do angles: eight bits do not hold them.
"""

import operator
from collections.abc import Callable, Mapping, MutableMapping
from math import prod
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from quantspec.ir.float_graph import Recipe

from .operators import ARITHMETIC, is_value

PRODUCTS = (torch.matmul, operator.matmul, torch.mm, "matmul", "mm")
BATCHED = (torch.bmm, "bmm")
CIRCULAR = (torch.sin, torch.cos, "sin", "cos")
MOVED = {target for name in ("add", "sub", "mul", "div") for target in ARITHMETIC[name]}
MOST = 64  # so many weights that are in one parameter become layers of their own
MANY = "..."


def as_layers(
    graph: fx.Graph, model: nn.Module, constants: MutableMapping[str, Any], recipes: MutableMapping[str, Recipe]
) -> None:
    """Writes a graph's products with parameters as linear layers; their weights become constants, and get recipes."""
    writer = Writer(graph, model, constants, recipes)
    for node in list(graph.nodes):
        if node.op in ("call_function", "call_method") and not is_angle(node):
            writer.write(node)


def is_angle(node: fx.Node) -> bool:
    """Whether a sine or a cosine is taken of a value, or of a multiple of it or a sum with a constant (STA-PRODUCT)."""
    for user in node.users:
        moves = user.target in MOVED and all(read is node or read.op == "get_attr" for read in user.all_input_nodes)
        if user.target in CIRCULAR or (moves and is_angle(user)):
            return True
    return False


class Writer:
    """Puts a linear layer into the place of a product."""

    def __init__(
        self, graph: fx.Graph, model: nn.Module, constants: MutableMapping[str, Any],
        recipes: MutableMapping[str, Recipe],
    ):  # fmt: skip
        self.graph, self.model, self.constants, self.recipes = graph, model, constants, recipes

    def write(self, node: fx.Node) -> None:
        """Writes a node as a layer where it is one."""
        given: tuple[Any, ...] = node.args
        layer_node = None
        with self.graph.inserting_before(node):
            if node.target in PRODUCTS and len(given) == 2:
                layer_node = self.product(node, *given)
            elif node.target in BATCHED and len(given) == 2:
                layer_node = self.contraction(node, "zni,zio->zno", *given)
            elif node.target in (torch.addmm, "addmm") and len(given) == 3 and not node.kwargs:
                layer_node = self.with_summand(node, given[0], self.product(node, *given[1:]))
            elif node.target is torch.einsum and isinstance(given[0], str):
                operands = given[1] if len(given) == 2 else given[1:]
                if isinstance(operands, (tuple, list)) and len(operands) == 2:
                    layer_node = self.contraction(node, given[0], *operands)
            elif node.target in ARITHMETIC["add"] and len(given) == 2 and not node.kwargs:
                layer_node = self.with_bias(node)
        if layer_node is not None:
            read = node.all_input_nodes
            node.replace_all_uses_with(layer_node)
            self.graph.erase_node(node)
            for layer in read:
                if layer.target is F.linear and not layer.users:
                    self.graph.erase_node(layer)  # its bias has come into it

    def parameter(self, argument: Any) -> torch.Tensor | None:
        """The values of an argument that is a parameter, or is computed of some."""
        if not is_value(argument) or argument.op != "get_attr":
            return None
        name = str(argument.target)
        value = self.constants[name] if name in self.constants else operator.attrgetter(name)(self.model)
        return value if isinstance(value, nn.Parameter) and value.dtype == torch.float32 else None

    def product(self, node: fx.Node, left: Any, right: Any) -> fx.Node | None:
        """A product of matrices."""
        weight = self.parameter(right)
        if weight is not None and weight.ndim == 2:
            return self.contraction(node, "...i,io->...o", left, right)
        weight = self.parameter(left)
        if weight is not None and weight.ndim == 2:
            return self.contraction(node, "oi,...in->...on", left, right)
        return None

    def with_summand(self, node: fx.Node, summand: Any, layer: fx.Node | None) -> fx.Node | None:
        if layer is None:
            return None
        if layer.target is F.linear and self.is_bias(summand, layer):
            with self.graph.inserting_before(layer):
                layer.args = (*layer.args, self.flat(summand))
            return layer
        return self.add(node, torch.add, layer, summand)

    def with_bias(self, node: fx.Node) -> fx.Node | None:
        """A sum of a layer that nobody else reads and its bias."""
        left: Any
        right: Any
        left, right = node.args
        for layer, summand in ((left, right), (right, left)):
            if is_value(layer) and layer.target is F.linear and len(layer.users) == 1 and len(layer.args) == 2:
                if not layer.kwargs and self.is_bias(summand, layer):
                    return self.add(node, F.linear, *layer.args, self.flat(summand))
        return None

    def is_bias(self, summand: Any, layer: Any) -> bool:
        bias, weight = self.parameter(summand), self.parameter(layer.args[1])
        return bias is not None and weight is not None and bias.shape[-1:] == (len(weight),) == (bias.numel(),)

    def flat(self, bias: fx.Node) -> fx.Node:
        value = self.parameter(bias)
        assert value is not None
        return bias if value.ndim == 1 else self.constant(bias, "flat", [("reshape", -1)])

    def contraction(self, node: fx.Node, equation: str, left: Any, right: Any) -> fx.Node | None:
        """A sum of products by the letters of ``torch.einsum``; None where that is no layer."""
        read, _, result = equation.replace(" ", "").partition("->")
        first, _, second = read.partition(",")
        if (weight := self.parameter(left)) is not None and self.parameter(right) is None:
            x, source, of_x, of_weight = right, left, second, first
        elif (weight := self.parameter(right)) is not None and self.parameter(left) is None:
            x, source, of_x, of_weight = left, right, first, second
        else:
            return None
        if not is_value(x) or not fits(of_x, of_weight, result, weight):
            return None
        length = dict(zip(of_weight, weight.shape))
        shared = [letter for letter in of_weight if letter in of_x and letter in result]
        summed = [letter for letter in of_weight if letter in of_x and letter not in result]
        outputs = [letter for letter in of_weight if letter not in of_x]
        if prod(length[letter] for letter in summed) < 2 or not outputs or len(shared) > 1:
            return None
        many = MANY if MANY in of_x else ""
        letters, wanted = of_x.removeprefix(MANY), result.removeprefix(MANY)
        layer = Layer(self, node, source, many, summed, outputs, length)
        if not shared:
            return layer.moved(*layer.applied(x, letters, of_weight, None), wanted)
        (letter,) = shared
        if length[letter] > MOST:
            return None
        at = letters.index(letter) - len(letters)
        rows = [self.add(node, "select", x, at, index) for index in range(length[letter])]
        layers = [layer.applied(row, letters.replace(letter, ""), of_weight, (letter, i)) for i, row in enumerate(rows)]
        given = layers[0][1]
        stacked = self.add(node, torch.stack, [part for part, _ in layers], -len(given) - 1)
        return layer.moved(stacked, letter + given, wanted)

    def add(self, node: fx.Node, target: str | Callable[..., Any], *args: Any) -> fx.Node:
        """A node that was made where another one was."""
        op = "call_method" if isinstance(target, str) else "call_function"
        added = self.graph.create_node(op, target, args)
        added.meta = dict(node.meta)
        return added

    def constant(self, source: fx.Node, form: str, moves: list[tuple[Any, ...]]) -> fx.Node:
        """A form of a parameter, which is made once, by methods and their arguments."""
        name = f"{source.target}_{form}"
        if name not in self.constants:
            value = self.parameter(source)
            assert value is not None
            made = self.recipes.get(str(source.target)) or Recipe.of(str(source.target), value)
            self.recipes[name] = moved = made.then(*moves, ("contiguous",))
            self.constants[name] = nn.Parameter(moved.value, requires_grad=False)
        added = self.graph.create_node("get_attr", name)
        added.meta = dict(source.meta)
        return added


class Layer:
    """A linear layer by letters: those that are summed over, its outputs, and the length of each."""

    def __init__(
        self, writer: Writer, node: fx.Node, source: fx.Node, many: str, summed: list[str], outputs: list[str],
        length: Mapping[str, int],
    ):  # fmt: skip
        self.writer, self.node, self.source, self.many = writer, node, source, many
        self.summed, self.outputs, self.length = summed, outputs, length

    def applied(self, x: fx.Node, letters: str, of_weight: str, part: tuple[str, int] | None) -> tuple[fx.Node, str]:
        """The layer on a value, and the letters of what it gives. ``part``: which of several weights."""
        writer, node = self.writer, self.node
        lead = "".join(letter for letter in letters if letter not in self.summed)
        x = self.moved(x, letters, lead + "".join(self.summed))
        if len(self.summed) > 1:
            x = writer.add(node, "flatten", x, -len(self.summed), -1)

        moves: list[tuple[Any, ...]] = []
        rest = of_weight
        if part is not None:
            moves, rest = [("select", rest.index(part[0]), part[1])], rest.replace(part[0], "")
        moves.append(("permute", tuple(rest.index(letter) for letter in (*self.outputs, *self.summed))))
        moves.append(("reshape", prod(self.length[letter] for letter in self.outputs), -1))
        kept = part is None and list(of_weight) == [*self.outputs, *self.summed] and len(of_weight) == 2
        form = "".join(map(str, (*(of_weight.index(letter) for letter in (*self.outputs, *self.summed)),)))
        form += "" if part is None else f"_{part[1]}"
        y = writer.add(node, F.linear, x, self.source if kept else writer.constant(self.source, form, moves))
        if len(self.outputs) > 1:
            y = writer.add(node, "unflatten", y, -1, tuple(self.length[letter] for letter in self.outputs))
        return y, lead + "".join(self.outputs)

    def moved(self, x: fx.Node, letters: str, wanted: str) -> fx.Node:
        """A value with its last axes in another order."""
        if letters == wanted:
            return x
        if len(letters) == 2 and self.many:
            return self.writer.add(self.node, "transpose", x, -2, -1)
        if not self.many:
            return self.writer.add(self.node, "permute", x, *(letters.index(letter) for letter in wanted))
        count = len(letters)
        sources = tuple(letters.index(letter) - count for letter in wanted)
        return self.writer.add(self.node, "movedim", x, sources, tuple(range(-count, 0)))


def fits(of_x: str, of_weight: str, result: str, weight: torch.Tensor) -> bool:
    """Whether letters are those of a layer: each once in a term, all that are not summed in the result, and of a value
    any number of axes only in front."""
    terms = [term.removeprefix(MANY) for term in (of_x, of_weight, result)]
    if any(not term.isalpha() and term or len(set(term)) < len(term) for term in terms):
        return False
    if of_weight.startswith(MANY) or of_x.startswith(MANY) != result.startswith(MANY):
        return False
    if weight.ndim < 2 or len(of_weight) != weight.ndim:
        return False
    x, w, y = map(set, terms)
    return x ^ w <= y
