"""A transformer's graph as the velocity that the Euler steps ask for."""

from functools import partial

import numpy as np

from runtime.bundle.manifest import Manifest
from runtime.graph import Graph
from runtime.sampling.denoise import Velocity
from runtime.sampling.rope import image_positions, rope_tables, text_positions
from runtime.sampling.schedule import round_to_bfloat16


def bind(graph: Graph, manifest: Manifest, grid: tuple[int, int], text: np.ndarray | None) -> Velocity:
    """The velocity of `graph` with all that stays the same between steps.

    Args:
        graph: a transformer.
        manifest: of its bundle.
        grid: rows and columns of image tokens.
        text: (B, T, E) float32; None for the graph without a text input.
    """
    length = 0 if text is None else text.shape[1]
    positions = np.concatenate((text_positions(length), image_positions(*grid)))
    rope = manifest.rope
    cosines, sines = rope_tables(positions, rope.head_dim, rope.theta, rope.sections)
    feeds = {"rope_cos": cosines, "rope_sin": sines} | ({} if text is None else {"text": text})
    for array in feeds.values():
        array.setflags(write=False)  # tells the graph that it may keep them on its device
    return partial(_run, graph, manifest.timestep_dtype, feeds)


def _run(
    graph: Graph, timestep_dtype: str, feeds: dict[str, np.ndarray], latents: np.ndarray, t: np.float32
) -> np.ndarray:
    if timestep_dtype == "bfloat16":
        t = round_to_bfloat16(t)
    return graph(latents=latents, timestep=np.full(len(latents), t, np.float32), **feeds)
