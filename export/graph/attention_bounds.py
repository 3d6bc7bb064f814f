"""How large queries, keys and values can become: what a float8 attention needs instead of measured ranges.

e4m3 is a floating-point format, so room above the values that occur costs no precision as long as they stay clear of
its smallest exponents: the bounds may be a hundred times too large.
"""

import torch
from torch import Tensor

from model.checkpoint.directory import Checkpoint
from model.transformer import TimeEmbedding

_TIMES = 65
"""Times from 0 to 1 at which the modulation of a norm is looked at; it is a smooth function of the time."""


def attention_bounds(checkpoint: Checkpoint, stage: str, layer: int) -> tuple[float, float, float]:
    """Largest magnitudes of q, k and v of a block, without any factor.

    A normed head of q or k has a root mean square of at most 1, so a length of at most sqrt(head_dim), and rotation
    keeps lengths. A value is the product of a row of its weight, the norm's weights and their modulation with a vector
    of a length of at most sqrt(hidden_size), so by Cauchy and Schwarz it is at most the product of their lengths.
    """
    sources, prefix = checkpoint.sources[stage], f"layers.{layer}."
    head, size = checkpoint.transformer.attention_head_dim, checkpoint.transformer.hidden_size
    q, k = (
        float(head**0.5 * sources[f"{prefix}attention.norm_{name}.weight"].read().abs().max()) for name in ("q", "k")
    )
    channels = sources[f"{prefix}attention_norm1.weight"].read().abs() * _largest_modulation(checkpoint, stage, layer)
    rows = sources[f"{prefix}attention.qkv.weight"].read()[2 * size :]
    return q, k, float(size**0.5 * (rows * channels).norm(dim=1).max())


def _largest_modulation(checkpoint: Checkpoint, stage: str, layer: int) -> Tensor:
    """The largest magnitude (hidden_size,) that the modulation of the attention's input has at any time."""
    sources, size = checkpoint.sources[stage], checkpoint.transformer.hidden_size
    embedding = TimeEmbedding(size)
    names = embedding.state_dict()
    embedding.load_state_dict({name: sources[f"t_embedding.{name}"].read() for name in names}, assign=True)
    with torch.no_grad():
        times = embedding(torch.linspace(0, 1, _TIMES))
        hidden = torch.nn.functional.silu(_linear(checkpoint, stage, "adaln_proj", times))
        return (1 + _linear(checkpoint, stage, f"layers.{layer}.adaln_modulation", hidden, size)).abs().amax(dim=0)


def _linear(checkpoint: Checkpoint, stage: str, name: str, x: Tensor, rows: int | None = None) -> Tensor:
    """The first `rows` results of a Linear."""
    weight, bias = (checkpoint.sources[stage][f"{name}.{part}"].read()[:rows] for part in ("weight", "bias"))
    return torch.nn.functional.linear(x, weight, bias)
