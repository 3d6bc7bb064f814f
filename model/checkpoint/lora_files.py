"""Read a LoRA file, whichever program wrote it.

Each adapted matrix has two low-rank factors and may have an alpha; the update is ``alpha / rank * up @ down``, with
alpha = rank unless given. Names are ``<prefix><module>.<role>``:

    PEFT, diffusers     layers.0.attention.to_q.lora_A.weight, .lora_B.weight   (down, up; ``.weight`` may be missing,
                        DiffSynth-Studio writes ``.default.weight``), alpha in the file's metadata, if anywhere
    kohya               layers.0.attention.qkv.lora_down.weight, .lora_up.weight, .alpha

with the prefixes ``diffusion_model.`` (AI Toolkit, ComfyUI), ``transformer.`` (diffusers), ``conditional_transformer.``
(fal) or none (DiffSynth-Studio). kohya's own prefix is ``lora_unet_`` (OneTrainer: ``lora_transformer_``) with
underscores in place of the module's dots. Modules have the names of the released checkpoint or of diffusers.
"""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from model.checkpoint.tensor_files import FLOAT_TYPES, CheckpointError, StoredTensor, header
from runtime.bundle.json_fields import DecodeError, parse
from runtime.errors import shown

_DOTTED = ("diffusion_model.", "transformer.", "conditional_transformer.")
_FLAT = ("lora_unet_", "lora_transformer_")
_ROLES = {"lora_A": "down", "lora_B": "up", "lora_down": "down", "lora_up": "up", "alpha": "alpha"}
_NAME = re.compile(rf"(?P<module>.+)\.(?P<role>{'|'.join(_ROLES)})(\.default)?(\.weight)?")
_METADATA = "lora_adapter_metadata"
"""Where diffusers keeps PEFT's configuration, as JSON with keys such as ``transformer.lora_alpha``."""
_SAFE_PATTERN = re.compile(r"[\w.^$|\\-]*+(?:\*[\w.^$|\\-]*+){0,2}")
"""Patterns of modules that are matched. One with more stars, or with stars on groups, can take years to match, and it
comes from a stranger."""
_LISTED = 4
_SMALLEST, _LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max


def is_factor(number: float) -> bool:
    """Whether a number is one in float32 too, in which updates are added: neither infinite nor lost."""
    return _SMALLEST <= abs(number) <= _LARGEST


class LoraError(ValueError):
    """A LoRA cannot be read, is for another model, or is of a kind that cannot be folded."""


@dataclass
class _Parts:
    """What was found for one module."""

    spelling: str
    """The module as the file spells it, without the prefix."""
    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    """By role: `down`, `up` and `alpha`."""


@dataclass(frozen=True)
class Adapted:
    """One adapted matrix."""

    down: StoredTensor
    """(rank, in)"""
    up: StoredTensor
    """(out, rank)"""
    factor: float
    """alpha / rank"""


def read_lora(file: Path, modules: Mapping[str, tuple[int, int]]) -> dict[str, Adapted]:
    """The adapted matrices of a LoRA file, by module.

    Args:
        file: safetensors.
        modules: shape (out, in) of every matrix that can be adapted, by each of its names, with dots.

    Raises:
        LoraError: the file is not a whole safetensors file, holds NaN or infinity, or is a DoRA; or some of its tensors
            have no place in the model, no partner or the wrong shape, and are listed.
    """
    try:
        stored = header(file)
    except CheckpointError as error:
        raise LoraError(str(error)) from error
    parts, foreign = _assign(file, stored, modules)
    if not parts:
        raise LoraError(
            f"{file} is not a LoRA for this model: none of its {len(stored)} tensors adapts one of its matrices, "
            f"such as {next(iter(modules))} ({_some(foreign)})"
        )
    if foreign:
        raise LoraError(f"{file} holds {len(foreign)} tensors that have no place in this model: {_some(foreign)}")
    problems = [problem for module, found in parts.items() for problem in _defects(found, modules[module])]
    if problems:
        raise LoraError(f"{file} does not fit this model: {_some(problems)}")
    for tensor in stored.values():
        if not torch.isfinite(tensor.read()).all():
            raise LoraError(f"{file}: {tensor.name} holds NaN or infinity; the file is damaged")
    settings = _metadata(file)
    patterns = _patterns(file, settings)
    return {
        module: Adapted(found.tensors["down"], found.tensors["up"], _factor(file, found, settings, patterns))
        for module, found in parts.items()
    }


def _assign(
    file: Path, stored: Mapping[str, StoredTensor], modules: Collection[str]
) -> tuple[dict[str, _Parts], list[str]]:
    """The tensors of each module, and the names of those that belong to none."""
    flat = {module.replace(".", "_"): module for module in modules}
    parts: dict[str, _Parts] = {}
    foreign = []
    for name, tensor in stored.items():
        match = _NAME.fullmatch(name)
        spelling = _without_prefix(match["module"]) if match else ""
        module = flat.get(spelling, "") if match and match["module"].startswith(_FLAT) else spelling
        if not match or module not in modules:
            foreign.append(name)
            continue
        found = parts.setdefault(module, _Parts(spelling))
        role = _ROLES[match["role"]]
        if role in found.tensors:
            raise LoraError(f"{file}: {name} and {found.tensors[role].name} are the same part of {module}")
        found.tensors[role] = tensor
    return parts, foreign


def _without_prefix(module: str) -> str:
    for prefix in (*_DOTTED, *_FLAT):
        if module.startswith(prefix):
            return module.removeprefix(prefix)
    return module


def _defects(found: _Parts, shape: tuple[int, int]) -> list[str]:
    """What is wrong with the tensors of one module whose matrix is (out, in)."""
    if missing := [role for role in ("down", "up") if role not in found.tensors]:
        names = ", ".join(tensor.name for tensor in found.tensors.values())
        return [f"{names} has no lora_{'A' if missing[0] == 'down' else 'B'} beside it"]
    down, up = found.tensors["down"], found.tensors["up"]
    rank = down.shape[0] if down.shape else 0
    wanted = {down.name: (rank, shape[1]), up.name: (shape[0], rank)}
    problems = [
        f"{tensor.name} is {list(tensor.shape)}, wanted {list(wanted[tensor.name])}"
        for tensor in (down, up)
        if tensor.shape != wanted[tensor.name] or not rank
    ]
    problems += [
        f"{tensor.name} is {tensor.dtype}, wanted {', '.join(FLOAT_TYPES)}"
        for tensor in found.tensors.values()
        if tensor.dtype not in FLOAT_TYPES
    ]
    if "alpha" in found.tensors and math.prod(found.tensors["alpha"].shape) != 1:
        problems.append(f"{found.tensors['alpha'].name} is {list(found.tensors['alpha'].shape)}, wanted one number")
    return problems


def _metadata(file: Path) -> dict[str, Any]:
    """PEFT's configuration from the file's metadata, without the prefix of the keys; empty when there is none."""
    with safe_open(file, framework="pt") as opened:
        text = (opened.metadata() or {}).get(_METADATA, "{}")
    try:
        settings = parse(text, f"{file}: its metadata {_METADATA}")
    except DecodeError as error:
        raise LoraError(str(error)) from error
    if not isinstance(settings, dict):
        raise LoraError(f"{file}: its metadata {_METADATA} is {shown(settings)}, wanted an object")
    settings = {key.removeprefix("transformer."): value for key, value in settings.items()}
    if settings.get("use_dora"):
        raise LoraError(f"{file} is a DoRA, which cannot be folded: its magnitudes are not a low-rank update")
    return settings


def _factor(file: Path, found: _Parts, settings: Mapping[str, Any], patterns: Mapping[re.Pattern[str], Any]) -> float:
    """alpha / rank of one module; alpha is its own tensor's, the metadata's, or the rank."""
    rank = found.tensors["down"].shape[0]
    if "alpha" in found.tensors:
        return float(found.tensors["alpha"].read().item()) / rank
    alpha = settings.get("lora_alpha", rank)
    for pattern, value in patterns.items():
        if pattern.fullmatch(found.spelling):
            alpha = value
            break
    if type(alpha) not in (int, float) or not abs(alpha) <= _LARGEST:  # false for NaN
        raise LoraError(f"{file}: its metadata says lora_alpha {alpha!r:.60}, wanted a number")
    return float(alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank))


def _patterns(file: Path, settings: Mapping[str, Any]) -> dict[re.Pattern[str], Any]:
    """The alphas of some modules, by what PEFT matches with the modules' names."""
    given = settings.get("alpha_pattern") or {}
    if not isinstance(given, dict):
        raise LoraError(f"{file}: its metadata says alpha_pattern {shown(given)}, wanted patterns and numbers")
    found = {}
    for pattern, value in given.items():
        try:
            if not _SAFE_PATTERN.fullmatch(pattern):
                raise re.error("it might match for ever")
            found[re.compile(rf"(.*\.)?({pattern})")] = value
        except re.error as error:
            raise LoraError(
                f"{file}: its metadata says alpha_pattern {shown(pattern)}, wanted patterns and numbers; a pattern is "
                f"the name of a module, in which at most two .* may stand for more ({error})"
            ) from error
    return found


def _some(names: Collection[str]) -> str:
    """The first few, and how many more."""
    listed = list(names)[:_LISTED]
    more = [f"and {len(names) - _LISTED} more"] if len(names) > _LISTED else []
    return ", ".join(listed + more)
