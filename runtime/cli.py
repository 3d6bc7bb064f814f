"""The command ``trt-generate``: a prompt in, PNG files out."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from runtime.console import guard
from runtime.constants import BUNDLE_VARIABLE, DEFAULT_BUNDLE
from runtime.jobs import job_from_options
from runtime.manifest import read_manifest
from runtime.options import PROGRAM, build_parser
from runtime.pending import PendingFiles
from runtime.picture import png
from runtime.pipeline import Pipeline
from runtime.prompt import PromptEncoder


def generate(args: argparse.Namespace) -> None:
    """Do what the options say. Everything that can be wrong with them is found before a graph is loaded."""
    job = job_from_options(args, args.prompt if args.prompt is not None else read_prompt(args.prompt_file))
    directory = args.bundle or Path(os.environ.get(BUNDLE_VARIABLE) or DEFAULT_BUNDLE)
    with PendingFiles(job.files, args.overwrite) as pending:
        manifest = read_manifest(directory)
        plan = job.plan(manifest, PromptEncoder(directory / manifest.prompt.tokenizer, manifest.prompt))
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
        report = result.used | {"files": [str(file) for file in job.files], "seconds": round(result.seconds, 3)}
        print(json.dumps(report, ensure_ascii=False, indent=1))
    if not args.quiet:
        print(f"wrote {', '.join(map(str, job.files))} in {result.seconds:.2f} s, seed {plan.seed}", file=sys.stderr)


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
