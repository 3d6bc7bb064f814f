"""Load one graph of a bundle in ONNX Runtime, run it, and say what that took.

    python -m scripts.bench.run_stage bundle text_encoder --prompt "a red circle on a blue background"
    python -m scripts.bench.run_stage bundle dit_cond --size 256

A proof that the graphs of the real size run on a machine that their weights do not fit into: float8 weights that would
not fit multiplied out stay in their file (`runtime.backend.ort`).
"""

import argparse
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from export.memory import Peak
from runtime.backend.ort import opener
from runtime.bundle.manifest import Manifest, read_manifest
from runtime.console import guard
from runtime.prompt.tokens import PromptEncoder
from runtime.sampling.rope import image_positions, rope_tables, text_positions

TEXT_TOKENS = 64
"""Length of the made-up text features that the conditional transformer gets."""


def feeds_of(stage: str, manifest: Manifest, bundle: Path, prompt: str, size: int) -> dict[str, np.ndarray]:
    """Inputs of a stage: the prompt's tokens, or random latents of a square picture."""
    if stage == "text_encoder":
        encoder = PromptEncoder(bundle / manifest.prompt.tokenizer, manifest.prompt)
        return {"input_ids": np.asarray(encoder.encode(prompt), np.int64).reshape(1, -1)}
    random = np.random.default_rng(0)
    side, channels = size // manifest.sizes.multiple, manifest.latent_channels
    text = TEXT_TOKENS if stage == "dit_cond" else 0
    positions = np.concatenate((text_positions(text), image_positions(side, side)))
    rope = manifest.rope
    cosines, sines = rope_tables(positions, rope.head_dim, rope.theta, rope.sections)
    feeds = {
        "latents": random.standard_normal((1, side * side, channels), np.float32),
        "timestep": np.full(1, 0.5, np.float32),
        "rope_cos": cosines,
        "rope_sin": sines,
    }
    if text:
        width = next(spec.shape[2] for spec in manifest.graphs[stage].inputs if spec.name == "text")
        feeds["text"] = random.standard_normal((1, text, width), np.float32)
    return feeds


def run_stage(bundle: Path, stage: str, prompt: str, size: int, runs: int) -> None:
    """Load and run; prints a line for each."""
    manifest = read_manifest(bundle)
    if stage not in manifest.graphs:
        raise ValueError(f"{bundle} has no ONNX graph {stage}")
    manifest.sizes.check(size, size)
    feeds = feeds_of(stage, manifest, bundle, prompt, size)
    with Peak() as memory:
        started = time.perf_counter()
        graph = opener(bundle, "cpu", None)(stage, manifest.graphs[stage])
        ends = [time.perf_counter()]
        for _ in range(runs):
            result = graph(**feeds)
            ends.append(time.perf_counter())
    times = ", ".join(f"{after - before:.1f}" for before, after in pairwise(ends))
    print(f"{stage}: loaded in {ends[0] - started:.1f} s, ran in {times} s")
    print(f"result {list(result.shape)}, standard deviation {result.std():.3g}, finite: {np.isfinite(result).all()}")
    print(f"{memory.highest / 1e9:.2f} GB of anonymous memory at most")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.run_stage",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("bundle", type=Path, help="with ONNX graphs")
    add("stage", choices=("text_encoder", "dit_cond", "dit_uncond"))
    add("--prompt", default="a red circle on a blue background", help="for the text encoder (default: %(default)s)")
    add("--size", type=int, default=256, metavar="PX", help="of the picture (default: %(default)s)")
    add("--runs", type=int, default=1, metavar="N", help="calls (default: %(default)s)")
    args = parser.parse_args(argv)
    return guard(
        "scripts.bench.run_stage", lambda: run_stage(args.bundle, args.stage, args.prompt, args.size, args.runs)
    )


if __name__ == "__main__":
    sys.exit(main())
