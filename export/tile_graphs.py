"""The VAE's graphs for tiles: other graphs on the same weights, which they find in the whole VAE's files."""

from pathlib import Path

import onnx_ir as ir
import torch
from torch import nn
from tqdm import tqdm

from export.graphs import GraphRecord
from export.precision import torch_dtype
from export.trace import trace
from model.checkpoint import Checkpoint
from model.layers import set_compute_dtype
from model.tiled_autoencoder import TileDecoder, TileEncoder
from runtime.constants import TILE_GRAPHS
from runtime.manifest import GraphSpec, TensorSpec


def export_tile_graphs(
    checkpoint: Checkpoint, whole: dict[str, GraphSpec], folder: Path, quiet: bool
) -> dict[str, GraphSpec]:
    """Trace the tile graphs of the VAE's stages and write them beside their whole graphs, which are written already.

    Raises:
        OSError: the files cannot be written.
    """
    graphs = {}
    for stage, name in TILE_GRAPHS.items():
        with tqdm(desc=f"{name + ': tracing':24}", unit="B", unit_scale=True, disable=quiet) as bar:
            record = tile_record(stage, checkpoint)
            module = set_compute_dtype(_module(stage, checkpoint), torch_dtype(whole[stage].compute))
            model = trace(module, record)
            _share_weights(model, folder / whole[stage].onnx)
            onnx = folder / "onnx" / f"{name}.onnx"
            try:
                ir.save(model, onnx)
            except OSError as error:
                raise OSError(f"cannot write the graph {name}: {error.strerror or error}") from error
            bar.set_description(f"{name:24}")
        path = onnx.relative_to(folder).as_posix()
        graphs[name] = GraphSpec(path, whole[stage].compute, record.inputs, (record.output,))
    return graphs


def tile_record(stage: str, checkpoint: Checkpoint) -> GraphRecord:
    """The record of a VAE stage's tile graph: as the whole graph's for one picture, and a thumbnail of that picture."""
    channels, pixels = checkpoint.transformer.in_channels, checkpoint.autoencoder.pixels_per_token
    latents = TensorSpec("latents", "float32", (1, "grid_h", "grid_w", channels))
    image = TensorSpec("image", "uint8", (1, "H", "W", 3))
    example = {"grid_h": 3, "grid_w": 4, "H": 3 * pixels, "W": 4 * pixels}
    if stage == "vae_decoder":
        thumbnail = TensorSpec("thumbnail", "float32", (1, "thumb_h", "thumb_w", channels))
        return GraphRecord(TILE_GRAPHS[stage], (latents, thumbnail), image, example | {"thumb_h": 5, "thumb_w": 6})
    thumbnail = TensorSpec("thumbnail", "uint8", (1, "thumb_h", "thumb_w", 3))
    sizes = {"thumb_h": 5 * pixels, "thumb_w": 6 * pixels}
    return GraphRecord(TILE_GRAPHS[stage], (image, thumbnail), latents, example | sizes)


def _module(stage: str, checkpoint: Checkpoint) -> nn.Module:
    kind = {"vae_decoder": TileDecoder, "vae_encoder": TileEncoder}[stage]
    with torch.device("meta"):
        return kind(checkpoint.autoencoder).eval().requires_grad_(False)


def _share_weights(model: ir.Model, whole: Path) -> None:
    """Let the parameters of `model` point to the values of the same names in the saved graph `whole`."""
    values = ir.load(whole).graph.initializers
    for name, value in model.graph.initializers.items():
        if value.const_value is None:
            value.const_value = values[name].const_value
