"""Write the trained networks in the released format: Linear weights as float8 codes with row scales, the rest bfloat16.

The autoencoder is stored in bfloat16. Its ``bn`` statistics are the published latent statistics, so that readers of
either find the same (see `training.autoencoder.place_latents`).
"""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from export.atomic_directory import rename, unfinished
from export.build.checksums import SUMS
from model.checkpoint.latent_stats import LATENT_SCALE, LATENT_SHIFT
from model.checkpoint.row_codes import quantize_rows
from model.text_encoder import TextEncoder, text_encoder_json
from runtime.bundle.integrity import sha256
from training.autoencoder import Autoencoder
from training.scenes import SIZE
from training.sizes import AUTOENCODER, TEXT, TRANSFORMER
from training.tokenizer import save_tokenizer
from training.transformer import Denoiser

GUIDANCE = 3
"""Weight where nobody names one: guidance multiplies what both transformers get wrong, and the presets' 7 is too much
for a model of this size."""
_DERIVED = ("inv_freq", "frequencies")
"""Parameters that no checkpoint holds."""
_STATS = "latent_stats."


@torch.no_grad()
def round_as_stored(module: nn.Module, float8: bool = True) -> nn.Module:
    """Replace the parameters by what the checkpoint will hold of them."""
    linears = {f"{name}.weight" for name, part in module.named_modules() if float8 and isinstance(part, nn.Linear)}
    for name, parameter in module.named_parameters():
        if name in linears:
            codes, scale = quantize_rows(parameter)
            parameter.copy_(codes.float() * scale[:, None])
        elif not name.endswith(_DERIVED):
            parameter.copy_(parameter.bfloat16())
    return module


def write_checkpoint(
    output: Path,
    tokenizer: Tokenizer,
    encoder: TextEncoder,
    autoencoder: Autoencoder,
    conditional: Denoiser,
    unconditional: Denoiser,
) -> None:
    """Write a checkpoint directory in the released layout; `output` must not exist, and appears only when complete."""
    with unfinished(output) as partial:
        save_tokenizer(tokenizer, partial / "tokenizer")
        tower = float8_tensors(nn.ModuleDict({"language_model": encoder}))
        _save(tower, partial / "text_encoder", text_encoder_json(TEXT, coded=True), "model")
        for folder, denoiser in (("transformer", conditional), ("unconditional_transformer", unconditional)):
            parts = nn.ModuleDict(dict(denoiser.transformer.named_children()))
            # Both files of the release hold the text projection, though only the conditional transformer uses it.
            parts.update({"llm_cond_norm": conditional.llm_cond_norm, "llm_cond_proj": conditional.llm_cond_proj})
            _save(float8_tensors(parts), partial / folder, asdict(TRANSFORMER))
        vae_config = {"_class_name": "AutoencoderKLFlux2", **asdict(AUTOENCODER), "sample_size": SIZE}
        _save(_vae_tensors(autoencoder), partial / "vae", vae_config)
        sizes = {"minimum": SIZE, "default": SIZE}
        index = {"_class_name": "Ideogram4Pipeline", "sizes": sizes, "guidance": GUIDANCE}
        _write_json(partial / "model_index.json", index)
        sums = [f"{sha256(file)}  {file.relative_to(partial)}\n" for file in sorted(partial.rglob("*.safetensors"))]
        (partial / SUMS).write_text("".join(sums), encoding="utf-8")
        rename(partial, output)


def float8_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The module's tensors as the release stores them."""
    tensors = {
        name: tensor.detach().bfloat16().contiguous()
        for name, tensor in module.state_dict().items()
        if not name.endswith(_DERIVED)
    }
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear):
            tensors[f"{name}.weight"], tensors[f"{name}.weight_scale"] = quantize_rows(part.weight.detach())
    return tensors


def _vae_tensors(autoencoder: Autoencoder) -> dict[str, Tensor]:
    stages = (autoencoder.encode, autoencoder.decode)
    tensors = {
        name: tensor.detach().bfloat16().contiguous()
        for stage in stages
        for name, tensor in stage.state_dict().items()
        if not name.startswith(_STATS)
    }
    tensors["bn.running_mean"] = torch.tensor(LATENT_SHIFT)
    tensors["bn.running_var"] = torch.tensor(LATENT_SCALE).square() - AUTOENCODER.batch_norm_eps
    return tensors


def _save(tensors: dict[str, Tensor], folder: Path, config: dict, stem: str = "diffusion_pytorch_model") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / f"{stem}.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", config)


def _write_json(file: Path, data: dict) -> None:
    file.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
