"""``trt-generate`` against ``diffusers.Ideogram4Pipeline``: one seed, prompt and preset, one picture."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from support import peers
from support.bundles import build_bundle
from support.measure import relative_error

from runtime import Pipeline
from runtime.cli.main import main
from runtime.plan import make_plan
from runtime.sampling.noise import randn
from runtime.sampling.schedule import PRESETS

PROMPT = "ein roter Kreis, 蓝色背景 🙂"
CAPTION = '{"high_level_description":"a red circle","compositional_deconstruction":{"background":"blue","elements":[]}}'


def peer_picture(pipeline, prompt, width, height, preset, seed, length, output_type="pil", **overrides):
    settings = {
        "num_inference_steps": len(preset.guidance),
        "guidance_schedule": list(preset.guidance),
        "mu": preset.mu,
        "std": preset.std,
        "num_images_per_prompt": 1,
        **overrides,
    }
    return pipeline(
        prompt,
        height=height,
        width=width,
        max_sequence_length=length,
        output_type=output_type,
        generator=torch.Generator("cpu").manual_seed(seed),
        **settings,
    ).images


def picture_difference(got, wanted):
    return int(np.abs(np.asarray(got).astype(int) - np.asarray(wanted)).max())


SQUARE, WIDE = (256, 256), (320, 272)
RUNS = [
    ("V4_QUALITY_48", SQUARE, PROMPT),
    ("V4_DEFAULT_20", WIDE, CAPTION),
    ("V4_TURBO_12", SQUARE, CAPTION),
    ("V4_TURBO_12", WIDE, PROMPT),
    ("V4_FAST_20", SQUARE, PROMPT),
    ("V4_FAST_20", WIDE, CAPTION),
    ("V4_INSTANT_8", SQUARE, CAPTION),
    ("V4_INSTANT_8", WIDE, PROMPT),
]
"""Every preset, size and prompt, every prompt in every size, and three presets in both sizes; that every preset has
diffusers' times in every size is in tests/runtime/sampling/test_schedule.py, to the last bits of float32."""


def test_runs_cover_every_preset():
    assert {preset for preset, *_ in RUNS} == set(PRESETS)


@pytest.mark.parametrize(
    ("preset", "size", "prompt"), RUNS, ids=[f"{run[0]}-{run[1][0]}-{i}" for i, run in enumerate(RUNS)]
)
def test_command_equals_diffusers(peer, peer_bundle, tmp_path, preset, size, prompt):
    pipeline, bundle = peer("head32", "diffusers")[0], peer_bundle("head32", "fp32")
    width, height = size
    code = main(
        [
            "--bundle",
            str(bundle),
            "--prompt",
            prompt,
            "--preset",
            preset,
            "--seed",
            "7",
            "--quiet",
            "--width",
            str(width),
            "--height",
            str(height),
            "--output",
            str(tmp_path / "a.png"),
        ]
    )
    assert code == 0
    # The peer pads the text to 2048 tokens; padding is masked, so a shorter one gives the same picture sooner.
    wanted = peer_picture(pipeline, prompt, width, height, PRESETS[preset], seed=7, length=256)[0]
    assert picture_difference(Image.open(tmp_path / "a.png"), wanted) <= 1


@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_nf4_checkpoints_equal_diffusers(peer, tmp_path, layout):
    """The peer's weights are those that bitsandbytes makes of the file, its latent statistics those of its VAE."""
    pipeline, directory = peer("head64", f"{layout}-nf4")
    directory = peers.copy(directory, tmp_path / "checkpoint")
    config = directory / "vae/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"latent_stats": "bn"}))
    build_bundle(directory, tmp_path / "bundle", "fp32")
    made = Pipeline.load(tmp_path / "bundle").generate(PROMPT, width=256, height=256, seed=2)
    wanted = peer_picture(pipeline, PROMPT, 256, 256, PRESETS["V4_DEFAULT_20"], seed=2, length=64)
    assert picture_difference(made.images[0], wanted[0]) <= 1


@pytest.mark.parametrize("shape", ["head64", "head256"])
def test_other_shapes_equal_diffusers(peer, peer_bundle, shape):
    made = Pipeline.load(peer_bundle(shape, "fp32")).generate(PROMPT, width=256, height=304, seed=1)
    wanted = peer_picture(peer(shape, "diffusers")[0], PROMPT, 256, 304, PRESETS["V4_DEFAULT_20"], seed=1, length=64)
    assert picture_difference(made.images[0], wanted[0]) <= 1


def test_padding_to_2048_changes_nothing(peer, peer_bundle):
    made = Pipeline.load(peer_bundle("head32", "fp32")).generate(PROMPT, width=256, height=256, seed=1, steps=2)
    wanted = peer_picture(
        peer("head32", "diffusers")[0],
        PROMPT,
        256,
        256,
        PRESETS["V4_QUALITY_48"],
        1,
        2048,
        num_inference_steps=2,
        guidance_schedule=[7.0, 7.0],
    )
    assert picture_difference(made.images[0], wanted[0]) <= 1


def test_batch_equals_diffusers(peer, peer_bundle):
    made = Pipeline.load(peer_bundle("head32", "fp32")).generate(
        PROMPT, width=256, height=256, seed=2**40 + 3, num_images=3, preset="V4_INSTANT_8"
    )
    wanted = peer_picture(
        peer("head32", "diffusers")[0],
        PROMPT,
        256,
        256,
        PRESETS["V4_INSTANT_8"],
        2**40 + 3,
        64,
        num_images_per_prompt=3,
    )
    assert len(wanted) == 3 and all(picture_difference(a, b) <= 1 for a, b in zip(made.images, wanted, strict=True))


def test_latents_equal_diffusers(peer, peer_bundle):
    """Pixels are clipped and rounded; the latents behind them agree as far as float32 goes over 20 guided steps."""
    pipeline = Pipeline.load(peer_bundle("head32", "fp32"))
    plan = make_plan(pipeline.manifest, pipeline.prompt, PROMPT, width=256, height=256, seed=5)
    text = pipeline.encode(np.array([plan.token_ids]))
    *_, latents = pipeline.denoise(text, randn((1, 256, 128), 5), plan.grid, plan.steps)
    wanted = peer_picture(
        peer("head32", "diffusers")[0], PROMPT, 256, 256, PRESETS["V4_DEFAULT_20"], 5, 64, output_type="latent"
    )
    # Guidance 7 multiplies a velocity's error of 1e-6 by up to 13, and twenty steps add it up.
    assert relative_error(latents, wanted) <= 1e-4


def test_prompt_matters(peer_bundle):
    """The comparisons above would hold for a model that ignores the text; this one does not."""
    pipeline = Pipeline.load(peer_bundle("head32", "fp32"))
    one, other = (pipeline.generate(p, width=256, height=256, seed=5).images for p in (PROMPT, CAPTION))
    assert picture_difference(one, other) >= 10
