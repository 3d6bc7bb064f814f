"""Which weights are on the device, and when they come and go."""

import gc
import logging

import numpy as np
import pytest
from support.engines.box import ALONE, STEPS, feeds, wanted
from support.engines.bundles import TOY_WEIGHTS
from support.engines.fake_cuda import cudaError_t


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


def test_a_gpu_that_is_lost_does_not_break_the_end_of_the_process(box, monkeypatch, caplog):
    box.open()
    with monkeypatch.context() as lost:
        lost.setattr(box.cudart, "cudaSetDevice", lambda device: (cudaError_t.cudaErrorInvalidValue,))
        with caplog.at_level(logging.WARNING):
            box.close()
    assert "device memory was not freed: CUDA failed choosing the device" in caplog.text
    caplog.clear()  # its record holds the error, which holds the engines
    del box.graphs
