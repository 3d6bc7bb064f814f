"""Files of a checkpoint, and adapters for it."""

import json
import shutil
from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file, save

from calibration.reference import prompt_encoder
from export.build.checksums import recorded
from model.checkpoint.description import describe
from model.checkpoint.directory import open_checkpoint
from model.checkpoint.lora import with_loras
from runtime.bundle.integrity import sha256
from scripts.fuzz.case import Case, Mutation, World
from scripts.fuzz.mutation import json_texts, safetensors, texts
from scripts.fuzz.strategies import replaced, replaced_header

_WEIGHTS = "diffusion_pytorch_model"
_INDEX = f"{_WEIGHTS}.safetensors.index.json"
_RANK = 2
_BLOCK = 64
"""Values of an nf4 weight to a factor."""


def transformer_config(world: World, folder: Path) -> Case:
    return _json(world, folder, "transformer/config.json", "transformer")


def text_encoder_config(world: World, folder: Path) -> Case:
    return _json(world, folder, "text_encoder/config.json", "text_encoder", "text encoder")


def vae_config(world: World, folder: Path) -> Case:
    return _json(world, folder, "vae/config.json", "vae", "VAE")


def model_index(world: World, folder: Path) -> Case:
    return _json(world, folder, "model_index.json")


def tokenizer_config(world: World, folder: Path) -> Case:
    """With the chat template, which is a program."""
    return _json(world, folder, "tokenizer/tokenizer_config.json", "tokenizer")


def tokenizer(world: World, folder: Path) -> Case:
    return _json(world, folder, "tokenizer/tokenizer.json")


def chat_template(world: World, folder: Path) -> Case:
    """The template in a file of its own."""
    config = json.loads((world.checkpoint / "tokenizer" / "tokenizer_config.json").read_text(encoding="utf-8"))
    examples = (config["chat_template"].encode(),)
    return _case(world, folder, "tokenizer/chat_template.jinja", examples, texts.mutated_lines, ("tokenizer",))


def shard_index(world: World, folder: Path) -> Case:
    """The index of a transformer in one shard."""
    directory = _copy(world, folder)
    weights = directory / "transformer" / f"{_WEIGHTS}.safetensors"
    shard = weights.rename(weights.with_name(f"{_WEIGHTS}-00001-of-00001.safetensors"))
    names = dict.fromkeys(load_file(shard), shard.name)
    examples = (json.dumps({"metadata": {"total_size": 1}, "weight_map": names}).encode(),)
    case = _reading(directory, f"transformer/{_INDEX}", examples, json_texts.mutated)
    return case


def weights(world: World, folder: Path) -> Case:
    """Weights in float8 with row scales: header and values."""
    path = f"unconditional_transformer/{_WEIGHTS}.safetensors"
    example = (world.checkpoint / path).read_bytes()
    names = ("unconditional_transformer",)
    return _case(world, folder, path, (example,), safetensors.mutated, names, "dit_uncond", replaced_header(example))


def vae_weights(world: World, folder: Path) -> Case:
    """The autoencoder's, whose latent statistics are used when the checkpoint is opened."""
    path = f"vae/{_WEIGHTS}.safetensors"
    examples = ((world.checkpoint / path).read_bytes(),)
    return _case(world, folder, path, examples, safetensors.mutated, ("vae",), "vae_decoder")


def nf4(world: World, folder: Path) -> Case:
    """Weights in bitsandbytes' 4 bits, with and without double quantization."""
    path = f"unconditional_transformer/{_WEIGHTS}.safetensors"
    tensors = load_file(world.checkpoint / path)
    examples = tuple(save(_in_nf4(tensors, nested)) for nested in (False, True))
    return _case(world, folder, path, examples, _mutated_nf4, ("unconditional_transformer",), "dit_uncond")


def checksums(world: World, folder: Path) -> Case:
    """``SHA256SUMS`` as it comes with a checkpoint."""
    directory = _copy(world, folder)
    files = [file for file in sorted(directory.rglob("*")) if file.is_file()]
    lines = [f"{sha256(file)}  {file.relative_to(directory).as_posix()}" for file in files]
    file = directory / "SHA256SUMS"

    def read() -> None:
        recorded(directory)

    return Case(file, ("\n".join(lines).encode(),), texts.mutated_lines, read, (file.name,))


def lora(world: World, folder: Path) -> Case:
    """Adapters as PEFT and as kohya write them, folded into weights that are read."""
    checkpoint, file = open_checkpoint(world.checkpoint), folder / "adapter.safetensors"

    def read() -> None:
        folded = with_loras(checkpoint, [str(file)])
        for source in folded.sources["dit_cond"].values():
            source.read()

    size = checkpoint.transformer.hidden_size
    factors = {"A": torch.ones(_RANK, size), "B": torch.ones(size, _RANK)}
    peft = {f"transformer.layers.0.attention.to_q.lora_{role}.weight": part for role, part in factors.items()}
    settings = {"transformer.lora_alpha": 4, "transformer.alpha_pattern": {"to_q": 2.0}, "transformer.use_rslora": True}
    kohya = {
        "lora_unet_layers_0_attention_o.lora_down.weight": factors["A"],
        "lora_unet_layers_0_attention_o.lora_up.weight": factors["B"],
        "lora_unet_layers_0_attention_o.alpha": torch.tensor(1.0),
    }
    examples = (save(peft, {"lora_adapter_metadata": json.dumps(settings)}), save(kohya, {"format": "pt"}))
    strategy = replaced_header(examples[0])
    return Case(file, examples, safetensors.mutated_metadata, read, (file.name,), strategy=strategy)


def _json(world: World, folder: Path, path: str, *names: str) -> Case:
    """A JSON file of a checkpoint; `names` may stand for the file's."""
    examples = ((world.checkpoint / path).read_bytes(),)
    return _case(world, folder, path, examples, json_texts.mutated, names, strategy=replaced(examples))


def _case(
    world: World,
    folder: Path,
    path: str,
    examples: tuple[bytes, ...],
    mutate: Mutation,
    names: tuple[str, ...] = (),
    stage: str = "",
    strategy=None,
) -> Case:
    return _reading(_copy(world, folder), path, examples, mutate, names, stage, strategy)


def _reading(
    directory: Path,
    path: str,
    examples: tuple[bytes, ...],
    mutate: Mutation,
    names: tuple[str, ...] = (),
    stage: str = "",
    strategy=None,
) -> Case:
    """A file of the checkpoint in `directory`, which is opened and described; `stage` is read as well."""
    file = directory / path

    def read() -> None:
        checkpoint = open_checkpoint(directory)
        describe(checkpoint)
        prompt_encoder(checkpoint).encode("a red circle")
        if stage:
            checkpoint.load(stage)

    return Case(file, examples, mutate, read, (file.name, *names), strategy=strategy)


def _copy(world: World, folder: Path) -> Path:
    return Path(shutil.copytree(world.checkpoint, folder / "checkpoint"))


def _in_nf4(tensors: dict[str, torch.Tensor], nested: bool) -> dict[str, torch.Tensor]:
    """The tensors of a float8 file with codes of 4 bits for each matrix that has row scales."""
    made: dict[str, torch.Tensor] = {}
    for name, value in tensors.items():
        if f"{name}_scale" in tensors:
            made |= _nf4_weight(name, tuple(value.shape), nested)
        elif not name.endswith("_scale"):
            made[name] = value
    return made


def _nf4_weight(name: str, shape: tuple[int, ...], nested: bool) -> dict[str, torch.Tensor]:
    count = torch.Size(shape).numel()
    blocks = -(-count // _BLOCK)
    state = {"quant_type": "nf4", "blocksize": _BLOCK, "dtype": "bfloat16", "shape": list(shape)}
    parts = {
        "": torch.full(((count + 1) // 2, 1), 0x5A, dtype=torch.uint8),
        ".quant_map": torch.linspace(-1, 1, 16),
        ".absmax": torch.ones(blocks),
    }
    if nested:
        state |= {"nested_blocksize": 256, "nested_offset": 0.5, "nested_dtype": "float32"}
        parts[".absmax"] = torch.ones(blocks, dtype=torch.uint8)
        parts[".nested_quant_map"] = torch.linspace(-1, 1, 256)
        parts[".nested_absmax"] = torch.ones(-(-blocks // 256))
    parts[".quant_state.bitsandbytes__nf4"] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    return {name + suffix: part for suffix, part in parts.items()}


def _mutated_nf4(random: Random, content: bytes) -> bytes:
    """The state of one weight changed as JSON, in as many bytes as before; or the file changed as any other."""
    if random.random() < 0.5:
        return safetensors.mutated(random, content)
    starts = [place for place in range(len(content)) if content.startswith(b'{"quant_type"', place)]
    start = random.choice(starts)
    stop = content.index(b"}", start) + 1
    state = json_texts.mutated(random, content[start:stop])[: stop - start]
    return content[:start] + state.ljust(stop - start) + content[stop:]
