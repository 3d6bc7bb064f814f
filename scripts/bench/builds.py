"""Time, memory and disk of builds, and how they grow with the number of transformer blocks.

    python -m scripts.bench.builds --size wide --layers 2 8 17 34 --json builds.json    # 10 minutes, 20 GB of disk
    python -m scripts.bench.builds --size full                                          # the real model, 60 GB of disk
    python -m scripts.bench.builds --size demo                                          # a minute

Each row is one run of ``python -m export.build`` in a process of its own on a checkpoint with random weights, made by
scripts/make_checkpoint.py: a bundle of TensorRT-RTX engines for sm89 and sm120, and one for ONNX Runtime that links to
the checkpoint's weights. ``wide`` has the real width in the transformers and a small text encoder and VAE, so that the
blocks are what is measured; of its two transformers only the conditional one is made.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from export.memory import Peak
from export.reporting.text_table import aligned
from scripts.bench.peak_memory import run_measured
from scripts.root import ROOT

KINDS = {
    "rtx": ["--precision", "fp8", "--backend", "rtx", "--target", "sm89", "sm120"],
    "ort, linked": ["--precision", "fp8-weight-only", "--backend", "ort", "--weights", "link"],
}


@dataclass(frozen=True)
class Row:
    """One build."""

    size: str
    layers: str
    kind: str
    seconds: float
    peak_bytes: int
    """Anonymous memory."""
    checkpoint_bytes: int
    bundle_bytes: int
    """Without what the bundle shares with the checkpoint."""
    scratch_bytes: int
    """Most disk in use beyond checkpoint and bundle."""

    def cells(self) -> tuple[str, ...]:
        sizes = (self.peak_bytes, self.checkpoint_bytes, self.bundle_bytes, self.scratch_bytes)
        return (self.size, self.layers, self.kind, f"{self.seconds:.0f} s", *(f"{size / 1e9:.2f} GB" for size in sizes))


HEADER = ("size", "blocks", "build", "time", "peak memory", "checkpoint", "bundle", "scratch")


def measure(size: str, layers: int | None, workdir: Path) -> list[Row]:
    """Make a checkpoint, build both kinds from it, and remove everything."""
    checkpoint, ranges, output = workdir / "checkpoint", workdir / "ranges.json", workdir / "bundle"
    command = [
        sys.executable,
        "-m",
        "scripts.make_checkpoint",
        "--size",
        size,
        "--output",
        checkpoint,
        "--ranges",
        ranges,
        "--quiet",
    ]
    if layers is not None:
        command += ["--layers", str(layers), "--parts", "transformer", "text_encoder", "vae"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, env=environment)
    rows = []
    for kind, options in KINDS.items():
        command = [sys.executable, "-m", "export.build", "--checkpoint", checkpoint, "--output", output, *options]
        calibration = ["--calibration", ranges] if "fp8" in options else []
        with Peak(lambda: shutil.disk_usage(workdir).used) as disk:
            measured = run_measured([*command, *calibration], cwd=ROOT, environment=environment, capture=False)
        if measured.code:
            raise RuntimeError(f"the build of {size} for {kind} failed")
        own = sum(f.stat().st_size for f in output.rglob("*") if f.is_file() and f.stat().st_nlink == 1)
        stored = sum(f.stat().st_size for f in checkpoint.rglob("*") if f.is_file())
        scratch = max(0, disk.grown - own)
        rows.append(Row(size, str(layers or "all"), kind, measured.seconds, measured.peak_bytes, stored, own, scratch))
        shutil.rmtree(output)
    shutil.rmtree(checkpoint)
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text."""
    return aligned([HEADER, *(row.cells() for row in rows)], words=len(HEADER))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.builds", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--size", choices=("full", "wide", "demo"), default="demo", help="of the model (default: %(default)s)")
    add("--layers", type=int, nargs="+", metavar="N", help="numbers of transformer blocks (default: the size's own)")
    add("--workdir", type=Path, help="directory for checkpoint and bundle (default: a temporary one)")
    add("--json", type=Path, metavar="FILE", help="write the rows here")
    args = parser.parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory(dir=args.workdir) as folder:
        for layers in args.layers or [None]:
            rows += measure(args.size, layers, Path(folder))
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
