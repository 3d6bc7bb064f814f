"""Ask bundles of the demo model for pictures of combinations that it never saw, and judge the pictures by program.

    python -m scripts.demo.evaluate BUNDLE... [--presets NAME ...] [--guidance WEIGHT ...] [--kinds one json two]

Each row of the table is a bundle, a kind of prompt and a sampling. The columns give the share of pictures with the
right background, and with the right colour, place and shape of what stands on it (of all that stands on it, where the
prompt asks for two shapes); the last column is the share with everything right. Picture number i starts from seed i.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from runtime.console import guard
from runtime.pipeline import Pipeline
from runtime.progress import track
from runtime.sampling.schedule import PRESETS
from training.judge import ASPECTS, Verdict, judge, share
from training.questions import KINDS, Question, questions


@dataclass(frozen=True)
class Result:
    """Shares of right pictures in per cent."""

    bundle: str
    precision: str
    preset: str
    guidance: float | None
    """At every step; None is the model's own."""
    kind: str
    prompts: int
    background: float
    color: float
    place: float
    shape: float
    everything: float


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return guard("scripts.demo.evaluate", lambda: evaluate(args))


def evaluate(args: argparse.Namespace) -> None:
    """Make and judge all pictures, print the table, and write the JSON file."""
    asked = {kind: questions(kind, args.prompts) for kind in args.kinds}
    if args.json and args.json.exists():
        raise FileExistsError(f"{args.json} exists; choose another --json")
    results = []
    for bundle in args.bundles:
        pipeline = Pipeline.load(bundle)
        for kind, some in asked.items():
            for preset in args.presets:
                for guidance in args.guidance:
                    verdicts = verdicts_of(pipeline, some, preset, guidance, args.quiet)
                    results.append(
                        summarize(bundle.name, pipeline.manifest.precision, preset, guidance, kind, verdicts)
                    )
    print(table(results))
    if args.json:
        args.json.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n", encoding="utf-8")


def verdicts_of(
    pipeline: Pipeline, asked: list[Question], preset: str, guidance: float | None, quiet: bool
) -> list[Verdict]:
    """Make one picture for each question and judge it."""
    name = f"{pipeline.manifest.precision} {preset}{'' if guidance is None else f' guidance {guidance:g}'}"
    return [
        judge(
            pipeline.generate(question.prompt, preset=preset, guidance=guidance, seed=seed).images[0],
            question.scene,
        )
        for seed, question in enumerate(track(asked, name, "picture", quiet=quiet))
    ]


def summarize(
    bundle: str, precision: str, preset: str, guidance: float | None, kind: str, verdicts: list[Verdict]
) -> Result:
    """Count what is right."""
    count = len(verdicts)
    shares = {aspect: 100 * share(verdicts, aspect) for aspect in ASPECTS}
    everything = 100 * sum(all(asdict(verdict).values()) for verdict in verdicts) / count
    return Result(bundle, precision, preset, guidance, kind, count, **shares, everything=everything)


def table(results: list[Result]) -> str:
    """Markdown."""
    lines = [
        "| bundle | preset | guidance | prompts | background | colour | place | shape | all |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        shares = (*(getattr(result, aspect) for aspect in ASPECTS), result.everything)
        guidance = "model's" if result.guidance is None else f"{result.guidance:g}"
        lines.append(
            f"| {result.precision} | {result.preset} | {guidance} | {result.prompts} {result.kind} | "
            + " | ".join(f"{percent:.1f} %" for percent in shares)
            + " |"
        )
    return "\n".join(lines)


def _guidance(text: str) -> float | None:
    return None if text == "model" else float(text)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.demo.evaluate", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("bundles", type=Path, nargs="+", metavar="BUNDLE", help="bundles of the demo model")
    add(
        "--presets",
        nargs="+",
        choices=PRESETS,
        default=["V4_DEFAULT_20"],
        metavar="NAME",
        help="(default: %(default)s)",
    )
    add(
        "--guidance",
        nargs="+",
        type=_guidance,
        default=[None],
        metavar="WEIGHT",
        help="weights at every step, or 'model' for the model's own (default: model)",
    )
    add("--kinds", nargs="+", choices=KINDS, default=["one"], help="kinds of prompts (default: %(default)s)")
    add("--prompts", type=int, default=240, metavar="N", help="of each kind (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the results there as well; it must not exist")
    add("--quiet", action="store_true", help="no progress bars")
    return parser


if __name__ == "__main__":
    sys.exit(main())
