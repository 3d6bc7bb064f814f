"""TensorRT packages that are missing or broken."""

import sys

import pytest

from runtime.tensorrt import package as trt


@pytest.mark.parametrize(
    ("backend", "module", "message"),
    [
        ("rtx", "tensorrt_rtx", r"TensorRT-RTX is not installed \(.*\); install the extra 'rtx'"),
        ("tensorrt", "tensorrt", r"TensorRT is not installed \(.*\); install the extra 'tensorrt'"),
    ],
)
def test_tensorrt_is_not_installed(monkeypatch, backend, module, message):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(trt.MissingPackageError, match=message):
        trt.load_package(backend)


def test_tensorrt_cannot_be_loaded(monkeypatch, tmp_path):
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.11: no such file')")
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(trt.MissingPackageError, match=r"TensorRT is installed but cannot be loaded: libnvinfer.so.11"):
        trt.load_package("tensorrt")
