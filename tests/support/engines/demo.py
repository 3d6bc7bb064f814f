"""The demo bundle with a fake TensorRT whose engines are its own ONNX graphs, so that the pictures are known."""

import hashlib
import json
import shutil
from pathlib import Path

from support.engines.fake_cuda import FakeCudart
from support.engines.fake_tensorrt import FakeTensorRT, plan_text, stage

from runtime.backend.ort import opener
from runtime.bundle.graph_specs import EngineSpec
from runtime.bundle.json_fields import decode
from runtime.bundle.manifest import read_manifest
from runtime.cli.main import main
from runtime.tensorrt import cuda, engines
from runtime.tensorrt import package as trt
from runtime.tensorrt.memory_plan import OVERHEAD

FAST = {"steps": 3, "guidance": 3.0, "seed": 3}


WEIGHTS = {"text_encoder": 9_000_000, "dit_cond": 9_300_000, "dit_uncond": 9_000_000, "vae_decoder": 100_000}


TILES = {"vae_encoder": 100_000, "vae_decoder_tile": 100_000, "vae_encoder_tile": 100_000}


ACTIVATIONS = 1_000_000


FREE = {"resident": 40_000_000, "staged": 25_000_000, "swapped": 15_000_000}
"""Bytes beside the plan's overhead with which each level is the first that fits."""


class EngineBundle:
    """The demo bundle with engines beside its graphs, and the machine that runs them."""

    def __init__(self, source, directory, monkeypatch, weights=WEIGHTS, profiles=None):
        self.weights, self.profiles = weights, profiles or (RANGES,)
        self.directory = Path(shutil.copytree(source, directory))
        (self.directory / "engines").mkdir()
        manifest = read_manifest(self.directory)
        open_graph = opener(self.directory, "cpu", 1)
        graphs = {name: open_graph(name, manifest.graphs[name]) for name in weights}
        stages = {name: stage_of(name, manifest.graphs[name], graph) for name, graph in graphs.items()}
        self.edit(lambda data: data.update(engines={"rtx-sm89": self.engine_set(data)}))
        self.cudart = FakeCudart(total=FREE["resident"] + OVERHEAD)
        self.trt = FakeTensorRT(self.cudart, stages)
        monkeypatch.setattr(cuda, "load_cudart", lambda: self.cudart)
        monkeypatch.setattr(trt, "load_package", lambda backend: self.trt)
        monkeypatch.setattr(engines, "cache_directory", lambda: directory.parent / "kernels")

    def edit(self, change):
        file = self.directory / "manifest.json"
        data = json.loads(file.read_text())
        change(data)
        file.write_text(json.dumps(data))

    def engine_set(self, data):
        specs = {}
        for name, weights in self.weights.items():
            path = f"engines/{name}.plan"
            graph = data["graphs"][name]
            named = [size for tensor in graph["inputs"] for size in tensor["shape"] if isinstance(size, str)]
            specs[name] = {
                "plan": path,
                "compute": "bfloat16",
                "inputs": graph["inputs"],
                "outputs": graph["outputs"],
                "profiles": [
                    {"sizes": {size: ranges[size] for size in named}, "activation_bytes": ACTIVATIONS}
                    for ranges in self.profiles
                ],
            }
            text = plan_text(name, weights, decode(specs[name], EngineSpec, name)).encode()
            (self.directory / path).write_bytes(text)
            data["files"][path] = {"size": len(text), "sha256": hashlib.sha256(text).hexdigest()}
        return {
            "backend": "rtx",
            "targets": ["sm89"],
            "version": "1.7.1.116",
            "attention": "base",
            "graphs": specs,
            "weight_streaming": False,
        }


def size_range(minimum, optimum, maximum):
    return {"minimum": minimum, "optimum": optimum, "maximum": maximum}


RANGES = {
    "B": size_range(1, 1, 2),
    "T": size_range(1, 64, 2048),
    "N": size_range(64, 64, 1024),
    "L": size_range(65, 128, 3072),
    "grid_h": size_range(8, 8, 32),
    "grid_w": size_range(8, 8, 32),
    **dict.fromkeys(("H", "W"), size_range(128, 128, 512)),
    **{f"{part}_{axis}": size_range(8, 24, 24) for part in ("tile", "thumb") for axis in "hw"},
    **{f"{part}_{axis}": size_range(128, 384, 384) for part in ("tile", "thumb") for axis in "HW"},
}
"""Pictures of 128 to 512 pixels on each side, and tiles of up to 384."""
LARGE_RANGES = RANGES | {"N": size_range(256, 512, 1024), "L": size_range(257, 576, 3072)}
LARGE_RANGES |= dict.fromkeys(("grid_h", "grid_w"), size_range(16, 24, 32))
"""Pictures of 256 to 512 pixels."""


def stage_of(name, spec, graph):
    names = {size: (tensor.name, axis) for tensor in spec.inputs for axis, size in enumerate(tensor.shape)}

    def shape(shapes):
        sizes = {size: shapes[tensor][axis] for size, (tensor, axis) in names.items() if isinstance(size, str)}
        for tokens, pixels in (("grid_h", "H"), ("grid_w", "W"), ("tile_h", "tile_H"), ("tile_w", "tile_W")):
            sizes = {tokens: sizes.get(pixels, 0) // 16, pixels: 16 * sizes.get(tokens, 0)} | sizes
        return tuple(sizes.get(size, size) for size in spec.outputs[0].shape)

    inputs, output = {tensor.name: tensor.dtype for tensor in spec.inputs}, spec.outputs[0]
    return stage(graph, inputs, output.name, shape, output.dtype)


def run(*arguments, bundle, output):
    return main(["--bundle", str(bundle.directory), "--output", str(output), *map(str, arguments)])
