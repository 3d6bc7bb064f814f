"""Weights whose rows or columns are multiplied by factors: how channels are smoothed before they are quantized."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from model.checkpoint.fp8 import quantize_rows
from model.checkpoint.sources import Weight
from model.checkpoint.tensor_files import StoredTensor


@dataclass(frozen=True, eq=False)
class Scaled:
    """A weight (out, in), or a vector of norm weights (out,), times factors, in float32."""

    base: Weight
    rows: Tensor | None = None
    """(out,) float32"""
    columns: Tensor | None = None
    """(in,) float32"""
    pieces: ClassVar[tuple[StoredTensor, ...]] = ()
    scales: ClassVar[tuple[StoredTensor, ...]] = ()
    coded: ClassVar[bool] = False

    @property
    def stored(self) -> tuple[StoredTensor, ...]:
        return self.base.stored

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    def read(self) -> Tensor:
        weight = self.base.read()
        if self.rows is not None:
            weight = weight * self.rows.reshape(-1, *[1] * (weight.ndim - 1))
        return weight if self.columns is None else weight * self.columns

    def quantized(self) -> tuple[Tensor, Tensor]:
        return quantize_rows(self.read())
