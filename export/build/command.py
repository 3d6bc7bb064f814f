"""``python -m export.build``: checkpoint in, bundle out."""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from calibration.reference import prompt_encoder
from export.atomic_directory import check_apart, check_output, publish, unfinished, unfinished_name
from export.build.arguments import build_parser, read_options
from export.build.checksums import check_recorded
from export.build.cost import Cost, rounding_cost
from export.build.finished.ledger import LEDGER, Ledger
from export.build.finished.stock import Stock
from export.build.manifest import complete, files_of, remove_others
from export.build.options import BuildOptions
from export.build.preflight import Needs, check_needs, needs_of_build
from export.build.report import write_report
from export.build.running import run_jobs
from export.build.self_test import write_self_test
from export.build.variant import Variant, variants_of
from export.engine.files import REPORT
from export.engine.timing_cache import TIMING_CACHE, carry_over
from export.measurements import CHANNELS, STATE, Measurements, is_resumable, known_measurements, measure
from export.preview_fit import fit_preview
from export.rounding.inputs import default_side
from export.selftest.calls import side_within
from model.checkpoint.description import TOKENIZER, describe, tokenizer_file
from model.checkpoint.directory import Checkpoint, open_checkpoint
from model.checkpoint.hub import checkpoint_directory
from model.checkpoint.lora import with_loras
from runtime.bundle.manifest import Manifest
from runtime.console import guard
from runtime.selftest.contents import SELF_TEST

PROGRAM = "export.build"


def build(options: BuildOptions) -> Manifest:
    """Write a bundle.

    Raises:
        FileExistsError: the output exists and may not be replaced.
        ValueError: options do not go with the model, or the output lies around the checkpoint.
        CheckpointError: the checkpoint cannot be read.
        LoraError: an adapter cannot be read or is of another model.
        ChannelsError: the calibration file is damaged or belongs to another model.
        RangesError: the same, of static ranges.
        RuntimeError: a backend's package is not installed, or its builder refuses a graph.
        MemoryError: there is too little memory.
        OSError: the checkpoint cannot be found or downloaded, or the disk is too small or cannot be written. Only
            finished stages are left behind in any of these cases, hidden beside the output, for the next build.
    """
    output, quiet = options.output, options.quiet
    check_output(output, options.overwrite)
    checkpoint = _open(options)
    described = describe(checkpoint)
    prompt_encoder(checkpoint)  # a tokenizer that cannot be read is found here, not on the box
    variants = variants_of(options, checkpoint, described)
    if not options.fresh and (problem := Ledger.read(unfinished_name(output)).problem):
        print(f"warning: {problem}", file=sys.stderr)
    # The directory is made first: one that cannot be written is found before the work starts.
    with unfinished(output, keep=lambda folder: not options.fresh and _is_resumable(folder)) as folder:
        kept = (CHANNELS, STATE, REPORT, SELF_TEST, TIMING_CACHE)
        stock = Stock(folder, output, kept, options.fresh, quiet)
        known = known_measurements(checkpoint, variants[0].types, options.calibration, stock.files(CHANNELS))
        _check_needs(
            needs_of_build(variants, checkpoint, known or Measurements(), stock, options.self_test), output, quiet
        )
        if options.verify:
            check_recorded(checkpoint.directory, quiet)
        if "tensorrt" in options.backends:
            carry_over(stock.files(TIMING_CACHE), folder)
        known = known or measure(checkpoint, variants[0].types, folder, quiet)
        jobs = [job for variant in variants for job in variant.jobs(checkpoint, known)]
        finished = run_jobs(checkpoint, jobs, stock, quiet)
        others = _write_others(folder, checkpoint, known)
        others += [TIMING_CACHE] if (folder / TIMING_CACHE).is_file() and "tensorrt" in options.backends else []
        side = _side(checkpoint, variants)
        cost = rounding_cost(checkpoint, finished, stock.files(REPORT), side, quiet) if options.compare else Cost()
        others += write_report(folder, described.name, checkpoint, variants, finished, cost.report)
        described = replace(described, preview=fit_preview(checkpoint))
        manifest = complete(described, options, variants, known, finished, {})
        if options.self_test:
            others += write_self_test(checkpoint, manifest, finished, folder, stock.files(SELF_TEST), side, cost, quiet)
        manifest = replace(manifest, files=files_of(folder, finished, others))
        remove_others(folder, manifest)
        stock.remember()  # first: a command that is killed meanwhile is run again, and then nothing is left of it
        publish(folder, manifest, output)
    if not quiet:
        _say_what_was_written(manifest, output)
    return manifest


def _open(options: BuildOptions) -> Checkpoint:
    directory = checkpoint_directory(options.checkpoint, options.revision, options.quiet)
    check_apart(options.output, directory, "the checkpoint", inside=True)
    return with_loras(open_checkpoint(directory), options.lora, options.lora_target)


def _check_needs(needs: Needs, output: Path, quiet: bool) -> None:
    """Say what the build needs; OSError or MemoryError where the machine does not have it."""
    if not quiet:
        print(f"{PROGRAM}: {needs}", file=sys.stderr)
    check_needs(needs, output)


def _is_resumable(folder: Path) -> bool:
    return bool(Ledger.read(folder).finished) or is_resumable(folder)


def _write_others(folder: Path, checkpoint: Checkpoint, known: Measurements) -> list[str]:
    """Write what belongs to no stage; returns the names of all such files, the ledger's among them."""
    shutil.copyfile(tokenizer_file(checkpoint), folder / TOKENIZER)
    return [TOKENIZER, LEDGER, *known.write(folder)]


def _side(checkpoint: Checkpoint, variants: Sequence[Variant]) -> int:
    """Side of the pictures that are compared on: small, and one that all engines take."""
    engines = [variant.engine for variant in variants if variant.engine is not None]
    return side_within(default_side(checkpoint), [[profile["H"] for profile in engine.profiles] for engine in engines])


def _say_what_was_written(manifest: Manifest, output: Path) -> None:
    size = sum(file.size for file in manifest.files.values())
    sets = [*(["ort"] if manifest.graphs else []), *manifest.engines]
    print(f"wrote {output} ({size / 1e6:.1f} MB, {manifest.precision}, for {' and '.join(sets)})", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = build_parser(PROGRAM).parse_args(argv)
    return guard(PROGRAM, lambda: build(read_options(args)) and None)
