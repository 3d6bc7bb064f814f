"""What rounding weights costs a stage whose activations in front of them stay as they are.

The comparison of a build rounds the products whose activations are in 8 bits. Float8 has more weights in codes: the
embedders', the time's and the final layer's, and all of the text encoder's.
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from calibration.points import layers_of, quantized_stages
from export.graph.passes.codes import CODES, FP8, Codes
from export.graph.recipe import block_weights, quantized_weights
from export.graph.stage import StageOptions
from export.rounding.inputs import calls_of
from export.selftest.calls import together
from export.velocity import rms
from model.checkpoint.directory import Checkpoint
from model.checkpoint.sources import Weight
from runtime.graph import Call
from runtime.selftest.rows import relative_error


def weight_errors(
    checkpoint: Checkpoint, options: StageOptions, calls: Mapping[str, Sequence[Call]]
) -> dict[str, float]:
    """Relative error of each stage that has such weights, with only them rounded.

    Float8 codes of the checkpoint are used as they are and cost nothing.
    """
    if options.precision.codes is None:
        return {}
    codes, found = CODES[options.precision.codes], {}
    for stage in quantized_stages(checkpoint):
        layers, sources = layers_of(checkpoint, stage), checkpoint.sources[stage]
        points = options.recipe.points(stage, layers)
        compared = {weight for point, weight in block_weights(stage, layers) if point in points}
        names = quantized_weights(checkpoint.module(stage), stage, sources, options.recipe, options.precision.codes)
        if fresh := {name for name in names if name not in compared and not (codes is FP8 and sources[name].coded)}:
            found[stage] = _error(checkpoint, stage, fresh, codes, calls[stage])
    return found


def _error(checkpoint: Checkpoint, stage: str, names: Collection[str], codes: Codes, calls: Sequence[Call]) -> float:
    def read(name: str, weight: Weight) -> Tensor:
        if name not in names:
            return weight.read()
        values, scales = codes.rows(weight)
        return values.float() * scales[:, None]

    inputs = [{name: torch.from_numpy(array) for name, array in call.feeds.items()} for call in calls]
    with torch.no_grad():
        rounded = calls_of(inputs, together(checkpoint, stage, inputs, read))
    return rms([relative_error(a.output, b.output) for a, b in zip(rounded, calls, strict=True)])
