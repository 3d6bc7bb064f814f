"""What a build must know of a model's activations: channel maxima for int8, ranges for static scales."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from calibration.channels.file import Channels, ChannelsError, check_channels, read_channels, write_channels
from calibration.channels.record import PROMPTS, measure_channels
from calibration.prompts import DEFAULT_PROMPTS, read_prompts, spread
from calibration.reference import prompt_encoder
from calibration.static.ranges import Ranges, write_ranges
from export.activation_ranges import activation_ranges
from export.demo_model import DEMO_CAPTIONS, is_demo
from export.graph.precision import Precision
from model.checkpoint.directory import Checkpoint

RANGES, CHANNELS = "ranges.json", "channels.safetensors"
"""Files beside the graphs: what a bundle was quantized with."""
STATE = ".channels.state"
"""What an interrupted measurement leaves behind in an unfinished bundle."""


@dataclass(frozen=True, eq=False)
class Measurements:
    """What is known; both are None for precisions that need neither."""

    ranges: Ranges | None = None
    channels: Channels | None = None

    def write(self, folder: Path) -> list[str]:
        """Write the files of a bundle; returns their names."""
        if self.ranges is not None:
            write_ranges(self.ranges, folder / RANGES)
            return [RANGES]
        if self.channels is not None:
            write_channels(self.channels, folder / CHANNELS)
            return [CHANNELS]
        return []


def known_measurements(
    checkpoint: Checkpoint, types: Precision, file: Path | None, kept: Sequence[Path] = ()
) -> Measurements | None:
    """The measurements that a precision needs, as far as they are there; None where they have to be made.

    Args:
        checkpoint: to be quantized.
        types: of the build.
        file: the user's; None to take what there is.
        kept: files of channel maxima that builds have left, the first that fits is taken.

    Raises:
        ChannelsError: the user's file is damaged, or belongs to another model.
        RangesError: the same, of static ranges.
        ValueError: static ranges are needed, and there is no file for a model other than the demo.
    """
    if types.activations == "static":
        unknown = file is None and is_demo(checkpoint)
        return None if unknown else Measurements(ranges=activation_ranges(checkpoint, file, quiet=True))
    if types.codes != "int8":
        return Measurements()
    if file is not None:
        channels = read_channels(file)
        check_channels(channels, checkpoint)
        return Measurements(channels=channels)
    return next((Measurements(channels=found) for place in kept if (found := _found(place, checkpoint))), None)


def measure(checkpoint: Checkpoint, types: Precision, folder: Path, quiet: bool) -> Measurements:
    """Make the measurements that a precision needs, where `known_measurements` has none.

    `folder` is the unfinished bundle, where channel maxima are kept for a build that resumes this one.
    """
    if types.activations == "static":
        return Measurements(ranges=activation_ranges(checkpoint, None, quiet))
    channels = measure_channels(checkpoint, calibration_prompts(checkpoint), state=folder / STATE, quiet=quiet)
    write_channels(channels, folder / CHANNELS)
    (folder / STATE).unlink(missing_ok=True)
    return Measurements(channels=channels)


def is_resumable(folder: Path) -> bool:
    """Whether an unfinished bundle holds measurements that are worth keeping."""
    return (folder / CHANNELS).is_file() or (folder / STATE).is_file()


def calibration_prompts(checkpoint: Checkpoint) -> list[str]:
    """A few prompts of the kind that the model was trained on."""
    if is_demo(checkpoint):
        return list(DEMO_CAPTIONS)
    return spread(read_prompts(DEFAULT_PROMPTS, prompt_encoder(checkpoint)), PROMPTS)


def _found(file: Path, checkpoint: Checkpoint) -> Channels | None:
    """The channel maxima in a file, if it is there and of this model."""
    try:
        channels = read_channels(file)
        check_channels(channels, checkpoint)
    except (OSError, ChannelsError):
        return None
    return channels
