"""Calls of engines through the whole TensorRT backend, on the fakes: numbers, batches, and what is refused."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from support.engines.box import ALONE, STEPS, constant, feeds, wanted
from support.engines.bundles import STAGES, TOY
from support.engines.fake_cuda import cudaError_t

from runtime.bundle.graph_specs import Profile
from runtime.tensorrt.cuda import CudaError


@pytest.mark.parametrize("level", ["resident", "staged", "swapped"])
def test_every_stage_computes(box, level):
    graphs = box.open(level, {"resident": (STAGES,), "staged": STEPS, "swapped": ALONE}[level])
    ids = np.array([[3, 1, 2]], np.int64)
    assert np.array_equal(graphs["text_encoder"](input_ids=ids), TOY["text_encoder"].function(ids))
    for seed in range(3):
        values = feeds(seed=seed)
        assert np.array_equal(graphs["dit_cond"](**values), wanted(values))
        del values["text"]
        values |= {name: values[name][:4] for name in ("rope_cos", "rope_sin")}
        assert np.array_equal(graphs["dit_uncond"](**values), TOY["dit_uncond"].function(**values))
    latents = np.abs(feeds(tokens=6)["latents"]).reshape(1, 2, 3, 8)
    assert np.array_equal(graphs["vae_decoder"](latents=latents), TOY["vae_decoder"].function(latents))


def test_the_result_belongs_to_the_caller(box):
    graph = box.open()["dit_cond"]
    first = graph(**feeds(seed=1))
    kept = first.copy()
    graph(**feeds(seed=2))
    assert np.array_equal(first, kept)


def test_arrays_need_not_be_contiguous(box):
    values = feeds()
    values["latents"] = np.asfortranarray(values["latents"])
    assert np.array_equal(box.open()["dit_cond"](**values), wanted(values))


def test_sizes_may_change_from_call_to_call(box):
    graph = box.open()["dit_cond"]
    for tokens, text in ((4, 2), (6, 5), (1, 1), (4, 2), (6, 1)):
        values = feeds(tokens=tokens, text=text)
        assert np.array_equal(graph(**values), wanted(values))


@pytest.mark.parametrize("pictures", [1, 2, 3, 5])
@pytest.mark.parametrize("read_only", [False, True])
def test_large_batches_run_in_parts(box, pictures, read_only):
    graph = box.open()["dit_cond"]
    values = feeds(pictures)
    if read_only:
        constant(values, "text", "rope_cos", "rope_sin")
    for _ in range(2):  # the second time with what the first left on the device
        assert np.array_equal(graph(**values), wanted(values))
    assert box.trt.runs == ["dit_cond"] * 2 * -(-pictures // 2)


def test_a_repeated_shape_is_not_set_again(box):
    graph = box.open()["dit_cond"]
    values = feeds()
    graph(**values)
    context = box.trt.contexts[STAGES.index("dit_cond")]
    before = len(context.history)
    graph(**values)
    assert len(context.history) == before
    graph(**feeds(tokens=3))
    assert len(context.history) > before


def test_wrong_feeds(box):
    graph = box.open()["dit_cond"]
    values = feeds()
    with pytest.raises(ValueError, match=r"graph dit_cond got latents with N = 7, and its engine takes 1 to 6"):
        graph(**feeds(tokens=7))
    with pytest.raises(ValueError, match=r"graph dit_cond got text with T = 6, and its engine takes 1 to 5"):
        graph(**feeds(text=6))
    with pytest.raises(ValueError, match=r"graph dit_cond got L = 6 and, in rope_sin, 5"):
        graph(**values | {"rope_sin": values["rope_sin"][:5]})
    with pytest.raises(ValueError, match=r"got latents as float64\[1, 4, 8\], wanted float32"):
        graph(**values | {"latents": values["latents"].astype(np.float64)})
    with pytest.raises(ValueError, match=r"graph dit_cond got the inputs"):
        graph(latents=values["latents"])
    assert not box.trt.runs


def test_shapes_that_tensorrt_refuses(box):
    specs = box.bundle.engines["toy"].graphs
    wide = {name: replace(spec, profiles=(Profile({}, 500),)) for name, spec in specs.items()}
    box.bundle = replace(box.bundle, engines={"toy": replace(box.bundle.engines["toy"], graphs=wide)})
    graph = box.open()["dit_cond"]
    with pytest.raises(
        RuntimeError, match=r"failed taking latents of the shape \[1, 99, 8\] for dit_cond: \[1, 99, 8\] is not in"
    ):
        graph(**feeds(tokens=99))
    values = feeds()
    assert np.array_equal(graph(**values), wanted(values)), "a refused shape leaves nothing behind"


def test_an_engine_that_fails(box):
    graph = box.open()["dit_cond"]
    box.trt.fail_running = True
    with pytest.raises(RuntimeError, match=r"TensorRT-RTX 1.7.1.116 failed running dit_cond: an illegal instruction"):
        graph(**feeds())


def test_a_cuda_call_that_fails(box, monkeypatch):
    graph = box.open()["dit_cond"]
    monkeypatch.setattr(box.cudart, "cudaStreamSynchronize", lambda stream: (cudaError_t.cudaErrorInvalidValue,))
    with pytest.raises(CudaError, match=r"CUDA failed running: cudaErrorInvalidValue"):
        graph(**feeds())


def test_threads_take_turns(box, monkeypatch):
    """While one waits for its result, another one's call must not fill the same buffers."""
    graph = box.open()["dit_cond"]
    mine, others = feeds(seed=1), feeds(seed=2)
    results = []
    thread = threading.Thread(target=lambda: results.append(graph(**others)))
    synchronize = box.cudart.cudaStreamSynchronize

    def wait(stream):
        if threading.current_thread() is not thread and not thread.is_alive() and not results:
            thread.start()
            thread.join(0.3)  # it ends, where nothing holds it back
        return synchronize(stream)

    monkeypatch.setattr(box.cudart, "cudaStreamSynchronize", wait)
    first = graph(**mine)
    thread.join()
    assert np.array_equal(first, wanted(mine)) and np.array_equal(results[0], wanted(others))


def test_closing_waits_for_a_call(box, monkeypatch):
    graph = box.open()["dit_cond"]
    thread = threading.Thread(target=box.close)
    function = TOY["dit_cond"].function
    monkeypatch.setattr(
        TOY["dit_cond"], "function", lambda **values: (thread.start(), thread.join(0.3), function(**values))[2]
    )
    values = feeds()
    assert np.array_equal(graph(**values), function(**values))
    thread.join()
    assert not box.cudart.allocated
