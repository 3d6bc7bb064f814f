"""Small random pipelines made of diffusers' and transformers' own classes, and their weights in the other layouts.

Everything that our code is compared with is here, and nothing here is ours except the demo's tokenizer files.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Ideogram4Pipeline,
    Ideogram4Transformer2DModel,
)
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Qwen3VLConfig, Qwen3VLModel
from transformers.utils import logging as transformers_logging

from export.demo_model import DEMO_CHECKPOINT

transformers_logging.disable_progress_bar()


@dataclass(frozen=True)
class Shape:
    """Sizes of a small pipeline. Layer and head counts are odd on purpose where the architecture lets them."""

    layers: int = 3
    heads: int = 3
    head_dim: int = 32
    sections: tuple[int, int, int] = (6, 5, 5)
    intermediate: int = 80
    adaln: int = 24
    text_hidden: int = 32
    text_heads: tuple[int, int] = (4, 2)
    text_head_dim: int = 16
    vae_widths: tuple[int, ...] = (16, 16, 32, 32)
    vae_layers: int = 1


SHAPES = {
    "head32": Shape(),
    "head64": Shape(layers=1, heads=1, head_dim=64, sections=(12, 10, 10), text_heads=(3, 1), text_head_dim=32),
    "head256": Shape(
        layers=2,
        heads=1,
        head_dim=256,
        sections=(24, 20, 20),
        intermediate=128,
        adaln=32,
        text_hidden=48,
        text_heads=(6, 3),
        text_head_dim=8,
        vae_widths=(16, 32, 32, 64),
        vae_layers=2,
    ),
}


def make_pipeline(shape: Shape, seed: int = 0) -> Ideogram4Pipeline:
    """A pipeline of peers' classes in float32 with random weights and latent statistics."""
    torch.manual_seed(seed)
    text = {
        "hidden_size": shape.text_hidden,
        "num_hidden_layers": 36,
        "num_attention_heads": shape.text_heads[0],
        "num_key_value_heads": shape.text_heads[1],
        "head_dim": shape.text_head_dim,
        "intermediate_size": 72,
        "vocab_size": 1024,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.1,
        "rope_parameters": {
            "rope_theta": 5_000_000,
            "rope_type": "default",
            "mrope_interleaved": True,
            "mrope_section": [shape.text_head_dim // 2, 0, 0],
        },
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "num_heads": 2,
        "intermediate_size": 16,
        "out_hidden_size": shape.text_hidden,
        "deepstack_visual_indexes": [],
    }
    transformer = {
        "num_layers": shape.layers,
        "attention_head_dim": shape.head_dim,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.intermediate,
        "adaln_dim": shape.adaln,
        "llm_features_dim": 13 * shape.text_hidden,
        "mrope_section": shape.sections,
    }
    vae = AutoencoderKLFlux2(
        block_out_channels=shape.vae_widths, layers_per_block=shape.vae_layers, norm_num_groups=8, sample_size=64
    )
    pipeline = Ideogram4Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=vision)),
        tokenizer=AutoTokenizer.from_pretrained(DEMO_CHECKPOINT / "tokenizer"),
        transformer=Ideogram4Transformer2DModel(**transformer),
        unconditional_transformer=Ideogram4Transformer2DModel(**transformer),
    )
    for name in ("transformer", "unconditional_transformer", "vae", "text_encoder"):
        module = getattr(pipeline, name).eval().requires_grad_(False)
        for parameter in module.parameters():
            if parameter.ndim == 1:
                # Norms and biases start at exactly 1 or 0, which would hide a forgotten one.
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                # The peers' own initialisation is so small that a picture hardly depends on the prompt.
                parameter.copy_(torch.randn_like(parameter) / parameter[0].numel() ** 0.5)
    vae.bn.running_mean.copy_(0.2 * torch.randn(128))
    vae.bn.running_var.copy_(torch.rand(128) + 0.5)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_diffusers(pipeline: Ideogram4Pipeline, directory: Path, shard_size: str = "5GB") -> Path:
    """Write the pipeline with the peers' own code; a small `shard_size` gives an index and shards."""
    pipeline.save_pretrained(directory, max_shard_size=shard_size)
    return directory


def save_original(pipeline: Ideogram4Pipeline, directory: Path, dtype: str) -> Path:
    """Write the pipeline in the released layout.

    Args:
        pipeline: from `make_pipeline`. With ``fp8`` its weights are replaced by those that the file holds.
        directory: to write.
        dtype: ``bf16`` or ``fp8``. Both round the pipeline's own weights to what is stored.
    """
    save_diffusers(pipeline, directory)
    for folder in ("transformer", "unconditional_transformer", "text_encoder"):
        module = getattr(pipeline, folder)
        tensors = {}
        linears = {name for name, part in module.named_modules() if isinstance(part, torch.nn.Linear)}
        for name, parameter in module.named_parameters():
            parameter.copy_(parameter.bfloat16().float())
            tensors[name] = parameter.bfloat16()
            if dtype == "fp8" and name.removesuffix(".weight") in linears and name.endswith(".weight"):
                scale = parameter.abs().amax(dim=1) / 448
                tensors[name] = (parameter / scale[:, None]).to(torch.float8_e4m3fn)
                tensors[name + "_scale"] = scale
                parameter.copy_(tensors[name].float() * scale[:, None])
        file = next((directory / folder).glob("*.safetensors"))
        save_file(fuse(tensors), file, metadata={"format": "pt"})
    for folder in ("transformer", "unconditional_transformer"):
        config = json.loads((directory / folder / "config.json").read_text())
        config.pop("_class_name")
        (directory / folder / "config.json").write_text(json.dumps(config))
    return directory


def fuse(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Diffusers' attention names to the released ones."""
    fused = {}
    for name, tensor in tensors.items():
        if ".attention.to_q." in name:
            parts = [tensors[name.replace("to_q", part)] for part in ("to_q", "to_k", "to_v")]
            as_bytes = [part.view(torch.uint8) if part.dtype == torch.float8_e4m3fn else part for part in parts]
            fused[name.replace("to_q", "qkv")] = torch.cat(as_bytes).view(tensor.dtype)
        elif ".attention.to_out.0." in name:
            fused[name.replace("to_out.0", "o")] = tensor.contiguous()
        elif ".attention.to_" not in name:
            fused[name] = tensor.contiguous()
    return fused


def rewrite(file: Path, change: object) -> None:
    """Load a safetensors file, let `change(tensors)` edit the dict, and write it back."""
    tensors = load_file(file)
    change(tensors)  # type: ignore[operator]
    save_file(tensors, file, metadata={"format": "pt"})


def copy(directory: Path, to: Path) -> Path:
    """A copy of a checkpoint or bundle, for a test that damages it."""
    shutil.copytree(directory, to)
    return to
