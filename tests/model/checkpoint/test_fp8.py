"""The release's weight quantizer."""

import ml_dtypes
import numpy as np
import torch

from model.checkpoint.directory import open_checkpoint
from model.checkpoint.row_codes import quantize_rows


def test_quantizing_what_was_quantized_gives_the_same_codes(peer):
    """Why a float copy of a float8 checkpoint loses nothing: its largest code in each row is 448 again."""
    source = open_checkpoint(peer("head32", "original-fp8")[1]).sources["dit_cond"]["layers.0.feed_forward.w1.weight"]
    codes, scale = source.read_codes()
    again, scale_again = quantize_rows(source.read())
    assert torch.equal(codes.view(torch.uint8), again.view(torch.uint8))
    torch.testing.assert_close(scale_again, scale, rtol=1.2e-7, atol=0)  # one rounding of float32


def test_ml_dtypes_and_torch_agree_on_e4m3():
    """The scales and codes cross between the two libraries."""
    values = torch.linspace(-500, 500, 4001).clamp(-448, 448)
    ours = values.numpy().astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    assert np.array_equal(ours, values.to(torch.float8_e4m3fn).view(torch.uint8).numpy())
