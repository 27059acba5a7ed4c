"""torchaudio's models in small configurations."""

from typing import Any

import torch
from torch import nn
from torchaudio import models

from .network import Network, normal

LENGTHS = torch.tensor([40, 40])


def features(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames of a spectrogram, and how many there are."""
    return normal(2, 40, 32, seed=seed), LENGTHS


def sound(seed: int) -> torch.Tensor:
    """A tenth of a second."""
    return normal(2, 1600, seed=seed)


def wave(seed: int) -> torch.Tensor:
    """The same with a channel."""
    return normal(2, 1, 1600, seed=seed)


def transformer(model: Any, **more: Any) -> nn.Module:
    """Wav2Vec 2.0 and its like."""
    network: nn.Module = model(
        extractor_mode="group_norm", extractor_conv_layer_config=[(32, 10, 5), (32, 3, 2), (32, 3, 2)],
        extractor_conv_bias=False, encoder_embed_dim=64, encoder_projection_dropout=0.0, encoder_pos_conv_kernel=16,
        encoder_pos_conv_groups=4, encoder_num_layers=2, encoder_num_heads=4, encoder_attention_dropout=0.0,
        encoder_ff_interm_features=128, encoder_ff_interm_dropout=0.0, encoder_dropout=0.0,
        encoder_layer_norm_first=False, encoder_layer_drop=0.0, aux_num_out=32, **more,
    )  # fmt: skip
    return network


NETWORKS = {
    "conformer": Network(lambda: models.Conformer(32, 4, 64, 2, 7), features),
    "conv_tasnet": Network(
        lambda: models.ConvTasNet(
            enc_num_feats=64, msk_num_feats=32, msk_num_hidden_feats=64, msk_num_layers=3, msk_num_stacks=2
        ), wave,
    ),
    "deepspeech": Network(
        lambda: models.DeepSpeech(32, n_hidden=64, n_class=20), lambda seed: normal(2, 1, 30, 32, seed=seed)
    ),
    "emformer": Network(lambda: models.Emformer(32, 4, 64, 2, 8, right_context_length=2), lambda seed: (
        normal(2, 34, 32, seed=seed), torch.tensor([32, 32])
    )),
    "wav2letter": Network(
        lambda: models.Wav2Letter(20, "mfcc", 13), lambda seed: normal(2, 13, 60, seed=seed)
    ),
    "wav2vec2": Network(lambda: transformer(models.wav2vec2_model), sound),
    "wavlm": Network(
        lambda: transformer(models.wavlm_model, encoder_num_buckets=32, encoder_max_distance=64), sound
    ),
    "wavernn": Network(
        lambda: models.WaveRNN([2, 2, 2], 16, 8, 1, 32, 32, 5, 16, 16, 16),
        lambda seed: (normal(2, 1, 32, seed=seed).tanh(), normal(2, 1, 16, 8, seed=seed + 50)),
    ),
    "squim_objective": Network(
        lambda: models.squim_objective_model(
            feat_dim=32, win_len=16, d_model=32, nhead=4, hidden_dim=32, num_blocks=1, rnn_type="LSTM", chunk_size=20
        ), sound,
    ),
}  # fmt: skip
