"""Ask a real Triton server for everything at once, for as long as one likes, and count what goes wrong.

    python -m scripts.triton.storm ideogram4-bundle --minutes 30

Clients send valid requests over all protocols, invalid and oversized ones, cancel and hang up. After a third of the
time one model is unloaded and loaded again, after two thirds the processes of both are killed and the models loaded
again. A valid request must end with the picture that this process makes, pixel for pixel, being sent again only while
its model is away as planned; everything else must be refused with a reason, or end. Memory is the private memory of the
server and its models: its median between 20 and 40 % of the time is compared with that of the last 20 %.
"""

import argparse
import json
import math
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from export.triton.__main__ import generate
from export.triton.config import ModelConfig
from runtime.console import guard
from runtime.pipeline import Pipeline
from runtime.progress import Progress
from scripts.triton.client import triton
from scripts.triton.server import READY_PATIENCE, Server, errors, model_processes, serve
from scripts.triton.storm.client import STREAM, UNARY, Client
from scripts.triton.storm.memory import MemoryWatch
from scripts.triton.storm.requests import Tally, expected

PROGRAM = "scripts.triton.storm"
IN_ORDER, TIMED_OUT = "in order", "at its exit timeout"
"""Triton 2.51 keeps requests that are cancelled just when they have been answered, and waits for them when it ends."""
_TIMEOUT = "Exit timeout expired"
PARTS = ("server", "models")
GROWTH = 1.1
"""Most that memory may grow: pictures of other sizes come and go, so the arenas of two models are not always full."""


def storm(bundle: Path, minutes: float, clients: int, seed: int, quiet: bool) -> dict[str, Any]:
    """Run the campaign; returns its figures.

    Raises:
        RuntimeError: the server does not start, or does not load a model again.
    """
    with Pipeline.load(bundle, threads=1) as pipeline:
        pictures = expected(pipeline)
    with tempfile.TemporaryDirectory(prefix="storm-") as folder:
        repository = Path(folder, "repository")
        model = ModelConfig(threads=1, dynamic_batching=True)
        generate(bundle, repository, model, bundle_path=str(bundle.absolute()), stream=True, quiet=True)
        log = Path(folder, "server.log")
        with serve(repository, log=log) as server:
            started = time.monotonic()
            tally, memory = _run(server, pictures, minutes * 60, clients, seed, quiet)
            seconds = time.monotonic() - started
        end = _end_of(server.process.returncode, log)
    parts = zip(memory.medians(0.2, 0.4), memory.medians(0.8, 1.0), strict=True)
    return {
        "minutes": round(seconds / 60, 1),
        "clients": clients,
        "as wanted": tally.ok,
        "sent again while a model was away": tally.retried,
        "wrong": tally.wrong,
        "lost": tally.lost,
        **{
            f"memory of the {part}, early and late, MB": [
                None if math.isnan(size) else round(size / 1e6) for size in sizes
            ]
            for part, sizes in zip(PARTS, parts, strict=True)
        },
        "end of the server": end,
    }


def _end_of(code: int, log: Path) -> str:
    """How the server has ended when it was told to."""
    if code == 0:
        return IN_ORDER
    text = log.read_text(encoding="utf-8", errors="replace")
    return TIMED_OUT if _TIMEOUT in text else f"exit code {code}: {errors(log)}"


def _run(
    server: Server, pictures: list[Any], seconds: float, clients: int, seed: int, quiet: bool
) -> tuple[Tally, MemoryWatch]:
    disturbed, memory = threading.Event(), MemoryWatch(server)
    workers = [Client(server, pictures, seed + number, disturbed) for number in range(clients)]
    started = time.monotonic()
    threads = [threading.Thread(target=one.work, args=(started + seconds,), daemon=True) for one in workers]
    for thread in (*threads, memory):
        thread.start()
    with Progress("storm", total=round(seconds), unit="s", quiet=quiet) as bar:
        for share, disturb in ((1 / 3, _reload), (2 / 3, _kill)):
            _wait(bar, started, share * seconds)
            disturbed.set()
            disturb(server)
            disturbed.clear()
        _wait(bar, started, seconds)
    for thread in threads:
        thread.join()
    memory.stop()
    total = Tally()
    for one in workers:
        total.add(one.tally)
    return total, memory


def _wait(bar: Progress, started: float, until: float) -> None:
    while (passed := time.monotonic() - started) < until:
        bar.update(round(passed) - bar.n)
        time.sleep(min(1.0, until - passed))


def _reload(server: Server, model: str = STREAM) -> None:
    """Unload a model, wait until its process has ended, and load it again."""
    before = len(model_processes(server))
    with triton("http")[0].InferenceServerClient(server.http, network_timeout=READY_PATIENCE) as connection:
        connection.unload_model(model)
        _until(lambda: len(model_processes(server)) < before, f"{model} is unloaded")
        connection.load_model(model)


def _kill(server: Server) -> None:
    """Kill the processes of both models; the server starts none again by itself."""
    for process in model_processes(server):
        os.kill(process, signal.SIGKILL)
    with triton("http")[0].InferenceServerClient(server.http, network_timeout=READY_PATIENCE) as connection:
        for model in (UNARY, STREAM):
            connection.unload_model(model)
        _until(lambda: not model_processes(server), "no process of a model is left")
        for model in (UNARY, STREAM):
            connection.load_model(model)


def _until(condition: Any, what: str) -> None:
    deadline = time.monotonic() + READY_PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {READY_PATIENCE:g} s until {what}")
        time.sleep(0.05)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns 1 if an answer was wrong or lost, or memory grew."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {PROGRAM}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("bundle", type=Path, metavar="BUNDLE", help="of the demo model, for ONNX Runtime")
    add("--minutes", type=float, default=30.0, metavar="N", help="default: %(default)g")
    add("--clients", type=int, default=8, metavar="N", help="default: %(default)s")
    add("--seed", type=int, default=0, metavar="N", help="of the clients' choices (default: %(default)s)")
    add("--quiet", action="store_true", help="no progress")
    args = parser.parse_args(argv)
    found: dict[str, Any] = {}

    def run() -> None:
        found.update(storm(args.bundle, args.minutes, args.clients, args.seed, args.quiet))
        print(json.dumps(found, indent=1))

    if code := guard(PROGRAM, run):
        return code
    early, late = found["memory of the models, early and late, MB"]
    is_flat = late is not None and late <= GROWTH * early  # None: it has ended before the first look
    has_ended = found["end of the server"] in (IN_ORDER, TIMED_OUT)
    return int(bool(found["wrong"] or found["lost"]) or not is_flat or not has_ended)


if __name__ == "__main__":
    sys.exit(main())
