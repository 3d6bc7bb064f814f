"""The ``config.json`` files of a checkpoint directory, and whether its parts fit together."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from model.autoencoder import PATCH, AutoencoderConfig
from model.checkpoint.latent_stats import LATENT_SHIFT
from model.checkpoint.tensor_files import CheckpointError, read_json
from model.transformer import TransformerConfig, transformer_config
from runtime.errors import SHOWN, cut, shown

WEIGHT_FILES = {
    "transformer": "diffusion_pytorch_model",
    "unconditional_transformer": "diffusion_pytorch_model",
    "text_encoder": "model",
    "vae": "diffusion_pytorch_model",
}
"""Folders of a checkpoint, and the stem of the weight files in each."""
LatentStatsKind = Literal["bn", "constants"]
"""Where the latent statistics come from: the VAE's batch norm, or the published constants."""
_CLASSES = {
    "transformer": "Ideogram4Transformer2DModel",
    "unconditional_transformer": "Ideogram4Transformer2DModel",
    "vae": "AutoencoderKLFlux2",
}
_PIPELINE = "Ideogram4Pipeline"
_TEXT_TYPES = ("qwen3_vl", "qwen3_vl_text")


def check_index(index: Path) -> None:
    """Raise CheckpointError if ``model_index.json`` is that of another pipeline; it may be missing."""
    if index.is_file() and (name := read_json(index).get("_class_name", _PIPELINE)) != _PIPELINE:
        raise CheckpointError(f"{index}: the pipeline is a {cut(str(name), SHOWN)}, wanted an {_PIPELINE}")


def read_configs(directory: Path) -> dict[str, dict[str, Any]]:
    """The ``config.json`` of each folder that is there; only the unconditional transformer's may be missing.

    Raises:
        CheckpointError: one is missing or damaged, or is of a model or a quantization that is not supported.
    """
    folders = [name for name in WEIGHT_FILES if name != "unconditional_transformer" or (directory / name).is_dir()]
    configs = {name: read_json(directory / name / "config.json") for name in folders}
    for name, config in configs.items():
        _check_quantization(directory / name, config.get("quantization_config"))
        wanted = _CLASSES.get(name)
        if wanted and config.get("_class_name", wanted) != wanted:
            raise CheckpointError(
                f"{directory / name} is a {cut(str(config['_class_name']), SHOWN)}, wanted a {wanted}"
            )
    if (kind := configs["text_encoder"].get("model_type")) not in _TEXT_TYPES:
        raise CheckpointError(
            f"{directory / 'text_encoder'} has the model_type {shown(kind)}, wanted {' or '.join(_TEXT_TYPES)}"
        )
    return configs


def _check_quantization(folder: Path, config: object) -> None:
    """Refuse bitsandbytes' other formats; `model.checkpoint.nf4` checks what the tensors really hold."""
    if not isinstance(config, dict) or config.get("quant_method") != "bitsandbytes":
        return
    kind = "int8" if config.get("load_in_8bit") else config.get("bnb_4bit_quant_type", "nf4")
    if kind != "nf4":
        raise CheckpointError(f"{folder} is quantized with bitsandbytes {cut(str(kind), SHOWN)}, wanted nf4")


def latent_stats_kind(vae: dict[str, Any], layout: str) -> LatentStatsKind:
    """What ``vae/config.json`` says, or else what the layout's own pipeline uses; ValueError if it is neither kind."""
    given = vae.get("latent_stats", "bn" if layout == "diffusers" else "constants")
    if given == "bn":
        return "bn"
    if given == "constants":
        return "constants"
    raise ValueError(f"vae: latent_stats is {shown(given)}, wanted 'bn' or 'constants'")


def check_sizes(
    transformer: TransformerConfig,
    unconditional: dict[str, Any] | None,
    vae: AutoencoderConfig,
    latent_stats: LatentStatsKind,
) -> None:
    """Raise ValueError unless transformers, autoencoder and latent statistics fit together."""
    if transformer.in_channels != PATCH * PATCH * vae.latent_channels:
        raise ValueError(
            f"the transformer's in_channels is {transformer.in_channels}, "
            f"but a token of the VAE has {PATCH}x{PATCH}x{vae.latent_channels}"
        )
    if unconditional is not None and (other := transformer_config(unconditional)) != transformer:
        differing = [name for name, value in asdict(transformer).items() if getattr(other, name) != value]
        raise ValueError(f"the two transformers' configurations differ in {', '.join(differing)}")
    if latent_stats == "constants" and transformer.in_channels != len(LATENT_SHIFT):
        raise ValueError(
            f"the published latent statistics have {len(LATENT_SHIFT)} channels, this model {transformer.in_channels}; "
            'write "latent_stats": "bn" into vae/config.json'
        )
