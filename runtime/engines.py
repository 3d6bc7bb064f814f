"""Open the engines that were chosen: everything that runs a bundle with TensorRT, put together."""

import logging
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

from runtime import cuda, trt
from runtime.backend import Opened
from runtime.choice import Choice
from runtime.device_buffers import Arena, Buffer
from runtime.engine import Engine
from runtime.engine_graph import EngineGraph
from runtime.kernel_cache import KernelCache, cache_directory, cache_name
from runtime.machine import device_index
from runtime.manifest import EngineSet, FileSpec
from runtime.memory_plan import MemoryPlan
from runtime.residency import Residency


def open_engines(
    directory: Path, files: Mapping[str, FileSpec], stages: Sequence[str], choice: Choice,
    kernels: Path | None = None,
) -> Opened:  # fmt: skip
    """The stages as graphs. Plans are checked now; they are loaded now if all of them stay on the device.

    Args:
        directory: of the bundle.
        files: of its manifest.
        stages: that will run.
        choice: with engines and a memory plan.
        kernels: directory for compiled kernels; None for the user's cache directory.

    Raises:
        BundleError: a plan cannot run here.
        RuntimeError: TensorRT or CUDA failed.
    """
    engines, memory, index = choice.engines, choice.memory, device_index(choice.device)
    assert engines is not None and memory is not None and index is not None, "a choice of engines"
    cudart = cuda.load_cudart()
    gpu = cuda.find_gpu(cudart, index)  # which makes it the current device, for TensorRT as well
    package = trt.TensorRT(engines.backend, trt.load_package(engines.backend))
    for stage in stages:
        package.check_plan(directory / engines.graphs[stage].plan)
    store = KernelCache((kernels or cache_directory()) / cache_name(engines, files, gpu)) if package.rtx else None
    device = cuda.Device(cudart, index)
    arena = Arena(device)
    loaded = _engines(directory, package, device, arena, engines, memory, stages, store)
    residency = Residency(memory.groups, loaded, arena)
    graphs = {stage: EngineGraph(stage, engines.graphs[stage], loaded[stage], residency, device) for stage in stages}
    buffers = [buffer for graph in graphs.values() for buffer in graph.buffers]
    # Every graph holds `residency`: it goes when the last graph goes. At the end of the process this runs too.
    close = weakref.finalize(residency, _close, list(loaded.values()), arena, buffers, store, device)
    if memory.level == "resident":
        try:
            residency.require(stages[0])
        except BaseException:
            close()
            raise
    return Opened(dict(graphs), choice, close)


def _engines(
    directory: Path, package: trt.TensorRT, device: cuda.Device, arena: Arena, engines: EngineSet, memory: MemoryPlan,
    stages: Sequence[str], store: KernelCache | None,
) -> dict[str, Engine]:  # fmt: skip
    budgets = dict(memory.budgets)
    # Deferred loading and weight streaming exclude each other (TensorRT-RTX 1.7), whatever the budget.
    defer = package.rtx and memory.level != "resident" and not engines.weight_streaming
    return {
        stage: Engine(
            package, device, arena, stage, engines.graphs[stage], directory / engines.graphs[stage].plan,
            kernels=store, budget=budgets.get(stage), defer=defer,
        )
        for stage in stages
    }  # fmt: skip


def _close(
    engines: Sequence[Engine], arena: Arena, buffers: Sequence[Buffer], store: KernelCache | None,
    device: cuda.Device,
) -> None:  # fmt: skip
    """Free everything, contexts and engines before the memory that they use; keep the compiled kernels."""
    try:
        device.activate()
        if store is not None:
            store.store()
        for engine in engines:
            engine.drop()
        arena.release()
        for buffer in buffers:
            buffer.release()
        device.close()
    except cuda.CudaError as error:
        # After a kernel has crashed nothing works any more; what went wrong has been reported then.
        logging.getLogger(__name__).warning("device memory was not freed: %s", error)
