"""Engines through the whole TensorRT backend, with a fake GPU and a fake TensorRT that check how they are used."""

import gc
import json
import logging
import os
import sys
from dataclasses import replace

import numpy as np
import pytest
from support.engine_bundles import STAGES, TOY, TOY_WEIGHTS, toy_bundle
from support.fake_cuda import FakeCudart, cudaError_t
from support.fake_tensorrt import CudaGraphStrategy, EngineValidity, FakeTensorRT

from runtime.backend.machine import look
from runtime.errors import BundleError
from runtime.tensorrt import cuda, engines
from runtime.tensorrt import package as trt
from runtime.tensorrt.cuda import CudaError
from runtime.tensorrt.memory_plan import MemoryPlan

STEPS = (("text_encoder",), ("dit_cond", "dit_uncond"), ("vae_decoder",))
ALONE = tuple((stage,) for stage in STAGES)


class Box:
    """A machine with the fakes, a toy bundle, and what was opened."""

    def __init__(self, directory, monkeypatch, rtx=True):
        self.cudart = FakeCudart(total=10**6)
        self.trt = FakeTensorRT(self.cudart, TOY, rtx=rtx)
        self.directory, self.backend = directory, "rtx" if rtx else "tensorrt"
        self.bundle = toy_bundle(directory, backend=self.backend)
        self.kernels = directory / "kernels"
        monkeypatch.setattr(cuda, "load_cudart", lambda: self.cudart)
        monkeypatch.setattr(trt, "load_package", lambda backend: self.trt)

    def open(self, level="resident", groups=(STAGES,), budgets=(), streaming=False):
        one = replace(self.bundle.engines["toy"], weight_streaming=streaming)
        memory = MemoryPlan(level, groups, budgets, 0, "")
        files = self.bundle.files
        self.graphs, self.close = engines.open_engines(self.directory, files, STAGES, one, memory, 0, self.kernels)
        return self.graphs

    def weights(self):
        """Sizes of the weights that are on the device now."""
        sizes = [len(memory) - 256 for memory in self.cudart.allocated.values()]
        return sorted(size for size in sizes if size in TOY_WEIGHTS.values())


@pytest.fixture
def box(tmp_path, monkeypatch):
    made = Box(tmp_path, monkeypatch)
    yield made
    if hasattr(made, "close"):
        made.close()
    gc.collect()
    assert not made.cudart.allocated and not made.cudart.pinned and not made.cudart.graphs, "memory was left behind"


@pytest.fixture
def tensorrt_box(tmp_path, monkeypatch):
    made = Box(tmp_path, monkeypatch, rtx=False)
    yield made
    made.close()
    gc.collect()
    assert not made.cudart.allocated and not made.cudart.pinned and not made.cudart.graphs, "memory was left behind"


def feeds(pictures=1, tokens=4, text=2, seed=0):
    draw = np.random.RandomState(seed)
    made = {
        "latents": draw.randn(pictures, tokens, 8),
        "timestep": draw.randn(pictures),
        "rope_cos": draw.randn(tokens + text, 2),
        "rope_sin": draw.randn(tokens + text, 2),
        "text": draw.randn(pictures, text, 4),
    }
    return {name: array.astype(np.float32) for name, array in made.items()}


def constant(values, *names):
    for name in names:
        values[name].setflags(write=False)
    return values


def wanted(values):
    return TOY["dit_cond"].function(**values)


# Numbers


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


# Batches that are larger than the engine's


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


# What is not done twice


def test_constants_are_uploaded_once(box):
    graph = box.open()["dit_cond"]
    values = constant(feeds(), "text", "rope_cos", "rope_sin")
    for step in range(4):
        values["latents"] = feeds(seed=step)["latents"]
        assert np.array_equal(graph(**values), wanted(values))
    assert box.cudart.count("upload") == 5 + 3 * 2, "latents and timestep in every step, the others in the first"


def test_an_array_that_may_change_is_uploaded_again(box):
    graph = box.open()["dit_cond"]
    values = feeds()
    graph(**values)
    values["text"] += 1
    assert np.array_equal(graph(**values), wanted(values))


def test_another_constant_of_the_same_shape_is_uploaded(box):
    graph = box.open()["dit_cond"]
    for seed in range(3):
        values = constant(feeds(seed=seed), "text")
        assert np.array_equal(graph(**values), wanted(values))


def test_buffers_grow_and_stay(box):
    graph = box.open()["dit_cond"]
    for values in (feeds(2, 6, 5), feeds(1, 1, 1), feeds(2, 6, 5), feeds(1, 4, 2)):
        graph(**values)
    after_one = box.cudart.count("malloc")
    graph(**feeds(2, 6, 5))
    assert box.cudart.count("malloc") == after_one
    sizes = [size for call, size in box.cudart.calls if call == "malloc" and size not in TOY_WEIGHTS.values()]
    assert len(sizes) == 5 + 1 + 1, "five inputs, the output and the scratch memory, once each"


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


# Memory


def test_the_transformers_share_their_scratch_memory(box):
    graphs = box.open()
    values = feeds(tokens=6, text=5)
    graphs["dit_cond"](**values)
    uncond = {name: values[name][:6] for name in ("rope_cos", "rope_sin")}
    graphs["dit_uncond"](latents=values["latents"], timestep=values["timestep"], **uncond)
    places = [tuple(place) for context in box.trt.contexts for what, *place in context.history if what == "scratch"]
    assert len(places) == 2 and places[0] == places[1]


def test_a_grown_arena_is_told_to_every_engine(box):
    """The fake fails when a context runs on scratch memory that was freed."""
    graphs = box.open()
    small, large = feeds(tokens=1, text=1), feeds(tokens=6, text=5)
    graphs["dit_cond"](**small)
    uncond = {name: large[name][:6] for name in ("rope_cos", "rope_sin")}
    graphs["dit_uncond"](latents=large["latents"], timestep=large["timestep"], **uncond)
    assert np.array_equal(graphs["dit_cond"](**small), wanted(small))


def test_an_unknown_need_is_met_with_what_always_suffices(box):
    """TensorRT answers 0 for an error and for nothing needed."""
    box.trt.scratch_per_row = 0
    values = feeds()
    assert np.array_equal(box.open()["dit_cond"](**values), wanted(values))
    assert 4096 in [size for call, size in box.cudart.calls if call == "malloc"]


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
    assert box.weights() == [100]
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
    assert box.weights() == [100]
    assert len(box.trt.loads) == 2 * 3


def test_everything_is_freed_when_the_graphs_go(box):
    graphs = box.open()
    graphs["dit_cond"](**feeds())
    assert box.cudart.allocated
    del graphs, box.graphs
    gc.collect()
    assert not box.cudart.allocated and not box.cudart.pinned


# CUDA graphs


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


# Compiled kernels


def test_kernels_are_kept_for_the_next_start(box, tmp_path):
    box.open()
    box.close()
    (file,) = box.kernels.iterdir()
    assert file.name.startswith("rtx-1.7.1.116-sm89-fake-rtx-4090-") and file.suffix == ".kernels"
    content = file.read_bytes()
    assert content.startswith(b"kernels:") and content.count(b";") == 4
    box.open()
    assert box.trt.contexts[-1].config.cache.content.startswith(content)


def test_kernels_that_do_not_fit_are_replaced(box):
    box.open()
    box.close()
    (file,) = box.kernels.iterdir()
    file.write_bytes(b"of another driver")
    box.open()
    box.close()
    assert file.read_bytes().startswith(b"kernels:")


def test_kernels_that_did_not_change_are_not_written(box):
    box.open()
    box.close()
    (file,) = box.kernels.iterdir()
    os.utime(file, (1, 1))
    for context in box.trt.contexts:
        context.config.cache.content = file.read_bytes()
    store = engines.KernelCache(file)
    config = box.trt.contexts[0].config
    store.attach(config)
    store.store()
    assert file.stat().st_mtime == 1


def test_a_directory_that_cannot_be_written_is_no_error(box, caplog):
    box.kernels.write_text("a file in the way")
    box.open()
    with caplog.at_level(logging.WARNING):
        box.close()
    assert "cannot keep compiled kernels in" in caplog.text


# What goes wrong


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


def test_a_plan_that_tensorrt_refuses(box):
    plan = box.directory / "engines/toy/dit_cond.plan"
    plan.write_bytes(b"\x00" * 100)
    with pytest.raises(
        RuntimeError, match=r"TensorRT-RTX 1.7.1.116 failed loading dit_cond .*: the magic number does not match"
    ):
        box.open()


@pytest.mark.parametrize(
    ("found", "words"),
    [(1, "version mismatch"), (2, "unsupported cc"), (3, "version mismatch, unsupported cc"), (0, "gave no reason")],
)
def test_a_plan_that_cannot_run_here(box, found, words):
    """Seen in the plan's header, before anything is loaded."""
    box.trt.validity = (EngineValidity.INVALID, found)
    with pytest.raises(BundleError, match=rf"cannot run the plan .*: .*{words}; build the bundle's engines again"):
        box.open()
    assert not box.trt.loads and not box.cudart.allocated


def test_memory_was_planned_and_is_no_reason(box):
    box.trt.validity = (EngineValidity.INVALID, 16)
    box.open()


def test_a_plan_with_other_tensors(box):
    (box.directory / "engines/toy/dit_uncond.plan").write_text(json.dumps({"stage": "dit_cond", "weights": 1}))
    with pytest.raises(BundleError, match=r"the plan .*dit_uncond.plan has the tensors .*'text'.*, the manifest"):
        box.open()


def test_a_plan_with_other_types(box, monkeypatch):
    monkeypatch.setattr(TOY["dit_uncond"], "dtype", "bfloat16")
    with pytest.raises(BundleError, match=r"the plan .*dit_uncond.plan has velocity as .*7, the manifest as .*0"):
        box.open()


def test_a_plan_that_cannot_be_read(box, monkeypatch):
    def fail(self, size):
        raise OSError(5, "Input/output error")

    broken = type("Broken", (), {"read": fail, "seek": lambda self, *a: 0, "close": lambda self: None})
    real = trt._plan_reader

    def reader(module, plan):
        made = real(module, plan)
        made.file.close()
        made.file = broken()
        return made

    monkeypatch.setattr(trt, "_plan_reader", reader)
    with pytest.raises(RuntimeError, match=r"reading the plan .* failed: \[Errno 5\] Input/output error"):
        box.open()


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


def test_no_room_for_the_activations(box):
    graph = box.open()["dit_cond"]
    box.trt.scratch_per_row = 10**6
    with pytest.raises(
        CudaError, match=r"out of device memory: 0.03 GB were wanted and 0.00 GB are free; .*--memory staged"
    ):
        graph(**feeds())


def test_shapes_that_tensorrt_refuses(box):
    specs = box.bundle.engines["toy"].graphs
    wide = {name: replace(spec, sizes={}) for name, spec in specs.items()}
    box.bundle = replace(box.bundle, engines={"toy": replace(box.bundle.engines["toy"], graphs=wide)})
    graph = box.open()["dit_cond"]
    with pytest.raises(RuntimeError, match=r"failed taking latents of the shape \[1, 99, 8\] for dit_cond: 99 is not"):
        graph(**feeds(tokens=99))
    values = feeds()
    assert np.array_equal(graph(**values), wanted(values)), "a refused shape leaves nothing behind"


def test_an_engine_that_fails(box):
    graph = box.open()["dit_cond"]
    box.trt.fail_running = True
    with pytest.raises(RuntimeError, match=r"TensorRT-RTX 1.7.1.116 failed running dit_cond: an illegal instruction"):
        graph(**feeds())


def test_an_engine_that_fails_in_a_capture(tensorrt_box):
    """The capture is ended; the run after it reports the failure."""
    box = tensorrt_box
    graph = box.open()["dit_cond"]
    graph(**feeds())
    box.trt.fail_running = True
    with pytest.raises(RuntimeError, match=r"failed running dit_cond"):
        graph(**feeds())
    assert box.cudart.capturing is None


def test_a_cuda_call_that_fails(box, monkeypatch):
    graph = box.open()["dit_cond"]
    monkeypatch.setattr(box.cudart, "cudaStreamSynchronize", lambda stream: (cudaError_t.cudaErrorInvalidValue,))
    with pytest.raises(CudaError, match=r"CUDA failed running: cudaErrorInvalidValue"):
        graph(**feeds())


def test_a_gpu_that_is_lost_does_not_break_the_end_of_the_process(box, monkeypatch, caplog):
    box.open()
    with monkeypatch.context() as lost:
        lost.setattr(box.cudart, "cudaSetDevice", lambda device: (cudaError_t.cudaErrorInvalidValue,))
        with caplog.at_level(logging.WARNING):
            box.close()
    assert "device memory was not freed: CUDA failed choosing the device" in caplog.text
    caplog.clear()  # its record holds the error, which holds the engines
    del box.graphs


# The machine


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


def test_no_gpu_and_no_such_gpu(monkeypatch):
    monkeypatch.setattr(cuda, "load_cudart", lambda: FakeCudart(gpus=0))
    assert look(0, ["rtx"]).no_gpu == (
        "this machine has no NVIDIA GPU that CUDA can use (no CUDA-capable device is detected)"
    )
    monkeypatch.setattr(cuda, "load_cudart", lambda: FakeCudart(gpus=2))
    monkeypatch.setattr(trt, "load_package", lambda backend: FakeTensorRT(None, TOY))
    assert look(1, ["rtx"]).gpu.index == 1
    assert look(2, ["rtx"]).no_gpu == "this machine has 2 CUDA devices, and there is no cuda:2"
