"""What Python may ask of a tensor, by the names of its methods and attributes, as a recording has to know them."""

import operator
from collections.abc import Callable
from inspect import isfunction, signature
from types import BuiltinFunctionType
from typing import Any

import torch

# Functions that tell Python the values of a tensor.
VALUES = frozenset(
    """
    __bool__ __int__ __float__ __index__ __complex__ item tolist numpy __array__ __contains__ data_ptr nonzero
    argwhere unique unique_consecutive masked_select equal allclose is_nonzero storage untyped_storage __dlpack__
    nonzero_static cpu_ set_ resize_ register_hook backward requires_grad_ __reduce_ex__ __deepcopy__
    """.split()
)
# What is asked of a tensor and depends on neither its values nor its size.
FACTS = frozenset(
    """
    dtype device layout is_cuda requires_grad grad grad_fn is_leaf _version names is_sparse is_quantized is_meta
    is_floating_point is_complex is_contiguous element_size get_device type is_mps is_nested is_xpu is_mkldnn
    itemsize is_signed is_inference is_conj is_neg output_nr retains_grad __hash__ is_pinned is_shared _is_view
    is_cpu is_sparse_csr __repr__ __format__ __str__ has_names is_ipu is_hpu
    is_mtia is_maia is_vulkan
    """.split()
)
# Those that its type says.
TYPE = frozenset("dtype is_floating_point is_complex is_signed element_size itemsize type".split())
RANK = frozenset({"dim", "ndim", "ndimension"})
REFLECTED: dict[str, Callable[..., Any]] = {
    "__radd__": operator.add, "__rsub__": operator.sub, "__rmul__": operator.mul, "__rtruediv__": operator.truediv,
    "__rdiv__": operator.truediv, "__rpow__": operator.pow, "__rmatmul__": operator.matmul,
    "__rfloordiv__": operator.floordiv, "__rmod__": operator.mod, "__rand__": operator.and_, "__ror__": operator.or_,
    "__rxor__": operator.xor,
}  # fmt: skip
PLAIN = "add sub mul truediv floordiv mod pow matmul eq ne lt le gt ge neg abs invert getitem"
OPERATORS: dict[str, Callable[..., Any]] = {
    **{f"__{name}__": getattr(operator, name) for name in PLAIN.split()},
    "__and__": operator.and_, "__or__": operator.or_, "__xor__": operator.xor, "__pos__": operator.pos,
}  # fmt: skip
AUGMENTED = {
    "__iadd__": "add", "__isub__": "sub", "__imul__": "mul", "__itruediv__": "div", "__ipow__": "pow",
    "__idiv__": "div", "__ifloordiv__": "floor_divide",
}  # fmt: skip
# What has the values of its first tensor, and of another one the type or the shape.
LIKE = frozenset("to type_as expand_as view_as reshape_as".split())
# Where functions that may write in place have the argument that says so.
INPLACE_AT = {
    "relu": 1, "relu6": 1, "elu": 2, "selu": 1, "celu": 2, "leaky_relu": 2, "silu": 1, "mish": 1, "hardswish": 1,
    "hardsigmoid": 1, "hardtanh": 3, "threshold": 3, "rrelu": 4, "dropout": 3, "dropout1d": 3, "dropout2d": 3,
    "dropout3d": 3, "alpha_dropout": 3, "feature_alpha_dropout": 3,
}  # fmt: skip
# The methods of tensors that are written in Python, of which some go by other names.
METHODS = {what: name for name, what in vars(torch.Tensor).items() if isfunction(what)}


# How torch's functions call their first argument, and those behind it that say of what a product or a sum is; others
# mean something else by these names.
FIRST = ("input", "tensors", "A")
BEHIND = ("other", "mat1", "mat2")
OTHERWISE = frozenset({"condition", "sorted_sequence", "n"})


def by_place(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a module, or of a function or method of torch's, with those by their place that are looked for
    there."""
    if not kwargs or not OTHERWISE.isdisjoint(kwargs):
        return args, kwargs
    given, left = list(args), dict(kwargs)
    first: tuple[str, ...]
    behind: tuple[str, ...]
    if isinstance(target, torch.nn.Module):
        first, behind = tuple(signature(target.forward).parameters)[:1], ()
    elif is_torchs(target):
        first, behind = FIRST, BEHIND
    else:
        return args, kwargs
    if not given:
        given += [left.pop(name) for name in first if name in left]
    if given and left.keys().isdisjoint(first):
        given += [left.pop(name) for name in behind if name in left]
    return tuple(given), left


def is_torchs(target: Any) -> bool:
    """Whether a function is torch's, or names a method."""
    known = isinstance(target, (str, BuiltinFunctionType)) or is_method(target)
    return known or str(getattr(target, "__module__", None)).startswith("torch.")


def is_method(func: Any) -> bool:
    """Whether a function is one of tensors, called on its first argument."""
    kind = type(func).__name__
    if kind in ("method_descriptor", "wrapper_descriptor"):
        return True
    return func in METHODS


def indexes_by_truth(name: str, args: Any) -> bool:
    """Whether an index selects by truth values, so that the size of the result depends on data."""
    if name != "__getitem__":
        return False
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    return any(isinstance(part, torch.Tensor) and part.dtype in (torch.bool, torch.uint8) for part in index)
