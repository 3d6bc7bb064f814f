"""What a checkpoint's graphs give for small inputs, in float32."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from calibration.points import TEXT_ENCODER, quantized_stages
from export.graph.records import graph_module, graphs_of, stage_of
from export.rounding.compare import compared_in
from export.rounding.inputs import calls_of, latents_of_a_picture, picture_of, token_ids, transformer_feeds
from export.selftest.products import Read, product_by_product, stored_value
from model.checkpoint.directory import Checkpoint
from runtime.bundle.graph_specs import SizeRange
from runtime.graph import Call
from runtime.progress import Progress

_SHARED = ("rope_cos", "rope_sin")
"""Inputs of a transformer that have no batch."""


def side_within(side: int, engines: Iterable[Sequence[SizeRange]]) -> int:
    """The side of a picture, moved as little as it must be for all engines to take it, in pixels.

    `engines` has the sides that each takes, one range for each of its profiles.
    """
    for ranges in engines:
        nearest = [min(max(side, limits.minimum), limits.maximum) for limits in ranges]
        side = min(nearest, key=lambda near, wanted=side: abs(near - wanted))
    return side


def expected_calls(
    checkpoint: Checkpoint, prompt: str, side: int, known: Mapping[str, Sequence[Call]], quiet: bool
) -> dict[str, list[Call]]:
    """Inputs and results of every graph that the checkpoint becomes; `known` has those that were computed already.

    Raises:
        CheckpointError: a weight is damaged.
    """
    stages = quantized_stages(checkpoint)
    calls = {stage: list(made) for stage, made in known.items()}
    missing = [stage for stage in stages if stage not in calls]
    with Progress("self-test", len(missing) + 1, "stage", quiet=quiet) as bar, torch.no_grad():
        picture = latents_of_a_picture(checkpoint, side)
        for stage in missing:  # the text encoder comes first, and the others get what it gives
            if stage == TEXT_ENCODER:
                inputs = [token_ids(checkpoint, prompt)]
            else:
                text = torch.from_numpy(calls[TEXT_ENCODER][0].output)
                inputs = transformer_feeds(checkpoint, stage, picture, text)
            calls[stage] = calls_of(inputs, _results(checkpoint, stage, inputs))
            bar.update()
        calls |= _vae_calls(checkpoint, picture, side)
        bar.update()
    return calls


def _results(checkpoint: Checkpoint, stage: str, inputs: Sequence[dict[str, Tensor]]) -> list[Tensor]:
    """A stage's results. Where a comparison in 8 bits may have computed them, they have the same bits as there, so that
    an interrupted build ends in the same file: the last bit depends on what else is in the batch."""
    if compared_in(checkpoint, stage) == torch.float32:
        return [together(checkpoint, stage, [one])[0] for one in inputs]
    return together(checkpoint, stage, inputs)


def together(
    checkpoint: Checkpoint, stage: str, inputs: Sequence[dict[str, Tensor]], read: Read = stored_value
) -> list[Tensor]:
    """A text encoder's or transformer's results for several inputs, computed as one batch; `read` gives the weights."""
    first = inputs[0]
    batch = {name: first[name] if name in _SHARED else torch.cat([one[name] for one in inputs]) for name in first}
    result: Tensor = product_by_product(checkpoint, stage, read)(**batch)
    return [part.contiguous() for part in result.split(1)]


def _vae_calls(checkpoint: Checkpoint, latents: Tensor, side: int) -> dict[str, list[Call]]:
    """Of the VAE's graphs. A tile gets the thumbnail of another picture: one that is left out or mixed up shows."""
    pixels = picture_of(side)
    feeds = {
        "vae_decoder": {"latents": latents},
        "vae_encoder": {"image": pixels},
        "vae_decoder_tile": {"latents": latents, "thumbnail": 0.5 * latents.flip(1)},
        "vae_encoder_tile": {"image": pixels, "thumbnail": pixels.flip(1) // 2},
    }
    calls = {}
    for graph in graphs_of(checkpoint.sources):
        if graph in feeds:
            module = graph_module(graph, checkpoint)
            module.load_state_dict(checkpoint.load(stage_of(graph)).state_dict(), assign=True)
            calls[graph] = calls_of([feeds[graph]], [module(**feeds[graph])])
    return calls
