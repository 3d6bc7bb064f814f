"""Compare stages in 8 bits with the same unquantized, block by block, so that the released model fits into memory.

The quantized form is a PyTorch model of what the graphs compute: weights rounded as they are stored, activations of the
blocks' products rounded where the recipe says. The softmax of a float8 attention is not rounded.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from calibration.fake_quant import quantize_dequantize, round_tokens
from calibration.points import TEXT_ENCODER, hooked, layers_of, module_prefix, point_of
from calibration.streaming import blocks_of
from export.graph.attention_bounds import attention_bounds
from export.graph.passes.codes import FP8, INT8, Codes
from export.graph.recipe import OPERANDS, quantized_weights
from export.graph.smoothing import smoothed
from export.graph.stage import StageOptions
from export.rounding.inputs import TIMES, latents_of_a_picture, stages_of, token_ids, transformer_feeds
from export.rounding.walk import walk
from export.velocity import rms
from model.checkpoint.directory import Checkpoint
from model.checkpoint.sources import Sources
from model.layers import set_compute_dtype
from runtime.backend.free_memory import available_memory
from runtime.progress import Progress

BOUND = 0.1
"""Relative error above which a build warns. Float8 costs the demo 5e-2, which changes nothing that a judge sees; static
ranges of the common tools cost 9.5e-2; at 0.7, channels with outliers left alone, pictures are noise."""
_WORST = 3
_WHOLE = 0.3
"""Part of the available memory up to which a stage in float32 counts as small: it is computed in float32 then."""


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


def compare_stages(checkpoint: Checkpoint, options: StageOptions, prompt: str, quiet: bool) -> list[StageError]:
    """The error of each stage that the options quantize.

    Raises:
        CheckpointError: a weight is damaged.
    """
    stages = stages_of(checkpoint)
    total = sum(layers_of(checkpoint, stage) for stage in stages)
    with Progress("comparing", total, "block", quiet=quiet) as bar, torch.no_grad():
        ids = [token_ids(checkpoint, prompt)]
        (text,), error = _compare(checkpoint, TEXT_ENCODER, ids, options, bar.update)
        results = [] if error is None else [error]
        picture = latents_of_a_picture(checkpoint)
        for stage in stages[1:]:
            feeds = transformer_feeds(checkpoint, stage, picture, text)
            _, error = _compare(checkpoint, stage, feeds, options, bar.update)
            results += [] if error is None else [error]
    return results


def _compare(
    checkpoint: Checkpoint,
    stage: str,
    inputs: Sequence[dict[str, Tensor]],
    options: StageOptions,
    step: Callable[[], object],
) -> tuple[list[Tensor], StageError | None]:
    """The unquantized results of a stage, and the error if the stage is quantized."""
    layers = layers_of(checkpoint, stage)
    points = options.recipe.points(stage, layers)
    module = set_compute_dtype(checkpoint.module(stage), _dtype(checkpoint, stage))
    plain = checkpoint.sources[stage]
    rounded = rounded_sources(checkpoint, stage, options)
    prefixes = [module_prefix(stage, layer) for layer in range(layers)]
    _fill(module, plain, [name for name in module.state_dict() if not name.startswith(tuple(prefixes))])
    walks = [walk(module, stage, feeds) for feeds in inputs]
    exact = [[one.begin()] for one in walks]
    coded, local = [list(states) for states in exact], []
    for layer, (prefix, block) in enumerate(zip(prefixes, blocks_of(module, stage), strict=True)):
        inside = [name for name in module.state_dict() if name.startswith(prefix)]
        _fill(module, plain, inside)
        after = [block(states[-1], *one.arguments(layer)) for one, states in zip(walks, exact, strict=True)]
        if points:
            _fill(module, rounded, inside)
            with _rounding(checkpoint, module, stage, layer, options, points):
                errors = []
                for one, states, given, wanted in zip(walks, coded, exact, after, strict=True):
                    states.append(block(states[-1], *one.arguments(layer)))
                    off = block(given[-1], *one.arguments(layer)) - wanted
                    errors.append(float(off.norm() / (wanted - one.kept(layer, given[-1])).norm()))
            local.append(rms(errors))
        for states, hidden in zip(exact, after, strict=True):
            states.append(hidden)
        block.to("meta")
        step()
    results = [one.end(states[1:]) for one, states in zip(walks, exact, strict=True)]
    if not points:
        return results, None
    ends = [one.end(states[1:]) for one, states in zip(walks, coded, strict=True)]
    found = tuple(float((a - b).norm() / b.norm()) for a, b in zip(ends, results, strict=True))
    return results, StageError(stage, () if stage == TEXT_ENCODER else TIMES, found, tuple(local))


def _fill(module: nn.Module, sources: Sources, names: Sequence[str]) -> None:
    kinds = {name: tensor.dtype for name, tensor in module.state_dict().items()}
    values = {name: sources[name].read().to(kinds[name]) for name in names}
    module.load_state_dict(values, strict=False, assign=True)


def _dtype(checkpoint: Checkpoint, stage: str) -> torch.dtype:
    size = sum(4 * torch.Size(source.shape).numel() for source in checkpoint.sources[stage].values())
    available = available_memory()
    return torch.float32 if available is None or size <= _WHOLE * available else torch.bfloat16


@dataclass(frozen=True, eq=False)
class _Rounded:
    """A weight as its codes and row scales hold it."""

    sources: Sources
    name: str
    codes: Codes

    def read(self) -> Tensor:
        """The parameter in float32."""
        codes, scales = self.codes.rows(self.sources[self.name])
        return codes.float() * scales[:, None]


def rounded_sources(checkpoint: Checkpoint, stage: str, options: StageOptions) -> Sources:
    """The values that a quantized stage computes with, smoothed and rounded; only their ``read`` may be used."""
    sources = checkpoint.sources[stage]
    if options.precision.codes is None:
        return sources
    recipe, kind = options.recipe, INT8 if options.precision.codes == "int8" else FP8
    if options.smoothing is not None and recipe.points(stage, layers_of(checkpoint, stage)):
        sources = smoothed(sources, checkpoint, stage, options.smoothing)
    names = quantized_weights(checkpoint.module(stage), stage, checkpoint.sources[stage], recipe, kind.name)
    return sources | {name: _Rounded(sources, name, kind) for name in names}  # type: ignore[dict-item]


@contextmanager
def _rounding(
    checkpoint: Checkpoint, module: nn.Module, stage: str, layer: int, options: StageOptions, points: Sequence[str]
) -> Iterator[None]:
    """The activations of one block rounded, as long as the context lasts."""
    prefix = f"{stage}.layers.{layer}."
    names = [name for name in points if name.startswith(prefix)]
    ranges = dict(options.ranges)
    if options.precision.activations == "token" and f"{prefix}{OPERANDS[0]}" in names:
        q, k, v = attention_bounds(checkpoint, stage, layer)
        factor = checkpoint.transformer.attention_head_dim**-0.25  # as hooks see q and k
        ranges |= {prefix + name: bound for name, bound in zip(OPERANDS, (q * factor, k * factor, v), strict=True)}

    def act(name: str, x: Tensor) -> Tensor:
        if options.precision.activations == "static" or point_of(name) in OPERANDS:
            return quantize_dequantize(x, ranges[name])
        return round_tokens(x, options.precision.codes or "fp8")

    with hooked(module, stage, act, names):
        yield
