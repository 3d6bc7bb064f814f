"""The graphs of a bundle: their names, inputs, outputs, and sizes to trace them with.

Sizes that may vary are named: B pictures, T text tokens, N image tokens, L = T + N rows, and rows and columns of the
latent grid. A prompt is never padded, so no graph has a mask.
"""

from dataclasses import dataclass

from model.checkpoint import Checkpoint
from runtime.manifest import TensorSpec


@dataclass(frozen=True)
class GraphRecord:
    """What the exporter must know about one graph."""

    name: str
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec
    example: dict[str, int]
    """A number for each named size, used for tracing only; all differ, so that none is taken for another."""


def graph_record(stage: str, checkpoint: Checkpoint) -> GraphRecord:
    """The record of a stage for the sizes of a checkpoint."""
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
    latents = TensorSpec("latents", "float32", ("B", "grid_h", "grid_w", channels))
    image = TensorSpec("image", "uint8", ("B", "H", "W", 3))
    example = {"B": 2, "grid_h": 3, "grid_w": 4, "H": 3 * pixels, "W": 4 * pixels}
    if stage == "vae_decoder":
        return GraphRecord(stage, (latents,), image, example)
    return GraphRecord(stage, (image,), latents, example)
