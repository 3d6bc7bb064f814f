"""The request that Triton makes of a model before it counts as ready: one step at the bundle's default size."""

import struct
from collections.abc import Collection

from runtime.bundle.manifest import Manifest

FOLDER = "warmup"
"""Where Triton looks for the values of warm-up requests, in the model's directory."""


def warmup_inputs(manifest: Manifest, offered: Collection[str]) -> dict[str, bytes]:
    """The inputs as Triton reads them from files: numbers little-endian, strings behind their length.

    A step has guidance and so goes through every graph, unless the bundle has no unconditional transformer. Where
    requests cannot choose the steps, or none without guidance, the warm-up is a whole picture.
    """
    inputs = {"prompt": _string("warm-up")}
    if "steps" not in offered:
        return inputs
    if "dit_uncond" not in manifest.stages:
        without = {"unconditional": _string("off"), "guidance": struct.pack("<f", 1)}
        if not (possible := [name for name in without if name in offered]):
            return inputs
        inputs[possible[0]] = without[possible[0]]
    return inputs | {"steps": struct.pack("<i", 1)}


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<I", len(data)) + data
