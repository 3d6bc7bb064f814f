"""Even out the channels of the blocks' activations before they are quantized, at no cost.

A token has one scale, so one channel that is a hundred times larger than the others leaves them a hundredth of the
int8 codes. Such channels stay the same over tokens and time, so they can be divided by a factor for each channel and
the weight's columns multiplied by it, which changes nothing but the rounding (SmoothQuant, arXiv 2211.10438):

    s_j = max|x_j|^a / max|W_j|^(1 - a),  scaled to a geometric mean of 1

The division is folded into what makes x: the weights of the norm in front (qkv; w1 and w3), the rows of w3 (w2, since
SwiGLU is linear in that branch) and the rows of v (o, since attention is linear in v). The text encoder's layers are
smoothed the same way. Its queries share keys and values in groups, and so one factor.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from calibration.channels.file import maxima_digest
from calibration.points import TEXT_ENCODER, layers_of, module_prefix
from model.checkpoint.directory import Checkpoint
from model.checkpoint.sources import Scaled, Sources

ALPHA = 0.5
"""a: how much of a channel's size the weight takes over. Measured on the demo and on copies of it with outliers; see
docs/accuracy.md."""
_SMALLEST = 1e-5
"""Least magnitude of a channel or column, relative to the largest: dead channels get no infinite factor."""


@dataclass(frozen=True, eq=False)
class Smoothing:
    """What is known of the channels."""

    maxima: Mapping[str, Tensor]
    """Largest magnitude of each channel (channels,) float32, by point, as ``dit_cond.layers.0.attention.qkv``."""
    digest: str
    """Of the maxima."""
    alpha: float = ALPHA
    made: dict[str, tuple[Sources, Sources]] = field(default_factory=dict)
    """By stage, the sources that were smoothed last and the result, whose factors take reading all weights to find."""

    def __repr__(self) -> str:
        return f"Smoothing({self.digest}, {self.alpha})"

    def of_stage(self, stage: str) -> "Smoothing":
        """What of it touches one stage; what has been smoothed is shared."""
        maxima = {name: largest for name, largest in self.maxima.items() if name.startswith(f"{stage}.")}
        return replace(self, maxima=maxima, digest=maxima_digest(maxima))


def smoothed(checkpoint: Checkpoint, stage: str, smoothing: Smoothing) -> Sources:
    """The sources of a text encoder or transformer with smoothed channels, which compute the same.

    Raises:
        KeyError: the maxima lack a point of the stage.
        CheckpointError: a weight is damaged.
    """
    given = checkpoint.sources[stage]
    if stage in smoothing.made and smoothing.made[stage][0] is given:
        return dict(smoothing.made[stage][1])
    sources = dict(given)
    smooth = _smooth_text_layer if stage == TEXT_ENCODER else _smooth_block
    for layer in range(layers_of(checkpoint, stage)):
        prefix, name = module_prefix(stage, layer), f"{stage}.layers.{layer}."
        smooth(sources, checkpoint, prefix, lambda point, name=name: smoothing.maxima[name + point], smoothing.alpha)
    smoothing.made[stage] = given, sources
    return dict(sources)


Maxima = Callable[[str], Tensor]


def _smooth_block(sources: Sources, checkpoint: Checkpoint, prefix: str, maxima: Maxima, alpha: float) -> None:
    size = checkpoint.transformer.hidden_size
    attention, feed_forward = f"{prefix}attention.", f"{prefix}feed_forward."
    # First what scales rows: the columns of the same weights are then seen as they will be.
    through = _factors(sources, [f"{feed_forward}w2.weight"], maxima("feed_forward.w2"), alpha)
    _scale_columns(sources, [f"{feed_forward}w2.weight"], through)
    _scale_rows(sources, f"{feed_forward}w3.weight", 1 / through)
    through = _factors(sources, [f"{attention}o.weight"], maxima("attention.o"), alpha)
    _scale_columns(sources, [f"{attention}o.weight"], through)
    _scale_rows(sources, f"{attention}qkv.weight", torch.cat((torch.ones(2 * size), 1 / through)))
    for norm, point, readers in (
        ("attention_norm1", "attention.qkv", [f"{attention}qkv.weight"]),
        ("ffn_norm1", "feed_forward.w1", [f"{feed_forward}w1.weight", f"{feed_forward}w3.weight"]),
    ):
        _smooth_norm(sources, f"{prefix}{norm}.weight", readers, maxima(point), alpha)


def _smooth_text_layer(sources: Sources, checkpoint: Checkpoint, prefix: str, maxima: Maxima, alpha: float) -> None:
    config = checkpoint.text_encoder
    attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
    through = _factors(sources, [f"{mlp}down_proj.weight"], maxima("mlp.down_proj"), alpha)
    _scale_columns(sources, [f"{mlp}down_proj.weight"], through)
    _scale_rows(sources, f"{mlp}up_proj.weight", 1 / through)
    groups = (config.num_key_value_heads, -1, config.head_dim)
    values = _factors(sources, [f"{attention}o_proj.weight"], maxima("self_attn.o_proj"), alpha, groups)
    queries = config.num_attention_heads // config.num_key_value_heads
    _scale_columns(sources, [f"{attention}o_proj.weight"], values[:, None].expand(-1, queries, -1).flatten())
    _scale_rows(sources, f"{attention}v_proj.weight", 1 / values.flatten())
    for norm, point, readers in (
        ("input_layernorm", "self_attn.q_proj", [f"{attention}{part}_proj.weight" for part in "qkv"]),
        ("post_attention_layernorm", "mlp.gate_proj", [f"{mlp}gate_proj.weight", f"{mlp}up_proj.weight"]),
    ):
        _smooth_norm(sources, f"{prefix}{norm}.weight", readers, maxima(point), alpha)


def _smooth_norm(sources: Sources, norm: str, readers: Sequence[str], largest: Tensor, alpha: float) -> None:
    factors = _factors(sources, readers, largest, alpha)
    _scale_columns(sources, readers, factors)
    _scale_rows(sources, norm, 1 / factors)


def _factors(
    sources: Sources, readers: Sequence[str], largest: Tensor, alpha: float, groups: tuple[int, ...] | None = None
) -> Tensor:
    """The s_j (in,) of one input; with `groups`, (kv heads, queries of each, head), one (kv heads, head) for all
    queries of a group."""
    columns = torch.stack([sources[reader].read().abs().amax(dim=0) for reader in readers]).amax(dim=0)
    if groups is not None:
        largest, columns = (values.unflatten(0, groups).amax(dim=1) for values in (largest, columns))
    inputs, columns = (values.clamp(min=_SMALLEST * values.max().clamp(min=_SMALLEST)) for values in (largest, columns))
    logs = alpha * inputs.log() - (1 - alpha) * columns.log()
    return (logs - logs.mean()).exp()


def _scale_columns(sources: Sources, readers: Sequence[str], factors: Tensor) -> None:
    for reader in readers:
        sources[reader] = Scaled(sources[reader], columns=factors)


def _scale_rows(sources: Sources, name: str, factors: Tensor) -> None:
    sources[name] = Scaled(sources[name], rows=factors)
