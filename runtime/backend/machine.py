"""What the machine has for running engines: its GPU, and TensorRT in which versions."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from runtime.errors import RequestError, shown
from runtime.tensorrt import cuda
from runtime.tensorrt import package as trt
from runtime.tensorrt.cuda import Gpu

DEVICES = "auto, cpu, cuda or cuda:N"


@dataclass(frozen=True)
class Machine:
    """What was found."""

    gpu: Gpu | None
    no_gpu: str = ""
    """Without a GPU: why, as a part of a sentence."""
    versions: tuple[tuple[str, str], ...] = ()
    """Of the installed package of each backend that has one."""
    problems: tuple[tuple[str, str], ...] = ()
    """Why a backend's package cannot be used, and what to install."""


def device_index(device: str) -> int | None:
    """N of ``cuda:N``, 0 for ``cuda`` and ``auto``, None for ``cpu``; RequestError for anything else."""
    if device == "cpu":
        return None
    match = re.fullmatch(r"auto|cuda(?::(\d+))?", device)
    if not match:
        raise RequestError(f"device is {shown(device)}, wanted {DEVICES}")
    return int(match[1] or 0)


def look(index: int, backends: Iterable[str]) -> Machine:
    """The CUDA device with this index and, where there is one, the TensorRT packages of the given backends.

    Loads CUDA, and the packages; that takes part of a second, so call it for bundles with engines only.
    """
    try:
        gpu = cuda.find_gpu(cuda.load_cudart(), index)
    except (cuda.NoGpuError, cuda.MissingCudaError) as error:
        return Machine(None, str(error))
    versions, problems = [], []
    for backend in backends:
        try:
            versions.append((backend, trt.load_package(backend).__version__))
        except trt.MissingPackageError as error:
            problems.append((backend, str(error)))
    return Machine(gpu, "", tuple(versions), tuple(problems))
