"""The part of a manifest that draws previews."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class PreviewSpec:
    """A linear map from latent tokens to small pictures: RGB in 0…255 is ``latents @ weights + offset``.

    A token shows as 2 x 2 pixels; each of them depends on its own quarter of the token's channels.
    """

    weights: tuple[tuple[float, float, float], ...]
    """For each channel of a token, in their order, its part in R, G and B."""
    offsets: tuple[tuple[float, float, float], ...]
    """For each of the four pixels, row by row."""

    def __post_init__(self) -> None:
        if len(self.offsets) != 4 or not self.weights or len(self.weights) % 4:
            raise ValueError(
                f"preview has {len(self.weights)} weights and {len(self.offsets)} offsets, wanted one weight for each "
                "channel and 4 offsets"
            )
        if not all(math.isfinite(value) for row in (*self.weights, *self.offsets) for value in row):
            raise ValueError("preview has a number that is not finite")
