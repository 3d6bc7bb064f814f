"""Our modules in float32 against the classes of diffusers and transformers, with weights read from their own files.

The bound of 1e-5 is the project's; the measured errors are 0 to 3e-7, so it leaves room for other CPUs' kernels.
"""

import numpy as np
import pytest
import torch
from support.measure import relative_error
from support.peers import SHAPES

from model.autoencoder import pack, unpack
from model.checkpoint.directory import open_checkpoint
from model.checkpoint.latent_stats import LATENT_SCALE, LATENT_SHIFT

BOUND = 1e-5
FORMS = ("diffusers", "diffusers-shards", "original-bf16", "original-fp8")
PAIRS = [(shape, form) for shape in SHAPES for form in FORMS]
PAIRS += [("head32", "diffusers-nf4"), ("head256", "original-nf4")]
SEEDS = torch.Generator().manual_seed(11)


def _tapped(pipeline, ids: torch.Tensor) -> torch.Tensor:
    """Text features (1, T, 13 * hidden) by the peer's own code."""
    states = pipeline._get_text_encoder_hidden_states(
        pipeline.text_encoder, ids, torch.ones_like(ids), torch.arange(ids.shape[1])[None]
    )
    return torch.stack(states).permute(1, 2, 3, 0).flatten(2)


@pytest.fixture(params=PAIRS, ids="-".join)
def pair(request, peer):
    """(peers' pipeline, our checkpoint)"""
    pipeline, directory = peer(*request.param)
    return pipeline, open_checkpoint(directory)


@pytest.mark.parametrize("length", [1, 2, 37, 600])
def test_text_stage(pair, length):
    pipeline, checkpoint = pair
    ids = torch.randint(0, 1000, (1, length), generator=SEEDS)
    stage = checkpoint.load("text_encoder")
    features = _tapped(pipeline, ids)
    assert relative_error(stage.encoder(ids), features) <= BOUND
    projected = pipeline.transformer.llm_cond_proj(pipeline.transformer.llm_cond_norm(features))
    assert relative_error(stage(ids), projected) <= BOUND


@pytest.mark.parametrize(("length", "grid", "batch"), [(1, (1, 2), 1), (19, (3, 5), 2), (600, (7, 4), 1)])
def test_transformers(pair, length, grid, batch):
    """Conditional and unconditional, the peer with its packed sequence, mask and unprojected features."""
    pipeline, checkpoint = pair
    tokens = grid[0] * grid[1]
    positions, segments, indicator = (
        ids.expand(batch, *ids.shape[1:]) for ids in pipeline._prepare_ids([length], *grid, length, torch.device("cpu"))
    )
    cos, sin = (table[0] for table in pipeline.transformer.rotary_emb(positions))
    latents = torch.randn(batch, tokens, 128, generator=SEEDS)
    timestep = torch.rand(batch, generator=SEEDS)
    features = torch.randn(batch, length, checkpoint.transformer.llm_features_dim, generator=SEEDS)
    wanted = pipeline.transformer(
        hidden_states=torch.cat([torch.zeros(batch, length, 128), latents], dim=1),
        timestep=timestep,
        encoder_hidden_states=torch.nn.functional.pad(features, (0, 0, 0, tokens)),
        position_ids=positions,
        segment_ids=segments,
        indicator=indicator,
        return_dict=False,
    )[0][:, length:]
    stage = checkpoint.load("text_encoder")
    text = stage.llm_cond_proj(stage.llm_cond_norm(features))
    assert relative_error(checkpoint.load("dit_cond")(latents, timestep, cos, sin, text), wanted) <= BOUND
    wanted = pipeline.unconditional_transformer(
        hidden_states=latents,
        timestep=timestep,
        encoder_hidden_states=torch.zeros(batch, tokens, features.shape[-1]),
        position_ids=positions[:, length:],
        segment_ids=segments[:, length:],
        indicator=indicator[:, length:],
        return_dict=False,
    )[0]
    got = checkpoint.load("dit_uncond")(latents, timestep, cos[length:], sin[length:])
    assert relative_error(got, wanted) <= BOUND


@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (8, 4)])
def test_autoencoder(pair, grid):
    pipeline, checkpoint = pair
    latents = torch.randn(2, *grid, 128, generator=SEEDS)
    if checkpoint.latent_stats == "constants":
        mean, std = torch.tensor(LATENT_SHIFT), torch.tensor(LATENT_SCALE)
    else:
        bn = pipeline.vae.bn
        mean, std = bn.running_mean, torch.sqrt(bn.running_var + pipeline.vae.config.batch_norm_eps)
    z = (latents * std + mean).view(2, *grid, 2, 2, 32).permute(0, 5, 1, 3, 2, 4)
    z = z.reshape(2, 32, 2 * grid[0], 2 * grid[1])
    decoder = checkpoint.load("vae_decoder")
    decoded = pipeline.vae.decode(z).sample
    ours = decoder.decoder(decoder.post_quant_conv(unpack(decoder.latent_stats.denormalize(latents))))
    assert relative_error(ours, decoded) <= BOUND
    wanted = (pipeline.image_processor.postprocess(decoded, output_type="np") * 255).round()
    # A last-bit difference before the rounding may move a byte by one.
    assert np.abs(decoder(latents).numpy() - wanted).max() <= 1

    image = torch.randint(0, 256, (2, 16 * grid[0], 16 * grid[1], 3), dtype=torch.uint8, generator=SEEDS)
    pixels = pipeline.image_processor.normalize(image.permute(0, 3, 1, 2) / 255)
    wanted = (pack(pipeline.vae.encode(pixels).latent_dist.mean) - mean) / std
    assert relative_error(checkpoint.load("vae_encoder")(image), wanted) <= BOUND


def test_pack_is_the_inverse_of_unpack():
    tokens = torch.randn(2, 3, 5, 128, generator=SEEDS)
    assert torch.equal(pack(unpack(tokens)), tokens)


def test_pictures_depend_on_every_parameter(peer):
    """A parity test of a network that ignores a weight would pass with that weight wrong: none may be ignored."""
    checkpoint = open_checkpoint(peer("head32", "diffusers")[1])
    stage = checkpoint.load("dit_cond").requires_grad_(True)
    latents, text = torch.randn(1, 6, 128), torch.randn(1, 4, checkpoint.transformer.hidden_size)
    angles = torch.rand(10, checkpoint.transformer.attention_head_dim)
    stage(latents, torch.tensor([0.4]), angles.cos(), angles.sin(), text).square().sum().backward()
    still = [name for name, p in stage.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []
