"""What cheaper guidance saves and costs: time and PSNR against guidance at every step, on one bundle.

    python scripts/compare_guidance.py ideogram4-bundle

Each setting makes the same pictures (prompts and seeds below) as the full one. `passes` are unconditional passes per
picture, `time` is that of the denoising and decoding relative to the full setting's (the median over the pictures), and
PSNR is the mean over the pictures. On a model with random weights PSNR says how far the pictures move and nothing about
how good they are; how well they follow the prompt is not measured here.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

import numpy as np

from runtime.guidance import UnconditionalPasses
from runtime.pipeline import Pipeline
from runtime.plan import make_plan

PROMPTS = (
    "a large red circle on a white background",
    "a blue star above a yellow square",
    "a green triangle beside a small black heart",
)
SETTINGS = tuple(
    UnconditionalPasses(interval, every)
    for interval, every in (
        (None, 1), (None, 2), (None, 3), (None, 4), ((0.0, 0.8), 1), ((0.0, 0.5), 1), ((0.1, 0.8), 1), ((0.1, 0.5), 1),
        ((0.0, 0.8), 2), ((0.1, 0.8), 3),
    )
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One setting's figures."""

    passes: UnconditionalPasses
    count: int
    """Unconditional passes per picture."""
    time: float
    """Of the full setting's."""
    psnr: float
    """dB; infinite for the full setting."""


def compare(pipeline: Pipeline, preset: str | None, size: int | None, seeds: int) -> list[Row]:
    """Make the pictures of all settings in turns, so that a busy machine slows all of them alike."""
    seconds: dict[UnconditionalPasses, list[float]] = {setting: [] for setting in SETTINGS}
    quality: dict[UnconditionalPasses, list[float]] = {setting: [] for setting in SETTINGS}
    counts = {}
    for prompt in PROMPTS:
        for seed in range(seeds):
            full = None
            for setting in SETTINGS:
                plan = make_plan(
                    pipeline.manifest, pipeline.prompt, prompt, preset=preset, width=size, height=size, seed=seed,
                    passes=setting,
                )  # fmt: skip
                pipeline.encode(np.array([plan.token_ids], np.int64))  # kept, so that no setting pays for it
                made = pipeline.run(plan)
                full = made.images if full is None else full
                counts[setting] = sum(step.guidance != 1 and not step.reuse for step in plan.steps)
                seconds[setting].append(made.seconds)
                quality[setting].append(_psnr(made.images, full))
    base = median(seconds[SETTINGS[0]])
    return [Row(s, counts[s], median(seconds[s]) / base, mean(quality[s])) for s in SETTINGS]


def _psnr(image: np.ndarray, wanted: np.ndarray) -> float:
    error = np.square(image.astype(np.float64) - wanted).mean()
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--preset", metavar="NAME", help="(default: the bundle's)")
    parser.add_argument("--size", type=int, metavar="PX", help="width and height (default: the bundle's)")
    parser.add_argument("--seeds", type=int, default=2, metavar="N", help="per prompt (default: %(default)s)")
    args = parser.parse_args(argv)
    pipeline = Pipeline.load(args.bundle)
    pipeline.generate(PROMPTS[0], steps=1, seed=0)  # the first call of a graph takes longer
    print("| --guidance-interval | --uncond-every | passes | time | PSNR |\n|---|---|---|---|---|")
    for row in compare(pipeline, args.preset, args.size, args.seeds):
        interval = "{:g}:{:g}".format(*row.passes.interval) if row.passes.interval else ""
        print(f"| {interval} | {row.passes.every} | {row.count} | {row.time:.0%} | {row.psnr:.1f} dB |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
