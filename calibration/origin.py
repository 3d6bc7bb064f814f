"""What a file of measurements says about where they come from."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Model:
    """The checkpoint that was measured."""

    name: str
    fingerprint: str
    """From `model.checkpoint.fingerprint`."""


@dataclass(frozen=True)
class Prompts:
    """The prompts that were measured with."""

    count: int
    sha256: str
    """From `calibration.prompts.prompts_sha256`."""
