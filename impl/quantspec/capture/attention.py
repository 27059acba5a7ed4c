"""torch.nn's attention modules written out for capture: their projections as linear layers, and between them one function in float.

What torch computes in one fused call for speed is computed here by the operations that its documentation gives; the results agree up to the rounding of float32 sums.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F


@torch.fx.wrap
def linear_rows(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, start: int, stop: int) -> torch.Tensor:
    """The outputs ``start`` to ``stop`` of a linear layer: [..., inputs] to [..., stop - start]."""
    return F.linear(x, weight[start:stop], None if bias is None else bias[start:stop])


@torch.fx.wrap
def attend(query, key, value, heads: int, batch_first: bool, attn_mask=None, key_padding_mask=None, need_weights: bool = False, average: bool = True):
    """Scaled dot-product attention of projected values, [length, batch, features], [batch, length, features] where ``batch_first``, or [length, features].

    Gives the joined heads in the layout of ``query``, and the weights [batch, (heads,) length, length] or None. Masks: true, or minus infinity, is left out.
    """
    batched = query.dim() == 3
    q, k, v = (t if batched and batch_first else t.transpose(0, 1) if batched else t.unsqueeze(0) for t in (query, key, value))
    batch, length, features = q.shape
    q, k, v = (t.reshape(batch, t.shape[1], heads, -1).transpose(1, 2) for t in (q, k, v))
    mask = merged(attn_mask, key_padding_mask, batch, heads, length, k.shape[2], q)
    if need_weights:
        scores = (q * math.sqrt(1.0 / q.shape[-1])) @ k.transpose(-2, -1)
        weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
        joined = weights @ v
        weights = weights.mean(dim=1) if average else weights
    else:
        joined, weights = F.scaled_dot_product_attention(q, k, v, attn_mask=mask), None
    joined = joined.transpose(1, 2).reshape(batch, length, -1)
    joined = joined if batched and batch_first else joined.transpose(0, 1) if batched else joined[0]
    return joined, weights if batched or weights is None else weights[0]


def merged(attn_mask, key_padding_mask, batch: int, heads: int, length: int, keys: int, like: torch.Tensor):
    """Both masks as one that is added to the scores, [batch or 1, heads or 1, length or 1, keys], or None."""
    parts = []
    if attn_mask is not None:
        part = floating(attn_mask, like)
        parts.append(part.reshape(batch, heads, length, keys) if part.dim() == 3 else part.reshape(1, 1, length, keys))
    if key_padding_mask is not None:
        parts.append(floating(key_padding_mask, like).reshape(-1, 1, 1, keys))
    return sum(parts[1:], parts[0]) if parts else None


def floating(mask: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A mask of truth values as one of minus infinities."""
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, float("-inf")) if mask.dtype == torch.bool else mask


def multihead(m: nn.MultiheadAttention, query, key, value, key_padding_mask=None, need_weights=True, attn_mask=None, average_attn_weights=True, is_causal=False):
    """``nn.MultiheadAttention`` on proxies."""
    if m.bias_k is not None or m.bias_v is not None or m.add_zero_attn:
        raise NotImplementedError("bias_k, bias_v, add_zero_attn")
    size = m.embed_dim
    if m.in_proj_weight is None:
        rows = [(0, size), (size, 2 * size), (2 * size, 3 * size)]
        # Three weights and one bias: the bias is cut where the weights are joined.
        q, k, v = (project(x, w, m.in_proj_bias, *r) for x, w, r in zip((query, key, value), (m.q_proj_weight, m.k_proj_weight, m.v_proj_weight), rows))
    elif query is key and key is value:
        q, k, v = F.linear(query, m.in_proj_weight, m.in_proj_bias).chunk(3, -1)
    elif key is value:
        q = linear_rows(query, m.in_proj_weight, m.in_proj_bias, 0, size)
        k, v = linear_rows(key, m.in_proj_weight, m.in_proj_bias, size, 3 * size).chunk(2, -1)
    else:
        q, k, v = (linear_rows(x, m.in_proj_weight, m.in_proj_bias, i * size, (i + 1) * size) for i, x in enumerate((query, key, value)))
    joined, weights = attend(q, k, v, m.num_heads, m.batch_first, attn_mask, key_padding_mask, need_weights, average_attn_weights)
    return m.out_proj(joined), weights if need_weights else None


@torch.fx.wrap
def project(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, start: int, stop: int) -> torch.Tensor:
    """A linear layer with the entries ``start`` to ``stop`` of a longer bias."""
    return F.linear(x, weight, None if bias is None else bias[start:stop])


def encoder_layer(m: nn.TransformerEncoderLayer, src, src_mask=None, src_key_padding_mask=None, is_causal=False):
    """``nn.TransformerEncoderLayer`` on proxies."""

    def attention(x):
        return m.self_attn(x, x, x, attn_mask=src_mask, key_padding_mask=src_key_padding_mask, need_weights=False, is_causal=is_causal)[0]

    def feed_forward(x):
        return m.linear2(m.activation(m.linear1(x)))

    if m.norm_first:
        x = src + attention(m.norm1(src))
        return x + feed_forward(m.norm2(x))
    x = m.norm1(src + attention(src))
    return m.norm2(x + feed_forward(x))


def encoder(m: nn.TransformerEncoder, src, mask=None, src_key_padding_mask=None, is_causal=None):
    """``nn.TransformerEncoder`` on proxies."""
    for layer in m.layers:
        src = layer(src, src_mask=mask, src_key_padding_mask=src_key_padding_mask)  # is_causal only says what the mask is
    return src if m.norm is None else m.norm(src)


def decoder(m: nn.TransformerDecoder, tgt, memory, tgt_mask=None, memory_mask=None, tgt_key_padding_mask=None, memory_key_padding_mask=None, **causal: Any):
    """``nn.TransformerDecoder`` on proxies."""
    masks = dict(tgt_mask=tgt_mask, memory_mask=memory_mask, tgt_key_padding_mask=tgt_key_padding_mask, memory_key_padding_mask=memory_key_padding_mask)
    for layer in m.layers:
        tgt = layer(tgt, memory, **masks)
    return tgt if m.norm is None else m.norm(tgt)


def transformer(m: nn.Transformer, src, tgt, src_mask=None, tgt_mask=None, memory_mask=None, src_key_padding_mask=None, **others: Any):
    """``nn.Transformer`` on proxies."""
    memory = m.encoder(src, mask=src_mask, src_key_padding_mask=src_key_padding_mask)
    masks = {key: value for key, value in others.items() if key.endswith("_mask")}
    return m.decoder(tgt, memory, tgt_mask=tgt_mask, memory_mask=memory_mask, **masks)


WRITTEN = {
    nn.MultiheadAttention: multihead,
    nn.TransformerEncoderLayer: encoder_layer,
    nn.TransformerEncoder: encoder,
    nn.TransformerDecoder: decoder,
    nn.Transformer: transformer,
}


def whole_multihead(m, query, key, value, key_padding_mask=None, attn_mask=None):
    return multihead(m, query, key, value, key_padding_mask, True, attn_mask)


def whole_encoder_layer(m, src, src_mask=None, src_key_padding_mask=None):
    return encoder_layer(m, src, src_mask, src_key_padding_mask)


def whole_encoder(m, src, mask=None, src_key_padding_mask=None):
    return encoder(m, src, mask, src_key_padding_mask)


def whole_decoder(m, tgt, memory, tgt_mask=None, memory_mask=None, tgt_key_padding_mask=None, memory_key_padding_mask=None):
    return decoder(m, tgt, memory, tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask)


def whole_transformer(m, src, tgt, src_mask=None, tgt_mask=None, memory_mask=None, src_key_padding_mask=None, tgt_key_padding_mask=None):
    return transformer(m, src, tgt, src_mask, tgt_mask, memory_mask, src_key_padding_mask, tgt_key_padding_mask=tgt_key_padding_mask)


# Where such a module is the whole model, its inputs are the tensors among its arguments; switches have their defaults.
WHOLE = {
    nn.MultiheadAttention: whole_multihead,
    nn.TransformerEncoderLayer: whole_encoder_layer,
    nn.TransformerEncoder: whole_encoder,
    nn.TransformerDecoder: whole_decoder,
    nn.Transformer: whole_transformer,
}


# --- torchvision's Swin transformers, whose images are [images, rows, columns, channels]


def window_attention(m: Any, x: Any) -> Any:
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
    joined = float_linear(m.qkv, x).reshape(-1, area, 3, heads, channels // heads).permute(2, 0, 3, 1, 4)
    query, key, value = (joined[index] for index in range(3))
    bias = m.relative_position_bias_table[m.relative_position_index].reshape(area, area, heads).permute(2, 0, 1)
    scores = torch.matmul(query * (channels // heads) ** -0.5, key.transpose(-2, -1)) + bias
    if any(m.shift_size):
        scores = scores.reshape(images, -1, heads, area, area) + window_mask((rows, columns), (tall, wide), shifts)
        scores = scores.reshape(-1, heads, area, area)
    x = torch.matmul(torch.softmax(scores, -1), value).transpose(1, 2).reshape(-1, area, channels)
    x = float_linear(m.proj, x).reshape(images, rows, columns, tall, wide, channels).permute(0, 1, 3, 2, 4, 5)
    x = x.reshape(images, rows * tall, columns * wide, channels)
    if any(m.shift_size):
        x = torch.roll(x, (shifts[0], shifts[1]), (1, 2))
    return x[:, :height, :width]


def float_linear(layer: Any, x: Any) -> Any:
    """A linear layer that stays in float, as one whose weight is computed does: here by ``detach``, which does nothing.

    With both layers of the windows in int8, the sums around them are in codes too: swin_t then loses 2.5 dB, and takes
    more time than in float, since its codes are rearranged between the layers.
    """
    return F.linear(x, layer.weight.detach(), layer.bias)


def window_mask(counts: tuple[Any, Any], window: tuple[int, int], shifts: list[Any]) -> Any:
    """-100 between positions of a window that were no neighbours before the roll, [windows, 1, area, area]."""
    lengths = [count * length for count, length in zip(counts, window)]
    from_other_side = [(arange(length) >= length - shift).float() for length, shift in zip(lengths, shifts)]
    regions = from_other_side[0].unsqueeze(1) * 2 + from_other_side[1]
    regions = regions.reshape(counts[0], window[0], counts[1], window[1]).permute(0, 2, 1, 3)
    regions = regions.reshape(-1, 1, window[0] * window[1])
    return (regions.unsqueeze(2) != regions.unsqueeze(3)).float() * -100.0


def arange(length: Any) -> Any:
    """``torch.arange``, which does not take proxies itself."""
    if not isinstance(length, fx.Proxy):
        return torch.arange(length)
    return length.tracer.create_proxy("call_function", torch.arange, (length,), {})


def merged_patches(x: Any) -> Any:
    """Every second row and column, [..., rows, columns, channels] to [..., rows / 2, columns / 2, 4 * channels]."""
    x = F.pad(x, (0, 0, 0, x.size(-2) % 2, 0, x.size(-3) % 2))
    return torch.cat([x[..., row::2, column::2, :] for column in (0, 1) for row in (0, 1)], -1)


def patch_merging(m: Any, x: Any) -> Any:
    """torchvision's ``PatchMerging`` on proxies."""
    return m.reduction(m.norm(merged_patches(x)))


def patch_merging_v2(m: Any, x: Any) -> Any:
    """torchvision's ``PatchMergingV2`` on proxies."""
    return m.norm(m.reduction(merged_patches(x)))


# By their names, so that torchvision is not loaded for others. (The second version's attention, by cosines, stays a call.)
SWIN = "torchvision.models.swin_transformer"
SWIN_WRITTEN = {
    "ShiftedWindowAttention": window_attention, "PatchMerging": patch_merging, "PatchMergingV2": patch_merging_v2,
}  # fmt: skip


def written(module: nn.Module) -> Callable | None:
    """How a module is written out; None for those that are not, and for derived classes that compute otherwise."""
    if type(module).__module__ == SWIN:
        return SWIN_WRITTEN.get(type(module).__name__)
    return next((write for kind, write in WRITTEN.items() if isinstance(module, kind) and type(module).forward is kind.forward), None)


def whole(module: nn.Module) -> Callable | None:
    """How a module that is the whole model is written out, on the tensors among its arguments; None for those that are not."""
    if written(module) is None:
        return None
    return next((write for kind, write in WHOLE.items() if isinstance(module, kind)), written(module))
