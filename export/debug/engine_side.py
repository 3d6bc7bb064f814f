"""One side of a comparison: a graph in TensorRT, built again on this machine with its inner values as outputs.

A plan gives nothing but its output, so the graph is made again from the checkpoint in TensorRT's form. Every output
that is added keeps the builder from fusing kernels around it: a fault that only a fused kernel has may go away.
"""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from export.debug.values import Layer, layers_of
from export.engine.builder import build_plan
from export.engine.sizes import shapes
from export.graph import weights
from export.graph.precision import precision_of
from export.graph.recipe import recipe_of
from export.graph.records import graph_record
from export.graph.stage import StageOptions, stage_graph
from export.graph.stitched import stitched_tensors
from model.checkpoint.directory import Checkpoint
from runtime.bundle.manifest import EngineSet, Manifest

_NUMBERED = re.compile(r"(^|\.)val_\d+$")
"""Values that the exporter has numbered: the numbers are others in another type."""
_BASE_NAMES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


class EngineSide:
    """A stage's engine whose values can be asked for."""

    def __init__(self, manifest: Manifest, engines: EngineSet, stage: str, checkpoint: Checkpoint) -> None:
        """ValueError: the engines were made with more than the checkpoint: adapters or measured activations."""
        self.engines, self.stage, self.checkpoint = engines, stage, checkpoint
        self.label = f"{engines.label}, built again"
        self.options = _options(manifest, engines, stage)
        self.layers: dict[str, Layer] = _layers(self._graph())

    def runner(self, names: Sequence[str]) -> Any:
        """Polygraphy's runner that gives these values."""
        from polygraphy import config

        config.USE_TENSORRT_RTX = self.engines.backend == "rtx"  # read when what follows is imported
        from polygraphy.backend.trt import EngineFromBytes, TrtRunner

        return TrtRunner(EngineFromBytes(lambda: self.plan(names)), name=self.label)

    def plan(self, names: Sequence[str]) -> bytes:
        """A plan that gives these values; RuntimeError if the builder refuses the graph."""
        model = self._graph()
        values = {value.name: value for node in model.graph for value in node.outputs}
        model.graph.outputs[:] = [values[name] for name in names]
        record, spec = graph_record(self.stage, self.checkpoint), self.engines.graphs[self.stage]
        profiles = [shapes(record.inputs, profile.sizes) for profile in spec.profiles]
        with tempfile.TemporaryDirectory(prefix="ideogram4-debug-") as folder:
            onnx, plan = Path(folder) / f"{self.stage}.onnx", Path(folder) / f"{self.stage}.plan"
            weights.save(model, onnx, lambda _: None)
            stitched = stitched_tensors(model)
            build_plan(onnx, plan, self.engines.backend, self.engines.targets, profiles[:1], stitched=stitched)
            return plan.read_bytes()

    def _graph(self) -> ir.Model:
        return stage_graph(self.checkpoint, self.stage, self.options.of_stage(self.stage, self.checkpoint))


def _options(manifest: Manifest, engines: EngineSet, stage: str) -> StageOptions:
    """How the stage was made, from what the manifest says."""
    spec = manifest.quantization
    measured = spec is not None and (spec.activations not in ("none", "token") or spec.smoothing is not None)
    if measured or manifest.loras:
        what = "adapters" if manifest.loras else "measured activations"
        raise ValueError(
            f"the engines were built with {what}, which a bundle does not keep; compare two bundles instead"
        )
    quantized = spec is not None
    base = _BASE_NAMES[engines.graphs[stage].compute] if quantized else None
    types = precision_of(manifest.precision, base, engines.backend)
    kept = spec.keep_base if spec is not None else ()
    return StageOptions(types, recipe_of(types, engines.attention, kept), {}, "trt", linked=True)


def _layers(model: ir.Model) -> dict[str, Layer]:
    """The layers of a graph whose weights are not read for that."""
    names = list(model.graph.initializers)
    model.graph.initializers.clear()
    found = layers_of(ir.to_proto(model), names)
    return {name: layer for name, layer in found.items() if not _NUMBERED.search(name)}
