"""The command ``trt-generate``: a prompt in, PNG files out."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from runtime.backend import BACKENDS
from runtime.console import guard
from runtime.constants import BUNDLE_VARIABLE, DEFAULT_BUNDLE
from runtime.manifest import read_manifest
from runtime.pending import PendingFiles
from runtime.picture import numbered, png
from runtime.pipeline import Pipeline
from runtime.plan import MAX_IMAGES, UNCONDITIONAL, make_plan
from runtime.prompt import PromptEncoder
from runtime.schedule import DEFAULT_GUIDANCE, DEFAULT_MU, DEFAULT_STD, PRESETS, parse_guidance

PROGRAM = "trt-generate"


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Generate pictures with an Ideogram 4 bundle.",
        epilog=f"presets: {', '.join(PRESETS)}. A preset's guidance, mu and std can be overridden one by one; without "
        "a preset and without --steps the bundle's default preset is used.",
    )
    add = parser.add_argument
    add("--bundle", type=Path, metavar="DIR",
        help=f"bundle directory (default: ${BUNDLE_VARIABLE}, else {DEFAULT_BUNDLE})")  # fmt: skip
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("--prompt", metavar="TEXT", help="plain text or an Ideogram 4 JSON caption")
    text.add_argument("--prompt-file", metavar="FILE", help="file with the prompt, UTF-8; - for standard input")
    add("--output", type=Path, default=Path("ideogram4.png"), metavar="FILE",
        help="PNG to write (default: %(default)s); several get -0, -1, … before the suffix")  # fmt: skip
    add("--overwrite", action="store_true", help="replace the output if it exists")
    add("--width", type=int, metavar="PX", help="multiple of 16 (default: the bundle's default size)")
    add("--height", type=int, metavar="PX", help="multiple of 16 (default: the bundle's default size)")
    add("--preset", metavar="NAME", help="steps, guidance and schedule by name; see below")
    add("--steps", type=int, metavar="N", help="number of steps instead of a preset, with "
        f"guidance {DEFAULT_GUIDANCE:g}, mu {DEFAULT_MU:g} and std {DEFAULT_STD:g} unless given")  # fmt: skip
    guidance = parser.add_mutually_exclusive_group()
    guidance.add_argument("--guidance", type=float, metavar="G", help="guidance weight for every step; 1 is none")
    guidance.add_argument("--guidance-schedule", metavar="SPEC", help="weights in order, such as 7x45,3x3")
    add("--mu", type=float, metavar="X", help="mean of the logit-normal schedule at 512x512")
    add("--std", type=float, metavar="X", help="standard deviation of the schedule")
    add("--seed", type=int, metavar="N", help="of the start noise, the same as PyTorch's CPU seed (default: random)")
    add("--num-images", type=int, default=1, metavar="N", help="pictures for the prompt (default: %(default)s)")
    add("--unconditional", choices=UNCONDITIONAL, default="graph",
        help="where guidance takes the unconditional velocity from: its own graph, the conditional graph without "
        "text, or off = no guidance (default: %(default)s)")  # fmt: skip
    add("--backend", choices=BACKENDS, default="auto", help="what runs the graphs (default: %(default)s)")
    add("--device", default="cpu", metavar="DEV", help="cpu, cuda or cuda:N (default: %(default)s)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: one per core)")
    add("--no-verify", dest="verify", action="store_false", help="do not hash the bundle's files before loading")
    add("--json", action="store_true", help="print what was used as JSON on standard output")
    add("--quiet", action="store_true", help="no progress bar and no messages")
    return parser


def generate(args: argparse.Namespace) -> None:
    """Do what the options say. Everything that can be wrong with them is found before a graph is loaded."""
    prompt = args.prompt if args.prompt is not None else read_prompt(args.prompt_file)
    schedule = parse_guidance(args.guidance_schedule) if args.guidance_schedule is not None else None
    directory = args.bundle or Path(os.environ.get(BUNDLE_VARIABLE) or DEFAULT_BUNDLE)
    if not 1 <= args.num_images <= MAX_IMAGES:
        raise ValueError(f"--num-images is {args.num_images}, wanted 1 to {MAX_IMAGES}")
    files = numbered(args.output, args.num_images)
    with PendingFiles(files, args.overwrite) as pending:
        manifest = read_manifest(directory)
        plan = make_plan(
            manifest, PromptEncoder(directory / manifest.prompt.tokenizer, manifest.prompt), prompt,
            width=args.width, height=args.height, preset=args.preset, steps=args.steps,
            guidance=args.guidance if schedule is None else schedule, mu=args.mu, std=args.std, seed=args.seed,
            num_images=args.num_images, unconditional=args.unconditional,
        )  # fmt: skip
        pipeline = Pipeline.load(
            directory, backend=args.backend, device=args.device, threads=args.threads, verify=args.verify,
            unconditional=plan.needs_unconditional_graph,
        )  # fmt: skip
        if not args.quiet:
            print(f"{manifest.name} {manifest.precision} on {pipeline.backend} ({pipeline.device})", file=sys.stderr)
        with tqdm(desc="denoising", total=len(plan.steps), unit="step", leave=False, disable=args.quiet) as bar:
            result = pipeline.run(plan, on_step=lambda done, total, latents: bar.update())
        pending.commit([png(image, result.used | {"index": index}) for index, image in enumerate(result.images)])
    if args.json:
        report = result.used | {"files": [str(file) for file in files], "seconds": round(result.seconds, 3)}
        print(json.dumps(report, ensure_ascii=False, indent=1))
    if not args.quiet:
        print(f"wrote {', '.join(map(str, files))} in {result.seconds:.2f} s, seed {plan.seed}", file=sys.stderr)


def read_prompt(name: str) -> str:
    """The prompt in a UTF-8 file, or on standard input for ``-``; one line end at the end is dropped."""
    data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    try:
        return data.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise ValueError(f"the prompt file {name} is not UTF-8 text: byte {error.start} is invalid") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = build_parser().parse_args(argv)
    return guard(PROGRAM, lambda: generate(args))
