"""Plans to pictures, without a server: what runs together, what cancels, what an error reaches."""

import math
from dataclasses import replace

import numpy as np
import pytest

from runtime import Pipeline
from runtime.errors import NonFiniteError
from runtime.plan import make_plan
from runtime.sampling.schedule import PRESETS
from serving.batching import Cancelled, Expired, Row, grouped, make_pictures, run
from serving.requests import Ask
from serving.service import OVERFLOWS, Engine, EngineFailedError, vae_graphs
from serving.settings import Limits, Settings
from serving.tensors import INPUTS


@pytest.fixture
def pipeline(demo_bundle):
    return Pipeline.load(demo_bundle, threads=1)


def plan_of(pipeline, prompt="a cat", **settings):
    return make_plan(pipeline.manifest, pipeline.prompt, prompt, **{"steps": 2, "seed": 0} | settings)


def ask(*plans, cancelled=lambda: False):
    return Ask(plans, cancelled)


def counted(pipeline):
    """The number of pictures of each run from now on, in order."""
    runs, run = [], pipeline.run

    def noted(plan, *rest, **more):
        runs.append(plan.num_images)
        return run(plan, *rest, **more)

    pipeline.run = noted
    return runs


def images(outcome):
    return np.stack([picture.image for picture in outcome])


def test_what_differs_in_the_seed_alone_runs_together_and_stays_the_same(pipeline):
    """Equal in every byte: on a CPU the batch size changes no sum's order."""
    plans = [plan_of(pipeline, seed=seed, num_images=count) for seed, count in ((1, 1), (2, 2), (3, 1))]
    alone = [pipeline.run(plan) for plan in plans]
    runs = counted(pipeline)
    outcomes = make_pictures(pipeline, [ask(plan) for plan in plans], limit=4)
    assert runs == [4]
    for outcome, made in zip(outcomes, alone, strict=True):
        assert np.array_equal(images(outcome), made.images)
        assert [picture.used for picture in outcome] == [made.used | {"index": i} for i in range(len(made.images))]


@pytest.mark.parametrize(
    "other",
    [{"prompt": "two"}, {"steps": 3}, {"width": 320}, {"guidance": 4.0}, {"mu": 0.1}, {"unconditional": "conditional"}],
    ids=str,
)
def test_what_differs_in_anything_else_does_not(pipeline, other):
    plans = [plan_of(pipeline, seed=1), plan_of(pipeline, **{"seed": 2} | other), plan_of(pipeline, seed=3)]
    runs = counted(pipeline)
    outcomes = make_pictures(pipeline, [ask(plan) for plan in plans], limit=8)
    assert sorted(runs) == [1, 2]
    for plan, outcome in zip(plans, outcomes, strict=True):
        assert np.array_equal(images(outcome), pipeline.run(plan).images)


def test_groups_keep_to_the_limit(pipeline):
    plan = plan_of(pipeline)
    rows = [Row(ask(plan), replace(plan, seed=seed, num_images=count)) for seed, count in enumerate((1, 2, 2, 7, 1, 3))]
    assert list(grouped(rows, 4)) == [[0, 1], [2], [3], [4, 5]]
    assert list(grouped(rows, 1)) == [[0], [1], [2], [3], [4], [5]]


def test_rows_of_a_request_come_back_in_order(pipeline):
    plans = [plan_of(pipeline, prompt, seed=seed) for prompt, seed in (("x", 1), ("y", 2), ("x", 3))]
    runs = counted(pipeline)
    [outcome] = make_pictures(pipeline, [ask(*plans)], limit=4)
    assert runs == [2, 1]
    assert [picture.used["seed"] for picture in outcome] == [1, 2, 3]
    assert np.array_equal(images(outcome), np.concatenate([pipeline.run(plan).images for plan in plans]))


def test_a_run_stops_within_a_step_when_all_are_cancelled(pipeline):
    steps, graph = [], pipeline.graphs["dit_cond"]

    def count(**feeds):
        steps.append(None)
        return graph(**feeds)

    pipeline.graphs["dit_cond"] = count
    plan = plan_of(pipeline, steps=50, guidance=1.0)
    [outcome] = make_pictures(pipeline, [ask(plan, cancelled=lambda: len(steps) == 3)], limit=4)
    assert isinstance(outcome, Cancelled) and len(steps) == 3


def test_a_run_goes_on_while_anyone_waits(pipeline):
    plans = [plan_of(pipeline, seed=seed) for seed in (1, 2)]
    wanted = pipeline.run(plans[1]).images
    outcomes = make_pictures(pipeline, [ask(plans[0], cancelled=lambda: True), ask(plans[1])], limit=4)
    assert np.array_equal(images(outcomes[1]), wanted)


def test_a_cancelled_request_is_not_begun(pipeline):
    runs = counted(pipeline)
    [outcome] = make_pictures(pipeline, [ask(plan_of(pipeline), cancelled=lambda: True)], limit=4)
    assert isinstance(outcome, Cancelled) and runs == []


def failing(pipeline, when, error):
    """Make each run of a plan for which `when` holds raise `error`."""
    run = pipeline.run

    def sometimes(plan, *rest, **more):
        if when(plan):
            raise error
        return run(plan, *rest, **more)

    pipeline.run = sometimes


def test_an_error_reaches_only_whom_it_concerns(pipeline):
    """Two together are too much for the memory, and seed 2 is by itself."""
    plans = [plan_of(pipeline, seed=seed) for seed in (1, 2, 3)]
    wanted = [pipeline.run(plan).images for plan in plans]
    error = RuntimeError("out of memory")
    failing(pipeline, lambda plan: plan.num_images > 1 or plan.seed == 2, error)
    outcomes = make_pictures(pipeline, [ask(plan) for plan in plans], limit=4)
    assert outcomes[1] is error
    assert np.array_equal(images(outcomes[0]), wanted[0]) and np.array_equal(images(outcomes[2]), wanted[2])


def test_engine_survives_what_is_the_requests_own_fault(pipeline):
    engine = Engine(pipeline, Limits(4))
    errors = [RuntimeError("out of memory"), MemoryError(), NonFiniteError("NaN"), KeyError("a bug")]
    for error in errors:
        run = pipeline.run
        failing(pipeline, lambda plan: plan.seed == 9, error)
        assert engine.answer([ask(plan_of(pipeline, seed=9))]) == [error]
        assert engine.failure is None
        pipeline.run = run
    assert images(engine.answer([ask(plan_of(pipeline))])[0]).shape == (1, 128, 128, 3)


def test_engine_that_fails_its_check_answers_nobody_any_more(pipeline):
    engine = Engine(pipeline, Limits(4))
    run = pipeline.run
    failing(pipeline, lambda plan: True, RuntimeError("CUDA error 700"))
    plans = [plan_of(pipeline, seed=1), plan_of(pipeline, "other", seed=2)]
    outcomes = engine.answer([ask(plan) for plan in plans])
    assert all(isinstance(outcome, EngineFailedError) for outcome in outcomes)
    assert str(outcomes[0]) == "the engine failed: CUDA error 700; since then: CUDA error 700"
    pipeline.run = run  # even if it seems to work again: what it then makes is not to be trusted
    assert engine.answer([ask(plans[0])]) == outcomes[:1]
    assert engine.answer_in_steps(ask(plans[0]), lambda *step: None) is outcomes[0]


def test_engine_that_cannot_make_a_picture_is_not_loaded(demo_bundle, monkeypatch):
    settings = Settings(demo_bundle, "auto", "cpu", 1, "auto", True, Limits(4))
    assert Engine.load(settings).limits == Limits(4)

    def run(*arguments, **more):
        raise RuntimeError("no memory for a picture")

    monkeypatch.setattr(Pipeline, "run", run)
    with pytest.raises(RuntimeError, match="no memory for a picture"):
        Engine.load(settings)


def test_progress_of_one_request(pipeline):
    engine, seen = Engine(pipeline, Limits(4)), []
    plan = plan_of(pipeline, steps=3, num_images=2)
    outcome = engine.answer_in_steps(ask(plan), lambda done, total, latents: seen.append((done, total, latents.shape)))
    assert seen == [(done, 3, (2, 64, 128)) for done in (1, 2, 3)]
    assert np.array_equal(images(outcome), pipeline.run(plan).images)
    stopped = engine.answer_in_steps(ask(plan, cancelled=lambda: len(seen) == 4), lambda *step: seen.append(step))
    assert isinstance(stopped, Cancelled) and len(seen) == 4 and engine.failure is None


def test_a_request_that_takes_too_long_is_stopped_behind_its_step(pipeline):
    """It has until the third step begins, as far as the clock can tell."""
    done = []
    late = Ask((plan_of(pipeline, steps=50),), lambda: False, until=math.inf)

    def progress(step, total, latents):
        done.append(step)
        if step == 3:
            object.__setattr__(late, "until", -math.inf)

    with pytest.raises(Expired, match="has taken as long as it may"):
        run(pipeline, [Row(late, late.plans[0])], progress)
    assert done == [1, 2, 3]
    runs = counted(pipeline)
    (outcome,) = make_pictures(pipeline, [late], limit=4)
    assert isinstance(outcome, Expired) and runs == [], "one that has waited for too long is not begun"


def test_a_late_request_does_not_stop_its_neighbour(pipeline):
    plans = [plan_of(pipeline, seed=seed) for seed in (1, 2)]
    late, patient = Ask(plans[:1], lambda: False, until=-math.inf), Ask(plans[1:], lambda: False)
    outcomes = make_pictures(pipeline, [late, patient], limit=4)
    assert np.array_equal(images(outcomes[1]), pipeline.run(plans[1]).images)
    gone = Ask(plans[1:], lambda: True)
    assert all(isinstance(outcome, Cancelled) for outcome in make_pictures(pipeline, [late, gone], limit=4))


ALL = [spec.name for spec in INPUTS]
TEXT = ["prompt", "seed", "steps"]


@pytest.mark.parametrize(
    ("inputs", "maximum", "wanted"),
    [
        (ALL, 2048, "vae_decoder vae_encoder vae_decoder_tile vae_encoder_tile"),
        (ALL, 1024, "vae_decoder vae_encoder vae_decoder_tile vae_encoder_tile"),
        (TEXT, 2048, "vae_decoder"),
        ([*TEXT, "width"], 2048, "vae_decoder vae_decoder_tile"),
        ([*TEXT, "width"], 1024, "vae_decoder"),
        ([*TEXT, "vae_tile"], 1024, "vae_decoder vae_decoder_tile"),
        ([*TEXT, "image"], 1024, "vae_decoder vae_encoder"),
        ([*TEXT, "image"], 2048, "vae_decoder vae_encoder vae_decoder_tile vae_encoder_tile"),
    ],
)
def test_only_what_the_offered_inputs_need_is_loaded(pipeline, inputs, maximum, wanted):
    manifest = replace(pipeline.manifest, sizes=replace(pipeline.manifest.sizes, maximum=maximum))
    assert vae_graphs(manifest, inputs) == wanted.split()
    graphs = {name: graph for name, graph in manifest.graphs.items() if not name.endswith("_tile")}
    assert vae_graphs(replace(manifest, graphs=graphs), inputs) == [
        n for n in wanted.split() if not n.endswith("_tile")
    ]


def test_an_instance_loads_what_its_settings_say(demo_bundle, monkeypatch):
    given, load = {}, Pipeline.load
    monkeypatch.setattr(Pipeline, "load", lambda *args, **kwargs: given.update(kwargs) or load(*args, **kwargs))
    settings = Settings(demo_bundle, "auto", "cpu", 1, "auto", True, Limits(4), 5 * 10**9, frozenset(TEXT))
    engine = Engine.load(settings)
    assert given["max_memory"] == 5 * 10**9
    assert sorted(engine.pipeline.graphs) == ["dit_cond", "dit_uncond", "text_encoder", "vae_decoder"]


class Overflowing:
    """A pipeline's run that gives NaN for some plans, or for all."""

    def __init__(self, pipeline, bad):
        self.run, self.bad, self.plans = pipeline.run, bad, []
        pipeline.run = self

    def __call__(self, plan, *rest, **more):
        self.plans.append(plan)
        if self.bad(plan):
            raise NonFiniteError("dit_cond gave NaN or infinite values")
        return self.run(plan, *rest, **more)


def test_a_backend_that_gives_nan_for_every_request_fails(pipeline):
    engine = Engine(pipeline, Limits(4))
    calls = Overflowing(pipeline, lambda plan: True)
    outcomes = [engine.answer([ask(plan_of(pipeline, seed=seed))])[0] for seed in range(OVERFLOWS)]
    assert [type(outcome) for outcome in outcomes] == [NonFiniteError] * (OVERFLOWS - 1) + [EngineFailedError]
    assert engine.failure is outcomes[-1] and len(calls.plans) == OVERFLOWS + 1
    assert len(calls.plans[-1].steps) == len(PRESETS[pipeline.manifest.default_preset].guidance), "a whole picture"
    assert engine.answer([ask(plan_of(pipeline))]) == outcomes[-1:] and len(calls.plans) == OVERFLOWS + 1


@pytest.mark.parametrize("stream", [False, True])
def test_requests_that_overflow_by_themselves_fail_no_instance(pipeline, stream):
    """However many a client sends: a plain picture can be made."""
    engine = Engine(pipeline, Limits(4))
    calls = Overflowing(pipeline, lambda plan: plan.seed == 666)
    bad, good = ask(plan_of(pipeline, seed=666)), ask(plan_of(pipeline, seed=1))

    def answer(one):
        return engine.answer_in_steps(one, lambda *step: None) if stream else engine.answer([one])[0]

    for _ in range(3 * OVERFLOWS):
        assert isinstance(answer(bad), NonFiniteError) and engine.failure is None
    assert [plan.seed for plan in calls.plans].count(0) == 3, "one look at the pipeline for every few"
    for _ in range(3):
        for _ in range(OVERFLOWS - 1):
            assert isinstance(answer(bad), NonFiniteError)
        assert not isinstance(answer(good), Exception)
    assert [plan.seed for plan in calls.plans].count(0) == 3, "a good one in between is proof enough"
