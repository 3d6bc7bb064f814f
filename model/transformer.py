"""The diffusion transformer: 34 single-stream blocks over text and image tokens.

Parameter names are those of the released checkpoint (fused ``attention.qkv``). Two simplifications are exact: prompts
are never padded, so there is no mask; and the projection of the text features, which does not depend on time, is in
`model.text_encoder`, so the unconditional transformer has no text weights at all. Numbers: ideogram-oss/ideogram4
``modeling_ideogram4.py`` and diffusers ``transformer_ideogram4.py``.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import from_dict
from model.layers import Linear, RMSNorm, attend, rotate

TEXT_ROW, IMAGE_ROW = 0, 1
"""Rows of ``embed_image_indicator``."""
QK_NORM_EPS = 1e-5
FINAL_NORM_EPS = 1e-6
TIME_SCALE = 1e4
"""The time in [0, 1] is multiplied by this before the sinusoids."""


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a transformer; the defaults are the released model's ``transformer/config.json``."""

    num_layers: int = 34
    num_attention_heads: int = 18
    attention_head_dim: int = 256
    intermediate_size: int = 12288
    adaln_dim: int = 512
    in_channels: int = 128
    llm_features_dim: int = 53248
    rope_theta: float = 5_000_000
    mrope_section: tuple[int, int, int] = (24, 20, 20)
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        half = self.attention_head_dim // 2
        if len(self.mrope_section) != 3:
            raise ValueError(
                f"transformer: mrope_section is {list(self.mrope_section)}, wanted the lanes of three axes"
            )
        if self.attention_head_dim % 2 or 3 * max(self.mrope_section[1:]) > half + 2:
            raise ValueError(
                f"transformer: mrope_section {list(self.mrope_section)} does not fit into the {half} lanes of "
                f"attention_head_dim {self.attention_head_dim}"
            )

    @property
    def hidden_size(self) -> int:
        return self.num_attention_heads * self.attention_head_dim


class Ideogram4Transformer(nn.Module):
    """Velocity of the latents, conditional (with text rows in front) or unconditional (image rows only)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.input_proj = Linear(config.in_channels, size)
        self.t_embedding = TimeEmbedding(size)
        self.adaln_proj = Linear(size, config.adaln_dim)
        self.embed_image_indicator = nn.Embedding(2, size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_layer = FinalLayer(config)

    def forward(
        self, latents: Tensor, timestep: Tensor, rope_cos: Tensor, rope_sin: Tensor, text: Tensor | None = None
    ) -> Tensor:
        """Velocity (B, N, C) float32 of the image rows.

        Args:
            latents: (B, N, C) float32, image tokens in row-major order.
            timestep: (B,) float32 in [0, 1], 0 is noise.
            rope_cos: (T + N, D) float32, text rows first; (N, D) without text.
            rope_sin: like `rope_cos`.
            text: (B, T, E) float32 from `TextStage`, or None.
        """
        hidden, modulation = self.begin(latents, timestep, text)
        for block in self.layers[:-1]:
            hidden = block(hidden, rope_cos, rope_sin, modulation)
        # Text rows end here: the last block computes what follows their keys and values for image rows only.
        hidden = self.layers[-1](hidden, rope_cos, rope_sin, modulation, 0 if text is None else text.shape[1])
        velocity: Tensor = self.final_layer(hidden, modulation)
        return velocity

    def begin(self, latents: Tensor, timestep: Tensor, text: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the first block gets: rows (B, T + N, E), text first, and the modulation (B, 1, adaln_dim)."""
        modulation = F.silu(self.adaln_proj(self.t_embedding(timestep)))[:, None]
        indicator = self.embed_image_indicator.weight
        hidden = self.input_proj(latents) + indicator[IMAGE_ROW]
        if text is not None:
            hidden = torch.cat((text + indicator[TEXT_ROW], hidden), dim=1)
        return hidden, modulation


class Block(nn.Module):
    """Attention and SwiGLU, each between two RMSNorms, scaled and gated by the time; no shift."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.norm_eps
        self.attention = Attention(config)
        self.feed_forward = FeedForward(size, config.intermediate_size)
        self.attention_norm1 = RMSNorm(size, eps)
        self.attention_norm2 = RMSNorm(size, eps)
        self.ffn_norm1 = RMSNorm(size, eps)
        self.ffn_norm2 = RMSNorm(size, eps)
        self.adaln_modulation = Linear(config.adaln_dim, 4 * size)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor, modulation: Tensor, first: int = 0) -> Tensor:
        """Rows `first` and later of the next hidden state, from (B, L, E); `modulation` is (B, 1, adaln_dim)."""
        scale_attn, gate_attn, scale_ffn, gate_ffn = self.adaln_modulation(modulation).chunk(4, dim=-1)
        out = self.attention(self.attention_norm1(hidden) * (1 + scale_attn), cos, sin, first)
        hidden = hidden[:, first:] + gate_attn.tanh() * self.attention_norm2(out)
        out = self.feed_forward(self.ffn_norm1(hidden) * (1 + scale_ffn))
        hidden = hidden + gate_ffn.tanh() * self.ffn_norm2(out)
        return hidden


class Attention(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.qkv = Linear(size, 3 * size, bias=False)
        self.o = Linear(size, size, bias=False)
        self.norm_q = RMSNorm(config.attention_head_dim, QK_NORM_EPS)
        self.norm_k = RMSNorm(config.attention_head_dim, QK_NORM_EPS)
        # Names for the operands of the attention, (B, heads, L, D): calibration and quantization take hold of them.
        self.q, self.k, self.v = nn.Identity(), nn.Identity(), nn.Identity()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, first: int) -> Tensor:
        # The rows of qkv.weight are q, k, v in turn, each head-major. Queries and keys are normed and rotated as one
        # tensor of 2H heads, which spares an engine a kernel in each block.
        heads = self.qkv(x).unflatten(-1, (3 * self.num_heads, -1))  # (B, L, 3H, D)
        both, v = heads.split((2 * self.num_heads, self.num_heads), dim=2)
        norms = torch.cat([norm.weight.expand(self.num_heads, -1) for norm in (self.norm_q, self.norm_k)])
        both = F.rms_norm(both, (both.shape[-1],), eps=QK_NORM_EPS) * norms
        q, k = rotate(both, cos[:, None], sin[:, None]).chunk(2, dim=2)
        q, k, v = (part.transpose(1, 2) for part in (q[:, first:], k, v))
        out: Tensor = self.o(attend(self.q(q), self.k(k), self.v(v), self.qkv.weight.dtype))
        return out


class FeedForward(nn.Module):
    def __init__(self, size: int, intermediate_size: int) -> None:
        super().__init__()
        self.w1 = Linear(size, intermediate_size, bias=False)
        self.w2 = Linear(intermediate_size, size, bias=False)
        self.w3 = Linear(size, intermediate_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return x


class TimeEmbedding(nn.Module):
    """Sinusoids of 1e4 * t, sines first, then a two-layer MLP."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.mlp_in = Linear(size, size)
        self.mlp_out = Linear(size, size)
        self.frequencies = nn.Parameter(time_frequencies(size))

    def forward(self, timestep: Tensor) -> Tensor:
        angles = TIME_SCALE * timestep[:, None] * self.frequencies
        out: Tensor = self.mlp_out(F.silu(self.mlp_in(torch.cat((angles.sin(), angles.cos()), dim=-1))))
        return out


def time_frequencies(size: int) -> Tensor:
    """Frequencies (size / 2,) float32 of the time's sinusoids, from 1 down to 1e-4.

    A parameter of the graphs and not a formula in them: at angles up to 1e4 the last bit of a frequency moves the
    velocity by 1e-5, and numpy, ONNX Runtime and PyTorch do not agree on the last bit of ``exp``.
    """
    half = size // 2
    return torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(1e4) / (half - 1)))


class FinalLayer(nn.Module):
    """LayerNorm without weights, scaled by the time, and the projection to latent channels."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.linear = Linear(config.hidden_size, config.in_channels)
        self.adaln_modulation = Linear(config.adaln_dim, config.hidden_size)

    def forward(self, hidden: Tensor, modulation: Tensor) -> Tensor:
        # The modulation has been through SiLU once already; the released model applies it a second time here.
        scale = 1 + self.adaln_modulation(F.silu(modulation))
        out: Tensor = self.linear(F.layer_norm(hidden, (hidden.shape[-1],), eps=FINAL_NORM_EPS) * scale)
        return out


def transformer_config(data: dict[str, Any]) -> TransformerConfig:
    """Read ``transformer/config.json``; the original code spells one key ``adanln_dim``."""
    return from_dict(TransformerConfig, {"adaln_dim": data.get("adanln_dim")} | data, "transformer")
