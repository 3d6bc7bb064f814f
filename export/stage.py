"""One stage of a checkpoint to one graph of a bundle."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from torch import nn
from tqdm import tqdm

from export import weights
from export.attention import quantize_attention
from export.graphs import graph_record
from export.precision import Precision, torch_dtype
from export.qdq import Form, activation_scale, quantize_input, quantize_weights
from export.recipe import OPERANDS, PRODUCTS, Recipe, quantized_weights
from export.trace import trace
from model.checkpoint import Checkpoint
from model.layers import set_compute_dtype
from runtime.manifest import GraphSpec


@dataclass(frozen=True)
class StageOptions:
    """How the stages of a bundle are made."""

    precision: Precision
    recipe: Recipe
    ranges: Mapping[str, float]
    """Largest magnitude of each quantized activation, by point; empty without activation quantization."""
    form: Form = "ort"
    """Which engine's form of the float8 patterns; see `export.qdq`."""


def export_stage(checkpoint: Checkpoint, stage: str, options: StageOptions, folder: Path, quiet: bool) -> GraphSpec:
    """Trace one stage and write its graph and weights into `folder`, with a progress bar.

    Raises:
        OSError: the files cannot be written.
        CheckpointError: a weight is not finite.
    """
    compute = options.precision.stage(stage)
    record = graph_record(stage, checkpoint)
    with tqdm(desc=f"{stage + ': tracing':24}", unit="B", unit_scale=True, disable=quiet) as bar:
        module = set_compute_dtype(checkpoint.module(stage), torch_dtype(compute))
        model = trace(module, record)
        if options.precision.weights_fp8 and not stage.startswith("vae_"):
            quantize(model, module, checkpoint, stage, options)
        weights.attach(model, checkpoint.sources[stage])
        bar.reset(total=weights.weight_bytes(model))
        bar.set_description(f"{stage + ': writing':24}")
        onnx = folder / "onnx" / f"{stage}.onnx"
        try:
            weights.save(model, onnx, f"weights/{stage}.data", bar.update)
        except OSError as error:
            raise OSError(f"cannot write the weights of {stage}: {error.strerror or error}") from error
        bar.update(bar.total - bar.n)
        bar.set_description(f"{stage:24}")
    return GraphSpec(onnx.relative_to(folder).as_posix(), compute, record.inputs, (record.output,))


def quantize(model: ir.Model, module: nn.Module, checkpoint: Checkpoint, stage: str, options: StageOptions) -> None:
    """Put float8 into the traced graph of a stage, as the recipe says."""
    sources, layers = checkpoint.sources[stage], checkpoint.transformer.num_layers
    coded = set(quantized_weights(module, stage, sources, options.recipe))
    quantize_weights(model, sources, sorted(coded), options.form)
    points = options.recipe.points(stage, layers)
    # The ranges are those of q and k times head_dim^-1/4; the graph quantizes them before any factor.
    factor = checkpoint.transformer.attention_head_dim**0.25
    for layer in range(layers):
        prefix = f"{stage}.layers.{layer}."
        for point, products in PRODUCTS.items():
            if prefix + point in points:
                names = [f"layers.{layer}.{product}.weight" for product in products]
                quantize_input(
                    model, names, activation_scale(options.ranges[prefix + point]), prefix + point, options.form
                )
        if prefix + OPERANDS[0] in points:
            q, k, v = (options.ranges[prefix + operand] for operand in OPERANDS)
            scales = [activation_scale(r) for r in (q * factor, k * factor, v)]
            quantize_attention(model, layer, scales, f"{prefix}attention", options.form)
