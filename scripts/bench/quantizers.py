"""Compare this project's 8 bits with NVIDIA ModelOpt's default recipe: the same weights, prompts and inputs.

    python -m scripts.bench.quantizers [--checkpoint DIR] [--json FILE]

Each row is the error of the transformers' velocity against float32 on the checkpoint's own (dequantized) weights, at
fixed inputs: the latents along the float32 trajectories of held-out prompts, at several noise levels. ModelOpt gets
our PyTorch modules with ``torch.nn.Linear`` in place of our subclass, its ``FP8_DEFAULT_CFG`` (per-tensor weights and
inputs of every Linear, algorithm max) and the calibration prompts that our own ranges were measured with.
"""

import argparse
import copy
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from torch import nn

from calibration.channels.file import Channels
from calibration.channels.record import PROMPTS, measure_channels
from calibration.fake_quant import quantize_dequantize
from calibration.prompts import DEFAULT_PROMPTS, read_prompts, spread
from calibration.reference import prompt_encoder
from calibration.static.ranges import ALGORITHMS
from calibration.static.record import calibrate
from export.demo_model import DEMO_CHECKPOINT
from export.graph.passes.codes import CODES, INT8
from export.graph.precision import precision_of
from export.graph.recipe import recipe_of
from export.graph.smoothing import ALPHA, Smoothing
from export.graph.stage import StageOptions
from export.rounding.compare import rounded
from export.velocity import TRANSFORMERS, Sample, rms, trajectory_samples, velocity_errors
from model.checkpoint.directory import Checkpoint, open_checkpoint
from model.layers import Linear
from scripts.bench.outliers import with_outliers

Errors = dict[str, list[float]]
OUTLIERS, ALPHAS = (1.0, 30.0, 200.0), (0.3, ALPHA, 0.7)


def ours(checkpoint: Checkpoint, held_out: list[Sample], options: StageOptions) -> Errors:
    """Errors of both transformers, rounded as a build with these options does."""
    errors = {}
    for stage in TRANSFORMERS:
        with rounded(checkpoint, stage, options) as module:
            errors[stage] = velocity_errors(module, stage, held_out)
    return errors


def options_of(
    precision: str,
    attention: str = "base",
    table: dict[str, float] | None = None,
    channels: Channels | None = None,
    alpha: float = ALPHA,
) -> StageOptions:
    """A build's options: static with a `table` of ranges, smoothed with `channels`."""
    types = precision_of(precision, None, "ort", "static" if table else None)
    smoothing = None if channels is None else Smoothing(channels.maxima, channels.digest(), alpha)
    return StageOptions(types, recipe_of(types, attention), table or {}, smoothing=smoothing)


def every_linear(checkpoint: Checkpoint, calibration: list[Sample], held_out: list[Sample]) -> Errors:
    """Our weights, but the input of every Linear quantized to its largest magnitude: what must not be the default."""
    errors = {}
    for stage in TRANSFORMERS:
        module = checkpoint.load(stage)
        largest: dict[nn.Module, float] = {}

        def observe(part: nn.Module, inputs: tuple[torch.Tensor], largest: dict = largest) -> None:
            largest[part] = max(largest.get(part, 0.0), float(inputs[0].abs().max()))

        with linear_hooks(module, observe):
            velocity_errors(module, stage, calibration)
        with linear_hooks(module, lambda part, inputs, seen=largest: (quantize_dequantize(inputs[0], seen[part]),)):
            errors[stage] = velocity_errors(module, stage, held_out)
    return errors


@contextmanager
def linear_hooks(module: nn.Module, hook: Callable) -> Iterator[None]:
    """`hook` before every Linear of `module`."""
    with ExitStack() as stack:
        for part in module.modules():
            if isinstance(part, Linear):
                stack.callback(part.register_forward_pre_hook(hook).remove)
        yield


def modelopt(checkpoint: Checkpoint, calibration: list[Sample], held_out: list[Sample]) -> Errors:
    """NVIDIA ModelOpt's default float8 recipe."""
    import modelopt.torch.quantization as mtq

    errors = {}
    for stage in TRANSFORMERS:
        module = checkpoint.load(stage)
        for part in module.modules():
            if isinstance(part, Linear):  # the same arithmetic in float32, and a class that ModelOpt knows
                part.__class__ = nn.Linear
        config = copy.deepcopy(mtq.FP8_DEFAULT_CFG)
        quantized = mtq.quantize(module, config, lambda m, stage=stage: velocity_errors(m, stage, calibration))
        errors[stage] = velocity_errors(quantized, stage, held_out)
    return errors


def compare(
    checkpoint: Checkpoint, calibration_prompts: list[str], prompts: list[str], preset: str, levels: int
) -> dict:
    """All rows: name -> stage -> errors of the held-out samples."""
    ranges = calibrate(checkpoint, calibration_prompts, preset=preset, quiet=True)
    # ModelOpt sees every step of every calibration prompt, as our ranges do.
    calibration = trajectory_samples(checkpoint, calibration_prompts, preset, levels=1000)
    held_out = trajectory_samples(checkpoint, prompts, preset, levels, seed=1000)
    rows = {"ModelOpt FP8_DEFAULT_CFG": modelopt(checkpoint, calibration, held_out)}
    rows["static, every Linear (not offered)"] = every_linear(checkpoint, calibration, held_out)
    for algorithm, field in ALGORITHMS.items():
        table = {name: getattr(tensor, field) for name, tensor in ranges.tensors.items()}
        rows[f"fp8, static, {algorithm}"] = ours(checkpoint, held_out, options_of("fp8", table=table))
    rows["fp8"] = ours(checkpoint, held_out, options_of("fp8"))
    rows["fp8, attention fp8 *"] = ours(checkpoint, held_out, options_of("fp8", "fp8"))
    rows |= smoothed_rows(checkpoint, calibration_prompts, held_out)
    return rows | other_weights(checkpoint, calibration_prompts, held_out)


def smoothed_rows(checkpoint: Checkpoint, calibration_prompts: list[str], held_out: list[Sample]) -> dict[str, Errors]:
    """int8, and copies of the checkpoint with outliers in int8 and fp8."""
    rows = {}
    for factor in OUTLIERS:
        copy = checkpoint if factor == 1 else with_outliers(checkpoint, factor)
        suffix = "" if factor == 1 else f", outliers x {factor:g}"
        channels = measure_channels(copy, spread(calibration_prompts, PROMPTS), quiet=True)
        if factor != 1:
            rows[f"fp8{suffix}"] = ours(copy, held_out, options_of("fp8"))
        rows[f"int8, not smoothed{suffix} (not offered)"] = ours(copy, held_out, options_of("int8"))
        for alpha in ALPHAS:
            name = f"int8{suffix}" if alpha == ALPHA else f"int8, exponent {alpha}{suffix} (not offered)"
            rows[name] = ours(copy, held_out, options_of("int8", channels=channels, alpha=alpha))
    return rows


def other_weights(checkpoint: Checkpoint, calibration_prompts: list[str], held_out: list[Sample]) -> dict[str, Errors]:
    """int8 with weights that are rounded better than to the nearest code of their row's scale, or not at all."""
    channels = measure_channels(checkpoint, spread(calibration_prompts, PROMPTS), quiet=True)
    rows = {}
    for name, rule in (("clip chosen by error", clipped_rows), ("exact weights", exact_rows)):
        with patch.dict(CODES, int8=replace(INT8, rows=lambda weight, rule=rule: rule(weight.read()))):
            rows[f"int8, {name} (not offered)"] = ours(checkpoint, held_out, options_of("int8", channels=channels))
    return rows


def clipped_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row with the scale, of those that clip nothing to a quarter of its largest value, that fits it best."""
    largest = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12)
    scales = torch.stack([largest * share / INT8.largest for share in torch.linspace(1, 0.75, 11).tolist()])
    codes = (weight / scales).round().clamp(-INT8.largest, INT8.largest)
    best = (codes * scales - weight).square().sum(dim=2).argmin(dim=0)
    rows = torch.arange(len(weight))
    return codes[best, rows], scales[best, rows, 0]


def exact_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """No rounding: the least error that any choice of codes could come to."""
    return weight, torch.ones(len(weight))


def few_samples(checkpoint: Checkpoint, prompts: list[str], held_out: list[Sample]) -> dict[str, Errors]:
    """int8 by the number of prompts and noise levels that its channels were measured on."""
    rows = {}
    for count in (1, 2, 4, 16):
        for steps in (1, 2, 4, 12):
            channels = measure_channels(checkpoint, spread(prompts, count), steps=steps, quiet=True)
            rows[f"int8, {count} prompts, {steps} levels"] = ours(
                checkpoint, held_out, options_of("int8", channels=channels)
            )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.quantizers", description=__doc__.split("\n\n")[0])
    parser.add_argument("--checkpoint", type=Path, default=DEMO_CHECKPOINT, help="default: the demo model")
    parser.add_argument("--preset", default="V4_TURBO_12", help="of all trajectories (default: %(default)s)")
    parser.add_argument("--levels", type=int, default=6, help="noise levels compared (default: %(default)s)")
    parser.add_argument("--samples", action="store_true", help="int8 by the size of its calibration instead")
    parser.add_argument("--json", type=Path, help="write the errors of every sample")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    checkpoint = open_checkpoint(args.checkpoint)
    prompts = read_prompts(DEFAULT_PROMPTS, prompt_encoder(checkpoint))
    if args.samples:
        held_out = trajectory_samples(checkpoint, prompts[4::16], args.preset, args.levels, seed=1000)
        rows = few_samples(checkpoint, prompts, held_out)
    else:
        rows = compare(checkpoint, prompts[::8], prompts[4::16], args.preset, args.levels)
    base = rms([e for errors in next(iter(rows.values())).values() for e in errors])
    print(f"{'velocity error':44}{'dit_cond':>10}{'dit_uncond':>12}{'both':>10}{'of the first':>13}")
    for name, errors in rows.items():
        both = rms([e for stage in errors.values() for e in stage])
        print(
            f"{name:44}{rms(errors['dit_cond']):10.2e}{rms(errors['dit_uncond']):12.2e}{both:10.2e}{both / base:12.0%}"
        )
    if not args.samples:
        print("* q, k and v; the softmax's own rounding is not in this figure, see export.verify")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
