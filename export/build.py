"""``python -m export.build``: checkpoint directory in, bundle out."""

import argparse
import logging
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir
from tqdm import tqdm

from export import weights
from export.bundle import check_output, file_specs, publish, unfinished
from export.checksums import recorded
from export.checksums import verify as verify_files
from export.graphs import graph_record
from export.precision import PRECISIONS, compute_type, torch_dtype
from export.trace import trace
from model.checkpoint import Checkpoint, open_checkpoint
from model.description import TOKENIZER, describe, tokenizer_file
from model.layers import set_compute_dtype
from runtime.console import guard
from runtime.constants import DEFAULT_BUNDLE
from runtime.manifest import GraphSpec, Manifest

PROGRAM = "export.build"
DEMO_CHECKPOINT = Path(__file__).parent / "demo"
BACKENDS = ("ort",)
_SPARE_BYTES = 32 << 20
"""Disk space wanted beyond the weights: graphs, tokenizer, manifest."""


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {PROGRAM}",
        description="Export an Ideogram 4 checkpoint to a bundle that runs without PyTorch.",
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, default=DEMO_CHECKPOINT, metavar="DIR",
        help="checkpoint directory, original or diffusers layout (default: the small demo model)")  # fmt: skip
    add("--output", type=Path, default=Path(DEFAULT_BUNDLE), metavar="DIR",
        help="bundle to write (default: %(default)s)")  # fmt: skip
    add("--precision", choices=PRECISIONS, default="fp32",
        help="type of weights and matrix multiplications (default: %(default)s)")  # fmt: skip
    add("--backend", choices=BACKENDS, default="ort", help="what will run the bundle (default: %(default)s)")
    add("--timestep-dtype", choices=("float32", "bfloat16"),
        help="round the time to this type (default: float32 for fp32, else bfloat16)")  # fmt: skip
    add("--overwrite", action="store_true", help="replace the output if it is a bundle")
    add("--no-verify", dest="verify", action="store_false", help="do not compare recorded checksums of the weights")
    add("--quiet", action="store_true", help="no progress bars and no messages")
    return parser


def build(
    checkpoint: Path,
    output: Path,
    precision: str,
    backend: str,
    timestep_dtype: str | None = None,
    overwrite: bool = False,
    verify: bool = True,
    quiet: bool = False,
) -> Manifest:
    """Write a bundle; see the command's options.

    Raises:
        FileExistsError: `output` exists and may not be replaced.
        CheckpointError: the checkpoint cannot be read.
        OSError: the disk is too small or cannot be written. Nothing is left behind in any of these cases.
    """
    check_output(output, overwrite)
    opened = open_checkpoint(checkpoint)
    described = describe(opened)
    _check_space(opened, precision, output)
    if verify:
        _verify(checkpoint, quiet)
    with unfinished(output) as partial:
        graphs = {stage: _export(opened, stage, precision, partial, quiet) for stage in opened.sources}
        shutil.copyfile(tokenizer_file(opened), partial / TOKENIZER)
        manifest = replace(
            described,
            precision=precision,
            timestep_dtype=timestep_dtype or PRECISIONS[precision].timestep,
            graphs=graphs,
            files=file_specs(partial),
            tools={name: version(name) for name in ("torch", "onnx-ir", "onnxscript")},
        )
        publish(partial, manifest, output)
    if not quiet:
        size = sum(file.size for file in manifest.files.values())
        print(f"wrote {output} ({size / 1e6:.1f} MB, {precision}, {len(graphs)} graphs)", file=sys.stderr)
    return manifest


def _check_space(checkpoint: Checkpoint, precision: str, output: Path) -> None:
    needed = _SPARE_BYTES
    for stage in checkpoint.sources:
        module = set_compute_dtype(checkpoint.module(stage), torch_dtype(compute_type(precision, stage)))
        needed += sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
    folder = output.absolute().parent
    if (free := shutil.disk_usage(folder).free) < needed:
        raise OSError(f"the bundle needs {needed / 1e9:.2f} GB, but {folder} has only {free / 1e9:.2f} GB left")


def _verify(checkpoint: Path, quiet: bool) -> None:
    digests = recorded(checkpoint)
    total = sum(file.stat().st_size for file in digests if file.is_file())
    with _bar("checksums", total, quiet) as bar:
        verify_files(digests, bar.update)


def _export(checkpoint: Checkpoint, stage: str, precision: str, folder: Path, quiet: bool) -> GraphSpec:
    """Trace one stage and write its graph and weights into `folder`."""
    compute = compute_type(precision, stage)
    record = graph_record(stage, checkpoint)
    with _bar(f"{stage}: tracing", None, quiet) as bar:
        module = set_compute_dtype(checkpoint.module(stage), torch_dtype(compute))
        model: ir.Model = trace(module, record)
        weights.attach(model, checkpoint.sources[stage])
        bar.reset(total=weights.weight_bytes(model))
        bar.set_description(f"{stage}: writing")
        onnx = folder / "onnx" / f"{stage}.onnx"
        try:
            weights.save(model, onnx, f"weights/{stage}.data", bar.update)
        except OSError as error:
            raise OSError(f"cannot write the weights of {stage}: {error.strerror or error}") from error
        bar.update(bar.total - bar.n)
        bar.set_description(stage)
    return GraphSpec(onnx.relative_to(folder).as_posix(), compute, record.inputs, (record.output,))


def _bar(description: str, total: int | None, quiet: bool) -> tqdm:
    return tqdm(desc=f"{description:24}", total=total, unit="B", unit_scale=True, disable=quiet)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = build_parser().parse_args(argv)
    return guard(PROGRAM, lambda: build(**vars(args)) and None)


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    sys.exit(main())
