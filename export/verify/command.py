"""``python -m export.verify``: how far bundles are from the checkpoint that they were made from.

The reference is the checkpoint's PyTorch modules in float32 with the runtime's own prompt encoding, noise, schedule
and guidance. Three things are compared; `export.verify.replay` and `export.verify.quality` say how:

1. Each graph at the reference's inputs, so that errors do not compound. Both sides get the very same time, rounded to
   bfloat16 where the bundle rounds it, so that quantization is measured and not the rounding of t.
2. The pictures and last latents from equal seeds.
3. Whether the pictures have a grid of 16 or 8 pixels that the reference's do not have.

The figures go to standard output, and with plot and pictures into a directory: ``quality.json``, ``quality.html``.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from calibration.checkpoint_options import add_checkpoint_options
from calibration.lora_options import add_lora_options
from calibration.plans import make_plans
from calibration.prompts import DEFAULT_PROMPTS, read_prompts
from calibration.reference import DEVICES, check_device, prompt_encoder
from export.atomic_directory import check_apart, unfinished
from export.graph.records import graph_record
from export.verify.quality import check_size
from export.verify.quality_page import html_page
from export.verify.replay import STAGES, load, measure, sample
from export.verify.report_files import check_output, publish
from export.verify.summary import Entry, Report, as_text
from model.checkpoint.description import describe, tokenizer_file
from model.checkpoint.directory import Checkpoint, open_checkpoint
from model.checkpoint.hub import checkpoint_directory
from model.checkpoint.lora import with_loras
from runtime.bundle.integrity import sha256
from runtime.bundle.manifest import Manifest, read_manifest
from runtime.console import guard
from runtime.errors import BundleError
from runtime.plan import Plan
from runtime.progress import Progress
from runtime.sampling.schedule import PRESETS

PROGRAM = "export.verify"
_DEFAULT_PROMPTS = 3
_DESCRIBED = ("loras", "fingerprint", "latent_channels", "latent_stats", "rope", "sizes")
"""Parts of a manifest that the checkpoint alone determines; the prompt's are compared as well, but for its path."""


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {PROGRAM}",
        description="Compare bundles with the checkpoint that they were made from, and write a report.",
        epilog=f"presets: {', '.join(PRESETS)}",
    )
    add = parser.add_argument
    add("bundles", nargs="+", type=Path, metavar="BUNDLE", help="bundle directories, of any precisions")
    add_checkpoint_options(parser)
    add_lora_options(parser)
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument(
        "--prompts",
        type=int,
        metavar="N",
        help=f"use the first N prompts of calibration/prompts.txt (default: {_DEFAULT_PROMPTS})",
    )
    prompts.add_argument(
        "--prompt",
        nargs="+",
        action="extend",
        metavar="TEXT",
        dest="texts",
        help="use these prompts: plain text or Ideogram 4 JSON captions",
    )
    add("--preset", metavar="NAME", help="steps, guidance and schedule (default: the model's)")
    add(
        "--seed",
        type=int,
        default=0,
        metavar="S",
        help="of the first prompt's noise; each further prompt has the next one (default: %(default)s)",
    )
    add("--width", type=int, metavar="PX", help="multiple of 16 (default: the model's default size)")
    add("--height", type=int, metavar="PX", help="multiple of 16 (default: the model's default size)")
    add("--device", choices=DEVICES, default="cpu", help="what runs both sides (default: %(default)s)")
    add("--output", type=Path, required=True, metavar="DIR", help="directory to write the report to")
    add("--overwrite", action="store_true", help="replace the output if it is a report")
    add("--quiet", action="store_true", help="no progress and no messages; the figures are still printed")
    return parser


def verify(
    bundles: Sequence[Path],
    checkpoint: str | Path,
    output: Path,
    revision: str | None = None,
    prompts: int | None = None,
    texts: Sequence[str] | None = None,
    preset: str | None = None,
    seed: int = 0,
    width: int | None = None,
    height: int | None = None,
    device: str = "cpu",
    lora: Sequence[str] = (),
    lora_target: str = "cond",
    overwrite: bool = False,
    quiet: bool = False,
) -> Report:
    """Compare bundles with their checkpoint and write a report; see the command's options.

    Raises:
        FileExistsError: `output` exists and may not be replaced.
        FileNotFoundError: a bundle or the checkpoint is not there.
        OSError: the checkpoint cannot be downloaded.
        BundleError: a bundle is damaged, or of another checkpoint.
        CheckpointError: the checkpoint cannot be read.
        LoraError: an adapter cannot be read or is of another model.
        ValueError: an option is out of range, `output` and a bundle lie inside each other, or a prompt is empty or too
            long.
        RuntimeError: a bundle cannot run here, or gives NaN. Nothing is left behind in any of these cases.
    """
    for bundle in bundles:
        check_apart(output, bundle, "the bundle")
    check_output(output, overwrite)
    check_device(device)
    manifests = _manifests(bundles)
    opened = with_loras(open_checkpoint(checkpoint_directory(checkpoint, revision, quiet)), lora, lora_target)
    plans = make_plans(opened, _texts(opened, prompts, texts), preset, None, width, height, seed)
    check_size(plans[0].width, plans[0].height)
    described = describe(opened)
    for directory, manifest in manifests.items():
        _check_bundle(directory, manifest, opened, described, plans[0])
        # The reference may take hours: what cannot run is found before, even if each bundle is so loaded twice.
        load(directory, plans, device, verify="full")
    times = sorted({manifest.timestep_dtype for manifest in manifests.values()}, reverse=True)
    with unfinished(output) as partial:
        steps = sum(len(plan.steps) for plan in plans)
        with Progress("reference", len(times) * steps, "step", quiet=quiet) as bar:
            samples = sample(opened, plans, times, device, bar.update)
        entries = []
        for directory, manifest in manifests.items():
            label = _label(directory, manifests)
            with Progress(label, steps, "step", quiet=quiet) as bar:
                measured = measure(directory, plans, samples[manifest.timestep_dtype], device, bar.update)
            entries.append(Entry(label, directory, manifest, measured))
        report = Report(described.name, device, plans, samples, entries)
        publish(partial, report.to_dict(), html_page(report), output)
    print(as_text(report))
    if not quiet:
        print(f"wrote {output}", file=sys.stderr)
    return report


def _manifests(bundles: Sequence[Path]) -> dict[Path, Manifest]:
    manifests: dict[Path, Manifest] = {}
    for directory in bundles:
        if any(directory.resolve() == other.resolve() for other in manifests):
            raise ValueError(f"the bundle {directory} is given twice")
        manifests[directory] = read_manifest(directory)
    return manifests


def _texts(checkpoint: Checkpoint, prompts: int | None, texts: Sequence[str] | None) -> Sequence[str]:
    """The prompts that the options ask for."""
    if texts is not None:
        return texts
    count = _DEFAULT_PROMPTS if prompts is None else prompts
    known = read_prompts(DEFAULT_PROMPTS, prompt_encoder(checkpoint))
    if not 1 <= count <= len(known):
        raise ValueError(f"--prompts is {count}, wanted 1 to {len(known)}")
    return known[:count]


def _check_bundle(directory: Path, manifest: Manifest, checkpoint: Checkpoint, wanted: Manifest, plan: Plan) -> None:
    """Raise BundleError unless the bundle was made from the checkpoint that `wanted` describes and can run the plan."""
    pairs = {name: (getattr(manifest, name), getattr(wanted, name)) for name in _DESCRIBED}
    pairs["prompt"] = (replace(manifest.prompt, tokenizer=""), replace(wanted.prompt, tokenizer=""))
    pairs["tokenizer"] = (manifest.files[manifest.prompt.tokenizer].sha256, sha256(tokenizer_file(checkpoint)))
    for stage in STAGES:
        if stage not in checkpoint.sources or (stage == "dit_uncond" and not plan.needs_unconditional_graph):
            continue
        if stage not in manifest.graphs:
            raise BundleError(f"the bundle {directory} has no graph {stage}, which the comparison needs")
        graph, record = manifest.graphs[stage], graph_record(stage, checkpoint)
        pairs[f"graph {stage}"] = ((graph.inputs, graph.outputs), (record.inputs, (record.output,)))
    for name, (got, own) in pairs.items():
        if got != own:
            raise BundleError(
                f"the bundle {directory} was not made from the checkpoint {checkpoint.directory}: its {name} is "
                f"{got}, the checkpoint's {own}"
            )


def _label(directory: Path, bundles: Sequence[Path]) -> str:
    name = directory.resolve().name
    return name if [other.resolve().name for other in bundles].count(name) == 1 else str(directory)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = build_parser().parse_args(argv)
    return guard(PROGRAM, lambda: verify(**vars(args)) and None)


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    sys.exit(main())
