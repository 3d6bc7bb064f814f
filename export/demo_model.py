"""The small trained model that ships with the package, and how it is calibrated."""

from pathlib import Path

from calibration.prompts import DEFAULT_PROMPTS, read_prompts
from calibration.ranges import Ranges
from calibration.record import calibrate
from calibration.reference import prompt_encoder
from model.checkpoint.directory import Checkpoint

DEMO_CHECKPOINT = Path(__file__).parent / "demo"
"""Checkpoint directory in the released layout; scripts/demo/train.py wrote it."""
_CAPTIONS = (
    "a red circle on a blue background",
    "large yellow star center, black background",
    "a small green heart at the top left and a white ring at the right on a purple background",
    '{"compositional_deconstruction":{"background":"cyan","elements":'
    '[{"type":"obj","bbox":[300,250,750,700],"desc":"a large black cross"}]}}',
)
"""Captions of the kinds that the demo was trained on."""
_OTHERS, _PRESET = 4, "V4_TURBO_12"


def calibrate_demo(checkpoint: Checkpoint, quiet: bool) -> Ranges:
    """Activation ranges from captions of the demo's own kind, four default prompts and the shortest guided preset."""
    prompts = read_prompts(DEFAULT_PROMPTS, prompt_encoder(checkpoint))
    prompts = [*_CAPTIONS, *prompts[:: len(prompts) // _OTHERS][:_OTHERS]]
    return calibrate(checkpoint, prompts, preset=_PRESET, quiet=quiet)
