"""The two sides of the benchmark, our runtime and diffusers' pipeline: their files, and their speed and memory."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import Ideogram4Pipeline
from PIL import Image

from export.build.command import main as build
from runtime.graph import Graph
from runtime.pipeline import Pipeline
from runtime.sampling.schedule import PRESETS
from scripts.bench.measures import Turns
from scripts.root import ROOT
from tests.support.peers import Shape, make_pipeline, save_diffusers

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
COLD_REPEATS = 3


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


def prepare(workdir: Path, shape: Shape) -> tuple[Path, Path, Path]:
    """The checkpoint, and bundles in float32 and int8, in `workdir`, made unless this code has made them before."""
    checkpoint, record = workdir / "checkpoint", workdir / "made-by.txt"
    bundles = {precision: workdir / precision for precision in ("fp32", "int8")}
    packages = ("calibration", "export", "model", "runtime")
    sources = sorted(file for folder in packages for file in (ROOT / folder).rglob("*.py"))
    code = b"".join(file.read_bytes() for file in (*sources, ROOT / "tests" / "support" / "peers.py", Path(__file__)))
    maker = hashlib.sha256(code + repr(shape).encode()).hexdigest()
    if workdir.exists() and any(workdir.iterdir()) and not record.is_file():
        raise FileExistsError(f"{workdir} holds something other than a benchmark's files; choose another --workdir")
    if not record.is_file() or record.read_text() != maker:
        print("making the checkpoint and the bundles (a minute)", file=sys.stderr)
        save_diffusers(make_pipeline(shape), checkpoint)
        for precision, bundle in bundles.items():
            options = ("--checkpoint", checkpoint, "--output", bundle, "--precision", precision, "--no-compare")
            if code := build([*map(str, options), "--overwrite", "--quiet"]):
                raise RuntimeError(f"the build of {bundle} ended with {code}; its message is above")
        record.write_text(maker)
    return checkpoint, bundles["fp32"], bundles["int8"]


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
    turns: Turns, checkpoint: Path, bundle: Path, int8: Path, size: int, threads: int, repeats: int
) -> tuple[int, dict[str, list[float]], list[np.ndarray]]:
    """The prompt's tokens; seconds of all sides in this process and shares outside the engine; all pictures but those
    in int8, which are others."""
    torch.set_num_threads(threads)
    ours, peer = Pipeline.load(bundle, threads=threads), Ideogram4Pipeline.from_pretrained(checkpoint)
    integers = Pipeline.load(int8, threads=threads)
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

    def run_int8() -> tuple[float, float]:
        integers.features.clear()
        made = integers.generate(PROMPT, width=size, height=size, preset=PLAN.preset, seed=SEED)
        return made.seconds, 0.0

    def run_peer(length: int) -> tuple[float, float]:
        started = time.perf_counter()
        image = peer(PROMPT, generator=torch.Generator().manual_seed(SEED), **peer_settings(size, length)).images[0]
        seconds = time.perf_counter() - started
        pictures.append(np.asarray(image))
        return seconds, 0.0

    sides = (run_ours, lambda: run_peer(tokens), run_int8, run_ours, lambda: run_peer(DEFAULT_LENGTH))
    first, short, eight, second, long = turns.take(sides, repeats)
    columns = {"ours": first + second, "int8": eight, "peer": short, "peer_default": long}
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
