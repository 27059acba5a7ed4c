"""What a saved file may name: functions, methods and attributes of calls, and classes of torch.nn with their arguments.

Nothing that a file says is looked up elsewhere than here. What these lists allow only computes: no function of theirs
reads a file, imports, runs what it is given, or writes to anything but its result.
"""

import builtins
import collections
import importlib
import math
import operator
import sys
from collections.abc import Callable
from dataclasses import is_dataclass
from types import ModuleType
from typing import Any

import torch
from torch.nn import functional as F

from quantspec.capture import attention, writes
from quantspec.ir.program import Call, Callables, Ref
from quantspec.ir.rearrange import METHODS as MOVING
from quantspec.ir.rearrange import SHAPES
from quantspec.torchvision_compat import import_torchvision

NAMES = {
    "torch": """
        _assert abs absolute acos add addcmul addmm all amax amin any arange argmax argmin argsort asin atan
        atan2 baddbmm bmm broadcast_to cat ceil celu channel_shuffle chunk clamp clip concat concatenate conv1d
        conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d cos cosh cumprod cumsum diag diagonal
        diff div divide dot dropout einsum eq erf erfc exp expand_copy expm1 fill flatten flip floor
        floor_divide fmod frac full full_like gather ge gt hypot index_select isfinite isinf isnan layer_norm le
        lerp linspace log log10 log1p log2 log_softmax logical_and logical_not logical_or logical_xor logsumexp
        lt masked_fill matmul max max_pool1d max_pool2d max_pool3d maximum mean median meshgrid min minimum mm
        movedim mul multiply mv narrow ne neg negative norm numel ones ones_like outer permute pow prod
        reciprocal relu remainder repeat_interleave reshape rms_norm roll round rsqrt rsub scatter select selu
        sigmoid sign sin sinh softmax sort split sqrt square squeeze stack std sub subtract sum swapaxes
        swapdims t tan tanh tensor tensor_split tensordot tile topk transpose tril triu true_divide trunc unbind
        unflatten unsqueeze var vstack hstack where zeros zeros_like
    """,
    "torch.nn.functional": """
        adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
        adaptive_max_pool3d affine_grid alpha_dropout avg_pool1d avg_pool2d avg_pool3d batch_norm bilinear celu
        channel_shuffle conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d
        cosine_similarity dropout dropout1d dropout2d dropout3d elu embedding embedding_bag
        feature_alpha_dropout fold gelu glu grid_sample group_norm hardshrink hardsigmoid hardswish hardtanh
        instance_norm interpolate layer_norm leaky_relu linear local_response_norm log_softmax logsigmoid
        lp_pool1d lp_pool2d max_pool1d max_pool2d max_pool3d mish normalize one_hot pad pairwise_distance
        pixel_shuffle pixel_unshuffle prelu relu relu6 rms_norm scaled_dot_product_attention selu sigmoid silu
        softmax softmin softplus softshrink softsign tanh tanhshrink threshold unfold upsample
    """,
    "operator": """
        abs add and_ eq floordiv ge getitem gt invert is_ is_not le lt matmul mod mul ne neg not_ or_ pos pow sub
        truediv xor
    """,
    "math": "ceil exp floor log log2 prod sqrt trunc",
    "collections": "OrderedDict",
    "torch.return_types": "aminmax cummax cummin kthvalue max median min mode sort topk",
    "builtins": "abs bool float getattr int len list max min round sum tuple",
    "quantspec.capture.attention": "attend linear_rows project",
    "quantspec.capture.writes": "filled with_item",
    "torchvision.models.swin_transformer": """
        _get_relative_position_bias _patch_merging_pad shifted_window_attention
    """,
    "torchvision.ops.stochastic_depth": "stochastic_depth",
}
FUNCTIONS = {place: frozenset(names.split()) for place, names in NAMES.items()}
PLACES: dict[str, ModuleType] = {
    "torch": torch, "torch.nn.functional": F, "operator": operator, "math": math, "builtins": builtins,
    "collections": collections, "torch.return_types": torch.return_types,
    "quantspec.capture.attention": attention, "quantspec.capture.writes": writes,
}  # fmt: skip

METHODS = MOVING | SHAPES | frozenset(
    """
        abs add addmm all amax amin any argmax argmin argsort bmm bool ceil chunk clamp clip cos cumsum diff div
        double eq erf exp expm1 float floor floor_divide fmod gather ge gt half index_select int item le lerp
        log log1p log2 log_softmax logical_and logical_not logical_or logsumexp long lt masked_fill matmul max
        maximum mean min minimum mm mul multiply ne neg new_full new_ones new_zeros norm pow prod reciprocal
        relu remainder round rsqrt scatter sigmoid sign sin softmax sort sqrt square std sub subtract sum tan
        tanh tensor_split to topk tril triu true_divide trunc type_as unfold var where
    """.split()
)  # fmt: skip
ATTRIBUTES = frozenset({"shape", "ndim", "dtype", "device", "T", "mT", "is_cuda", "layout", "values", "indices"})

# A line for each class, or for several, with the arguments of the constructor; ``#`` is 1, 2 and 3. ``bias?`` is
# whether the module has a bias; other arguments are attributes of the same name.
CLASSES = """
    LayerNorm: normalized_shape eps elementwise_affine bias?
    RMSNorm: normalized_shape eps elementwise_affine
    GroupNorm: num_groups num_channels eps affine
    LocalResponseNorm: size alpha beta k
    BatchNorm#d InstanceNorm#d: num_features eps momentum affine track_running_stats
    Linear: in_features out_features bias?
    Bilinear: in1_features in2_features out_features bias?
    Conv#d: in_channels out_channels kernel_size stride padding dilation groups bias? padding_mode
    ConvTranspose#d:
        in_channels out_channels kernel_size stride padding output_padding groups bias? dilation padding_mode
    Embedding: num_embeddings embedding_dim padding_idx max_norm norm_type scale_grad_by_freq sparse
    EmbeddingBag:
        num_embeddings embedding_dim max_norm norm_type scale_grad_by_freq mode sparse include_last_offset padding_idx
    MultiheadAttention: embed_dim num_heads dropout in_proj_bias? bias_k? add_zero_attn kdim vdim batch_first
    LSTM: input_size hidden_size num_layers bias batch_first dropout bidirectional proj_size
    GRU: input_size hidden_size num_layers bias batch_first dropout bidirectional
    RNN: input_size hidden_size num_layers nonlinearity bias batch_first dropout bidirectional
    LSTMCell GRUCell: input_size hidden_size bias
    RNNCell: input_size hidden_size bias nonlinearity
    MaxPool#d: kernel_size stride padding dilation return_indices ceil_mode
    AvgPool1d: kernel_size stride padding ceil_mode count_include_pad
    AvgPool2d AvgPool3d: kernel_size stride padding ceil_mode count_include_pad divisor_override
    LPPool#d: norm_type kernel_size stride ceil_mode
    AdaptiveAvgPool#d: output_size
    AdaptiveMaxPool#d: output_size return_indices
    ZeroPad#d ReflectionPad#d ReplicationPad#d CircularPad#d: padding
    ConstantPad#d: padding value
    ReLU ReLU6 Sigmoid Tanh SiLU Mish Hardswish Hardsigmoid Softsign SELU LogSigmoid Tanhshrink Identity Softmax2d:
    PReLU: num_parameters init
    GELU: approximate
    Softmax LogSoftmax Softmin GLU: dim
    ELU CELU: alpha
    LeakyReLU: negative_slope
    Hardtanh: min_val max_val
    Threshold: threshold value
    Softplus: beta threshold
    Softshrink Hardshrink: lambd
    CosineSimilarity: dim eps
    PairwiseDistance: norm eps keepdim
    Dropout Dropout#d AlphaDropout FeatureAlphaDropout: p
    Flatten: start_dim end_dim
    Unflatten: dim unflattened_size
    Upsample: size scale_factor mode align_corners recompute_scale_factor
    PixelShuffle: upscale_factor
    PixelUnshuffle: downscale_factor
    ChannelShuffle: groups
    Fold: output_size kernel_size dilation padding stride
    Unfold: kernel_size dilation padding stride
"""


def constructors(text: str) -> dict[str, tuple[str, ...]]:
    """The arguments of each class of a table like ``CLASSES``."""
    table: dict[str, tuple[str, ...]] = {}
    for line in text.replace(":\n        ", ": ").strip().splitlines():
        names, _, arguments = line.partition(":")
        for name in names.split():
            for digit in "123" if "#" in name else " ":
                table[name.replace("#", digit)] = tuple(arguments.split())
    return table


MODULES = constructors(CLASSES)

# Names that files of version 1 have for steps and functions, and today's.
RENAMED_STEPS = {"LinearReal": "Linear", "ConvReal": "Conv"}
OLD_ATTENTION, ATTENTION = "quantspec.attention", "quantspec.capture.attention"
RENAMED_FUNCTIONS = {f"{OLD_ATTENTION}.{name}": f"{ATTENTION}.{name}" for name in ("attend", "linear_rows", "project")}


def function(name: str) -> Callable[..., Any]:
    """The function of that name. ValueError for a name that is not on the list, or that this torch does not have."""
    place, _, leaf = name.rpartition(".")
    if leaf not in FUNCTIONS.get(place, ()):
        raise ValueError(f"a file may not name the function {name!r}")
    if place.startswith("torchvision."):
        import_torchvision()
        PLACES[place] = importlib.import_module(place)
    if not hasattr(PLACES[place], leaf):
        raise ValueError(f"this installation has no function {name!r}")
    found: Callable[..., Any] = getattr(PLACES[place], leaf)
    return found


def is_listed(kind: str, name: str, value: Any) -> bool:
    """Whether a value is a function which its name finds again."""
    place, _, leaf = name.rpartition(".")
    return kind == "function" and leaf in FUNCTIONS.get(place, ()) and function(name) is value


def is_output_type(value: Any) -> bool:
    """Whether a value is a class that only holds what a model gives: a dataclass or a named tuple, not torch's own."""
    if not isinstance(value, type) or value.__module__.startswith("torch."):
        return False
    return is_dataclass(value) or (issubclass(value, tuple) and hasattr(value, "_fields"))


def output_type(name: str) -> type | None:
    """The class of outputs of that name, if its module has been imported."""
    place, _, leaf = name.rpartition(".")
    found = vars(sys.modules[place]).get(leaf) if place in sys.modules else None
    return found if is_output_type(found) else None


def check_call(step: Call, callables: Callables) -> None:
    """ValueError for a call that a file may not hold. ``callables``: what it was found to call."""
    where = f"step {step.name!r}"
    if step.kind == "method":
        if step.target not in METHODS:
            raise ValueError(f"{where}: a file may not name the method {step.target!r}")
        if not step.args or not isinstance(step.args[0], Ref):
            raise ValueError(f"{where}: a method belongs to a value")
    elif step.kind == "function":
        if not is_output_type(callables.get((step.kind, step.target))):
            function(step.target)
        if step.target == "builtins.getattr" and not is_known_attribute(step):
            raise ValueError(f"{where}: a file may not name the attribute {step.args[1:]!r}")
    elif step.kind not in ("module", "attribute"):
        raise ValueError(f"{where}: expected a module, a function, a method or an attribute, got {step.kind!r}")


def is_known_attribute(step: Call) -> bool:
    """Whether a call of ``getattr`` reads an attribute on the list of a value."""
    readable = len(step.args) == 2 and isinstance(step.args[0], Ref) and step.args[1] in ATTRIBUTES
    return readable and not step.kwargs
