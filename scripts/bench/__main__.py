"""Our runtime against diffusers' pipeline: one small checkpoint, one machine, one run.

    python -m scripts.bench --workdir /tmp/bench --json bench.json

Ours is the numpy runtime on ONNX Runtime, the peer `diffusers.Ideogram4Pipeline`; both in float32 on the CPU, with the
same threads, prompt, seed and schedule. The weights are random: the figures say what the runtimes cost on top of and
around the matrix products, which weigh more in a larger model. The sides take turns and their medians are compared.

- warm: seconds for a picture in a process that has made one before. diffusers pads every prompt to
  ``max_sequence_length``; it is measured at the prompt's own length (its best case) and at its default.
- cold start: from the start of a process to the finished PNG, imports and loading included, with all files in the page
  cache. The peer gets the prompt's own length. "without pictures" is the same less the warm picture's time.
- peak memory: the largest resident set of those processes.
- outside engine: the part of a warm picture's time that is not spent in calls of ONNX Runtime sessions.
- installed size: what pip adds to an empty environment (with ``--installed-size``; takes minutes).
- builds (with ``--builds``): see scripts/bench/builds.py.
- same picture: the largest difference of any pixel between the sides, over all runs. It alone makes the command fail.

A run is repeated when other processes used the CPU meanwhile: PyTorch's threads wait for each other by spinning, and
one busy neighbour on two cores slows them tenfold.
"""

import argparse
import hashlib
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

from export.build.command import build
from export.build.options import BuildOptions
from runtime.graph import Graph
from runtime.pipeline import Pipeline
from runtime.sampling.schedule import PRESETS
from scripts.bench import builds
from tests.support.peers import Shape, make_pipeline, save_diffusers

ROOT = Path(__file__).resolve().parents[2]

T = TypeVar("T")

SHAPES = {
    # The demo model's sizes: what a newcomer runs.
    "demo": Shape(
        layers=4,
        heads=2,
        head_dim=64,
        sections=(12, 10, 10),
        intermediate=256,
        adaln=64,
        text_hidden=64,
        text_head_dim=32,
        vae_widths=(16, 32, 32, 32),
        vae_layers=1,
    ),
    # Eight times the arithmetic: here both sides spend their time in the same matrix products.
    "wide": Shape(
        layers=8,
        heads=4,
        head_dim=64,
        sections=(12, 10, 10),
        intermediate=768,
        adaln=64,
        text_hidden=64,
        vae_widths=(32, 64, 64, 64),
        vae_layers=2,
    ),
}
PROMPT = (
    "A large red circle at the top left of a white background, a small blue star at the center, "
    "and a yellow cat holding a sign that says hello world at the bottom right."
)
PLAN, SEED = PRESETS["V4_DEFAULT_20"], 1
DEFAULT_LENGTH = 2048
"""diffusers' default ``max_sequence_length``."""
PEER_PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "pillow")
COLD_REPEATS = 3
BUSY = 0.1
"""CPU cores that other processes may use during a run."""
ATTEMPTS, PATIENCE = 4, 120.0
"""Runs until a disturbed one is kept; seconds to wait for an idle machine before each."""

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
class Figure:
    """One row of the table."""

    name: str
    measured: float
    """Peer / ours, or the value itself where there is no peer."""
    ours: str = ""
    peer: str = ""
    unit: str = "x"
    wanted: float | None = None
    """The project's goal: at least this for a ratio, at most for a value."""

    @property
    def verdict(self) -> str:
        """``met`` or ``missed``; nothing without a goal."""
        if self.wanted is None:
            return ""
        return "met" if (self.measured >= self.wanted if self.peer else self.measured <= self.wanted) else "missed"

    def cells(self) -> tuple[str, ...]:
        wanted = "" if self.wanted is None else f"{'>=' if self.peer else '<='} {self.wanted:g}{self.unit}"
        return self.name, self.ours, self.peer, f"{self.measured:.3g}{self.unit}", wanted, self.verdict


class Turns:
    """Runs the sides in turns on an idle machine, and counts the runs that others disturbed all the same."""

    def __init__(self) -> None:
        self.runs = self.disturbed = 0

    def take(self, sides: Sequence[Callable[[], T]], repeats: int) -> list[list[T]]:
        """The results of each side in `repeats` rounds, after a first round that does not count."""
        rounds = [[side() for side in sides]]
        for number in range(1, repeats + 1):
            print(f"\rround {number} of {repeats} ", end="", file=sys.stderr, flush=True)
            rounds.append([self._undisturbed(side) for side in sides])
        print(file=sys.stderr)
        return [list(results) for results in zip(*rounds[1:], strict=True)]

    def _undisturbed(self, side: Callable[[], T]) -> T:
        self.runs += 1
        for _ in range(ATTEMPTS):
            wait_until_idle()
            started, before = time.perf_counter(), busy_seconds() - sum(os.times()[:4])
            result = side()
            # os.times: user and system seconds of this process and of its finished children.
            if busy_seconds() - sum(os.times()[:4]) - before <= BUSY * (time.perf_counter() - started):
                return result
        self.disturbed += 1
        return result


def busy_seconds() -> float:
    """CPU seconds that the machine has spent working; 0 without Linux' /proc, where nothing counts as disturbed."""
    if not Path("/proc/stat").exists():
        return 0.0
    ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def wait_until_idle() -> None:
    """Wait for other processes, and for this one's threads, which spin for a while after their work."""
    deadline = time.perf_counter() + PATIENCE
    busy = True
    while busy and time.perf_counter() < deadline:
        before = busy_seconds()
        time.sleep(0.5)
        busy = busy_seconds() - before > BUSY * 0.5


def prepare(workdir: Path, shape: Shape) -> tuple[Path, Path]:
    """The checkpoint and the bundle in `workdir`, made unless this code has made them before."""
    checkpoint, bundle, record = workdir / "checkpoint", workdir / "bundle", workdir / "made-by.txt"
    sources = sorted(file for folder in ("export", "model", "runtime") for file in (ROOT / folder).rglob("*.py"))
    code = b"".join(file.read_bytes() for file in (*sources, ROOT / "tests" / "support" / "peers.py", Path(__file__)))
    maker = hashlib.sha256(code + repr(shape).encode()).hexdigest()
    if workdir.exists() and any(workdir.iterdir()) and not record.is_file():
        raise FileExistsError(f"{workdir} holds something else than a benchmark's files; give another directory")
    if not record.is_file() or record.read_text() != maker:
        print("making the checkpoint and the bundle (a minute)", file=sys.stderr)
        save_diffusers(make_pipeline(shape), checkpoint)
        build(BuildOptions(checkpoint=checkpoint, output=bundle, overwrite=True, quiet=True))
        record.write_text(maker)
    return checkpoint, bundle


def peer_settings(size: int, length: int) -> dict[str, Any]:
    """diffusers' names for the settings; `length` is ``max_sequence_length``."""
    return {
        "height": size,
        "width": size,
        "num_inference_steps": len(PLAN.guidance),
        "mu": PLAN.mu,
        "std": PLAN.std,
        "guidance_schedule": list(PLAN.guidance),
        "max_sequence_length": length,
    }


def measure_warm(
    turns: Turns, checkpoint: Path, bundle: Path, size: int, threads: int, repeats: int
) -> tuple[int, dict[str, list[float]], list[np.ndarray]]:
    """The prompt's tokens; seconds of both sides in this process and shares outside the engine; all pictures."""
    torch.set_num_threads(threads)
    ours, peer = Pipeline.load(bundle, threads=threads), Ideogram4Pipeline.from_pretrained(checkpoint)
    peer.set_progress_bar_config(disable=True)
    tokens = ours.prompt.encode(PROMPT).shape[1]
    calls: list[float] = []
    ours.graphs = {name: timed(graph, calls) for name, graph in ours.graphs.items()}
    pictures = []

    def run_ours() -> tuple[float, float]:
        calls.clear()
        ours.features.clear()  # the peer encodes the prompt for each picture
        made = ours.generate(PROMPT, width=size, height=size, preset=PLAN.preset, seed=SEED)
        pictures.append(made.images[0])
        return made.seconds, 1 - sum(calls) / made.seconds

    def run_peer(length: int) -> tuple[float, float]:
        started = time.perf_counter()
        image = peer(PROMPT, generator=torch.Generator().manual_seed(SEED), **peer_settings(size, length)).images[0]
        seconds = time.perf_counter() - started
        pictures.append(np.asarray(image))
        return seconds, 0.0

    sides = (run_ours, lambda: run_peer(tokens), run_ours, lambda: run_peer(DEFAULT_LENGTH))
    first, short, second, long = turns.take(sides, repeats)
    columns = {"ours": first + second, "peer": short, "peer_default": long}
    seconds = {name: [run[0] for run in runs] for name, runs in columns.items()}
    return tokens, seconds | {"outside": [run[1] for run in columns["ours"]]}, pictures


def timed(graph: Graph, calls: list[float]) -> Graph:
    """The graph, noting the seconds of each call in `calls`."""

    def run(**feeds: np.ndarray) -> np.ndarray:
        started = time.perf_counter()
        result = graph(**feeds)
        calls.append(time.perf_counter() - started)
        return result

    return run


def measure_cold(
    turns: Turns, checkpoint: Path, bundle: Path, size: int, threads: int, tokens: int
) -> tuple[dict[str, list[tuple[float, int]]], list[np.ndarray]]:
    """(seconds to the PNG, peak bytes) of fresh processes of both sides, and the last pictures."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = Path(folder, "ours.png"), Path(folder, "peer.png")
        ours = [
            "-m",
            "runtime",
            "--bundle",
            bundle,
            "--prompt",
            PROMPT,
            "--width",
            size,
            "--height",
            size,
            "--preset",
            PLAN.preset,
            "--seed",
            SEED,
            "--threads",
            threads,
            "--output",
            outputs[0],
            "--overwrite",
            "--quiet",
        ]
        settings = json.dumps(peer_settings(size, tokens))
        peer = ["-c", PEER, checkpoint, outputs[1], PROMPT, threads, SEED, settings]
        runs = turns.take((lambda: fresh(outputs[0], ours), lambda: fresh(outputs[1], peer)), COLD_REPEATS)
        return {"ours": runs[0], "peer": runs[1]}, [np.asarray(Image.open(file)) for file in outputs]


def fresh(output: Path, arguments: list[object]) -> tuple[float, int]:
    """Seconds until a new Python process has written `output`, and its peak resident bytes."""
    command = [str(part) for part in (sys.executable, "-c", WRAPPER, output, sys.executable, *arguments)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    if done.returncode:
        raise RuntimeError(f"python {arguments[0]} ... failed:\n{done.stderr}")
    seconds, peak = json.loads(done.stdout)
    return seconds, peak


def measure_installed() -> tuple[int, int]:
    """Bytes that pip adds to an empty environment: our runtime, and the peer in the versions that are measured."""
    with tempfile.TemporaryDirectory() as folder:
        # A copy, because setuptools builds inside the source tree.
        source = shutil.copytree(ROOT, Path(folder, "source"), ignore=shutil.ignore_patterns(".*", "build", "*-bundle"))
        pins = [f"{name}=={version(name).split('+')[0]}" for name in PEER_PACKAGES]
        return added_bytes(Path(folder, "ours"), [f"{source}[ort]"]), added_bytes(Path(folder, "peer"), pins)


def added_bytes(environment: Path, packages: list[str]) -> int:
    """Install `packages` into a new `environment`; the bytes by which that makes it grow."""
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    before = tree_bytes(environment)
    subprocess.run([environment / "bin" / "python", "-m", "pip", "install", "--quiet", *packages], check=True)
    return tree_bytes(environment) - before


def tree_bytes(folder: Path) -> int:
    return sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir())


def compare(
    name: str, ours: Sequence[float], peer: Sequence[float], unit: str, scale: float = 1, goal: float | None = None
) -> Figure:
    """The row for the medians of both sides."""
    a, b = median(ours), median(peer)
    return Figure(name, b / a, f"{a / scale:.3g} {unit}", f"{b / scale:.3g} {unit}", wanted=goal)


def bench(
    workdir: Path, shape: Shape, size: int, threads: int, repeats: int, installed_size: bool
) -> tuple[list[Figure], dict[str, Any]]:
    """Measure everything: the table's rows, the one about the pictures last, and the report for JSON."""
    checkpoint, bundle = prepare(workdir, shape)
    turns = Turns()
    tokens, warm, pictures = measure_warm(turns, checkpoint, bundle, size, threads, repeats)
    cold, cold_pictures = measure_cold(turns, checkpoint, bundle, size, threads, tokens)
    (start_ours, peak_ours), (start_peer, peak_peer) = (zip(*cold[side], strict=True) for side in ("ours", "peer"))
    largest = max(int(np.abs(one.astype(int) - pictures[0]).max()) for one in pictures + cold_pictures)
    rows = [
        compare(f"warm, {tokens} tokens", warm["ours"], warm["peer"], "s", goal=1.5),
        compare(f"warm, padded to {DEFAULT_LENGTH}", warm["ours"], warm["peer_default"], "s", goal=5),
        compare("cold start", start_ours, start_peer, "s", goal=5),
        compare(
            "  without pictures",
            [t - median(warm["ours"]) for t in start_ours],
            [t - median(warm["peer"]) for t in start_peer],
            "s",
        ),
        compare("peak memory", peak_ours, peak_peer, "MB", 1e6),
        Figure("outside engine", 100 * median(warm["outside"]), unit=" %", wanted=3),
    ]
    if installed_size:
        ours, peer = measure_installed()
        rows.append(compare("installed size", [ours], [peer], "MB", 1e6, goal=5))
    # Rounding to bytes can turn the last bits of float32 into one step of 255.
    rows.append(Figure("same picture", largest, unit="/255", wanted=1))
    report = {
        "figures": [asdict(row) | {"verdict": row.verdict} for row in rows],
        "size": size,
        "threads": threads,
        "preset": PLAN.preset,
        "tokens": tokens,
        "shape": asdict(shape),
        "versions": {name: version(name) for name in ("onnxruntime", "numpy", "torch", "diffusers", "transformers")},
        "machine": {"python": platform.python_version(), "platform": platform.platform(), "cores": os.cpu_count()},
        "runs": turns.runs,
        "disturbed": turns.disturbed,
        "warm": warm,
        "cold": cold,
    }
    return rows, report


def table(rows: list[Figure]) -> str:
    """The rows as aligned text."""
    cells = [("figure", "ours", "diffusers", "measured", "wanted", ""), *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code is 1 when the two sides made different pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--repeats", type=int, default=5, help="warm pictures of each side (default: %(default)s)")
    add("--threads", type=int, default=2, help="CPU threads of each side (default: %(default)s)")
    add("--shape", choices=SHAPES, default="demo", help="sizes of the model (default: %(default)s)")
    add("--size", type=int, default=256, help="width and height in pixels (default: %(default)s)")
    add("--workdir", type=Path, help="keep checkpoint and bundle here for the next time (default: temporary)")
    add("--installed-size", action="store_true", help="install both sides into new environments and compare them")
    add("--builds", action="store_true", help="also time and memory of the demo's builds, engines included")
    add("--json", type=Path, metavar="FILE", help="write the report here")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        workdir, shape = args.workdir or Path(folder), SHAPES[args.shape]
        rows, report = bench(workdir, shape, args.size, args.threads, args.repeats, args.installed_size)
    print(table(rows))
    print(f"\n{args.size} x {args.size}, {PLAN.preset}, {args.threads} threads, {args.shape}: {shape}")
    print(f"{report['versions']}\n{report['disturbed']} of {report['runs']} runs were disturbed by other processes")
    if args.builds:
        with tempfile.TemporaryDirectory() as folder:
            rows = builds.measure("demo", None, Path(folder))
        print(f"\n{builds.table(rows)}")
        report["builds"] = [asdict(row) for row in rows]
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return int(rows[-1].verdict == "missed")


if __name__ == "__main__":
    sys.exit(main())
