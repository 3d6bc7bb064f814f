"""Memory of inputs, outputs and scratch on the device: uploaded once, grown, shared."""

import numpy as np
import pytest
from support.engines.box import constant, feeds, wanted
from support.engines.bundles import TOY_WEIGHTS

from runtime.errors import BackendError
from runtime.tensorrt.cuda import CudaError


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


def test_scratch_memory_suffices_for_every_shape_of_the_profile(box):
    """As `set_device_memory` wants it: the fake refuses less. It is set once, whatever shapes come."""
    graph = box.open()["dit_cond"]
    for tokens in (1, 6, 4):
        graph(**feeds(tokens=tokens))
    (given,) = (entry for context in box.trt.contexts for entry in context.history if entry[0] == "scratch")
    assert given[2] == 4096


def test_an_engine_without_scratch_memory_is_given_none(box):
    box.trt.scratch = 0
    values = feeds()
    assert np.array_equal(box.open()["dit_cond"](**values), wanted(values))
    assert not [entry for context in box.trt.contexts for entry in context.history if entry[0] == "scratch"]


def test_scratch_memory_that_is_refused(box):
    """`set_device_memory` returns nothing; only the log says that it kept what it had."""
    graph = box.open()["dit_cond"]
    box.trt.refused = {"scratch"}
    with pytest.raises(
        BackendError, match=r"failed giving dit_cond 4096 bytes of scratch memory: 4096 bytes at \d+ are not the"
    ):
        graph(**feeds())


def test_no_room_for_the_activations(box):
    box.trt.scratch = 4 * 10**7
    graph = box.open()["dit_cond"]
    with pytest.raises(
        CudaError, match=r"out of device memory: 0.04 GB were wanted and 0.00 GB are free; .*--memory staged"
    ):
        graph(**feeds())
