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
        _assert _grouped_mm _pack_padded_sequence _pad_packed_sequence abs absolute acos acosh
        adaptive_avg_pool1d add addbmm addcdiv addcmul addmm addmv addr adjoint all amax amin aminmax angle any
        arange arccos arccosh arcsin arcsinh arctan arctan2 arctanh argmax argmin argsort argwhere as_tensor
        asin asinh atan atan2 atanh atleast_1d atleast_2d atleast_3d avg_pool1d baddbmm bartlett_window
        batch_norm bilinear bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift
        bitwise_xor blackman_window block_diag bmm broadcast_tensors broadcast_to bucketize cartesian_prod cat
        cdist ceil celu chain_matmul channel_shuffle chunk clamp clamp_max clamp_min clip column_stack complex
        concat concatenate conj conj_physical constant_pad_nd conv1d conv2d conv3d conv_transpose1d
        conv_transpose2d conv_transpose3d copysign corrcoef cos cosh cosine_similarity count_nonzero cov cross
        cummax cummin cumprod cumsum cumulative_trapezoid deg2rad det diag diag_embed diagflat diagonal
        diagonal_scatter diff digamma dist div divide dot dropout dsplit dstack einsum eq erf erfc erfinv exp
        exp2 expand_copy expm1 eye fill fix flatten flip fliplr flipud float_power floor floor_divide fmax fmin
        fmod frac frobenius_norm full full_like gather gcd ge ger greater greater_equal group_norm gt
        hamming_window hann_window hardshrink heaviside histc hsplit hstack hypot i0 igamma igammac imag
        index_add index_copy index_fill index_put index_reduce index_select inner instance_norm inverse isclose
        isfinite isin isinf isnan isneginf isposinf isreal istft kron kthvalue layer_norm lcm ldexp le lerp less
        less_equal lgamma linspace log log10 log1p log2 log_softmax logaddexp logaddexp2 logcumsumexp logdet
        logical_and logical_not logical_or logical_xor logit logspace logsumexp lt masked_fill masked_scatter
        masked_select matmul matrix_exp matrix_power max max_pool1d max_pool2d max_pool3d maximum mean median
        meshgrid min minimum mm mode moveaxis movedim msort mul multiply mv mvlgamma nan_to_num nanmean
        nanmedian nanquantile nansum narrow narrow_copy native_group_norm native_layer_norm ne neg negative
        nextafter nonzero norm not_equal numel ones ones_like outer pairwise_distance pdist permute pinverse
        pixel_shuffle pixel_unshuffle polar polygamma positive pow prelu prod quantile rad2deg ravel real
        reciprocal relu remainder renorm repeat_interleave reshape resolve_conj resolve_neg rms_norm roll rot90
        round row_stack rsqrt rsub scalar_tensor scatter scatter_add scatter_reduce searchsorted select
        select_scatter selu sgn sigmoid sign signbit sin sinc sinh slice_scatter slogdet softmax sort split
        split_with_sizes sqrt square squeeze stack std std_mean stft sub subtract sum swapaxes swapdims t take
        take_along_dim tan tanh tensor tensor_split tensordot threshold tile topk trace transpose trapezoid
        trapz tril triu true_divide trunc unbind unflatten unique unique_consecutive unravel_index unsqueeze var
        var_mean vdot view_as_complex view_as_real vsplit vstack where xlogy zeros zeros_like
    """,
    "torch.nn.functional": """
        _threshold adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
        adaptive_max_pool2d adaptive_max_pool3d affine_grid alpha_dropout avg_pool1d avg_pool2d avg_pool3d
        batch_norm bilinear binary_cross_entropy binary_cross_entropy_with_logits celu channel_shuffle conv1d
        conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d cosine_embedding_loss cosine_similarity
        cross_entropy dropout dropout1d dropout2d dropout3d elu embedding embedding_bag feature_alpha_dropout
        fold gaussian_nll_loss gelu glu grid_sample group_norm grouped_mm hardshrink hardsigmoid hardswish
        hardtanh hinge_embedding_loss huber_loss instance_norm interpolate kl_div l1_loss layer_norm leaky_relu
        linear local_response_norm log_softmax logsigmoid lp_pool1d lp_pool2d lp_pool3d margin_ranking_loss
        max_pool1d max_pool2d max_pool3d mish mse_loss
        multi_head_attention_forward nll_loss normalize one_hot pad pairwise_distance pdist pixel_shuffle
        pixel_unshuffle poisson_nll_loss prelu relu relu6 rms_norm scaled_dot_product_attention selu sigmoid
        silu smooth_l1_loss soft_margin_loss softmax softmin softplus softshrink softsign tanh tanhshrink
        threshold triplet_margin_loss unfold upsample
    """,
    "torch.fft": """
        fft fft2 fftn fftshift hfft ifft ifft2 ifftn ifftshift ihfft irfft irfft2 irfftn rfft rfft2 rfftn
    """,
    "torch.linalg": """
        cholesky cross det diagonal eigh eigvalsh inv lstsq matmul matrix_norm multi_dot norm pinv qr slogdet solve
        solve_triangular svd svdvals vecdot vector_norm
    """,
    "torch.special": """
        digamma entr erf erfc erfinv exp2 expit expm1 gammaln i0 log1p log_ndtr log_softmax logit logsumexp ndtr round
        sinc softmax xlog1py xlogy
    """,
    "torch.nn.utils.rnn": "PackedSequence pack_padded_sequence pad_packed_sequence",
    "operator": """
        abs add and_ eq floordiv ge getitem gt invert is_ is_not le lt matmul mod mul ne neg not_ or_ pos pow sub
        truediv xor
    """,
    "math": "ceil cos exp floor isclose log log10 log1p log2 pow prod sin sqrt trunc",
    "collections": "OrderedDict",
    "torch.return_types": "aminmax cummax cummin kthvalue max median min mode sort topk",
    "builtins": "abs bool float getattr int len list max min round sum tuple",
    "quantspec.capture.attention": "attend linear_rows project weighted",
    "quantspec.capture.writes": "filled with_item",
    "torchvision.models.swin_transformer": """
        _get_relative_position_bias _patch_merging_pad shifted_window_attention
    """,
    "torchvision.ops.stochastic_depth": "stochastic_depth",
}
FUNCTIONS = {place: frozenset(names.split()) for place, names in NAMES.items()}
PLACES: dict[str, ModuleType] = {
    "torch": torch, "torch.nn.functional": F, "torch.fft": torch.fft, "torch.linalg": torch.linalg,
    "torch.nn.utils.rnn": torch.nn.utils.rnn, "torch.special": torch.special, "operator": operator, "math": math,
    "builtins": builtins, "collections": collections, "torch.return_types": torch.return_types,
    "quantspec.capture.attention": attention, "quantspec.capture.writes": writes,
}  # fmt: skip

METHODS = MOVING | SHAPES | frozenset(
    """
        _replace abs absolute acos acosh add addbmm addcdiv addcmul addmm addmv addr adjoint all amax amin aminmax angle
        any arccos arccosh arcsin arcsinh arctan arctan2 arctanh argmax argmin argsort argwhere asin asinh atan
        atan2 atanh baddbmm bfloat16 bitwise_and bitwise_left_shift bitwise_not bitwise_or
        bitwise_right_shift bitwise_xor bmm bool broadcast_to byte ceil char chunk clamp clamp_max clamp_min
        clip conj conj_physical copysign corrcoef cos cosh count_nonzero cov cpu cross cummax cummin cumprod cumsum
        deg2rad det diag diag_embed diagflat diagonal diagonal_scatter diff digamma dist div divide dot double
        dsplit eq erf erfc erfinv exp exp2 expm1 fix fliplr flipud float float_power floor floor_divide fmax
        fmin fmod frac gather gcd ge ger greater greater_equal gt half hardshrink heaviside histc hsplit hypot
        i0 igamma igammac index_add index_copy index_fill index_put index_reduce index_select inner int inverse
        isclose isfinite isinf isnan isneginf isposinf isreal istft item kron kthvalue lcm ldexp le lerp less
        less_equal lgamma log log10 log1p log2 log_softmax logaddexp logaddexp2 logcumsumexp logdet logical_and
        logical_not logical_or logical_xor logit logsumexp long lt masked_fill masked_scatter masked_select
        matmul matrix_exp matrix_power max maximum mean median min minimum mm mode moveaxis msort mul multiply
        mv mvlgamma nan_to_num nanmean nanmedian nanquantile nansum narrow_copy ne neg negative nelement
        new_full new_ones new_tensor new_zeros nextafter nonzero norm not_equal outer pinverse polygamma
        positive pow prelu prod quantile rad2deg ravel real reciprocal relu remainder renorm resolve_conj
        resolve_neg rot90 round rsqrt scatter scatter_add scatter_reduce select_scatter sgn short sigmoid sign
        signbit sin sinc sinh slice_scatter slogdet softmax sort split_with_sizes sqrt square std stft sub
        subtract sum sum_to_size swapdims take take_along_dim tan tanh tensor_split tile to tolist topk trace tril triu
        true_divide trunc type_as unfold unique unique_consecutive var vdot vsplit where xlogy
    """.split()
)  # fmt: skip
ATTRIBUTES = frozenset(
    """
        shape ndim dtype device T mT H mH real imag is_cuda layout values indices
        data batch_sizes sorted_indices unsorted_indices
    """.split()
)  # fmt: skip

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
            for digit in "123":
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
