"""The scenes that the transformers learn from: latents computed once, captions grouped by length.

A batch holds prompts of one length only: the transformer has no padding.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

from training.autoencoder import Autoencoder, latents_of
from training.captions import caption
from training.progress import save_whole
from training.scenes import Scene, sample_scene
from training.tokenizer import token_ids
from training.workers import share, wait_for_all, worker

SCENES, CAPTIONS = 12_000, 6
"""Scenes that are kept as latents, and captions of each."""
_SEED, _CAPTION_SEED = 3, 4
_BATCH, _CHUNK = 50, 1000


@dataclass(frozen=True)
class Latents:
    """The posteriors of `SCENES` scenes, normalized as the transformer sees them."""

    mean: Tensor
    """(S, N, C) float16."""
    std: Tensor
    """(C,) float32, of the posterior, averaged over scenes and places."""

    @property
    def weight(self) -> Tensor:
        """(C,) float32 of mean 1: the share of each channel's variance that depends on the picture.

        The rest is the posterior's noise, which no transformer can predict and the decoder ignores.
        """
        signal = self.mean[:2000].float().var(dim=(0, 1))
        share = (signal / (signal + self.std.square())).clamp(min=0.02)
        return share / share.mean()


@dataclass(frozen=True)
class Captions:
    """Token ids of prompts of one length, and the scenes that they describe."""

    ids: Tensor
    """(M, T) int64."""
    scenes: Tensor
    """(M,) int64."""


def training_scene(index: int) -> Scene:
    return sample_scene(np.random.default_rng((_SEED, index)))


def load_latents(folder: Path, autoencoder: Autoencoder, count: int = SCENES, quiet: bool = False) -> Latents:
    """The latents of the first `count` scenes; all workers compute those missing from `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{start}.pt" for start in range(0, count, _CHUNK)]
    for file in tqdm(files[share(len(files))], desc="latents", disable=quiet or worker() > 0, mininterval=5):
        if not file.is_file():
            start = int(file.stem)
            _write_chunk(file, autoencoder, range(start, min(start + _CHUNK, count)))
    wait_for_all()
    means, variances = zip(*(torch.load(file, weights_only=True) for file in files), strict=True)
    return Latents(torch.cat(means), torch.stack(variances).mean(dim=0).sqrt())


def _write_chunk(file: Path, autoencoder: Autoencoder, indices: range) -> None:
    means, variances = [], []
    for start in indices[::_BATCH]:
        scenes = [training_scene(i) for i in range(start, min(start + _BATCH, indices.stop))]
        with torch.autocast("cpu", torch.bfloat16):
            mean, std = latents_of(autoencoder, scenes)
        means.append(mean.half())
        variances.append(std.square().mean(dim=(0, 1)))
    save_whole((torch.cat(means), torch.stack(variances).mean(dim=0)), file)


def caption_groups(tokenizer: Tokenizer, count: int = SCENES) -> list[Captions]:
    """Captions of the first `count` training scenes, grouped by length in tokens."""
    by_length: dict[int, tuple[list[list[int]], list[int]]] = {}
    for variant in range(CAPTIONS):
        texts = [caption(training_scene(i), np.random.default_rng((_CAPTION_SEED, variant, i))) for i in range(count)]
        for index, ids in enumerate(token_ids(tokenizer, texts)):
            group = by_length.setdefault(len(ids), ([], []))
            group[0].append(ids)
            group[1].append(index)
    return [Captions(torch.tensor(ids), torch.tensor(scenes)) for _, (ids, scenes) in sorted(by_length.items())]
