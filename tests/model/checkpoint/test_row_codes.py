"""Weights as codes with row scales, in float8 and int8."""

import ml_dtypes
import numpy as np
import torch

from model.checkpoint.directory import open_checkpoint
from model.checkpoint.row_codes import decode_e4m3, quantize_rows, quantize_rows_int8


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


def test_int8_codes_are_the_nearest():
    weight = torch.tensor([[1.27, -0.635, 0.006, 0.004], [0.0, 0.0, 0.0, 0.0], [-254.0, 1.0, 3.0, 127.0]])
    codes, scale = quantize_rows_int8(weight)
    # Ties, 0.5 and 63.5 steps, go to even codes; a row of zeros has codes of zero and a scale above it.
    assert codes.tolist() == [[127, -64, 1, 0], [0, 0, 0, 0], [-127, 0, 2, 64]]
    assert codes.dtype == torch.int8 and (scale > 0).all()
    torch.testing.assert_close(scale[[0, 2]], torch.tensor([0.01, 2.0]))


def test_int8_of_a_float8_checkpoint_is_one_rounding(peer):
    """Half a step at most, of a row's largest value."""
    source = open_checkpoint(peer("head32", "original-fp8")[1]).sources["dit_cond"]["layers.0.feed_forward.w1.weight"]
    weight = source.read()
    codes, scale = quantize_rows_int8(weight)
    off = (codes.float() * scale[:, None] - weight).abs()
    assert (off <= 0.5001 * scale[:, None]).all() and off.max() > 0


def test_decoding_is_pytorchs():
    """Every code but the two NaN."""
    codes = torch.tensor([c for c in range(256) if c & 0x7F != 0x7F], dtype=torch.uint8).view(torch.float8_e4m3fn)
    assert torch.equal(decode_e4m3(codes), codes.float())
