"""Fixtures: a tiny checkpoint, its distilled form, and its transformers' arithmetic written out."""

import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support import peers

from calibration.static.ranges import Ranges
from calibration.static.record import calibrate
from model.checkpoint.directory import Checkpoint, open_checkpoint
from model.layers import attend, rotate

TEXT, IMAGE, BATCH = 3, 4, 2


@pytest.fixture(scope="session")
def checkpoint(peer) -> Checkpoint:
    """Three layers, three heads of 32."""
    return open_checkpoint(peer("head32", "diffusers")[1])


@pytest.fixture
def distilled(checkpoint, tmp_path) -> Checkpoint:
    """The same without an unconditional transformer."""
    directory = peers.copy(checkpoint.directory, tmp_path / "distilled")
    shutil.rmtree(directory / "unconditional_transformer")
    return open_checkpoint(directory)


@pytest.fixture(scope="session")
def measured(checkpoint) -> Ranges:
    """Ranges from one prompt and two steps."""
    return calibrate(checkpoint, ["a red circle"], steps=2, width=256, height=256, quiet=True)


@pytest.fixture
def prompts(tmp_path) -> Path:
    """A file of three prompts."""
    file = tmp_path / "prompts.txt"
    file.write_text("a red circle\nein blaues Quadrat\n一只猫\n", encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def inputs(checkpoint):
    """inputs(stage) -> random arguments of a transformer."""
    return lambda stage: _inputs(checkpoint, stage)


@pytest.fixture(scope="session")
def by_hand():
    """by_hand(module, stage, **inputs, change=...) -> (tensors by name, velocity), without `model.transformer`."""
    return _by_hand


def _inputs(checkpoint, stage):
    random = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(shape, generator=random)

    config = checkpoint.transformer
    text = {"text": draw(BATCH, TEXT, config.hidden_size)} if stage == "dit_cond" else {}
    rows = IMAGE + (TEXT if text else 0)
    tables = {f"rope_{name}": draw(rows, config.attention_head_dim) for name in ("cos", "sin")}
    return {"latents": draw(BATCH, IMAGE, config.in_channels), "timestep": torch.tensor([0.1, 0.7])} | tables | text


def _by_hand(module, stage, latents, timestep, rope_cos, rope_sin, text=None, change=lambda name, x: x):
    """The transformer's arithmetic written out: (tensors by name, velocity); `change` may replace a tensor."""
    seen = {}

    def at(layer, point, x):
        name = f"{stage}.layers.{layer}.{point}"
        seen[name] = x
        return change(name, x)

    modulation = F.silu(module.adaln_proj(module.t_embedding(timestep)))[:, None]
    hidden = module.input_proj(latents) + module.embed_image_indicator.weight[1]
    if text is not None:
        hidden = torch.cat((text + module.embed_image_indicator.weight[0], hidden), dim=1)
    for index, block in enumerate(module.layers):
        # The last block computes image rows only.
        first = TEXT if text is not None and index == len(module.layers) - 1 else 0
        scale1, gate1, scale2, gate2 = block.adaln_modulation(modulation).chunk(4, dim=-1)
        attention, ffn = block.attention, block.feed_forward
        x = at(index, "attention.qkv", block.attention_norm1(hidden) * (1 + scale1))
        q, k, v = (part.unflatten(-1, (attention.num_heads, -1)) for part in attention.qkv(x).chunk(3, dim=-1))
        factor = q.shape[-1] ** -0.25
        q = rotate(attention.norm_q(q).transpose(1, 2)[:, :, first:], rope_cos[first:], rope_sin[first:])
        k = rotate(attention.norm_k(k).transpose(1, 2), rope_cos, rope_sin)
        scaled_q, scaled_k = at(index, "attention.q", q * factor), at(index, "attention.k", k * factor)
        # Unless they are changed, q and k go on as they were: multiplying and dividing again would round.
        q = q if scaled_q is seen[f"{stage}.layers.{index}.attention.q"] else scaled_q / factor
        k = k if scaled_k is seen[f"{stage}.layers.{index}.attention.k"] else scaled_k / factor
        out = attend(q, k, at(index, "attention.v", v.transpose(1, 2)), torch.float32)
        hidden = hidden[:, first:] + gate1.tanh() * block.attention_norm2(attention.o(at(index, "attention.o", out)))
        x = at(index, "feed_forward.w1", block.ffn_norm1(hidden) * (1 + scale2))
        product = at(index, "feed_forward.w2", F.silu(ffn.w1(x)) * ffn.w3(x))
        hidden = hidden + gate2.tanh() * block.ffn_norm2(ffn.w2(product))
    return seen, module.final_layer(hidden, modulation)
