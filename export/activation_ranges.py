"""The activation ranges for a float8 build."""

from pathlib import Path

from calibration.static.ranges import Ranges, check_ranges, read_ranges
from export.demo_model import calibrate_demo, is_demo
from model.checkpoint.directory import Checkpoint
from model.checkpoint.hub import hub_id


def activation_ranges(checkpoint: Checkpoint, file: Path | None, quiet: bool) -> Ranges:
    """Ranges from a file, checked against the checkpoint; without one, measured here for the demo model only.

    Raises:
        RangesError: the file is damaged, or belongs to another model.
        ValueError: there is no file, and the checkpoint is not the demo's: measuring takes too long to do unasked.
    """
    if file is not None:
        ranges = read_ranges(file)
        check_ranges(ranges, checkpoint)
        return ranges
    if not is_demo(checkpoint):
        name = hub_id(checkpoint.directory) or checkpoint.directory
        loras = " with the same --lora" if checkpoint.loras else ""
        raise ValueError(
            f"--activations static needs ranges: run python -m calibration --measure ranges --checkpoint {name} "
            f"--output ranges.json{loras} and give --calibration ranges.json, or leave --activations out: a scale for "
            "each token needs no calibration"
        )
    return calibrate_demo(checkpoint, quiet)
