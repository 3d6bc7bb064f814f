"""What the manifest says of a finished build."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from export.atomic_directory import file_spec
from export.build.finished.ledger import Finished
from export.build.jobs import Job
from export.build.options import BuildOptions
from export.build.variant import Variant
from export.graph.smoothing import ALPHA
from export.measurements import Measurements
from runtime.bundle.graph_specs import EngineSet, EngineSpec, GraphSpec
from runtime.bundle.json_fields import decode
from runtime.bundle.manifest import FileSpec, Manifest, QuantizationSpec

TOOLS = ("torch", "onnx-ir", "onnxscript")
"""Packages whose versions the manifest names."""


def complete(
    described: Manifest,
    options: BuildOptions,
    variants: Sequence[Variant],
    known: Measurements,
    finished: Mapping[Job, Finished],
    files: dict[str, FileSpec],
) -> Manifest:
    """The manifest of a bundle, from `described`, which says what its checkpoint is."""
    return replace(
        described,
        precision=options.precision,
        quantization=_quantization(variants[0], known),
        timestep_dtype=options.timestep_dtype or variants[0].types.timestep,
        graphs=_graphs(finished),
        engines=_engines(variants, finished),
        files=files,
        tools={name: version(name) for name in TOOLS},
        default_preset=options.default_preset or described.default_preset,
        default_guidance=described.default_guidance if options.default_guidance is None else options.default_guidance,
    )


def files_of(folder: Path, finished: Mapping[Job, Finished], others: Iterable[str]) -> dict[str, FileSpec]:
    """Every file of a bundle: those of the stages, which have been hashed already, and the `others` in `folder`."""
    files = {path: spec for made in finished.values() for path, spec in made.files.items()}
    return dict(sorted((files | {name: file_spec(folder / name) for name in others}).items()))


def remove_others(folder: Path, manifest: Manifest) -> None:
    """Remove what an earlier build with other options has left in the directory."""
    for file in list(folder.rglob("*")):
        if not file.is_dir() and file.relative_to(folder).as_posix() not in manifest.files:
            file.unlink()


def _graphs(finished: Mapping[Job, Finished]) -> dict[str, GraphSpec]:
    return {job.stage: decode(made.spec, GraphSpec, job.name) for job, made in finished.items() if job.engine is None}


def _engines(variants: Sequence[Variant], finished: Mapping[Job, Finished]) -> dict[str, EngineSet]:
    sets = {}
    for variant in variants:
        if (engine := variant.engine) is not None:
            made = {job: one for job, one in finished.items() if job.engine == engine}
            specs = {job.stage: decode(one.spec, EngineSpec, job.name) for job, one in made.items()}
            sets[engine.name] = EngineSet(
                engine.backend, engine.targets, engine.version, variant.attention, specs, engine.weight_streaming
            )
    return sets


def _quantization(variant: Variant, known: Measurements) -> QuantizationSpec | None:
    if not variant.types.codes:
        return None
    kind = known.ranges.algorithm if known.ranges else "token" if variant.types.activations == "token" else "none"
    smoothing = ALPHA if known.channels else None
    return QuantizationSpec(kind, variant.attention, variant.recipe.keep_base, smoothing)  # type: ignore[arg-type]
