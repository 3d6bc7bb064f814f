"""Our runtime against diffusers' pipeline: one small checkpoint, one machine, one run.

    python scripts/bench.py --workdir /tmp/bench --json bench.json

Ours is the numpy runtime on ONNX Runtime, the peer is `diffusers.Ideogram4Pipeline`; both in float32 on the CPU, with
the same number of threads and the same prompt, seed and schedule. The weights are random, so the figures say what the
runtimes cost and nothing about pictures. All but the pictures is timing and never makes the command fail:

- warm: seconds for a picture in a process that has made one before. diffusers pads every prompt to
  ``max_sequence_length``; it is measured at the prompt's own length (its best case) and at its default.
- cold start: from the start of a process to the finished PNG, imports and loading included. The files are in the page
  cache. The peer gets the prompt's own length.
- peak memory: the largest resident set of those processes.
- outside the engine: the part of a warm picture's time that is not spent in the calls of ONNX Runtime sessions.
- installed size: what pip adds to an empty environment (``--installed-size``; minutes).
- same picture: the largest difference between the two sides' pixels, over all runs. More than 1 is an error.

The sides take turns, medians are compared, and a run is repeated when other processes used the CPU meanwhile: PyTorch's
threads wait for each other by spinning, and one more busy process makes it ten times slower, ONNX Runtime only twice.
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
from collections.abc import Callable
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

BUSY = 0.1
"""CPU cores that others may use before a run counts as disturbed."""
ATTEMPTS, PATIENCE = 4, 120.0
"""Runs until a disturbed one is kept, and seconds to wait for an idle machine before each."""

# A process of its own between this one and the measured one: Linux hands the resident set of whoever starts a process
# down to its ru_maxrss, and this one is larger than what it measures. The time ends when the PNG was last written.
WRAPPER = """
import json, os, resource, subprocess, sys, time
start = time.time()
done = subprocess.run(sys.argv[2:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
if done.returncode:
    sys.exit(done.stderr)
kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps([os.stat(sys.argv[1]).st_mtime - start, kib * 1024]))
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
    ours: str
    peer: str
    measured: float
    """Peer / ours, or the value itself where there is no peer."""
    unit: str = "x"
    wanted: float | None = None
    at_least: bool = True

    @property
    def verdict(self) -> str:
        """``met``, ``missed``, or nothing where the project has no goal."""
        if self.wanted is None:
            return ""
        return "met" if (self.measured >= self.wanted if self.at_least else self.measured <= self.wanted) else "missed"

    def row(self) -> tuple[str, ...]:
        """The cells of the table."""
        goal = "" if self.wanted is None else f"{'>=' if self.at_least else '<='} {self.wanted:g}{self.unit}"
        return self.name, self.ours, self.peer, f"{self.measured:.3g}{self.unit}", goal, self.verdict


class Turns:
    """Runs things in turns on an idle machine, and counts the runs that others disturbed all the same."""

    def __init__(self) -> None:
        self.runs = self.disturbed = 0

    def take(self, sides: dict[str, Callable[[], T]], repeats: int) -> dict[str, list[T]]:
        """The results of `repeats` rounds for each side, after one round that is thrown away."""
        results: dict[str, list[T]] = {name: [] for name in sides}
        for turn in range(repeats + 1):
            for name, run in sides.items():
                print(f"\rturn {turn}/{repeats}: {name:30}", end="\r", file=sys.stderr, flush=True)
                result = self._undisturbed(run) if turn else run()
                if turn:
                    results[name].append(result)
        return results

    def _undisturbed(self, run: Callable[[], T]) -> T:
        for _ in range(ATTEMPTS):
            wait_until_idle()
            started, busy, own = time.perf_counter(), busy_seconds(), sum(os.times()[:4])
            result = run()
            others = busy_seconds() - busy - (sum(os.times()[:4]) - own)
            if disturbed := others > BUSY * (time.perf_counter() - started):
                continue
            break
        self.runs += 1
        self.disturbed += disturbed
        return result


def busy_seconds() -> float:
    """CPU seconds that the machine has spent on anything; 0 where there is no /proc, so nothing counts as disturbed."""
    if not Path("/proc/stat").exists():
        return 0.0
    ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def wait_until_idle() -> None:
    """Wait for other processes, and for the threads of the other side, which spin a while after their work."""
    deadline = time.perf_counter() + PATIENCE
    while time.perf_counter() < deadline:
        busy = busy_seconds()
        time.sleep(0.5)
        if busy_seconds() - busy < BUSY * 0.5:
            return


def prepare(workdir: Path) -> tuple[Path, Path]:
    """The checkpoint and the bundle in `workdir`, made if it does not hold them yet for the same shape."""
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


def measure_warm(turns: Turns, args: argparse.Namespace, checkpoint: Path, bundle: Path, work: Path) -> dict[str, Any]:
    """Seconds of both sides in this process, the share outside the engine, and the pictures' largest difference."""
    torch.set_num_threads(args.threads)
    ours = Pipeline.load(bundle, threads=args.threads)
    peer = Ideogram4Pipeline.from_pretrained(checkpoint)
    peer.set_progress_bar_config(disable=True)
    tokens = ours.prompt.encode(args.prompt).shape[1]
    engine = [0.0]
    ours.graphs = {name: timed(graph, engine) for name, graph in ours.graphs.items()}
    pictures = []

    def run_ours() -> tuple[float, float]:
        engine[0] = 0.0
        made = ours.generate(args.prompt, width=args.size, height=args.size, preset=args.preset, seed=args.seed)
        pictures.append(made.images[0])
        return made.seconds, 1 - engine[0] / made.seconds

    def run_peer(length: int) -> tuple[float, float]:
        started = time.perf_counter()
        generator = torch.Generator().manual_seed(args.seed)
        image = peer(args.prompt, generator=generator, **peer_settings(args, length)).images[0]
        seconds = time.perf_counter() - started
        pictures.append(np.asarray(image))
        return seconds, 0.0

    sides = {
        "ours": run_ours,
        f"diffusers, {tokens} tokens": lambda: run_peer(tokens),
        "ours again": run_ours,
        f"diffusers, {DEFAULT_LENGTH} tokens": lambda: run_peer(DEFAULT_LENGTH),
    }
    own, short, again, long = turns.take(sides, args.repeats).values()
    seconds = {name: [s for s, _ in runs] for name, runs in (("ours", own + again), ("peer", short), ("default", long))}
    return {"tokens": tokens, "outside": [share for _, share in own + again], "pictures": pictures, **seconds}


def timed(graph: Graph, total: list[float]) -> Graph:
    """The graph, adding the seconds of its calls to ``total[0]``."""

    def run(**feeds: np.ndarray) -> np.ndarray:
        started = time.perf_counter()
        result = graph(**feeds)
        total[0] += time.perf_counter() - started
        return result

    return run


def peer_settings(args: argparse.Namespace, length: int) -> dict[str, Any]:
    """diffusers' arguments for our settings."""
    plan = PRESETS[args.preset]
    return {
        "height": args.size, "width": args.size, "num_inference_steps": len(plan.guidance), "mu": plan.mu,
        "std": plan.std, "guidance_schedule": list(plan.guidance), "max_sequence_length": length,
    }  # fmt: skip


def measure_cold(turns: Turns, args: argparse.Namespace, checkpoint: Path, bundle: Path, tokens: int) -> dict[str, Any]:
    """Seconds to the PNG and peak bytes of fresh processes of both sides, and their pictures."""
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, "ours.png"), Path(folder, "peer.png")
        common = map(str, (args.threads, args.seed))
        ours = [
            sys.executable, "-m", "runtime", "--bundle", bundle, "--prompt", args.prompt, "--width", args.size, "--height",
            args.size, "--preset", args.preset, "--seed", args.seed, "--threads", args.threads, "--output", files[0],
            "--overwrite", "--quiet",
        ]  # fmt: skip
        peer = [sys.executable, "-c", PEER, checkpoint, files[1], args.prompt, *common,
                json.dumps(peer_settings(args, tokens))]  # fmt: skip
        sides = {"ours, cold": lambda: fresh(files[0], ours), "diffusers, cold": lambda: fresh(files[1], peer)}
        runs = turns.take(sides, args.cold_repeats)
        pictures = [np.asarray(Image.open(file)) for file in files]
    ours, peer = runs.values()
    return {"pictures": pictures, "ours": ours, "peer": peer}


def fresh(output: Path, command: list[object]) -> tuple[float, int]:
    """Seconds until `output` was written by the command, and the command's peak resident bytes."""
    wrapped = [sys.executable, "-c", WRAPPER, output, *command]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(list(map(str, wrapped)), capture_output=True, text=True, cwd=ROOT, env=environment)
    if done.returncode:
        raise RuntimeError(f"{command[1:3]} failed:\n{done.stderr}")
    seconds, peak = json.loads(done.stdout)
    return seconds, peak
