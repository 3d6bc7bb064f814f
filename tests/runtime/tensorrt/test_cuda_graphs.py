"""Captured CUDA graphs: who captures, when, and when a capture is dropped."""

import numpy as np
import pytest
from support.engines.box import feeds, wanted
from support.engines.fake_tensorrt import CudaGraphStrategy


def test_rtx_captures_by_itself(box):
    graph = box.open()["dit_cond"]
    for _ in range(3):
        graph(**feeds())
    assert {context.config.cuda_graph_strategy for context in box.trt.contexts} == {
        CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    }
    assert box.cudart.count("launch") == 0


def test_tensorrt_is_captured_at_the_second_run(tensorrt_box):
    box = tensorrt_box
    graph = box.open()["dit_cond"]
    for seed in range(4):
        values = feeds(seed=seed)
        assert np.array_equal(graph(**values), wanted(values))
    assert (box.cudart.count("instantiate"), box.cudart.count("launch")) == (1, 3)
    assert box.trt.runs == ["dit_cond"] * 2, "once without and once for the capture"


@pytest.mark.parametrize("rtx", [False, True], ids=["tensorrt", "rtx"])
def test_without_cuda_graphs(rtx, request):
    """As the self-test runs engines for comparing."""
    box = request.getfixturevalue("box" if rtx else "tensorrt_box")
    graph = box.open(cuda_graphs=False)["dit_cond"]
    for seed in range(3):
        values = feeds(seed=seed)
        assert np.array_equal(graph(**values), wanted(values))
    assert box.cudart.count("launch") == 0
    if rtx:
        strategies = {context.config.cuda_graph_strategy for context in box.trt.contexts}
        assert strategies == {CudaGraphStrategy.DISABLED}


def test_each_shape_has_its_own_graph(tensorrt_box):
    box = tensorrt_box
    graph = box.open()["dit_cond"]
    graph(**feeds(tokens=6, text=5))  # the largest first: nothing moves afterwards
    for _ in range(3):
        for tokens in (6, 3):
            values = feeds(tokens=tokens, text=5)
            assert np.array_equal(graph(**values), wanted(values))
    assert box.cudart.count("instantiate") == 2


def test_graphs_are_dropped_when_memory_moves(tensorrt_box):
    box = tensorrt_box
    graph = box.open()["dit_cond"]
    for tokens in (1, 1, 1, 6, 6, 6):
        values = feeds(tokens=tokens)
        assert np.array_equal(graph(**values), wanted(values))
    assert box.cudart.count("instantiate") == 2 and len(box.cudart.graphs) == 1


def test_what_cannot_be_captured_runs_without(tensorrt_box):
    box = tensorrt_box
    box.cudart.capturable = False
    graph = box.open()["dit_cond"]
    for seed in range(3):
        values = feeds(seed=seed)
        assert np.array_equal(graph(**values), wanted(values))
    assert box.cudart.count("launch") == 0


def test_an_engine_that_fails_in_a_capture(tensorrt_box):
    """The capture is ended; the run after it reports the failure."""
    box = tensorrt_box
    graph = box.open()["dit_cond"]
    graph(**feeds())
    box.trt.fail_running = True
    with pytest.raises(RuntimeError, match=r"failed running dit_cond"):
        graph(**feeds())
    assert box.cudart.capturing is None
