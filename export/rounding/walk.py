"""A text encoder or transformer as a walk through its blocks, whose weights come and go."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from calibration.points import TEXT_ENCODER
from model.text_encoder import TAPS, TextStage
from model.transformer import Ideogram4Transformer


class Walk(ABC):
    """One stage on one input."""

    @abstractmethod
    def begin(self) -> Tensor:
        """What the first block gets, (B, L, E) float32."""

    @abstractmethod
    def arguments(self, index: int) -> tuple[Any, ...]:
        """What block `index` gets beside the hidden state."""

    @abstractmethod
    def end(self, hidden: Sequence[Tensor]) -> Tensor:
        """The stage's result, from what each block gave."""

    def kept(self, index: int, hidden: Tensor) -> Tensor:
        """The rows of what block `index` gets that are in what it gives."""
        return hidden


class TransformerWalk(Walk):
    """A transformer."""

    def __init__(self, module: Ideogram4Transformer, feeds: dict[str, Tensor]) -> None:
        self._module, self._feeds = module, feeds
        self._first = feeds["text"].shape[1] if "text" in feeds else 0

    def begin(self) -> Tensor:
        feeds = self._feeds
        hidden, self._modulation = self._module.begin(feeds["latents"], feeds["timestep"], feeds.get("text"))
        return hidden

    def arguments(self, index: int) -> tuple[Any, ...]:
        tables = self._feeds["rope_cos"], self._feeds["rope_sin"]
        return (*tables, self._modulation, self._first if self._is_last(index) else 0)

    def end(self, hidden: Sequence[Tensor]) -> Tensor:
        velocity: Tensor = self._module.final_layer(hidden[-1], self._modulation)
        return velocity

    def kept(self, index: int, hidden: Tensor) -> Tensor:
        return hidden[:, self._first :] if self._is_last(index) else hidden

    def _is_last(self, index: int) -> bool:
        return index == len(self._module.layers) - 1


class TextWalk(Walk):
    """The text encoder."""

    def __init__(self, module: TextStage, feeds: dict[str, Tensor]) -> None:
        self._module, self._ids = module, feeds["input_ids"]

    def begin(self) -> Tensor:
        self._tables = self._module.encoder.rope(self._ids)
        hidden: Tensor = self._module.encoder.embed_tokens(self._ids).float()
        return hidden

    def arguments(self, index: int) -> tuple[Any, ...]:
        return self._tables

    def end(self, hidden: Sequence[Tensor]) -> Tensor:
        features = torch.stack([hidden[tap] for tap in TAPS], dim=-1).flatten(2)
        rows: Tensor = self._module.llm_cond_proj(self._module.llm_cond_norm(features))
        return rows


def walk(module: nn.Module, stage: str, feeds: dict[str, Tensor]) -> Walk:
    """The walk through a stage's module on inputs by name."""
    if stage == TEXT_ENCODER:
        assert isinstance(module, TextStage)
        return TextWalk(module, feeds)
    assert isinstance(module, Ideogram4Transformer)
    return TransformerWalk(module, feeds)
