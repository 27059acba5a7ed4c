"""torchao's int8 form of a network (pt2e), compiled by torch.compile's inductor."""

import warnings
from collections.abc import Callable

import torch
from torch import nn


def call(model: nn.Module, batches: list[torch.Tensor], batch: torch.Tensor, dynamic: bool) -> Callable[[], object]:
    """One call of a network that is quantized for x86 with some batches of the batch's shape; it has run once."""
    import torch._inductor.config as config
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = x86.get_default_x86_inductor_quantization_config(is_dynamic=dynamic)
        exported = torch.export.export(model, (batch.clone(),)).module()
        prepared = prepare_pt2e(exported, x86.X86InductorQuantizer().set_global(settings))
        for calibration in batches:
            prepared(calibration.clone())
        converted = convert_pt2e(prepared)
        move_exported_model_to_eval(converted)
    compiled = torch.compile(converted)
    with config.patch(freezing=True):  # weights are packed as constants
        compiled(batch)
    compiled(batch)
    return lambda: compiled(batch)
