"""The models' inputs and outputs: their names, Triton's types and what they mean. `export.triton` writes them into
config.pbtxt, and `serving.requests` reads requests by them, so the two cannot disagree.
"""

from dataclasses import dataclass

import numpy as np

from runtime.request import INTEGER, INTERVAL, KINDS, NUMBER, PICTURE, TEXT, TILE, WEIGHTS, Kind

NUMPY_TYPES = {
    "TYPE_STRING": np.dtype(object),  # of bytes
    "TYPE_UINT8": np.dtype(np.uint8),
    "TYPE_INT32": np.dtype(np.int32),
    "TYPE_INT64": np.dtype(np.int64),
    "TYPE_FP32": np.dtype(np.float32),
    "TYPE_FP64": np.dtype(np.float64),
}
"""What Triton's Python backend hands over for each type."""


@dataclass(frozen=True)
class Tensor:
    """An input or output of the models. The batch dimension is not in `dims`."""

    name: str
    type: str
    dims: tuple[int, ...] = (1,)
    required: bool = False
    """Of inputs; every other one may be left out."""


_TYPES = {
    TEXT: ("TYPE_STRING", 1),
    INTEGER: ("TYPE_INT32", 1),
    NUMBER: ("TYPE_FP64", 1),
    WEIGHTS: ("TYPE_FP32", -1),  # one weight for all steps, or one for each
    INTERVAL: ("TYPE_FP64", 2),
    PICTURE: ("TYPE_STRING", 1),  # an encoded file; see `serving.pictures`
    TILE: ("TYPE_STRING", 1),
}
"""Triton's type and number of entries for each kind of field."""


def _input(name: str, kind: Kind) -> Tensor:
    type_, entries = _TYPES[TEXT if kind.choices else kind]
    # Seeds are the only integers beyond 32 bits.
    return Tensor(name, "TYPE_INT64" if name == "seed" else type_, (entries,), required=name == "prompt")


INPUTS = tuple(_input(name, kind) for name, kind in KINDS.items())
"""The fields of `runtime.Request`, by the same names; it checks them, and `make_plan` fills in what is left out."""

IMAGE, SEED, METADATA = "image", "seed", "metadata"
PNG, PNG_BASE64 = "image_png", "image_png_base64"
PNG_PARAMETER = "png"
"""Request parameter of the JSON endpoints; see `serving.responses.wanted_outputs`."""
STEP, STEPS = "step", "total_steps"

PICTURE_OUTPUTS = (
    Tensor(IMAGE, "TYPE_UINT8", (-1, -1, 3)),
    Tensor(SEED, "TYPE_INT64"),
    Tensor(METADATA, "TYPE_STRING"),
    Tensor(PNG, "TYPE_STRING"),
    Tensor(PNG_BASE64, "TYPE_STRING"),
)
"""One row for each picture. The PNG forms are made only when asked for; see `serving.responses.wanted_outputs`."""

PROGRESS_OUTPUTS = (Tensor(STEP, "TYPE_INT32"), Tensor(STEPS, "TYPE_INT32"))
"""What each response of the streaming model begins with: the steps done, and their number."""
