"""The graphs of a bundle: their names, inputs, outputs, and sizes to trace them with.

Sizes that may vary are named: B pictures, T text tokens, N image tokens, L = T + N rows, and rows and columns of the
latent grid. A prompt is never padded, so no graph has a mask. The graphs for tiles are other graphs on the VAE's
weights, for one picture at a time, with a thumbnail as a second input.
"""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from model.checkpoint.directory import Checkpoint
from model.tiled_autoencoder import TileDecoder, TileEncoder
from runtime.bundle.graph_specs import TensorSpec
from runtime.constants import TILE_GRAPHS

_WHOLE = {tile: whole for whole, tile in TILE_GRAPHS.items()}


@dataclass(frozen=True)
class GraphRecord:
    """What the exporter must know about one graph."""

    name: str
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec
    example: dict[str, int]
    """A number for each named size, used for tracing only; all differ, so that none is taken for another."""


def graphs_of(stages: Iterable[str]) -> list[str]:
    """The graphs that the stages of a checkpoint become: one each, and the VAE's for tiles after them."""
    stages = list(stages)
    return [*stages, *(tile for tile, whole in _WHOLE.items() if whole in stages)]


def is_tile(graph: str) -> bool:
    """Whether a graph is one for tiles."""
    return graph in _WHOLE


def stage_of(graph: str) -> str:
    """The stage of the checkpoint whose weights a graph has."""
    return _WHOLE.get(graph, graph)


def configuration(graph: str, checkpoint: Checkpoint) -> tuple[Hashable, ...]:
    """All of a checkpoint that a graph depends on, but for the values of its weights."""
    if graph == "text_encoder":
        return checkpoint.text_encoder, checkpoint.transformer
    if graph in ("dit_cond", "dit_uncond"):
        return (checkpoint.transformer,)
    return checkpoint.autoencoder, checkpoint.transformer.in_channels


def graph_module(graph: str, checkpoint: Checkpoint) -> nn.Module:
    """What a graph is traced from, on the meta device; a tile's parameters have the names of the whole stage's."""
    kinds = {"vae_decoder_tile": TileDecoder, "vae_encoder_tile": TileEncoder}
    if graph not in kinds:
        return checkpoint.module(graph)
    with torch.device("meta"):
        return kinds[graph](checkpoint.autoencoder).eval().requires_grad_(False)


def graph_record(stage: str, checkpoint: Checkpoint) -> GraphRecord:
    """The record of a graph for the sizes of a checkpoint."""
    channels, hidden = checkpoint.transformer.in_channels, checkpoint.transformer.hidden_size
    head, pixels = checkpoint.transformer.attention_head_dim, checkpoint.autoencoder.pixels_per_token
    if stage == "text_encoder":
        inputs = (TensorSpec("input_ids", "int64", (1, "T")),)
        output = TensorSpec("text", "float32", (1, "T", hidden))
        return GraphRecord(stage, inputs, output, {"T": 7})
    if stage in ("dit_cond", "dit_uncond"):
        rows = "L" if stage == "dit_cond" else "N"
        inputs = (
            TensorSpec("latents", "float32", ("B", "N", channels)),
            TensorSpec("timestep", "float32", ("B",)),
            TensorSpec("rope_cos", "float32", (rows, head)),
            TensorSpec("rope_sin", "float32", (rows, head)),
        )
        if stage == "dit_cond":
            inputs += (TensorSpec("text", "float32", ("B", "T", hidden)),)
        output = TensorSpec("velocity", "float32", ("B", "N", channels))
        return GraphRecord(stage, inputs, output, {"B": 2, "N": 6, "T": 5, "L": 11})
    if is_tile(stage):
        return _tile_record(stage, channels, pixels)
    latents = TensorSpec("latents", "float32", ("B", "grid_h", "grid_w", channels))
    image = TensorSpec("image", "uint8", ("B", "H", "W", 3))
    example = {"B": 2, "grid_h": 3, "grid_w": 4, "H": 3 * pixels, "W": 4 * pixels}
    if stage == "vae_decoder":
        return GraphRecord(stage, (latents,), image, example)
    return GraphRecord(stage, (image,), latents, example)


def _tile_record(graph: str, channels: int, pixels: int) -> GraphRecord:
    """Small letters stand for tokens, capital ones for pixels."""
    example = {"tile_h": 3, "tile_w": 4, "thumb_h": 5, "thumb_w": 6}
    if stage_of(graph) == "vae_decoder":
        inputs = tuple(
            TensorSpec(name, "float32", (1, f"{part}_h", f"{part}_w", channels))
            for name, part in (("latents", "tile"), ("thumbnail", "thumb"))
        )
        return GraphRecord(graph, inputs, TensorSpec("image", "uint8", (1, "tile_H", "tile_W", 3)), example)
    inputs = tuple(
        TensorSpec(name, "uint8", (1, f"{part}_H", f"{part}_W", 3))
        for name, part in (("image", "tile"), ("thumbnail", "thumb"))
    )
    output = TensorSpec("latents", "float32", (1, "tile_h", "tile_w", channels))
    return GraphRecord(
        graph, inputs, output, {f"{n[:-1]}{n[-1].upper()}": size * pixels for n, size in example.items()}
    )
