"""Engines with several optimization profiles: which is chosen, and that each keeps what was set and captured in it."""

import numpy as np
import pytest
from support.engines.box import STEPS, Box, feeds, wanted
from support.engines.bundles import LARGE_TOY_SIZES, STAGES, TOY, TOY_SIZES, toy_bundle

from runtime.bundle.graph_specs import EngineSpec, Profile, SizeRange
from runtime.tensorrt.memory_plan import OVERHEAD, plan_memory
from runtime.tensorrt.profiles import choose_profile, profiles_text, range_text

BOTH = (TOY_SIZES, LARGE_TOY_SIZES)
"""Image tokens: 1 to 6, best 4, and 5 to 40, best 16."""


def spec(*ranges):
    """An engine with a profile for each (minimum, optimum, maximum) of both sides."""
    profiles = (Profile(dict.fromkeys(("H", "W"), SizeRange(*sides)), 0) for sides in ranges)
    return EngineSpec("x.plan", "bfloat16", (), (), tuple(profiles))


def entries(context, kind):
    """What was set in a context, of one kind."""
    return [entry for entry in context.history if entry[0] == kind]


@pytest.fixture
def two(tmp_path, monkeypatch):
    """The toy bundle with two profiles, for either package: two(rtx) -> box."""
    boxes = []

    def make(rtx=True):
        boxes.append(Box(tmp_path, monkeypatch, rtx, BOTH))
        return boxes[0]

    yield make
    for box in boxes:
        box.close()
        assert (
            not box.cudart.allocated and not box.cudart.pinned and not box.cudart.graphs and not box.cudart.captured
        ), "memory was left behind"


PAIR = spec((256, 512, 768), (256, 1024, 2048))


@pytest.mark.parametrize(
    ("height", "width", "profile"),
    [
        (512, 512, 0),
        (256, 256, 0),
        (640, 512, 0),
        (768, 768, 1),  # held by both; 1024 is nearer by ratio
        (720, 720, 0),
        (1024, 1024, 1),
        (1024, 512, 1),  # one side is more than the small profile holds
        (2048, 2048, 1),
        (2064, 512, None),
        (240, 240, None),
    ],
)
def test_the_nearest_optimum_of_those_that_hold_it(height, width, profile):
    assert choose_profile(PAIR, {"H": height, "W": width, "T": 7}) == profile


def test_of_equally_near_ones_the_smaller():
    for first, second, chosen in (
        ((256, 512, 2048), (256, 512, 1024), 1),
        ((256, 512, 1024), (256, 512, 2048), 0),
        ((512, 512, 2048), (512, 2048, 2048), 0),  # 1024 is twice the one and half the other
    ):
        assert choose_profile(spec(first, second), {"H": 1024, "W": 1024}) == chosen


def test_sizes_that_no_profile_holds_together():
    apart = spec((256, 512, 768), (1024, 1024, 2048))
    assert choose_profile(apart, {"H": 512, "W": 1024}) is None
    assert range_text(apart, "H") == "256 to 768 or 1024 to 2048"
    assert range_text(PAIR, "H") == "256 to 2048"
    assert range_text(spec((1, 2, 3), (4, 5, 6)), "W") == "1 to 6", "they touch"
    assert (
        profiles_text(apart, {"H": 512, "W": 1024})
        == "H 256 to 768 and W 256 to 768, or H 1024 to 2048 and W 1024 to 2048"
    )


@pytest.mark.parametrize("rtx", [True, False])
def test_each_call_runs_in_its_profile(two, rtx):
    box = two(rtx)
    graph = box.open()["dit_cond"]
    assert not box.trt.contexts, "made when they are used"
    for tokens in (4, 30, 4, 16, 6, 40, 4):
        values = feeds(tokens=tokens)
        assert np.array_equal(graph(**values), wanted(values))
    small, large = box.trt.contexts
    assert small.stage == large.stage == "dit_cond"
    assert not entries(small, "profile"), "the first context starts in profile 0"
    assert large.history[0] == ("profile", 1), "before any shape"
    assert {shape[1] for _, name, shape in entries(small, "shape") if name == "latents"} == {4, 6}
    assert {shape[1] for _, name, shape in entries(large, "shape") if name == "latents"} == {30, 16, 40}


def test_the_first_call_may_be_for_the_second_profile(two):
    box = two()
    values = feeds(tokens=40)
    assert np.array_equal(box.open()["dit_cond"](**values), wanted(values))
    (only,) = box.trt.contexts
    assert only.history[0] == ("profile", 1)


def test_stages_choose_for_themselves(two):
    """A long strip: few image tokens for the transformers, one side too long for the small profile of the VAE."""
    box = two()
    graphs = box.open()
    latents = np.abs(feeds(tokens=8)["latents"]).reshape(1, 2, 4, 8)
    assert np.array_equal(graphs["vae_decoder"](latents=latents), TOY["vae_decoder"].function(latents))
    graphs["dit_cond"](**feeds(tokens=5))
    chosen = {
        context.stage: [entry[1] for entry in context.history if entry[0] == "profile"] for context in box.trt.contexts
    }
    assert chosen == {"vae_decoder": [1], "dit_cond": []}


def test_captured_graphs_outlive_other_profiles(two):
    box = two(rtx=False)
    graph = box.open()["dit_cond"]
    graph(**feeds(tokens=40))  # the largest first: nothing moves afterwards
    for seed in range(4):
        for tokens in (4, 40):
            values = feeds(tokens=tokens, seed=seed)
            assert np.array_equal(graph(**values), wanted(values))
    assert box.cudart.count("instantiate") == 2 and len(box.cudart.graphs) == 2
    assert box.cudart.count("launch") == 4 + 3


def test_scratch_memory_is_that_of_the_profile(two):
    box = two()
    graph = box.open()["dit_cond"]
    graph(**feeds(tokens=4))
    graph(**feeds(tokens=40))
    sizes = [[size for _, _, size in entries(context, "scratch")] for context in box.trt.contexts]
    assert sizes == [[4096], [8192]]


def test_scratch_memory_of_the_largest_profile_where_tensorrt_wants_that(two):
    """The context of the small profile refuses less; the graphs give the same."""
    box = two()
    box.trt.whole_scratch = True
    graph = box.open()["dit_cond"]
    for tokens in (4, 40, 4):
        values = feeds(tokens=tokens)
        assert np.array_equal(graph(**values), wanted(values))
    assert [[size for _, _, size in entries(context, "scratch")] for context in box.trt.contexts] == [[8192], [8192]]


def test_contexts_survive_their_weights(two):
    """Staged: weights go with each step, contexts of both profiles stay."""
    box = two()
    graphs = box.open("staged", STEPS)
    for _ in range(2):
        graphs["text_encoder"](input_ids=np.array([[1]], np.int64))
        for tokens in (4, 40):
            values = feeds(tokens=tokens)
            assert np.array_equal(graphs["dit_cond"](**values), wanted(values))
    assert sorted(context.stage for context in box.trt.contexts) == ["dit_cond", "dit_cond", "text_encoder"]
    assert len(box.trt.loads) == 3, "a plan is deserialized once"


def test_tensorrt_makes_its_contexts_again(two):
    """It drops engines with their contexts, which then start in profile 0 again."""
    box = two(rtx=False)
    graphs = box.open("staged", STEPS)
    for _ in range(2):
        graphs["text_encoder"](input_ids=np.array([[1]], np.int64))
        for tokens in (40, 4):
            values = feeds(tokens=tokens)
            assert np.array_equal(graphs["dit_cond"](**values), wanted(values))
    of_cond = [context for context in box.trt.contexts if context.stage == "dit_cond"]
    assert [context.history[0] for context in of_cond] == [("profile", 1), ("profile", 0)] * 2


def test_batches_are_split_within_the_profile(two):
    box = two()
    values = feeds(pictures=5, tokens=40)
    assert np.array_equal(box.open()["dit_cond"](**values), wanted(values))
    assert box.trt.runs == ["dit_cond"] * 3


def test_sizes_outside_of_all_profiles(two):
    graph = two().open()["dit_cond"]
    with pytest.raises(ValueError, match=r"got latents with N = 41, and its engine takes 1 to 40$"):
        graph(**feeds(tokens=41))


def test_sizes_of_different_profiles(two):
    """One row of tokens is only in the small profile, six columns only in the large one."""
    graph = two().open()["vae_decoder"]
    message = (
        r"graph vae_decoder got grid_h = 1 and grid_w = 6, and its engine takes grid_h 1 to 3 and grid_w 1 to 3, or "
        r"grid_h 2 to 6 and grid_w 2 to 6 together"
    )
    with pytest.raises(ValueError, match=message):
        graph(latents=np.ones((1, 1, 6, 8), np.float32))


def test_memory_is_planned_for_the_largest_profile(tmp_path):
    manifest = toy_bundle(tmp_path, profiles=BOTH)
    engines = manifest.engines["toy"]
    assert [profile.activation_bytes for profile in engines.graphs["dit_cond"].profiles] == [500, 1000]
    plan = plan_memory(engines, manifest.files, STAGES, 10**10)
    assert plan.needed == sum(manifest.files[spec.plan].size for spec in engines.graphs.values()) + 1000 + OVERHEAD
