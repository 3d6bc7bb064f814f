"""The text stage: Qwen3-VL's language tower tapped at 13 layers, and the transformer's projection of the taps.

The final norm, the language-model head and the vision tower are not used and not built. Text positions are the same
on all axes of Qwen3-VL's multi-axis RoPE, which makes it ordinary one-dimensional RoPE. Numbers: transformers
``modeling_qwen3_vl.py``; taps and their order: ideogram-oss/ideogram4 ``pipeline_ideogram4.py``.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import from_dict
from model.layers import Linear, RMSNorm, attend, rotate
from model.transformer import TransformerConfig

TAPS = (0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 35)
"""Layers (counted from 0) whose outputs are the text features."""
COND_NORM_EPS = 1e-6


@dataclass(frozen=True)
class TextEncoderConfig:
    """Sizes of the language tower; the defaults are Qwen3-VL-8B's ``text_config``."""

    hidden_size: int = 4096
    num_hidden_layers: int = 36
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int = 128
    intermediate_size: int = 12288
    rms_norm_eps: float = 1e-6
    rope_theta: float = 5_000_000
    vocab_size: int = 151936

    def __post_init__(self) -> None:
        if self.num_hidden_layers <= TAPS[-1]:
            raise ValueError(
                f"text encoder: num_hidden_layers is {self.num_hidden_layers}, wanted at least {TAPS[-1] + 1}: "
                f"the text features are taken after layers {list(TAPS)}"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"text encoder: num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )

    @property
    def features(self) -> int:
        """Width of the tapped features."""
        return self.hidden_size * len(TAPS)


class TextEncoder(nn.Module):
    """Token ids to tapped features."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.inv_freq = nn.Parameter(rope_frequencies(config))
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        # Layers after the last tap would not change anything.
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(TAPS[-1] + 1))

    def forward(self, input_ids: Tensor) -> Tensor:
        """Features (1, T, 13 * hidden) float32 for input_ids (1, T) int64; feature index = hidden * 13 + tap."""
        cos, sin = self.rope(input_ids)
        hidden = self.embed_tokens(input_ids).float()
        taps = []
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden, cos, sin)
            if index in TAPS:
                taps.append(hidden)
        return torch.stack(taps, dim=-1).flatten(2)

    def rope(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Tables (T, head_dim) float32. A product, not a MatMul, which TF32 would round to 11 bits."""
        positions = torch.arange(input_ids.shape[1], dtype=torch.float32, device=input_ids.device)
        angles = positions[:, None] * self.inv_freq
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()


def rope_frequencies(config: TextEncoderConfig) -> Tensor:
    """Frequencies (head_dim / 2,) float32 of the rotary embedding, rounded as PyTorch rounds them."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    return 1.0 / config.rope_theta**exponents


class DecoderLayer(nn.Module):
    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), cos, sin)
        hidden = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return hidden


class SelfAttention(nn.Module):
    """Causal attention with fewer key-value heads than query heads, and RMSNorm on queries and keys."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        size, head = config.hidden_size, config.head_dim
        self.head_dim = head
        self.q_proj = Linear(size, config.num_attention_heads * head, bias=False)
        self.k_proj = Linear(size, config.num_key_value_heads * head, bias=False)
        self.v_proj = Linear(size, config.num_key_value_heads * head, bias=False)
        self.o_proj = Linear(config.num_attention_heads * head, size, bias=False)
        self.q_norm = RMSNorm(head, config.rms_norm_eps)
        self.k_norm = RMSNorm(head, config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (-1, self.head_dim)) for p in (self.q_proj, self.k_proj, self.v_proj))
        q = rotate(self.q_norm(q).transpose(1, 2), cos, sin)
        k = rotate(self.k_norm(k).transpose(1, 2), cos, sin)
        out: Tensor = self.o_proj(attend(q, k, v.transpose(1, 2), self.q_proj.weight.dtype, causal=True))
        return out


class MLP(nn.Module):
    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return x


class TextStage(nn.Module):
    """Token ids to the text rows of the transformer: encoder, ``llm_cond_norm`` and ``llm_cond_proj``."""

    def __init__(self, config: TextEncoderConfig, transformer: TransformerConfig) -> None:
        super().__init__()
        if config.features != transformer.llm_features_dim:
            raise ValueError(
                f"the text encoder gives {config.features} features ({len(TAPS)} taps of {config.hidden_size}), "
                f"but the transformer's llm_features_dim is {transformer.llm_features_dim}"
            )
        self.encoder = TextEncoder(config)
        self.llm_cond_norm = RMSNorm(transformer.llm_features_dim, COND_NORM_EPS)
        self.llm_cond_proj = Linear(transformer.llm_features_dim, transformer.hidden_size)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Text rows (1, T, E) float32 for input_ids (1, T) int64."""
        rows: Tensor = self.llm_cond_proj(self.llm_cond_norm(self.encoder(input_ids)))
        return rows


def text_encoder_config(data: dict[str, Any]) -> TextEncoderConfig:
    """Read ``text_encoder/config.json``: the whole Qwen3-VL configuration or only its ``text_config``."""
    data = data.get("text_config", data)
    rope = (isinstance(data, dict) and (data.get("rope_parameters") or data.get("rope_scaling"))) or {}
    if isinstance(rope, dict) and "rope_theta" in rope:  # spelling of transformers 5
        data = data | {"rope_theta": rope["rope_theta"]}
    return from_dict(TextEncoderConfig, data, "text_encoder")


def text_encoder_json(config: TextEncoderConfig, coded: bool) -> dict[str, Any]:
    """What ``text_encoder/config.json`` of a checkpoint holds; `coded` if Linear weights are float8 codes."""
    text = {key: value for key, value in asdict(config).items() if key != "rope_theta"}
    short = 5 * config.head_dim // 32  # of the pairs of a head, as Qwen3-VL's 24, 20 and 20 of 64; text needs none
    sections = [config.head_dim // 2 - 2 * short, short, short]
    rope = {
        "rope_theta": config.rope_theta,
        "rope_type": "default",
        "mrope_interleaved": True,
        "mrope_section": sections,
    }
    text |= {"model_type": "qwen3_vl_text", "attention_bias": False, "hidden_act": "silu", "rope_parameters": rope}
    return {"model_type": "qwen3_vl", "ideogram_fp8_weight_only": coded, "text_config": text}
