"""Which weights are on the device, and when they come and go."""

import gc
import logging

import numpy as np
import pytest
from support.engines.box import ALONE, STEPS, feeds, wanted
from support.engines.bundles import TOY_WEIGHTS
from support.engines.fake_cuda import cudaError_t

from runtime.errors import BackendError, ClosedError
from runtime.tensorrt.memory_plan import STREAMING_SCRATCH


def test_resident_holds_everything_from_the_start(box):
    box.open()
    assert box.weights() == sorted(TOY_WEIGHTS.values())
    assert len(box.trt.loads) == 4


def test_staged_holds_one_step(box):
    graphs = box.open("staged", STEPS)
    assert box.weights() == []
    graphs["text_encoder"](input_ids=np.array([[1]], np.int64))
    assert box.weights() == [9000]
    graphs["dit_cond"](**feeds())
    assert box.weights() == [9000, 9300]
    graphs["dit_cond"](**feeds())
    graphs["vae_decoder"](latents=np.ones((1, 2, 2, 8), np.float32))
    assert box.weights() == [1000]
    assert len(box.trt.loads) == 4, "engines stay when their weights go: a plan is deserialized once"
    graphs["text_encoder"](input_ids=np.array([[1]], np.int64))
    assert box.weights() == [9000] and len(box.trt.contexts) == 4 and len(box.trt.loads) == 4


def test_swapped_holds_one_engine(box):
    graphs = box.open("swapped", ALONE)
    values = feeds()
    uncond = {name: values[name][:4] for name in ("rope_cos", "rope_sin")}
    for _ in range(2):
        graphs["dit_cond"](**values)
        assert box.weights() == [9300]
        graphs["dit_uncond"](latents=values["latents"], timestep=values["timestep"], **uncond)
        assert box.weights() == [9000]


def test_streamed_keeps_a_part_of_the_weights(box):
    graphs = box.open("streamed", STEPS, (("dit_cond", 4000), ("dit_uncond", 3000)), streaming=True)
    values = feeds()
    assert np.array_equal(graphs["dit_cond"](**values), wanted(values))
    sizes = {len(memory) - 256 for memory in box.cudart.allocated.values()}
    assert {4000, 3000} <= sizes and not {9300, 9000} & sizes
    graphs["text_encoder"](input_ids=np.array([[1]], np.int64))
    assert box.weights() == [9000], "engines with weight streaming cannot be deferred: they are dropped"
    assert np.array_equal(graphs["dit_cond"](**values), wanted(values))
    assert len(box.trt.loads) == 5


def test_a_budget_that_tensorrt_does_not_take(box):
    """The bindings drop its answer; the budget is read back."""
    graphs = box.open("streamed", STEPS, (("dit_cond", 4000), ("dit_uncond", 3000)), streaming=True)
    box.trt.refused = {"budget"}
    with pytest.raises(
        BackendError, match=r"failed keeping 3070 bytes of the weights of dit_cond \(it keeps 8370\): the budget cannot"
    ):
        graphs["dit_cond"](**feeds())


def test_copies_of_streamed_weights_count(box):
    """What they need beyond the plan's allowance comes off the weights that stay; it is part of the scratch memory."""
    box.trt.streaming_scratch = STREAMING_SCRATCH + 1000
    box.cudart.total = 2 * 10**9
    graphs = box.open("streamed", STEPS, (("dit_cond", 4000), ("dit_uncond", 3000)), streaming=True)
    values = feeds()
    assert np.array_equal(graphs["dit_cond"](**values), wanted(values))
    assert graphs["dit_cond"].engine.engine.weight_streaming_budget_v2 == 3070 - 1000
    sizes = {len(memory) - 256 for memory in box.cudart.allocated.values()}
    assert 4096 + STREAMING_SCRATCH + 1000 in sizes, "the scratch memory"


def test_tensorrt_drops_engines_and_reads_them_again(tensorrt_box):
    box = tensorrt_box
    graphs = box.open("staged", STEPS)
    values = feeds()
    for _ in range(2):
        assert np.array_equal(graphs["dit_cond"](**values), wanted(values))
        graphs["vae_decoder"](latents=np.ones((1, 2, 2, 8), np.float32))
    assert box.weights() == [1000]
    assert len(box.trt.loads) == 2 * 3


def test_everything_is_freed_when_the_graphs_go(box):
    graphs = box.open()
    graphs["dit_cond"](**feeds())
    assert box.cudart.allocated
    del graphs, box.graphs
    gc.collect()
    assert not box.cudart.allocated and not box.cudart.pinned


def test_no_room_for_the_weights(box):
    """Nothing of the group that failed stays, and a later call may succeed."""
    box.cudart.used = 10**6 - 9200
    graphs = box.open("staged", STEPS)
    with pytest.raises(RuntimeError, match=r"failed loading .*: out of memory for weights"):
        graphs["dit_cond"](**feeds())
    assert box.weights() == []
    box.cudart.used = 0
    values = feeds()
    assert np.array_equal(graphs["dit_cond"](**values), wanted(values))


def test_no_room_for_a_resident_set(box):
    box.cudart.used = 10**6 - 20000
    with pytest.raises(RuntimeError, match=r"out of memory for weights"):
        box.open()
    gc.collect()
    assert not box.cudart.allocated


def test_weights_that_cannot_be_unloaded(box):
    """The engine is dropped with them; the others of its group are unloaded all the same."""
    graphs = box.open("staged", STEPS)
    graphs["dit_cond"](**feeds())
    box.trt.refused = {"unload"}
    with pytest.raises(BackendError, match=r"failed unloading the weights of dit_"):
        graphs["text_encoder"](input_ids=np.array([[1]], np.int64))
    assert box.weights() == []
    box.trt.refused = set()
    values = feeds()
    assert np.array_equal(graphs["dit_cond"](**values), wanted(values))


def test_a_call_that_fails_half_way_is_waited_for(box, monkeypatch):
    """Before its buffers are filled again, and its weights go, which the fake does not allow while it may run."""
    graphs = box.open("staged", STEPS)
    with monkeypatch.context() as broken:
        broken.setattr(graphs["dit_cond"].output, "read", lambda *what: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            graphs["dit_cond"](**feeds())
    assert not box.cudart.busy
    graphs["text_encoder"](input_ids=np.array([[1]], np.int64))


def test_weights_go_when_nothing_runs(box):
    graphs = box.open("staged", STEPS)
    graphs["dit_cond"](**feeds())
    box.cudart.busy.add(0)
    graphs["text_encoder"](input_ids=np.array([[1]], np.int64))
    assert box.weights() == [9000]


def test_what_could_not_be_released_is_released_later(box, monkeypatch):
    graphs = box.open("staged", STEPS)
    graph = graphs["dit_cond"]
    graph(**feeds())
    with monkeypatch.context() as broken:
        broken.setattr(graph.engine, "unload", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            graphs["text_encoder"](input_ids=np.array([[1]], np.int64))
    assert box.weights() == [9300] and graph.residency.held == ("dit_cond",) and not graph.residency.loaded
    graphs["text_encoder"](input_ids=np.array([[1]], np.int64))
    assert box.weights() == [9000]


def test_a_gpu_that_is_lost_does_not_break_the_end_of_the_process(box, monkeypatch, caplog):
    box.open()
    with monkeypatch.context() as lost:
        lost.setattr(box.cudart, "cudaSetDevice", lambda device: (cudaError_t.cudaErrorInvalidValue,))
        with caplog.at_level(logging.WARNING):
            box.close()
    assert "device memory was not freed: CUDA failed choosing the device" in caplog.text
    del box.graphs


def test_everything_is_freed_whatever_fails(box, monkeypatch, caplog):
    """Closing tries each thing, and says what failed first."""
    graphs = box.open()
    graphs["dit_cond"](**feeds())
    free, failed = box.cudart.cudaFree, []

    def fail_once_each(devPtr):
        free(devPtr)
        failed.append(devPtr)
        return (cudaError_t.cudaErrorInvalidValue,)

    monkeypatch.setattr(box.cudart, "cudaFree", fail_once_each)
    monkeypatch.setattr(box.cudart, "cudaFreeHost", lambda ptr: box.cudart.pinned.pop(ptr) and fail)
    fail = (cudaError_t.cudaErrorInvalidValue,)
    with caplog.at_level(logging.WARNING):
        box.close()
    assert caplog.text.count("device memory was not freed: CUDA failed freeing memory") == 1
    assert len(failed) > 8 and not box.cudart.allocated and not box.cudart.pinned
    assert ("destroy stream", 7) in box.cudart.calls


def test_a_closed_graph_is_not_loaded_again(box):
    graph = box.open()["dit_cond"]
    box.close()
    with pytest.raises(ClosedError, match="the pipeline was closed; load the bundle again"):
        graph(**feeds())
    assert not box.cudart.allocated and not box.cudart.pinned


def test_closing_leaves_the_threads_device_alone(box):
    """It may run in any thread, between two calls for another GPU."""
    box.cudart.gpus = 2
    box.open()
    box.cudart.cudaSetDevice(1)
    box.close()
    assert box.cudart.device == 1 and not box.cudart.allocated
