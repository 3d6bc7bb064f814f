"""What is found out about the machine: GPU, packages, and why there are none."""

import sys

import pytest
from support.engines.bundles import TOY
from support.engines.fake_cuda import FakeCudart
from support.engines.fake_tensorrt import FakeTensorRT

from runtime.backend.machine import look
from runtime.tensorrt import cuda
from runtime.tensorrt import package as trt


def test_what_is_found(monkeypatch):
    cudart = FakeCudart(total=24 * 10**9, capability=(12, 0))
    cudart.used = 10**9
    monkeypatch.setattr(cuda, "load_cudart", lambda: cudart)
    versions = {"rtx": FakeTensorRT(cudart, TOY, version="1.7.1.116")}

    def load(backend):
        if backend not in versions:
            raise trt.MissingPackageError("TensorRT is not installed; install the extra 'tensorrt'")
        return versions[backend]

    monkeypatch.setattr(trt, "load_package", load)
    machine = look(0, ["rtx", "tensorrt"])
    assert (machine.gpu.name, machine.gpu.capability) == ("Fake RTX 4090", "sm120")
    assert (machine.gpu.free, machine.gpu.total, machine.gpu.driver) == (23 * 10**9, 24 * 10**9, 13000)
    assert machine.versions == (("rtx", "1.7.1.116"),)
    assert machine.problems == (("tensorrt", "TensorRT is not installed; install the extra 'tensorrt'"),)


def test_cuda_bindings_are_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    machine = look(0, ["rtx"])
    assert machine.gpu is None
    assert machine.no_gpu.startswith("cuda-bindings cannot be imported (")
    assert machine.no_gpu.endswith("; install the extra 'rtx' (GeForce and RTX cards) or 'tensorrt'")


@pytest.mark.parametrize(
    ("driver", "problem"),
    [(0, "no NVIDIA driver is installed"), (12080, "the NVIDIA driver, for CUDA 12.8, is too old; update it")],
)
def test_what_is_wrong_with_the_driver(monkeypatch, driver, problem):
    """CUDA says the same of both: "CUDA driver version is insufficient for CUDA runtime version"."""
    cudart = FakeCudart()
    cudart.driver = driver
    monkeypatch.setattr(cuda, "load_cudart", lambda: cudart)
    assert look(0, ["rtx"]).no_gpu == f"this machine has no NVIDIA GPU that CUDA can use ({problem})"


def test_no_gpu_and_no_such_gpu(monkeypatch):
    monkeypatch.setattr(cuda, "load_cudart", lambda: FakeCudart(gpus=0))
    assert look(0, ["rtx"]).no_gpu == (
        "this machine has no NVIDIA GPU that CUDA can use (no CUDA-capable device is detected)"
    )
    monkeypatch.setattr(cuda, "load_cudart", lambda: FakeCudart(gpus=2))
    monkeypatch.setattr(trt, "load_package", lambda backend: FakeTensorRT(None, TOY))
    assert look(1, ["rtx"]).gpu.index == 1
    assert look(2, ["rtx"]).no_gpu == "this machine has 2 CUDA devices, and there is no cuda:2"
