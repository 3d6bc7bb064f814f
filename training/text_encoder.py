"""The text encoder: 36 random layers that stay as they are.

Its features are the token's own embedding, mixed more and more with what stands before it; the transformer, which is
trained, reads them. The layers' outputs are small beside the embedding, so that the last tap still tells one word
from another.
"""

import torch

from model.text_encoder import TextEncoder
from training.sizes import TEXT

_SEED = 2
_LAYER_SCALE = 0.2
"""Standard deviation of what a half-layer adds, where the embedding's is 1 (72 of them: 1.7 together)."""


def random_text_encoder() -> TextEncoder:
    """The encoder, with matrices of variance 1 / inputs and norms near 1."""
    generator = torch.Generator().manual_seed(_SEED)
    encoder = TextEncoder(TEXT).eval().requires_grad_(False)
    for name, parameter in encoder.named_parameters():
        if name == "inv_freq":
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            parameter.copy_(1 + 0.1 * noise)
        elif name.startswith("embed_tokens"):
            parameter.copy_(noise)
        else:
            small = _LAYER_SCALE if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
            parameter.copy_(small * noise / parameter.shape[1] ** 0.5)
    return encoder
