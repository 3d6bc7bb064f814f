"""One stage of a checkpoint to one graph of a bundle."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir
import torch

from calibration.points import layers_of, module_prefix, products_of
from export.atomic_directory import link_or_copy
from export.graph import trace_cache, weights
from export.graph.attention_bounds import AttentionBounds
from export.graph.passes.attention_chunks import CHUNKS, chunk_attention
from export.graph.passes.attention_kernels import allow_decomposition
from export.graph.passes.codes import CODES, FP8, Form
from export.graph.passes.float16_range import bound_products
from export.graph.passes.fp8_attention import quantize_attention
from export.graph.passes.group_norms import split_group_norms
from export.graph.passes.join_products import join_products
from export.graph.passes.norm_ones import shorten_ones
from export.graph.passes.qdq import activation_scale, quantize_input, quantize_weights
from export.graph.passes.reversed_keys import reverse_shared_keys
from export.graph.passes.rotations import rotate_by_operator
from export.graph.passes.row_scales import scale_after_products
from export.graph.passes.single_rows import sum_single_rows
from export.graph.passes.token_scales import quantize_tokens
from export.graph.precision import Precision, torch_dtype
from export.graph.recipe import OPERANDS, Recipe, quantized_weights
from export.graph.records import configuration, graph_module, graph_record, is_tile, stage_of
from export.graph.smoothing import Smoothing, smoothed
from model.checkpoint.directory import Checkpoint
from model.checkpoint.sources import Sources
from model.layers import set_compute_dtype
from runtime.bundle.graph_specs import GraphSpec
from runtime.progress import Progress

SESSION_OPTIONS = "onnxruntime_session_config"
"""Key of an ONNX file's metadata: entries of ONNX Runtime's session configuration without which it refuses the graph.
Its default takes float8 for int8 where it joins Q/DQ pairs with products (ONNX Runtime 1.31)."""
_GRAPHS: dict[str, ir.Model] = {}
"""Graphs without weights that this process has traced or read already, a few megabytes each at most."""


@dataclass(frozen=True)
class StageOptions:
    """How the stages of a bundle are made."""

    precision: Precision
    recipe: Recipe
    ranges: Mapping[str, float]
    """Largest magnitude of each activation that is quantized with a static scale, by point; empty without such."""
    form: Form = "ort"
    """Which engine's form of the graph; see `export.graph.passes` and `export.graph.passes.qdq`."""
    linked: bool = False
    """Refer to the checkpoint's own bytes where they are what the graph wants, instead of writing them again."""
    decomposed: bool = False
    """Let TensorRT take attention apart where it has no fused kernel for it."""
    smoothing: Smoothing | None = None
    """Even out the channels of quantized activations first."""

    def of_stage(self, stage: str, checkpoint: Checkpoint) -> "StageOptions":
        """What of the options touches one graph, which is the same with these as with all."""
        layers = layers_of(checkpoint, stage)
        points = self.recipe.points(stage, layers)
        return replace(
            self,
            precision=self.precision.of_stage(stage, bool(points)),
            recipe=self.recipe.of_stage(stage, layers),
            ranges={point: self.ranges[point] for point in points if point in self.ranges},
            decomposed=self.decomposed and self.form == "trt" and not stage.startswith("vae_"),
            smoothing=self.smoothing.of_stage(stage) if self.smoothing and points else None,
        )


def export_stage(
    checkpoint: Checkpoint, stage: str, options: StageOptions, folder: Path, quiet: bool
) -> tuple[GraphSpec, dict[Path, Path]]:
    """Trace one stage and write its graph and weights into ``onnx`` below `folder`, with a progress bar.

    A graph for tiles finds its weights in the files of the whole stage's graph, which must have been written before.

    Returns:
        What the manifest says of the graph, and the names and origins of files that it shares with the checkpoint.

    Raises:
        OSError: the files cannot be written.
        CheckpointError: a weight is not finite.
    """
    record = graph_record(stage, checkpoint)
    with Progress(f"{stage}: tracing", unit="B", quiet=quiet) as bar:
        model = stage_graph(checkpoint, stage, options)
        bar.reset(total=weights.weight_bytes(model))
        bar.set_description(f"{stage}: writing")
        onnx = folder / "onnx" / f"{stage}.onnx"
        try:
            if is_tile(stage):
                linked: dict[Path, Path] = {}
                _save_beside_whole(model, checkpoint.sources[stage_of(stage)], onnx, stage_of(stage))
            else:
                linked = weights.save(model, onnx, bar.update, link_or_copy)
        except OSError as error:
            raise OSError(f"cannot write the weights of {stage}: {error.strerror or error}") from error
        bar.update(bar.total - bar.n)
        bar.set_description(stage)
    compute = options.precision.stage(stage)
    relative = onnx.relative_to(folder).as_posix()
    expanded = weights.expanded_bytes(model, torch_dtype(compute).itemsize)
    codes = "none" if stage.startswith("vae_") else options.precision.codes or "none"
    return GraphSpec(relative, compute, record.inputs, (record.output,), expanded, codes), linked


def stage_graph(checkpoint: Checkpoint, stage: str, options: StageOptions) -> ir.Model:
    """The graph of a stage in the options' form; every initializer knows where its value comes from."""
    model = _traced(checkpoint, stage, torch_dtype(options.precision.stage(stage)))
    sources = dict(checkpoint.sources[stage_of(stage)])
    if options.smoothing is not None and options.recipe.points(stage, layers_of(checkpoint, stage)):
        sources = smoothed(checkpoint, stage, options.smoothing)
    joined = join_products(model, sources) if options.form == "trt" else {}
    if options.precision.codes and not stage.startswith("vae_"):
        quantize(model, checkpoint, stage, sources, options, joined)
    bound_products(model)
    if stage.startswith("vae_"):
        chunk_attention(model, CHUNKS[options.form], keep_fused=options.form == "trt")
    if options.form == "trt":
        scale_after_products(model)
        sum_single_rows(model)
        allow_decomposition(model, stage, options.decomposed)
        reverse_shared_keys(model)
    else:
        shorten_ones(model)
        rotate_by_operator(model)
        split_group_norms(model)
        if options.precision.codes == FP8.name and any(node.op_type == "QuantizeLinear" for node in model.graph):
            model.metadata_props[SESSION_OPTIONS] = json.dumps({"session.disable_quant_qdq": "1"})
    weights.attach(model, sources)
    if options.linked:
        weights.link(model, sources, stitch=options.form == "trt")
    return model


def _traced(checkpoint: Checkpoint, stage: str, dtype: torch.dtype, cache: Path | None = None) -> ir.Model:
    """A graph without weights, the caller's own. It is traced once for all builds, and serves all backends' forms.

    Args:
        checkpoint: gives the sizes.
        stage: name of the graph.
        dtype: type of its products.
        cache: directory of traced graphs; the user's unless given.
    """
    parts = (dtype, configuration(stage, checkpoint), graph_record(stage, checkpoint))
    key = repr(parts)
    if key not in _GRAPHS:
        directory = trace_cache.user_directory() if cache is None else cache
        _GRAPHS[key] = trace_cache.cached(parts, lambda: _trace(checkpoint, stage, dtype), directory)
    return _GRAPHS[key].clone()


def _trace(checkpoint: Checkpoint, stage: str, dtype: torch.dtype) -> ir.Model:
    from export.graph.trace import trace  # the exporter takes seconds to import, which a cached graph spares

    return trace(set_compute_dtype(graph_module(stage, checkpoint), dtype), graph_record(stage, checkpoint))


def _save_beside_whole(model: ir.Model, parameters: Collection[str], onnx: Path, whole: str) -> None:
    """Write a graph for tiles whose parameters point to the values of the same names of the graph `whole`."""
    values = ir.load(onnx.with_name(f"{whole}.onnx")).graph.initializers
    for name, value in model.graph.initializers.items():
        if name in parameters:
            value.const_value = values[name].const_value
    ir.save(model, onnx)


def quantize(
    model: ir.Model,
    checkpoint: Checkpoint,
    stage: str,
    sources: Sources,
    options: StageOptions,
    joined: Mapping[str, Sequence[str]],
) -> None:
    """Put codes into the traced graph of a stage, as the recipe says; `joined` lists the parts of joined weights."""
    layers = layers_of(checkpoint, stage)
    whole = {part: name for name, parts in joined.items() for part in parts}
    kind = CODES[options.precision.codes or FP8.name]
    linear = quantized_weights(checkpoint.module(stage), stage, checkpoint.sources[stage], options.recipe, kind.name)
    coded = {whole.get(name, name) for name in linear}
    quantize_weights(model, sources, sorted(coded), options.form, kind)
    points = set(options.recipe.points(stage, layers))
    bounds = AttentionBounds(checkpoint, stage)
    for layer in range(layers):
        for point, products in products_of(stage).items():
            name = f"{stage}.layers.{layer}.{point}"
            if name not in points:
                continue
            parts = [f"{module_prefix(stage, layer)}{product}.weight" for product in products]
            names = list(dict.fromkeys(whole.get(part, part) for part in parts))
            if options.precision.activations == "static":
                quantize_input(model, names, activation_scale(options.ranges[name]), name, options.form)
            else:
                quantize_tokens(model, names, name, options.form, kind)
        if f"{stage}.layers.{layer}.{OPERANDS[0]}" in points:
            _quantize_attention(model, checkpoint, f"{stage}.layers.{layer}.", layer, options, bounds)


def _quantize_attention(
    model: ir.Model, checkpoint: Checkpoint, prefix: str, layer: int, options: StageOptions, bounds: AttentionBounds
) -> None:
    if options.precision.activations == "static":
        # The ranges are those of q and k times head_dim^-1/4; the graph quantizes them before any factor.
        factor = checkpoint.transformer.attention_head_dim**0.25
        q, k, v = (options.ranges[prefix + operand] for operand in OPERANDS)
        ranges = (q * factor, k * factor, v)
    else:
        ranges = bounds.of(layer)
    scales = [activation_scale(r) for r in ranges]
    quantize_attention(model, layer, scales, f"{prefix}attention", options.form)
