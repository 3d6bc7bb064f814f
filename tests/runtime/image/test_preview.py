"""Small pictures while the steps run."""

import numpy as np
import pytest
from PIL import Image

from runtime import Pipeline
from runtime.bundle.preview_spec import PreviewSpec
from runtime.cli.main import main
from runtime.image.preview import PreviewFile, preview_image
from runtime.sampling.schedule import Sampling, schedule


@pytest.fixture
def spec():
    """Channel 0 of each quarter is red, channel 1 blue; each quarter has an offset of its own."""
    quarter = [(10.0, 0.0, 0.0), (0.0, 0.0, 20.0)] + [(0.0, 0.0, 0.0)] * 30
    return PreviewSpec(tuple(quarter * 4), tuple((100.0, 50.0 * index, 100.0) for index in range(4)))


def test_pixels_are_in_their_places(spec):
    latents = np.zeros((6, 4, 32), np.float32)  # a grid of 2 x 3 tokens
    latents[5, 2, 0] = 7  # last token, second row of its pixels, first column
    latents[1, 1, 1] = -2  # second token, first row, second column
    made = preview_image(latents.reshape(6, 128), (2, 3), spec)
    wanted = np.full((4, 6, 3), 100)
    wanted[0::2, 0::2, 1], wanted[0::2, 1::2, 1], wanted[1::2, 0::2, 1], wanted[1::2, 1::2, 1] = 0, 50, 100, 150
    wanted[3, 4, 0] += 70
    wanted[0, 3, 2] -= 40
    assert made.dtype == np.uint8 and np.array_equal(made, wanted)


def test_colours_are_clipped(spec):
    latents = np.full((1, 128), 100, np.float32)
    assert preview_image(latents, (1, 1), spec)[0, 0].tolist() == [255, 0, 255]
    assert preview_image(-latents, (1, 1), spec)[0, 0].tolist() == [0, 0, 0]


def test_file_is_renewed_and_shows_where_it_goes(tmp_path, spec):
    """For a constant velocity every preview from the second step on is the picture at the end."""
    steps = schedule(Sampling((1.0,) * 5, 0.0, 1.5), 16, 16)
    random = np.random.RandomState(0)
    picture, noise = (random.standard_normal((2, 1, 128)).astype(np.float32) for _ in range(2))
    preview = PreviewFile(tmp_path / "p.png", spec, (1, 1), steps, every=2)
    times = {}
    for done, step in enumerate(steps, start=1):
        preview(done, 5, (1 - step.sigma_next) * picture + step.sigma_next * noise)
        if (tmp_path / "p.png").exists():
            with Image.open(tmp_path / "p.png") as image:
                times[done] = np.asarray(image), image.text["ideogram4"]
    assert 1 not in times and '"step": 2' in times[3][1] and '"step": 5' in times[5][1]
    pair = [preview_image(one, (1, 1), spec) for one in picture]
    for made, _ in times.values():
        assert made.shape == (2, 2 + 2 + 2, 3) and (made[:, 2:4] == 255).all()
        # Half a level of rounding, where x0 differs in its last bits.
        assert np.abs(made[:, :2].astype(int) - pair[0]).max() <= 1
        assert np.abs(made[:, 4:].astype(int) - pair[1]).max() <= 1
    assert [file.name for file in tmp_path.iterdir()] == ["p.png"]


def test_one_step_shows_its_result(tmp_path, spec):
    steps = schedule(Sampling((1.0,), 0.0, 1.5), 16, 16)
    latents = np.ones((1, 1, 128), np.float32)
    PreviewFile(tmp_path / "p.png", spec, (1, 1), steps)(1, 1, latents)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "p.png")), preview_image(latents[0], (1, 1), spec))


@pytest.mark.parametrize(
    ("weights", "offsets", "message"),
    [
        (((1.0, 1.0, 1.0),) * 3, ((0.0, 0.0, 0.0),) * 4, "preview has 3 weights and 4 offsets"),
        ((), ((0.0, 0.0, 0.0),) * 4, "preview has 0 weights"),
        (((1.0, 1.0, 1.0),) * 4, ((0.0, 0.0, 0.0),) * 3, "and 3 offsets, wanted one weight for each channel and 4"),
        (((1.0, 1.0, float("nan")),) * 4, ((0.0, 0.0, 0.0),) * 4, "preview has a number that is not finite"),
    ],
)
def test_spec_refuses(weights, offsets, message):
    with pytest.raises(ValueError, match=message):
        PreviewSpec(weights, offsets)


def test_every_is_checked(tmp_path, spec):
    with pytest.raises(ValueError, match="preview every is 0, wanted 1 or more steps"):
        PreviewFile(tmp_path / "p.png", spec, (1, 1), (), every=0)


def test_bundle_brings_the_colours(demo_bundle):
    manifest = Pipeline.load(demo_bundle, vae_graphs=("vae_decoder",)).manifest
    assert manifest.preview is not None and len(manifest.preview.weights) == manifest.latent_channels
    assert type(manifest).from_json(manifest.to_json()) == manifest


def test_command(demo_bundle, tmp_path):
    arguments = ["--bundle", str(demo_bundle), "--prompt", "x", "--steps", "5", "--quiet", "--width", "320"]
    preview, output = tmp_path / "p.png", tmp_path / "a.png"
    assert main([*arguments, "--preview", str(preview), "--preview-every", "2", "--output", str(output)]) == 0
    assert Image.open(preview).size == (40, 16) and Image.open(output).size == (320, 128)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.png", "p.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preview", "a.png"), "--preview a.png is the output as well"),
        (("--preview", "old.png"), "the output old.png exists; choose another"),
        (("--preview", "no/p.png"), "the output directory no does not exist"),
        (("--preview", "p.png", "--preview-every", "0"), "--preview-every is 0, wanted 1 or more steps"),
        (("--preview-every", "2"), "--preview-every needs --preview FILE"),
    ],
)
def test_command_refuses(demo_bundle, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.png").write_bytes(b"mine")
    assert main(["--bundle", str(demo_bundle), "--prompt", "x", "--output", "a.png", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("old.png", b"mine")]
