"""Training of the KL autoencoder, and the placing of its latents where the released statistics expect them.

First on crops of half the size around an element, which hold more edges per pixel, then on whole pictures. The weight
of the KL term is high for an autoencoder of this kind: it leaves a smooth latent space, which a small transformer
learns more easily, and channels that the scenes do not need become noise that the decoder ignores.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from model.autoencoder import DecoderStage, EncoderStage, from_bytes, pack
from model.checkpoint.latent_stats import LATENT_SCALE, LATENT_SHIFT
from training.progress import Learner, train
from training.scenes import SIZE, Scene, draw, sample_scene
from training.sizes import AUTOENCODER
from training.workers import share

KL_WEIGHT, KL_WARMUP = 1e-2, 1000
"""Weight of the KL divergence per latent value, and the steps over which it rises."""
LEARNING_RATE, REFINING_RATE = 2e-3, 1e-3
REFINING_NOISE = 2.0
"""Most noise that the refined decoder sees, in standard deviations of the posterior: transformers miss the variance of
channels that hold no picture, and a decoder that knows only the right one draws specks then."""
CROP, CROP_BATCH, BATCH = SIZE // 2, 32, 12
CROP_SHARE = 0.6
"""Share of the steps that see crops."""
_SEED, _REFINING_SEED = 1, 10
_LOG_VARIANCE = (-12.0, 8.0)


class Autoencoder(nn.Module):
    """The encoder's and decoder's networks with the posterior between them; no latent statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = EncoderStage(AUTOENCODER), DecoderStage(AUTOENCODER)
        for stage in (self.encode, self.decode):
            stage.latent_stats.requires_grad_(False)
        self.to(memory_format=torch.channels_last)

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (B, c, h, w) of the latents of pixels (B, 3, H, W) in [-1, 1]."""
        mean, log_variance = self.encode.moments(pixels)
        return mean, log_variance.clamp(*_LOG_VARIANCE)

    def reconstruct(self, z: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) for latents (B, c, h, w)."""
        return self.decode.decoder(self.decode.post_quant_conv(z))


def train_autoencoder(file: Path, steps: int, quiet: bool = False) -> Autoencoder:
    """Train the autoencoder, resuming from `file` if it exists; returns it with averaged weights."""
    torch.manual_seed(_SEED)
    autoencoder = Autoencoder()
    optimizer = torch.optim.AdamW(autoencoder.parameters(), lr=LEARNING_RATE, weight_decay=1e-3, fused=True)
    learner = Learner(autoencoder, [optimizer], average=0.995)
    train(learner, lambda step: _loss(autoencoder, step, steps), steps, file, quiet)
    autoencoder.load_state_dict(learner.averaged)
    return autoencoder.eval().requires_grad_(False)


def _loss(autoencoder: Autoencoder, step: int, steps: int) -> Tensor:
    random = np.random.default_rng((_SEED, step))
    generator = torch.Generator().manual_seed(step)
    pixels = _crops(random) if step < CROP_SHARE * steps else to_pixels([sample_scene(random) for _ in range(BATCH)])
    side = pixels.shape[-1] // AUTOENCODER.factor
    noise = torch.randn((len(pixels), AUTOENCODER.latent_channels, side, side), generator=generator)
    rows = share(len(pixels))
    pixels, noise = pixels[rows].contiguous(memory_format=torch.channels_last), noise[rows]
    with torch.autocast("cpu", torch.bfloat16):
        mean, log_variance = autoencoder.posterior(pixels)
        z = mean + (log_variance / 2).exp() * noise
        error = autoencoder.reconstruct(z) - pixels
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return error.abs().mean() + error.square().mean() + min(1.0, (step + 1) / KL_WARMUP) * KL_WEIGHT * divergence


def _crops(random: np.random.Generator) -> Tensor:
    pictures = []
    for _ in range(CROP_BATCH):
        scene = sample_scene(random)
        element = scene.elements[random.integers(len(scene.elements))]
        middle = np.array((element.x, element.y)) + random.uniform(-CROP / 2, CROP / 2, 2)
        x, y = np.clip(middle - CROP / 2, 0, SIZE - CROP).astype(int)
        pictures.append(draw(scene)[y : y + CROP, x : x + CROP])
    return _pixels(pictures)


def to_pixels(scenes: list[Scene]) -> Tensor:
    """(B, 3, SIZE, SIZE) float32 in [-1, 1]."""
    return _pixels([draw(scene) for scene in scenes])


def _pixels(pictures: list[np.ndarray]) -> Tensor:
    return from_bytes(torch.from_numpy(np.stack(pictures))).contiguous(memory_format=torch.channels_last)


def refine_decoder(file: Path, autoencoder: Autoencoder, steps: int, quiet: bool = False) -> None:
    """Train the decoder alone, in place, while the latents stay what they are: on whole pictures, without KL term."""
    decoder = autoencoder.decode
    for part in (decoder.decoder, decoder.post_quant_conv):
        part.requires_grad_(True)
    optimizer = torch.optim.AdamW([p for p in decoder.parameters() if p.requires_grad], lr=REFINING_RATE, fused=True)
    learner = Learner(decoder, [optimizer], average=0.99)
    train(learner, lambda step: _refining_loss(autoencoder, step), steps, file, quiet)
    decoder.load_state_dict(learner.averaged)
    decoder.requires_grad_(False)


def _refining_loss(autoencoder: Autoencoder, step: int) -> Tensor:
    random = np.random.default_rng((_REFINING_SEED, step))
    generator = torch.Generator().manual_seed(step)
    pixels = to_pixels([sample_scene(random) for _ in range(BATCH)][share(BATCH)])
    side = SIZE // AUTOENCODER.factor
    noise = torch.randn((BATCH, AUTOENCODER.latent_channels, side, side), generator=generator)
    strength = REFINING_NOISE * torch.rand((BATCH, 1, 1, 1), generator=generator)
    noise = (strength * noise)[share(BATCH)]
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            mean, log_variance = autoencoder.posterior(pixels)
        error = autoencoder.reconstruct(mean + (log_variance / 2).exp() * noise) - pixels
    return error.abs().mean() + error.square().mean()


def place_latents(autoencoder: Autoencoder, scenes: list[Scene]) -> None:
    """Move and scale each latent channel in place so that the released statistics normalize it.

    Encoder and decoder begin and end with 1 x 1 convolutions that take the change exactly. The released statistics
    differ a little between the four positions of a token; their mean is aimed at.
    """
    means, variances = zip(
        *(autoencoder.posterior(to_pixels(scenes[i : i + 16])) for i in range(0, len(scenes), 16)), strict=True
    )
    mean, log_variance = torch.cat(means), torch.cat(variances)
    center = mean.mean(dim=(0, 2, 3))
    spread = (mean.var(dim=(0, 2, 3)) + log_variance.exp().mean(dim=(0, 2, 3))).sqrt()
    shift, scale = (torch.tensor(values).view(4, -1).mean(dim=0) for values in (LATENT_SHIFT, LATENT_SCALE))
    factor = scale / spread
    quant, post = autoencoder.encode.quant_conv, autoencoder.decode.post_quant_conv
    channels = len(center)
    quant.weight[:channels] *= factor[:, None, None, None]
    quant.bias[:channels] = factor * (quant.bias[:channels] - center) + shift
    quant.bias[channels:] += 2 * factor.log()
    post.bias += post.weight[:, :, 0, 0] @ (center - shift / factor)
    post.weight /= factor[None, :, None, None]


def latents_of(autoencoder: Autoencoder, scenes: list[Scene]) -> tuple[Tensor, Tensor]:
    """Normalized means and standard deviations (B, N, C) float32 of the scenes' latent tokens."""
    mean, log_variance = autoencoder.posterior(to_pixels(scenes))
    shift, scale = torch.tensor(LATENT_SHIFT), torch.tensor(LATENT_SCALE)
    return ((pack(mean) - shift) / scale).flatten(1, 2), (pack((log_variance / 2).exp()) / scale).flatten(1, 2)


def reconstruction_psnr(autoencoder: Autoencoder, scenes: list[Scene]) -> float:
    """dB over all pixels of the scenes, each decoded from the mean of its posterior and clipped."""
    pixels = to_pixels(scenes)
    found = autoencoder.reconstruct(autoencoder.posterior(pixels)[0]).clamp(-1, 1)
    return float(10 * torch.log10(4 / (found - pixels).square().mean()))
