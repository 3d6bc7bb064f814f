"""The file of activation ranges, ``ranges.json``: what calibration measures and a float8 export reads.

Format, version 1. UTF-8, one object: ``"format": "ideogram4-ranges"``, ``"version": 1`` and exactly the fields of
`Ranges`, nested objects with exactly the fields of their classes. The ranges of all algorithms are stored, so another
one can be chosen by changing ``algorithm``; only ``percentile`` cannot be changed without measuring again. Unknown
keys, other versions, missing keys and values of another type are refused. Needs neither numpy nor torch, except
`check_ranges`.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from calibration.origin import Model, Prompts
from calibration.points import tensor_names
from model.checkpoint.hub import model_name
from runtime.atomic_files import write_whole
from runtime.bundle.json_fields import DecodeError, decode, parse
from runtime.errors import SHOWN, cut, shown

if TYPE_CHECKING:
    from model.checkpoint.directory import Checkpoint

FORMAT = "ideogram4-ranges"
VERSION = 1
ALGORITHMS = {"max": "amax", "percentile": "percentile", "mse": "mse"}
"""Names of the algorithms, and the fields of `TensorRange` that hold their results."""
_SMALLEST, _LARGEST = 448 * 2.0**-126, 3.4e38
"""Ranges whose scale, a 448th, is a normal float32 number."""
_LISTED = 3


class RangesError(ValueError):
    """Ranges are damaged, unusable, or of another model."""


@dataclass(frozen=True)
class TensorRange:
    """Largest magnitudes to keep of one tensor; those of q and k are after multiplication by head_dim^-1/4."""

    amax: float
    """The largest magnitude seen."""
    percentile: float
    mse: float
    values: int
    """How many values were seen."""


@dataclass(frozen=True)
class Ranges:
    """Ranges of all tensors that float8 quantizes, and how they were measured."""

    model: Model
    algorithm: str
    """One of `ALGORITHMS`: the one to use."""
    percentile: float
    """Percentile of the magnitudes, in (0, 100]."""
    prompts: Prompts
    preset: str | None
    """None when the number of steps was given instead."""
    steps: int
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    seed: int
    """Of the first prompt; each prompt has the next one."""
    tensors: dict[str, TensorRange]
    """By name, as ``dit_cond.layers.0.attention.qkv``."""

    def __post_init__(self) -> None:
        check_algorithm(self.algorithm, self.percentile)
        for name, tensor in self.tensors.items():
            if tensor.values < 1:
                raise RangesError(
                    f"{cut(name, SHOWN)} was measured on {shown(tensor.values)} values, wanted at least 1"
                )
            for algorithm, field in ALGORITHMS.items():
                value = getattr(tensor, field)
                if not _SMALLEST <= value <= _LARGEST:  # false for NaN
                    raise RangesError(
                        f"{cut(name, SHOWN)} has the range {value} ({algorithm}), wanted a positive number within "
                        "float32"
                    )

    def range_of(self, name: str) -> float:
        """The range of a tensor by the chosen algorithm; RangesError if there is none of that name."""
        if name not in self.tensors:
            raise RangesError(f"there is no range for {name}")
        return getattr(self.tensors[name], ALGORITHMS[self.algorithm])

    def to_json(self) -> str:
        """Text of ``ranges.json``."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Ranges":
        """Read the text of ``ranges.json``; RangesError names what is wrong."""
        try:
            data = parse(text, "the file")
        except DecodeError as error:
            raise RangesError(str(error)) from error
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
            raise RangesError(f'no "format": "{FORMAT}"; this is not a file of activation ranges')
        version = data.pop("version", None)
        if version != VERSION or type(version) is not int:
            raise RangesError(f"the format version is {shown(version)}, wanted {VERSION}")
        try:
            return decode(data, cls, "the file")
        except DecodeError as error:
            raise RangesError(str(error)) from error


def check_algorithm(algorithm: str, percentile: float) -> None:
    """Raise RangesError unless the algorithm is known and the percentile is one."""
    if algorithm not in ALGORITHMS:
        raise RangesError(f"algorithm is {shown(algorithm)}, wanted one of {', '.join(ALGORITHMS)}")
    if not 0 < percentile <= 100:
        raise RangesError(f"percentile is {percentile}, wanted a number above 0, at most 100")


def write_ranges(ranges: Ranges, file: Path) -> None:
    """Write ``ranges.json`` whole or not at all; an existing file is replaced."""
    write_whole(file, ranges.to_json().encode("utf-8"))


def read_ranges(file: Path) -> Ranges:
    """Read ``ranges.json``.

    Raises:
        OSError: the file cannot be read.
        RangesError: it is damaged, of another format or version, or holds a range that cannot be used.
    """
    try:
        return Ranges.from_json(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise RangesError(f"{file}: not UTF-8 text: {error}") from error
    except RangesError as error:
        raise RangesError(f"{file}: {error}") from error


def check_ranges(ranges: Ranges, checkpoint: "Checkpoint") -> None:
    """Raise RangesError unless the ranges are those of this checkpoint's model, complete and without others.

    A checkpoint with LoRAs needs ranges that were measured with them: how far they move the activations is unknown.
    """
    from model.checkpoint.fingerprint import fingerprint  # these need torch, which reading the file does not
    from model.checkpoint.lora import without_loras

    name, measured = model_name(checkpoint.directory), cut(ranges.model.name, SHOWN)
    if (wanted := fingerprint(checkpoint)) != ranges.model.fingerprint:
        if checkpoint.loras and fingerprint(without_loras(checkpoint)) == ranges.model.fingerprint:
            raise RangesError(
                f"the ranges were measured on {measured} without LoRAs, which change the activations; "
                "calibrate with the same --lora and --lora-target"
            )
        raise RangesError(
            f"the ranges were measured on {measured} (fingerprint {cut(ranges.model.fingerprint, SHOWN)}), "
            f"which is not the model {name} (fingerprint {wanted}); calibrate this one"
        )
    names = tensor_names(checkpoint)
    if missing := [n for n in names if n not in ranges.tensors]:
        raise RangesError(f"ranges are missing for {_listed(missing)} of the {len(names)} tensors of {name}")
    known = set(names)
    if unexpected := [n for n in ranges.tensors if n not in known]:
        raise RangesError(f"there are ranges for {_listed(unexpected)} tensors that {name} does not have")


def _listed(names: list[str]) -> str:
    """``3 (a, b, c)``; of many names the first few."""
    return f"{len(names)} ({', '.join(names[:_LISTED])}{', …' if len(names) > _LISTED else ''})"
