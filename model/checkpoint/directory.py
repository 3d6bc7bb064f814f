"""An Ideogram 4 checkpoint directory: its configurations, and where each parameter of each stage is stored.

Two layouts are read, in float32, float16, bfloat16, float8 codes with row scales, or bitsandbytes' nf4. *Original* is
the released one (fused ``attention.qkv`` and ``attention.o``), *diffusers* splits them into ``to_q``, ``to_k``,
``to_v`` and ``to_out.0``. Files may be single or sharded, and names may carry the prefixes of transformers' model
classes.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from model.autoencoder import PATCH, AutoencoderConfig, DecoderStage, EncoderStage, autoencoder_config
from model.checkpoint.latent_stats import LATENT_SCALE, LATENT_SHIFT
from model.checkpoint.matching import match
from model.checkpoint.sources import Folded
from model.checkpoint.tensor_files import CheckpointError, Joined, Source, StoredTensor, read_json, stored_tensors
from model.text_encoder import TAPS, TextEncoderConfig, TextStage, rope_frequencies, text_encoder_config
from model.transformer import Ideogram4Transformer, TransformerConfig, time_frequencies, transformer_config
from runtime.bundle.manifest import LoraSpec

STAGES = ("text_encoder", "dit_cond", "dit_uncond", "vae_decoder", "vae_encoder")
"""Stages in the order in which a picture passes them; ``dit_uncond`` is missing from distilled checkpoints."""

_FOLDERS = {
    "transformer": "diffusion_pytorch_model",
    "unconditional_transformer": "diffusion_pytorch_model",
    "text_encoder": "model",
    "vae": "diffusion_pytorch_model",
}
_CLASSES = {
    "transformer": "Ideogram4Transformer2DModel",
    "unconditional_transformer": "Ideogram4Transformer2DModel",
    "vae": "AutoencoderKLFlux2",
}
_PIPELINE = "Ideogram4Pipeline"
_TEXT_TYPES = ("qwen3_vl", "qwen3_vl_text")
_TEXT_WEIGHTS = "llm_cond_"
_BN = ("bn.running_mean", "bn.running_var")
_STATS = "latent_stats."
_TIME, _ROPE = "t_embedding.frequencies", "encoder.inv_freq"
_DERIVED = (_STATS, _TIME, _ROPE)
"""Parameters that no file holds."""
_LISTED = 60


@dataclass(frozen=True)
class Known:
    """A parameter whose value is at hand."""

    value: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    @property
    def stored(self) -> tuple[StoredTensor, ...]:
        return ()

    def read(self) -> Tensor:
        """The parameter in float32."""
        return self.value


Sources = dict[str, Source | Folded | Joined | Known]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose headers have been checked; no weights are in memory."""

    directory: Path
    layout: str
    """``original`` or ``diffusers``."""
    transformer: TransformerConfig
    text_encoder: TextEncoderConfig
    autoencoder: AutoencoderConfig
    latent_stats: str
    """``bn`` or ``constants``: where the latent statistics come from."""
    sources: dict[str, Sources]
    """Stage -> parameter -> where it is stored."""
    loras: tuple[LoraSpec, ...] = ()
    """What `model.checkpoint.lora` has folded into the sources, in that order."""

    def module(self, stage: str) -> nn.Module:
        """The stage's module with parameters on the meta device (shapes only), in evaluation mode."""
        with torch.device("meta"):
            return _build(stage, self.transformer, self.text_encoder, self.autoencoder)

    def stored(self, stage: str) -> set[StoredTensor]:
        """The stored tensors that a stage is read from."""
        return {tensor for source in self.sources[stage].values() for tensor in source.stored}

    def stamp(self, stage: str) -> list[tuple[str, int, int]]:
        """Name, size in bytes and time of change in ns of the files that a stage is read from."""
        files = {tensor.file for tensor in self.stored(stage)}
        return sorted((str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files)

    def load(self, stage: str) -> nn.Module:
        """The stage's module in float32 on the CPU, weights loaded."""
        module = self.module(stage)
        module.load_state_dict({name: source.read() for name, source in self.sources[stage].items()}, assign=True)
        return module


def open_checkpoint(directory: Path) -> Checkpoint:
    """Read the configurations and the headers of all weight files, and compare them.

    Raises:
        FileNotFoundError: there is no such directory.
        CheckpointError: a file is missing or damaged, the format is not read, or tensors are missing, unexpected or
            wrongly shaped; all of them are named in the one error.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"there is no checkpoint directory {directory}")
    _check_index(directory / "model_index.json")
    configs = _configs(directory)
    stored = {name: stored_tensors(directory / name, _FOLDERS[name]) for name in configs}
    layout = "diffusers" if any(".attention.to_q." in name for name in stored["transformer"]) else "original"
    latent_stats = configs["vae"].get("latent_stats", "bn" if layout == "diffusers" else "constants")
    try:
        transformer = transformer_config(configs["transformer"])
        text = text_encoder_config(configs["text_encoder"])
        vae = autoencoder_config(configs["vae"])
        _check_sizes(transformer, configs.get("unconditional_transformer"), vae, latent_stats)
        with torch.device("meta"):
            shapes = {stage: _shapes(_build(stage, transformer, text, vae)) for stage in STAGES}
    except (ValueError, TypeError, ZeroDivisionError) as error:  # torch.nn's own checks of sizes are among them
        raise CheckpointError(f"{directory}: {error}") from error
    found = _match(directory, stored, shapes, text, latent_stats)
    derived: Sources = _latent_stats(latent_stats, found["vae"], vae)
    derived |= {_TIME: Known(time_frequencies(transformer.hidden_size)), _ROPE: Known(rope_frequencies(text))}
    sources = {
        stage: {name: source for name, source in _sources(stage, found, derived).items() if name in shapes[stage]}
        for stage in STAGES
        if stage != "dit_uncond" or "unconditional_transformer" in found
    }
    return Checkpoint(directory, layout, transformer, text, vae, latent_stats, sources)


def _check_index(index: Path) -> None:
    if index.is_file() and (name := read_json(index).get("_class_name", _PIPELINE)) != _PIPELINE:
        raise CheckpointError(f"{index.parent} is a {name}, wanted an {_PIPELINE}")


def _configs(directory: Path) -> dict[str, dict]:
    """The ``config.json`` of each folder; the unconditional transformer's may be missing."""
    folders = [name for name in _FOLDERS if name != "unconditional_transformer" or (directory / name).is_dir()]
    configs = {name: read_json(directory / name / "config.json") for name in folders}
    for name, config in configs.items():
        _check_quantization(directory / name, config.get("quantization_config"))
        wanted = _CLASSES.get(name)
        if wanted and config.get("_class_name", wanted) != wanted:
            raise CheckpointError(f"{directory / name} is a {config['_class_name']}, wanted a {wanted}")
    if (kind := configs["text_encoder"].get("model_type")) not in _TEXT_TYPES:
        raise CheckpointError(
            f"{directory / 'text_encoder'} has the model_type {kind!r}, wanted {' or '.join(_TEXT_TYPES)}"
        )
    return configs


def _check_quantization(folder: Path, config: object) -> None:
    """Refuse what bitsandbytes has beside nf4; what the tensors really hold is seen in `model.checkpoint.nf4`."""
    if not isinstance(config, dict) or config.get("quant_method") != "bitsandbytes":
        return
    kind = "int8" if config.get("load_in_8bit") else config.get("bnb_4bit_quant_type", "nf4")
    if kind != "nf4":
        raise CheckpointError(f"{folder} is quantized with bitsandbytes {kind}, wanted nf4")


def _check_sizes(
    transformer: TransformerConfig, unconditional: dict | None, vae: AutoencoderConfig, latent_stats: str
) -> None:
    if transformer.in_channels != PATCH * PATCH * vae.latent_channels:
        raise ValueError(
            f"the transformer's in_channels is {transformer.in_channels}, "
            f"but a token of the VAE has {PATCH}x{PATCH}x{vae.latent_channels}"
        )
    if unconditional is not None and (other := transformer_config(unconditional)) != transformer:
        differing = [name for name, value in asdict(transformer).items() if getattr(other, name) != value]
        raise ValueError(f"the two transformers' configurations differ in {', '.join(differing)}")
    if latent_stats not in ("bn", "constants"):
        raise ValueError(f"vae: latent_stats is {latent_stats!r}, wanted 'bn' or 'constants'")
    if latent_stats == "constants" and transformer.in_channels != len(LATENT_SHIFT):
        raise ValueError(
            f"the published latent statistics have {len(LATENT_SHIFT)} channels, this model {transformer.in_channels}; "
            'write "latent_stats": "bn" into vae/config.json'
        )


def _build(stage: str, transformer: TransformerConfig, text: TextEncoderConfig, vae: AutoencoderConfig) -> nn.Module:
    module: nn.Module
    if stage == "text_encoder":
        module = TextStage(text, transformer)
    elif stage in ("dit_cond", "dit_uncond"):
        module = Ideogram4Transformer(transformer)
    elif stage == "vae_decoder":
        module = DecoderStage(vae)
    elif stage == "vae_encoder":
        module = EncoderStage(vae)
    else:
        raise ValueError(f"stage is {stage!r}, wanted one of {', '.join(STAGES)}")
    return module.eval().requires_grad_(False)


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _match(
    directory: Path,
    stored: dict[str, dict[str, StoredTensor]],
    shapes: dict[str, dict[str, tuple[int, ...]]],
    text: TextEncoderConfig,
    latent_stats: str,
) -> dict[str, dict[str, Source]]:
    """The source of every parameter of every folder, or one error that lists all that is wrong."""
    stored_shapes = {
        stage: {name: shape for name, shape in parameters.items() if not name.startswith(_DERIVED)}
        for stage, parameters in shapes.items()
    }
    text_shapes = stored_shapes["text_encoder"]
    tower = {n.removeprefix("encoder."): s for n, s in text_shapes.items() if n.startswith("encoder.")}
    projection = {n: s for n, s in text_shapes.items() if n.startswith(_TEXT_WEIGHTS)}
    vae = stored_shapes["vae_encoder"] | stored_shapes["vae_decoder"]
    if latent_stats == "bn":
        vae |= dict.fromkeys(_BN, shapes["vae_decoder"][_STATS + "mean"])
    wanted = {
        "transformer": stored_shapes["dit_cond"] | projection,
        "unconditional_transformer": stored_shapes["dit_uncond"],
        "text_encoder": tower,
        "vae": vae,
    }
    after_taps = (f"layers.{layer}." for layer in range(TAPS[-1] + 1, text.num_hidden_layers))
    unused = {
        "unconditional_transformer": (_TEXT_WEIGHTS,),  # it sees no text
        "text_encoder": ("visual.", "lm_head.", "norm.", *after_taps),
        "vae": ("bn.",),
    }
    problems: list[str] = []
    found = {
        name: match(directory / name, tensors, wanted[name], unused.get(name, ()), problems)
        for name, tensors in stored.items()
    }
    if problems:
        rest = [f"and {len(problems) - _LISTED} more"] if len(problems) > _LISTED else []
        raise CheckpointError(
            f"{directory}: the tensors do not fit the configuration:\n  " + "\n  ".join(problems[:_LISTED] + rest)
        )
    return found


def _latent_stats(kind: str, vae: dict[str, Source], config: AutoencoderConfig) -> Sources:
    if kind == "constants":
        mean, std = torch.tensor(LATENT_SHIFT), torch.tensor(LATENT_SCALE)
    else:
        mean, variance = (vae[name].read() for name in _BN)
        if not (variance >= 0).all():
            raise CheckpointError(f"vae: {_BN[1]} holds a variance below 0")
        std = torch.sqrt(variance + config.batch_norm_eps)
    return {_STATS + "mean": Known(mean), _STATS + "std": Known(std)}


def _sources(stage: str, found: dict[str, dict[str, Source]], derived: Sources) -> Sources:
    if stage == "text_encoder":
        tower = {f"encoder.{name}": source for name, source in found["text_encoder"].items()}
        return tower | found["transformer"] | derived
    folder = {"dit_cond": "transformer", "dit_uncond": "unconditional_transformer"}.get(stage, "vae")
    return derived | found[folder]
