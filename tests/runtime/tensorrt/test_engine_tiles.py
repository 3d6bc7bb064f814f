"""The VAE in tiles on engines."""

import numpy as np
import pytest
from support.engines.demo import FAST, FREE, TILES, WEIGHTS, EngineBundle, run

from runtime import Pipeline


@pytest.fixture
def tiled(demo_bundle, tmp_path, monkeypatch):
    """A bundle whose engines are all that a build makes, tiles included."""
    return EngineBundle(demo_bundle, tmp_path / "bundle", monkeypatch, WEIGHTS | TILES)


@pytest.mark.parametrize("level", ["resident", "staged"])
def test_tiles_are_those_of_the_graphs(tiled, level):
    """Both ways through the VAE, in four tiles each, bit for bit."""
    tiled.cudart.used = FREE["resident"] - FREE[level]
    pipeline, peer = Pipeline.load(tiled.directory), Pipeline.load(tiled.directory, backend="ort")
    assert pipeline.opened.choice.memory.level == level
    image = np.random.default_rng(0).integers(0, 256, (512, 384, 3), dtype=np.uint8)
    made, wanted = (one.generate("x", **FAST, image=image, vae_tile=256) for one in (pipeline, peer))
    assert np.array_equal(made.images, wanted.images) and made.used["vae_tile"] == 256
    assert (tiled.trt.runs.count("vae_decoder_tile"), tiled.trt.runs.count("vae_decoder")) == (6, 0)
    pipeline.close()
    assert not tiled.cudart.allocated


def test_the_thumbnail_is_uploaded_once_a_picture(tiled):
    pipeline = Pipeline.load(tiled.directory)
    latents = np.random.default_rng(0).standard_normal((1, 32 * 32, 128)).astype(np.float32)
    before = tiled.cudart.count("upload")
    pipeline.decode(latents, (32, 32), 256)
    assert tiled.cudart.count("upload") - before == 9 + 1, "nine tiles and a thumbnail"


def test_tiles_are_loaded_when_they_are_needed(tiled, tmp_path):
    """By the command: what no picture needs is not even opened. By the library: with their own step."""
    opened = tiled.trt.loads
    assert run("--prompt", "x", "--steps", 1, bundle=tiled, output=tmp_path / "a.png") == 0
    assert len(opened) == 4
    opened.clear()
    tile = ("--vae-tile", 256, "--height", 512)
    assert run("--prompt", "x", "--steps", 1, *tile, bundle=tiled, output=tmp_path / "b.png") == 0
    assert len(opened) == 4 and tiled.trt.runs[-1] == "vae_decoder_tile"
    pipeline = Pipeline.load(tiled.directory, memory="staged")
    pipeline.generate("x", **FAST)
    assert pipeline.graphs["vae_decoder"].residency.loaded == ("vae_encoder", "vae_decoder")
    pipeline.generate("x", **FAST, height=512, vae_tile=256)
    assert pipeline.graphs["vae_decoder"].residency.loaded == ("vae_decoder_tile", "vae_encoder_tile")


def test_tiles_that_engines_do_not_take(tiled, tmp_path, capsys):
    arguments = ("--prompt", "x", "--height", 512, "--vae-tile", 400)
    assert run(*arguments, bundle=tiled, output=tmp_path / "a.png") == 1
    assert "the height of a tile is 400 pixels, and the vae_decoder_tile of the rtx" in capsys.readouterr().err
    assert not tiled.trt.loads and not (tmp_path / "a.png").exists()


def test_a_bundle_without_engines_for_tiles(bundle, tmp_path, capsys):
    """As earlier versions built them: large pictures are decoded whole, and tiles that are asked for are an error."""
    assert run("--prompt", "x", "--height", 512, "--vae-tile", 256, bundle=bundle, output=tmp_path / "a.png") == 1
    assert "vae_tile is 256, and this bundle has no graphs for tiles; build it again" in capsys.readouterr().err
