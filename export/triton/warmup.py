"""The request that Triton makes of a model before it counts as ready: one step at the bundle's default size."""

import struct

from runtime.bundle.manifest import Manifest

FOLDER = "warmup"
"""Where Triton looks for the values of warm-up requests, in the model's directory."""


def warmup_inputs(manifest: Manifest) -> dict[str, bytes]:
    """The inputs as Triton reads them from files: numbers little-endian, strings behind their length.

    A step has guidance and so goes through every graph, unless the bundle has no unconditional transformer.
    """
    inputs = {"prompt": _string("warm-up"), "steps": struct.pack("<i", 1)}
    return inputs if "dit_uncond" in manifest.stages else inputs | {"unconditional": _string("off")}


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<I", len(data)) + data
