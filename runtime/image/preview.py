"""Small pictures while the steps run, without the VAE.

A picture is nearly a linear function of its latents if one only looks at the mean colour of 8 x 8 pixels. The map is
fitted where bundles are made (`export.preview_fit`) and kept in the manifest. It is applied to where the steps
are heading, ``x0 = latents + sigma * velocity``, which shows the picture through the noise from the second step on.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from runtime.atomic_files import write_whole
from runtime.bundle.preview_spec import PreviewSpec
from runtime.errors import RequestError
from runtime.image.inpaint import PATCH
from runtime.image.output_files import encode
from runtime.sampling.schedule import Step

EVERY = 4
"""Steps from one preview to the next, unless given."""
SEPARATOR = 2
"""White columns between the pictures of a batch."""


def preview_image(latents: np.ndarray, grid: tuple[int, int], spec: PreviewSpec) -> np.ndarray:
    """A picture (2 * rows, 2 * columns, 3) uint8 of latents (N, C) float32: one pixel for 8 x 8."""
    rows, columns = grid
    weights = np.array(spec.weights, np.float32).reshape(PATCH**2, -1, 3)
    patches = latents.reshape(rows * columns, PATCH**2, -1).transpose(1, 0, 2)
    colours = np.matmul(patches, weights) + np.array(spec.offsets, np.float32)[:, None]  # (4, N, 3)
    pixels = colours.reshape(PATCH, PATCH, rows, columns, 3).transpose(2, 0, 3, 1, 4)
    image: np.ndarray = np.rint(np.clip(pixels, 0, 255)).astype(np.uint8)
    return image.reshape(PATCH * rows, PATCH * columns, 3)


class PreviewFile:
    """A picture file that is replaced every few steps; an `on_step` callback of `Pipeline.run`.

    The pictures of a batch stand side by side. The file always holds a whole picture, and stays when the run ends.
    """

    def __init__(
        self, file: Path, spec: PreviewSpec, grid: tuple[int, int], steps: Sequence[Step], every: int = EVERY
    ) -> None:
        """Raises ValueError unless `every` is at least 1."""
        if every < 1:
            raise RequestError(f"preview every is {every}, wanted 1 or more steps")
        self.file, self.spec, self.grid, self.steps, self.every = file, spec, grid, tuple(steps), every
        self.before: np.ndarray | None = None

    def __call__(self, done: int, total: int, latents: np.ndarray) -> None:
        """Write the file if it is time to; OSError if that fails."""
        if done == total or done % self.every == 0:
            pictures = [preview_image(one, self.grid, self.spec) for one in self._heading(done, latents)]
            write_whole(self.file, encode(_in_a_row(pictures), {"step": done, "steps": total}, self.file))
        # Only the step before the next preview is needed, but a batch of latents is small.
        self.before = latents

    def _heading(self, done: int, latents: np.ndarray) -> np.ndarray:
        """Where the last step's velocity leads; the latents themselves where it is not known."""
        step = self.steps[done - 1]
        if self.before is None or step.dt == 0:
            return latents
        heading: np.ndarray = latents + (step.sigma_next / step.dt) * (latents - self.before)
        return heading


def _in_a_row(pictures: Sequence[np.ndarray]) -> np.ndarray:
    gap = np.full((len(pictures[0]), SEPARATOR, 3), 255, np.uint8)
    parts = [part for picture in pictures for part in (gap, picture)]
    return np.concatenate(parts[1:], axis=1)
