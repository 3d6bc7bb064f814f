"""The VAE in tiles: how tiles are laid out and blended, and how close the demo's come to the whole picture."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import Pipeline
from runtime.cli.main import main
from runtime.image.output_files import read_settings
from runtime.image.tiling import in_tiles, resolve_tile, spans, thumbnail
from runtime.plan import make_plan


def psnr(got, wanted):
    return 10 * np.log10(255**2 / np.square(got.astype(float) - wanted).mean())


@given(st.integers(4, 300), st.integers(16, 100), st.sampled_from([1, 16]))
def test_spans_cover_and_add_up(length, tile, scale):
    total = np.zeros(length * scale)
    found = spans(length, tile, scale)
    for span in found:
        assert 0 <= span.start < span.stop <= length and span.stop - span.start <= tile
        assert len(span.weights) == (span.stop - span.start) * scale and span.weights.min() >= 0
        total[span.start * scale : span.stop * scale] += span.weights
    np.testing.assert_allclose(total, 1, atol=1e-6)  # two weights rounded to float32
    wanted = min(16, tile // 4)
    dropped = int(wanted / 4 * scale + 0.5)  # rows whose middle is in the quarter of the overlap next to a cut
    for a, b in itertools.pairwise(found):
        assert a.stop - b.start >= wanted
        assert not a.weights[len(a.weights) - dropped :].any() and not b.weights[:dropped].any()


def test_two_tiles_cover_2048_pixels():
    assert [(s.start, s.stop) for s in spans(128, 72, 16)] == [(0, 72), (56, 128)]


def test_function_of_the_place_alone_is_exact():
    """What does not depend on the tile comes out as it is: the blend adds nothing."""
    whole = np.random.RandomState(0).randint(0, 256, (70 * 2, 90 * 2, 3))
    made = in_tiles(
        lambda rows, columns: whole[rows.start * 2 : rows.stop * 2, columns.start * 2 : columns.stop * 2],
        (70, 90),
        32,
        2,
        3,
    )
    assert np.array_equal(np.rint(made), whole)


def test_thumbnail():
    picture = np.arange(128 * 64).reshape(128, 64, 1)
    small = thumbnail(picture, 32, 1)
    assert small.shape == (32, 32, 1) and set(small.ravel()) <= set(picture.ravel())
    assert thumbnail(picture, 96, 1).shape == (96, 64, 1), "no side is made longer"
    assert thumbnail(picture, 128, 1) is not None and np.array_equal(thumbnail(picture, 128, 1), picture)
    assert thumbnail(np.zeros((128 * 16, 128 * 16, 3), np.uint8), 72, 16).shape == (72 * 16, 72 * 16, 3)


@pytest.mark.parametrize(
    ("setting", "width", "height", "available", "wanted"),
    [
        ("auto", 1152, 1152, True, None),
        ("auto", 1168, 1152, True, 1152),
        ("auto", 2048, 640, True, None),
        ("auto", 2048, 2048, True, 1152),
        ("auto", 2048, 2048, False, None),
        ("off", 2048, 2048, True, None),
        (512, 1024, 512, True, 512),
        (512, 512, 512, True, None),
        (1024, 1024, 256, True, None),
    ],
)
def test_resolve(setting, width, height, available, wanted):
    assert resolve_tile(setting, width, height, 16, available) == wanted


@pytest.mark.parametrize(
    ("setting", "available", "message"),
    [
        ("on", True, "vae_tile is 'on', wanted auto, off, or a number of pixels"),
        (240, True, "vae_tile is 240, wanted a multiple of 16 from 256 pixels up"),
        (500, True, "vae_tile is 500, wanted a multiple of 16"),
        (True, True, "vae_tile is True, wanted auto"),
        (512, False, "vae_tile is 512, and this bundle has no graphs for tiles; build it again, or use off"),
    ],
)
def test_resolve_refuses(setting, available, message):
    with pytest.raises(ValueError, match=message):
        resolve_tile(setting, 1024, 1024, 16, available)


@pytest.fixture(scope="module")
def pipeline(demo_bundle):
    return Pipeline.load(demo_bundle)


def test_tiles_are_close_to_the_whole(pipeline):
    """A smooth picture of the demo model: 54 dB. A group norm of a tile alone would miss by far more."""
    seen = []
    arguments = {"width": 1024, "height": 768, "steps": 2, "guidance": 7.0, "seed": 1}
    made = pipeline.generate("a red circle", **arguments, vae_tile=512, on_step=lambda d, t, z: seen.append(z))
    whole = pipeline.decode(seen[-1], (48, 64))
    assert made.used["vae_tile"] == 512 and not np.array_equal(made.images, whole)
    assert psnr(made.images, whole) >= 40


def test_thumbnail_is_what_makes_them_close(pipeline):
    """A dull and a lively half: each tile sees one of them, and only the thumbnail shows both."""
    latents = np.random.RandomState(0).standard_normal((32, 64, 128)).astype(np.float32)
    latents[:, :32] *= 0.1
    whole = pipeline.decode(latents.reshape(1, -1, 128), (32, 64))[0]
    tiled = pipeline.decode(latents.reshape(1, -1, 128), (32, 64), 512)[0]
    alone = in_tiles(
        lambda rows, columns: pipeline.graphs["vae_decoder"](latents=latents[None, rows, columns].copy())[0],
        (32, 64),
        32,
        16,
        3,
    )
    assert psnr(tiled, whole) > psnr(alone, whole) + 6


def test_encoding_in_tiles(pipeline):
    rows, columns = np.mgrid[0:512, 0:768]
    picture = np.stack((rows // 2, columns // 3, (rows + columns) % 256), axis=-1).astype(np.uint8)
    whole, tiled = pipeline.encode_image(picture), pipeline.encode_image(picture, 512)
    assert tiled.shape == whole.shape and tiled.dtype == np.float32
    error = np.linalg.norm(tiled - whole) / np.linalg.norm(whole)
    # The random encoder's attention over a thumbnail that is squeezed on one side; 0.113 is what it measures.
    assert 0 < error < 0.15


def test_no_graph_sees_more_than_a_tile(demo_bundle):
    """Memory is bounded by the largest call: 2048 x 1536 here, and 3072 x 3072 tokens' worth of decoding below."""
    pipeline = Pipeline.load(demo_bundle, vae_graphs=("vae_decoder_tile",))
    seen = []

    def fake(**feeds):
        seen.append(max(feed.shape[1] * feed.shape[2] for feed in feeds.values()))
        rows, columns = feeds["latents"].shape[1:3]
        return np.full((1, rows * 16, columns * 16, 3), 77, np.uint8)

    pipeline.graphs["vae_decoder_tile"] = fake
    for rows, columns in ((96, 128), (192, 192)):
        made = pipeline.decode(np.zeros((1, rows * columns, 128), np.float32), (rows, columns), 1152)
        assert made.shape == (1, rows * 16, columns * 16, 3) and (made == 77).all()
    assert max(seen) <= 72 * 72


def test_plan_says_which_graphs(pipeline):
    def plan(**arguments):
        return make_plan(pipeline.manifest, pipeline.prompt, "x", **arguments)

    assert plan(width=2048, height=1024).vae_graphs == ("vae_decoder_tile",)
    assert plan(width=2048, height=1024, vae_tile="off").vae_graphs == ("vae_decoder",)
    assert plan().vae_graphs == ("vae_decoder",)


def test_command(demo_bundle, tmp_path, capsys):
    arguments = ["--bundle", str(demo_bundle), "--prompt", "x", "--steps", "1", "--width", "512", "--quiet"]
    assert main([*arguments, "--vae-tile", "256", "--output", str(tmp_path / "a.png")]) == 0
    assert read_settings(tmp_path / "a.png")["vae_tile"] == 256
    assert main([*arguments, "--vae-tile", "17", "--output", str(tmp_path / "b.png")]) == 1
    assert "vae_tile is 17, wanted a multiple of 16" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
