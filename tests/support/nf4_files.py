"""Checkpoints in bitsandbytes' 4-bit format, made and read back by bitsandbytes itself on the CPU."""

import json
from copy import copy
from pathlib import Path

import torch
from bitsandbytes import functional
from bitsandbytes.functional import QuantState
from diffusers import Ideogram4Pipeline
from safetensors.torch import save_file
from support.peers import fuse, save_diffusers


def save_nf4(pipeline: Ideogram4Pipeline, directory: Path, layout: str) -> Path:
    """Write the pipeline with bitsandbytes' 4-bit weights; its own weights become those that bitsandbytes reads back.

    Args:
        pipeline: from `make_pipeline`.
        directory: to write.
        layout: ``original`` or ``diffusers``; the second says so in ``quantization_config``, as the peers do.
    """
    save_diffusers(pipeline, directory)
    for folder in ("transformer", "unconditional_transformer", "text_encoder"):
        module = getattr(pipeline, folder)
        linears = {f"{name}.weight" for name, part in module.named_modules() if isinstance(part, torch.nn.Linear)}
        for name, parameter in module.named_parameters():
            value = parameter.bfloat16()
            parameter.copy_(nf4_values(*nf4_codes(value)) if name in linears else value)
        tensors = {name: parameter.bfloat16() for name, parameter in module.named_parameters()}
        if layout == "original":
            tensors = fuse(tensors)
            linears |= {name for name in tensors if ".attention.qkv." in name or ".attention.o." in name}
        # Quantizing again gives the same codes and factors: each block's largest value is one of the code's.
        packed = [nf4_tensors(name, value) if name in linears else {name: value} for name, value in tensors.items()]
        file = next((directory / folder).glob("*.safetensors"))
        save_file({k: v for parts in packed for k, v in parts.items()}, file, metadata={"format": "pt"})
        config = json.loads((directory / folder / "config.json").read_text())
        if layout == "diffusers":
            config["quantization_config"] = {
                "quant_method": "bitsandbytes",
                "load_in_4bit": True,
                "load_in_8bit": False,
                "bnb_4bit_quant_type": "nf4",
                "bnb_4bit_use_double_quant": False,
                "bnb_4bit_compute_dtype": "bfloat16",
            }
        elif folder != "text_encoder":
            config.pop("_class_name")
        (directory / folder / "config.json").write_text(json.dumps(config))
    return directory


def nf4_codes(value: torch.Tensor, nested: bool = False, block: int = 64) -> tuple[torch.Tensor, QuantState]:
    """bitsandbytes' codes and state of a weight; `nested` is its double quantization."""
    return functional.quantize_4bit(value, quant_type="nf4", blocksize=block, compress_statistics=nested)


def nf4_values(codes: torch.Tensor, state: QuantState) -> torch.Tensor:
    """What bitsandbytes' CPU kernel makes of them.

    It gets the weight as one long row: with rows that are no whole number of blocks the kernel of 0.50 starts each row
    with a new block, which neither the quantizer nor the kernels for GPUs do. The released matrices have whole blocks.
    """
    one_row = copy(state)
    one_row.shape = torch.Size((1, state.shape.numel()))
    return functional.dequantize_4bit(codes, one_row).view(state.shape)


def nf4_tensors(name: str, value: torch.Tensor, nested: bool = False, block: int = 64) -> dict[str, torch.Tensor]:
    """What bitsandbytes' ``Linear4bit`` puts into a state dict for a weight."""
    codes, state = nf4_codes(value, nested, block)
    return {name: codes} | {f"{name}.{part}": tensor for part, tensor in state.as_dict(packed=True).items()}
