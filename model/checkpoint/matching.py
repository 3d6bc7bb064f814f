"""Match the tensors that a checkpoint folder holds with the parameters that a model wants."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from model.checkpoint import nf4
from model.checkpoint.sources import Part, Sources, Stored
from model.checkpoint.tensor_files import CODE_TYPE, FLOAT_TYPES, StoredTensor

_PREFIXES = ("model.language_model.", "language_model.", "model.")
SPLIT = {"attention.to_q": 0, "attention.to_k": 1, "attention.to_v": 2}
"""Modules of diffusers' layout that are parts of ``attention.qkv``, in the order of its rows."""
_SCALE = "_scale"


@dataclass
class _Parts:
    """What was found for one parameter, by its place along the first dimension."""

    tensors: dict[int, Part] = field(default_factory=dict)
    scales: dict[int, Part] = field(default_factory=dict)


def match(
    folder: Path,
    stored: Mapping[str, StoredTensor],
    wanted: Mapping[str, tuple[int, ...]],
    unused: tuple[str, ...],
    problems: list[str],
) -> Sources:
    """Find the source of each wanted parameter; append what is wrong to `problems`.

    Args:
        folder: for the messages.
        stored: what the folder's files hold.
        wanted: shape of each parameter.
        unused: prefixes of tensors that may be there and are not needed.
        problems: gets one line for each missing, unexpected, wrongly shaped or wrongly typed tensor.
    """
    parts: dict[str, _Parts] = {}
    for name, tensor in nf4.gather(folder, stored, problems).items():
        parameter, place = _parameter(name)
        is_scale = parameter.endswith(".weight" + _SCALE)
        parameter = parameter.removesuffix(_SCALE) if is_scale else parameter
        if parameter not in wanted:
            if not parameter.startswith(unused):
                problems.append(f"{folder.name}: unexpected tensor {name} {list(tensor.shape)}")
            continue
        found = parts.setdefault(parameter, _Parts())
        kind = found.scales if is_scale else found.tensors
        if place in kind:
            problems.append(f"{folder.name}: {name} and {kind[place].name} are the same parameter")
        kind[place] = tensor
    sources: Sources = {}
    for parameter, shape in wanted.items():
        source = _source(folder, parameter, shape, parts.get(parameter, _Parts()), problems)
        if source:
            sources[parameter] = source
    return sources


def _parameter(name: str) -> tuple[str, int]:
    """Parameter that a stored tensor belongs to, and its place in it."""
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            name = name.removeprefix(prefix)
            break
    for split, place in SPLIT.items():
        if f".{split}." in name:
            return name.replace(split, "attention.qkv"), place
    if name.startswith("layers."):
        name = name.replace(".attention.to_out.0.", ".attention.o.")
    return name, 0


def _source(folder: Path, parameter: str, shape: tuple[int, ...], found: _Parts, problems: list[str]) -> Stored | None:
    """The source of one parameter, or None after its problems have been appended."""
    if not found.tensors:
        problems.append(f"{folder.name}: missing tensor {parameter} {list(shape)}")
        return None
    split = any(f".{name}." in tensor.name for name in SPLIT for tensor in found.tensors.values())
    count = len(SPLIT) if split else 1
    part_shape = (shape[0] // count, *shape[1:]) if shape else ()
    before = len(problems)
    for place in range(count):
        tensor, scale = found.tensors.get(place), found.scales.get(place)
        if tensor is None:
            name = parameter.replace("attention.qkv", list(SPLIT)[place])
            problems.append(f"{folder.name}: missing tensor {name} {list(part_shape)}")
            continue
        problems += (f"{folder.name}: {problem}" for problem in _defects(tensor, scale, part_shape))
    if len({tensor.dtype == CODE_TYPE for tensor in found.tensors.values()}) > 1:
        problems.append(f"{folder.name}: {parameter} comes in parts of which only some are {CODE_TYPE}")
    if len(problems) > before:
        return None
    return Stored(
        tuple(found.tensors[place] for place in range(count)),
        tuple(scale for place in range(count) if place in found.scales for scale in found.scales[place].pieces),
    )


def _defects(tensor: Part, scale: Part | None, shape: tuple[int, ...]) -> Iterator[str]:
    if tensor.shape != shape:
        yield f"{tensor.name} is {list(tensor.shape)}, wanted {list(shape)}"
    if tensor.dtype not in (*FLOAT_TYPES, CODE_TYPE, nf4.TYPE):
        yield f"{tensor.name} is {tensor.dtype}, wanted {', '.join(FLOAT_TYPES)} or {CODE_TYPE}"
    if tensor.dtype == CODE_TYPE and scale is None:
        yield f"missing tensor {tensor.name}{_SCALE} {list(tensor.shape[:1])}, the row scales of {CODE_TYPE} codes"
    if scale is not None and tensor.dtype != CODE_TYPE:
        yield f"unexpected tensor {scale.name}: {tensor.name} is {tensor.dtype}, which has no scales"
    if scale is not None and (scale.shape != tensor.shape[:1] or scale.dtype not in FLOAT_TYPES):
        yield f"{scale.name} is {scale.dtype}{list(scale.shape)}, wanted F32{list(tensor.shape[:1])}"
