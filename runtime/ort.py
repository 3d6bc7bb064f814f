"""ONNX Runtime backend. The only file that imports onnxruntime."""

import re
from pathlib import Path

import numpy as np
import onnxruntime

from runtime.backend import OpenGraph, check_feeds
from runtime.manifest import GraphSpec

MAX_THREADS = 1024
_FATAL_ONLY = 4


class OrtGraph:
    """One graph in an ONNX Runtime session."""

    def __init__(self, name: str, spec: GraphSpec, session: onnxruntime.InferenceSession) -> None:
        self.name, self.spec, self.session = name, spec, session

    def __call__(self, **feeds: np.ndarray) -> np.ndarray:
        """Run on one array for each input; RuntimeError when ONNX Runtime fails (out of memory, for one)."""
        check_feeds(self.name, self.spec.inputs, feeds)
        try:
            return self.session.run([self.spec.outputs[0].name], feeds)[0]
        except Exception as error:  # ONNX Runtime's errors share no other base class
            raise RuntimeError(f"graph {self.name} failed in ONNX Runtime: {error}") from error


def opener(directory: Path, device: str, threads: int | None) -> OpenGraph:
    """A function that opens graphs of a bundle on ``cpu``, ``cuda`` or ``cuda:N``; see `backend.open_graphs`."""
    providers = _providers(device)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    # The default fuses Q/DQ pairs as if they were int8: float8 graphs then fail to load (ONNX Runtime 1.31).
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    # Each session has its own threads, which spin for a while after a call: those of one transformer would take the
    # cores from the other's, and on two cores make a picture take twice as long (1.28 s against 0.65 s).
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if threads is not None:
        if not 1 <= threads <= MAX_THREADS:
            raise ValueError(f"threads is {threads}, wanted 1 to {MAX_THREADS}")
        options.intra_op_num_threads = threads

    def open_graph(name: str, spec: GraphSpec) -> OrtGraph:
        if spec.compute == "bfloat16" and device == "cpu":
            raise RuntimeError(
                f"graph {name} computes in bfloat16, which ONNX Runtime cannot run on a CPU; "
                "use --device cuda, or build the bundle with --precision fp32 or fp16"
            )
        try:
            session = onnxruntime.InferenceSession(directory / spec.onnx, options, providers=providers)
        except Exception as error:  # ONNX Runtime's errors share no other base class
            raise RuntimeError(f"ONNX Runtime cannot load graph {name} from {spec.onnx}: {error}") from error
        if (wanted := _name(providers[0])) not in session.get_providers():
            raise RuntimeError(
                f"ONNX Runtime could not start {wanted} for graph {name}: its CUDA or cuDNN libraries are missing "
                "or of another version; use --device cpu, or install them"
            )
        return OrtGraph(name, spec, session)

    return open_graph


def _providers(device: str) -> list[str | tuple[str, dict[str, str]]]:
    if device == "cpu":
        return ["CPUExecutionProvider"]
    match = re.fullmatch(r"cuda(?::(\d+))?", device)
    if not match:
        raise ValueError(f"device is {device!r}, wanted cpu, cuda or cuda:N")
    available = onnxruntime.get_available_providers()
    if "CUDAExecutionProvider" not in available:
        raise RuntimeError(
            f"this onnxruntime has no CUDA provider (it has {', '.join(available)}); "
            "replace it with the extra 'ort-gpu', or use --device cpu"
        )
    return [("CUDAExecutionProvider", {"device_id": match[1] or "0"}), "CPUExecutionProvider"]


def _name(provider: str | tuple[str, dict[str, str]]) -> str:
    return provider if isinstance(provider, str) else provider[0]
