"""One side of a comparison: a bundle's graph in ONNX Runtime on the CPU."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from export.debug.values import Layer, layers_of, read_graph
from runtime.bundle.graph_specs import GraphSpec
from runtime.errors import BackendError

_FATAL_ONLY = 4


class OnnxSide:
    """A graph whose values can be asked for."""

    def __init__(self, bundle: Path, spec: GraphSpec) -> None:
        """BundleError: the graph's file is missing or damaged."""
        self.file, self.spec = bundle / spec.onnx, spec
        self.label = f"{bundle} (ONNX Runtime)"
        self.model = read_graph(self.file)
        self.layers: dict[str, Layer] = layers_of(self.model)

    def runner(self, names: Sequence[str]) -> Any:
        """Polygraphy's runner that gives these values."""
        from polygraphy.backend.onnx import ModifyOutputs
        from polygraphy.backend.onnxrt import OnnxrtRunner

        marked = ModifyOutputs(self.model, outputs=[_literally(name) for name in names], copy=True)
        return OnnxrtRunner(lambda: self._session(marked()), name=self.label)

    def _session(self, model: onnx.ModelProto) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL_ONLY
        # As the runtime has it; see `runtime.backend.ort`. Float8 weights stay in their file.
        options.add_session_config_entry("session.disable_quant_qdq", "0" if self.spec.codes == "int8" else "1")
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(self.file.parent))
        if self.spec.codes == "fp8":
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors share no other base class
            raise BackendError(f"ONNX Runtime cannot load {self.file}: {error}") from error


def _literally(name: str) -> str:
    """A name as a shell pattern, which Polygraphy takes, that matches nothing else."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
