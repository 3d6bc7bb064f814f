"""How large queries, keys and values can become: what a float8 attention needs instead of measured ranges.

e4m3 is a floating-point format, so room above the values that occur costs no precision as long as they stay clear of
its smallest exponents: the bounds may be a hundred times too large.
"""

from functools import cached_property

import torch
from torch import Tensor

from model.checkpoint.directory import Checkpoint
from model.transformer import TimeEmbedding

_TIMES = 65
"""Times from 0 to 1 at which the modulation of a norm is looked at; it is a smooth function of the time."""


class AttentionBounds:
    """The bounds of the blocks of one transformer."""

    def __init__(self, checkpoint: Checkpoint, stage: str) -> None:
        self._transformer, self._sources = checkpoint.transformer, checkpoint.sources[stage]

    def of(self, layer: int) -> tuple[float, float, float]:
        """Largest magnitudes of q, k and v of a block, without any factor.

        A normed head of q or k has a root mean square of at most 1, so a length of at most sqrt(head_dim), and rotation
        keeps lengths. A value is the product of a row of its weight, the norm's weights and their modulation with a
        vector of a length of at most sqrt(hidden_size), so by Cauchy and Schwarz it is at most the product of their
        lengths.
        """
        sources, prefix = self._sources, f"layers.{layer}."
        head, size = self._transformer.attention_head_dim, self._transformer.hidden_size
        norms = (sources[f"{prefix}attention.norm_{name}.weight"].read() for name in ("q", "k"))
        q, k = (float(head**0.5 * norm.abs().max()) for norm in norms)
        channels = sources[f"{prefix}attention_norm1.weight"].read().abs() * self._largest_modulation(layer)
        rows = sources[f"{prefix}attention.qkv.weight"].read()[2 * size :]
        return q, k, float(size**0.5 * (rows * channels).norm(dim=1).max())

    def _largest_modulation(self, layer: int) -> Tensor:
        """The largest magnitude (hidden_size,) that the modulation of the attention's input has at any time."""
        scale = self._linear(f"layers.{layer}.adaln_modulation", self._times, self._transformer.hidden_size)
        return (1 + scale).abs().amax(dim=0)

    @cached_property
    def _times(self) -> Tensor:
        """What the modulations of all blocks are made from, (times, adaln_dim)."""
        embedding = TimeEmbedding(self._transformer.hidden_size)
        values = {name: self._sources[f"t_embedding.{name}"].read() for name in embedding.state_dict()}
        embedding.load_state_dict(values, assign=True)
        with torch.no_grad():
            return torch.nn.functional.silu(self._linear("adaln_proj", embedding(torch.linspace(0, 1, _TIMES))))

    def _linear(self, name: str, x: Tensor, rows: int | None = None) -> Tensor:
        """The first `rows` results of a Linear."""
        weight, bias = (self._sources[f"{name}.{part}"].read()[:rows] for part in ("weight", "bias"))
        return torch.nn.functional.linear(x, weight, bias)
