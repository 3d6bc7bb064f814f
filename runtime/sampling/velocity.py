"""A transformer's graph as the velocity that the Euler steps ask for."""

from collections.abc import Mapping
from functools import partial

import numpy as np

from runtime.bundle.manifest import Manifest
from runtime.constants import NEGATIVE_GRAPH
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


def second_pass(
    graphs: Mapping[str, Graph], unconditional: str, text: np.ndarray, negative: np.ndarray | None
) -> tuple[str | None, np.ndarray | None]:
    """The graph of guidance's second velocity and its text features (1, T, E); None where there is none.

    Args:
        graphs: that are loaded.
        unconditional: as in `runtime.plan.Plan.unconditional`.
        text: (1, T, E) float32, features of the prompt.
        negative: (1, T', E) float32, features of the negative prompt.
    """
    if negative is not None:
        return NEGATIVE_GRAPH if NEGATIVE_GRAPH in graphs else "dit_cond", negative
    if unconditional == "conditional":
        return "dit_cond", text[:, :0]
    return "dit_uncond" if unconditional == "graph" and "dit_uncond" in graphs else None, None


def repeated(text: np.ndarray | None, count: int) -> np.ndarray | None:
    """Text features (1, T, E) for a batch; None stays None."""
    return None if text is None else np.repeat(text, count, axis=0)


def rounded_time(t: np.float32, timestep_dtype: str) -> np.float32:
    """A time as the transformers get it: rounded to the manifest's type."""
    return round_to_bfloat16(t) if timestep_dtype == "bfloat16" else t


def _run(
    graph: Graph, timestep_dtype: str, feeds: dict[str, np.ndarray], latents: np.ndarray, t: np.float32
) -> np.ndarray:
    time = rounded_time(t, timestep_dtype)
    return graph(latents=latents, timestep=np.full(len(latents), time, np.float32), **feeds)
