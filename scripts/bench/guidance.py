"""What cheaper guidance saves and costs on a bundle of the demo model: time, PSNR and how well pictures follow prompts.

    python -m scripts.bench.guidance ideogram4-bundle

Each setting makes the same pictures as guidance at every step: of held-out prompts (`training.questions`), picture
number i from seed i. `passes` are unconditional passes per picture, `time` is that of the denoising and decoding
relative to the full setting's (the median over the pictures), PSNR is the mean over the pictures, and the last columns
are the shares of pictures with the right background, colour, place and shape, as scripts/demo/evaluate.py counts them.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

import numpy as np

from export.verify.quality import psnr
from runtime.console import guard
from runtime.pipeline import Pipeline
from runtime.plan import make_plan
from runtime.progress import track
from runtime.sampling.guidance import UnconditionalPasses
from training.judge import ASPECTS, Verdict, judge, share
from training.questions import Question, questions
from training.scenes import SIZE

SETTINGS = tuple(
    UnconditionalPasses(interval, every)
    for interval, every in (
        (None, 1),
        (None, 2),
        (None, 3),
        (None, 4),
        ((0.0, 0.8), 1),
        ((0.0, 0.5), 1),
        ((0.1, 0.8), 1),
        ((0.1, 0.5), 1),
        ((0.0, 0.8), 2),
        ((0.1, 0.8), 3),
    )
)


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
    verdicts: list[Verdict]


def compare(pipeline: Pipeline, preset: str | None, asked: list[Question]) -> list[Row]:
    """Make the pictures of all settings in turns, so that a busy machine slows all of them alike."""
    seconds: dict[UnconditionalPasses, list[float]] = {setting: [] for setting in SETTINGS}
    quality: dict[UnconditionalPasses, list[float]] = {setting: [] for setting in SETTINGS}
    verdicts: dict[UnconditionalPasses, list[Verdict]] = {setting: [] for setting in SETTINGS}
    counts = {}
    for seed, question in enumerate(track(asked, "measuring", "prompt")):
        full = None
        for setting in SETTINGS:
            plan = make_plan(
                pipeline.manifest, pipeline.prompt, question.prompt, preset=preset, seed=seed, passes=setting
            )
            pipeline.encode(np.array([plan.token_ids], np.int64))  # kept, so that no setting pays for it
            made = pipeline.run(plan)
            full = made.images if full is None else full
            counts[setting] = sum(step.guidance != 1 and not step.reuse for step in plan.steps)
            seconds[setting].append(made.seconds)
            quality[setting].append(psnr(made.images, full))
            verdicts[setting].append(judge(made.images[0], question.scene))
    base = median(seconds[SETTINGS[0]])
    return [Row(s, counts[s], median(seconds[s]) / base, mean(quality[s]), verdicts[s]) for s in SETTINGS]


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.guidance", description=__doc__.split("\n\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--preset", metavar="NAME", help="(default: the bundle's)")
    parser.add_argument("--prompts", type=int, default=120, metavar="N", help="(default: %(default)s)")
    args = parser.parse_args(argv)
    return guard("scripts.bench.guidance", lambda: print_table(args))


def print_table(args: argparse.Namespace) -> None:
    """Markdown on standard output."""
    asked = questions("one", args.prompts)
    pipeline = Pipeline.load(args.bundle)
    if pipeline.manifest.sizes.default != SIZE:
        raise ValueError(
            f"{args.bundle} makes pictures of {pipeline.manifest.sizes.default} pixels, wanted the demo's {SIZE}"
        )
    pipeline.generate(asked[0].prompt, steps=1, seed=0)  # the first call of a graph takes longer
    print("| --guidance-interval | --uncond-every | passes | time | PSNR | background | colour | place | shape |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in compare(pipeline, args.preset, asked):
        interval = "{:g}:{:g}".format(*row.passes.interval) if row.passes.interval else ""
        shares = " | ".join(f"{share(row.verdicts, aspect):.0%}" for aspect in ASPECTS)
        print(f"| {interval} | {row.passes.every} | {row.count} | {row.time:.0%} | {row.psnr:.1f} dB | {shares} |")


if __name__ == "__main__":
    sys.exit(main())
