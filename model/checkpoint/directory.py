"""An Ideogram 4 checkpoint directory: its configurations, and where each parameter of each stage is stored.

Two layouts are read, in float32, float16, bfloat16, float8 codes with row scales, or bitsandbytes' nf4. *Original* is
the released one (fused ``attention.qkv`` and ``attention.o``), *diffusers* splits them into ``to_q``, ``to_k``,
``to_v`` and ``to_out.0``. Files may be single or sharded, and names may carry the prefixes of transformers' model
classes.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from model.autoencoder import AutoencoderConfig, DecoderStage, EncoderStage, autoencoder_config
from model.checkpoint.config_files import (
    WEIGHT_FILES,
    LatentStatsKind,
    check_index,
    check_sizes,
    latent_stats_kind,
    read_configs,
)
from model.checkpoint.latent_stats import LATENT_SCALE, LATENT_SHIFT
from model.checkpoint.matching import match
from model.checkpoint.sources import Known, Sources
from model.checkpoint.tensor_files import CheckpointError, Identity, StoredTensor, stored_tensors
from model.text_encoder import TAPS, TextEncoderConfig, TextStage, rope_frequencies, text_encoder_config
from model.transformer import Ideogram4Transformer, TransformerConfig, time_frequencies, transformer_config
from runtime.bundle.manifest import LoraSpec
from runtime.errors import cut

STAGES = ("text_encoder", "dit_cond", "dit_uncond", "vae_decoder", "vae_encoder")
"""Stages in the order in which a picture passes them; ``dit_uncond`` is missing from distilled checkpoints."""

_TEXT_WEIGHTS = "llm_cond_"
_BN = ("bn.running_mean", "bn.running_var")
_STATS = "latent_stats."
_TIME, _ROPE = "t_embedding.frequencies", "encoder.inv_freq"
_DERIVED = (_STATS, _TIME, _ROPE)
"""Parameters that no file holds."""
_LISTED = 24
"""Wrong tensors that a message lists."""
_LONGEST = 150
"""Characters for one of them: names come from files."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose headers have been checked; no weights are in memory."""

    directory: Path
    layout: str
    """``original`` or ``diffusers``."""
    transformer: TransformerConfig
    text_encoder: TextEncoderConfig
    autoencoder: AutoencoderConfig
    latent_stats: LatentStatsKind
    """``bn`` or ``constants``: where the latent statistics come from."""
    sources: dict[str, Sources]
    """Stage -> parameter -> where its value comes from."""
    loras: tuple[LoraSpec, ...] = ()
    """What `model.checkpoint.lora` has folded into the sources, in that order."""

    def module(self, stage: str) -> nn.Module:
        """The stage's module with parameters on the meta device (shapes only), in evaluation mode."""
        with torch.device("meta"):
            return _build(stage, self.transformer, self.text_encoder, self.autoencoder)

    def stored(self, stage: str) -> set[StoredTensor]:
        """The stored tensors that a stage is read from."""
        return {tensor for source in self.sources[stage].values() for tensor in source.stored}

    def identity(self, stage: str) -> Identity:
        """All that the values of a stage's parameters depend on, stored or derived.

        Files count by name, size in bytes and time of change in ns, adapters by their hashes.
        """
        files = {tensor.file: tensor.file.stat() for tensor in self.stored(stage)}
        stamps = [
            (file.parent.name, file.name, str(file.resolve()), status.st_size, status.st_mtime_ns)
            for file, status in files.items()
        ]
        return *sorted(stamps), *((name, source.identity) for name, source in sorted(self.sources[stage].items()))

    def load(self, stage: str) -> nn.Module:
        """The stage's module in float32 on the CPU, weights loaded."""
        module = self.module(stage)
        module.load_state_dict({name: source.read() for name, source in self.sources[stage].items()}, assign=True)
        return module


def open_checkpoint(directory: Path) -> Checkpoint:
    """Read the configurations and the headers of all weight files, and compare them.

    Raises:
        FileNotFoundError: there is no such directory.
        CheckpointError: a file is missing or damaged, the format is not supported, or tensors are missing, unexpected
            or wrongly shaped; one error names all of them.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"there is no checkpoint directory {directory}")
    check_index(directory / "model_index.json")
    configs = read_configs(directory)
    stored = {name: stored_tensors(directory / name, WEIGHT_FILES[name]) for name in configs}
    layout = "diffusers" if any(".attention.to_q." in name for name in stored["transformer"]) else "original"
    try:
        latent_stats = latent_stats_kind(configs["vae"], layout)
        transformer = transformer_config(configs["transformer"])
        text = text_encoder_config(configs["text_encoder"])
        vae = autoencoder_config(configs["vae"])
        check_sizes(transformer, configs.get("unconditional_transformer"), vae, latent_stats)
    except ValueError as error:
        raise CheckpointError(f"{directory}: {error}") from error
    shapes = {stage: _shapes(directory, stage, transformer, text, vae) for stage in STAGES}
    found = _match(directory, stored, shapes, text, latent_stats)
    derived: Sources = _latent_stats(latent_stats, found["vae"], vae)
    derived |= {_TIME: Known(time_frequencies(transformer.hidden_size)), _ROPE: Known(rope_frequencies(text))}
    sources = {
        stage: {name: source for name, source in _sources(stage, found, derived).items() if name in shapes[stage]}
        for stage in STAGES
        if stage != "dit_uncond" or "unconditional_transformer" in found
    }
    return Checkpoint(directory, layout, transformer, text, vae, latent_stats, sources)


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


def _shapes(
    directory: Path, stage: str, transformer: TransformerConfig, text: TextEncoderConfig, vae: AutoencoderConfig
) -> dict[str, tuple[int, ...]]:
    """Shape of each parameter of a stage; CheckpointError for sizes that PyTorch's layers refuse."""
    try:
        with torch.device("meta"):
            module = _build(stage, transformer, text, vae)
    except (ValueError, TypeError, ZeroDivisionError, RuntimeError) as error:
        raise CheckpointError(f"{directory / _folder(stage)}: {cut(str(error), _LONGEST)}") from error
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _match(
    directory: Path,
    stored: dict[str, dict[str, StoredTensor]],
    shapes: dict[str, dict[str, tuple[int, ...]]],
    text: TextEncoderConfig,
    latent_stats: LatentStatsKind,
) -> dict[str, Sources]:
    """The source of every parameter of every folder, or one error that lists everything that is wrong."""
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
        listed = [cut(problem, _LONGEST) for problem in problems[:_LISTED]]
        raise CheckpointError(
            f"{directory}: the tensors do not fit the configuration:\n  " + "\n  ".join(listed + rest)
        )
    return found


def _latent_stats(kind: LatentStatsKind, vae: Sources, config: AutoencoderConfig) -> Sources:
    if kind == "constants":
        mean, std = torch.tensor(LATENT_SHIFT), torch.tensor(LATENT_SCALE)
    else:
        mean, variance = (vae[name].read() for name in _BN)
        if not (variance >= 0).all():
            raise CheckpointError(f"vae: {_BN[1]} holds a variance below 0")
        std = torch.sqrt(variance + config.batch_norm_eps)
    return {_STATS + "mean": Known(mean), _STATS + "std": Known(std)}


def _sources(stage: str, found: dict[str, Sources], derived: Sources) -> Sources:
    if stage == "text_encoder":
        tower = {f"encoder.{name}": source for name, source in found["text_encoder"].items()}
        return tower | found["transformer"] | derived
    return derived | found[_folder(stage)]


def _folder(stage: str) -> str:
    """Where the weights of a stage are; a few of the text encoder's are the transformer's."""
    named = {"dit_cond": "transformer", "dit_uncond": "unconditional_transformer", "text_encoder": "text_encoder"}
    return named.get(stage, "vae")
