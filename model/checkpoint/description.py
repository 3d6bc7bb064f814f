"""What a checkpoint's model is, in the terms of a bundle's manifest."""

from pathlib import Path
from typing import Any

from model.checkpoint.chat_template import prompt_affixes
from model.checkpoint.directory import Checkpoint
from model.checkpoint.fingerprint import fingerprint
from model.checkpoint.hub import model_name
from model.checkpoint.tensor_files import CheckpointError, read_json
from runtime.bundle.manifest import Manifest, PromptSpec, RopeSpec, SizeSpec
from runtime.constants import LARGEST_NUMBER
from runtime.errors import shown

_INDEX, TOKENIZER = "model_index.json", "tokenizer.json"
MAX_TEXT_TOKENS = 2048
"""Longest prompt in the released pipelines, the chat template included."""
_SIZES = {"minimum": 256, "maximum": 2048, "default": 1024}
_ASPECT = 6.0


def describe(checkpoint: Checkpoint) -> Manifest:
    """A manifest in float32 with everything but graphs, files and tools.

    Raises:
        CheckpointError: the tokenizer or its chat template is missing, or ``model_index.json`` has wrong sizes or a
            wrong guidance.
    """
    config = checkpoint.transformer
    return Manifest(
        name=model_name(checkpoint.directory),
        fingerprint=fingerprint(checkpoint),
        precision="fp32",
        quantization=None,
        timestep_dtype="float32",
        latent_stats=checkpoint.latent_stats,
        latent_channels=config.in_channels,
        default_preset="V4_DEFAULT_20" if "dit_uncond" in checkpoint.sources else "V4_FAST_20",
        rope=RopeSpec(config.attention_head_dim, config.rope_theta, config.mrope_section),
        prompt=prompt_spec(checkpoint),
        sizes=_sizes(checkpoint),
        graphs={},
        engines={},
        files={},
        tools={},
        loras=checkpoint.loras,
        default_guidance=_guidance(checkpoint),
    )


def prompt_spec(checkpoint: Checkpoint) -> PromptSpec:
    """How a prompt becomes tokens; reads no weights. CheckpointError as for `describe`."""
    if not (file := tokenizer_file(checkpoint)).is_file():
        raise CheckpointError(f"{file} is missing; transformers' save_pretrained writes it")
    return PromptSpec(TOKENIZER, *prompt_affixes(file.parent), MAX_TEXT_TOKENS)


def tokenizer_file(checkpoint: Checkpoint) -> Path:
    """The checkpoint's ``tokenizer.json``."""
    return checkpoint.directory / "tokenizer" / TOKENIZER


def _sizes(checkpoint: Checkpoint) -> SizeSpec:
    """The documented picture sizes, unless ``model_index.json`` of a small model says ``"sizes": {...}``."""
    index = checkpoint.directory / _INDEX
    given = _from_index(index, "sizes", {})
    if not isinstance(given, dict) or any(type(size) is not int for size in given.values()) or set(given) - set(_SIZES):
        raise CheckpointError(f"{index}: sizes is {shown(given)}, wanted minimum, maximum and default in pixels")
    multiple = checkpoint.autoencoder.pixels_per_token
    for name, size in given.items():
        if size < multiple or size % multiple:
            raise CheckpointError(f"{index}: sizes: {name} is {size}, wanted a multiple of {multiple}")
    try:
        return SizeSpec(multiple, **_SIZES | given, max_aspect=_ASPECT)
    except ValueError as error:
        raise CheckpointError(f"{index}: {error}") from error


def _guidance(checkpoint: Checkpoint) -> float | None:
    """The guidance weight of a model that bears less, or wants more, than the presets say: ``"guidance": 3``."""
    index = checkpoint.directory / _INDEX
    given = _from_index(index, "guidance", None)
    if given is None:
        return None
    if type(given) not in (int, float) or not abs(given) <= LARGEST_NUMBER:  # a bool is an int, NaN is not less
        raise CheckpointError(f"{index}: guidance is {shown(given)}, wanted a number of at most {LARGEST_NUMBER:g}")
    return float(given)


def _from_index(index: Path, key: str, default: Any) -> Any:
    return read_json(index).get(key, default) if index.is_file() else default
