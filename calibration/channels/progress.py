"""What an interrupted measurement of channel maxima leaves behind, so that the next run continues there."""

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from calibration.channels.file import Measured
from runtime.atomic_files import write_whole

_KEY = "ideogram4-channels-state"
_DONE, _DIGEST = "done", "sha256"
_TEXT, _LATENTS, _MAXIMA = "text.", "latents.", "maxima."


@dataclass(frozen=True, eq=False)
class Progressed:
    """What has been measured."""

    done: int = 0
    """1 for the text encoder, and 1 for each step."""
    texts: list[np.ndarray] = field(default_factory=list)
    """(1, T, E) float32, of each prompt."""
    latents: list[np.ndarray] = field(default_factory=list)
    """(1, N, C) float32, of each prompt after the last step."""
    maxima: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Store:
    """The file of one measurement's state."""

    path: Path | None
    """None to keep nothing."""
    measured: Measured

    def save(self, state: Progressed) -> None:
        """Write the state whole or not at all."""
        if self.path is None:
            return
        tensors = {_MAXIMA + name: value for name, value in state.maxima.items()}
        for prefix, arrays in ((_TEXT, state.texts), (_LATENTS, state.latents)):
            tensors |= {f"{prefix}{index}": torch.tensor(array) for index, array in enumerate(arrays)}
        contiguous = {name: value.contiguous() for name, value in tensors.items()}
        about = {_KEY: self._identity(), _DONE: str(state.done), _DIGEST: _digest(state.done, contiguous)}
        write_whole(self.path, save(contiguous, about))

    def load(self, quiet: bool) -> Progressed | None:
        """The saved state; None where there is none of this measurement."""
        if self.path is None or not self.path.exists():
            return None
        try:
            with safe_open(self.path, "pt") as stored:
                about = stored.metadata() or {}
                tensors = {name: stored.get_tensor(name) for name in stored.offset_keys()}
            done = int(about.get(_DONE, ""))
        except (SafetensorError, OSError, ValueError):
            return self._anew("is damaged", quiet)
        if about.get(_KEY) != self._identity():
            return self._anew("belongs to another calibration", quiet)
        # What has the digest was written above, so all that is wanted is there.
        if about.get(_DIGEST) != _digest(done, tensors):
            return self._anew("is damaged", quiet)
        if not quiet:
            print(f"continuing after {done} of {1 + self.measured.steps} steps, kept in {self.path}", file=sys.stderr)
        maxima = {name.removeprefix(_MAXIMA): value for name, value in tensors.items() if name.startswith(_MAXIMA)}
        count = self.measured.prompts.count
        texts, latents = ([tensors[f"{kind}{i}"].numpy() for i in range(count)] for kind in (_TEXT, _LATENTS))
        return Progressed(done, texts, latents, maxima)

    def _anew(self, why: str, quiet: bool) -> None:
        if not quiet:
            print(f"{self.path} {why}; starting anew", file=sys.stderr)

    def _identity(self) -> str:
        return json.dumps(asdict(self.measured), sort_keys=True)


def _digest(done: int, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of all that a state says; a damaged one would spoil what is measured from it."""
    digest = hashlib.sha256(str(done).encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f" {name} {value.dtype} {tuple(value.shape)} ".encode("utf-8", "surrogatepass"))
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
