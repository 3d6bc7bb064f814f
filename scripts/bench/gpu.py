"""Our runtime against diffusers' pipeline on one GPU: one command, one table.

    python -m scripts.bench.gpu --bundle BUNDLE --checkpoint CHECKPOINT --json bench_gpu.json
    python -m scripts.bench.gpu --workdir /tmp/bench_gpu                      # without any weights: makes random ones
    python -m scripts.bench.gpu --workdir /tmp/bench_gpu --steps 4 --model wide

Ours is the bundle with what `trt-generate` would choose for it (``--backend`` and ``--memory`` choose otherwise), the
peer `diffusers.Ideogram4Pipeline` in bfloat16 on the same card with the checkpoint, which must be in diffusers'
layout; what does not fit is offloaded with diffusers' own means. Both get the same prompt, seed and schedules; the
peer's prompts are padded to the prompt's own length, its best case. Each side runs in a process of its own.

With ``--workdir`` instead, a checkpoint of the full size with random weights and a bundle are made there once: engines
for this card if TensorRT-RTX or TensorRT is installed and supports it, else float16 graphs for ONNX Runtime on CUDA.
The full size takes 60 GB of disk, and the engines of a build take what `python -m export.build` says.

- a call: median milliseconds of one call of a stage, copies to and from the GPU included.
- a picture: median seconds from the prompt to the pixels in a process that has made pictures of this size before.
- peak device memory: highest use seen (looked at every 20 ms) over what was in use before the side loaded anything.
- PSNR: of the two sides' last picture. It says that they made the same picture, as far as their precisions let them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from runtime.atomic_files import check_outputs, write_whole
from runtime.backend.choice import ENGINE_BACKENDS
from runtime.backend.machine import Machine, device_index, look
from runtime.bundle.manifest import read_manifest
from runtime.cli.backend_options import add_backend_options
from runtime.console import guard
from runtime.sampling.schedule import DEFAULT_MU, DEFAULT_STD, PRESETS, sampling
from scripts.bench.gpu_results import Measured, Run, table
from scripts.bench.gpu_sides import Task, check_diffusers
from scripts.root import ROOT

PROGRAM = "scripts.bench.gpu"
PROMPT = (
    "A large red circle at the top left of a white background, a small blue star at the center, "
    "and a yellow cat holding a sign that says hello world at the bottom right."
)
SEED = 1


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {PROGRAM}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--bundle", type=Path, metavar="DIR", help="bundle to measure")
    source.add_argument("--workdir", type=Path, metavar="DIR", help="make a checkpoint and a bundle here, or use them")
    add("--checkpoint", type=Path, metavar="DIR", help="diffusers' checkpoint; without it only --bundle is measured")
    add("--model", choices=("full", "wide", "demo"), default="full", help="size with --workdir (default: %(default)s)")
    add("--size", type=int, metavar="PX", help="width and height (default: the bundle's default size)")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument(
        "--presets",
        nargs="+",
        choices=PRESETS,
        default=list(PRESETS),
        metavar="NAME",
        help="presets to measure (default: all)",
    )
    kinds.add_argument("--steps", type=int, metavar="N", help="measure this many steps instead of presets")
    add(
        "--warmups",
        type=int,
        default=2,
        metavar="N",
        help="pictures before those that count: kernels get compiled in them (default: %(default)s)",
    )
    add("--repeats", type=int, default=3, metavar="N", help="pictures that count, of each kind (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write every figure here")
    add_backend_options(parser)
    return parser


def bench(args: argparse.Namespace) -> None:
    """Measure and print; everything that can be known to be wrong is found before a minute is spent."""
    index = check_options(args)
    runs = choose_runs(args.presets, args.steps)
    machine = look(index, ENGINE_BACKENDS)
    if machine.gpu is None:
        raise RuntimeError(machine.no_gpu)
    bundle, checkpoint = args.bundle, args.checkpoint
    if args.workdir or checkpoint:
        check_diffusers(checkpoint)
    if args.workdir:
        bundle, checkpoint = prepare(args.workdir, args.model, machine)
    size = args.size or read_manifest(bundle).sizes.default
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder, "ours.png"), Path(folder, "diffusers.png")
        task = Task(
            source=str(bundle.absolute()),
            prompt=PROMPT,
            size=size,
            runs=runs,
            warmups=args.warmups,
            repeats=args.repeats,
            seed=SEED,
            device=f"cuda:{index}",
            output=str(pictures[0]),
            backend=args.backend,
            memory=args.memory,
        )
        ours, peer, likeness = run_side("ours", task), None, None
        if checkpoint:
            output = str(pictures[1])
            theirs = replace(task, source=str(checkpoint.absolute()), output=output, tokens=ours.tokens)
            peer = run_side("diffusers", theirs)
            likeness = compare(*pictures)
    print(f"{machine.gpu.name} ({machine.gpu.capability}), {size} x {size}, {ours.tokens} text tokens\n")
    print(table(ours, peer, likeness))
    if args.json:
        write_report(args.json, machine, task, ours, peer, likeness)


def check_options(args: argparse.Namespace) -> int:
    """The index of the CUDA device.

    Raises:
        ValueError: an option asks for something that cannot be measured.
        OSError: the report cannot be written.
    """
    if args.threads is not None:
        raise ValueError("--threads is for graphs on a CPU, and this measures GPUs")
    for name in ("warmups", "repeats"):
        if getattr(args, name) < (wanted := int(name == "repeats")):
            raise ValueError(f"--{name} is {getattr(args, name)}, wanted {wanted} or more")
    if (index := device_index(args.device)) is None:
        raise ValueError("device is 'cpu', and this measures GPUs: wanted auto, cuda or cuda:N")
    if args.json:
        check_outputs([args.json], overwrite=True)
    return index


def write_report(
    file: Path, machine: Machine, task: Task, ours: Measured, peer: Measured | None, likeness: float | None
) -> None:
    """Every figure as JSON."""
    report = {
        "gpu": asdict(machine.gpu),
        "task": asdict(task),
        "ours": asdict(ours),
        "psnr": likeness,
        "diffusers": asdict(peer) if peer else None,
        "versions": dict(machine.versions),
    }
    write_whole(file, json.dumps(report, indent=1).encode() + b"\n")


def choose_runs(presets: Sequence[str], steps: int | None) -> tuple[Run, ...]:
    """The presets, or one run of so many steps."""
    if steps is not None:
        return (Run(f"{steps} steps", sampling(None, steps, None, None, None).guidance, DEFAULT_MU, DEFAULT_STD),)
    return tuple(Run(name, PRESETS[name].guidance, PRESETS[name].mu, PRESETS[name].std) for name in presets)


def prepare(workdir: Path, model: str, machine: Machine) -> tuple[Path, Path]:
    """The bundle and the checkpoint in `workdir`, made unless they are there; both are complete or absent."""
    workdir.mkdir(parents=True, exist_ok=True)
    checkpoint, bundle = workdir / f"{model}-checkpoint", workdir / f"{model}-bundle"
    if not checkpoint.exists():
        layout = ("--size", model, "--layout", "diffusers", "--dtype", "bf16")
        run(["-m", "scripts.make_checkpoint", *layout, "--output", str(checkpoint.absolute())])
    if not bundle.exists():
        files = ("--checkpoint", str(checkpoint.absolute()), "--output", str(bundle.absolute()))
        run(["-m", "export.build", *files, *build_options(machine)])
    return bundle, checkpoint


def build_options(machine: Machine) -> list[str]:
    """Options of ``export.build`` for the fastest bundle of a bfloat16 checkpoint that this machine runs."""
    from export.engine.targets import TARGETS

    versions, gpu = dict(machine.versions), machine.gpu
    assert gpu is not None, "looked at before"
    if "rtx" in versions and gpu.capability in TARGETS:
        precision = "bf16" if "bfloat16" in TARGETS[gpu.capability].types else "fp16"
        return ["--precision", precision, "--backend", "rtx", "--target", gpu.capability]
    if "tensorrt" in versions:
        return ["--precision", "bf16", "--backend", "tensorrt"]
    return ["--precision", "fp16", "--backend", "ort"]


def run(arguments: list[str]) -> None:
    """A Python process in the project's directory, its messages passed on; RuntimeError if it fails."""
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, stdout=sys.stderr)
    if done.returncode:
        raise RuntimeError(f"python {' '.join(arguments)} failed")


def run_side(side: str, task: Task) -> Measured:
    """One side in its own process, its messages passed on."""
    command = [sys.executable, "-m", "scripts.bench.gpu_sides", side, json.dumps(asdict(task))]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"measuring {side} failed; its message is above")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def compare(first: Path, second: Path) -> float:
    """PSNR of two PNG files in dB."""
    import numpy as np
    from PIL import Image

    from export.verify.quality import psnr

    return psnr(*(np.asarray(Image.open(file).convert("RGB")) for file in (first, second)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = build_parser().parse_args(argv)
    return guard(PROGRAM, lambda: bench(args))


if __name__ == "__main__":
    sys.exit(main())
