"""Weights with low-rank updates folded in: ``W + factor * up @ down``, in float32 from the dequantized weight."""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.checkpoint.lora_files import LoraError
from model.checkpoint.row_codes import quantize_rows
from model.checkpoint.sources import Derived
from model.checkpoint.tensor_files import Identity, StoredTensor
from runtime.bundle.manifest import LoraSpec


@dataclass(frozen=True)
class Update:
    """What one adapter adds to some rows of a weight (out, in): ``factor * up @ down``."""

    down: StoredTensor
    """(rank, in)"""
    up: StoredTensor
    """(rows, rank)"""
    factor: float
    """Of the product: the user's scale times the adapter's alpha / rank."""
    first: int
    """Index of the first of the rows."""
    lora: LoraSpec
    """The adapter."""

    @property
    def identity(self) -> Identity:
        """Of what it adds; the adapter's file counts by its hash."""
        return self.lora.sha256, self.down.name, self.up.name, self.factor, self.first

    @property
    def rows(self) -> slice:
        """Those that it changes."""
        return slice(self.first, self.first + self.up.shape[0])


@dataclass(frozen=True, eq=False)
class Folded(Derived):
    """A weight with updates, which are added one after another when it is read.

    It has no codes, also if its base has: those of a float8 checkpoint would swallow the update.
    """

    updates: tuple[Update, ...]

    @property
    def identity(self) -> Identity:
        return "folded", self.base.identity, *(update.identity for update in self.updates)

    def read(self) -> Tensor:
        """The parameter in float32. LoraError if an update makes it infinite, CheckpointError if a file is damaged."""
        weight = self.base.read().clone()  # its storage may be the file's
        for update in self.updates:
            up, down = update.up.read().float(), update.down.read().float()
            weight[update.rows].addmm_(up, down, alpha=update.factor)
            if not torch.isfinite(weight[update.rows]).all():
                name = self.base.stored[0].name if self.base.stored else "a weight"
                raise LoraError(f"the LoRA {update.lora.name} makes {name} infinite at the scale {update.lora.scale:g}")
        return weight

    def quantized(self) -> tuple[Tensor, Tensor]:
        """Codes (out, in) float8_e4m3fn and row scales (out,) float32.

        Rows that no update changes keep the codes and scales of the base, bit for bit; the others get new ones.
        """
        codes, scales = self.base.quantized()
        changed = torch.zeros(self.shape[0], dtype=torch.bool)
        for update in self.updates:
            changed[update.rows] |= update.up.read().bool().any(dim=1)
        new_codes, new_scales = quantize_rows(self.read()[changed])
        # Indexing does not know float8.
        codes, scales = codes.view(torch.uint8).clone(), scales.clone()
        codes[changed], scales[changed] = new_codes.view(torch.uint8), new_scales
        return codes.view(torch.float8_e4m3fn), scales
