"""One stage of a checkpoint to one TensorRT plan of a bundle."""

import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir

from calibration.points import products_of
from export.atomic_directory import file_spec
from export.engine.builder import Built, build_plan
from export.engine.files import kernels_to_json
from export.engine.kernels import Kernel
from export.engine.listing import parse_kernels
from export.engine.report import Build, Wanted, audit, report
from export.engine.scratch import counted_bytes, overflow
from export.engine.sizes import Shapes, shapes, used
from export.engine.timing_cache import TIMING_CACHE, TimingCache
from export.graph import weights
from export.graph.passes.join_products import JOINED
from export.graph.records import graph_record
from export.graph.stage import StageOptions, stage_graph
from export.graph.stitched import stitched_tensors
from export.memory import Peak
from model.autoencoder import PATCH
from model.checkpoint.directory import Checkpoint
from runtime.bundle.graph_specs import EngineSpec, Profile, SizeRange, TensorSpec
from runtime.bundle.manifest import FileSpec
from runtime.progress import Progress
from runtime.tensorrt.package import load_package

_POINT = re.compile(r"(\w+)\.(layers\.\d+\.)(.+)_quantize")
"""Name of the node that quantizes an activation: stage, block, and point."""
_PRODUCTS = {parts[0]: whole for whole, parts in JOINED.items()}
"""The products that read a point, by its name, where they were joined."""
_LISTED = 5


@dataclass(frozen=True)
class EngineOptions:
    """What is the same for all engines of a set."""

    backend: Literal["rtx", "tensorrt"]
    targets: tuple[str, ...]
    profiles: tuple[Mapping[str, SizeRange], ...]
    """Ranges of all named sizes, for each optimization profile."""
    weight_streaming: bool = False
    """Let the runtime keep part of the weights in host memory."""
    strict_audit: bool = False
    """Refuse an engine whose kernels are not what was asked for."""

    @property
    def name(self) -> str:
        """Of the set, and of its folder."""
        return "-".join((self.backend, *self.targets))

    def of_graph(self, inputs: Sequence[TensorSpec]) -> "EngineOptions":
        """What of the options touches the engine of one graph."""
        return replace(self, profiles=tuple(used(inputs, self.profiles)))

    @property
    def version(self) -> str:
        """Of the package that builds."""
        return str(load_package(self.backend).__version__)


def build_engine(
    checkpoint: Checkpoint, stage: str, options: StageOptions, engine: EngineOptions, folder: Path, quiet: bool
) -> tuple[EngineSpec, dict[str, FileSpec], dict[str, Any]]:
    """Write one plan into ``engines`` below `folder`.

    Returns:
        What the manifest says of the engine, its files, and its report.

    Raises:
        RuntimeError: the builder refuses the graph; or, with ``strict_audit``, the engine is not what was asked for: an
            attention that is not one kernel, a product of a block that is not in 8 bits. The message names the layer.
        OSError: the plan cannot be written.
    """
    record = graph_record(stage, checkpoint)
    relative = f"engines/{engine.name}/{stage}.plan"
    plan, scratch = folder / relative, folder / "scratch"
    plan.parent.mkdir(parents=True, exist_ok=True)
    plan.unlink(missing_ok=True)
    shutil.rmtree(scratch, ignore_errors=True)
    profiles = used(record.inputs, engine.profiles)
    ends = [shapes(record.inputs, ranges) for ranges in profiles]
    with (
        Progress(f"{stage}: tracing", quiet=quiet) as bar,
        Peak() as memory,
    ):
        model = stage_graph(checkpoint, stage, options)
        size = weights.weight_bytes(model)
        weights.save(model, scratch / f"{stage}.onnx", lambda _: None)
        wanted, stitched = _wanted(model, stage, options), stitched_tensors(model)
        counted = _counted(model, stage, ends)
        del model
        built = build_plan(
            scratch / f"{stage}.onnx",
            plan,
            engine.backend,
            engine.targets,
            ends,
            _shown(bar, stage),
            engine.weight_streaming,
            stitched,
            TimingCache(folder / TIMING_CACHE) if engine.backend == "tensorrt" else None,
        )
        bar.set_description(f"{engine.name} {stage}")
    shutil.rmtree(scratch)
    kernels = parse_kernels(built.log)
    rows = [_rows(ranges, checkpoint) for ranges in profiles]
    problems = overflow(stage, built.activation_bytes, counted)
    problems += audit(kernels, wanted)
    _tell(stage, kernels, problems, plan if engine.strict_audit else None)
    build = _build(stage, options, engine, rows, built, size, memory.highest)
    listed = {kernel.profile for kernel in kernels}
    # A list that does not tell its profiles apart counts as that of the first.
    profile = rows.index(build.rows) if rows.index(build.rows) in listed else min(listed, default=0)
    described = asdict(replace(report(build, kernels, profile), problems=tuple(problems)))
    listing = plan.with_suffix(".kernels.json")
    listing.write_text(kernels_to_json(kernels), encoding="utf-8")
    made = (Profile(ranges, taken) for ranges, taken in zip(profiles, built.activation_bytes, strict=True))
    spec = EngineSpec(relative, options.precision.stage(stage), record.inputs, (record.output,), tuple(made))
    files = {relative: FileSpec(built.size, built.sha256), listing.relative_to(folder).as_posix(): file_spec(listing)}
    return spec, files, described


def _counted(model: ir.Model, stage: str, ends: Sequence[Shapes]) -> list[int]:
    """Memory that the graph needs at the largest sizes of each profile; 0 for others than the VAE's, not counted."""
    if not stage.startswith("vae_"):  # which have the largest activations by far
        return [0] * len(ends)
    return [counted_bytes(model, {name: largest for name, (_, _, largest) in inputs.items()}) for inputs in ends]


def _tell(stage: str, kernels: Sequence[Kernel], problems: Sequence[str], strict: Path | None) -> None:
    """Say what was found, as a warning; or, of the plan `strict`, as an error that takes the plan away."""
    if opaque := [kernel.name for kernel in kernels if kernel.opaque]:
        print(
            f"warning: {len(opaque)} entries of the builder's list of kernels of {stage} are not understood, such as "
            f"{opaque[0]!r}; the report counts them by name",
            file=sys.stderr,
        )
    if not kernels:
        print(f"warning: the builder listed no kernels of {stage}; the report has none", file=sys.stderr)
    if problems:
        message = f"the engine of {stage} is not what was asked for: {'; '.join(problems[:_LISTED])}"
        if strict is not None:
            strict.unlink()
            raise RuntimeError(message)
        print(f"warning: {message}", file=sys.stderr)


def _build(
    stage: str,
    options: StageOptions,
    engine: EngineOptions,
    rows: Sequence[int],
    built: Built,
    size: int,
    peak: int,
) -> Build:
    """The figures of a build; `rows` are the sequence lengths of its profiles, of which the longest is reported."""
    return Build(
        stage,
        engine.backend,
        engine.targets,
        engine.version,
        "fp8" if options.recipe.attention else "base",
        max(rows),
        built.size,
        size,
        peak,
        built.seconds,
        tuple(rows),
    )


def _rows(ranges: Mapping[str, SizeRange], checkpoint: Checkpoint) -> int:
    """Sequence length that the engine is tuned for; that of the VAE's attention is the number of its latent pixels."""
    best = {name: size.optimum for name, size in ranges.items()}
    for rows, columns in (("grid_h", "grid_w"), ("tile_h", "tile_w")):
        if rows in best:
            return best[rows] * best[columns] * PATCH**2
    for height, width in (("H", "W"), ("tile_H", "tile_W")):
        if height in best:
            return best[height] * best[width] // checkpoint.autoencoder.factor**2
    return next(best[name] for name in ("L", "N", "T") if name in best)


def _wanted(model: ir.Model, stage: str, options: StageOptions) -> Wanted:
    """One kernel for every attention that may not be taken apart, and float8 in all products that the recipe says."""
    attentions = [
        str(node.name)
        for node in model.graph
        if node.op_type.endswith("Attention") and "TRT_decomposable" not in node.attributes
    ]
    in_fp8 = [str(node.name) for node in model.graph if node.op_type == "TRT_QuantizedAttention"]
    products = []
    for node in model.graph:
        found = _POINT.fullmatch(str(node.name)) if node.op_type == "QuantizeLinear" else None
        if found and found[1] == stage and found[3] in products_of(stage):
            products.append(found[2] + _PRODUCTS.get(found[3], found[3]))
    return Wanted(tuple(attentions), tuple(in_fp8), tuple(products), options.precision.codes or "fp8")


def _shown(bar: Progress, stage: str) -> Callable[[str, int, int], None]:
    def show(phase: str, step: int, steps: int) -> None:
        bar.set_description(f"{stage}: {phase.lower():.40} {step}/{steps}")

    return show
