"""Pictures to latents and back through the bundle's VAE graphs, whole or in tiles."""

from collections.abc import Mapping

import numpy as np

from runtime.bundle.manifest import Manifest
from runtime.constants import TILE_GRAPHS
from runtime.errors import NonFiniteError, RequestError
from runtime.graph import Graph
from runtime.image.tiling import in_tiles, thumbnail


def decode(graphs: Mapping[str, Graph], manifest: Manifest, latents: np.ndarray, tile: int | None) -> np.ndarray:
    """A picture (1, H, W, 3) uint8 of latents (rows, columns, C) float32; `tile` is in pixels, None for no tiles.

    Raises:
        RequestError: the graph for this is not loaded.
    """
    multiple, (rows, columns, _) = manifest.sizes.multiple, latents.shape
    decoder = _graph(graphs, "vae_decoder", tile)
    if tile is None:
        return decoder(latents=latents[None])
    small = _thumbnail(latents, tile // multiple, 1)

    def run(down: slice, across: slice) -> np.ndarray:
        part: np.ndarray = decoder(latents=np.ascontiguousarray(latents[None, down, across]), thumbnail=small)[0]
        return part

    whole = in_tiles(run, (rows, columns), tile // multiple, multiple, 3)
    np.rint(whole, out=whole)
    return whole.astype(np.uint8)[None]


def encode(graphs: Mapping[str, Graph], manifest: Manifest, pixels: np.ndarray, tile: int | None) -> np.ndarray:
    """Latents (1, N, C) float32 of a picture (H, W, 3) uint8; `tile` as for `decode`.

    Raises:
        RequestError: the graph for this is not loaded.
        NonFiniteError: it gave NaN or infinity.
    """
    multiple, channels = manifest.sizes.multiple, manifest.latent_channels
    encoder = _graph(graphs, "vae_encoder", tile)
    if tile is None:
        latents = encoder(image=np.ascontiguousarray(pixels[None]))
    else:
        small = _thumbnail(pixels, tile // multiple, multiple)

        def run(down: slice, across: slice) -> np.ndarray:
            rows, columns = (slice(s.start * multiple, s.stop * multiple) for s in (down, across))
            part: np.ndarray = encoder(image=np.ascontiguousarray(pixels[None, rows, columns]), thumbnail=small)[0]
            return part

        grid = pixels.shape[0] // multiple, pixels.shape[1] // multiple
        latents = in_tiles(run, grid, tile // multiple, 1, channels)
    if not np.isfinite(latents).all():
        raise NonFiniteError("the VAE's encoder gave NaN or infinite values")
    return latents.reshape(1, -1, channels)


def _thumbnail(picture: np.ndarray, tile: int, scale: int) -> np.ndarray:
    small = np.ascontiguousarray(thumbnail(picture, tile, scale)[None])
    small.setflags(write=False)  # the same for all tiles: a graph may keep it on its device
    return small


def _graph(graphs: Mapping[str, Graph], stage: str, tile: int | None) -> Graph:
    name = stage if tile is None else TILE_GRAPHS[stage]
    if name not in graphs:
        raise RequestError(f"the pipeline was loaded without the graph {name}, which this picture needs")
    return graphs[name]
