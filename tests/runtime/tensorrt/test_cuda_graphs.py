"""Captured CUDA graphs: who captures, when, and when a capture is dropped.

The fake fails when a graph is captured before a plain run, and when one is launched after its context has changed.
"""

import numpy as np
import pytest
from support.engines.box import feeds, wanted
from support.engines.fake_enums import CudaGraphStrategy, DynamicShapesKernelSpecializationStrategy


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


def test_a_context_has_one_graph_that_goes_with_its_shapes(tensorrt_box):
    """Also when shapes come back: the context's own state is another one by then."""
    box = tensorrt_box
    graph = box.open()["dit_cond"]
    graph(**feeds(tokens=6, text=5))  # the largest first: nothing moves afterwards
    for tokens in (6, 6, 3, 3, 3, 6, 6, 6):
        values = feeds(tokens=tokens, text=5)
        assert np.array_equal(graph(**values), wanted(values))
        assert len(box.cudart.graphs) <= 1
    assert (box.cudart.count("instantiate"), box.cudart.count("launch")) == (3, 2 + 2 + 2)


def test_many_prompts_leave_one_graph(tensorrt_box):
    """Pictures of two steps with prompts of every length."""
    box = tensorrt_box
    graph = box.open()["dit_cond"]
    for text in (1, 2, 3, 4, 5) * 3:
        for _ in range(2):
            values = feeds(text=text)
            assert np.array_equal(graph(**values), wanted(values))
        assert len(box.cudart.graphs) == 1 and not box.cudart.captured


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
    assert box.cudart.count("launch") == 0 and box.cudart.calls.count(("capture",)) == 1, "tried once for these shapes"


def test_a_capture_that_cannot_be_made_executable_is_freed(tensorrt_box):
    box = tensorrt_box
    box.cudart.instantiable = False
    graph = box.open()["dit_cond"]
    for seed in range(3):
        values = feeds(seed=seed)
        assert np.array_equal(graph(**values), wanted(values))
    assert box.cudart.count("end capture") == 1 and not box.cudart.captured and not box.cudart.graphs


def test_an_engine_that_fails_in_a_capture(tensorrt_box):
    """The capture is ended; the run after it reports the failure."""
    box = tensorrt_box
    graph = box.open()["dit_cond"]
    graph(**feeds())
    box.trt.fail_running = True
    with pytest.raises(RuntimeError, match=r"failed running dit_cond"):
        graph(**feeds())
    assert box.cudart.capturing is None and not box.cudart.captured
    box.trt.fail_running = False
    values = feeds()
    for _ in range(3):
        assert np.array_equal(graph(**values), wanted(values))


def test_an_engine_that_fails_before_a_capture(tensorrt_box):
    """A run that failed has not brought the context up to date: the next one is no capture either."""
    box = tensorrt_box
    graph = box.open()["dit_cond"]
    box.trt.fail_running = True
    with pytest.raises(RuntimeError, match=r"failed running dit_cond"):
        graph(**feeds())
    box.trt.fail_running = False
    values = feeds()
    for _ in range(3):
        assert np.array_equal(graph(**values), wanted(values))


def test_kernels_do_not_change_while_they_run(box):
    """The fake compiles as TensorRT-RTX does: LAZY, its default, rounds in another way until a shape has run."""
    graph = box.open()["dit_cond"]
    values = feeds()
    first, second = graph(**values), graph(**values)
    assert np.array_equal(first, second) and np.array_equal(first, wanted(values))
    kernels = {context.config.dynamic_shapes_kernel_specialization_strategy for context in box.trt.contexts}
    assert kernels == {DynamicShapesKernelSpecializationStrategy.EAGER}
