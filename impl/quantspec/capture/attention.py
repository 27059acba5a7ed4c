"""torch.nn's attention modules written out for capture: their projections as linear layers, and between them one
function.

What torch computes in one fused call for speed is computed here by the operations that its documentation gives; the
results agree up to the rounding of float32 sums.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from quantspec.ir.attention import Optional, merged, split, together


@torch.fx.wrap
def linear_rows(x: torch.Tensor, weight: torch.Tensor, bias: Optional, start: int, stop: int) -> torch.Tensor:
    """The outputs ``start`` to ``stop`` of a linear layer: [..., inputs] to [..., stop - start]."""
    return F.linear(x, weight[start:stop], None if bias is None else bias[start:stop])


@torch.fx.wrap
def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, batch_first: bool,
    attn_mask: Optional = None, key_padding_mask: Optional = None, need_weights: bool = False, average: bool = True,
    dropout: float = 0.0,
) -> tuple[torch.Tensor, Optional]:  # fmt: skip
    """Scaled dot-product attention of projected values, [length, batch, features], [batch, length, features] where
    ``batch_first``, or [length, features].

    Gives the joined heads in the layout of ``query``, and the weights [batch, (heads,) length, length] or None. Masks:
    true, or minus infinity, is left out. ``dropout``: of the weights, in training.
    """
    q, k, v = (split(x, heads, batch_first) for x in (query, key, value))
    mask = merged(attn_mask, key_padding_mask, q, k.shape[2])
    weights: Optional = None
    if need_weights:
        scores = (q * math.sqrt(1.0 / q.shape[-1])) @ k.transpose(-2, -1)
        weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
        weights = F.dropout(weights, dropout) if dropout else weights
        joined = weights @ v
        weights = weights.mean(dim=1) if average else weights
    else:
        joined = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    return together(joined, query, batch_first), weights if query.dim() == 3 or weights is None else weights[0]


def weighted(
    query: torch.Tensor, keys: torch.Tensor, value: torch.Tensor, mask: Optional, factor: float, divides: bool,
    hidden: float | None = None,
) -> torch.Tensor:  # fmt: skip
    """Attention as models write it out: ``keys`` [..., features, length]; ``divides``: scores are divided by the
    factor; ``hidden``: what scores are where the mask is true, instead of its being added to them."""
    scores = query @ keys
    scores = scores / factor if divides else scores * factor if factor != 1 else scores
    if mask is not None:
        scores = scores + mask if hidden is None else scores.masked_fill(mask, hidden)
    return torch.softmax(scores, dim=-1) @ value


Write = Callable[..., Any]
# What follows is called on the proxies of a tracer, which stand for tensors and for what is computed of their sizes.
Traced = Any


def multihead(
    m: nn.MultiheadAttention, query: Traced, key: Traced, value: Traced, key_padding_mask: Traced = None,
    need_weights: bool = True, attn_mask: Traced = None, average_attn_weights: bool = True, is_causal: bool = False,
) -> tuple[Traced, Traced]:  # fmt: skip
    """``nn.MultiheadAttention`` on proxies."""
    if m.bias_k is not None or m.bias_v is not None or m.add_zero_attn:
        raise NotImplementedError("bias_k, bias_v, add_zero_attn")
    size = m.embed_dim
    inputs = query, key, value
    if not m._qkv_same_embed_dim:
        # Three weights and one bias: the bias is cut where the weights are joined.
        own = m.q_proj_weight, m.k_proj_weight, m.v_proj_weight
        q, k, v = (
            project(x, weight, m.in_proj_bias, i * size, (i + 1) * size)
            for i, (x, weight) in enumerate(zip(inputs, own))
        )
    elif query is key and key is value:
        q, k, v = F.linear(query, m.in_proj_weight, m.in_proj_bias).chunk(3, -1)
    elif key is value:
        q = linear_rows(query, m.in_proj_weight, m.in_proj_bias, 0, size)
        k, v = linear_rows(key, m.in_proj_weight, m.in_proj_bias, size, 3 * size).chunk(2, -1)
    else:
        weight, bias = m.in_proj_weight, m.in_proj_bias
        q, k, v = (linear_rows(x, weight, bias, i * size, (i + 1) * size) for i, x in enumerate(inputs))
    masks = attn_mask, key_padding_mask
    acting = {"dropout": m.dropout} if m.training and m.dropout else {}
    joined, weights = attend(q, k, v, m.num_heads, m.batch_first, *masks, need_weights, average_attn_weights, **acting)
    return m.out_proj(joined), weights if need_weights else None


@torch.fx.wrap
def project(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, start: int, stop: int) -> torch.Tensor:
    """A linear layer with the entries ``start`` to ``stop`` of a longer bias."""
    return F.linear(x, weight, None if bias is None else bias[start:stop])


def encoder_layer(
    m: nn.TransformerEncoderLayer, src: Traced, src_mask: Traced = None, src_key_padding_mask: Traced = None,
    is_causal: bool = False,
) -> Traced:  # fmt: skip
    """``nn.TransformerEncoderLayer`` on proxies."""

    def attention(x: Traced) -> Traced:
        masks = dict(attn_mask=src_mask, key_padding_mask=src_key_padding_mask, is_causal=is_causal)
        return m.dropout1(m.self_attn(x, x, x, need_weights=False, **masks)[0])

    def feed_forward(x: Traced) -> Traced:
        return m.dropout2(m.linear2(m.dropout(m.activation(m.linear1(x)))))

    if m.norm_first:
        x = src + attention(m.norm1(src))
        return x + feed_forward(m.norm2(x))
    x = m.norm1(src + attention(src))
    return m.norm2(x + feed_forward(x))


def encoder(
    m: nn.TransformerEncoder, src: Traced, mask: Traced = None, src_key_padding_mask: Traced = None,
    is_causal: bool | None = None,
) -> Traced:  # fmt: skip
    """``nn.TransformerEncoder`` on proxies; ``is_causal`` only says what the mask is."""
    for layer in m.layers:
        src = layer(src, src_mask=mask, src_key_padding_mask=src_key_padding_mask)
    return src if m.norm is None else m.norm(src)


def decoder(
    m: nn.TransformerDecoder, tgt: Traced, memory: Traced, tgt_mask: Traced = None, memory_mask: Traced = None,
    tgt_key_padding_mask: Traced = None, memory_key_padding_mask: Traced = None, **causal: Any,
) -> Traced:  # fmt: skip
    """``nn.TransformerDecoder`` on proxies."""
    masks = {
        "tgt_mask": tgt_mask, "tgt_key_padding_mask": tgt_key_padding_mask,
        "memory_mask": memory_mask, "memory_key_padding_mask": memory_key_padding_mask,
    }  # fmt: skip
    for layer in m.layers:
        tgt = layer(tgt, memory, **masks)
    return tgt if m.norm is None else m.norm(tgt)


def transformer(
    m: nn.Transformer, src: Traced, tgt: Traced, src_mask: Traced = None, tgt_mask: Traced = None,
    memory_mask: Traced = None, src_key_padding_mask: Traced = None, **others: Any,
) -> Traced:  # fmt: skip
    """``nn.Transformer`` on proxies."""
    memory = m.encoder(src, mask=src_mask, src_key_padding_mask=src_key_padding_mask)
    masks = {key: value for key, value in others.items() if key.endswith("_mask")}
    return m.decoder(tgt, memory, tgt_mask=tgt_mask, memory_mask=memory_mask, **masks)


WRITTEN: dict[type[nn.Module], Write] = {
    nn.MultiheadAttention: multihead,
    nn.TransformerEncoderLayer: encoder_layer,
    nn.TransformerEncoder: encoder,
    nn.TransformerDecoder: decoder,
    nn.Transformer: transformer,
}


def whole_multihead(
    m: nn.MultiheadAttention, query: Traced, key: Traced, value: Traced, key_padding_mask: Traced = None,
    attn_mask: Traced = None,
) -> Traced:  # fmt: skip
    return multihead(m, query, key, value, key_padding_mask, True, attn_mask)


def whole_encoder_layer(
    m: nn.TransformerEncoderLayer, src: Traced, src_mask: Traced = None, src_key_padding_mask: Traced = None
) -> Traced:
    return encoder_layer(m, src, src_mask, src_key_padding_mask)


def whole_encoder(
    m: nn.TransformerEncoder, src: Traced, mask: Traced = None, src_key_padding_mask: Traced = None
) -> Traced:
    return encoder(m, src, mask, src_key_padding_mask)


def whole_decoder(
    m: nn.TransformerDecoder, tgt: Traced, memory: Traced, tgt_mask: Traced = None, memory_mask: Traced = None,
    tgt_key_padding_mask: Traced = None, memory_key_padding_mask: Traced = None,
) -> Traced:  # fmt: skip
    return decoder(m, tgt, memory, tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask)


def whole_transformer(
    m: nn.Transformer, src: Traced, tgt: Traced, src_mask: Traced = None, tgt_mask: Traced = None,
    memory_mask: Traced = None, src_key_padding_mask: Traced = None, tgt_key_padding_mask: Traced = None,
    memory_key_padding_mask: Traced = None,
) -> Traced:  # fmt: skip
    own = {"tgt_key_padding_mask": tgt_key_padding_mask, "memory_key_padding_mask": memory_key_padding_mask}
    return transformer(m, src, tgt, src_mask, tgt_mask, memory_mask, src_key_padding_mask, **own)


# Where such a module is the whole model, its inputs are the tensors among its arguments; switches have their defaults.
WHOLE: dict[type[nn.Module], Write] = {
    nn.MultiheadAttention: whole_multihead,
    nn.TransformerEncoderLayer: whole_encoder_layer,
    nn.TransformerEncoder: whole_encoder,
    nn.TransformerDecoder: whole_decoder,
    nn.Transformer: whole_transformer,
}


# --- torchvision's Swin transformers, whose images are [images, rows, columns, channels]


def window_attention(m: Any, x: Traced) -> Traced:
    """torchvision's ``ShiftedWindowAttention`` on proxies, for images of any size: attention inside each window.

    Images are padded to whole windows. Shifted windows are those of an image that was rolled, where what came from the
    other side is hidden from the rest; along an axis of one window nothing is shifted.
    """
    (tall, wide), heads, channels = m.window_size, m.num_heads, m.qkv.in_features
    images, height, width = (x.size(axis) for axis in range(3))
    rows, columns, area = (height + (tall - 1)) // tall, (width + (wide - 1)) // wide, tall * wide
    x = F.pad(x, (0, 0, 0, columns * wide - width, 0, rows * tall - height))
    # The factor is 0 for one window and 1 for several. (ONNX Runtime takes 1 // count * shift for shift // count.)
    shifts = [shift * ((2 * count - 2) // count) for shift, count in zip(m.shift_size, (rows, columns))]
    if any(m.shift_size):
        x = torch.roll(x, (0 - shifts[0], 0 - shifts[1]), (1, 2))
    x = x.reshape(images, rows, tall, columns, wide, channels).permute(0, 1, 3, 2, 4, 5).reshape(-1, area, channels)
    joined = m.qkv(x).reshape(-1, area, 3, heads, channels // heads).permute(2, 0, 3, 1, 4)
    query, key, value = (joined[index] for index in range(3))
    bias = m.relative_position_bias_table[m.relative_position_index].reshape(area, area, heads).permute(2, 0, 1)
    scores = torch.matmul(query * (channels // heads) ** -0.5, key.transpose(-2, -1)) + bias
    if any(m.shift_size):
        windows = scores.reshape(images, rows * columns, heads, area, area)
        scores = windows + window_mask((rows, columns), (tall, wide), shifts)
        scores = scores.reshape(-1, heads, area, area)
    weights = torch.softmax(scores, -1)
    weights = F.dropout(weights, m.attention_dropout) if m.training and m.attention_dropout else weights
    x = m.proj(torch.matmul(weights, value).transpose(1, 2).reshape(-1, area, channels))
    x = F.dropout(x, m.dropout) if m.training and m.dropout else x
    x = x.reshape(images, rows, columns, tall, wide, channels).permute(0, 1, 3, 2, 4, 5)
    x = x.reshape(images, rows * tall, columns * wide, channels)
    if any(m.shift_size):
        x = torch.roll(x, (shifts[0], shifts[1]), (1, 2))
    return x[:, :height, :width]


def window_mask(counts: tuple[Any, Any], window: tuple[int, int], shifts: list[Any]) -> Traced:
    """-100 between positions of a window that were no neighbours before the roll, [windows, 1, area, area]."""
    lengths = [count * length for count, length in zip(counts, window)]
    from_other_side = [(arange(length) >= length - shift).float() for length, shift in zip(lengths, shifts)]
    regions = from_other_side[0].unsqueeze(1) * 2 + from_other_side[1]
    regions = regions.reshape(counts[0], window[0], counts[1], window[1]).permute(0, 2, 1, 3)
    regions = regions.reshape(-1, 1, window[0] * window[1])
    return (regions.unsqueeze(2) != regions.unsqueeze(3)).float() * -100.0


def arange(length: Traced) -> Traced:
    """``torch.arange``, which does not take proxies itself."""
    if not isinstance(length, fx.Proxy):
        return torch.arange(length)
    return length.tracer.create_proxy("call_function", torch.arange, (length,), {})


def merged_patches(x: Traced) -> Traced:
    """Every second row and column, [..., rows, columns, channels] to [..., rows / 2, columns / 2, 4 * channels]."""
    x = F.pad(x, (0, 0, 0, x.size(-2) % 2, 0, x.size(-3) % 2))
    return torch.cat([x[..., row::2, column::2, :] for column in (0, 1) for row in (0, 1)], -1)


def patch_merging(m: Any, x: Traced) -> Traced:
    """torchvision's ``PatchMerging`` on proxies."""
    return m.reduction(m.norm(merged_patches(x)))


def patch_merging_v2(m: Any, x: Traced) -> Traced:
    """torchvision's ``PatchMergingV2`` on proxies."""
    return m.norm(m.reduction(merged_patches(x)))


# By their names, so that torchvision is not loaded for others. (The second version's attention, by cosines, stays a
# call.)
SWIN = "torchvision.models.swin_transformer"
SWIN_WRITTEN: dict[str, Write] = {
    "ShiftedWindowAttention": window_attention, "PatchMerging": patch_merging, "PatchMergingV2": patch_merging_v2,
}  # fmt: skip


def written(module: nn.Module) -> Write | None:
    """How a module is written out; None for those that are not, and for derived classes that compute otherwise."""
    if type(module).__module__ == SWIN:
        return SWIN_WRITTEN.get(type(module).__name__)
    for kind, write in WRITTEN.items():
        if isinstance(module, kind) and vars(kind)["forward"] is type(module).forward:
            return write
    return None


def whole(module: nn.Module) -> Write | None:
    """How a module that is the whole model is written out, on the tensors among its arguments; None for those that are
    not."""
    if written(module) is None:
        return None
    for kind, write in WHOLE.items():
        if isinstance(module, kind):
            return write
    return written(module)
