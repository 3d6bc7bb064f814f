"""Fold LoRA adapters into the transformers of a checkpoint.

Nothing is computed here: the result is a checkpoint whose weights add the updates when they are read
(`model.checkpoint.folded`), and a stage that no adapter touches stays as it is. Adapters are trained on the conditional
transformer and go into that one only, unless another target is asked for: folded into both, they spoil the picture
(mflux).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from torch import nn

from model.checkpoint.directory import Checkpoint
from model.checkpoint.folded import Folded, Update
from model.checkpoint.hub import written_name
from model.checkpoint.lora_files import LoraError, is_factor, read_lora
from model.checkpoint.matching import SPLIT
from model.layers import Linear
from runtime.bundle.integrity import sha256
from runtime.bundle.manifest import LoraSpec

Target = Literal["cond", "uncond", "both"]
TARGETS: tuple[Target, ...] = get_args(Target)
_STAGES = {"cond": ("dit_cond", "text_encoder"), "uncond": ("dit_uncond",)}
_STAGES["both"] = _STAGES["cond"] + _STAGES["uncond"]
"""Stages with matrices of each target. The projection of the text features belongs to the conditional transformer and
is in the text encoder's stage; the unconditional transformer has one too, which nothing reaches."""
_TEXT_PROJECTION = "llm_cond_proj"


@dataclass(frozen=True)
class _Slot:
    """Where a matrix that files may adapt is in the model."""

    parameter: str
    rows: range
    """Rows of the parameter: a third of them for q, k and v."""
    columns: int

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows), self.columns


def with_loras(checkpoint: Checkpoint, loras: Sequence[str], target: str = "cond") -> Checkpoint:
    """The checkpoint with adapters folded into its transformers; itself when there are none.

    Args:
        checkpoint: one without adapters.
        loras: ``FILE`` or ``FILE:SCALE``, in the order in which they are folded. The scale multiplies the update beside
            the file's own alpha / rank; 1 by default.
        target: one of `TARGETS`, the transformers that are changed.

    Raises:
        FileNotFoundError: there is no such file.
        LoraError: a scale is 0 or infinite in float32, or not a number; a file is given twice, or a file is one that
            `model.checkpoint.lora_files.read_lora` refuses.
        ValueError: the target is unknown, is missing from the checkpoint, or is given without adapters.
    """
    if target not in TARGETS:
        raise ValueError(f"--lora-target is {target!r}, wanted one of {', '.join(TARGETS)}")
    if not loras:
        if target != "cond":
            raise ValueError(f"--lora-target {target} goes with --lora")
        return checkpoint
    if target != "cond" and "dit_uncond" not in checkpoint.sources:
        raise ValueError(f"--lora-target is {target}, but {checkpoint.directory} has no unconditional transformer")
    slots = _slots(checkpoint)
    updates: dict[tuple[str, str], list[Update]] = {}
    specs: list[LoraSpec] = []
    for text in loras:
        file, scale = parse_lora(text)
        spec = LoraSpec(written_name(file), sha256(file), scale, target)
        if spec.sha256 in {other.sha256 for other in specs}:
            raise LoraError(f"the LoRA {file} is given twice; give it once, with the sum of the scales")
        specs.append(spec)
        for place, update in _updates(file, spec, slots, checkpoint):
            updates.setdefault(place, []).append(update)
    sources = {stage: dict(parameters) for stage, parameters in checkpoint.sources.items()}
    for (stage, parameter), found in updates.items():
        sources[stage][parameter] = Folded(sources[stage][parameter], tuple(found))
    return replace(checkpoint, sources=sources, loras=tuple(specs))


def without_loras(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint before `with_loras`."""
    sources = {
        stage: {name: weight.base if isinstance(weight, Folded) else weight for name, weight in parameters.items()}
        for stage, parameters in checkpoint.sources.items()
    }
    return replace(checkpoint, sources=sources, loras=())


def parse_lora(text: str) -> tuple[Path, float]:
    """File and scale of ``FILE`` or ``FILE:SCALE``; `text` as a whole is the file if there is one of that name.

    Raises:
        LoraError: the scale is 0 or infinite in float32, or not a number.
        FileNotFoundError: there is no such file.
    """
    name, colon, number = text.rpartition(":")
    if not colon or Path(text).is_file():
        name, number = text, "1"
    try:
        scale = float(number)
    except ValueError:
        raise LoraError(f"the LoRA {text} has the scale {number!r}, wanted a number, such as {name}:0.8") from None
    if not is_factor(scale):
        raise LoraError(f"the LoRA {text} has the scale {number}, wanted a finite number other than 0 in float32")
    if not Path(name).is_file():
        raise FileNotFoundError(f"there is no LoRA file {name}")
    return Path(name), scale


def _slots(checkpoint: Checkpoint) -> dict[str, _Slot]:
    """Every matrix that files may adapt, by each of its names: those of the released checkpoint and diffusers'."""
    slots: dict[str, _Slot] = {}
    for stage in ("dit_cond", "text_encoder"):
        for name, part in checkpoint.module(stage).named_modules():
            if isinstance(part, Linear) and (stage == "dit_cond" or name == _TEXT_PROJECTION):
                slots |= _names(name, part)
    return slots


def _names(module: str, part: nn.Linear) -> dict[str, _Slot]:
    rows, columns = part.weight.shape
    parameter = f"{module}.weight"
    slots = {module: _Slot(parameter, range(rows), columns)}
    layer, found, point = module.partition(".attention.")
    if found and point == "qkv":
        third = rows // len(SPLIT)
        for name, place in SPLIT.items():
            slots[f"{layer}.{name}"] = _Slot(parameter, range(place * third, (place + 1) * third), columns)
    elif found and point == "o":
        slots[f"{layer}.attention.to_out.0"] = slots[module]
    return slots


def _updates(
    file: Path, spec: LoraSpec, slots: Mapping[str, _Slot], checkpoint: Checkpoint
) -> list[tuple[tuple[str, str], Update]]:
    """What one file adds, with stage and parameter; of the target's stages only."""
    adapted = read_lora(file, {name: slot.shape for name, slot in slots.items()})
    _check_overlap(file, adapted, slots)
    for module, matrix in adapted.items():
        if matrix.factor and not is_factor(spec.scale * matrix.factor):
            raise LoraError(
                f"{file}: the update of {module} is multiplied by {spec.scale * matrix.factor:g}, its scale "
                f"{spec.scale:g} times alpha / rank {matrix.factor:g}; wanted a finite number other than 0 in float32"
            )
    updates = [
        (
            (stage, slots[module].parameter),
            Update(matrix.down, matrix.up, spec.scale * matrix.factor, slots[module].rows.start, spec),
        )
        for module, matrix in adapted.items()
        for stage in _STAGES[spec.target]
        if slots[module].parameter in checkpoint.sources[stage]
    ]
    if not updates:
        raise LoraError(f"{file} adapts only the text projection, which --lora-target uncond leaves out")
    return updates


def _check_overlap(file: Path, modules: Iterable[str], slots: Mapping[str, _Slot]) -> None:
    """Raise LoraError when two matrices of a file change the same rows: fused and split, or under both names."""
    seen: dict[str, list[str]] = {}
    for module in modules:
        slot = slots[module]
        for other in seen.setdefault(slot.parameter, []):
            rows = slots[other].rows
            if slot.rows.start < rows.stop and rows.start < slot.rows.stop:
                raise LoraError(f"{file} adapts the same rows as {other} and as {module}")
        seen[slot.parameter].append(module)
