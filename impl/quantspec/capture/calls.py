"""How a module was called: the arguments by the names of its forward, of which tensors are inputs and everything else
is part of the pattern."""

import inspect
from collections import namedtuple
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from types import MethodType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.masked import MaskedTensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import TreeSpec, register_pytree_node, tree_flatten, tree_leaves, tree_unflatten

from quantspec.numerics.affine import check_memory

# How an annotation of a list begins, as text.
LISTS = ("list", "typing.list", "<class 'list'>", "typing.sequence")
CONSTANTS = (
    int, float, complex, bool, str, bytes, type(None), type(...),
    torch.dtype, torch.device, torch.layout, torch.memory_format,
)  # fmt: skip


AUTOCAST = "the model calls it under autocast"

# Torch's older versions do not take what is made of a named tuple's class apart.
if len(tree_leaves(PackedSequence(torch.zeros(1), torch.ones(1, dtype=torch.int64)))) == 1:
    register_pytree_node(
        PackedSequence, lambda packed: (list(packed), PackedSequence), lambda leaves, kind: kind(*leaves)
    )


class NotPlain(Exception):
    """A call with something in it that is neither a tensor nor a constant."""


@dataclass(frozen=True)
class CallPattern:
    """How a module is called: all arguments that are no tensors, defaults among them. ``names`` says what the tensors
    are called, ``given`` what a caller of the pattern gave."""

    given: "Given | None" = field(compare=False)
    shape: str
    constants: tuple[Any, ...]
    names: tuple[str, ...]

    def arguments(self, values: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of this pattern, with values in the places of tensors."""
        assert self.given is not None
        left = iter(values)
        leaves = [next(left) if leaf is TENSOR else leaf for leaf in self.given.leaves]
        args, kwargs = tree_unflatten(leaves, self.given.spec)
        return tuple(args), dict(kwargs)

    def identity(self) -> "CallPattern":
        """The pattern without what builds its arguments: enough to know it by."""
        return replace(self, given=None)


class Given(NamedTuple):
    """The arguments of a call as its caller gave them, by position or by name, with TENSOR in the places of tensors: a
    decorator of the forward may look for them there, or add what nobody gave."""

    spec: TreeSpec
    leaves: tuple[Any, ...]


class _Tensor:
    """Stands for a tensor among the constants of a pattern."""

    def __reduce__(self) -> str:
        return "TENSOR"


TENSOR = _Tensor()


def call_of(
    forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[CallPattern, list[torch.Tensor]]:
    """The pattern of a call, and its tensors. Raises NotPlain, and TypeError for what ``forward`` does not take.

    Arguments nobody gave have their defaults, so that a call which gives the default has the same pattern.
    """
    given = args, kwargs
    signature = signature_of(forward)
    if signature is None:
        positional, named = args, kwargs
        first = [f"input{i}" for i in range(len(args))]
    else:
        bound = signature.bind(*args, **kwargs)
        given = args, {name: kwargs[name] for name in (*signature.parameters, *kwargs) if name in kwargs}
        bound.apply_defaults()
        positional, named = bound.args, bound.kwargs
        first = positional_names(signature, len(positional))
    leaves, spec = tree_flatten((positional, named))
    labels = labels_of(positional, named, first)
    constants = tuple(map(constant_of, leaves, labels))
    tensors = list(filter(is_tensor, leaves))
    names = unique([label for leaf, label in zip(leaves, labels, strict=True) if is_tensor(leaf)])
    passed, form = tree_flatten(given)
    if list(map(id, filter(is_tensor, passed))) != list(map(id, tensors)):  # a default is a tensor
        passed, form = leaves, spec
    as_given = Given(form, tuple(TENSOR if is_tensor(leaf) else leaf for leaf in passed))
    return CallPattern(as_given, structure(spec), constants, names), tensors


def is_tensor(value: Any) -> bool:
    return type(value) in (torch.Tensor, nn.Parameter)


def is_choice(value: Any) -> bool:
    """Whether an argument is one of which a model may ask which of several it is."""
    return isinstance(value, (bool, str, bytes, Enum))


def constant_of(leaf: Any, label: str) -> Any:
    """What a pattern has in the place of a leaf of the arguments. Raises NotPlain."""
    if is_tensor(leaf):
        return TENSOR
    if isinstance(leaf, CONSTANTS):
        return type(leaf).__name__, leaf
    raise NotPlain(f"the argument {label!r} is a {type(leaf).__name__}")


def left_out(forward: Callable[..., Any], pattern: CallPattern) -> tuple[tuple[str, Any], ...] | None:
    """(name, default) of the arguments that a call of the pattern leaves out, where it gives each tensor by its name
    and nothing else. None where it gives more."""
    if all(constant is TENSOR for constant in pattern.constants):
        return ()
    try:
        if call_of(forward, (), dict.fromkeys(pattern.names, torch.empty(0)))[0] != pattern:
            return None
    except (NotPlain, TypeError):
        return None
    signature = signature_of(forward)
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    others = [p for p in signature.parameters.values() if p.kind not in several] if signature is not None else []
    return tuple((p.name, p.default) for p in others if p.name not in pattern.names)


def structure(spec: TreeSpec) -> str:
    """How arguments are nested, as a text that is the same in every process and version of torch."""
    if spec.is_leaf():
        return "*"
    children = spec.children() if hasattr(spec, "children") else spec.children_specs  # torch before 2.10 has these
    inner = ", ".join(map(structure, children))
    kind = namedtuple if spec.type is PackedSequence else spec.type
    return f"{kind.__name__}({'' if spec.context is None else spec.context}: {inner})"


def key_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, list[torch.Tensor]]:
    """What tells calls of plain arguments, and of tuples and lists of them, apart: equal where ``call_of`` gives equal
    patterns; and their tensors, in order. None where there are other arguments."""
    parts: list[Any] = [len(args), *kwargs]
    tensors: list[torch.Tensor] = []
    left = [*args, *kwargs.values()][::-1]
    while left:
        value = left.pop()
        kind = type(value)
        if is_tensor(value):
            parts.append(TENSOR)
            tensors.append(value)
        elif kind in CONSTANTS:
            parts += (kind, value)
        elif kind in (tuple, list):
            parts += (kind, len(value))
            left += value[::-1]
        else:
            return None, []
    return tuple(parts), tensors


SIGNATURES: WeakKeyDictionary[Callable[..., Any], inspect.Signature] = WeakKeyDictionary()


def signature_of(forward: Callable[..., Any]) -> inspect.Signature | None:
    """The signature of a module's forward; None for what has none."""
    method = isinstance(forward, MethodType)
    function = forward.__func__ if isinstance(forward, MethodType) else forward
    try:
        if method and function in SIGNATURES:
            return SIGNATURES[function]
        signature = inspect.signature(forward)
        if method:
            SIGNATURES[function] = signature
    except (TypeError, ValueError):
        return None
    return signature


def positional_names(signature: inspect.Signature, count: int) -> list[str]:
    names: list[str] = []
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            names += [f"{name}{i}" for i in range(count - len(names))]
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            names.append(name)
    return names[:count]


def labels_of(positional: tuple[Any, ...], named: dict[str, Any], first: list[str]) -> list[str]:
    """What each leaf of the arguments is called."""
    labels = []
    for name, value in (*zip(first, positional, strict=True), *named.items()):
        count = len(tree_flatten(value)[0])
        labels += [name] if count == 1 else [f"{name}{i}" for i in range(count)]
    return labels


def unique(names: list[str]) -> tuple[str, ...]:
    """Names of which none is there twice."""
    seen: dict[str, None] = {}
    for name in names:
        other, count = name, 1
        while other in seen:
            other, count = f"{name}_{count}", count + 1
        seen[other] = None
    return tuple(seen)


def dense(
    args: tuple[Any, ...], kwargs: dict[str, Any], *, training: bool = False
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a model. TypeError for a tensor among them that is not dense, on the CPU, with values of its
    own. ``training``: one that torch's transformations follow will do, and one of zeros without memory will not."""
    plain = not kwargs and all(isinstance(value, torch.Tensor) for value in args)  # most calls: no tree to walk
    for value in args if plain else tree_leaves((args, kwargs)):
        if isinstance(value, torch.Tensor):
            form = None
            if value.is_nested or value.layout is not torch.strided:
                form = "nested" if value.is_nested else f"of layout {value.layout}"
            elif value.device.type != "cpu":
                form = f"on {value.device}"
            elif isinstance(value, MaskedTensor):
                form = "masked"
            elif training and value._is_zerotensor():
                form = "without memory"
            elif not training and stands_for_others(value):
                form = "of no values of its own: vmap, grad and the like are no part of calibration"
            else:
                check_memory(value, "batch")
            if form is not None:
                raise TypeError(f"batch: expected dense tensors on the CPU, got one that is {form}")
    return args, kwargs


def stands_for_others(x: torch.Tensor) -> bool:
    """Whether a tensor is one that torch's transformations of functions hand to what they transform."""
    try:
        x.untyped_storage()
    except (RuntimeError, NotImplementedError):
        return True
    return False


def positional(signature: inspect.Signature) -> list[inspect.Parameter]:
    """The parameters that are given by position."""
    return [p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def says_list(forward: Callable[..., Any]) -> bool:
    """Whether the first argument of a forward is said to be a list."""
    takes = [] if (signature := signature_of(forward)) is None else positional(signature)
    return bool(takes) and str(takes[0].annotation).lower().startswith(LISTS)


def takes_one(forward: Callable[..., Any]) -> bool:
    """Whether a forward can be called with one argument, and needs none but that."""
    takes = [] if (signature := signature_of(forward)) is None else positional(signature)
    return bool(takes) and all(p.default is not p.empty for p in takes[1:])


def arguments(forward: Callable[..., Any], batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A batch of calibration data as arguments: a tensor, a tuple of positional inputs (surplus entries are ignored),
    or a mapping of inputs by name.

    A list is one argument where the first that the model takes is said to be a list; ``parts.as_given`` tells others.
    """
    signature = signature_of(forward)
    if hasattr(batch, "keys") and hasattr(batch, "__getitem__"):  # a dict, or what a tokenizer gives
        return (), {key: batch[key] for key in batch.keys()}
    if isinstance(batch, (torch.Tensor, PackedSequence)):
        return (batch,), {}
    if not isinstance(batch, (tuple, list)):
        raise TypeError(f"batch: expected a tensor, a tuple or a dict, got {type(batch).__name__}")
    if signature is None:
        return tuple(batch), {}
    if isinstance(batch, list) and says_list(forward):
        return (batch,), {}
    takes = positional(signature)
    if any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values()):
        return tuple(batch), {}
    return tuple(batch[: len(takes)]), {}


def unusual(tensors: Iterable[Any]) -> str | None:
    """For what else than its output a module is called with some values; None where it is called for that alone."""
    found = [x for x in tensors if isinstance(x, torch.Tensor)]
    if torch.is_grad_enabled() and any(x.requires_grad for x in found):  # nothing here asks for gradients itself
        return "the model takes gradients through it"
    for x in found:
        try:
            x.untyped_storage()
        except (RuntimeError, NotImplementedError):
            return "it is called with tensors that have no memory, as torch.vmap does"
    return None


def lowered(module: nn.Module | None) -> bool:
    """Whether a module is a layer that autocast computes in its own type, whatever floats it is given."""
    return isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))
