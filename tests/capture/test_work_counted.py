"""The multiply-accumulates of torch's own kernels of encoders, which stay Python where they are excluded."""

import pytest
import torch
from torch import nn

import quantspec as qs
from networks import seeded
from quantspec.ptq import work

X = torch.randn(4, 5, 16, generator=torch.Generator().manual_seed(1))
LENGTHS = torch.tensor([5, 3, 1, 5])
PADDING = torch.arange(5) >= LENGTHS[:, None]
WEIGHTS = 3 * 16 * 16 + 16 * 16 + 2 * 16 * 32
MACS = {  # of a layer: its weights for each row, and each row with each of its sequence, as a key and as a value
    True: sum(n * WEIGHTS + 2 * n * n * 16 for n in LENGTHS.tolist()), False: 4 * (5 * WEIGHTS + 2 * 5 * 5 * 16),
}  # fmt: skip


class Encoder(nn.Module):
    """An encoder whose padded rows torch may leave out, and a layer."""

    def __init__(self, leaves_out=True):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=leaves_out)
        self.head = nn.Linear(16, 4)

    def forward(self, x, padding=None):
        y = self.encoder(x, src_key_padding_mask=padding)
        return self.head(y) if y.sum() < 1e9 else y


@pytest.mark.parametrize("leaves_out", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_an_excluded_encoder_counts_the_rows_that_torch_computes(padded, leaves_out):
    model = seeded(lambda: Encoder(leaves_out))
    q = qs.quantize(model, [(X, PADDING) if padded else X], exclude="encoder.*")
    counted = {row.path: row.macs for row in q.report.rows}
    rows = 4 * 5 * 16 * 4  # of the head, which gets the padded ones, too
    each = MACS[padded and leaves_out]
    assert counted == {"encoder.layers.0": each, "encoder.layers.1": each, "head": rows}


def test_torchs_own_attention_counts_its_weights_and_products_and_no_mask():
    attention = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    expected = 4 * (5 * 4 * 16 * 16 + 2 * 5 * 5 * 16)
    for mask in (None, torch.zeros(5, 5), torch.ones(5, 5, dtype=torch.bool).triu(1)):
        with torch.no_grad(), work.Products() as products:
            attention(X, X, X, attn_mask=mask, need_weights=False)
        assert products.take() == expected and products.take() == 0
