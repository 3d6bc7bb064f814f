"""Write a checkpoint with the real names, types, shapes and files, and random weights, in any size.

    python -m scripts.make_checkpoint --size full --output checkpoint                          # 28 GB
    python -m scripts.make_checkpoint --size wide --output checkpoint                          # two real blocks, 1.2 GB
    python -m scripts.make_checkpoint --size full --parts transformer --output checkpoint      # one transformer alone

The weights come from a seed: normal with a variance of 1 / inputs, so that activations keep their size. They are
written piece by piece; memory stays below 200 MB whatever the size. Names and types: `model` and the released loaders.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import NormalDist

import ml_dtypes
import numpy as np
import torch
from torch import nn

from calibration.origin import Model, Prompts
from calibration.points import tensor_names
from calibration.static.ranges import Ranges, TensorRange, write_ranges
from export.atomic_directory import check_directory, rename, unfinished
from export.demo_model import DEMO_CHECKPOINT
from model.autoencoder import AutoencoderConfig, DecoderStage, EncoderStage
from model.checkpoint.directory import open_checkpoint
from model.checkpoint.fingerprint import fingerprint
from model.checkpoint.row_codes import E4M3_MAX
from model.text_encoder import TextEncoderConfig, TextStage, text_encoder_json
from model.transformer import Ideogram4Transformer, TransformerConfig
from runtime.console import guard
from runtime.progress import Progress

PROGRAM = "scripts.make_checkpoint"
SMALL_TEXT = TextEncoderConfig(
    hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=32, intermediate_size=128, vocab_size=1024
)
SMALL_VAE = AutoencoderConfig(block_out_channels=(16, 32, 32, 32), layers_per_block=1, norm_num_groups=8)
DEMO = TransformerConfig(
    num_layers=4,
    num_attention_heads=2,
    attention_head_dim=64,
    intermediate_size=256,
    adaln_dim=64,
    llm_features_dim=SMALL_TEXT.features,
    mrope_section=(12, 10, 10),
)
TINY_TEXT = TextEncoderConfig(
    hidden_size=16, num_attention_heads=2, num_key_value_heads=1, head_dim=8, intermediate_size=16, vocab_size=1024
)
TINY = TransformerConfig(
    num_layers=1,
    num_attention_heads=1,
    attention_head_dim=32,
    intermediate_size=32,
    adaln_dim=16,
    llm_features_dim=TINY_TEXT.features,
    mrope_section=(6, 5, 5),
)
TINY_VAE = AutoencoderConfig(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4)
SIZES = {
    "full": (TransformerConfig(), TextEncoderConfig(), AutoencoderConfig()),
    "wide": (TransformerConfig(num_layers=2, llm_features_dim=SMALL_TEXT.features), SMALL_TEXT, SMALL_VAE),
    "demo": (DEMO, SMALL_TEXT, SMALL_VAE),
    "tiny": (TINY, TINY_TEXT, TINY_VAE),
}
"""Transformer, text encoder and autoencoder of each size."""
PARTS = ("transformer", "unconditional_transformer", "text_encoder", "vae")
_DERIVED = ("inv_freq", "frequencies", "latent_stats.mean", "latent_stats.std")
_SPARE_BYTES = 64 << 20
_PIECE = 4 << 20
"""Values made at a time."""
_BYTES = {"F8_E4M3": 1, "BF16": 2, "F32": 4}
_NORMAL = np.array([NormalDist().inv_cdf((i + 0.5) / 256) for i in range(256)])
"""256 equally likely values of a normal distribution."""


@dataclass(frozen=True)
class Piece:
    """A tensor to write."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    inputs: int = 1
    """Of the matrix that it belongs to."""

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * _BYTES[self.dtype]


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(prog=f"python -m {PROGRAM}", description=__doc__.split("\n\n")[0])
    option = parser.add_argument
    option(
        "--size",
        choices=SIZES,
        default="full",
        help="full: as released; wide: two blocks of the real width; demo: small; tiny: as small as it works (default: "
        "%(default)s)",
    )
    option("--layers", type=int, metavar="N", help="blocks of the transformers instead of the size's own number")
    option("--layout", choices=("original", "diffusers"), default="original", help="names (default: %(default)s)")
    option("--dtype", choices=("fp8", "bf16"), default="fp8", help="of Linear weights (default: %(default)s)")
    option(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=PARTS,
        metavar="PART",
        help=f"folders to write, of {', '.join(PARTS)} (default: all)",
    )
    option(
        "--ranges",
        type=Path,
        metavar="FILE",
        help="also write activation ranges, all alike, for builds whose pictures do not matter",
    )
    option("--seed", type=int, default=0, metavar="N", help="of the weights (default: %(default)s)")
    option("--output", type=Path, required=True, metavar="DIR", help="directory to write; it must not exist")
    option("--quiet", action="store_true", help="no progress bar")
    return parser


def make_checkpoint(args: argparse.Namespace) -> None:
    """Write the directory; it gets its name when it is complete."""
    transformer, text, vae = SIZES[args.size]
    if args.layers is not None:
        if not 1 <= args.layers <= 1000:
            raise ValueError(f"--layers is {args.layers}, wanted 1 to 1000")
        transformer = replace(transformer, num_layers=args.layers)
    check_directory(args.output, False, "checkpoint", lambda: False)
    folders = {part: _pieces(part, transformer, text, vae, args) for part in args.parts}
    _check_space(sum(_total(pieces) for pieces in folders.values()), args.output)
    generator = np.random.Generator(np.random.SFC64(args.seed))
    with unfinished(args.output) as partial:
        for part, pieces in folders.items():
            (partial / part).mkdir()
            stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
            with Progress(part, _total(pieces), "B", quiet=args.quiet) as bar:
                _write(partial / part / f"{stem}.safetensors", pieces, generator, bar.update)
            _write_json(partial / part / "config.json", _config(part, transformer, text, vae, args))
        shutil.copytree(DEMO_CHECKPOINT / "tokenizer", partial / "tokenizer")
        index = {"_class_name": "Ideogram4Pipeline"} | ({} if args.size == "full" else {"sizes": {"default": 256}})
        _write_json(partial / "model_index.json", index)
        rename(partial, args.output)
    if args.ranges:
        write_ranges(_ranges(args.output), args.ranges)


def _ranges(directory: Path) -> Ranges:
    """A range of 8 for every activation: normed and rotated values of variance 1 rarely leave it."""
    checkpoint = open_checkpoint(directory)
    model = Model(directory.resolve().name, fingerprint(checkpoint))
    tensors = dict.fromkeys(tensor_names(checkpoint), TensorRange(8.0, 8.0, 8.0, 1))
    return Ranges(model, "max", 100.0, Prompts(0, ""), None, 0, 0, 0, 0, tensors)


def _pieces(
    part: str, transformer: TransformerConfig, text: TextEncoderConfig, vae: AutoencoderConfig, args: argparse.Namespace
) -> list[Piece]:
    """Tensors of one folder, in the order of the safetensors library: wide types first, then by name."""
    with torch.device("meta"):
        stage = TextStage(text, transformer)
        if part == "text_encoder":
            module: nn.Module = nn.ModuleDict({"language_model": stage.encoder})
        elif part == "vae":
            module = nn.ModuleDict({"d": DecoderStage(vae), "e": EncoderStage(vae)})
        else:
            module = Ideogram4Transformer(transformer)
            # Both files of the release hold the text projection, though only the conditional transformer uses it.
            module.llm_cond_norm, module.llm_cond_proj = stage.llm_cond_norm, stage.llm_cond_proj
    coded = args.dtype == "fp8" and part != "vae"
    linear = {f"{name}.weight" for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    pieces = []
    for name, parameter in module.named_parameters():
        if name.endswith(_DERIVED):
            continue
        shape = tuple(parameter.shape)
        name_in_file = name[2:] if part == "vae" else name
        for stored, size in _stored_names(name_in_file, shape, args.layout):
            if coded and name in linear:
                inputs = size[1]
                pieces += [Piece(stored, "F8_E4M3", size, inputs), Piece(f"{stored}_scale", "F32", size[:1], inputs)]
            else:
                pieces.append(Piece(stored, "BF16", size, int(np.prod(size[1:]))))
    if part == "vae":
        channels = (transformer.in_channels,)
        pieces += [Piece("bn.running_mean", "F32", channels), Piece("bn.running_var", "F32", channels)]
    return sorted(pieces, key=lambda piece: (-_BYTES[piece.dtype], piece.name))


def _stored_names(name: str, shape: tuple[int, ...], layout: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a parameter in a file; diffusers splits the fused query, key and value."""
    if layout == "diffusers" and name.endswith("attention.qkv.weight"):
        for part in ("to_q", "to_k", "to_v"):
            yield name.replace("qkv", part), (shape[0] // 3, *shape[1:])
    elif layout == "diffusers" and name.endswith("attention.o.weight"):
        yield name.replace("attention.o.", "attention.to_out.0."), shape
    else:
        yield name, shape


def _total(pieces: list[Piece]) -> int:
    return sum(piece.nbytes for piece in pieces)


def _check_space(needed: int, output: Path) -> None:
    folder = output.absolute().parent
    free = shutil.disk_usage(folder).free
    print(f"{PROGRAM}: writes {needed / 1e9:.2f} GB; {folder} has {free / 1e9:.1f} GB left", file=sys.stderr)
    if free < needed + _SPARE_BYTES:
        raise OSError(f"the checkpoint needs {needed / 1e9:.2f} GB, but {folder} has only {free / 1e9:.2f} GB left")


def _values(piece: Piece, generator: np.random.Generator) -> Iterator[bytes]:
    """The bytes of a tensor, some at a time."""
    count = int(np.prod(piece.shape))
    if len(piece.shape) > 1:
        table = _table(piece)
        for start in range(0, count, _PIECE):
            yield table[np.frombuffer(generator.bytes(min(_PIECE, count - start)), np.uint8)].tobytes()
    elif piece.name.endswith("_scale"):
        # The rows' largest weights differ a little, as they do in a trained model.
        yield (generator.uniform(0.8, 1.25, count) * _row_scale(piece)).astype(np.float32).tobytes()
    else:
        values = float(not piece.name.endswith(("bias", "mean"))) + 0.1 * generator.standard_normal(count)
        yield values.astype(np.float32 if piece.dtype == "F32" else ml_dtypes.bfloat16).tobytes()


def _table(piece: Piece) -> np.ndarray:
    """256 equally likely values of a normal distribution: codes that fill e4m3's range, or bfloat16."""
    if piece.dtype == "F8_E4M3":
        return (_NORMAL / _NORMAL.max() * E4M3_MAX).astype(ml_dtypes.float8_e4m3fn)
    return (_NORMAL * piece.inputs**-0.5).astype(ml_dtypes.bfloat16)


def _row_scale(piece: Piece) -> float:
    """Scale that gives codes over all of e4m3's range a variance of 1 / inputs."""
    return _NORMAL.max() / E4M3_MAX * piece.inputs**-0.5


def _config(
    part: str, transformer: TransformerConfig, text: TextEncoderConfig, vae: AutoencoderConfig, args: argparse.Namespace
) -> dict:
    if part == "text_encoder":
        return text_encoder_json(text, args.dtype == "fp8")
    if part == "vae":
        return {"_class_name": "AutoencoderKLFlux2", **asdict(vae)}
    named = {"_class_name": "Ideogram4Transformer2DModel"} if args.layout == "diffusers" else {}
    return named | asdict(transformer)


def _write(file: Path, pieces: list[Piece], generator: np.random.Generator, progress: Callable[[int], object]) -> None:
    """A safetensors file: the length of the header, the header, the tensors' bytes one after another."""
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for piece in pieces:
        offsets = [offset, offset := offset + piece.nbytes]
        header[piece.name] = {"dtype": piece.dtype, "shape": list(piece.shape), "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for piece in pieces:
            for content in _values(piece, generator):
                stream.write(content)
                progress(len(content))


def _write_json(file: Path, data: dict) -> None:
    file.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = build_parser().parse_args(argv)
    return guard(PROGRAM, lambda: make_checkpoint(args))


if __name__ == "__main__":
    sys.exit(main())
