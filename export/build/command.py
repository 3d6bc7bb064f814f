"""``python -m export.build``: checkpoint directory in, bundle out."""

import json
import logging
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from importlib.metadata import version
from operator import add
from pathlib import Path
from typing import Any

from tqdm import tqdm

from calibration.ranges import Ranges, write_ranges
from export.activation_ranges import activation_ranges
from export.atomic_directory import check_output, file_spec, publish, unfinished
from export.build.checksums import recorded
from export.build.checksums import verify as verify_files
from export.build.jobs import Job, jobs_of
from export.build.ledger import LEDGER, Finished, Ledger
from export.build.options import build_parser
from export.build.preflight import Needs, check_needs, needs_of, scratch_bytes, together, weight_bytes
from export.build.preview_fit import fit_preview
from export.build.scan import Scan
from export.engine.engines_page import engines_page
from export.engine.files import PAGE, REPORT, engines_from_json
from export.engine.plan import EngineOptions
from export.engine.sizes import Limits, limits_of, size_ranges
from export.engine.targets import DEFAULT_TARGETS, check_targets
from export.graph.fp8_share import share
from export.graph.precision import Precision, precision_of, torch_dtype
from export.graph.recipe import Recipe, unmatched
from export.graph.records import graphs_of, stage_of
from export.graph.stage import StageOptions
from model.checkpoint.description import TOKENIZER, describe, tokenizer_file
from model.checkpoint.directory import Checkpoint, open_checkpoint
from model.checkpoint.lora import with_loras
from runtime.backend.machine import look
from runtime.bundle.json_fields import decode
from runtime.bundle.manifest import EngineSet, EngineSpec, FileSpec, GraphSpec, Manifest, QuantizationSpec
from runtime.console import guard

PROGRAM = "export.build"
RANGES = "ranges.json"
"""File beside the graphs: the activation ranges of a float8 bundle."""


@dataclass(frozen=True)
class Variant:
    """What is built for one backend."""

    backend: str
    types: Precision
    recipe: Recipe
    engine: EngineOptions | None
    linked: bool

    def options(self, checkpoint: Checkpoint, ranges: Ranges | None) -> StageOptions:
        """How its stages are made."""
        table: dict[str, float] = {}
        if ranges is not None:
            layers = checkpoint.transformer.num_layers
            points = (p for stage in checkpoint.sources for p in self.recipe.points(stage, layers))
            table = {point: ranges.range_of(point) for point in points}
        return StageOptions(self.types, self.recipe, table, "trt" if self.engine else "ort", self.linked)

    def needs(self, checkpoint: Checkpoint) -> Needs:
        """Disk, memory and time."""
        sizes = {stage: weight_bytes(checkpoint, stage, self.types, self.recipe) for stage in checkpoint.sources}
        scratch = [scratch_bytes(checkpoint, s, self.types, self.recipe) for s in checkpoint.sources if self.engine]
        if self.engine:  # an engine for tiles has its own weights, where a graph finds those of the whole one
            sizes |= {graph: sizes[stage_of(graph)] for graph in graphs_of(sizes)}
        return needs_of(self.backend, sizes, self.linked, max(scratch, default=0))


def build(
    checkpoint: Path,
    output: Path,
    precision: str,
    backend: str | Sequence[str] = "ort",
    base: str | None = None,
    calibration: Path | None = None,
    attention: str | None = None,
    keep_base: Sequence[str] = (),
    target: Sequence[str] = DEFAULT_TARGETS,
    min_size: int | None = None,
    opt_size: int | None = None,
    max_size: int | None = None,
    max_batch: int = 1,
    weight_streaming: bool = False,
    weights: str = "copy",
    timestep_dtype: str | None = None,
    lora: Sequence[str] = (),
    lora_target: str = "cond",
    overwrite: bool = False,
    fresh: bool = False,
    verify: bool = True,
    quiet: bool = False,
) -> Manifest:
    """Write a bundle; see the command's options.

    Raises:
        FileExistsError: `output` exists and may not be replaced.
        ValueError: options that do not go together.
        CheckpointError: the checkpoint cannot be read.
        LoraError: an adapter cannot be read or is of another model.
        RangesError: the calibration file is damaged or belongs to another model.
        RuntimeError: a backend's package is not installed, or its builder refuses a graph.
        MemoryError: there is too little memory.
        OSError: the disk is too small or cannot be written. Only finished stages are left behind in any of these cases,
            hidden beside the output, for the next build.
    """
    check_output(output, overwrite)
    backends = (backend,) if isinstance(backend, str) else tuple(dict.fromkeys(backend))
    _check_options(precision, calibration, attention, keep_base, weights, backends)
    for name in backends:
        check_targets(target if name == "rtx" else (), precision_of(precision, base, name))
    opened = with_loras(open_checkpoint(checkpoint), lora, lora_target)
    described = describe(opened)
    if wrong := unmatched(keep_base, opened.sources, opened.transformer.num_layers):
        raise ValueError(f"--keep-base {wrong[0]!r} matches no activation, such as dit_cond.layers.0.attention.qkv")
    limits = limits_of(described.sizes, described.prompt.max_tokens, min_size, opt_size, max_size, max_batch)
    variants = [
        _variant(
            name,
            precision_of(precision, base, name),
            attention,
            keep_base,
            target,
            limits,
            described,
            weights,
            weight_streaming,
        )
        for name in backends
    ]
    needs = together([variant.needs(opened) for variant in variants])
    if not quiet:
        print(f"{PROGRAM}: {needs}", file=sys.stderr)
    check_needs(needs, output)
    earlier = Ledger(output) if fresh else Ledger.read(output)
    # The directory is made first: one that cannot be written is found before the work starts.
    with unfinished(output, keep=lambda partial: not fresh and bool(Ledger.read(partial).finished)) as partial:
        if verify:
            _verify(checkpoint, quiet)
        fp8 = variants[0].types.activations_fp8
        ranges = activation_ranges(opened, calibration, quiet) if fp8 else None
        finished = _run(opened, variants, ranges, partial, earlier, quiet)
        shutil.copyfile(tokenizer_file(opened), partial / TOKENIZER)
        if ranges:
            write_ranges(ranges, partial / RANGES)
        report = _report(opened, variants, finished)
        if report:
            text = json.dumps(report, indent=1) + "\n"
            (partial / REPORT).write_text(text, encoding="utf-8")
            if engines := engines_from_json(text, REPORT):
                (partial / PAGE).write_text(engines_page(described.name, engines), encoding="utf-8")
        manifest = replace(
            described,
            precision=precision,
            quantization=_quantization(variants[0], ranges),
            timestep_dtype=timestep_dtype or variants[0].types.timestep,
            graphs=_graphs(finished),
            engines=_engines(variants, finished),
            files=_files(partial, finished, bool(ranges), bool(report)),
            tools={name: version(name) for name in ("torch", "onnx-ir", "onnxscript")},
            preview=fit_preview(opened),
        )
        _remove_others(partial, manifest)
        publish(partial, manifest, output)
    if not quiet:
        size = sum(file.size for file in manifest.files.values())
        sets = [*(["ort"] if manifest.graphs else []), *manifest.engines]
        print(f"wrote {output} ({size / 1e6:.1f} MB, {precision}, for {' and '.join(sets)})", file=sys.stderr)
    return manifest


def _check_options(
    precision: str,
    calibration: Path | None,
    attention: str | None,
    keep_base: Sequence[str],
    weights: str,
    backends: Sequence[str],
) -> None:
    """Refuse options of W8A8 with any other precision, and links where nothing would be linked."""
    given = {"--calibration": calibration, "--attention fp8": attention == "fp8", "--keep-base": keep_base}
    for option, value in given.items():
        if value and precision != "fp8":
            raise ValueError(f"{option} goes with --precision fp8, and --precision is {precision}")
    if weights == "link" and "ort" not in backends:
        raise ValueError("--weights link goes with --backend ort: a TensorRT plan holds its weights itself")


def _variant(
    backend: str,
    types: Precision,
    attention: str | None,
    keep_base: Sequence[str],
    target: Sequence[str],
    limits: Limits,
    described: Manifest,
    weights: str,
    weight_streaming: bool,
) -> Variant:
    engine = None
    if backend != "ort":
        targets = check_targets(target, types) if backend == "rtx" else (_gpu(),)
        sizes = size_ranges(limits, described.sizes.multiple)
        engine = EngineOptions(backend, targets, sizes, weight_streaming)
        _ = engine.version  # a package that is missing is named before the work starts
    in_fp8 = types.activations_fp8 and (attention or ("base" if backend == "ort" else "fp8")) == "fp8"
    recipe = Recipe(types.activations_fp8, in_fp8, tuple(keep_base))
    return Variant(backend, types, recipe, engine, linked=weights == "link" or engine is not None)


def _gpu() -> str:
    """Compute capability of the GPU in this machine, which TensorRT builds for; RuntimeError if there is none."""
    machine = look(0, ())
    if machine.gpu is None:
        raise RuntimeError(
            f"--backend tensorrt builds for the GPU in the machine, and {machine.no_gpu}; --backend rtx needs none"
        )
    return machine.gpu.capability


def _run(
    checkpoint: Checkpoint,
    variants: Sequence[Variant],
    ranges: Ranges | None,
    partial: Path,
    earlier: Ledger,
    quiet: bool,
) -> dict[Job, Finished]:
    """Do all jobs that are not done yet. The weights that no job reads itself are read and hashed meanwhile."""
    ledger = Ledger.read(partial)
    jobs = [job for v in variants for job in jobs_of(list(checkpoint.sources), v.options(checkpoint, ranges), v.engine)]
    finished: dict[Job, Finished] = {}
    for job in jobs:
        if found := ledger.take(job.name, job.key(checkpoint), earlier):
            finished[job] = found
            if not quiet:
                print(f"{job.name:24}  unchanged, taken from an earlier build", file=sys.stderr)
    todo = [job for job in jobs if job not in finished]
    scan = Scan(tensor for job in todo if job.options.linked for tensor in checkpoint.stored(stage_of(job.stage)))
    try:
        for job in todo:
            made, second = job.run(checkpoint, partial, quiet)
            if second:
                digests = scan.digests()
                hashes = {path: FileSpec(made.files[path].size, digests[file]) for path, file in second.items()}
                made = replace(made, files=made.files | hashes)
            ledger.add(job.name, made)
            finished[job] = made
        scan.digests()
    finally:
        scan.close()
    return {job: finished[job] for job in jobs}


def _graphs(finished: dict[Job, Finished]) -> dict[str, GraphSpec]:
    return {job.stage: decode(made.spec, GraphSpec, job.name) for job, made in finished.items() if job.engine is None}


def _engines(variants: Sequence[Variant], finished: dict[Job, Finished]) -> dict[str, EngineSet]:
    sets = {}
    for variant in variants:
        if (engine := variant.engine) is not None:
            specs = {
                job.stage: decode(made.spec, EngineSpec, job.name)
                for job, made in finished.items()
                if job.engine == engine
            }
            attention = "fp8" if variant.recipe.attention else "base"
            sets[engine.name] = EngineSet(
                engine.backend, engine.targets, engine.version, attention, specs, engine.weight_streaming
            )
    return sets


def _quantization(variant: Variant, ranges: Ranges | None) -> QuantizationSpec | None:
    if not variant.types.weights_fp8:
        return None
    attention = "fp8" if variant.recipe.attention else "base"
    return QuantizationSpec(ranges.algorithm if ranges else "none", attention, variant.recipe.keep_base)


def _files(partial: Path, finished: dict[Job, Finished], ranges: bool, report: bool) -> dict[str, FileSpec]:
    """Every file of the bundle; those of the stages have been hashed already."""
    files = {path: spec for made in finished.values() for path, spec in made.files.items()}
    others = [TOKENIZER, LEDGER, *([RANGES] if ranges else []), *([REPORT] if report else [])]
    others += [PAGE] if (partial / PAGE).is_file() and any(job.engine for job in finished) else []
    return dict(sorted((files | {name: file_spec(partial / name) for name in others}).items()))


def _remove_others(partial: Path, manifest: Manifest) -> None:
    """Remove what an earlier build with other options has left in the directory."""
    for file in list(partial.rglob("*")):
        if not file.is_dir() and file.relative_to(partial).as_posix() not in manifest.files:
            file.unlink()


def _report(checkpoint: Checkpoint, variants: Sequence[Variant], finished: dict[Job, Finished]) -> dict[str, Any]:
    """How much of each stage, and of all, is float8; and what the engines are made of."""
    report: dict[str, Any] = {}
    first = variants[0]
    if first.types.weights_fp8:
        size = torch_dtype(first.types.compute).itemsize
        stages = [stage for stage in checkpoint.sources if not stage.startswith("vae_")]
        shares = {stage: share(checkpoint, stage, first.recipe, size) for stage in stages}
        total = reduce(add, shares.values())
        report = {name: part.to_dict() for name, part in (shares | {"all": total}).items()}
    engines: dict[str, dict[str, Any]] = {}
    for job, made in finished.items():
        if job.engine is not None:
            engines.setdefault(job.engine.name, {})[job.stage] = made.report
    return report | ({"engines": engines} if engines else {})


def _verify(checkpoint: Path, quiet: bool) -> None:
    digests = recorded(checkpoint)
    total = sum(file.stat().st_size for file in digests if file.is_file())
    with tqdm(desc=f"{'checksums':24}", total=total, unit="B", unit_scale=True, disable=quiet) as bar:
        verify_files(digests, bar.update)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = build_parser(PROGRAM).parse_args(argv)
    return guard(PROGRAM, lambda: build(**vars(args)) and None)


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    sys.exit(main())
