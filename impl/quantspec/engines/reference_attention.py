"""Attention in codes as the chapter says (DYN-ATTENTION)."""

from collections.abc import Callable
from typing import Any

import torch

from quantspec.ir import attention
from quantspec.ir.program import Attention
from quantspec.ir.traverse import replace_refs
from quantspec.numerics.attention import attend

from .tensors import array, by_place


def attended(step: Attention, value: Callable[[str], Any]) -> Any:
    """What a step gives, of the values of names; None for values without codes (DYN-ATTENTION-FLOAT)."""
    args, kwargs = (replace_refs(tree, value) for tree in (step.args, step.kwargs))
    heads = attention.heads(step, args, kwargs)
    if heads is None:
        return None
    query, key, values = (array(x, step.name) for x in heads[:3])
    mask = None if heads.mask is None else array(heads.mask, step.name)
    found = attend(query, key, values, heads.scale, mask, heads.causal)
    return None if found is None else heads.joined(by_place(found.shape).copy_(torch.from_numpy(found)))
