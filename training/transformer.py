"""Training of the transformers by flow matching: the velocity from noise to latents, at times of a logit-normal.

The matrices inside the blocks are trained with Muon (orthogonalized momentum), everything else with AdamW. The text
encoder is frozen; ``llm_cond_norm`` and ``llm_cond_proj`` are trained with the conditional transformer.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from model.autoencoder import PATCH
from model.layers import Linear, RMSNorm
from model.text_encoder import COND_NORM_EPS, TextEncoder
from model.transformer import Ideogram4Transformer
from runtime.sampling.rope import image_positions, rope_tables, text_positions
from training.latents import Captions, Latents
from training.progress import Learner, train
from training.scenes import SIZE
from training.sizes import AUTOENCODER, TRANSFORMER
from training.workers import share

BATCH = 64
MUON_RATE, ADAMW_RATE = 5e-3, 3e-3
AVERAGE = 0.999
TIME_MEAN, TIME_STD = -0.5, 1.5
"""Of the logarithm of t / (1 - t), t = 0 being noise."""
_GATE = 0.25
"""What the blocks' gates begin with."""
_SEEDS = {True: 5, False: 6}
GRID = SIZE // AUTOENCODER.pixels_per_token
assert AUTOENCODER.latent_channels * PATCH * PATCH == TRANSFORMER.in_channels


class Denoiser(nn.Module):
    """A transformer and, if it is the conditional one, its projection of the text features."""

    def __init__(self, conditional: bool) -> None:
        super().__init__()
        self.transformer = Ideogram4Transformer(TRANSFORMER)
        if conditional:
            self.llm_cond_norm = RMSNorm(TRANSFORMER.llm_features_dim, COND_NORM_EPS)
            self.llm_cond_proj = Linear(TRANSFORMER.llm_features_dim, TRANSFORMER.hidden_size)
        self.conditional = conditional
        _initialize(self.transformer)

    def forward(self, latents: Tensor, timestep: Tensor, features: Tensor | None) -> Tensor:
        """Velocity (B, N, C) of latents (B, N, C) at times (B,), with text features (B, T, F) or without."""
        length = 0 if features is None else features.shape[1]
        text = None if features is None else self.llm_cond_proj(self.llm_cond_norm(features))
        positions = np.concatenate((text_positions(length), image_positions(GRID, GRID)))
        config = TRANSFORMER
        tables = rope_tables(positions, config.attention_head_dim, config.rope_theta, config.mrope_section)
        cosines, sines = (torch.from_numpy(table) for table in tables)
        return self.transformer(latents, timestep, cosines, sines, text)


def _initialize(transformer: Ideogram4Transformer) -> None:
    """Blocks begin nearly as the identity, the velocity as zero; the times make no difference at first."""
    nn.init.zeros_(transformer.final_layer.linear.weight)
    nn.init.zeros_(transformer.final_layer.linear.bias)
    for layer in transformer.layers:
        nn.init.zeros_(layer.adaln_modulation.weight)
        scales_and_gates = torch.tensor((0.0, _GATE, 0.0, _GATE)).repeat_interleave(TRANSFORMER.hidden_size)
        layer.adaln_modulation.bias.data.copy_(scales_and_gates)
    nn.init.zeros_(transformer.final_layer.adaln_modulation.weight)
    nn.init.zeros_(transformer.final_layer.adaln_modulation.bias)


def train_denoiser(
    file: Path,
    latents: Latents,
    captions: list[Captions] | None,
    encoder: TextEncoder | None,
    steps: int,
    start: dict[str, Tensor] | None = None,
    compiled: bool = False,
    quiet: bool = False,
) -> Denoiser:
    """Train the transformer, resuming from `file` if it exists; returns it with averaged weights.

    Args:
        file: state of the training.
        latents: of the pictures to learn.
        captions: prompts grouped by length; None trains the unconditional transformer.
        encoder: encodes the prompts.
        steps: total number, earlier runs included.
        start: weights of a ``transformer`` to begin with instead of random ones.
        compiled: use torch.compile: a third faster after a minute; needs a C++ compiler.
        quiet: no progress bar.
    """
    torch.manual_seed(_SEEDS[captions is not None])
    denoiser = Denoiser(conditional=captions is not None)
    if start is not None:
        denoiser.transformer.load_state_dict(start)
    denoiser.transformer.t_embedding.frequencies.requires_grad_(False)
    learner = Learner(denoiser, _optimizers(denoiser), AVERAGE)
    if compiled:
        denoiser.transformer.compile(dynamic=True)  # one graph for all lengths of prompts
    batches = Batches(latents, captions, encoder)
    train(learner, lambda step: batches.loss(denoiser, step), steps, file, quiet)
    denoiser.load_state_dict(learner.averaged)
    return denoiser.eval().requires_grad_(False)


def _optimizers(denoiser: Denoiser) -> list[torch.optim.Optimizer]:
    matrices = [p for p in denoiser.transformer.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in denoiser.parameters() if p.requires_grad and id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=ADAMW_RATE, weight_decay=0.0, betas=(0.9, 0.98), fused=True),
    ]


class Batches:
    """Batches by the number of their step, and their loss."""

    def __init__(self, latents: Latents, captions: list[Captions] | None, encoder: TextEncoder | None) -> None:
        self.latents, self.captions, self.encoder = latents, captions, encoder
        self.weight = latents.weight
        counts = np.array([len(group.scenes) for group in captions or ()], dtype=np.float64)
        self.shares = counts / counts.sum() if captions else counts

    def loss(self, denoiser: Denoiser, step: int) -> Tensor:
        """Mean squared error of the velocity, channels weighted by `Latents.weight`."""
        random = np.random.default_rng((_SEEDS[denoiser.conditional], step))
        generator = torch.Generator().manual_seed(step)
        group = None
        if self.captions is None or self.encoder is None:
            scenes = torch.from_numpy(random.integers(len(self.latents.mean), size=BATCH))
        else:
            group = self.captions[random.choice(len(self.captions), p=self.shares)]
            rows = torch.from_numpy(random.integers(len(group.scenes), size=BATCH))
            scenes = group.scenes[rows]
        shape = (BATCH, *self.latents.mean.shape[1:])
        mine = share(BATCH)
        spread, noise = (torch.randn(shape, generator=generator)[mine] for _ in range(2))
        t = torch.sigmoid(TIME_MEAN + TIME_STD * torch.randn(BATCH, generator=generator))[mine]
        data = self.latents.mean[scenes[mine]].float() + self.latents.std * spread
        features = None if group is None else self._features(group.ids[rows[mine]])
        mixed = torch.lerp(noise, data, t[:, None, None])
        with torch.autocast("cpu", torch.bfloat16):
            velocity = denoiser(mixed, t, features)
        return ((velocity.float() - (data - noise)).square() * self.weight).mean()

    @torch.no_grad()
    def _features(self, ids: Tensor) -> Tensor:
        assert self.encoder is not None
        with torch.autocast("cpu", torch.bfloat16):
            return self.encoder(ids)
