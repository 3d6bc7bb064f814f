"""What Triton adds to a picture: the real server against the same pipeline in this process, in one run.

    python -m scripts.bench.triton ideogram4-bundle --json triton.json

The environment is the one of `scripts/triton/server.py` (extras ``ort`` and ``triton``). The three sides, a
`runtime.Pipeline` here, binary HTTP and gRPC, take turns, one picture each in every round, with the same threads,
prompt, seed and schedule; their medians are compared. All clients keep their connection. Further:

- ready: from the start of the server's process to readiness, bundle verified, warm-up included, one model. The files
  are in the page cache.
- memory: resident set of a model's process and of the server itself, after the pictures.
- load: the machine's load average before the run. Anything much above 0 spoils the figures.

The command fails when two sides made different pictures.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from export.triton.__main__ import generate
from export.triton.config import ModelConfig
from runtime import Pipeline
from runtime.console import guard
from runtime.sampling.schedule import PRESETS
from scripts.triton.client import infer_inputs, triton
from scripts.triton.server import Server, model_processes, serve

PROMPT, SEED = "a red circle on a blue background", 4
ALLOWED_SHARE, ALLOWED_SECONDS = 0.05, 0.015
"""The goal: the larger of these over the pipeline's own time."""
READY_SECONDS = 2.0


@dataclass(frozen=True)
class Figures:
    """What was measured; seconds and bytes."""

    in_process: float
    http: float
    grpc: float
    ready: float
    model_memory: int
    server_memory: int
    load: float
    same: bool
    """Whether all pictures are equal in every byte."""

    def rows(self) -> list[tuple[str, str, str]]:
        """Name, value and verdict of each figure."""
        allowed = max(ALLOWED_SHARE * self.in_process, ALLOWED_SECONDS)
        rows = [("in process", f"{1e3 * self.in_process:.1f} ms", "")]
        for name, seconds in (("HTTP", self.http), ("gRPC", self.grpc)):
            added = seconds - self.in_process
            text = f"{1e3 * seconds:.1f} ms, {1e3 * added:+.1f} ms ({100 * added / self.in_process:+.1f} %)"
            rows.append((name, text, f"{verdict(added <= allowed)}: at most {1e3 * allowed:.0f} ms more"))
        rows.append(("ready", f"{self.ready:.2f} s", f"{verdict(self.ready <= READY_SECONDS)}: at most 2 s"))
        rows.append(("memory of an instance", f"{self.model_memory / 1e6:.0f} MB", ""))
        rows.append(("memory of the server", f"{self.server_memory / 1e6:.0f} MB", ""))
        rows.append(("same pictures", "yes" if self.same else "NO", ""))
        rows.append(("load before", f"{self.load:.2f}", ""))
        return rows


def verdict(met: bool) -> str:
    return "met" if met else "missed"


def bench(bundle: Path, preset: str, size: int | None, threads: int, rounds: int, starts: int) -> Figures:
    """Measure everything."""
    load = os.getloadavg()[0]
    settings = {"preset": preset, "seed": SEED} | ({"width": size, "height": size} if size else {})
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        repository = Path(folder, "repository")
        generate(bundle, repository, ModelConfig(threads=threads), quiet=True)
        ready = []
        for _ in range(starts):
            with serve(repository) as server:
                ready.append(server.ready_seconds)
        with serve(repository) as server:
            pipeline = Pipeline.load(bundle, threads=threads)
            sides = [lambda: pipeline.generate(PROMPT, **settings).images]
            sides += [asker(server, protocol, settings) for protocol in ("http", "grpc")]
            seconds, same = take_turns(sides, rounds)
            [model] = model_processes(server)
            memory = resident(model), resident(server.process.pid)
    return Figures(*map(median, seconds), median(ready), *memory, load, same)


def asker(server: Server, protocol: str, settings: dict[str, Any]) -> Callable[[], np.ndarray]:
    """A function that asks for the picture over one connection."""
    client = triton(protocol)[0]
    connection = client.InferenceServerClient(getattr(server, protocol))
    inputs = infer_inputs(client, {"prompt": PROMPT} | settings)
    return lambda: connection.infer("ideogram4", inputs).as_numpy("image")


def take_turns(sides: Sequence[Callable[[], np.ndarray]], rounds: int) -> tuple[list[list[float]], bool]:
    """Seconds of each side in each round, after a first round that does not count; whether all results are equal."""
    seconds: list[list[float]] = [[] for _ in sides]
    first: np.ndarray | None = None
    same = True
    for number in range(rounds + 1):
        print(f"\rround {number} of {rounds} ", end="", file=sys.stderr, flush=True)
        for side, column in zip(sides, seconds, strict=True):
            started = time.perf_counter()
            image = side()
            column.append(time.perf_counter() - started)
            first = image if first is None else first
            same = same and np.array_equal(image, first)
    print(file=sys.stderr)
    return [column[1:] for column in seconds], same


def resident(process: int) -> int:
    """Bytes of a process' resident set."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code is 1 when the sides made different pictures."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.triton", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("bundle", type=Path, metavar="BUNDLE")
    add("--preset", choices=PRESETS, default="V4_DEFAULT_20", help="default: %(default)s")
    add("--size", type=int, metavar="PX", help="width and height (default: the bundle's)")
    add("--threads", type=int, default=2, help="CPU threads of each side (default: %(default)s)")
    add("--rounds", type=int, default=40, help="pictures of each side (default: %(default)s)")
    add("--starts", type=int, default=5, help="starts of the server (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the report here")
    args = parser.parse_args(argv)
    return guard("scripts.bench.triton", lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Measure, print the table, write the report."""
    figures = bench(args.bundle, args.preset, args.size, args.threads, args.rounds, args.starts)
    for name, value, note in figures.rows():
        print(f"{name:22}  {value:32}  {note}".rstrip())
    if args.json:
        packages = ("nvidia-pytriton", "tritonclient", "onnxruntime", "numpy")
        report = asdict(figures) | {
            "preset": args.preset,
            "threads": args.threads,
            "rounds": args.rounds,
            "starts": args.starts,
            "versions": {name: version(name) for name in packages},
            "machine": {"python": platform.python_version(), "platform": platform.platform(), "cores": os.cpu_count()},
        }
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if not figures.same:
        raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(main())
