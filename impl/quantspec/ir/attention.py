"""Calls of scaled dot-product attention: torch's function and the one that modules of torch.nn are written out with, as
queries, keys and values by head."""

import functools
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from quantspec.errors import ShapeError

from .program import Call, Move, Ref, Step
from .traverse import reads, refs

Optional = torch.Tensor | None
TORCHS, OURS = "torch.nn.functional.scaled_dot_product_attention", "quantspec.capture.attention.attend"
WRITTEN = "quantspec.capture.attention.weighted"
# The arguments of both in order, with the defaults of those that have one.
ARGUMENTS: dict[str, dict[str, Any]] = {
    TORCHS: dict(
        query=..., key=..., value=..., attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
    ),
    OURS: dict(
        query=..., key=..., value=..., heads=..., batch_first=..., attn_mask=None, key_padding_mask=None,
        need_weights=False, average=True, dropout=0.0,
    ),
    WRITTEN: dict(query=..., keys=..., value=..., mask=None, factor=1.0, divides=False, hidden=None),
}  # fmt: skip
MOST_KEYS, MOST_FEATURES = 2**15 - 1, 2**15
HIDDEN = -1e4


class Heads(NamedTuple):
    """``query``, ``key``, ``value``: float32 [..., length, features], whose first axes broadcast; ``mask``: what is
    added to the scores, broadcast to [..., length, keys], or None; ``causal``: a query sees no key behind its own
    place; ``scale``: of the scores; ``joined``: of the outputs [..., length, features], what the call gives."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: Optional
    causal: bool
    scale: float
    joined: Callable[[torch.Tensor], Any]


def arguments(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a call of attention by name."""
    named = ARGUMENTS[call.target]
    return {**named, **dict(zip(named, args)), **kwargs}


def has_codes(call: Call, weights_read: bool) -> bool:
    """Whether a call is attention that can be computed in codes (DYN-ATTENTION-FLOAT): nothing is left out by chance,
    and nobody reads weights."""
    if call.kind != "function" or call.target not in ARGUMENTS:
        return False
    given = arguments(call, call.args, call.kwargs)
    if call.target == WRITTEN:
        factor = given["factor"]
        known = isinstance(given["divides"], bool) and (given["hidden"] is None or hides(given["hidden"]))
        return isinstance(factor, (int, float)) and factor != 0 and known
    chance = given["dropout_p" if call.target == TORCHS else "dropout"]
    fixed = (given[name] for name in ("is_causal", "enable_gqa", "need_weights") if name in given)
    scale = given.get("scale")
    return (
        isinstance(chance, (int, float)) and chance == 0 and all(isinstance(flag, (bool, Ref)) for flag in fixed)
        and (scale is None or isinstance(scale, (int, float))) and not (given.get("need_weights") and weights_read)
    )  # fmt: skip


def hides(value: Any) -> bool:
    """Whether a score that is set to a value is one of a key that is not seen."""
    return isinstance(value, (int, float)) and value <= HIDDEN


def heads(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Heads | None:
    """A call by head; None where its values are none that are computed in codes (DYN-ATTENTION-FLOAT)."""
    given = arguments(call, args, kwargs)
    written = call.target == WRITTEN
    tensors = [given[name] for name in ("query", "keys" if written else "key", "value")]
    flags = (given.get(name, False) for name in ("is_causal", "enable_gqa"))
    if not all(is_plain(x) for x in tensors) or not all(isinstance(flag, bool) for flag in flags):
        return None
    query, key, value = tensors
    mask, causal, scale = given["mask" if written else "attn_mask"], bool(given.get("is_causal")), given.get("scale")
    joined: Callable[[torch.Tensor], Any] = as_it_is
    if written:
        if isinstance(mask, torch.Tensor):
            if (mask.dtype == torch.bool) != (given["hidden"] is not None):
                return None
            mask = floating(mask, query)
        key, scale = key.transpose(-2, -1), 1 / given["factor"] if given["divides"] else given["factor"]
    elif call.target == OURS:
        if not 2 <= query.dim() == key.dim() == value.dim() <= 3:
            return None
        whole, first = query, given["batch_first"]
        query, key, value = (split(x, given["heads"], first) for x in (query, key, value))
        mask = merged(mask, given["key_padding_mask"], query, key.shape[2])
        joined = partial(with_weights, like=whole, batch_first=first)
    elif given["enable_gqa"]:
        if min(query.dim(), key.dim(), value.dim()) < 3 or key.shape[-3] != value.shape[-3] or mask is not None:
            return None
        groups, rest = divmod(query.shape[-3], max(1, key.shape[-3]))
        if rest:
            return None
        query = query.unflatten(-3, (-1, groups))
        key, value = key.unsqueeze(-3), value.unsqueeze(-3)
        joined = partial(torch.flatten, start_dim=-4, end_dim=-3)
    if isinstance(mask, torch.Tensor) and mask.dtype == torch.bool:
        mask = floating(~mask, query)
    if not fits(query, key, value, mask) or (causal and mask is not None):
        return None
    if mask is not None and mask.shape[-1] == 1:
        mask = mask.expand(*mask.shape[:-1], key.shape[-2])
    return Heads(query, key, value, mask, causal, query.shape[-1] ** -0.5 if scale is None else scale, joined)


def reads_weights(name: str, steps: Iterable[Step], output: Any) -> bool:
    """Whether a step or the output takes more of the call of that name than its first item, which are the joined values
    where it gives weights too."""
    readers = [step for step in steps if name in reads(step)]
    first = all(
        isinstance(step, (Call, Move)) and step.target == "operator.getitem" and step.args == (Ref(name), 0)
        for step in readers
    )
    return not first or name in refs(output)


def as_it_is(y: torch.Tensor) -> torch.Tensor:
    return y


def with_weights(y: torch.Tensor, like: torch.Tensor, batch_first: bool) -> tuple[torch.Tensor, None]:
    """What ``attend`` gives: no weights."""
    return together(y, like, batch_first), None


def is_plain(x: Any) -> bool:
    """Whether a value is a dense float32 tensor on the CPU with two axes or more."""
    return (
        isinstance(x, torch.Tensor) and x.dtype == torch.float32 and x.device.type == "cpu" and x.dim() >= 2
        and x.layout is torch.strided and not x.is_nested
    )  # fmt: skip


def fits(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Optional) -> bool:
    """Whether values can be attended to in codes, by their shapes and the type of the mask."""
    if mask is None:
        return fit_together(query.shape, key.shape, value.shape, None)
    return is_plain(mask) and fit_together(query.shape, key.shape, value.shape, mask.shape)


@functools.lru_cache(maxsize=256)
def fit_together(query: torch.Size, key: torch.Size, value: torch.Size, mask: torch.Size | None) -> bool:
    """Whether shapes fit together, nothing is empty, and no sum of products leaves int32."""
    keys, features = key[-2:]
    if query[-1] != features or value[-2] != keys or keys > MOST_KEYS or features > MOST_FEATURES:
        return False
    leading = [shape[:-2] for shape in (query, key, value)]
    if mask is not None:
        if mask[-1] not in (1, keys) or mask[-2] not in (1, query[-2]):
            return False
        leading.append(mask[:-2])
    try:
        batch = np.broadcast_shapes(*leading)
    except ValueError:
        return False
    return all((*batch, *query[-2:], *value[-2:]))


# --- attention of torch.nn's modules


def split(x: torch.Tensor, heads: int, batch_first: bool) -> torch.Tensor:
    """[length, batch, features], [batch, length, features] where ``batch_first``, or [length, features], as
    [batch, heads, length, features of a head]."""
    if x.dim() == 2:
        x = x.unsqueeze(0)
    elif not batch_first:
        x = x.transpose(0, 1)
    # Lengths are said, as -1 is ambiguous where there are no samples.
    return x.reshape(x.shape[0], x.shape[1], heads, x.shape[2] // heads).transpose(1, 2)


def together(y: torch.Tensor, like: torch.Tensor, batch_first: bool) -> torch.Tensor:
    """The opposite of ``split``, in the layout of ``like``."""
    joined = y.transpose(1, 2).reshape(y.shape[0], y.shape[2], y.shape[1] * y.shape[3])
    if like.dim() == 2:
        return joined[0]
    return joined if batch_first else joined.transpose(0, 1)


def merged(attn_mask: Optional, key_padding_mask: Optional, query: torch.Tensor, keys: int) -> Optional:
    """Both masks as one that scores are added, [batch or 1, heads or 1, length or 1, keys] or [length, keys], or None.

    Raises ShapeError for masks of other shapes, such as one with its axes exchanged, which has as many values.
    """
    batch, heads, length, _ = query.shape
    parts: list[torch.Tensor] = []
    if attn_mask is not None:
        check_mask("attn_mask", attn_mask, (batch * heads, length, keys) if attn_mask.dim() == 3 else (length, keys))
        part = floating(attn_mask, query)
        parts.append(part.reshape(batch, heads, length, keys) if part.dim() == 3 else part)
    if key_padding_mask is not None:
        of_one = key_padding_mask.dim() == 1 and batch == 1
        check_mask("key_padding_mask", key_padding_mask, (keys,) if of_one else (batch, keys))
        parts.append(floating(key_padding_mask, query).reshape(-1, 1, 1, keys))
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def check_mask(name: str, mask: torch.Tensor, shape: tuple[int, ...]) -> None:
    """Raises ShapeError naming a mask unless it has that shape. Axes are counted first, as a length that is compared
    while a model is recorded is a condition of its network."""
    if mask.dim() != len(shape) or tuple(mask.shape) != shape:
        raise ShapeError(f"{name}: expected shape {tuple(map(int, shape))}, got {tuple(map(int, mask.shape))}")


def floating(mask: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A mask of truth values, true for what is left out, as one of minus infinities."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, float("-inf"))
