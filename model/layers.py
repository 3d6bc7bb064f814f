"""The layers that every stage is made of, with one rule for types.

Weights of matrix multiplications and convolutions are held in the compute type (float32, float16 or bfloat16);
everything between them is float32: residual streams, norms, rotations, gates, softmax. This needs no knowledge of the
activations' range, which nobody has published for the diffusion transformer and which reaches 1.3e4 in the text
encoder, so it is safe in float16. In float32 the casts disappear.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """``y = x W^T + b``, computed in the weight's type, float32 at both ends."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias).float()


class Conv2d(nn.Conv2d):
    """Convolution computed in the weight's type, float32 at both ends."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype)).float()


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last dimension."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x (…, D) by tables that broadcast to it; lane i turns with lane i + D/2."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def attend(q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype, causal: bool = False) -> Tensor:
    """Softmax attention of q (B, H, Lq, D) on k, v (B, Hkv, Lk, D) in `dtype`; returns (B, Lq, H * D) float32."""
    out = F.scaled_dot_product_attention(
        q.to(dtype), k.to(dtype), v.to(dtype), is_causal=causal, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out.transpose(1, 2).flatten(2).float()


def set_compute_dtype(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Put embeddings and the weights and biases of all `Linear` and `Conv2d` in `dtype`; the rest stays float32."""
    for part in module.modules():
        if isinstance(part, Linear | Conv2d | nn.Embedding):
            part.to(dtype)
    return module
