"""Starting from a picture, and painting a part of it anew: against DiffSynth-Studio's numbers, and on the demo."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.golden import golden

from runtime import Pipeline
from runtime.cli.main import main
from runtime.errors import NonFiniteError
from runtime.image.inpaint import keep_outside, latent_mask, noised, paste, ramp
from runtime.image.output_files import read_settings
from runtime.plan import make_plan
from runtime.sampling.denoise import denoise
from runtime.sampling.schedule import PRESETS, Sampling, schedule

GOLDEN = golden("diffsynth")
FAST = {"steps": 2, "guidance": 3.0, "seed": 3}


@pytest.fixture(scope="module")
def pipeline(demo_bundle):
    return Pipeline.load(demo_bundle)


@pytest.fixture(scope="module")
def picture():
    rows, columns = np.mgrid[0:256, 0:320]
    blue = 255 * ((rows // 32 + columns // 32) % 2)
    return np.stack((rows % 256, columns * 255 // 319, blue), axis=-1).astype(np.uint8)


# The numbers


@pytest.mark.parametrize("case", GOLDEN["schedules"], ids=lambda c: f"{c['size']}-{c['strength']}-{c['steps']}")
def test_schedule_is_diffsynths(case):
    steps = schedule(Sampling((1.0,) * case["steps"], 0.0, case["std"]), *case["size"], case["strength"])
    # Both round float64 results of exp and an inverse error function to float32; two units in the last place.
    np.testing.assert_allclose([step.sigma for step in steps], case["sigma"], rtol=0, atol=1.2e-7)
    np.testing.assert_allclose([step.t for step in steps], case["t"], rtol=0, atol=1.2e-7)
    assert steps[-1].sigma_next == 0


@pytest.mark.parametrize("name", PRESETS)
def test_strength_one_is_the_schedule_of_text_to_image(name):
    assert schedule(PRESETS[name], 512, 320, 1.0) == schedule(PRESETS[name], 512, 320)


@pytest.mark.parametrize("run", ["plain", "masked"])
def test_trajectory_is_diffsynths(run):
    """Start, Euler steps, and the masked blend at each of them, for a velocity that both sides are told."""
    given, case = GOLDEN["run"], GOLDEN["runs"][run]
    picture, noise, target = (np.float32(case[name]) for name in ("picture", "noise", "target"))
    steps = schedule(Sampling((1.0,) * given["steps"], 0.0, given["std"]), *given["size"], given["strength"])
    blend = None
    if run == "masked":
        kept = np.array(case["mask"], bool)
        # Tokens of 2 x 2 pixels, so that a mask of whole tokens can be written down.
        blend = keep_outside(np.kron(kept.reshape(2, 2), np.ones((2, 2), bool)), picture, noise, 2)
    start = noised(picture, noise, steps[0].sigma)
    seen = [start, *denoise(lambda latents, t: target - latents, None, start, steps, blend=blend)]
    # Six steps of float32 on values up to 4; DiffSynth's blend divides by sigma, which costs another few bits.
    np.testing.assert_allclose(seen, case["latents"], rtol=0, atol=4e-6)


def test_latent_mask_covers_every_touched_latent():
    repaint = np.zeros((64, 32), bool)  # 4 x 2 tokens of 16 pixels, two latents on each axis
    repaint[0, 0] = repaint[63, 8] = True
    mask = latent_mask(repaint, 128, 16).reshape(4, 2, 2, 2, 32)  # rows, columns, p, q, channels
    wanted = np.zeros((4, 2, 2, 2), bool)
    wanted[0, 0, 0, 0] = wanted[3, 0, 1, 1] = True
    assert np.array_equal(mask.any(-1), wanted) and np.array_equal(mask.all(-1), wanted)


@pytest.mark.parametrize("feather", [0, 1, 2, 16, 31])
def test_ramp(feather):
    repaint = np.zeros((96, 128), bool)
    repaint[30:60, :50] = True  # touches the border
    weight = ramp(repaint, feather)
    assert weight.dtype == np.float32 and (weight[repaint] == 1).all()
    far = np.ones_like(repaint)
    far[max(0, 30 - feather) : 60 + feather, : 50 + feather] = False
    assert not weight[far].any()
    row = weight[45]
    assert (np.diff(row) <= 0).all()
    if feather >= 2:
        assert 0 < row[50] < 1 and np.count_nonzero((row > 0) & (row < 1)) >= feather - 1


def test_paste_keeps_what_is_outside(picture):
    repaint = np.zeros(picture.shape[:2], bool)
    repaint[64:128, 64:128] = True
    images = np.stack((np.zeros_like(picture), np.full_like(picture, 255)))
    made = paste(images, picture, repaint, 8)
    outside = np.ones_like(repaint)
    outside[56:136, 56:136] = False
    for result, image in zip(made, images, strict=True):
        assert np.array_equal(result[outside], picture[outside]) and np.array_equal(result[repaint], image[repaint])


# The demo


def test_small_strength_gives_the_vaes_picture(pipeline, picture):
    """With no steps to speak of, what is left is what the VAE makes of a picture."""
    made = pipeline.generate("x", image=picture, strength=0.0, **FAST)
    through = pipeline.decode(pipeline.encode_image(picture), (16, 20))
    assert made.images.shape == (1, 256, 320, 3)
    # Strength 0 leaves the schedule's last sigma, 5.5e-4 of noise, which the demo's random decoder enlarges.
    distance = np.abs(made.images.astype(float) - through).mean()
    assert distance < 2
    further = [
        np.abs(pipeline.generate("x", image=picture, strength=s, **FAST).images.astype(float) - through).mean()
        for s in (0.1, 0.9)
    ]
    assert distance < further[0] < further[1]


def test_start_is_the_noised_picture(pipeline, picture):
    seen = []
    real = pipeline.graphs["dit_cond"]
    pipeline.graphs["dit_cond"] = lambda **feeds: seen.append(feeds["latents"]) or real(**feeds)
    try:
        noise = np.random.RandomState(0).standard_normal((2, 320, 128)).astype(np.float32)
        pipeline.generate("x", image=picture, strength=0.6, noise=noise, num_images=2, **FAST)
    finally:
        pipeline.graphs["dit_cond"] = real
    sigma = schedule(Sampling((3.0, 3.0), 0.0, 1.5), 320, 256, 0.6)[0].sigma
    wanted = (1 - sigma) * pipeline.encode_image(picture) + sigma * noise
    assert 0.1 < sigma < 0.9
    np.testing.assert_allclose(seen[0], wanted, atol=1e-6)  # one rounding of values up to 4 in float32


def test_strength_one_without_a_picture_is_text_to_image(pipeline):
    plain = pipeline.generate("x", **FAST)
    assert np.array_equal(pipeline.generate("x", strength=1.0, **FAST).images, plain.images)
    assert plain.used["start"] is None


def test_inpainting_keeps_the_rest(pipeline, picture):
    mask = np.zeros((256, 320), bool)
    mask[64:160, 96:200] = True
    made = pipeline.generate("x", image=picture, mask=mask, mask_feather=16, num_images=2, **FAST)
    outside = np.ones_like(mask)
    outside[48:176, 80:216] = False
    for image in made.images:
        assert np.array_equal(image[outside], picture[outside])
        assert np.abs(image[mask].astype(int) - picture[mask]).mean() > 10  # painted anew
    start = made.used["start"]
    assert start["strength"] == 1.0 and start["feather"] == 16 and len(start["mask_sha256"]) == 64


def test_latents_outside_the_mask_follow_the_picture(pipeline, picture):
    mask = np.zeros((256, 320), bool)
    mask[:, :160] = True
    noise = np.random.RandomState(1).standard_normal((1, 320, 128)).astype(np.float32)
    steps = schedule(Sampling((3.0, 3.0), 0.0, 1.5), 320, 256)
    latents = pipeline.encode_image(picture)
    seen = []
    pipeline.generate("x", image=picture, mask=mask, noise=noise, on_step=lambda d, t, z: seen.append(z), **FAST)
    right = np.tile(np.arange(20) >= 10, 16)
    for step, got in zip(steps, seen, strict=True):
        wanted = noised(latents, noise, step.sigma_next)
        assert np.array_equal(got[:, right], wanted[:, right])
        assert not np.array_equal(got[:, ~right], wanted[:, ~right])


def test_nan_from_the_encoder(demo_bundle, picture):
    broken = Pipeline.load(demo_bundle)
    real = broken.graphs["vae_encoder"]
    broken.graphs["vae_encoder"] = lambda **feeds: real(**feeds) * np.float32(np.nan)
    with pytest.raises(NonFiniteError, match="the VAE's encoder gave NaN"):
        broken.generate("x", image=picture, **FAST)


def test_pipeline_without_the_encoder(demo_bundle, picture):
    small = Pipeline.load(demo_bundle, vae_graphs=("vae_decoder",))
    with pytest.raises(ValueError, match="loaded without the graph vae_encoder"):
        small.generate("x", image=picture, **FAST)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": 0.5}, "strength below 1 needs an image"),
        ({"fit": "crop"}, "fit needs an image"),
        ({"mask": np.ones((2, 2), bool)}, "a mask needs an image"),
        ({"mask_feather": 3}, "mask_feather 3 needs a mask"),
        ({"image": "x.png", "strength": 1.5}, "strength is 1.5, wanted 0 to 1"),
        ({"image": "x.png", "strength": -0.1}, "strength is -0.1, wanted 0 to 1"),
        ({"image": "x.png", "strength": float("nan")}, "strength is nan, wanted 0 to 1"),
        ({"image": "x.png", "fit": "squeeze"}, "fit is 'squeeze', wanted one of crop, pad, stretch"),
        ({"image": "x.png", "mask": "m.png", "mask_feather": 257}, "mask_feather is 257, wanted 0 to 256 pixels"),
        ({"image": "x.png", "mask": "m.png", "mask_feather": -1}, "mask_feather is -1, wanted 0 to 256 pixels"),
    ],
)
def test_options_that_do_not_go_together(pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_plan(pipeline.manifest, pipeline.prompt, "x", **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": np.zeros((256, 256), np.uint8)}, r"is uint8\[256, 256\], wanted uint8 \(H, W, 3\)"),
        ({"mask": np.ones((256, 300), bool)}, "the mask array is 300x256 and the picture 320x256, wanted the same"),
        ({"mask": np.zeros((256, 320), bool)}, "the mask array has no white in the result"),
        ({"mask": np.ones((256, 320), np.float32)}, r"the mask is float32\[256, 320\], wanted \(H, W\) bool or uint8"),
        ({"width": 256, "height": 256}, "is 320x256 and the result 256x256, which is another aspect ratio"),
        ({"noise": np.zeros((1, 5, 128), np.float32)}, r"the noise has shape \(1, 5, 128\), wanted \(B, 320, 128\)"),
    ],
)
def test_refused_pictures(pipeline, picture, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipeline.generate(**{"prompt": "x", "image": picture, **FAST, **arguments})


# The command


def test_command(demo_bundle, tmp_path, picture):
    Image.fromarray(picture).save(tmp_path / "in.png")
    mask = np.zeros((256, 320), np.uint8)
    mask[:64] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    code = main(
        [
            "--bundle",
            str(demo_bundle),
            "--prompt",
            "x",
            "--steps",
            "1",
            "--seed",
            "2",
            "--quiet",
            "--mask-feather",
            "8",
            "--image",
            str(tmp_path / "in.png"),
            "--mask",
            str(tmp_path / "mask.png"),
            "--strength",
            "0.8",
            "--output",
            str(tmp_path / "out.png"),
        ]
    )
    assert code == 0
    made = np.asarray(Image.open(tmp_path / "out.png"))
    assert made.shape == (256, 320, 3) and np.array_equal(made[72:], picture[72:])
    start = read_settings(tmp_path / "out.png")["start"]
    assert (start["image"], start["mask"], start["strength"], start["fit"]) == ("in.png", "mask.png", 0.8, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--strength", "0.5"), "strength below 1 needs an image"),
        (("--mask", "in.png"), "a mask needs an image"),
        (("--image", "none.png"), "No such file or directory: "),
        (("--image", "."), "Is a directory: "),
        (("--image", "text.png"), "text.png is not a picture that can be read, wanted PNG, JPEG"),
        (("--image", "cut.png"), "the picture cut.png is damaged: "),
        (("--image", "in.png", "--mask", "small.png"), "the mask small.png is 32x32 and the picture 320x256"),
        (("--image", "in.png", "--mask", "black.png"), "the mask black.png has no white"),
        (("--image", "in.png", "--strength", "2"), "strength is 2.0, wanted 0 to 1"),
        (("--image", "in.png", "--width", "256", "--height", "256"), "choose --fit crop, pad or stretch"),
        (("--image", "odd.png"), "is 300x200, so the result would be 300x200: width is 300, wanted a"),
    ],
)
def test_command_refuses(demo_bundle, tmp_path, monkeypatch, capsys, picture, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "work").mkdir()
    Image.fromarray(picture).save("in.png")
    Image.fromarray(picture[:200, :300]).save("odd.png")
    Image.fromarray(picture[:32, :32]).save("small.png")
    Image.new("L", (320, 256)).save("black.png")
    Path("text.png").write_text("no picture")
    whole = Path("in.png").read_bytes()
    Path("cut.png").write_bytes(whole[: len(whole) // 2])
    before = sorted(tmp_path.iterdir())
    assert main(["--bundle", str(demo_bundle), "--prompt", "x", "--output", "work/a.png", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith("trt-generate: error: ") and error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before and list((tmp_path / "work").iterdir()) == []


def test_bundle_without_an_encoder(demo_bundle, picture):
    pipeline = Pipeline.load(demo_bundle, vae_graphs=("vae_decoder",))
    graphs = {name: spec for name, spec in pipeline.manifest.graphs.items() if name != "vae_encoder"}
    pipeline.manifest = replace(pipeline.manifest, graphs=graphs)
    with pytest.raises(ValueError, match="needs the VAE's encoder, and this bundle has none"):
        pipeline.generate("x", image=picture, **FAST)
