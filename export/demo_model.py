"""The small trained model that ships with the package, and how it is calibrated."""

from pathlib import Path

from calibration.prompts import DEFAULT_PROMPTS, read_prompts
from calibration.reference import prompt_encoder
from calibration.static.ranges import Ranges
from calibration.static.record import calibrate
from model.checkpoint.directory import Checkpoint

DEMO_CHECKPOINT = Path(__file__).parent / "demo"
"""Checkpoint directory in the released layout; scripts/demo/train.py wrote it."""
DEMO_CAPTIONS = (
    "a red circle on a blue background",
    "large yellow star center, black background",
    "a small green heart at the top left and a white ring at the right on a purple background",
    '{"compositional_deconstruction":{"background":"cyan","elements":'
    '[{"type":"obj","bbox":[300,250,750,700],"desc":"a large black cross"}]}}',
)
"""Captions of the kinds that the demo was trained on."""
_OTHERS, _PRESET = 4, "V4_TURBO_12"


def is_demo(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint is the one that ships with the package."""
    return checkpoint.directory.resolve() == DEMO_CHECKPOINT.resolve()


def calibrate_demo(checkpoint: Checkpoint, quiet: bool) -> Ranges:
    """Activation ranges from captions of the demo's own kind, four default prompts and the shortest guided preset."""
    prompts = read_prompts(DEFAULT_PROMPTS, prompt_encoder(checkpoint))
    prompts = [*DEMO_CAPTIONS, *prompts[:: len(prompts) // _OTHERS][:_OTHERS]]
    return calibrate(checkpoint, prompts, preset=_PRESET, quiet=quiet)
