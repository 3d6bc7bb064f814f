"""The small model that ships with the package, and how it is calibrated."""

from pathlib import Path

from calibration.prompts import DEFAULT_PROMPTS, read_prompts
from calibration.ranges import Ranges
from calibration.record import calibrate
from calibration.torch_pipeline import prompt_encoder
from model.checkpoint import Checkpoint

DEMO_CHECKPOINT = Path(__file__).parent / "demo"
"""Checkpoint directory in the released layout; scripts/make_demo.py wrote it."""
_PROMPTS, _PRESET = 8, "V4_TURBO_12"


def calibrate_demo(checkpoint: Checkpoint, quiet: bool) -> Ranges:
    """Activation ranges from eight default prompts and the shortest guided preset: seconds, not minutes."""
    prompts = read_prompts(DEFAULT_PROMPTS, prompt_encoder(checkpoint))
    prompts = prompts[:: len(prompts) // _PROMPTS][:_PROMPTS]
    return calibrate(checkpoint, prompts, preset=_PRESET, quiet=quiet)
