"""``python -m export.build``: checkpoint directory in, bundle out."""

import argparse
import json
import logging
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from importlib.metadata import version
from operator import add
from pathlib import Path

from tqdm import tqdm

from calibration.ranges import Ranges, write_ranges
from export.activation_ranges import activation_ranges
from export.bundle import check_output, file_specs, publish, unfinished
from export.checksums import recorded
from export.checksums import verify as verify_files
from export.demo_model import DEMO_CHECKPOINT
from export.precision import BASES, PRECISIONS, Precision, precision_of, torch_dtype
from export.recipe import Recipe, quantized_weights, unmatched
from export.share import share
from export.stage import StageOptions, export_stage
from model.checkpoint import Checkpoint, open_checkpoint
from model.description import TOKENIZER, describe, tokenizer_file
from model.layers import set_compute_dtype
from runtime.console import guard
from runtime.constants import DEFAULT_BUNDLE
from runtime.manifest import Manifest, QuantizationSpec

PROGRAM = "export.build"
BACKENDS = ("ort",)
RANGES, REPORT = "ranges.json", "report.json"
"""Files of a float8 bundle: the activation ranges it was made with, and how much of it is float8."""
_SPARE_BYTES = 32 << 20
"""Disk space wanted beyond the weights: graphs, tokenizer, manifest."""


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {PROGRAM}",
        description="Export an Ideogram 4 checkpoint to a bundle that runs without PyTorch.",
    )
    option = parser.add_argument
    option("--checkpoint", type=Path, default=DEMO_CHECKPOINT, metavar="DIR",
        help="checkpoint directory, original or diffusers layout (default: the small demo model)")  # fmt: skip
    option("--output", type=Path, default=Path(DEFAULT_BUNDLE), metavar="DIR",
        help="bundle to write (default: %(default)s)")  # fmt: skip
    option("--precision", choices=PRECISIONS, default="fp32",
        help="fp8: weights and the blocks' activations; fp8-weight-only: weights; else the type of both "
        "(default: %(default)s)")  # fmt: skip
    option("--base", choices=BASES, help="type of what is not float8 in the fp8 precisions (default: fp32 for ort)")
    option("--calibration", type=Path, metavar="FILE",
        help="ranges for --precision fp8, from python -m calibration; the demo model makes its own")  # fmt: skip
    option("--attention", choices=("fp8", "base"), default="base",
        help="attention in float8 or in the base type, for --precision fp8 (default: %(default)s for ort)")  # fmt: skip
    option("--keep-base", nargs="+", default=(), metavar="PATTERN",
        help="activations that stay in the base type with --precision fp8, such as 'dit_cond.layers.0.*'")  # fmt: skip
    option("--backend", choices=BACKENDS, default="ort", help="what will run the bundle (default: %(default)s)")
    option("--timestep-dtype", choices=("float32", "bfloat16"),
        help="round the time to this type (default: float32 for fp32, else bfloat16)")  # fmt: skip
    option("--overwrite", action="store_true", help="replace the output if it is a bundle")
    option("--no-verify", dest="verify", action="store_false", help="do not compare recorded checksums of the weights")
    option("--quiet", action="store_true", help="no progress bars and no messages")
    return parser


def build(
    checkpoint: Path,
    output: Path,
    precision: str,
    backend: str = "ort",
    base: str | None = None,
    calibration: Path | None = None,
    attention: str = "base",
    keep_base: Sequence[str] = (),
    timestep_dtype: str | None = None,
    overwrite: bool = False,
    verify: bool = True,
    quiet: bool = False,
) -> Manifest:
    """Write a bundle; see the command's options.

    Raises:
        FileExistsError: `output` exists and may not be replaced.
        ValueError: options that do not go together.
        CheckpointError: the checkpoint cannot be read.
        RangesError: the calibration file is damaged or belongs to another model.
        OSError: the disk is too small or cannot be written. Nothing is left behind in any of these cases.
    """
    check_output(output, overwrite)
    types = precision_of(precision, base, backend)
    recipe = Recipe(types.activations_fp8, types.activations_fp8 and attention == "fp8", tuple(keep_base))
    _check_options(precision, types, calibration, attention, keep_base)
    opened = open_checkpoint(checkpoint)
    described = describe(opened)
    if wrong := unmatched(keep_base, opened.sources, opened.transformer.num_layers):
        raise ValueError(f"--keep-base {wrong[0]!r} matches no activation, such as dit_cond.layers.0.attention.qkv")
    _check_space(opened, types, recipe, output)
    # The directory is made first: one that cannot be written is found before the work starts.
    with unfinished(output) as partial:
        if verify:
            _verify(checkpoint, quiet)
        ranges = activation_ranges(opened, calibration, quiet) if types.activations_fp8 else None
        options = StageOptions(types, recipe, _range_table(ranges, recipe, opened))
        graphs = {stage: export_stage(opened, stage, options, partial, quiet) for stage in opened.sources}
        shutil.copyfile(tokenizer_file(opened), partial / TOKENIZER)
        if ranges:
            write_ranges(ranges, partial / RANGES)
        if types.weights_fp8:
            report = _report(opened, types, recipe)
            (partial / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        manifest = replace(
            described,
            precision=precision,
            quantization=_quantization(types, ranges, recipe),
            timestep_dtype=timestep_dtype or types.timestep,
            graphs=graphs,
            files=file_specs(partial),
            tools={name: version(name) for name in ("torch", "onnx-ir", "onnxscript")},
        )
        publish(partial, manifest, output)
    if types.weights_fp8 and not quiet:
        part = report["all"]
        print(
            f"in float8: {part['bytes_share']:.1%} of the bytes of text encoder and transformers, "
            f"{part['operations_share']:.1%} of their operations",
            file=sys.stderr,
        )
    if not quiet:
        size = sum(file.size for file in manifest.files.values())
        print(f"wrote {output} ({size / 1e6:.1f} MB, {precision}, {len(graphs)} graphs)", file=sys.stderr)
    return manifest


def _check_options(
    precision: str, types: Precision, calibration: Path | None, attention: str, keep_base: Sequence[str]
) -> None:
    """Refuse options of W8A8 with any other precision."""
    given = {"--calibration": calibration, "--attention fp8": attention == "fp8", "--keep-base": keep_base}
    for option, value in given.items():
        if value and not types.activations_fp8:
            raise ValueError(f"{option} goes with --precision fp8, and --precision is {precision}")


def _range_table(ranges: Ranges | None, recipe: Recipe, checkpoint: Checkpoint) -> dict[str, float]:
    if ranges is None:
        return {}
    layers = checkpoint.transformer.num_layers
    return {p: ranges.range_of(p) for stage in checkpoint.sources for p in recipe.points(stage, layers)}


def _quantization(types: Precision, ranges: Ranges | None, recipe: Recipe) -> QuantizationSpec | None:
    if not types.weights_fp8:
        return None
    return QuantizationSpec(
        ranges.algorithm if ranges else "none", "fp8" if recipe.attention else "base", recipe.keep_base
    )


def _report(checkpoint: Checkpoint, types: Precision, recipe: Recipe) -> dict[str, dict[str, float]]:
    """How much of each stage, and of all, is float8."""
    size = torch_dtype(types.compute).itemsize
    stages = [stage for stage in checkpoint.sources if not stage.startswith("vae_")]
    shares = {stage: share(checkpoint, stage, recipe, size) for stage in stages}
    total = reduce(add, shares.values())
    return {name: part.to_dict() for name, part in (shares | {"all": total}).items()}


def _check_space(checkpoint: Checkpoint, types: Precision, recipe: Recipe, output: Path) -> None:
    needed = _SPARE_BYTES + sum(_stage_bytes(checkpoint, stage, types, recipe) for stage in checkpoint.sources)
    folder = output.absolute().parent
    if (free := shutil.disk_usage(folder).free) < needed:
        raise OSError(f"the bundle needs {needed / 1e9:.2f} GB, but {folder} has only {free / 1e9:.2f} GB left")


def _stage_bytes(checkpoint: Checkpoint, stage: str, types: Precision, recipe: Recipe) -> int:
    """Bytes of a stage's weights: one for a float8 code and four for each row's scale, else the compute type's."""
    module = set_compute_dtype(checkpoint.module(stage), torch_dtype(types.stage(stage)))
    coded: set[str] = set()
    if types.weights_fp8 and not stage.startswith("vae_"):
        coded = set(quantized_weights(module, stage, checkpoint.sources[stage], recipe))
    return sum(
        p.numel() + 4 * p.shape[0] if name in coded else p.numel() * p.element_size()
        for name, p in module.named_parameters()
    )


def _verify(checkpoint: Path, quiet: bool) -> None:
    digests = recorded(checkpoint)
    total = sum(file.stat().st_size for file in digests if file.is_file())
    with _bar("checksums", total, quiet) as bar:
        verify_files(digests, bar.update)


def _bar(description: str, total: int | None, quiet: bool) -> tqdm:
    return tqdm(desc=f"{description:24}", total=total, unit="B", unit_scale=True, disable=quiet)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = build_parser().parse_args(argv)
    return guard(PROGRAM, lambda: build(**vars(args)) and None)


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    sys.exit(main())
