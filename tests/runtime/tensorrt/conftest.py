"""Fixtures: machines with a fake GPU and a fake TensorRT."""

import gc
from importlib.util import find_spec

import pytest
from support.engines.box import Box
from support.engines.demo import EngineBundle

# These two are about TensorRT's own packages, which the boxes without torch that run tests/runtime do not have either.
collect_ignore = [] if find_spec("torch") else ["test_used_names.py", "test_without_gpu.py"]


@pytest.fixture
def box(tmp_path, monkeypatch):
    """The toy bundle for TensorRT-RTX; when it is closed, nothing may be left on the device."""
    made = Box(tmp_path, monkeypatch)
    yield made
    if hasattr(made, "close"):
        made.close()
    gc.collect()
    assert (
        not made.cudart.allocated and not made.cudart.pinned and not made.cudart.graphs and not made.cudart.captured
    ), "memory was left behind"


@pytest.fixture
def tensorrt_box(tmp_path, monkeypatch):
    """The same for TensorRT."""
    made = Box(tmp_path, monkeypatch, rtx=False)
    yield made
    made.close()
    gc.collect()
    assert (
        not made.cudart.allocated and not made.cudart.pinned and not made.cudart.graphs and not made.cudart.captured
    ), "memory was left behind"


@pytest.fixture
def bundle(demo_bundle, tmp_path, monkeypatch):
    """The demo bundle with engines that compute what its graphs compute."""
    return EngineBundle(demo_bundle, tmp_path / "bundle", monkeypatch)
