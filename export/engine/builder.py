"""ONNX to a TensorRT plan, for both flavours: ``tensorrt_rtx`` builds for named targets on any machine, ``tensorrt``
for the GPU in the machine.

The weights are mapped from their files and the plan goes to disk while it is made, so neither is ever in memory as a
whole: a build needs 1.1 times the weights (TensorRT-RTX 1.7.1), where the in-memory call needs 2.1 times.
"""

import hashlib
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from export.engine.sizes import Shapes
from export.engine.timing_cache import TimingCache
from export.graph.stitched import Stitched, StitchedTensor
from runtime.tensorrt.callbacks import Callbacks
from runtime.tensorrt.package import TITLES, load_package

_PROFILE = re.compile(r"optimization profile number (\d{1,9})|\[profile (\d{1,9})\]")
_MEMORY = re.compile(r"(?:Scratch|Activation) Memory: (\d{1,18}) bytes")
_NO_DRIVER = "CUDA driver version is insufficient"
"""Logged as an error after each failure on a machine without a driver, which an RTX build does not need."""
_KEPT = ("LayerType", "Scratch Memory:", "Activation Memory:", "optimization profile number")
"""What is kept of the builder's log, which is hundreds of megabytes for the real model."""


class Progress(Protocol):
    """Something that shows how far a build is."""

    def __call__(self, phase: str, step: int, steps: int) -> None:
        """`step` of `steps` of the builder's `phase` are done."""
        ...


@dataclass(frozen=True)
class Built:
    """A plan that has been written."""

    size: int
    sha256: str
    log: tuple[str, ...]
    """Messages of the builder's log that list the kernels."""
    activation_bytes: tuple[int, ...]
    """Device memory beside the weights at the largest sizes of each profile."""
    seconds: float


def build_plan(
    onnx: Path,
    plan: Path,
    backend: str,
    targets: Sequence[str],
    profiles: Sequence[Shapes],
    progress: Progress | None = None,
    weight_streaming: bool = False,
    stitched: Sequence[StitchedTensor] = (),
    timing: TimingCache | None = None,
) -> Built:
    """Build one plan into the file `plan`, which must not exist.

    Ctrl-C ends the build at its next step, and so does an error that `progress` raises.

    Args:
        onnx: the graph in TensorRT's form; its weights may be links to other files.
        plan: file to write.
        backend: ``rtx`` or ``tensorrt``.
        targets: compute capabilities such as ``sm89``; for ``tensorrt`` the GPU in the machine decides.
        profiles: smallest, best and largest shape of each input, for each optimization profile.
        progress: called from another thread after each step of the builder.
        weight_streaming: let the runtime keep part of the weights in host memory.
        stitched: initializers of the graph that are given by address.
        timing: what was measured in earlier builds, for ``tensorrt``.

    Raises:
        RuntimeError: the package is missing, or the builder refuses the graph or a profile; the message has its reason,
            which names the layer.
        OSError: the plan cannot be written. Nothing is left of it.
    """
    trt = load_package(backend)
    callbacks = Callbacks()
    log = _log_class(trt, callbacks)()
    started = time.perf_counter()
    with ExitStack() as maps, plan.open("xb") as stream:
        try:
            addresses = {str(tensor.name): maps.enter_context(Stitched(tensor.parts)) for tensor in stitched}
            builder = trt.Builder(log)
            # Types are those of the graph. TensorRT 10 would choose its own without this; later ones know nothing else.
            network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
            with callbacks.delivered():
                parser = _parse(trt, network, log, onnx, TITLES[backend], addresses)
            config = _config(trt, builder, targets if backend == "rtx" else ())
            _add_profiles(builder, config, onnx.stem, profiles)
            if timing is not None:
                timing.attach(config)
            config.progress_monitor = monitor = _monitor_class(trt, callbacks)(progress)
            if weight_streaming:
                config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
            writer = _writer_class(trt, callbacks)(stream)
            done = _in_thread(lambda: builder.build_serialized_network_to_stream(network, config, writer), monitor)
            del parser  # the network refers to the weights that it has mapped
            callbacks.raise_kept()
            if writer.error is not None:
                raise OSError(f"cannot write {plan.name}: {writer.error.strerror or writer.error}") from writer.error
            if not done:
                raise RuntimeError(f"{TITLES[backend]} cannot build {onnx.stem}: {log.reason()}")
        except BaseException:
            plan.unlink()
            raise
        if timing is not None:
            timing.keep(config)
    memory = activation_bytes(log.kept, len(profiles))
    return Built(writer.size, writer.digest.hexdigest(), tuple(log.kept), memory, time.perf_counter() - started)


def activation_bytes(log: Sequence[str], profiles: int) -> tuple[int, ...]:
    """What the builder says of each profile's device memory; where it says nothing of one, the most of all."""
    found = dict.fromkeys(range(profiles), 0)
    current = 0
    for message in log:
        for line in message.split("\n"):
            if profile := _PROFILE.search(line):
                current = int(profile[1] or profile[2])
            for size in _MEMORY.findall(line):
                found[current] = max(found.get(current, 0), int(size))
    most = max(found.values())
    return tuple(found[index] or most for index in range(profiles))


def _parse(trt: Any, network: Any, log: Any, onnx: Path, name: str, addresses: Mapping[str, Stitched]) -> Any:
    """Fill the network from the graph, whose initializers in `addresses` are in memory; returns the parser."""
    parser = trt.OnnxParser(network, log)
    known = parser.load_model_proto(onnx.read_bytes(), str(onnx))
    for initializer, stitched in addresses.items():
        known = known and parser.load_initializer(initializer, stitched.address, stitched.size)
    if not (known and parser.parse_model_proto()):
        reasons = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise RuntimeError(f"{name} cannot read {onnx.name}: {'; '.join(reasons)}")
    return parser


def _config(trt: Any, builder: Any, targets: Sequence[str]) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if targets:
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), index)
    return config


def _add_profiles(builder: Any, config: Any, stage: str, profiles: Sequence[Shapes]) -> None:
    for index, shapes in enumerate(profiles):
        profile = builder.create_optimization_profile()
        try:
            for name, (smallest, best, largest) in shapes.items():
                profile.set_shape(name, smallest, best, largest)
        except ValueError as error:
            raise RuntimeError(f"profile {index} of {stage} is refused: {name} of {smallest} to {largest}") from error
        if config.add_optimization_profile(profile) != index:
            raise RuntimeError(f"profile {index} of {stage} is refused: {shapes}")


def _in_thread(build: Callable[[], bool], monitor: Any) -> bool:
    """Run the build beside the main thread, which alone sees Ctrl-C and then asks the builder to stop."""
    results: list[bool] = []
    errors: list[BaseException] = []
    ended = threading.Event()  # a thread whose join() was interrupted counts as ended, alive or not (Python 3.11)

    def run() -> None:
        try:
            results.append(build())
        except BaseException as error:  # of the bindings; here nobody would see it
            errors.append(error)
        finally:
            ended.set()

    threading.Thread(target=run, daemon=True).start()
    try:
        while not ended.wait(0.1):
            pass
    except BaseException:
        monitor.cancelled = True
        while not ended.is_set():
            with suppress(KeyboardInterrupt):  # a second Ctrl-C does not make it faster
                ended.wait()
        raise
    if errors:
        raise errors[0]
    return results[0]


def _log_class(trt: Any, callbacks: Callbacks) -> type:
    class Log(trt.ILogger):
        """Keeps the kernel listing and the errors."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.kept: list[str] = []
            self.errors: list[str] = []

        @callbacks.guarded()
        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR) and _NO_DRIVER not in message:
                self.errors.append(message.strip())
            elif any(word in message for word in _KEPT):
                self.kept.append(message)

        def reason(self) -> str:
            return self.errors[-1] if self.errors else "the builder gave no reason"

    return Log


def _writer_class(trt: Any, callbacks: Callbacks) -> type:
    class Writer(trt.IStreamWriter):
        """Writes and hashes at once. An error is kept, since none may pass through the builder."""

        def __init__(self, stream: Any) -> None:
            trt.IStreamWriter.__init__(self)
            self.stream, self.size, self.digest = stream, 0, hashlib.sha256()
            self.error: OSError | None = None

        @callbacks.guarded(0)
        def write(self, data: bytes) -> int:
            try:
                self.stream.write(data)
            except OSError as error:
                self.error = error
                return 0
            self.digest.update(data)
            self.size += len(data)
            return len(data)

    return Writer


def _monitor_class(trt: Any, callbacks: Callbacks) -> type:
    class Monitor(trt.IProgressMonitor):
        """Passes the builder's progress on, and its wish to stop back."""

        def __init__(self, progress: Progress | None) -> None:
            trt.IProgressMonitor.__init__(self)
            self.progress, self.cancelled = progress, False
            self.steps: dict[str, int] = {}

        @callbacks.guarded()
        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.steps[phase] = steps

        @callbacks.guarded(False)
        def step_complete(self, phase: str, step: int) -> bool:
            if self.progress and not callbacks.ending:
                self.progress(phase, step + 1, self.steps[phase])
            return not (self.cancelled or callbacks.ending)

        @callbacks.guarded()
        def phase_finish(self, phase: str) -> None:
            self.steps.pop(phase, None)

    return Monitor
