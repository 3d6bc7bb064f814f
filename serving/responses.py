"""Pictures to the arrays of a response."""

import base64
from collections.abc import Collection, Sequence

import numpy as np

from runtime.console import json_text
from runtime.image.output_files import png
from serving.batching import Picture
from serving.tensors import IMAGE, METADATA, PICTURE_OUTPUTS, PNG, PNG_BASE64, SEED


def wanted_outputs(requested: Collection[str], png_parameter: bool = False) -> frozenset[str]:
    """The outputs to make for a request.

    Triton cannot tell a request that lists no output from one that lists all of them. It is taken for the first, which
    means all but the PNG forms. (Nobody needs both of them; a client that wants one lists it.)

    Args:
        requested: names that Triton gives.
        png_parameter: the request parameter ``png`` of the JSON endpoints, which cannot list outputs: the picture as
            base64 of a PNG instead of a list of numbers.
    """
    everything = frozenset(spec.name for spec in PICTURE_OUTPUTS)
    wanted = everything & frozenset(requested)
    if wanted != everything:
        return wanted
    return everything - ({IMAGE, PNG} if png_parameter else {PNG, PNG_BASE64})


def reply(pictures: Sequence[Picture], wanted: Collection[str]) -> dict[str, np.ndarray]:
    """The arrays of the `wanted` outputs, N rows for N pictures: ``image`` (N, H, W, 3) uint8, ``seed`` (N, 1) int64,
    and (N, 1) bytes: ``metadata`` (JSON), ``image_png`` (the file that ``trt-generate`` writes, byte for byte) and
    ``image_png_base64``.
    """
    arrays: dict[str, np.ndarray] = {}
    if IMAGE in wanted:
        # A single picture is not copied: it is megabytes, and Triton copies it again.
        images = [picture.image for picture in pictures]
        arrays[IMAGE] = images[0][None] if len(images) == 1 else np.stack(images)
    if SEED in wanted:
        arrays[SEED] = np.array([[picture.used["seed"]] for picture in pictures], np.int64)
    if METADATA in wanted:
        arrays[METADATA] = _strings([json_text(p.used).encode() for p in pictures])
    if PNG in wanted or PNG_BASE64 in wanted:
        files = [png(picture.image, picture.used) for picture in pictures]
        if PNG in wanted:
            arrays[PNG] = _strings(files)
        if PNG_BASE64 in wanted:
            arrays[PNG_BASE64] = _strings([base64.b64encode(file) for file in files])
    return arrays


def _strings(values: Sequence[bytes]) -> np.ndarray:
    """(N, 1) object; numpy would make fixed-width bytes of them, which lose NULs at the end."""
    column = np.empty((len(values), 1), object)
    column[:, 0] = values
    return column
