"""The autoencoder for one tile of a picture, with what it must know of the rest.

Convolutions see their neighbourhood, but group norms and the attention of the middle block see the whole picture. On a
tile alone they see something else: flat sky in one tile and a face in the next are brought to the same mean and spread.
So every tile goes through the network together with a thumbnail of the whole picture, which goes first. The tile's
group norms use the thumbnail's means and variances, and its attention looks at the thumbnail's keys and values.
(Group norms from a thumbnail are known from the Tiled VAE extension of stable-diffusion-webui, as its fast mode.)
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from model.autoencoder import NORM_EPS, AutoencoderConfig, DecoderStage, EncoderStage, GroupNorm, MidAttention
from model.layers import attend

Pair = tuple[Tensor, Tensor]


class Notes:
    """What the layers note about the thumbnail, in the order in which they run, and read again for the tile."""

    def __init__(self) -> None:
        self.pairs: list[Pair] = []
        self.read: Iterator[Pair] | None = None

    def begin(self) -> None:
        """The thumbnail comes next."""
        self.pairs, self.read = [], None

    def end(self) -> None:
        """The tile comes next."""
        self.read = iter(self.pairs)


class NotingNorm(nn.Module):
    """A group norm that notes mean and inverse spread of a thumbnail and uses them for a tile.

    They are noted by channel, (B, C, 1, 1), so that the tile is never reshaped into groups.
    """

    def __init__(self, norm: GroupNorm, notes: Notes) -> None:
        super().__init__()
        self.weight, self.bias, self.groups, self.notes = norm.weight, norm.bias, norm.num_groups, notes

    def forward(self, x: Tensor) -> Tensor:
        if self.notes.read is None:
            rows = torch.unflatten(x, 1, (self.groups, -1)).flatten(2)  # (B, G, C / G * H * W)
            mean = rows.mean(dim=2, keepdim=True)
            scale = torch.rsqrt((rows - mean).square().mean(dim=2, keepdim=True) + NORM_EPS)
            self.notes.pairs.append((self._by_channel(mean), self._by_channel(scale)))
            mean, scale = self.notes.pairs[-1]
        else:
            mean, scale = next(self.notes.read)
        return (x - mean) * scale * self.weight[:, None, None] + self.bias[:, None, None]

    def _by_channel(self, groups: Tensor) -> Tensor:
        """(B, G, 1) to (B, C, 1, 1)."""
        channels = self.weight.shape[0]
        return groups.expand(-1, -1, channels // self.groups).reshape(-1, channels, 1, 1)


class NotingAttention(nn.Module):
    """The middle block's attention; a tile's queries look at the thumbnail's keys and values."""

    def __init__(self, attention: MidAttention, notes: Notes) -> None:
        super().__init__()
        self.group_norm = attention.group_norm
        self.to_q, self.to_k, self.to_v = attention.to_q, attention.to_k, attention.to_v
        self.to_out, self.notes = attention.to_out, notes

    def forward(self, x: Tensor) -> Tensor:
        rows = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, H * W, C)
        if self.notes.read is None:
            k, v = self.to_k(rows), self.to_v(rows)
            self.notes.pairs.append((k, v))
        else:
            k, v = next(self.notes.read)
        out: Tensor = self.to_out[0](attend(self.to_q(rows)[:, None], k[:, None], v[:, None], self.to_q.weight.dtype))
        return x + out.transpose(1, 2).reshape(x.shape)


class TileDecoder(DecoderStage):
    """Latent tokens of a tile to its pixels."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config)
        self.notes = Notes()
        _listen(self, self.notes)

    def forward(self, latents: Tensor, thumbnail: Tensor) -> Tensor:  # type: ignore[override]  # one more input
        """Pictures (B, H, W, 3) uint8 from latents (B, grid_h, grid_w, C) and those of a thumbnail, float32."""
        self.notes.begin()
        super().forward(thumbnail)
        self.notes.end()
        return super().forward(latents)


class TileEncoder(EncoderStage):
    """Pixels of a tile to its latent tokens."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config)
        self.notes = Notes()
        _listen(self, self.notes)

    def forward(self, image: Tensor, thumbnail: Tensor) -> Tensor:  # type: ignore[override]  # one more input
        """Latents (B, H / 16, W / 16, C) float32 from pictures (B, H, W, 3) and thumbnails, uint8."""
        self.notes.begin()
        super().forward(thumbnail)
        self.notes.end()
        return super().forward(image)


def _listen(module: nn.Module, notes: Notes) -> None:
    """Replace norms and attention below `module` by those that note and read; parameter names stay."""
    for name, part in module.named_children():
        _listen(part, notes)
        if isinstance(part, GroupNorm):
            setattr(module, name, NotingNorm(part, notes))
        elif isinstance(part, MidAttention):
            setattr(module, name, NotingAttention(part, notes))
