"""The VAE for tiles, and the map for previews: against the whole VAE, in torch and as graphs."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from support.measure import relative_error

from export.build.command import build
from export.build.options import BuildOptions
from export.demo_model import DEMO_CHECKPOINT
from export.preview_fit import fit_preview
from model.autoencoder import unpack
from model.checkpoint.directory import open_checkpoint
from model.tiled_autoencoder import TileDecoder, TileEncoder
from runtime.backend.ort import opener
from runtime.bundle.integrity import check_files
from runtime.bundle.manifest import read_manifest


@pytest.fixture(scope="module")
def checkpoint():
    return open_checkpoint(DEMO_CHECKPOINT)


def tile_module(checkpoint, stage):
    """The tile stage on the whole stage's weights: the parameters have the same names."""
    module = {"vae_decoder": TileDecoder, "vae_encoder": TileEncoder}[stage](checkpoint.autoencoder)
    module.load_state_dict(checkpoint.load(stage).state_dict())
    return module.eval().requires_grad_(False)


def feeds(checkpoint):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 6, 8, 128, generator=generator)
    image = torch.randint(0, 256, (1, 96, 128, 3), generator=generator, dtype=torch.uint8)
    return {"vae_decoder": latents, "vae_encoder": image}


@pytest.mark.parametrize("stage", ["vae_decoder", "vae_encoder"])
def test_a_tile_of_everything_is_the_whole(checkpoint, stage):
    """With the whole picture as tile and as thumbnail, every norm and the attention see what the whole stage's see."""
    x = feeds(checkpoint)[stage]
    whole, tile = checkpoint.load(stage)(x), tile_module(checkpoint, stage)(x, x)
    if stage == "vae_decoder":
        assert (whole.int() - tile.int()).abs().max() <= 1  # rounding to bytes
    else:
        assert relative_error(tile, whole) <= 1e-5  # float32 means in another order


@pytest.mark.parametrize("stage", ["vae_decoder", "vae_encoder"])
def test_the_thumbnail_is_what_the_norms_see(checkpoint, stage):
    x = feeds(checkpoint)[stage]
    module = tile_module(checkpoint, stage)
    assert relative_error(module(x, x // 2 if x.dtype == torch.uint8 else x * 0.1).float(), module(x, x).float()) > 0.05


def test_graphs_are_the_modules_and_share_weights(checkpoint, tmp_path):
    build(BuildOptions(output=tmp_path / "bundle", quiet=True))
    manifest = read_manifest(tmp_path / "bundle")
    check_files(tmp_path / "bundle", manifest.files, hashes=True)
    weights = sorted(name for name in manifest.files if name.startswith("onnx/weights/vae"))
    assert weights == ["onnx/weights/vae_decoder.data", "onnx/weights/vae_encoder.data"]
    open_graph = opener(tmp_path / "bundle", "cpu", 1)
    for stage, x in feeds(checkpoint).items():
        name, small = f"{stage}_tile", x[:, : x.shape[1] // 2].contiguous()
        graph = open_graph(name, manifest.graphs[name])
        got = graph(**{manifest.graphs[name].inputs[0].name: x.numpy(), "thumbnail": small.numpy()})
        wanted = tile_module(checkpoint, stage)(x, small).numpy()
        if stage == "vae_decoder":
            assert np.abs(got.astype(int) - wanted).max() <= 1
        else:
            assert relative_error(got, wanted) <= 1e-5  # the bound of every float32 graph
    assert manifest.preview == fit_preview(checkpoint)


def test_tiles_are_jobs_like_the_stages(tmp_path, capsys):
    """A second build takes them from the first; with linked weights they read the same files as the whole graphs."""
    build(BuildOptions(output=tmp_path / "bundle", weights="link", quiet=True))
    before = read_manifest(tmp_path / "bundle")
    check_files(tmp_path / "bundle", before.files, hashes=True)
    for stage in ("vae_decoder", "vae_encoder"):
        files = [external_files(tmp_path / "bundle" / before.graphs[name].onnx) for name in (stage, f"{stage}_tile")]
        assert files[0] == files[1] and files[0], "no weight is written twice"
    build(BuildOptions(output=tmp_path / "bundle", weights="link", overwrite=True))
    told = capsys.readouterr().err
    assert told.count("unchanged, taken from an earlier build") == 7 and "ort/vae_decoder_tile" in told
    assert read_manifest(tmp_path / "bundle").graphs == before.graphs
    open_graph = opener(tmp_path / "bundle", "cpu", 1)
    assert all(open_graph(f"{stage}_tile", before.graphs[f"{stage}_tile"]) for stage in ("vae_decoder", "vae_encoder"))


def external_files(onnx):
    values = [value.const_value for value in ir.load(onnx).graph.initializers.values()]
    return {tensor.location for tensor in values if isinstance(tensor, ir.ExternalTensor)}


def test_preview_map_follows_the_vae(checkpoint):
    """A stand-in VAE whose colours are linear in its latents: the fit finds the map."""

    class Linear(torch.nn.Module):
        """8 x 8 pixels of the mean of their latents' first three channels, and back."""

        def __init__(self, stats):
            super().__init__()
            self.latent_stats = stats

        def moments(self, x):
            """The fourth channel says what the first does, but drowned in noise."""
            z = torch.zeros(len(x), 32, x.shape[2] // 8, x.shape[3] // 8)
            z[:, :3] = (x + 1).unflatten(2, (-1, 8)).unflatten(4, (-1, 8)).mean((3, 5)) * 127.5 / 50
            z[:, 3] = z[:, 0]
            log_variance = torch.full_like(z, -20.0)
            log_variance[:, 3] = 10.0
            return z, log_variance

        def forward(self, x):
            z = unpack(self.latent_stats.denormalize(x))[:, :3] * 50
            image = z.permute(0, 2, 3, 1).repeat_interleave(8, 1).repeat_interleave(8, 2)
            return image.clamp(0, 255).round().to(torch.uint8)

    class Stand:
        def load(self, stage):
            return Linear(checkpoint.load(stage).latent_stats)

    spec = fit_preview(Stand())
    stats = checkpoint.load("vae_decoder").latent_stats
    weights = np.array(spec.weights).reshape(4, 32, 3) / stats.std.numpy().reshape(4, 32, 1)
    # The ridge of 1e-3 and colours rounded to bytes move a weight of 50 by less than one.
    np.testing.assert_allclose(weights[:, :3], np.broadcast_to(50 * np.eye(3), (4, 3, 3)), atol=1)
    assert np.abs(weights[:, 3]).max() < 0.1 and np.abs(weights[:, 4:]).max() < 1e-6
    assert fit_preview(checkpoint) == fit_preview(checkpoint)
