"""Compare stages in 8 bits with the same unquantized, block by block, so that the released model fits into memory.

The quantized form is a PyTorch model of what the graphs compute: weights rounded as they are stored, activations of the
blocks' products rounded where the recipe says. The softmax of a float8 attention is not rounded.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from calibration.fake_quant import quantize_dequantize, round_tokens
from calibration.points import TEXT_ENCODER, hooked, layers_of, module_prefix, point_of, quantized_stages
from calibration.streaming import blocks_of
from export.graph.attention_bounds import AttentionBounds
from export.graph.passes.codes import CODES, FP8
from export.graph.recipe import OPERANDS, block_weights, quantized_weights
from export.graph.smoothing import smoothed
from export.graph.stage import StageOptions
from export.rounding.inputs import TIMES, calls_of, latents_of_a_picture, token_ids, transformer_feeds
from export.rounding.walk import Walk, walk
from export.velocity import rms
from model.checkpoint.directory import Checkpoint
from model.checkpoint.sources import Sources
from model.layers import set_compute_dtype
from runtime.graph import Call
from runtime.progress import Progress

BOUND = 0.1
"""Relative error above which a build warns. Float8 costs the demo 5e-2, which changes nothing that a judge sees; static
ranges of the common tools cost 9.5e-2; at 0.7, channels with outliers left alone, pictures are noise."""
_WORST = 3
_SMALL = 1 << 30
"""Bytes of a stage in float32 up to which it is computed in float32, and above which in bfloat16."""


@dataclass(frozen=True)
class StageError:
    """Relative errors of one stage: the norm of the difference by the norm of the unquantized result."""

    stage: str
    times: tuple[float, ...]
    """Of the inputs; empty for the text encoder."""
    errors: tuple[float, ...]
    """Of the result, for each input."""
    layers: tuple[float, ...]
    """Of what each block adds, given the unquantized hidden state."""
    points: dict[str, float]
    """Of what a block adds if only one of its points is rounded, by the point's name; empty unless asked for."""

    @property
    def error(self) -> float:
        """Root mean square over the inputs."""
        return rms(self.errors)

    @property
    def worst(self) -> list[int]:
        """The blocks with the largest errors, largest first."""
        return sorted(range(len(self.layers)), key=lambda layer: -self.layers[layer])[:_WORST]

    def warning(self) -> str:
        """A sentence about an error above `BOUND`; empty below."""
        if self.error <= BOUND:
            return ""
        names = " ".join(f"'{self.stage}.layers.{layer}.*'" for layer in self.worst)
        return (
            f"{self.stage} in 8 bits is off by {self.error:.2g} of its result, wanted at most {BOUND}; "
            f"the worst blocks stay in the base type with --keep-base {names}"
        )


@dataclass(frozen=True)
class Compared:
    """What a comparison found, and computed on the way."""

    errors: list[StageError]
    """Of each stage that is quantized."""
    calls: dict[str, list[Call]]
    """Inputs and unquantized results, by stage, where all were computed in float32; empty for larger models."""


def compare_stages(
    checkpoint: Checkpoint, options: StageOptions, prompt: str, quiet: bool, by_point: bool = False
) -> list[StageError]:
    """The error of each stage that the options quantize, and `by_point` that of each of its points alone.

    Raises:
        CheckpointError: a weight is damaged.
    """
    return compare_with_calls(checkpoint, options, prompt, quiet, by_point).errors


def compare_with_calls(
    checkpoint: Checkpoint,
    options: StageOptions,
    prompt: str,
    quiet: bool,
    by_point: bool = False,
    side: int | None = None,
) -> Compared:
    """The same with what was computed; the picture has `side` pixels, None for the default."""
    stages = quantized_stages(checkpoint)
    total = sum(layers_of(checkpoint, stage) for stage in stages)
    with Progress("comparing", total, "block", quiet=quiet) as bar, torch.no_grad():
        ids = [token_ids(checkpoint, prompt)]
        (text,), error = _compare(checkpoint, TEXT_ENCODER, ids, options, bar.update, by_point)
        errors, calls = [error], {TEXT_ENCODER: calls_of(ids, [text])}
        picture = latents_of_a_picture(checkpoint, side)
        for stage in stages[1:]:
            feeds = transformer_feeds(checkpoint, stage, picture, text)
            results, error = _compare(checkpoint, stage, feeds, options, bar.update, by_point)
            errors.append(error)
            calls[stage] = calls_of(feeds, results)
    plain = all(compared_in(checkpoint, stage) == torch.float32 for stage in stages)
    return Compared([error for error in errors if error is not None], calls if plain else {})


def _compare(
    checkpoint: Checkpoint,
    stage: str,
    inputs: Sequence[dict[str, Tensor]],
    options: StageOptions,
    step: Callable[[], object],
    by_point: bool,
) -> tuple[list[Tensor], StageError | None]:
    """The unquantized results of a stage, and the error if the stage is quantized."""
    layers = layers_of(checkpoint, stage)
    points = options.recipe.points(stage, layers)
    module = set_compute_dtype(checkpoint.module(stage), compared_in(checkpoint, stage))
    prefixes = [module_prefix(stage, layer) for layer in range(layers)]
    plain = checkpoint.sources[stage]
    _fill(module, plain, [name for name in module.state_dict() if not name.startswith(tuple(prefixes))])
    rounding = _Rounding(checkpoint, stage, options, module)
    walks = [walk(module, stage, feeds) for feeds in inputs]
    exact = [[one.begin()] for one in walks]
    coded = [list(states) for states in exact]
    local, alone = [], {}
    for layer, (prefix, block) in enumerate(zip(prefixes, blocks_of(module, stage), strict=True)):
        inside = [name for name in module.state_dict() if name.startswith(prefix)]
        _fill(module, plain, inside)
        for one, states in zip(walks, exact, strict=True):
            states.append(block(states[-1], *one.arguments(layer)))
        here = [point for point in points if point.startswith(f"{stage}.layers.{layer}.")]
        if points:
            with rounding.of(layer, here):
                for one, states in zip(walks, coded, strict=True):
                    states.append(block(states[-1], *one.arguments(layer)))
                local.append(_local_error(block, layer, walks, exact))
        for point in here if by_point else ():
            with rounding.of(layer, [point]):
                alone[point] = _local_error(block, layer, walks, exact)
        block.to("meta")
        step()
    results = [one.end(states[1:]) for one, states in zip(walks, exact, strict=True)]
    if not points:
        return results, None
    ends = [one.end(states[1:]) for one, states in zip(walks, coded, strict=True)]
    found = tuple(float((a - b).norm() / b.norm()) for a, b in zip(ends, results, strict=True))
    return results, StageError(stage, () if stage == TEXT_ENCODER else TIMES, found, tuple(local), alone)


def _local_error(block: nn.Module, layer: int, walks: Sequence[Walk], exact: Sequence[Sequence[Tensor]]) -> float:
    """Error of what a block adds to the unquantized hidden state; the last of `exact` is what it should give."""
    errors = []
    for one, (*_, given, wanted) in zip(walks, exact, strict=True):
        off = block(given, *one.arguments(layer)) - wanted
        errors.append(float(off.norm() / (wanted - one.kept(layer, given)).norm()))
    return rms(errors)


def _fill(module: nn.Module, sources: Sources, names: Sequence[str]) -> None:
    kinds = {name: tensor.dtype for name, tensor in module.state_dict().items()}
    values = {name: sources[name].read().to(kinds[name]) for name in names}
    module.load_state_dict(values, strict=False, assign=True)


def compared_in(checkpoint: Checkpoint, stage: str) -> torch.dtype:
    """The type that a comparison computes a stage in."""
    size = sum(4 * torch.Size(source.shape).numel() for source in checkpoint.sources[stage].values())
    return torch.float32 if size <= _SMALL else torch.bfloat16


@contextmanager
def rounded(checkpoint: Checkpoint, stage: str, options: StageOptions) -> Iterator[nn.Module]:
    """The whole module of a stage in float32, rounded as the options say; for models that fit into memory."""
    module, layers = checkpoint.load(stage), layers_of(checkpoint, stage)
    rounding, points = _Rounding(checkpoint, stage, options, module), options.recipe.points(stage, layers)
    with ExitStack() as blocks:
        for layer in range(layers):
            here = [point for point in points if point.startswith(f"{stage}.layers.{layer}.")]
            blocks.enter_context(rounding.of(layer, here))
        yield module


class _Rounding:
    """Rounds the weights and activations of points of a stage."""

    def __init__(self, checkpoint: Checkpoint, stage: str, options: StageOptions, module: nn.Module) -> None:
        self._checkpoint, self._stage, self._options, self._module = checkpoint, stage, options, module
        sources = checkpoint.sources[stage]
        points = options.recipe.points(stage, layers_of(checkpoint, stage))
        self._codes = CODES[options.precision.codes or FP8.name]
        self._bounds = AttentionBounds(checkpoint, stage)
        self._coded: set[str] = set()
        if points:
            names = quantized_weights(checkpoint.module(stage), stage, sources, options.recipe, self._codes.name)
            self._coded = set(names)
            if options.smoothing is not None:
                sources = smoothed(checkpoint, stage, options.smoothing)
        self._sources = sources

    @contextmanager
    def of(self, layer: int, points: Sequence[str]) -> Iterator[None]:
        """The block has smoothed weights, those that `points` enter are rounded, and so are the points themselves."""
        prefix = module_prefix(self._stage, layer)
        rounded = {weight for point, weight in block_weights(self._stage, layer + 1) if point in points} & self._coded
        names = [name for name in self._module.state_dict() if name.startswith(prefix)]
        _fill(self._module, self._sources, [name for name in names if name not in rounded])
        kinds = self._module.state_dict()
        values = {name: self._rounded(name).to(kinds[name].dtype) for name in rounded}
        self._module.load_state_dict(values, strict=False, assign=True)
        ranges = self._ranges(layer, points)
        with hooked(self._module, self._stage, lambda name, x: self._round(name, x, ranges), points):
            yield

    def _rounded(self, name: str) -> Tensor:
        codes, scales = self._codes.rows(self._sources[name])
        return codes.float() * scales[:, None]

    def _round(self, name: str, x: Tensor, ranges: Mapping[str, float]) -> Tensor:
        if name in ranges:
            return quantize_dequantize(x, ranges[name])
        return round_tokens(x, self._codes.name)

    def _ranges(self, layer: int, points: Sequence[str]) -> Mapping[str, float]:
        """The points with one scale, as hooks see them: q and k times head_dim^-1/4."""
        if self._options.precision.activations == "static":
            return self._options.ranges
        if not any(point_of(point) in OPERANDS for point in points):
            return {}
        q, k, v = self._bounds.of(layer)
        factor = self._checkpoint.transformer.attention_head_dim**-0.25
        prefix = f"{self._stage}.layers.{layer}."
        return {prefix + name: bound for name, bound in zip(OPERANDS, (q * factor, k * factor, v), strict=True)}
