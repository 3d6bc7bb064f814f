"""Open the engines that were chosen: everything that runs a bundle with TensorRT, put together."""

import logging
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from runtime.bundle.graph_specs import EngineSet
from runtime.bundle.manifest import FileSpec
from runtime.graph import Graph
from runtime.tensorrt import cuda
from runtime.tensorrt import package as trt
from runtime.tensorrt.buffers import Arena, Buffer
from runtime.tensorrt.engine import Engine
from runtime.tensorrt.engine_graph import EngineGraph
from runtime.tensorrt.kernel_cache import KernelCache, cache_name
from runtime.tensorrt.memory_plan import MemoryPlan
from runtime.tensorrt.residency import Residency
from runtime.tensorrt.validity import check_plan
from runtime.user_cache import cache_directory


def open_engines(
    directory: Path,
    files: Mapping[str, FileSpec],
    stages: Sequence[str],
    engines: EngineSet,
    memory: MemoryPlan,
    index: int,
    kernels: Path | None = None,
    cuda_graphs: bool = True,
) -> tuple[dict[str, Graph], Callable[[], object]]:
    """The stages as graphs. Plans are checked now; they are loaded now if all of them stay on the device.

    Args:
        directory: of the bundle.
        files: of its manifest.
        stages: that will run.
        engines: the set that was chosen.
        memory: which of them are on the device together.
        index: N of the device ``cuda:N``.
        kernels: directory for compiled kernels; None for the user's cache directory.
        cuda_graphs: launch each engine as a CUDA graph where that is possible.

    Returns:
        The graphs, and what frees them; they cannot be called afterwards.

    Raises:
        BundleError: a plan cannot run here.
        BackendError: TensorRT or CUDA failed.
    """
    cudart = cuda.load_cudart()
    gpu = cuda.find_gpu(cudart, index)  # which makes it the current device, for TensorRT as well
    package = trt.TensorRT(engines.backend, trt.load_package(engines.backend))
    for stage in stages:
        check_plan(package, directory / engines.graphs[stage].plan, cuda.driver_problem(cudart))
    store = _kernel_store(kernels or cache_directory(), engines, files, gpu) if package.rtx else None
    device = cuda.Device(cudart, index)
    arena = Arena(device)
    loaded = _engines(directory, package, device, arena, engines, memory, stages, store, cuda_graphs)
    residency = Residency(memory.groups, loaded, arena)
    graphs = {stage: EngineGraph(stage, engines.graphs[stage], loaded[stage], residency, device) for stage in stages}
    buffers = [buffer for graph in graphs.values() for buffer in graph.buffers]
    # Every graph holds `residency`: it goes when the last graph goes. At the end of the process this runs too.
    close = weakref.finalize(residency, _close, list(loaded.values()), arena, buffers, store, device, package)
    if memory.level == "resident":
        try:
            with package.calling():
                residency.require(stages[0])
        except BaseException:
            close()
            raise
    return dict(graphs), close


def _kernel_store(folder: Path | None, engines: EngineSet, files: Mapping[str, FileSpec], gpu: cuda.Gpu) -> KernelCache:
    """The compiled kernels of these engines; without a folder they are gone when the process ends."""
    if folder is None:
        variable = "LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME"
        logging.getLogger(__name__).warning(
            "compiled kernels are not kept: there is no home directory; set %s to a directory that can be written",
            variable,
        )
        return KernelCache(None)
    return KernelCache(folder / cache_name(engines, files, gpu))


def _engines(
    directory: Path,
    package: trt.TensorRT,
    device: cuda.Device,
    arena: Arena,
    engines: EngineSet,
    memory: MemoryPlan,
    stages: Sequence[str],
    store: KernelCache | None,
    cuda_graphs: bool,
) -> dict[str, Engine]:
    budgets = dict(memory.budgets)
    # Deferred loading and weight streaming exclude each other (TensorRT-RTX 1.7), whatever the budget.
    defer = package.rtx and memory.level != "resident" and not engines.weight_streaming
    return {
        stage: Engine(
            package,
            device,
            arena,
            stage,
            engines.graphs[stage],
            directory / engines.graphs[stage].plan,
            kernels=store,
            budget=budgets.get(stage),
            defer=defer,
            cuda_graphs=cuda_graphs,
        )
        for stage in stages
    }


def _close(
    engines: Sequence[Engine],
    arena: Arena,
    buffers: Sequence[Buffer],
    store: KernelCache | None,
    device: cuda.Device,
    package: trt.TensorRT,
) -> None:
    """Free everything, contexts and engines before the memory that they use; keep the compiled kernels.

    Waits for a call of another thread. Each thing is freed whatever happened to those before it. The calling thread,
    which may be any, has the same current device afterwards.
    """
    steps: list[Callable[[], object]] = [] if store is None else [store.store]
    steps += [engine.drop for engine in engines]
    steps += [arena.release, *(buffer.release for buffer in buffers), device.close]
    failures: list[str] = []
    with device.lock, package.calling(), ExitStack() as current:
        for step in (lambda: current.enter_context(device.current()), *steps):
            try:
                step()
            except (OSError, RuntimeError) as error:
                failures.append(str(error))  # not the error, which holds the engines
    if failures:
        # After a kernel has crashed nothing works any more; what went wrong has been reported then.
        logging.getLogger(__name__).warning("device memory was not freed: %s", failures[0])
