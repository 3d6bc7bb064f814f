"""How far a graph may be off on another machine: measured, with a margin."""

import math
from collections.abc import Mapping

from runtime.bundle.manifest import Manifest
from runtime.selftest.graphs import ON_CPU, ON_CUDA

_BASE = {
    "float32": {"velocity": 1e-5, "latents": 6e-5, "picture": 6e-4},
    "float16": {"velocity": 7e-3, "latents": 1.2e-2, "picture": 1.2e-2},
    "bfloat16": {"velocity": 6e-2, "latents": 1e-1, "picture": 8e-2},
}
"""By what a graph computes in, and what it gives; the text encoder's rows count as velocities.

The largest relative errors against PyTorch in float32, of the demo and of two random models of the tests (heads of 64
and 256): graphs in float32 with ONNX Runtime on a CPU 1.0e-6, 6.0e-6 and 6.3e-5, taken ten times; PyTorch in float16
1.8e-3, 2.9e-3 and 3.1e-3, and in bfloat16 1.5e-2, 2.6e-2 and 2.1e-2, taken four times: these models have at most 6
blocks and the released one 34, where roundings that add up at random make 2.4 times as much. No GPU has been measured.
"""
_ON_CUDA = {"float32": "float16"}
"""ONNX Runtime's CUDA provider multiplies float32 as TF32 by default, whose mantissa is float16's."""
_MARGIN = 1.25
"""Of the error that 8 bits were measured to cost on the same inputs. Graphs on a CPU came to 0.98 to 1.03 of it; turned
ties are up to a tenth of an error."""


def tolerances(manifest: Manifest, errors: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """The largest relative error of each graph, by what runs it.

    Args:
        manifest: of the bundle.
        errors: what 8 bits cost each stage that has them, as the build measured it.
    """
    types = {name: graph.compute for name, graph in manifest.graphs.items()}
    sets = {ON_CPU: types, ON_CUDA: {name: _ON_CUDA.get(compute, compute) for name, compute in types.items()}}
    for label, engines in manifest.engines.items():
        sets[label] = {name: graph.compute for name, graph in engines.graphs.items()}
    return {
        label: {name: _tolerance(name, compute, errors.get(name, 0.0)) for name, compute in graphs.items()}
        for label, graphs in sets.items()
        if graphs
    }


def _tolerance(graph: str, compute: str, error: float) -> float:
    gives = "picture" if graph.startswith("vae_decoder") else "latents" if graph.startswith("vae_") else "velocity"
    # Independent roundings add up like the sides of a right angle.
    return float(f"{math.hypot(_BASE[compute][gives], _MARGIN * error):.3g}")
