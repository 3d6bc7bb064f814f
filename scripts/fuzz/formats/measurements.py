"""Measurements that builds read, and what interrupted ones leave behind."""

from pathlib import Path

import numpy as np
import torch

from calibration.channels.file import (
    Channels,
    Measured,
    check_channels,
    read_channels,
    wanted_widths,
    write_channels,
)
from calibration.channels.record import measure_channels
from calibration.origin import Model, Prompts
from calibration.points import tensor_names
from calibration.static.histogram import BINS, Histogram
from calibration.static.ranges import Ranges, TensorRange, check_ranges, read_ranges
from calibration.static.state import State, StateFile
from model.checkpoint.directory import Checkpoint, open_checkpoint
from model.checkpoint.fingerprint import fingerprint
from model.checkpoint.hub import model_name
from scripts.fuzz.case import Case, World
from scripts.fuzz.mutation import byte_strings, json_texts, safetensors
from scripts.fuzz.strategies import replaced, replaced_header

_PROMPTS = ["a red circle"]


def channels(world: World, folder: Path) -> Case:
    """Channel maxima for int8."""
    checkpoint, file = open_checkpoint(world.checkpoint), folder / "channels.safetensors"
    maxima = {name: torch.ones(width) for name, width in wanted_widths(checkpoint).items()}
    write_channels(Channels(Measured(_model(checkpoint), Prompts(1, ""), 1, 256, 256, 0), maxima), file)
    examples = (file.read_bytes(),)

    def read() -> None:
        check_channels(read_channels(file), checkpoint)

    strategy = replaced_header(examples[0])
    # What belongs to another model names that model and not the file.
    names = (file.name, "channel maxima")
    return Case(file, examples, safetensors.mutated_metadata, read, names, strategy=strategy)


def channels_state(world: World, folder: Path) -> Case:
    """A measurement of channel maxima that was interrupted behind the text encoder."""
    checkpoint, file = open_checkpoint(world.checkpoint), folder / "channels.state"
    states: list[bytes] = []

    def measure() -> Channels:
        return measure_channels(checkpoint, _PROMPTS, steps=1, state=file, quiet=True)

    measure()
    states.append(file.read_bytes())

    def read() -> None:
        found = measure().maxima
        if {name: len(value) for name, value in found.items()} != wanted_widths(checkpoint):
            raise AssertionError("a damaged state has given other maxima than the model has")

    return Case(file, tuple(states), safetensors.mutated_metadata, read, may_refuse=False)


def ranges(world: World, folder: Path) -> Case:
    """Static activation ranges."""
    checkpoint, file = open_checkpoint(world.checkpoint), folder / "ranges.json"
    tensors = dict.fromkeys(tensor_names(checkpoint), TensorRange(8.0, 7.5, 7.0, 1000))
    prompts = Prompts(1, "")
    example = Ranges(_model(checkpoint), "max", 99.99, prompts, None, 1, 256, 256, 0, tensors)
    examples = (example.to_json().encode(),)

    def read() -> None:
        found = read_ranges(file)
        if Ranges.from_json(found.to_json()) != found:
            raise AssertionError("what was read is not what is written of it")
        check_ranges(found, checkpoint)

    return Case(file, examples, json_texts.mutated, read, (file.name, "ranges"), strategy=replaced(examples))


def ranges_state(world: World, folder: Path) -> Case:
    """A measurement of ranges that was interrupted."""
    names = tensor_names(open_checkpoint(world.checkpoint))
    file = folder / ".ranges.json.state.npz"
    kept = StateFile(file, {"seed": 0})
    kept.save(State(1, dict.fromkeys(names, Histogram(8.0, np.ones(BINS, np.int64)))))
    examples = (file.read_bytes(),)
    return Case(file, examples, byte_strings.mutated, lambda: kept.load(names, 2), (file.name,))


def _model(checkpoint: Checkpoint) -> Model:
    return Model(model_name(checkpoint.directory), fingerprint(checkpoint))
