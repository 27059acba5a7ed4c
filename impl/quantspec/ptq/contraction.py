"""Sums of products by letters, ``torch.einsum``, that are one of the two products of attention (DYN-ATTENTION)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from quantspec.ir.program import Call

EINSUM = ("function", "torch.einsum")
MANY = "..."  # axes in front that all have in common

# A method and its arguments that put axes into another order; None where they are in order.
Order = tuple[str, tuple[int, ...]] | None


class Product(NamedTuple):
    """A product of matrices, [..., rows, summed] and [..., summed, columns]: its factors, what puts their axes into
    that order, and what puts the result's, [..., rows, columns], into theirs. ``lengths``: by the axes of rows and
    columns, the factor and the axis of it that are as long, and ``axes``: how many there are, where that is known."""

    a: Any
    b: Any
    lengths: Mapping[int, tuple[Any, int]]
    axes: int | None = None
    before_a: Order = None
    before_b: Order = None
    behind: Order = None


def product_of(step: Call, weights: Any = None) -> Product | None:
    """The product of matrices that a call of ``torch.einsum`` is; None where it is none. ``weights``: the factor that
    is [..., rows, summed] as it is; without it, it is the result that is [..., rows, columns] as it is."""
    equation, *factors = step.args  # torch writes letters for lists of numbers
    factors = list(factors[0]) if len(factors) == 1 and isinstance(factors[0], (tuple, list)) else factors
    read, _, result = equation.replace(" ", "").partition("->")
    terms = [*read.split(","), result]
    many = all(term.startswith(MANY) for term in terms)
    terms = [term.removeprefix(MANY) if many else term for term in terms]
    if len(terms) != 3 or len(factors) != 2 or not all(t.isalpha() and len(set(t)) == len(t) > 1 for t in terms):
        return None
    if many and any(len(term) > 2 for term in terms):
        return None
    (a, b), (of_a, of_b, result) = factors, terms
    if b == weights if weights is not None else result[-2] in of_b:
        a, b, of_a, of_b = b, a, of_b, of_a
    whole = result if weights is None else of_a
    lead = "".join(letter for letter in whole if letter in of_a and letter in of_b and letter in result)
    summed, rows, columns = (only(one, *others) for one, *others in (
        (of_a, of_b, lead), (of_a, result, lead), (of_b, result, lead),
    ))  # fmt: skip
    if not summed or not rows or not columns or whole != lead + rows + (columns if weights is None else summed):
        return None
    forms = lead + rows + summed, lead + summed + columns, lead + rows + columns
    if any(sorted(term) != sorted(form) for term, form in zip((of_a, of_b, result), forms)):
        return None
    lengths: dict[int, tuple[Any, int]] = {}
    for start in (-len(result), 0)[: 1 if many else 2]:  # from the end and from the front
        lengths[result.index(rows) + start] = a, of_a.index(rows) + start
        lengths[result.index(columns) + start] = b, of_b.index(columns) + start
    orders = order(of_a, forms[0]), order(of_b, forms[1]), order(forms[2], result)
    return Product(a, b, lengths, None if many else len(whole), *orders)


def only(one: str, other: str, lead: str) -> str:
    """The letter that two terms have in common beside those in front; "" where it is not one."""
    common = "".join(letter for letter in one if letter in other and letter not in lead)
    return common if len(common) == 1 else ""


def order(axes: str, wanted: str) -> Order:
    """What puts axes into an order."""
    if axes == wanted:
        return None
    if len(axes) == 2:
        return "transpose", (-2, -1)
    return "permute", tuple(axes.index(letter) for letter in wanted)
