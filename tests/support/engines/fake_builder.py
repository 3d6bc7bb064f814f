"""A stand-in for ``tensorrt`` as far as it builds: no such package runs here, and this one wants a GPU to build.

What it refuses is what NVIDIA's documentation says that TensorRT refuses: profiles out of order, timing caches of
another version or device, networks that it would type itself (a flag of TensorRT 10, which 11 ignores). A build reads
the graph's name only; it lists one kernel for each profile, and "measures" every profile's shapes, unless they are in
the timing cache. A test compares the names and parameters with those of TensorRT-RTX, which has the same interface.
"""

import json
from enum import IntEnum
from types import SimpleNamespace

from support.engines.fake_cuda import FakeCudart

from export.build.command import main
from runtime.tensorrt import cuda


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class IStreamWriter:
    pass


class IProgressMonitor:
    pass


class ITimingCache:
    """Entries of what was measured, behind a header of the version and the device."""

    def __init__(self, module, content):
        self.module = module
        self.header, self.entries = module.header, []
        if content:
            data = json.loads(content)
            self.header, self.entries = data["header"], data["entries"]

    def serialize(self):
        return json.dumps({"header": self.header, "entries": self.entries}).encode()


class IOptimizationProfile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, input, min, opt, max):
        if not all(0 <= low <= best <= high for low, best, high in zip(min, opt, max, strict=True)):
            raise ValueError("an inconsistency was detected")
        self.shapes[input] = (min, opt, max)


class IBuilderConfig:
    def __init__(self, module):
        self.module, self.profiles, self.flags = module, [], set()
        self.cache = None

    def set_flag(self, flag):
        self.flags.add(flag)

    def add_optimization_profile(self, profile):
        if self.module.refuses_profiles:
            return -1
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, serialized_timing_cache):
        try:
            return ITimingCache(self.module, serialized_timing_cache)
        except ValueError:
            return None

    def set_timing_cache(self, cache, ignore_mismatch):
        assert not ignore_mismatch, "timings of another device would be believed"
        if cache is None or cache.header != self.module.header:
            return False
        self.cache = cache
        return True

    def get_timing_cache(self):
        return self.cache


class INetworkDefinition:
    def __init__(self, flags):
        self.flags, self.name = flags, None


class OnnxParser:
    num_errors = 0

    def __init__(self, network, logger):
        self.network = network

    def load_model_proto(self, model, path):
        self.network.name = path.rpartition("/")[2].removesuffix(".onnx")
        return bool(model)

    def load_initializer(self, name, data, size):
        return bool(data and size)

    def parse_model_proto(self):
        return self.network.name is not None


class Builder:
    def __init__(self, module, logger):
        self.module, self.logger = module, logger

    def create_network(self, flags=0):
        return INetworkDefinition(flags)

    def create_builder_config(self):
        return IBuilderConfig(self.module)

    def create_optimization_profile(self):
        return IOptimizationProfile()

    def build_serialized_network_to_stream(self, network, config, writer):
        module = self.module
        strongly_typed = 1 << module.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        assert module.major > 10 or network.flags & strongly_typed, "TensorRT 10 would choose the types itself"
        assert config.profiling_verbosity == module.ProfilingVerbosity.DETAILED
        for index, profile in enumerate(config.profiles):
            self._measure(config, profile)
            self._say(f"Constructing optimization profile number {index} [{index + 1}/{len(config.profiles)}].")
            self._say(f"Total Activation Memory: {1000 * (index + 1)} bytes")
        module.builds.append(network.name)
        self._say(module.listing)
        plan = json.dumps({"stage": network.name, "profiles": len(config.profiles)}).encode()
        return writer.write(plan) == len(plan)

    def _say(self, message):
        self.logger.log(ILogger.VERBOSE, message)

    def _measure(self, config, profile):
        # The rows that a product has; the names of the inputs do not matter for how fast a kernel is.
        shapes = sorted({str(best) for _, best, _ in profile.shapes.values()})
        known = config.cache.entries if config.cache else []
        self.module.measured += [shape for shape in shapes if shape not in known]
        if config.cache:
            config.cache.entries += [shape for shape in shapes if shape not in known]


class FakeBuilder:
    """The module, for one version on one GPU."""

    ILogger, IStreamWriter, IProgressMonitor = ILogger, IStreamWriter, IProgressMonitor
    ProfilingVerbosity = SimpleNamespace(DETAILED=2)
    BuilderFlag = SimpleNamespace(WEIGHT_STREAMING=3)

    def __init__(self, version="10.16.1.11", capability="sm90", listing="Layers:\n"):
        self.__version__, self.header = version, f"{version} {capability}"
        self.major = int(version.split(".")[0])
        # The flag's place has changed: 0 was a flag of its own in TensorRT 10.
        self.NetworkDefinitionCreationFlag = IntEnum("Flag", {"STRONGLY_TYPED": int(self.major == 10)})
        self.listing, self.refuses_profiles = listing, False
        self.builds, self.measured = [], []

    def Builder(self, logger):
        return Builder(self, logger)

    def OnnxParser(self, network, logger):
        return OnnxParser(network, logger)


def machine(monkeypatch, module, capability=(9, 0), free=80 * 10**9):
    """A machine with this package and a GPU of this capability."""
    cudart = FakeCudart(total=free, capability=capability)
    monkeypatch.setattr(cuda, "load_cudart", lambda: cudart)
    for owner in ("runtime.tensorrt.package", "export.engine.builder", "export.engine.plan"):
        monkeypatch.setattr(f"{owner}.load_package", lambda backend: module)
    monkeypatch.setattr("export.build.preflight.available_memory", lambda: 10**12)


def build(bundle, *options, precision="bf16"):
    """The exit code of the command that builds a bundle of the demo for TensorRT."""
    return main(["--backend", "tensorrt", "--precision", precision, "--output", str(bundle), "--no-compare", *options])


def entries(file):
    """What the stand-in has measured, from a timing cache with its line in front."""
    return json.loads(file.read_bytes().partition(b"\n")[2])["entries"]
