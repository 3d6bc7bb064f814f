"""Random LoRA adapters, written as the programs that train them do."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

Matrices = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""Module, by its released name -> (down, up)."""
BLOCK = ("attention.qkv", "attention.o", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "adaln_modulation")
OUTSIDE = ("input_proj", "t_embedding.mlp_in", "adaln_proj", "llm_cond_proj", "final_layer.linear")


def random_matrices(transformer: torch.nn.Module, modules: tuple[str, ...], rank: int = 4, seed: int = 0) -> Matrices:
    """Factors for modules of a diffusers transformer; their product is about as large as the weight."""
    random = torch.Generator().manual_seed(seed)
    matrices = {}
    for module in modules:
        theirs = transformer.get_submodule(_diffusers(module).replace("qkv", "to_q"))
        rows, columns = theirs.weight.shape
        rows *= 3 if module.endswith("qkv") else 1
        draw = (torch.randn(shape, generator=random) for shape in ((rank, columns), (rows, rank)))
        matrices[module] = tuple(part / columns**0.25 / rank**0.25 for part in draw)
    return matrices


def of_layers(*layers: int) -> tuple[str, ...]:
    """All matrices of some blocks."""
    return tuple(f"layers.{layer}.{module}" for layer in layers for module in BLOCK)


def split(matrices: Matrices) -> Matrices:
    """Diffusers' modules: q, k and v share the factor ``down``."""
    parts: Matrices = {}
    for module, (down, up) in matrices.items():
        if module.endswith("attention.qkv"):
            for name, rows in zip(("to_q", "to_k", "to_v"), up.chunk(3), strict=True):
                parts[module.replace("qkv", name)] = down.clone(), rows.contiguous()
        else:
            parts[_diffusers(module)] = down, up
    return parts


def _diffusers(module: str) -> str:
    return module.replace("attention.o", "attention.to_out.0")


def peft(matrices: Matrices, prefix: str, tail: str = ".weight") -> dict[str, torch.Tensor]:
    """``lora_A`` and ``lora_B``."""
    return {
        f"{prefix}{module}.lora_{role}{tail}": part
        for module, pair in matrices.items()
        for role, part in zip("AB", pair, strict=True)
    }


def kohya(matrices: Matrices, prefix: str, alpha: float, spell: Callable[[str], str] = str) -> dict[str, torch.Tensor]:
    """``lora_down``, ``lora_up`` and ``alpha``; `spell` may change the modules' names."""
    tensors = {}
    for module, (down, up) in matrices.items():
        name = prefix + spell(module)
        tensors |= {
            f"{name}.lora_down.weight": down,
            f"{name}.lora_up.weight": up,
            f"{name}.alpha": torch.tensor(alpha),
        }
    return tensors


def flat(module: str) -> str:
    """kohya's spelling of a module."""
    return module.replace(".", "_")


def write(file: Path, tensors: dict[str, torch.Tensor], settings: dict | None = None) -> Path:
    """Save an adapter; `settings` is PEFT's configuration, which diffusers keeps in the metadata."""
    metadata = {"format": "pt"}
    if settings is not None:
        packed = {f"transformer.{key}": value for key, value in settings.items()}
        metadata["lora_adapter_metadata"] = json.dumps(packed)
    save_file(tensors, file, metadata=metadata)
    return file
