"""A machine with a fake GPU and a fake TensorRT, which check how they are used, and a toy bundle on it."""

from dataclasses import replace

import numpy as np
from support.engines.bundles import STAGES, TOY, TOY_SIZES, TOY_WEIGHTS, toy_bundle
from support.engines.fake_cuda import FakeCudart
from support.engines.fake_tensorrt import FakeTensorRT

from runtime.tensorrt import cuda, engines
from runtime.tensorrt import package as trt
from runtime.tensorrt.memory_plan import MemoryPlan

STEPS = (("text_encoder",), ("dit_cond", "dit_uncond"), ("vae_decoder",))
ALONE = tuple((stage,) for stage in STAGES)


class Box:
    """A machine with the fakes, a toy bundle, and what was opened."""

    def __init__(self, directory, monkeypatch, rtx=True, profiles=(TOY_SIZES,)):
        self.cudart = FakeCudart(total=10**6)
        self.trt = FakeTensorRT(self.cudart, TOY, rtx=rtx)
        self.directory, self.backend = directory, "rtx" if rtx else "tensorrt"
        self.bundle = toy_bundle(directory, backend=self.backend, profiles=profiles)
        self.kernels = directory / "kernels"
        monkeypatch.setattr(cuda, "load_cudart", lambda: self.cudart)
        monkeypatch.setattr(trt, "load_package", lambda backend: self.trt)

    def open(self, level="resident", groups=(STAGES,), budgets=(), streaming=False, cuda_graphs=True):
        one = replace(self.bundle.engines["toy"], weight_streaming=streaming)
        memory = MemoryPlan(level, groups, budgets, 0, "")
        files = self.bundle.files
        self.graphs, self.close = engines.open_engines(
            self.directory, files, STAGES, one, memory, 0, self.kernels, cuda_graphs
        )
        return self.graphs

    def weights(self):
        """Sizes of the weights that are on the device now."""
        sizes = [len(memory) - 256 for memory in self.cudart.allocated.values()]
        return sorted(size for size in sizes if size in TOY_WEIGHTS.values())


def feeds(pictures=1, tokens=4, text=2, seed=0):
    draw = np.random.RandomState(seed)
    made = {
        "latents": draw.randn(pictures, tokens, 8),
        "timestep": draw.randn(pictures),
        "rope_cos": draw.randn(tokens + text, 2),
        "rope_sin": draw.randn(tokens + text, 2),
        "text": draw.randn(pictures, text, 4),
    }
    return {name: array.astype(np.float32) for name, array in made.items()}


def constant(values, *names):
    for name in names:
        values[name].setflags(write=False)
    return values


def wanted(values):
    return TOY["dit_cond"].function(**values)
