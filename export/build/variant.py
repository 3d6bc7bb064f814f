"""What is built for one backend."""

from dataclasses import dataclass

from calibration.points import layers_of
from export.build.jobs import Job, jobs_of
from export.build.options import BuildOptions
from export.engine.plan import EngineOptions
from export.engine.sizes import extents, limits_of, size_ranges, together
from export.engine.targets import check_gpu, check_targets
from export.engine.version import check_version
from export.graph.passes.codes import Form
from export.graph.precision import Precision
from export.graph.recipe import Recipe, recipe_of, unmatched
from export.graph.smoothing import Smoothing
from export.graph.stage import StageOptions
from export.measurements import Measurements
from model.checkpoint.directory import Checkpoint
from runtime.backend.machine import look
from runtime.bundle.graph_specs import SizeRange
from runtime.bundle.manifest import Manifest
from runtime.errors import shown


@dataclass(frozen=True)
class Variant:
    """The part of a bundle that one backend runs."""

    backend: str
    types: Precision
    recipe: Recipe
    engine: EngineOptions | None
    """None for ONNX Runtime."""
    linked: bool
    """Whether its graphs refer to the checkpoint's own files."""
    decomposed: bool = False
    """Whether engines may take attention apart where there is no fused kernel."""

    @property
    def attention(self) -> str:
        """Type of the attention, as the manifest names it."""
        return "fp8" if self.recipe.attention else "base"

    def jobs(self, checkpoint: Checkpoint, known: Measurements) -> list[Job]:
        """The work, in the order in which it is best done."""
        table: dict[str, float] = {}
        if known.ranges is not None:
            points = (
                p for stage in checkpoint.sources for p in self.recipe.points(stage, layers_of(checkpoint, stage))
            )
            table = {point: known.ranges.range_of(point) for point in points}
        smoothing = None if known.channels is None else Smoothing(known.channels.maxima, known.channels.digest())
        form: Form = "trt" if self.engine else "ort"
        options = StageOptions(
            self.types, self.recipe, table, form, self.linked, decomposed=self.decomposed, smoothing=smoothing
        )
        return jobs_of(list(checkpoint.sources), options, self.engine)


def variants_of(options: BuildOptions, checkpoint: Checkpoint, described: Manifest) -> list[Variant]:
    """A variant for each backend; `described` is the checkpoint's manifest without files.

    Raises:
        ValueError: a size is not one of the model's, a pattern of ``--keep-base`` matches no activation, or the GPU to
            build for cannot compute the precision.
        RuntimeError: a backend's package is not installed or cannot read the graphs, or there is no GPU to build for.
    """
    if wrong := unmatched(options.keep_base, checkpoint.sources, checkpoint):
        raise ValueError(
            f"--keep-base {shown(wrong[0])} matches no activation, such as dit_cond.layers.0.attention.qkv"
        )
    sizes = described.sizes
    limits = limits_of(sizes, described.prompt.max_tokens, options.min_size, options.max_size, options.max_batch)
    covered = extents(limits, sizes, options.opt_size, options.profile)
    limits = together(covered, limits)
    profiles = tuple(size_ranges(extent, limits, sizes.multiple) for extent in covered)
    return [_variant(options, backend, profiles) for backend in options.backends]


def _variant(options: BuildOptions, backend: str, profiles: tuple[dict[str, SizeRange], ...]) -> Variant:
    types, engine = options.types(backend), None
    if backend != "ort":
        targets = check_targets(options.target, types) if backend == "rtx" else (_target(types),)
        engine = EngineOptions(backend, targets, profiles, options.weight_streaming, options.strict_audit)  # type: ignore[arg-type]
        _ = engine.version  # a package that is missing is named before the work starts
    recipe = recipe_of(types, options.attention, options.keep_base)
    linked, decomposed = options.weights == "link" or engine is not None, options.attention == "decomposed"
    return Variant(backend, types, recipe, engine, linked, decomposed)


def _target(types: Precision) -> str:
    """Compute capability of the GPU in this machine, which TensorRT builds for.

    Raises:
        RuntimeError: there is no GPU, or TensorRT is missing or of a version that cannot read the graphs.
        ValueError: the GPU cannot compute the precision.
    """
    machine = look(0, ("tensorrt",))
    if machine.gpu is None:
        raise RuntimeError(
            f"--backend tensorrt builds for the GPU in the machine, and {machine.no_gpu}; --backend rtx needs none"
        )
    if machine.problems:
        raise RuntimeError(dict(machine.problems)["tensorrt"])
    check_version(dict(machine.versions)["tensorrt"])
    return check_gpu(machine.gpu, types)
