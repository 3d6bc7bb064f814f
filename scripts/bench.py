"""Our runtime against diffusers' pipeline: one small checkpoint, one machine, one run.

    python scripts/bench.py --workdir /tmp/bench --json bench.json

Ours is the numpy runtime on ONNX Runtime, the peer is `diffusers.Ideogram4Pipeline`; both in float32 on the CPU, with
the same threads, prompt, seed and schedule. The weights are random: the figures say what the runtimes cost, and a
larger model shifts them towards the matrix products. What the rows mean:

- warm: seconds for a picture in a process that has made one before. diffusers pads every prompt to
  ``max_sequence_length``; it is measured at the prompt's own length (its best case) and at its default.
- cold start: from the start of a process to the finished PNG, imports and loading included, with the files in the
  page cache. The peer gets the prompt's own length.
- peak memory: the largest resident set of those processes.
- outside engine: the part of a warm picture's time that is not spent in the calls of ONNX Runtime sessions.
- installed size: what pip adds to an empty environment (with ``--installed-size``; takes minutes).
- same picture: the largest difference of any pixel between the sides, over all runs. It alone makes the command fail.

The sides take turns and their medians are compared. A run is repeated when other processes used the CPU meanwhile:
PyTorch's threads wait for each other by spinning, so that one busy neighbour on a small machine slows them tenfold.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers import Ideogram4Pipeline
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
# The code that is measured is the one beside this file, installed or not; the peers' classes live with the tests.
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from peers import Shape, make_pipeline, save_diffusers  # noqa: E402

from export.build import build  # noqa: E402
from runtime.backend import Graph  # noqa: E402
from runtime.pipeline import Pipeline  # noqa: E402
from runtime.schedule import PRESETS  # noqa: E402

T = TypeVar("T")

SHAPE = Shape(
    layers=8, heads=4, head_dim=64, sections=(12, 10, 10), intermediate=768, adaln=64, text_hidden=64,
    vae_widths=(32, 64, 64, 64), vae_layers=2,
)  # fmt: skip
PROMPT = (
    "A large red circle at the top left of a white background, a small blue star at the center, "
    "and a yellow cat holding a sign that says hello world at the bottom right."
)
DEFAULT_LENGTH = 2048
"""diffusers' default ``max_sequence_length``."""
PEER_PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "pillow")
COLD_REPEATS = 3
LARGEST_DIFFERENCE = 1
"""Of two pixels, in 255ths: what rounding to bytes can make of the last bits of float32."""
BUSY, ATTEMPTS, PATIENCE = 0.1, 4, 120.0
"""CPU cores that others may use during a run; runs until a disturbed one is kept; seconds to wait for an idle machine."""

# A process between this one and the measured one: Linux hands the resident set of whoever starts a process down to its
# ru_maxrss, and this process is larger than those that it measures.
WRAPPER = """
import json, os, resource, subprocess, sys, time
start = time.time()
done = subprocess.run(sys.argv[2:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
if done.returncode:
    sys.exit(done.stderr)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
print(json.dumps([os.stat(sys.argv[1]).st_mtime - start, peak]))
"""
PEER = """
import json, sys
import torch
from diffusers import Ideogram4Pipeline
directory, output, prompt, threads, seed, settings = sys.argv[1:]
torch.set_num_threads(int(threads))
pipeline = Ideogram4Pipeline.from_pretrained(directory)
pipeline(prompt, generator=torch.Generator().manual_seed(int(seed)), **json.loads(settings)).images[0].save(output)
"""


@dataclass(frozen=True)
class Job:
    """The picture that both sides make."""

    prompt: str
    size: int
    """Width and height in pixels."""
    preset: str
    seed: int
    threads: int

    def for_peer(self, length: int) -> dict[str, Any]:
        """diffusers' names for the settings; `length` is ``max_sequence_length``."""
        plan = PRESETS[self.preset]
        return {
            "height": self.size, "width": self.size, "num_inference_steps": len(plan.guidance), "mu": plan.mu,
            "std": plan.std, "guidance_schedule": list(plan.guidance), "max_sequence_length": length,
        }  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """One row of the table."""

    name: str
    ours: str
    peer: str
    measured: float
    """Peer / ours, or the value itself where there is no peer."""
    unit: str = "x"
    wanted: float | None = None
    at_least: bool = True

    @property
    def verdict(self) -> str:
        """``met`` or ``missed``; nothing where the project has no goal."""
        if self.wanted is None:
            return ""
        return "met" if (self.measured >= self.wanted if self.at_least else self.measured <= self.wanted) else "missed"

    def cells(self) -> tuple[str, ...]:
        goal = "" if self.wanted is None else f"{'>=' if self.at_least else '<='} {self.wanted:g}{self.unit}"
        return self.name, self.ours, self.peer, f"{self.measured:.3g}{self.unit}", goal, self.verdict


class Turns:
    """Runs the sides in turns on an idle machine, and counts the runs that others disturbed all the same."""

    def __init__(self) -> None:
        self.runs = self.disturbed = 0

    def take(self, sides: Sequence[Callable[[], T]], repeats: int) -> list[list[T]]:
        """The results of each side in `repeats` rounds, after a first round that does not count."""
        rounds = []
        for number in range(repeats + 1):
            print(f"\rround {number} of {repeats} ", end="", file=sys.stderr, flush=True)
            rounds.append([self._undisturbed(side) if number else side() for side in sides])
        print(file=sys.stderr)
        return [list(results) for results in zip(*rounds[1:], strict=True)]

    def _undisturbed(self, side: Callable[[], T]) -> T:
        for _ in range(ATTEMPTS):
            wait_until_idle()
            started, before = time.perf_counter(), others_seconds()
            result = side()
            if others_seconds() - before <= BUSY * (time.perf_counter() - started):
                break
        else:
            self.disturbed += 1
        self.runs += 1
        return result


def busy_seconds() -> float:
    """CPU seconds that the machine has spent working; 0 without Linux' /proc, where nothing counts as disturbed."""
    if not Path("/proc/stat").exists():
        return 0.0
    ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def others_seconds() -> float:
    """CPU seconds of all processes but this one and its finished children, up to a constant."""
    return busy_seconds() - sum(os.times()[:4])


def wait_until_idle() -> None:
    """Wait for other processes, and for this one's threads, which spin for a while after their work."""
    deadline = time.perf_counter() + PATIENCE
    while time.perf_counter() < deadline:
        before = busy_seconds()
        time.sleep(0.5)
        if busy_seconds() - before <= BUSY * 0.5:
            return


def prepare(workdir: Path) -> tuple[Path, Path]:
    """The checkpoint and the bundle in `workdir`, which are made unless they are there."""
    checkpoint, bundle, record = workdir / "checkpoint", workdir / "bundle", workdir / "shape.json"
    shape = json.dumps(asdict(SHAPE))
    if record.is_file() and record.read_text() == shape:
        print(f"reusing {bundle}; remove {workdir} after a change to export/ or model/", file=sys.stderr)
        return checkpoint, bundle
    if workdir.exists() and any(workdir.iterdir()):
        raise FileExistsError(f"{workdir} holds something else than a benchmark of this shape; remove it first")
    print("making the checkpoint and the bundle (a minute)", file=sys.stderr)
    save_diffusers(make_pipeline(SHAPE), checkpoint)
    build(checkpoint, bundle, "fp32", "ort", quiet=True)
    record.write_text(shape)
    return checkpoint, bundle


def measure_warm(turns: Turns, job: Job, checkpoint: Path, bundle: Path, repeats: int) -> dict[str, Any]:
    """Seconds of both sides in this process, the shares outside the engine, and all pictures."""
    torch.set_num_threads(job.threads)
    ours, peer = Pipeline.load(bundle, threads=job.threads), Ideogram4Pipeline.from_pretrained(checkpoint)
    peer.set_progress_bar_config(disable=True)
    tokens = ours.prompt.encode(job.prompt).shape[1]
    calls: list[float] = []
    ours.graphs = {name: timed(graph, calls) for name, graph in ours.graphs.items()}
    outside, pictures = [], []

    def run_ours() -> float:
        calls.clear()
        made = ours.generate(job.prompt, width=job.size, height=job.size, preset=job.preset, seed=job.seed)
        outside.append(1 - sum(calls) / made.seconds)
        pictures.append(made.images[0])
        return made.seconds

    def run_peer(length: int) -> float:
        started = time.perf_counter()
        image = peer(job.prompt, generator=torch.Generator().manual_seed(job.seed), **job.for_peer(length)).images[0]
        seconds = time.perf_counter() - started
        pictures.append(np.asarray(image))
        return seconds

    sides = (run_ours, lambda: run_peer(tokens), run_ours, lambda: run_peer(DEFAULT_LENGTH))
    first, short, second, long = turns.take(sides, repeats)
    return {"tokens": tokens, "ours": first + second, "peer": short, "peer_default": long, "outside": outside,
            "pictures": pictures}  # fmt: skip


def timed(graph: Graph, calls: list[float]) -> Graph:
    """The graph, noting the seconds of each call in `calls`."""

    def run(**feeds: np.ndarray) -> np.ndarray:
        started = time.perf_counter()
        result = graph(**feeds)
        calls.append(time.perf_counter() - started)
        return result

    return run


def measure_cold(turns: Turns, job: Job, checkpoint: Path, bundle: Path, tokens: int) -> dict[str, Any]:
    """(seconds to the PNG, peak bytes) of fresh processes of both sides, and the last pictures."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = Path(folder, "ours.png"), Path(folder, "peer.png")
        ours = [
            "-m", "runtime", "--bundle", bundle, "--prompt", job.prompt, "--width", job.size, "--height", job.size,
            "--preset", job.preset, "--seed", job.seed, "--threads", job.threads, "--output", outputs[0], "--overwrite", "--quiet",
        ]  # fmt: skip
        settings = json.dumps(job.for_peer(tokens))
        peer = ["-c", PEER, checkpoint, outputs[1], job.prompt, job.threads, job.seed, settings]
        sides = (lambda: fresh(outputs[0], ours), lambda: fresh(outputs[1], peer))
        runs = turns.take(sides, COLD_REPEATS)
        return {"ours": runs[0], "peer": runs[1], "pictures": [np.asarray(Image.open(file)) for file in outputs]}


def fresh(output: Path, arguments: list[object]) -> tuple[float, int]:
    """Seconds until a new Python process has written `output`, and its peak resident bytes."""
    command = [sys.executable, "-c", WRAPPER, output, sys.executable, *arguments]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=ROOT, env=environment)
    if done.returncode:
        raise RuntimeError(f"python {arguments[0]} ... failed:\n{done.stderr}")
    seconds, peak = json.loads(done.stdout)
    return seconds, peak


def measure_installed() -> dict[str, int]:
    """Bytes that pip adds to an empty environment for our runtime, and for the peer in the measured versions."""
    with tempfile.TemporaryDirectory() as folder:
        # A copy, because setuptools builds inside the source tree.
        source = shutil.copytree(ROOT, Path(folder, "source"), ignore=shutil.ignore_patterns(".*", "build", "*-bundle"))
        pins = [f"{name}=={version(name).split('+')[0]}" for name in PEER_PACKAGES]
        return {
            "ours": added_bytes(Path(folder, "ours"), [f"{source}[ort]"]),
            "peer": added_bytes(Path(folder, "peer"), pins),
        }


def added_bytes(environment: Path, packages: list[str]) -> int:
    """Install `packages` into a new `environment`; the bytes by which it grows."""
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    before = tree_bytes(environment)
    subprocess.run([environment / "bin" / "python", "-m", "pip", "install", "--quiet", *packages], check=True)
    return tree_bytes(environment) - before


def tree_bytes(folder: Path) -> int:
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())


def difference(pictures: list[np.ndarray]) -> int:
    """Largest difference of any pixel from the first picture."""
    return max(int(np.abs(picture.astype(int) - pictures[0]).max()) for picture in pictures)


def figures(warm: dict[str, Any], cold: dict[str, Any], installed: dict[str, int] | None) -> list[Figure]:
    """The rows of the table."""

    def ratio(name: str, ours: list[float], peer: list[float], form: str, scale: float, wanted: float | None) -> Figure:
        a, b = median(ours), median(peer)
        return Figure(name, form.format(a / scale), form.format(b / scale), b / a, wanted=wanted)

    cold_ours, cold_peer = (list(zip(*cold[side], strict=True)) for side in ("ours", "peer"))
    rows = [
        ratio(f"warm, {warm['tokens']} tokens", warm["ours"], warm["peer"], "{:.3f} s", 1, 1.5),
        ratio(f"warm, padded to {DEFAULT_LENGTH}", warm["ours"], warm["peer_default"], "{:.3f} s", 1, 5),
        ratio("cold start", cold_ours[0], cold_peer[0], "{:.2f} s", 1, 5),
        ratio("peak memory", cold_ours[1], cold_peer[1], "{:.0f} MB", 1e6, None),
        Figure("outside engine", "", "", 100 * median(warm["outside"]), " %", 3, at_least=False),
    ]
    if installed:
        rows.append(ratio("installed size", [installed["ours"]], [installed["peer"]], "{:.0f} MB", 1e6, 5))
    largest = difference(warm["pictures"] + cold["pictures"])
    return [*rows, Figure("same picture", "", "", largest, "/255", LARGEST_DIFFERENCE, at_least=False)]


def table(rows: list[Figure]) -> str:
    """The rows as aligned text."""
    cells = [("figure", "ours", "diffusers", "measured", "wanted", ""), *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)


def bench(job: Job, workdir: Path, repeats: int, installed_size: bool) -> tuple[dict[str, Any], list[Figure]]:
    """Measure everything: the report for JSON, and the table's rows."""
    checkpoint, bundle = prepare(workdir)
    turns = Turns()
    warm = measure_warm(turns, job, checkpoint, bundle, repeats)
    cold = measure_cold(turns, job, checkpoint, bundle, warm["tokens"])
    installed = measure_installed() if installed_size else None
    rows = figures(warm, cold, installed)
    packages = ("onnxruntime", "numpy", "torch", "diffusers", "transformers")
    report = {
        "figures": [asdict(row) | {"verdict": row.verdict} for row in rows],
        "job": asdict(job), "shape": asdict(SHAPE), "tokens": warm["tokens"],
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "machine": {"platform": platform.platform(), "cores": os.cpu_count()},
        "runs": turns.runs, "disturbed": turns.disturbed, "installed_bytes": installed,
        "warm": {key: warm[key] for key in ("ours", "peer", "peer_default", "outside")},
        "cold": {key: cold[key] for key in ("ours", "peer")},
    }  # fmt: skip
    return report, rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code is 1 when the two sides made different pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog="rows:" + __doc__.split("rows mean:")[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--repeats", type=int, default=5, help="warm pictures of each side (default: %(default)s)")
    add("--threads", type=int, default=2, help="CPU threads of each side (default: %(default)s)")
    add("--size", type=int, default=256, help="width and height in pixels (default: %(default)s)")
    add("--preset", choices=PRESETS, default="V4_DEFAULT_20", help="(default: %(default)s)")
    add("--seed", type=int, default=1, help="(default: %(default)s)")
    add("--prompt", default=PROMPT, help="(default: a sentence of about 60 tokens)")
    add("--workdir", type=Path, help="keep checkpoint and bundle here and use them again (default: temporary)")
    add("--installed-size", action="store_true", help="install both sides into new environments and compare them")
    add("--json", type=Path, metavar="FILE", help="write the report here")
    args = parser.parse_args(argv)
    job = Job(args.prompt, args.size, args.preset, args.seed, args.threads)
    with tempfile.TemporaryDirectory() as folder:
        report, rows = bench(job, args.workdir or Path(folder), args.repeats, args.installed_size)
    print(table(rows))
    print(f"\n{job.size} x {job.size}, {job.preset}, {job.threads} threads; {SHAPE}")
    print(f"{report['versions']}; {report['disturbed']} of {report['runs']} runs were disturbed by other processes")
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return int(rows[-1].verdict == "missed")


if __name__ == "__main__":
    sys.exit(main())
