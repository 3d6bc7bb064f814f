"""The KL autoencoder (AutoencoderKLFlux2's architecture): pictures to latents and back, 8 pixels to a latent.

Parameter names are diffusers', which the released files use. The two stages at the end are the graphs of a bundle:
they hold the latent statistics, the packing of 2 x 2 latents into one token, and the conversion to bytes.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import from_dict
from model.layers import Conv2d, Linear, attend
from runtime.errors import shown

NORM_EPS = 1e-6
PATCH = 2
"""Latents on each axis that make one token."""


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of the autoencoder; the defaults are the released model's ``vae/config.json``."""

    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    decoder_block_out_channels: tuple[int, ...] | None = None
    layers_per_block: int = 2
    latent_channels: int = 32
    norm_num_groups: int = 32
    batch_norm_eps: float = 1e-4

    @property
    def factor(self) -> int:
        """Pixels per latent on each axis."""
        return 1 << (len(self.block_out_channels) - 1)

    @property
    def pixels_per_token(self) -> int:
        """Pixels per token on each axis."""
        return self.factor * PATCH


class Encoder(nn.Module):
    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = Conv2d(config.in_channels, widths[0], 3, padding=1)
        inputs = (widths[0], *widths[:-1])
        self.down_blocks = nn.ModuleList(
            DownBlock(a, b, config.layers_per_block, groups, last=i == len(widths) - 1)
            for i, (a, b) in enumerate(zip(inputs, widths, strict=True))
        )
        self.mid_block = MidBlock(widths[-1], groups)
        self.conv_norm_out = GroupNorm(groups, widths[-1])
        self.conv_out = Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        x = self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))
        return x


class Decoder(nn.Module):
    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        groups = config.norm_num_groups
        widths = tuple(reversed(config.decoder_block_out_channels or config.block_out_channels))
        self.conv_in = Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], groups)
        inputs = (widths[0], *widths[:-1])
        self.up_blocks = nn.ModuleList(
            UpBlock(a, b, config.layers_per_block + 1, groups, last=i == len(widths) - 1)
            for i, (a, b) in enumerate(zip(inputs, widths, strict=True))
        )
        self.conv_norm_out = GroupNorm(groups, widths[-1])
        self.conv_out = Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        x = self.conv_out(F.silu(self.conv_norm_out(x)))
        return x


class GroupNorm(nn.GroupNorm):
    def __init__(self, groups: int, channels: int) -> None:
        super().__init__(groups, channels, eps=NORM_EPS)


class ResnetBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, inputs)
        self.conv1 = Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = GroupNorm(groups, outputs)
        self.conv2 = Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.silu(self.norm1(x)))
        out = self.conv2(F.silu(self.norm2(out)))
        x = self.conv_shortcut(x) + out
        return x


class MidAttention(nn.Module):
    """One attention head over all positions."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = GroupNorm(groups, channels)
        self.to_q = Linear(channels, channels)
        self.to_k = Linear(channels, channels)
        self.to_v = Linear(channels, channels)
        self.to_out = nn.ModuleList([Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        rows = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, H * W, C)
        q, k, v = (p(rows)[:, None] for p in (self.to_q, self.to_k, self.to_v))
        out: Tensor = self.to_out[0](attend(q, k, v, self.to_q.weight.dtype))
        return x + out.transpose(1, 2).reshape(x.shape)


class MidBlock(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, groups) for _ in range(2))
        self.attentions = nn.ModuleList([MidAttention(channels, groups)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[1](self.attentions[0](self.resnets[0](x)))
        return x


class DownBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, layers: int, groups: int, last: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(outputs if i else inputs, outputs, groups) for i in range(layers))
        self.downsamplers = nn.ModuleList([] if last else [Downsample(outputs)])

    def forward(self, x: Tensor) -> Tensor:
        for part in (*self.resnets, *self.downsamplers):
            x = part(x)
        return x


class UpBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, layers: int, groups: int, last: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(outputs if i else inputs, outputs, groups) for i in range(layers))
        self.upsamplers = nn.ModuleList([] if last else [Upsample(outputs)])

    def forward(self, x: Tensor) -> Tensor:
        for part in (*self.resnets, *self.upsamplers):
            x = part(x)
        return x


class Downsample(nn.Module):
    """Halve the size; the padding is one column on the right and one row at the bottom."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.pad(x, (0, 1, 0, 1)))
        return x


class Upsample(nn.Module):
    """Double the size by repeating pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return x


class DecoderStage(nn.Module):
    """Latent tokens to pictures."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.decoder = Decoder(config)
        self.post_quant_conv = Conv2d(config.latent_channels, config.latent_channels, 1)
        self.latent_stats = LatentStats(PATCH * PATCH * config.latent_channels)

    def forward(self, latents: Tensor) -> Tensor:
        """Pictures (B, H, W, 3) uint8 from latents (B, grid_h, grid_w, C) float32, C = 4 * latent_channels."""
        z = unpack(self.latent_stats.denormalize(latents))
        return to_bytes(self.decoder(self.post_quant_conv(z)))


class EncoderStage(nn.Module):
    """Pictures to latent tokens: the mean of the posterior, without its noise."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.quant_conv = Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.latent_stats = LatentStats(PATCH * PATCH * config.latent_channels)

    def forward(self, image: Tensor) -> Tensor:
        """Latents (B, H / 16, W / 16, C) float32 from pictures (B, H, W, 3) uint8."""
        return self.latent_stats.normalize(pack(self.moments(from_bytes(image))[0]))

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (B, c, H / 8, W / 8) of the posterior of pixels (B, 3, H, W) in [-1, 1]."""
        mean, log_variance = self.quant_conv(self.encoder(pixels)).chunk(2, dim=1)
        return mean, log_variance


class LatentStats(nn.Module):
    """Mean and standard deviation of each latent channel of a token."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(channels))
        self.std = nn.Parameter(torch.ones(channels))

    def denormalize(self, latents: Tensor) -> Tensor:
        return latents * self.std + self.mean

    def normalize(self, latents: Tensor) -> Tensor:
        return (latents - self.mean) / self.std


def unpack(latents: Tensor) -> Tensor:
    """(B, h, w, C) tokens to (B, C / 4, 2h, 2w); the channel order is (patch row, patch column, channel)."""
    patches = torch.unflatten(latents, -1, (PATCH, PATCH, -1))  # (B, h, w, p, q, c)
    return patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def pack(z: Tensor) -> Tensor:
    """(B, c, 2h, 2w) to (B, h, w, 4c) tokens: the inverse of `unpack`."""
    patches = torch.unflatten(torch.unflatten(z, 3, (-1, PATCH)), 2, (-1, PATCH))  # (B, c, h, p, w, q)
    return patches.permute(0, 2, 4, 3, 5, 1).flatten(3)


def to_bytes(x: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1], clipped, to (B, H, W, 3) uint8, halves rounded to even as numpy does."""
    # TensorRT takes uint8 at the boundary of a graph only, so nothing may follow the cast.
    return ((x / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1).to(torch.uint8)


def from_bytes(image: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) float32 in [-1, 1]."""
    return image.float().permute(0, 3, 1, 2) / 127.5 - 1


def autoencoder_config(data: dict[str, Any]) -> AutoencoderConfig:
    """Read ``vae/config.json``; ValueError for an architecture that `AutoencoderConfig` cannot say."""
    wanted = {
        "act_fn": "silu",
        "use_quant_conv": True,
        "use_post_quant_conv": True,
        "mid_block_add_attention": True,
        "patch_size": [PATCH, PATCH],
    }
    for key, value in wanted.items():
        if data.get(key, value) != value:
            raise ValueError(f"vae: {key} is {shown(data[key])}, wanted {value!r}")
    return from_dict(AutoencoderConfig, data, "vae")
