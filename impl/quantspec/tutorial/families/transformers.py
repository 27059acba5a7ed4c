"""Small configurations of the transformers library's models."""

import os
from functools import partial
from typing import Any

import torch
from torch import nn

from quantspec.torchvision_compat import import_torchvision
from quantspec.tutorial.zoo import images

from .audio import hide_torchaudio_that_does_not_load
from .network import Network, integers, normal

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched: weights are random
import_torchvision()  # the library imports it
hide_torchaudio_that_does_not_load()  # and this one, where it is installed

import transformers  # noqa: E402

WORDS, LENGTH, CLASSES = 200, 16, 10
SIZES: dict[str, Any] = {
    "vocab_size": WORDS, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FEW = SIZES | {"num_key_value_heads": 2}
IMAGE: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "image_size": 64,
    "patch_size": 16,
}  # fmt: skip
STAGES: dict[str, Any] = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 48, 64]}
T5: dict[str, Any] = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": WORDS}
PAIR: dict[str, Any] = {
    "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "vocab_size": WORDS, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 1, "forced_eos_token_id": None,
}  # fmt: skip
SPEECH: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 32,
    "conv_dim": (32, 32, 32), "conv_stride": (5, 2, 2), "conv_kernel": (10, 3, 3), "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
TEXT_TOWER = {**SIZES, "hidden_act": "quick_gelu"}


def build(model: str, config: str, **options: Any) -> nn.Module:
    """A model of its configuration, whose weights are as wide as the small sizes need."""
    classes = {"num_labels": CLASSES} if "Classification" in model else {}
    settings = getattr(transformers, config)(**options, **classes)
    for part in (settings, *(getattr(settings, name, None) for name in ("text_config", "vision_config"))):
        if hasattr(part, "initializer_range"):
            part.initializer_range = 0.1
    network: nn.Module = getattr(transformers, model)(settings)
    return network


def words(seed: int) -> dict[str, torch.Tensor]:
    """Sentences, of which the second is shorter."""
    mask = torch.ones(2, LENGTH, dtype=torch.int64)
    mask[1, LENGTH - 4 :] = 0
    return {"input_ids": integers(WORDS, 2, LENGTH, seed=seed), "attention_mask": mask}


def tokens(seed: int) -> dict[str, torch.Tensor]:
    """Sentences of one length."""
    return {"input_ids": integers(WORDS, 2, LENGTH, seed=seed)}


def pairs(seed: int) -> dict[str, torch.Tensor]:
    """Sentences and the beginnings of what is said of them."""
    return words(seed) | {"decoder_input_ids": integers(WORDS, 2, 8, seed=seed + 50)}


def pictures(seed: int) -> dict[str, torch.Tensor]:
    """Images of 64 x 64."""
    return {"pixel_values": images(2, 64, seed)}


def sound(seed: int) -> dict[str, torch.Tensor]:
    """A tenth of a second."""
    return {"input_values": normal(2, 1600, seed=seed)}


def spectrum(seed: int) -> dict[str, torch.Tensor]:
    """A spectrogram and the beginnings of what was said."""
    return {"input_features": normal(2, 20, 64, seed=seed), "decoder_input_ids": integers(WORDS, 2, 8, seed=seed + 50)}


def captions(seed: int) -> dict[str, torch.Tensor]:
    """Images and sentences."""
    return words(seed) | pictures(seed)


MODELS: dict[str, tuple[str, str, dict[str, Any], Any]] = {
    # Encoders of text.
    "bert": ("BertForSequenceClassification", "BertConfig", SIZES, words),
    "distilbert": (
        "DistilBertForSequenceClassification", "DistilBertConfig",
        {"vocab_size": WORDS, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "max_position_embeddings": 64},
        words,
    ),
    "roberta": ("RobertaForTokenClassification", "RobertaConfig", SIZES, words),
    "xlm_roberta": ("XLMRobertaModel", "XLMRobertaConfig", SIZES, words),
    "albert": ("AlbertForSequenceClassification", "AlbertConfig", SIZES | {"embedding_size": 32}, words),
    "deberta": (
        "DebertaV2ForSequenceClassification", "DebertaV2Config",
        SIZES | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16}, words,
    ),
    "electra": ("ElectraForPreTraining", "ElectraConfig", SIZES | {"embedding_size": 32}, words),
    "mpnet": ("MPNetModel", "MPNetConfig", SIZES, words),
    "mobilebert": (
        "MobileBertModel", "MobileBertConfig",
        SIZES | {"embedding_size": 32, "intra_bottleneck_size": 32, "num_feedforward_networks": 2}, words,
    ),
    "squeezebert": ("SqueezeBertModel", "SqueezeBertConfig", SIZES | {"embedding_size": 64}, words),
    "modernbert": ("ModernBertModel", "ModernBertConfig", SIZES | {"cls_token_id": 1, "sep_token_id": 2}, words),
    # Decoders of text.
    "gpt2": (
        "GPT2LMHeadModel", "GPT2Config",
        {"vocab_size": WORDS, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1,
         "eos_token_id": 2}, tokens,
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", SIZES, tokens),
    "opt": (
        "OPTForCausalLM", "OPTConfig", SIZES | {"ffn_dim": 128, "word_embed_proj_dim": 64}, words,
    ),
    "bloom": (
        "BloomForCausalLM", "BloomConfig",
        {"vocab_size": WORDS, "hidden_size": 64, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2},
        tokens,
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", FEW, tokens),
    "mistral": ("MistralForCausalLM", "MistralConfig", FEW, tokens),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", FEW, tokens),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", FEW | {"head_dim": 16}, tokens),
    "phi": ("PhiForCausalLM", "PhiConfig", SIZES, tokens),
    # Both.
    "t5": ("T5ForConditionalGeneration", "T5Config", T5 | {"decoder_start_token_id": 0}, pairs),
    "bart": ("BartForConditionalGeneration", "BartConfig", PAIR | {"max_position_embeddings": 64}, pairs),
    # Sound.
    "whisper": (
        "WhisperForConditionalGeneration", "WhisperConfig",
        PAIR | {"num_mel_bins": 20, "max_source_positions": 32, "max_target_positions": 32, "suppress_tokens": None,
                "begin_suppress_tokens": None},
        spectrum,
    ),
    "wav2vec2": ("Wav2Vec2ForCTC", "Wav2Vec2Config", SPEECH, sound),
    "hubert": ("HubertForCTC", "HubertConfig", SPEECH, sound),
    "audio_spectrogram": (
        "ASTForAudioClassification", "ASTConfig",
        {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
         "max_length": 64, "num_mel_bins": 32},
        lambda seed: {"input_values": normal(2, 64, 32, seed=seed)},
    ),
    # Images.
    "clip": (
        "CLIPModel", "CLIPConfig",
        {"text_config": TEXT_TOWER, "vision_config": IMAGE, "projection_dim": 32}, captions,
    ),
    "siglip": ("SiglipModel", "SiglipConfig", {"text_config": SIZES, "vision_config": IMAGE}, captions),
    "vit": ("ViTForImageClassification", "ViTConfig", IMAGE, pictures),
    "deit": ("DeiTForImageClassification", "DeiTConfig", IMAGE, pictures),
    "dinov2": ("Dinov2ForImageClassification", "Dinov2Config", IMAGE, pictures),
    "swin": (
        "SwinForImageClassification", "SwinConfig",
        {"image_size": 64, "patch_size": 4, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
        pictures,
    ),
    "segformer": (
        "SegformerForSemanticSegmentation", "SegformerConfig",
        STAGES | {"num_attention_heads": [1, 2, 3, 4], "decoder_hidden_size": 32}, pictures,
    ),
    "convnext": ("ConvNextForImageClassification", "ConvNextConfig", STAGES, pictures),
    "mobilevit": (
        "MobileViTForImageClassification", "MobileViTConfig",
        {"image_size": 64, "hidden_sizes": [32, 48, 64], "neck_hidden_sizes": [8, 16, 24, 32, 48, 64, 96],
         "num_attention_heads": 4},
        pictures,
    ),
    "resnet": (
        "ResNetForImageClassification", "ResNetConfig", STAGES | {"embedding_size": 16, "layer_type": "basic"}, pictures
    ),
    "yolos": (
        "YolosForObjectDetection", "YolosConfig",
        IMAGE | {"image_size": [64, 64], "num_detection_tokens": 10}, pictures,
    ),
}  # fmt: skip


def detr() -> nn.Module:
    """DETR on the library's own ResNet."""
    backbone = transformers.ResNetConfig(
        **STAGES, embedding_size=16, layer_type="basic", out_features=["stage4"]
    )  # fmt: skip
    sizes = {key: value for key, value in PAIR.items() if key.split("_")[0] in ("d", "encoder", "decoder")}
    sizes.pop("decoder_start_token_id")
    own = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone_config": backbone, "backbone": None}
    return build("DetrForObjectDetection", "DetrConfig", **sizes, **own, num_queries=10)


NETWORKS = {
    name: Network(partial(build, model, config, **options), batch)
    for name, (model, config, options, batch) in MODELS.items()
} | {"detr": Network(detr, pictures)}
