"""Negative prompts: the second pass is the conditional transformer on what should not appear."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from runtime import Pipeline, RequestError
from runtime.cli.main import main
from runtime.image.output_files import read_settings
from runtime.plan import NEGATIVE, make_plan
from runtime.sampling.denoise import denoise
from runtime.sampling.velocity import bind

FAST = {"steps": 2, "seed": 3, "width": 128, "height": 128}
PROMPT = "a circle on a white background"
CHOICE = "a red or blue circle at the center on a white background"


@pytest.fixture(scope="module")
def pipeline(demo_bundle):
    return Pipeline.load(demo_bundle)


def plan_of(pipeline, **fields):
    return make_plan(pipeline.manifest, pipeline.prompt, PROMPT, **FAST | fields)


def test_red_is_rarer_with_a_negative_red(pipeline):
    """40 seeds; red is a picture with more than 1 % of red pixels.

    The demo's captions name a colour and a place; without them ("a circle on a white background") it draws nothing, in
    40 of 40 pictures. So the prompt leaves it a choice. Measured: 39 red pictures without, 0 with the negative prompt.
    """

    def red(**fields):
        count = 0
        for seed in range(40):
            made = pipeline.generate(CHOICE, seed=seed, preset="V4_TURBO_12", guidance=3, **fields).images[0]
            r, g, b = (made[..., channel].astype(int) for channel in range(3))
            count += np.mean((r > g + 60) & (r > b + 60)) > 0.01
        return count

    assert red() >= 30
    assert red(negative_prompt="a red circle at the center on a white background") <= 10


def test_the_velocity_is_guided_away_from_the_negative_text(pipeline):
    """``g * v(prompt) + (1 - g) * v(negative)``, both from the conditional transformer."""
    plan = plan_of(pipeline, negative_prompt="a red circle")
    graph, noise = pipeline.graphs["dit_cond"], pipeline.noise(plan)
    negative = pipeline.encode(np.array([plan.negative_token_ids]))
    velocities = [bind(graph, pipeline.manifest, plan.grid, text) for text in (pipeline.text(plan), negative)]
    *_, wanted = denoise(*velocities, noise, plan.steps)
    *_, latents = pipeline.trajectory(plan)
    assert np.array_equal(latents, wanted)
    assert plan.unconditional == NEGATIVE and not plan.needs_unconditional_graph


def test_a_batch_of_pictures(pipeline):
    """Other batch sizes choose other matrix kernels: 1 of 255, in few places."""
    plan = plan_of(pipeline, negative_prompt="a red circle", num_images=2)
    both = pipeline.run(plan).images
    for index, noise in enumerate(pipeline.noise(plan)):
        alone = pipeline.run(replace(plan, num_images=1), noise[None]).images
        assert np.abs(both[index].astype(int) - alone[0]).max() <= 1


def test_it_starts_from_pictures_too(pipeline):
    picture = np.full((128, 128, 3), 200, np.uint8)
    images = [
        pipeline.generate(PROMPT, image=picture, strength=0.5, negative_prompt=negative, **FAST).images
        for negative in (None, "a red circle")
    ]
    assert not np.array_equal(*images)


def test_steps_without_guidance_do_not_run_it(pipeline):
    plan = plan_of(pipeline, negative_prompt="a red circle", guidance=(7.0, 1.0))
    calls = []

    class Counted:
        def __call__(self, **feeds):
            calls.append(feeds["text"].shape[1])
            return graph(**feeds)

    graph = pipeline.graphs["dit_cond"]
    counting = Pipeline(pipeline.manifest, pipeline.graphs | {"dit_cond": Counted()}, pipeline.prompt, "ort", "cpu")
    list(counting.trajectory(plan))
    text, negative = len(plan.token_ids), len(plan.negative_token_ids)
    assert text != negative and calls == [text, negative, text]


def test_the_unconditional_transformer_need_not_be_loaded(demo_bundle):
    with Pipeline.load(demo_bundle, unconditional=False) as pipeline:
        assert pipeline.generate(PROMPT, negative_prompt="a red circle", **FAST).used["unconditional"] == NEGATIVE


@pytest.mark.parametrize("negative", [False, True])
def test_on_two_devices(pipeline, demo_bundle, negative):
    """With a second copy the pass runs beside the prompt's, else after it; the picture is the same."""
    with Pipeline.load(demo_bundle, devices=("cpu", "cpu"), negative=negative) as two:
        assert ("dit_negative" in two.graphs) == negative
        made = two.generate(PROMPT, negative_prompt="a red circle", **FAST)
    assert np.array_equal(made.images, pipeline.generate(PROMPT, negative_prompt="a red circle", **FAST).images)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"unconditional": "graph"}, "negative_prompt and unconditional 'graph' exclude each other"),
        ({"unconditional": "off"}, "negative_prompt and unconditional 'off' exclude each other"),
        ({"guidance": 1}, "negative_prompt needs guidance, and all of it is 1"),
        ({"steps": None, "preset": "V4_FAST_20"}, "negative_prompt needs guidance, and all of it is 1"),
        ({"guidance_interval": (0.98, 0.99)}, "the guidance interval 0.98:0.99 holds no step with guidance"),
        ({"negative_prompt": " "}, "negative_prompt: the prompt is empty"),
        ({"negative_prompt": "x " * 3000}, "negative_prompt: the prompt has .* tokens"),
    ],
)
def test_refused(pipeline, fields, message):
    with pytest.raises(RequestError, match=message):
        plan_of(pipeline, **{"negative_prompt": "a red circle"} | fields)


def test_the_command_writes_it_into_the_picture_with_previews(demo_bundle, tmp_path):
    options = ["--bundle", str(demo_bundle), "--prompt", PROMPT, "--steps", "2", "--seed", "3", "--quiet"]
    preview = tmp_path / "preview.png"
    more = ["--negative-prompt", "a red circle", "--preview", str(preview), "--output", str(tmp_path / "a.png")]
    assert main([*options, *more]) == 0
    assert main([*options, "--output", str(tmp_path / "b.png")]) == 0
    assert read_settings(tmp_path / "a.png")["negative_prompt"] == "a red circle"
    assert "negative_prompt" not in read_settings(tmp_path / "b.png"), "pictures of earlier versions have none either"
    assert Image.open(preview).size[0] > 0
    assert not np.array_equal(*(np.asarray(Image.open(tmp_path / name)) for name in ("a.png", "b.png")))
