"""Match the tensors that a checkpoint folder holds with the parameters that a model wants."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from model.stored import CODE_TYPE, FLOAT_TYPES, CheckpointError, Source, StoredTensor

_PREFIXES = ("model.language_model.", "language_model.", "model.")
_SPLIT = {"attention.to_q": 0, "attention.to_k": 1, "attention.to_v": 2}
_NF4 = re.compile(r"\.(absmax|quant_map|quant_state\.bitsandbytes__\w+)$")
_SCALE = "_scale"


@dataclass
class _Parts:
    """What was found for one parameter, by its place along the first dimension."""

    tensors: dict[int, StoredTensor] = field(default_factory=dict)
    scales: dict[int, StoredTensor] = field(default_factory=dict)


def refuse_nf4(folder: Path, stored: Mapping[str, StoredTensor]) -> None:
    """Raise CheckpointError for bitsandbytes' 4-bit weights."""
    for name in stored:
        if _NF4.search(name):
            raise CheckpointError(
                f"{folder} holds bitsandbytes nf4 weights ({name}), which are not read yet; use the fp8 checkpoint "
                "(ideogram-ai/ideogram-4-fp8) or one in bfloat16"
            )


def match(
    folder: Path,
    stored: Mapping[str, StoredTensor],
    wanted: Mapping[str, tuple[int, ...]],
    unused: tuple[str, ...],
    problems: list[str],
) -> dict[str, Source]:
    """Find the source of each wanted parameter; append what is wrong to `problems`.

    Args:
        folder: for the messages.
        stored: what the folder's files hold.
        wanted: shape of each parameter.
        unused: prefixes of tensors that may be there and are not needed.
        problems: gets one line for each missing, unexpected, wrongly shaped or wrongly typed tensor.
    """
    parts: dict[str, _Parts] = {}
    for name, tensor in stored.items():
        parameter, place = _parameter(name)
        is_scale = parameter.endswith(".weight" + _SCALE)
        parameter = parameter.removesuffix(_SCALE) if is_scale else parameter
        if parameter not in wanted:
            if not parameter.startswith(unused):
                problems.append(f"{folder.name}: unexpected tensor {name} {list(tensor.shape)}")
            continue
        found = parts.setdefault(parameter, _Parts())
        (found.scales if is_scale else found.tensors)[place] = tensor
    sources = {}
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
    for split, place in _SPLIT.items():
        if f".{split}." in name:
            return name.replace(split, "attention.qkv"), place
    if name.startswith("layers."):
        name = name.replace(".attention.to_out.0.", ".attention.o.")
    return name, 0


def _source(
    folder: Path, parameter: str, shape: tuple[int, ...], found: _Parts, problems: list[str]
) -> Source | None:
    places = sorted(found.tensors)
    split = any(".to_" in tensor.name for tensor in found.tensors.values()) and ".qkv." in parameter
    wanted_places = [0, 1, 2] if split else [0]
    if places != wanted_places:
        absent = [place for place in wanted_places if place not in places]
        names = [parameter.replace("qkv", "to_" + "qkv"[place]) if split else parameter for place in absent]
        problems += [f"{folder.name}: missing tensor {name} {list(shape)}" for name in names]
        return None
    source = Source(tuple(found.tensors[place] for place in places), tuple(found.scales[p] for p in sorted(found.scales)))
    before = len(problems)
    coded = [part for part in source.parts if part.dtype == CODE_TYPE]
    for part in source.parts:
        if part.dtype not in (*FLOAT_TYPES, CODE_TYPE):
            problems.append(f"{folder.name}: {part.name} is {part.dtype}, wanted one of {', '.join(FLOAT_TYPES)}, {CODE_TYPE}")
    if sorted(found.scales) != (places if coded else []) or (coded and len(coded) != len(places)):
        problems.append(
            f"{folder.name}: {parameter} has {len(coded)} {CODE_TYPE} tensors and {len(found.scales)} weight_scale "
            f"tensors, wanted one scale for each of them"
        )
    for part, scale in zip(source.parts, source.scales, strict=False):
        if scale.shape != part.shape[:1]:
            problems.append(f"{folder.name}: {scale.name} is {list(scale.shape)}, wanted {list(part.shape[:1])}")
    consistent = all(part.shape[1:] == source.parts[0].shape[1:] for part in source.parts)
    if not consistent or source.shape != shape:
        for part in source.parts:
            wanted = [shape[0] // len(places), *shape[1:]]
            if list(part.shape) != wanted:
                problems.append(f"{folder.name}: {part.name} is {list(part.shape)}, wanted {wanted}")
    return source if len(problems) == before else None
